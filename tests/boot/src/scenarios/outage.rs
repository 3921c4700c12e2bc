//! Test 6: the cluster can't be reached during a trial. Catches a guard that waits for the network, and an agent that
//! commits without being told to.

use anyhow::ensure;

use super::{BOOT, STAGE, Stage, TRIAL, committed, failed};
use crate::release::Release;

/// The guard's deadline in this release, and two boots.
const GUARD: std::time::Duration = std::time::Duration::from_secs(1500);

/// Pulls the network cable as the machine goes down for its trial, waits for the guard, and plugs it in again.
///
/// # Errors
/// When the trial stays, or the node does not report once it can.
pub async fn run(stage: Stage<'_>, name: &str, old: &Release, new: &Release) -> anyhow::Result<()> {
    let (mut machine, _) = stage.node(name, old, name).await?;
    let from = machine.console().now();
    stage.vendor.publish(name, new, &[old]).await?;
    let trial = machine.console().wait_for(from, "this boot is a trial", STAGE + TRIAL).await?;
    machine.plug_network(false).await?;
    // The next kernel after the trial's is the old release's: nobody but the guard restarted the machine.
    machine.console().wait_for(trial, "Linux version ", GUARD).await?;
    let shell = machine.now();
    machine.wait_until_up(shell, BOOT).await?;
    let command_line = machine.run("cat /proc/cmdline", BOOT).await?;
    ensure!(command_line.contains(&format!("roothash={}", old.root_hash)), "still on the trial: {command_line}");
    machine.plug_network(true).await?;
    stage
        .until_now(&machine, "the node is back and says that the release failed", TRIAL, |status| {
            committed(status, old) && failed(status, new)
        })
        .await?;
    machine.shut_down(BOOT).await?;
    machine.discard();
    Ok(())
}
