//! Test 4: power fails. The moment is a number of requests to the disk, not a time, and follows from the seed; what the
//! drive had not flushed is lost as the seed says. The machine always boots, and ends on the new release; only where the power
//! failed in every try of it may it have been given up, as the boot loader's count demands.
//!
//! Four cuts, one for each phase, fall on one node during one update: the node of cut 5 is the one of cuts 4, 6 and 7.

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bascule_api::NodeUpdateStatus;
use bascule_sim::disk::Disk as Medium;
use bascule_sim::layout::{ESP, Slot, Table};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BOOT, STAGE, Stage, TRIAL, committed, failed, runs};
use crate::disk::{Access, Cut, Loss};
use crate::machine::VirtualMachine;
use crate::offline;
use crate::release::Release;

/// The channel that all nodes of this test follow.
pub const CHANNEL: &str = "cuts";
/// Cuts of one node: one for each phase.
pub const PHASES: u32 = 4;
/// How often an armed release may be tried (the agent's `boot.tries`).
const TRIES: usize = 3;
/// Said by the initrd of a release that runs as a trial.
const TRIAL_MARK: &str = "bascule-init: this boot is a trial";

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

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, requests) = match self.phase {
            Phase::Stage => ("stage", "writes"),
            Phase::Arm => ("arm", "writes to the ESP"),
            Phase::FirstBoot => ("first boot", "reads of the slot"),
            Phase::Commit => ("commit", "writes to the ESP"),
        };
        let loss = match self.loss {
            Loss::Nothing => "nothing is lost".to_owned(),
            Loss::Everything => "all that was not flushed is lost".to_owned(),
            Loss::Torn(seed) => format!("sectors are lost by seed {seed:x}"),
            Loss::Chosen(kept) => format!("of the sectors that were not flushed those of {kept:b} are kept"),
        };
        write!(formatter, "{phase}, after {} {requests}, {loss}", self.after)
    }
}

impl Plan {
    /// The plan of cut `number` of a run with `seed`: phases take turns, the rest is drawn.
    #[must_use]
    pub fn of(seed: u64, number: u32) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ u64::from(number) << 32);
        // How many requests each phase makes was counted on a machine; a number past the end cuts after the phase.
        let (phase, most) = match number % 4 {
            0 => (Phase::Stage, 200),
            // 10 of them: the image's start taken away, the name, the start brought back; then the boot loader counts.
            1 => (Phase::Arm, 12),
            2 => (Phase::FirstBoot, 280),
            _ => (Phase::Commit, 4),
        };
        let after = random.random_range(0..most);
        let loss = match random.random_range(0..4) {
            0 => Loss::Nothing,
            1 => Loss::Everything,
            _ => Loss::Torn(random.random()),
        };
        Self { phase, after, loss }
    }
}

/// One node on its way to the new release, with a power cut in each of the plans' phases, in their order. `published` is done
/// once the channel offers the new release; the node boots meanwhile.
///
/// # Errors
/// When the machine does not boot after a cut, or does not end on the new release.
pub async fn run(
    stage: Stage<'_>,
    name: &str,
    plans: &[Plan],
    old: &Release,
    published: impl Future<Output = anyhow::Result<&Release>>,
) -> anyhow::Result<()> {
    let ((mut machine, _), new) = futures::try_join!(stage.node(name, old, CHANNEL), published)?;
    let mut boots_from = 0;
    for plan in plans {
        let began = Instant::now();
        let how = cut(stage, &mut machine, plan, boots_from, new).await;
        let how = how.with_context(|| format!("before the cut: {plan:?}"))?;
        let shell = machine.now();
        boots_from = machine.console().now();
        machine.power_on()?;
        machine.wait_until_up(shell, BOOT * 3).await.with_context(|| format!("after the cut: {plan:?}"))?;
        up_at_once(&machine, plan, boots_from, old).await?;
        crate::say(&format!("{name}: {plan}; {how}; up again; {} s in all", began.elapsed().as_secs()));
    }
    // The power may have failed in each try; the last one's commit may have reached the disk all the same.
    let given_up = |status: &NodeUpdateStatus| committed(status, old) && failed(status, new);
    let all_tried = machine.console().count(0, TRIAL_MARK) >= TRIES;
    let end = |status: &NodeUpdateStatus| committed(status, new) || (all_tried && given_up(status));
    let status = stage
        .until_now(&machine, "the new release is committed, or was tried out", STAGE + TRIAL * 2, end)
        .await
        .with_context(|| format!("after the cuts: {plans:?}"))?;
    machine.shut_down(BOOT).await?;
    let mut whole = vec![(Slot::A, old)];
    if committed(&status, new) {
        whole.push((Slot::B, new));
    } else {
        crate::say(&format!("{name}: the power failed in each of its {TRIES} tries; the old release runs for good"));
    }
    offline::judge(machine.disk().path(), &whole).with_context(|| format!("at the end of {plans:?}"))?;
    machine.discard();
    Ok(())
}

