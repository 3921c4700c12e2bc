//! A host as some are: boot entries on an extended boot loader partition, both boot partitions mounted when somebody looks there,
//! and a second disk in the machine that belongs to another host of the same product. In four boots it meets what keeps a node from
//! being updated, one after the other; each must be said before the node is drained, and must go away by itself. Then it is updated,
//! also to an agent whose records have an older format, and goes back.

use anyhow::ensure;
use bascule_api::{Counting, NodeUpdateStatus, conditions};
use bascule_sim::layout::Slot;

use super::counting::counted;
use super::life::COUNTED_ENTRY;
use super::{BOOT, STAGE, Stage, TRIAL, committed, runs};
use crate::install::Boot;
use crate::lab::Setup;
use crate::machine::VirtualMachine;
use crate::offline;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NODE: &str = "layout";
/// Keeps a mount from being taken away for want of use.
const HOLDER: &str = "/run/holder.pid";

/// Installs the node and boots it.
///
/// # Errors
/// When it does not come up, or finds fault with its boot partitions.
pub async fn install(stage: Stage<'_>, old: &Release) -> anyhow::Result<VirtualMachine> {
    let setup = Setup { boot: Boot { xbootldr: true, ..Boot::default() }, neighbour: true, ..Setup::default() };
    let (machine, _) = stage.node_of(NODE, old, NODE, &setup).await?;
    let said = machine.run("systemctl is-active efi.automount boot.automount; cat /proc/partitions", BOOT).await?;
    ensure!(said.matches("active").count() == 2 && !said.contains("inactive"), "no automount: {said}");
    ensure!(said.contains("vdb1"), "there is no second disk: {said}");
    let sound = |status: &NodeUpdateStatus| conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY);
    stage.until(&machine, "boot control is sound", STAGE, sound).await?;
    // Long enough for both to be taken away again, and for the agent to look once more.
    let idle = "sleep 12; findmnt -n -t vfat -o TARGET; true";
    let mounted = machine.run(idle, BOOT).await?;
    ensure!(
        mounted.trim().is_empty(),
        "the boot partitions stay mounted, so that an automount is not what is tested: {mounted}"
    );
    Ok(machine)
}

/// A pinned entry, then the other disk's ESP in place of this one's, then a file system that became read-only: each is said, and
/// the node is neither drained nor restarted.
///
/// # Errors
/// When one of them is not said, or the node is touched all the same.
pub async fn obstacles(stage: Stage<'_>, machine: &VirtualMachine, old: &Release, new: &Release) -> anyhow::Result<()> {
    let from = machine.console().now();
    let pin = format!("echo default {} >> /efi/loader/loader.conf; sync", old.entry());
    machine.run(&pin, BOOT).await?;
    is_said(stage, machine, "in loader.conf pins").await?;
    stage.vendor.publish(NODE, new, &[old]).await?;
    untouched(stage, machine, from).await?;

    // The wrong one is there before the pin goes, so that at no moment all is well.
    let exchange = "systemctl stop efi.automount efi.mount; mount /dev/vdb1 /efi && mkdir -p /run/right && \
                    mount /dev/vda1 /run/right && sed -i /^default/d /run/right/loader/loader.conf && umount /run/right";
    machine.run(exchange, BOOT).await?;
    is_said(stage, machine, "the boot loader came from partition").await?;
    untouched(stage, machine, from).await?;

    let spoil = format!(
        "( cd /boot && exec sleep 100000 ) >/dev/null 2>&1 & echo $! > {HOLDER}; sleep 1; mount -o remount,ro /boot && \
         umount /efi && systemctl start efi.automount"
    );
    machine.run(&spoil, BOOT).await?;
    is_said(stage, machine, "the XBOOTLDR is mounted read-only").await?;
    untouched(stage, machine, from).await
}

/// With the last of them gone the release that waited is booted and committed, on the partition that its predecessor is on.
///
/// # Errors
/// When it is not, or something was put elsewhere.
pub async fn update(stage: Stage<'_>, machine: &VirtualMachine, new: &Release) -> anyhow::Result<()> {
    let shell = machine.now();
    machine.run(&format!("mount -o remount,rw /boot && kill $(cat {HOLDER})"), BOOT).await?;
    let on_trial = |status: &NodeUpdateStatus| runs(status, new) && status.trial.is_some();
    stage.until(machine, "the new release runs as a trial", TRIAL, on_trial).await?;
    machine.wait_until_up(shell, BOOT).await?;
    let trial = machine.run(&format!("cat /proc/cmdline; tr -d '\\000' < {COUNTED_ENTRY}"), BOOT).await?;
    let counted = counted(&new.entry(), "+2-1")?;
    ensure!(trial.contains(&counted), "the boot loader did not boot {counted}:\n{trial}");
    stage.until(machine, "the new release is committed", TRIAL, |status| committed(status, new)).await?;
    let listed = machine.run("ls -1 /boot/EFI/Linux; echo and; ls -1 /efi/EFI/Linux; true", BOOT).await?;
    let (home, elsewhere) = listed.split_once("and\n").unwrap_or((&listed, ""));
    ensure!(home.lines().any(|line| line.trim() == new.entry()), "no entry without a counter:\n{listed}");
    ensure!(!elsewhere.contains(".efi") || elsewhere.contains("No such file"), "something lies on the ESP:\n{listed}");
    Ok(())
}

