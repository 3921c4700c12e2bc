//! Test 2: a release whose kubelet never reports goes away by itself and is never tried again. Catches a guard that needs
//! what is broken, and an operator that forgets.

use std::time::Duration;

use bascule_sim::layout::Slot;

use super::{BOOT, STAGE, Stage, TRIAL, committed, failed, runs};
use crate::offline;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NAME: &str = "never-ready";
/// The dead man's deadline in this release, with room for two boots.
const GUARD: Duration = Duration::from_secs(1500);

/// Publishes the broken release and waits until the node is back.
///
/// # Errors
/// When the node stays on it, or it is not blocked.
pub async fn run(stage: Stage<'_>, old: &Release, broken: &Release) -> anyhow::Result<()> {
    let (mut machine, _) = stage.node(NAME, old, NAME).await?;
    let from = machine.console().now();
    stage.vendor.publish(NAME, broken, &[old]).await?;
    stage.until(&machine, "the broken release runs as a trial", STAGE + TRIAL, |status| runs(status, broken)).await?;
    stage
        .until(&machine, "the node is back and says that the release failed", GUARD, |status| {
            committed(status, old) && failed(status, broken)
        })
        .await?;
    stage.cluster.until_blocked(NAME, &broken.version).await?;
    // Reverted by the guard: a second try would have been the boot loader's doing.
    let boots = machine.boots(from);
    anyhow::ensure!(boots == 2, "{boots} kernels were started: one for the trial and one for the way back are right");
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, old)])?;
    machine.discard();
    Ok(())
}
