//! Test 7: the running system can't be changed, and a change underneath it is noticed. Catches a root that is mounted
//! writable or without dm-verity, and an agent that never looks at the slot it runs from.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bascule_api::SlotState;

use super::{BOOT, Stage};
use crate::release::Release;

/// How often the agent looks at its slots, with room for the look itself.
const LOOK: Duration = Duration::from_secs(900);

/// Tries to write as root to the root, and then to the device below it.
///
/// # Errors
/// When the root can be written, or the agent does not report the change.
pub async fn run(stage: Stage<'_>, name: &str, release: &Release) -> anyhow::Result<()> {
    let shell_from = 0;
    let (mut machine, _) = stage.node(name, release, name).await?;
    machine.wait_until_up(shell_from, BOOT).await?;
    let mounted = machine.run("findmnt -no SOURCE,FSTYPE,OPTIONS /", BOOT).await?;
    ensure!(mounted.contains("erofs") && mounted.contains("ro"), "the root is mounted as {mounted}");
    let table = machine.run("cat /sys/block/dm-0/dm/uuid /sys/block/dm-0/ro", BOOT).await?;
    ensure!(table.contains("CRYPT-VERITY-") && table.lines().any(|line| line == "1"), "below the root is {table}");
    machine.run("! touch /usr/here && ! mount -o remount,rw / && ! dd if=/dev/zero of=/dev/dm-0 count=1", BOOT).await?;

    // The last block of the image's file system, where no program of the boot lies: the machine lives on.
    let blocks = std::fs::metadata(&release.data).context("looking at the image")?.len() / 4096;
    let write = format!("dd if=/dev/urandom of=/dev/vda2 bs=4096 seek={} count=1 conv=fsync", blocks - 1);
    machine.run(&write, BOOT).await?;
    stage
        .until(&machine, "the changed slot is reported", LOOK, |status| {
            status.slots.as_ref().is_some_and(|slots| slots.a.state == SlotState::Damaged)
                || status
                    .conditions
                    .iter()
                    .any(|condition| condition.type_ == bascule_api::conditions::DRIFT && condition.status == "True")
        })
        .await?;
    machine.power_off(crate::disk::Loss::Everything)?;
    machine.discard();
    Ok(())
}
