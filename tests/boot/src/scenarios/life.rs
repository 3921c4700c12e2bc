//! The life of one node: it reports, is updated by a delta, and is rolled back by somebody on call; then tools that know
//! nothing of Bascule look at what is left.

use anyhow::{Context as _, ensure};
use bascule_api::NodeUpdateStatus;
use bascule_sim::layout::Slot;
use serde::Deserialize;

use super::counting::counted;
use super::{BOOT, STAGE, Stage, TRIAL, committed, runs};
use crate::machine::VirtualMachine;
use crate::offline;
use crate::release::Release;

/// The name of the node and of its policy.
pub const NODE: &str = "life";
/// The channel that its policy follows.
pub const CHANNEL: &str = "life";
/// The entry with a counter that was booted (systemd, "The Boot Loader Interface").
pub(super) const COUNTED_ENTRY: &str =
    "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Installs the node and boots it.
///
/// # Errors
/// When it does not come up.
pub async fn install(stage: Stage<'_>, old: &Release) -> anyhow::Result<VirtualMachine> {
    Ok(stage.node(NODE, old, CHANNEL).await?.0)
}

/// Test 1: by delta, staged, drained, rebooted, a counted trial, committed. Catches an agent that writes another slot or
/// other bytes than the manifest's, arms without a counter, or commits without taking the counter away.
///
/// # Errors
/// When any of it is otherwise.
pub async fn update(stage: Stage<'_>, machine: &VirtualMachine, old: &Release, new: &Release) -> anyhow::Result<()> {
    let before = stage.vendor.packs_sent_to(NODE);
    stage.vendor.publish(CHANNEL, new, &[old]).await?;
    stage.until(machine, "the release is staged", STAGE, |status| staged(status, new)).await?;
    let moved = stage.vendor.packs_sent_to(NODE) - before;
    let whole = std::fs::metadata(&new.data).context("looking at the image")?.len();
    ensure!(moved > 0, "the release is staged, and no pack was sent to this node");
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
    let listed = machine.run("ls -1 /efi/EFI/Linux; SYSTEMD_COLORS=0 bootctl list --no-pager", BOOT).await?;
    ensure!(listed.lines().any(|line| line.trim() == new.entry()), "no entry without a counter:\n{listed}");
    crate::say(&format!("{NODE}: 1.1 by a delta of {} kB for {} MB", moved / 1000, whole / 1_000_000));
    Ok(())
}

/// Test 5: back by an object that somebody on call wrote, into the other slot, without a byte of a pack.
///
/// # Errors
/// When bytes were moved, or the node does not go back.
pub async fn rollback(stage: Stage<'_>, machine: &VirtualMachine, old: &Release) -> anyhow::Result<()> {
    let before = stage.vendor.packs_sent_to(NODE);
    stage.cluster.on_call(&["rollback", NODE, "--reason", "boot test", "--yes"]).await?;
    stage.until(machine, "the old release runs for good", TRIAL * 2, |status| committed(status, old)).await?;
    let moved = stage.vendor.packs_sent_to(NODE) - before;
    ensure!(moved == 0, "{moved} bytes were moved for a release that the other slot holds");
    Ok(())
}

/// The end: what the boot loader's own tool says of the entries, a clean shutdown, and what tools that know nothing of
/// Bascule say about the disk.
///
/// # Errors
/// When one of them objects.
pub async fn judge(machine: &mut VirtualMachine, running: &Release, other: &Release) -> anyhow::Result<()> {
    let said = machine.run("SYSTEMD_COLORS=0 bootctl list --json=short --no-pager", BOOT).await?;
    let listed: Vec<BootEntry> = serde_json::from_str(said.trim()).with_context(|| format!("bootctl said {said}"))?;
    let entry = listed.iter().find(|entry| entry.id == running.entry());
    let entry = entry.with_context(|| format!("bootctl does not list {}: {said}", running.entry()))?;
    ensure!(entry.is_selected && entry.is_default, "{} runs, and bootctl says otherwise: {said}", running.entry());
    ensure!(entry.tries_left.is_none(), "{} is still counted: {said}", running.entry());
    machine.shut_down(BOOT).await?;
    let names = offline::entries(machine.disk().path())?;
    ensure!(names.contains(&running.entry()), "{} has no entry: {names:?}", running.version);
    offline::judge(machine.disk().path(), &[(Slot::A, running), (Slot::B, other)])
}

/// What `bootctl list --json` says of an entry, as far as the test asks (bootctl(1)).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BootEntry {
    id: String,
    #[serde(default)]
    is_default: bool,
    #[serde(default)]
    is_selected: bool,
    tries_left: Option<u32>,
}

pub(super) fn staged(status: &NodeUpdateStatus, release: &Release) -> bool {
    let staged = status.staged.as_ref().is_some_and(|staged| staged.version.to_string() == release.version);
    // A node that is quicker than its watchers runs it already.
    staged || runs(status, release)
}
