//! Test 3: releases that get nowhere. Nobody is there to help: the kernel panics, the initrd hangs, or a bit of the slot
//! is wrong; the boot loader counts the trial down and the release before it comes back, and says which one failed.

use anyhow::ensure;
use bascule_sim::layout::Slot;

use super::{STAGE, Stage, TRIAL, committed, failed};
use crate::offline;
use crate::release::Release;

/// Three tries of a broken release, with a watchdog's minute each, and a boot.
const COUNT_DOWN: std::time::Duration = std::time::Duration::from_secs(1800);

/// Publishes `broken` to a channel of its own and waits until the node has tried it and is back. With `flip`, one bit of
/// the staged slot changes before it is booted.
///
/// # Errors
/// When the node does not come back by itself, or not on the release before.
pub async fn run(stage: Stage<'_>, name: &str, old: &Release, broken: &Release, flip: bool) -> anyhow::Result<()> {
    let (mut machine, _) = stage.node(name, old, name).await?;
    let from = machine.console().now();
    stage.vendor.publish(name, broken, &[old]).await?;
    if flip {
        stage
            .until(&machine, "the release is staged", STAGE, |status| {
                status.staged.as_ref().is_some_and(|staged| staged.version.to_string() == broken.version)
            })
            .await?;
        // The superblock of the file system, read by every mount: the medium decays after it was verified.
        let start = offline::slot_offset(machine.disk().path(), Slot::B)?;
        machine.disk().flip_bit(start + 1024 + 20, 3)?;
    }
    stage
        .until(&machine, "the node is back and says that the release failed", STAGE + TRIAL + COUNT_DOWN, |status| {
            committed(status, old) && failed(status, broken)
        })
        .await?;
    let tries = machine.boots(from).saturating_sub(1);
    ensure!(tries == 3, "the broken release was tried {tries} times, three were allowed");
    machine.shut_down(super::BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, old)])?;
    machine.discard();
    Ok(())
}
