//! Test 4: power fails. The moment is a number of requests to the disk, not a time, and follows from the seed; what the
//! drive had not flushed is lost as the seed says. The machine always boots, and always ends on the new release.

use std::ops::Range;

use anyhow::Context as _;
use bascule_sim::disk::Disk as Medium;
use bascule_sim::layout::{ESP, Slot, Table};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BOOT, STAGE, Stage, TRIAL, committed, runs};
use crate::disk::{Access, Cut, Loss};
use crate::machine::Machine;
use crate::offline;
use crate::release::Release;

/// The channel that all nodes of this test follow.
pub const CHANNEL: &str = "cuts";

/// What the node is doing when the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Writing the slot and its place in the partition table.
    Stage,
    /// Writing the boot entry.
    Arm,
    /// Booting the new release for the first time.
    FirstBoot,
    /// Taking the counter off the boot entry.
    Commit,
}

/// Where and how the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// During what.
    pub phase: Phase,
    /// After how many requests of the phase's kind.
    pub after: u64,
    /// What is lost.
    pub loss: Loss,
}

impl Plan {
    /// The plan of cut `number` of a run with `seed`: phases take turns, the rest is drawn.
    #[must_use]
    pub fn of(seed: u64, number: u32) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ u64::from(number) << 32);
        // How many requests each phase makes was counted once; a number past the end cuts after the phase.
        let (phase, most) = match number % 4 {
            0 => (Phase::Stage, 600),
            1 => (Phase::Arm, 60),
            2 => (Phase::FirstBoot, 900),
            _ => (Phase::Commit, 12),
        };
        let after = random.random_range(0..most);
        let loss = match random.random_range(0..4) {
            0 => Loss::Nothing,
            1 => Loss::Everything,
            _ => Loss::Some { seed: random.random() },
        };
        Self { phase, after, loss }
    }
}

/// One node, one cut.
///
/// # Errors
/// When the machine does not boot after the cut, or does not end on the new release.
pub async fn run(stage: Stage<'_>, name: &str, plan: Plan, old: &Release, new: &Release) -> anyhow::Result<()> {
    let mut machine = stage.node(name, old, CHANNEL).await?;
    cut(stage, &mut machine, plan, new).await.with_context(|| format!("before the cut: {plan:?}"))?;
    let shell = machine.now();
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT * 3).await.with_context(|| format!("after the cut: {plan:?}"))?;
    stage
        .until(&machine, "the new release is committed", STAGE + TRIAL * 2, |status| committed(status, new))
        .await
        .with_context(|| format!("after the cut: {plan:?}"))?;
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, old), (Slot::B, new)])
        .with_context(|| format!("at the end of {plan:?}"))
}

/// Waits for the phase, arms the cut, and waits until the power is gone.
async fn cut(stage: Stage<'_>, machine: &mut Machine, plan: Plan, new: &Release) -> anyhow::Result<()> {
    let disk = machine.disk().clone();
    let (access, bytes) = match plan.phase {
        // The table at both ends of the disk, and everything between: whatever staging writes.
        Phase::Stage => (Access::Write, 0..u64::MAX),
        Phase::Arm | Phase::Commit => (Access::Write, part(machine, ESP)?),
        Phase::FirstBoot => (Access::Read, part(machine, Slot::B.data())?),
    };
    let ready: &(dyn Fn(&bascule_api::NodeUpdateStatus) -> bool + Sync) = match plan.phase {
        Phase::Stage => &|status| status.transfer.is_some() || status.staged.is_some(),
        Phase::Arm | Phase::FirstBoot => &|status| status.staged.is_some() || runs(status, new),
        Phase::Commit => &|status| runs(status, new),
    };
    stage.until(machine, "the phase of the cut begins", STAGE + TRIAL, ready).await?;
    disk.cut_at(Cut { access, bytes, after: plan.after });
    tokio::select! {
        () = disk.cut() => {}
        // The phase had fewer requests than that: then the power fails once all is done.
        done = stage.until(machine, "the cut, or the end of the phase", TRIAL * 2, |status| committed(status, new)) => {
            done?;
        }
    }
    machine.power_off(plan.loss)
}

fn part(machine: &Machine, number: u32) -> anyhow::Result<Range<u64>> {
    let medium = Medium::open_file(machine.disk().path()).context("opening the disk")?;
    let part = Table::read(&medium).context("reading the table")?.part(number)?;
    Ok(part.offset()..part.offset() + part.length())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_plans_and_four_cuts_touch_every_phase() {
        let plans: Vec<Plan> = (0..4).map(|number| Plan::of(7, number)).collect();
        assert_eq!(plans, (0..4).map(|number| Plan::of(7, number)).collect::<Vec<_>>());
        assert_ne!(plans, (0..4).map(|number| Plan::of(8, number)).collect::<Vec<_>>());
        let phases: Vec<Phase> = plans.iter().map(|plan| plan.phase).collect();
        assert_eq!(phases, [Phase::Stage, Phase::Arm, Phase::FirstBoot, Phase::Commit]);
    }
}
