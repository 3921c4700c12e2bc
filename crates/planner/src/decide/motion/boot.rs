//! From the word to reboot until the node is back: with the new release, with the old one, or not at all.

use super::{Motion, Moving, Owner, before, trial};
use crate::decide::{PolicyView, desired::reference, facts::NodeView};
use crate::{Action, Rule, Wait};
use bascule_api::{
    Booted, Digest, DisruptionOutcome, Goal, NodeError, ReleaseRef, RolloutState, SlotState, SlotStatus, Time, Version,
    WaitReason,
};

pub(super) fn next(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    match moving.spec.goal {
        // The word was taken back.
        Goal::Idle | Goal::Staged if !moving.agent_is_back() => retracted(moving),
        Goal::Idle if moving.agent_used_grant() && moving.view.traits.on_trial => {
            retracted_too_late(moving, drained_at)
        }
        Goal::Idle | Goal::Staged | Goal::Booted | Goal::Committed if moving.agent_is_back() => {
            if moving.runs_asked() {
                trial::next(moving, drained_at)
            } else if moving.view.booted().is_some() {
                came_back_old(moving, drained_at)
            } else {
                away(moving, drained_at)
            }
        }
        Goal::Reverted if moving.agent_is_back() && !moving.runs_asked() && moving.view.booted().is_some() => {
            went_back(moving)
        }
        Goal::Reverted if moving.agent_is_back() => reverting(moving, drained_at),
        Goal::Idle | Goal::Staged | Goal::Booted | Goal::Committed | Goal::Reverted => away(moving, drained_at),
    }
}

/// The node was told to reboot and its agent has not reported from a new boot.
fn away(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let timeout = moving.health().node_ready_timeout;
    let deadline = drained_at.after(timeout);
    let node = moving.view.node;
    if moving.ctx.now < deadline {
        let message =
            match (&moving.view.update().and_then(|update| update.status.last_error.as_ref()), node.ready.ready) {
                (Some(error), true) => format!("the agent reports {}: {}", error.category.as_str(), error.message),
                _ => super::REBOOTING.to_owned(),
            };
        let wait = Wait::new(WaitReason::Rebooting, message).until(Some(deadline));
        return Motion::waits(RolloutState::Rebooting, wait);
    }
    let goal = if moving.spec.goal == Goal::Reverted { Goal::Idle } else { Goal::Staged };
    if node.ready.ready && !moving.kubelet_is_back() {
        let why = format!("the agent did not reboot the node within {timeout}");
        let step = moving.step(Action::Retract { node: moving.name(), goal }, why.clone());
        return Motion::waits(RolloutState::Waiting, Wait::new(WaitReason::DrainBackoff, why)).with(step);
    }
    // A machine that is slow, or gone, says nothing of the release: the agent does, which reports where it came up, or a
    // second machine. Until then it is unavailable, which its grant counts, and somebody has to look.
    let (reason, what) = if moving.kubelet_is_back() {
        let silent = "the kubelet came back, but the agent did not report";
        let what = node.agent_trouble.as_deref().map_or(silent.to_owned(), |trouble| format!("{silent} ({trouble})"));
        (WaitReason::AgentNotReporting, what)
    } else {
        (WaitReason::NodeLost, "the node has not come back".to_owned())
    };
    let mut why = format!("{what} within {timeout} of the reboot");
    let others = moving.lost_too();
    let blamed = (moving.spec.goal, moving.release(), others > 0 || !moving.ctx.set.keeps(Rule::SlowIsNoVerdict));
    let (Goal::Booted, Some(release), true) = blamed else {
        let wait = Wait::new(reason, why).of("Node", None, &node.name);
        return Motion::waits(RolloutState::Failed, wait);
    };
    why.push_str(&format!(", and neither have {others} more with {}", release.version));
    let mut motion = Motion::waits(RolloutState::Failed, Wait::new(reason, why.clone()).of("Node", None, &node.name));
    // Should it come up after all, it is to go back by itself.
    motion.failure = Some((NodeError::BootFailed, why.clone()));
    let revert =
        Action::Revert { node: moving.name(), release: release.clone(), drained_at: None, daemon_sets: Vec::new() };
    motion.with(moving.verdict(revert, why))
}

/// The release that a machine was told to boot and has not come back from in its time.
pub(in crate::decide) fn lost<'a>(view: &NodeView<'a>, policy: &PolicyView<'a>, now: Time) -> Option<&'a Version> {
    let spec = &view.update()?.spec;
    let (drained_at, granted) = (spec.disruption.as_ref()?.drained_at?, spec.grant.as_ref()?);
    let boot = view.update()?.status.boot_id.as_deref();
    let away = boot.is_none_or(|boot| boot == granted.boot_id)
        && !(view.node.ready.ready && view.node.boot_id == granted.boot_id)
        && now >= drained_at.after(policy.valid?.spec.health.node_ready_timeout);
    (away && spec.goal == Goal::Booted).then_some(&spec.release.as_ref()?.version)
}