/// On to a release with an older agent, and back from it: each reads what the other remembered. What it does not know it passes
/// over; in the journal and the memory of metadata it keeps that, too, and nothing is reset.
///
/// # Errors
/// When the node does not go on or back, or forgets something.
pub async fn back(stage: Stage<'_>, machine: &VirtualMachine, new: &Release, older: &Release) -> anyhow::Result<()> {
    // What an agent of the future would write: members of its own beside those of today.
    let newer = "systemctl stop bascule-agent && cd /var/lib/bascule && sed -i '1s/^{/{\"leases\": [1, 2],/' journal.json && \
                 find repositories -name trusted.json -exec sed -i '1s/^{/{\"mirrors\":{\"seen\":[1,2]},/' {} + && \
                 systemctl start bascule-agent";
    machine.run(newer, BOOT).await?;
    let placed = "grep -c '\"partition\"' /var/lib/bascule/journal.json; true";
    let known = machine.run(placed, BOOT).await?;
    ensure!(known.trim() != "0", "the records of this agent have no member that the older one does not know");

    let shell = machine.now();
    stage.vendor.publish(NODE, older, &[new]).await?;
    let status = stage
        .until(machine, "the older agent has committed itself", STAGE + TRIAL, |status| committed(status, older))
        .await?;
    ensure!(status.last_grant.is_some() && status.failed_releases.is_empty(), "it misread a record: {status:?}");
    let shell = machine.wait_until_up(shell, BOOT).await?;
    remembered(machine).await?;
    let known = machine.run(placed, BOOT).await?;
    ensure!(known.trim() == "0", "this is no agent with older records, or it wrote none: {known}");

    stage.cluster.on_call(&["rollback", NODE, "--reason", "boot test", "--yes"]).await?;
    let status = stage
        .until(machine, "the newer agent runs again, for good", TRIAL * 2, |status| committed(status, new))
        .await?;
    ensure!(status.last_grant.is_some(), "the last grant is forgotten: {status:?}");
    machine.wait_until_up(shell, BOOT).await?;
    let sound = |status: &NodeUpdateStatus| conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY);
    stage.until(machine, "boot control is sound", STAGE, sound).await?;
    remembered(machine).await
}

/// What the agent of the future wrote is there still, and the agent of this boot complained of nothing.
async fn remembered(machine: &VirtualMachine) -> anyhow::Result<()> {
    let look = "cd /var/lib/bascule && ls && grep -c leases journal.json && grep -rl mirrors repositories";
    let kept = machine.run(look, BOOT).await?;
    ensure!(kept.contains("trusted.json"), "what a newer agent remembered is lost: {kept}");
    let log = machine.run("journalctl --boot --no-pager -u bascule-agent", BOOT).await?;
    ensure!(!log.contains("damaged") && !log.contains("starts afresh"), "a memory was reset:\n{log}");
    Ok(())
}

/// The end: a clean shutdown, and what tools that know nothing of Bascule say about the disk.
///
/// # Errors
/// When one of them objects.
pub async fn judge(machine: &mut VirtualMachine, older: &Release, new: &Release) -> anyhow::Result<()> {
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, older), (Slot::B, new)])
}

/// Waits until the node says why nothing may be armed.
async fn is_said(stage: Stage<'_>, machine: &VirtualMachine, words: &str) -> anyhow::Result<()> {
    let said = |status: &NodeUpdateStatus| {
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|condition| condition.type_ == conditions::BOOT_CONTROL_HEALTHY);
        let broken = status.boot_control.as_ref().is_some_and(|control| control.counting == Counting::Broken);
        broken && found.is_some_and(|condition| condition.status == "False" && condition.message.contains(words))
    };
    stage.until(machine, &format!("the node says that {words}"), STAGE, said).await.map(drop)
}

/// The node was neither drained nor restarted.
async fn untouched(stage: Stage<'_>, machine: &VirtualMachine, from: usize) -> anyhow::Result<()> {
    let boots = machine.boots(from);
    ensure!(boots == 0, "the node was restarted {boots} times");
    let closed = stage.cluster.kubectl(&["get", "node", NODE, "-o", "jsonpath={.spec.unschedulable}"]).await?;
    ensure!(closed.is_empty(), "the node was cordoned");
    Ok(())
}
