//! The life of one node: it reports, is updated by a delta, is rolled back by somebody on call, and refuses to stay on a
//! release whose kubelet never comes up.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bascule_api::NodeUpdateStatus;
use bascule_sim::layout::Slot;

use super::counting::counted;
use super::{BOOT, STAGE, Stage, TRIAL, committed, failed, runs};
use crate::machine::Machine;
use crate::offline;
use crate::release::Release;

/// The name of the node and of its policy.
pub const NODE: &str = "life";
/// The channel that its policy follows.
pub const CHANNEL: &str = "life";
/// The entry with a counter that was booted (systemd, "The Boot Loader Interface").
const COUNTED_ENTRY: &str = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The dead man's deadline in the images of the tests, with room for two boots.
const GUARD: Duration = Duration::from_secs(600);

/// Installs the node and boots it.
///
/// # Errors
/// When it does not come up.
pub async fn install(stage: Stage<'_>, old: &Release) -> anyhow::Result<Machine> {
    Ok(stage.node(NODE, old, CHANNEL).await?.0)
}

/// Test 1: by delta, staged, drained, rebooted, a counted trial, committed. Catches an agent that writes another slot or
/// other bytes than the manifest's, arms without a counter, or commits without taking the counter away.
///
/// # Errors
/// When any of it is otherwise.
pub async fn update(stage: Stage<'_>, machine: &Machine, old: &Release, new: &Release) -> anyhow::Result<()> {
    let before = stage.vendor.packs_sent();
    stage.vendor.publish(CHANNEL, new, &[old])?;
    stage.until(machine, "the release is staged", STAGE, |status| staged(status, new)).await?;
    let moved = stage.vendor.packs_sent() - before;
    let whole = std::fs::metadata(&new.data).context("looking at the image")?.len();
    ensure!(moved < whole / 3, "{moved} bytes were moved for an image of {whole}: that was no delta");
    let shell = machine.now();
    let on_trial = |status: &NodeUpdateStatus| runs(status, new) && status.trial.is_some();
    let status = stage.until(machine, "the new release runs as a trial", TRIAL, on_trial).await?;
    let left = status.trial.map(|trial| trial.tries_left);
    ensure!(left == Some(2), "of three tries one is used by the first boot, but the agent says that {left:?} are left");
    machine.wait_until_up(shell, BOOT).await?;
    let trial = machine.run(&format!("cat /proc/cmdline; tr -d '\\000' < {COUNTED_ENTRY}"), BOOT).await?;
    ensure!(trial.contains(&format!("roothash={}", new.root_hash)), "another root runs:\n{trial}");
    let counted = counted(&new.entry(), "+2-1")?;
    ensure!(trial.contains(&counted), "the boot loader did not boot {counted}:\n{trial}");
    stage.until(machine, "the new release is committed", TRIAL, |status| committed(status, new)).await?;
    let listed = machine.run("ls /efi/EFI/Linux; bootctl list --no-pager", BOOT).await?;
    ensure!(listed.lines().any(|line| line.trim() == new.entry()), "no entry without a counter:\n{listed}");
    crate::say(&format!("{NODE}: 1.1 by a delta of {} kB for {} MB", moved / 1000, whole / 1_000_000));
    Ok(())
}

/// Test 5: back by an object that somebody on call wrote, into the other slot, without a byte of a pack.
///
/// # Errors
/// When bytes were moved, or the node does not go back.
pub async fn rollback(stage: Stage<'_>, machine: &Machine, old: &Release) -> anyhow::Result<()> {
    let before = stage.vendor.packs_sent();
    stage.cluster.on_call(&["rollback", NODE, "--reason", "boot test", "--yes"]).await?;
    stage.until(machine, "the old release runs for good", TRIAL * 2, |status| committed(status, old)).await?;
    let moved = stage.vendor.packs_sent() - before;
    ensure!(moved == 0, "{moved} bytes were moved for a release that the other slot holds");
    Ok(())
}

/// Test 2: a release whose kubelet never reports goes away by itself and is never tried again. Catches a guard that
/// needs what is broken, and an operator that forgets.
///
/// # Errors
/// When the node stays on it, or it is not blocked.
pub async fn never_ready(
    stage: Stage<'_>,
    machine: &Machine,
    running: &Release,
    broken: &Release,
) -> anyhow::Result<()> {
    stage.vendor.publish(CHANNEL, broken, &[running])?;
    stage.until(machine, "the broken release runs as a trial", STAGE + TRIAL, |status| runs(status, broken)).await?;
    stage
        .until(machine, "the node is back and says that the release failed", GUARD, |status| {
            committed(status, running) && failed(status, broken)
        })
        .await?;
    stage.cluster.until_blocked(NODE, &broken.version).await
}

/// The end: a clean shutdown, and what tools that know nothing of Bascule say about the disk.
///
/// # Errors
/// When one of them objects.
pub async fn judge(machine: &mut Machine, running: &Release) -> anyhow::Result<()> {
    machine.shut_down(BOOT).await?;
    let names = offline::entries(machine.disk().path())?;
    ensure!(names.contains(&running.entry()), "{} has no entry: {names:?}", running.version);
    offline::judge(machine.disk().path(), &[(Slot::A, running)])
}

fn staged(status: &NodeUpdateStatus, release: &Release) -> bool {
    let staged = status.staged.as_ref().is_some_and(|staged| staged.version.to_string() == release.version);
    // A node that is quicker than its watchers runs it already.
    staged || runs(status, release)
}