/// A cut costs one boot and no more, and while a release is only staged, that boot is the old release's.
async fn up_at_once(machine: &VirtualMachine, plan: &Plan, from: usize, old: &Release) -> anyhow::Result<()> {
    let boots = machine.boots(from);
    ensure!(boots == 1, "{boots} kernels were started after the cut before one came up: {plan}");
    if plan.phase == Phase::Stage {
        let command_line = machine.run("cat /proc/cmdline", BOOT).await?;
        let runs_old = command_line.contains(&format!("roothash={}", old.root_hash));
        ensure!(runs_old, "a release that was not armed runs after the cut: {command_line}");
    }
    Ok(())
}

/// Waits for the phase, arms the cut, and waits until the power is gone. Returns what had been asked of the disk by then.
async fn cut(
    stage: Stage<'_>,
    machine: &mut VirtualMachine,
    plan: &Plan,
    boots_from: usize,
    new: &Release,
) -> anyhow::Result<String> {
    let disk = machine.disk().clone();
    match plan.phase {
        Phase::Stage => {
            stage
                .until(machine, "the transfer begins", STAGE, |status| {
                    status.transfer.is_some() || status.staged.is_some() || runs(status, new)
                })
                .await?;
        }
        Phase::Arm => {
            let ready = |status: &NodeUpdateStatus| status.staged.is_some() || runs(status, new);
            stage.until(machine, "the release is staged", STAGE, ready).await?;
        }
        Phase::FirstBoot => {
            // Said by the initrd before it reads the slot.
            machine.console().wait_for(boots_from, TRIAL_MARK, STAGE + TRIAL).await?;
        }
        Phase::Commit => {
            stage.until(machine, "the trial runs", STAGE + TRIAL, |status| runs(status, new)).await?;
        }
    }
    let (access, bytes) = match plan.phase {
        // The table at both ends of the disk, and everything between: whatever staging writes.
        Phase::Stage => (Access::Write, 0..u64::MAX),
        Phase::Arm | Phase::Commit => (Access::Write, part(machine, ESP)?),
        Phase::FirstBoot => (Access::Read, part(machine, Slot::B.data())?),
    };
    let before = disk.served();
    disk.cut_at(Cut { access, bytes, after: plan.after });
    let over = async {
        // Fewer requests than planned: then the power fails once the phase is over.
        match plan.phase {
            Phase::Stage => stage
                .until(machine, "the cut, or a staged release", STAGE, |status| {
                    status.staged.is_some() || runs(status, new)
                })
                .await
                .map(drop),
            Phase::Arm => machine.console().wait_for(boots_from, TRIAL_MARK, TRIAL).await.map(drop),
            Phase::FirstBoot => {
                stage.until(machine, "the cut, or a running trial", TRIAL, |status| runs(status, new)).await.map(drop)
            }
            Phase::Commit => {
                let done = |status: &NodeUpdateStatus| committed(status, new);
                stage.until(machine, "the cut, or the commit", TRIAL, done).await.map(drop)
            }
        }
    };
    tokio::select! {
        () = disk.cut() => {}
        done = over => done?,
    }
    let how = match disk.take_back() {
        None => "it was cut there".to_owned(),
        Some(left) => format!("it was cut after the phase, which had {} such requests", plan.after - left),
    };
    let served = disk.served();
    machine.power_off(plan.loss)?;
    let (writes, reads) = (served.writes - before.writes, served.reads - before.reads);
    Ok(format!("{how} ({writes} writes and {reads} reads on the whole disk since the phase began)"))
}

fn part(machine: &VirtualMachine, number: u32) -> anyhow::Result<Range<u64>> {
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