/// The word to reboot was taken back: once the agent has taken note, the grant is freed.
fn retracted(moving: &Moving<'_, '_>) -> Motion {
    let noted = moving.view.update().is_some_and(|update| {
        let armed = update
            .status
            .slots
            .as_ref()
            .is_some_and(|slots| [slots.a.state, slots.b.state].contains(&SlotState::Armed));
        update.status.observed_generation.is_some_and(|seen| seen >= update.generation) && !armed
    });
    if noted {
        return before::give_up(moving, DisruptionOutcome::NotRebooted, "the agent did not reboot the node in time");
    }
    let wait = Wait::new(WaitReason::AgentNotReporting, "the agent has to take note that the reboot is off");
    Motion::waits(RolloutState::Waiting, wait)
}

/// The way back was taken back too late: the agent had used the grant already, and what it armed is on trial. Usually that is
/// the way back. A machine that was slow with the release that it was to leave tries that one, which is not wanted here.
fn retracted_too_late(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let Some(booted) = moving.view.booted() else { return came_back_old(moving, drained_at) };
    // Nobody can judge it now, and it runs on trial: no work comes to it before its guard has spoken.
    let Some(policy) = moving.owner.judge() else { return keep(moving) };
    let unwanted = policy.memory.failed_on(&booted.version, &moving.view.node.name)
        || policy.remembers_block(&booted.version)
        || policy.rollbacks.iter().any(|rollback| rollback.forbids(moving.view, &booted.version));
    let release = reference(policy, moving.view, &booted.version).or_else(|| by_root_hash(policy, booted));
    let Some(release) = release.filter(|_| unwanted) else { return keep(moving) };
    let says = format!("{} is not wanted here: the trial is taken back", release.version);
    let motion = Motion::waits(RolloutState::Reverting, Wait::new(WaitReason::Reverting, says.clone()));
    let revert = Action::Revert { node: moving.name(), release, drained_at: None, daemon_sets: Vec::new() };
    motion.with(moving.step(revert, says))
}

/// The node came back on another release than it was to boot.
fn came_back_old(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let Some(release) = moving.release() else {
        return before::give_up(moving, DisruptionOutcome::Withdrawn, "the release is not named any more");
    };
    let update = moving.view.update();
    let failed = update
        .and_then(|update| update.status.failed_releases.iter().rev().find(|failed| failed.version == release.version));
    let tried_in_vain = update.and_then(|update| update.status.slots.as_ref()).is_some_and(|slots| {
        let of_release = |slot: &&SlotStatus| slot.version.as_ref() == Some(&release.version);
        [&slots.a, &slots.b].into_iter().filter(of_release).any(|slot| slot.state == SlotState::Bad)
    });
    let running = moving.view.running().map_or("", |version| version.as_str());
    if failed.is_none() && !tried_in_vain && moving.spec.goal != Goal::Committed {
        // Power was lost before the release was armed, or while it was: nothing was tried, so nothing failed. What is left
        // of it in the slot is the agent's to find out and to stage again.
        let why = "the node rebooted before the agent had armed the release";
        let motion = Motion::waits(RolloutState::Waiting, Wait::new(WaitReason::DrainBackoff, why));
        return moving.end(motion, DisruptionOutcome::Interrupted, Goal::Staged, why, why.to_owned());
    }
    let given_up = failed.is_some_and(|failed| failed.category == NodeError::TrialFailed);
    if given_up {
        let trial::Excuse { held, open, questions } = trial::excuse(moving, drained_at, moving.back_seen(drained_at));
        if open {
            let message = format!("back on {running}; the gates are asked before {} is judged", release.version);
            let mut motion = Motion::waits(RolloutState::Reverting, Wait::new(WaitReason::Reverting, message));
            motion.questions = questions;
            return motion.waking(moving.ctx.now.after(trial::HEARD_SOON));
        }
        if let Some((why, gate)) = held {
            return unproven(moving, release, running, &why, gate);
        }
    }
    let (category, seen) = failed.map_or_else(
        || (NodeError::BootFailed, "the boot loader came back to the old release".to_owned()),
        |failed| (failed.category, failed.message.clone()),
    );
    let why = format!("back on {running}: {seen}");
    let mut motion = Motion::waits(RolloutState::Failed, Wait::new(WaitReason::Reverted, why.clone()));
    motion.failure = Some((category, seen.clone()));
    let says = format!("back on {running}: {seen}; {} failed here", release.version);
    moving.end(motion, DisruptionOutcome::Failed, Goal::Idle, &why, says)
}

