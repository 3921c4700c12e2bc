//! The node runs the new release: healthy, soak, commit, hooks, done. Or not healthy in time: back.

use super::{Motion, Moving, hooks};
use crate::{Action, Gate, Wait, snapshot::HookStage};
use bascule_api::{DisruptionOutcome, Goal, NodeError, RolloutState, Time, WaitReason};

pub(super) fn next(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    if moving.view.committed() {
        return committed(moving);
    }
    let Some(release) = moving.release() else {
        let wait = Wait::new(WaitReason::Trial, "the release is not named any more; the guard on the node reverts it");
        return Motion::waits(RolloutState::Trial, wait);
    };
    if moving.spec.goal == Goal::Committed {
        return Motion::waits(RolloutState::Trial, Wait::new(WaitReason::Committing, "the agent commits the release"));
    }
    let blocked = moving.policy.is_some_and(|policy| {
        policy.remembers_block(&release.version)
            || policy.rollbacks.iter().any(|rollback| rollback.forbids(moving.view, &release.version))
    });
    if blocked {
        let why = format!("{} was blocked meanwhile", release.version);
        return revert(moving, why);
    }
    let health = moving.health();
    let (missing, since, questions) = unhealthy(moving, drained_at);
    let deadline = drained_at.after(health.node_ready_timeout);
    let mut motion = match missing {
        Some(missing) if moving.ctx.now >= deadline => {
            let why = format!("not healthy within {}: {missing}", health.node_ready_timeout);
            let mut motion = revert(moving, why.clone());
            motion.failure = Some((NodeError::TrialFailed, why));
            motion
        }
        Some(missing) => {
            let message = format!("{} runs as a trial; {missing}", release.version);
            Motion::waits(RolloutState::Trial, Wait::new(WaitReason::Trial, message).until(Some(deadline)))
        }
        None => {
            let until = since.after(health.node_soak);
            if moving.ctx.now < until {
                let message = format!("{} is healthy and soaks for {}", release.version, health.node_soak);
                Motion::waits(RolloutState::Trial, Wait::new(WaitReason::Soaking, message).until(Some(until)))
            } else {
                commit(moving, drained_at)
            }
        }
    };
    motion.questions = questions;
    motion
}

fn commit(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let wait = Wait::new(WaitReason::Committing, "the agent commits the release");
    let mut motion = Motion::waits(RolloutState::Trial, wait);
    let ready = moving.view.node.ready.since.unwrap_or(drained_at).max(drained_at).min(moving.ctx.now);
    let drain = moving.disruption.drain_started_at.map(|started| drained_at.seconds_since(started));
    motion.timing = Some([drain, Some(ready.seconds_since(drained_at)), Some(moving.ctx.now.seconds_since(ready))]);
    motion.with(moving.step(Action::Commit { node: moving.name(), release: None }, "healthy; the release is committed"))
}

fn revert(moving: &Moving<'_, '_>, why: String) -> Motion {
    let motion = Motion::waits(RolloutState::Reverting, Wait::new(WaitReason::Reverting, why.clone()));
    match moving.release() {
        Some(release) => {
            let action = Action::Revert { node: moving.name(), release: release.clone(), drained_at: None };
            motion.with(moving.step(action, why))
        }
        None => motion,
    }
}

/// What is not healthy yet, else since when everything is, and the gates that have to be asked.
fn unhealthy(moving: &Moving<'_, '_>, drained_at: Time) -> (Option<String>, Time, Vec<crate::plan::GateQuestion>) {
    let node = moving.view.node;
    let health = moving.health();
    let agent_boot = moving.view.update().and_then(|update| update.status.boot_id.as_deref());
    let mut since = drained_at;
    if !node.ready.ready || agent_boot != Some(node.boot_id.as_str()) {
        return (Some("the node is not Ready after its reboot".to_owned()), since, Vec::new());
    }
    since = since.max(node.ready.since.unwrap_or(drained_at));
    if health.daemon_sets {
        if !node.daemon_sets.complete() {
            let sets = &node.daemon_sets;
            let missing = sets.missing.join(", ");
            let message = format!("{} of {} DaemonSet pods are ready, not {missing}", sets.ready, sets.wanted);
            return (Some(message), since, Vec::new());
        }
        since = since.max(node.daemon_sets.since.unwrap_or(drained_at));
    }
    let goes_back = moving.disruption.cause.object.kind == crate::decide::rollback::KIND;
    if let Some(policy) = moving.policy.filter(|_| !goes_back && moving.ctx.set.asks(Gate::Health)) {
        let asked = moving.ctx.answers.ask(policy, moving.view, moving.ctx.now);
        let missing = asked.failing.map(|wait| wait.message);
        return (missing, since.max(asked.since).min(moving.ctx.now), asked.questions);
    }
    (None, since.min(moving.ctx.now), Vec::new())
}

/// The release is permanent: hooks, uncordon, done.
fn committed(moving: &Moving<'_, '_>) -> Motion {
    let policy_hooks = moving.hooks();
    match hooks::next(moving, HookStage::AfterCommit, &policy_hooks.after_commit) {
        hooks::Progress::Running(motion) => return *motion,
        hooks::Progress::Failed(job, why) => {
            let (namespace, name) = job.split_once('/').unwrap_or(("", &job));
            let wait = Wait::new(WaitReason::Hook, format!("{why}; the node stays cordoned until the Job is deleted"));
            return Motion::waits(RolloutState::Failed, wait.of("Job", Some(namespace), name));
        }
        hooks::Progress::Done => {}
    }
    let version = moving.release().map_or("", |release| release.version.as_str());
    let says = format!("runs {version}, committed");
    let motion = Motion::waits(RolloutState::Current, Wait::new(WaitReason::Current, crate::decide::AT_REST));
    moving.end(motion, DisruptionOutcome::Committed, Goal::Committed, "", says)
}