/// The node came back from a trial that was given up for what the release does not answer for, or may not.
fn unproven(
    moving: &Moving<'_, '_>,
    release: &ReleaseRef,
    running: &str,
    why: &str,
    said_no: Option<String>,
) -> Motion {
    let why = format!("back on {running}, and {} is not blamed: {why}", release.version);
    let motion = Motion::waits(RolloutState::Waiting, Wait::new(WaitReason::Reverted, why.clone()));
    let mut motion = moving.end(motion, DisruptionOutcome::Unproven, Goal::Idle, &why, why.clone());
    for step in &mut motion.steps {
        if let Action::FreeGrant { gate, .. } = &mut step.action {
            gate.clone_from(&said_no);
        }
    }
    motion
}

/// The node left the release that goal Reverted named.
fn went_back(moving: &Moving<'_, '_>) -> Motion {
    let running = moving.view.running().map_or("", |version| version.as_str());
    let Some(release) = moving.release() else {
        return before::give_up(moving, DisruptionOutcome::Withdrawn, "the release is not named any more");
    };
    if moving.view.traits.on_trial {
        return keep(moving);
    }
    let policy = moving.owner.known();
    let remembered = policy.is_some_and(|policy| policy.memory.failed_on(&release.version, &moving.view.node.name));
    let reported = moving
        .view
        .update()
        .is_some_and(|update| update.status.failed_releases.iter().any(|failed| failed.version == release.version));
    if remembered || reported {
        let why = format!("back on {running}: {} failed here", release.version);
        let motion = Motion::waits(RolloutState::Failed, Wait::new(WaitReason::Reverted, why.clone()));
        return moving.end(motion, DisruptionOutcome::Failed, Goal::Idle, &why, why.clone());
    }
    let says = format!("back on {running}, as asked");
    let motion = Motion::waits(RolloutState::Current, Wait::new(WaitReason::Current, crate::decide::AT_REST));
    moving.end(motion, DisruptionOutcome::RolledBack, Goal::Idle, "", says)
}

/// The agent arms a way back like any release, with a counter: it has to be made permanent, or the guard would lead the
/// node forward again.
fn keep(moving: &Moving<'_, '_>) -> Motion {
    let booted = moving.view.booted();
    let release = moving.owner.judge().zip(booted).and_then(|(policy, booted)| {
        reference(policy, moving.view, &booted.version).or_else(|| by_root_hash(policy, booted))
    });
    let Some(release) = release else {
        let wait = match moving.owner {
            Owner::Invalid { why, .. } => {
                let name = &moving.spec.policy;
                let message = format!(
                    "went back to a release: correct policy {name}, or the guard on the node leads it forward again ({why})"
                );
                Wait::new(WaitReason::InvalidPolicy, message).of("UpdatePolicy", None, name)
            }
            Owner::Judges(_) | Owner::Gone => {
                let message = "went back to a release, and no policy names a repository that it could be of; commit it on \
                               the node with `bascule-agent commit`";
                Wait::new(WaitReason::Trial, message)
            }
        };
        return Motion::waits(RolloutState::Trial, wait);
    };
    let says = format!("back on {}, which is made permanent", release.version);
    let motion = Motion::waits(RolloutState::Trial, Wait::new(WaitReason::Committing, says.clone()));
    motion.with(moving.step(Action::Commit { node: moving.name(), release: Some(release) }, says))
}

/// A running release that no channel offers any more, or that an installer put there, has no manifest's digest that we know.
/// Its root hash names it as well: the agent takes any digest for a release whose manifest it never saw.
fn by_root_hash(policy: &PolicyView<'_>, booted: &Booted) -> Option<ReleaseRef> {
    let source = &policy.valid?.spec.source;
    Some(ReleaseRef {
        version: booted.version.clone(),
        digest: Digest::from_sha256(&booted.root_hash.to_bytes()),
        repository: source.repository.clone(),
        channel: source.channel.clone(),
    })
}

/// The node runs the release that it is to leave.
fn reverting(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let deadline = drained_at.after(moving.health().node_ready_timeout);
    let message = match moving.release() {
        Some(release) if moving.view.traits.on_trial => format!("{} is given up", release.version),
        Some(release) if moving.view.committed() && moving.ctx.now >= deadline => {
            // A committed release that is to be left, and the node rebooted without leaving it.
            let why = format!("the node rebooted and runs {} still", release.version);
            let motion = Motion::waits(RolloutState::Waiting, Wait::new(WaitReason::DrainBackoff, why.clone()));
            return moving.end(motion, DisruptionOutcome::NotRebooted, Goal::Idle, &why, why.clone());
        }
        Some(release) => format!("the node leaves {}", release.version),
        None => "the node goes back".to_owned(),
    };
    Motion::waits(RolloutState::Reverting, Wait::new(WaitReason::Reverting, message)).waking(deadline)
}
