//! The node runs the new release: healthy, soak, commit, hooks, done. Or not healthy in time: back.

use super::{Motion, Moving, Owner, hooks};
use crate::{
    Action, Gate, Rule, Wait,
    decide::{
        facts::selects,
        health::{Allowance, Asked, MissedGate},
        memory::Took,
        rollback::RollbackView,
    },
    plan::GateQuestion,
    snapshot::{HookStage, PolicyFacts},
};
use bascule_api::{
    ClusterGates, DaemonSetBefore, DisruptionOutcome, Duration, Goal, NodeError, RolloutState, Time, Version,
    WaitReason, conditions,
};
use std::sync::Arc;

/// When gates are looked at again that are to be heard first: one that says what it said before wakes nobody.
pub(super) const HEARD_SOON: Duration = Duration::from_secs(5);

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
    let forbids = |rollback: &RollbackView<'_>| rollback.forbids(moving.view, &release.version);
    let rolled_back = moving.owner.known().is_some_and(|policy| policy.rollbacks.iter().any(forbids));
    // Whether a block was lifted stands in the spec, which has to be usable for that.
    let blocked = moving.owner.judge().is_some_and(|policy| policy.remembers_block(&release.version));
    if rolled_back || blocked {
        let why = format!("{} was blocked meanwhile", release.version);
        return revert(moving, why);
    }
    if let Some(held) = unjudged(moving, &release.version) {
        return held;
    }
    let health = moving.health();
    // A node that was Ready in this boot and is away has as long to come back as from a reboot: its guard may have taken the
    // trial back, and the agent will say so.
    let ready = moving.view.node.ready;
    let away = ready.since.filter(|_| !ready.ready).unwrap_or_default().min(moving.ctx.now);
    let deadline = moving.back_seen(drained_at).max(away).after(health.node_ready_timeout);
    let Health { missing, since, questions } = look(moving, drained_at, deadline);
    let open = missing.as_ref().is_some_and(|missing| missing.open);
    let mut motion = match missing {
        Some(missing) if moving.ctx.now >= deadline && missing.blames => {
            let why = format!("not healthy within {}: {}", health.node_ready_timeout, missing.what);
            let mut motion = revert(moving, why.clone());
            motion.failure = Some((NodeError::TrialFailed, why));
            motion
        }
        Some(missing) if moving.ctx.now >= deadline && !missing.open => {
            let message = format!("{} is held as a trial, and not blamed: {}", release.version, missing.what);
            let wait = Wait::new(missing.reason, message);
            match missing.reason {
                WaitReason::HealthGate => {
                    Motion::waits(RolloutState::Trial, wait.of("UpdatePolicy", None, moving.policy_name()))
                }
                // Somebody has to look: its guard has taken the trial back, and the machine is slow, or gone.
                WaitReason::NodeLost | WaitReason::AgentNotReporting => {
                    Motion::waits(RolloutState::Failed, wait.of("Node", None, &moving.view.node.name))
                }
                _ => Motion::waits(RolloutState::Trial, wait),
            }
        }
        Some(missing) => {
            let message = format!("{} runs as a trial; {}", release.version, missing.what);
            let until = Some(deadline).filter(|deadline| moving.ctx.now < *deadline);
            Motion::waits(RolloutState::Trial, Wait::new(WaitReason::Trial, message).until(until))
        }
        None => {
            let until = since.after(health.node_soak);
            if moving.ctx.now < until {
                let message = format!("{} is healthy and soaks for {}", release.version, health.node_soak);
                Motion::waits(RolloutState::Trial, Wait::new(WaitReason::NodeSoak, message).until(Some(until)))
            } else {
                commit(moving, drained_at)
            }
        }
    };
    motion.questions = questions;
    if open { motion.waking(moving.ctx.now.after(HEARD_SOON)) } else { motion }
}

/// A trial that nobody can judge: what its policy asks of it is not known, or no policy asks for it any more. The release is neither
/// made permanent nor taken back, and the guard on the node ends it in time. What a person's Rollback ordered needs no gates and
/// no soak, and is finished.
fn unjudged(moving: &Moving<'_, '_>, version: &Version) -> Option<Motion> {
    if moving.by_rollback() {
        return None;
    }
    let name = &moving.spec.policy;
    let held = format!("{version} is held as a trial, and not blamed");
    let wait = match moving.owner {
        Owner::Judges(_) => return None,
        Owner::Invalid { why, .. } => {
            let message = format!("{held}: correct policy {name}, or the guard on the node takes it back ({why})");
            Wait::new(WaitReason::InvalidPolicy, message).of("UpdatePolicy", None, name)
        }
        Owner::Gone => {
            let message = format!(
                "{held}: policy {name} is not there any more; unless one policy alone selects the node, the guard on it takes \
                 it back"
            );
            Wait::new(WaitReason::NotSelected, message)
        }
    };
    let deadline = moving.view.update().and_then(|update| update.status.trial.as_ref()?.deadline);
    Some(Motion::waits(RolloutState::Trial, wait.until(deadline.filter(|deadline| *deadline > moving.ctx.now))))
}

/// Why nobody could have judged a trial at all times, so that it may have been held until the guard's time was over.
fn unjudged_so_far(moving: &Moving<'_, '_>) -> Option<String> {
    let name = moving.policy_name();
    let policy = match moving.owner {
        Owner::Judges(policy) => policy.facts,
        Owner::Invalid { why, .. } => return Some(format!("policy {name} can't be used ({why})")),
        Owner::Gone => return Some(format!("policy {name} is not there any more")),
    };
    let began = moving.disruption.drained_at.unwrap_or(moving.disruption.granted_at);
    if policy.created_at > began {
        return Some(format!("policy {name} was not there when the node rebooted"));
    }
    if let Some(what) = unread_since(moving, began) {
        return Some(format!("{what} could not be read for a time"));
    }
    let accepted = conditions::get(&policy.status.conditions, conditions::ACCEPTED)?;
    let since = Time::from_kubernetes(&accepted.last_transition_time);
    (accepted.status != "True" || since > began).then(|| format!("policy {name} could not be used for a time"))
}

/// What could not be read at some time since then, so that the node was held as it was: it, or a policy that cares for it or selects it.
fn unread_since(moving: &Moving<'_, '_>, since: Time) -> Option<String> {
    let then = |read_again: Option<Time>| read_again.is_some_and(|read_again| read_again > since);
    let node = moving.view.node;
    if then(node.read_again) {
        return Some("what says how the node stands".to_owned());
    }
    if then(moving.ctx.unread_at) {
        return Some("an object that its update hangs on".to_owned());
    }
    let held = |policy: &&Arc<PolicyFacts>| {
        then(policy.read_again) && (policy.name == moving.spec.policy || selects(node, policy))
    };
    moving.ctx.policies.iter().find(held).map(|policy| format!("policy {}", policy.name))
}

/// What a trial shows.
struct Health {
    /// What is not healthy yet.
    missing: Option<Missing>,
    /// Since when everything is.
    since: Time,
    /// The gates that have to be asked.
    questions: Vec<GateQuestion>,
}

/// What a trial lacks.
struct Missing {
    what: String,
    /// Whether the release answers for it.
    blames: bool,
    /// What that is to people, where the release does not answer for it.
    reason: WaitReason,
    /// Whether gates are still to be heard, so that nothing can be said yet.
    open: bool,
}

/// What the gates of an update say of the node, by answers that are no older than `since`, where that is said and the policy has any
/// that are asked.
fn gates(moving: &Moving<'_, '_>, since: Option<Time>) -> Option<Asked> {
    let policy = moving.owner.judge().filter(|_| !moving.by_rollback() && moving.ctx.set.asks(Gate::Health))?;
    Some(moving.ctx.answers.ask(policy, moving.view, moving.ctx.now, since, &mut Allowance::unlimited()))
}

/// Whether the release answers for gates that do not pass: for what one says of the node; for what they say of the cluster
/// if the policy wants it so, or if the same gate has said so of another node's trial before.
fn blames(moving: &Moving<'_, '_>, asked: &Asked) -> bool {
    asked.node_fails
        || moving.health().cluster_gates == ClusterGates::Revert
        || moving.unproven_elsewhere(&asked.cluster_fails)
        || !moving.ctx.set.keeps(Rule::ClusterIsNoVerdict)
}

/// Why the release does not answer for a trial that its guard has ended, or may have ended.
#[derive(Default)]
pub(super) struct Excuse {
    /// What held it, and the gate that said no of the cluster.
    pub(super) held: Option<(String, Option<String>)>,
    /// Whether gates are to be heard first.
    pub(super) open: bool,
    /// The gates that have to be asked.
    pub(super) questions: Vec<GateQuestion>,
}

/// What excuses a trial that had ended by this time.
pub(super) fn excuse(moving: &Moving<'_, '_>, drained_at: Time, ended: Time) -> Excuse {
    let held = |why: String| Excuse { held: Some((why, None)), ..Excuse::default() };
    if let Some(why) = unjudged_so_far(moving) {
        return held(why);
    }
    // It was healthy, and the word of that was not taken: the guard could not know.
    if let Some(words) = moving.uncommitted(ended) {
        return held(format!("it could not be committed: {words}"));
    }
    if moving.before_is_forgotten() {
        return held("what was not ready before its Node was deleted nobody remembers".to_owned());
    }
    // What the gates say, or said at its end, decides who answers for it.
    let Some(asked) = gates(moving, None) else { return Excuse::default() };
    let held = match &asked.failing {
        _ if asked.open => None,
        Some(_) if blames(moving, &asked) => None,
        Some(wait) => Some((wait.message.clone(), asked.cluster_fails.first().cloned())),
        None => held_by(moving, &asked, drained_at),
    };
    Excuse { held, open: asked.open, questions: asked.questions }
}

/// Why a trial was held beyond its time until the guard ended it, where gates did so that pass by now; and the gate, if it said no of
/// the cluster.
fn held_by(moving: &Moving<'_, '_>, asked: &Asked, drained_at: Time) -> Option<(String, Option<String>)> {
    let MissedGate { gate, per_node, missed } = asked.missed.as_ref()?;
    let late = missed.at > drained_at.after(moving.health().node_ready_timeout);
    let said_no = (missed.known && !per_node).then(|| gate.clone());
    let blames = moving.health().cluster_gates == ClusterGates::Revert
        || moving.unproven_elsewhere(said_no.as_slice())
        || !moving.ctx.set.keeps(Rule::ClusterIsNoVerdict);
    let why = || format!("gate {gate} did not pass at the end of its time, and does since {}", asked.since);
    (late && !blames).then(|| (why(), said_no))
}

fn commit(moving: &Moving<'_, '_>, drained_at: Time) -> Motion {
    let wait = Wait::new(WaitReason::Committing, "the agent commits the release");
    let mut motion = Motion::waits(RolloutState::Trial, wait);
    let seen = moving.boot_seen(drained_at);
    let ready = moving.view.node.ready.since.map_or(seen, |since| since.max(seen)).min(moving.ctx.now);
    let drain = moving.disruption.drain_started_at.map(|started| drained_at.seconds_since(started));
    // Nobody knows when a trial that was adopted began.
    let known = moving.granted_boot != crate::plan::ADOPTED_BOOT;
    motion.timing = known.then_some(Took {
        drained_at,
        drain,
        boot: ready.seconds_since(drained_at),
        health: moving.ctx.now.seconds_since(ready),
    });
    let commit = Action::Commit { node: moving.name(), release: None };
    let passed_over = super::daemons::passed_over(moving.view.node, compared(moving)).join(", ");
    let says = if passed_over.is_empty() {
        "healthy; the release is committed".to_owned()
    } else {
        format!(
            "healthy but for what was not ready when the node was told to reboot either: {passed_over}; the release is committed"
        )
    };
    motion.with(moving.verdict(commit, says))
}

fn revert(moving: &Moving<'_, '_>, why: String) -> Motion {
    let motion = Motion::waits(RolloutState::Reverting, Wait::new(WaitReason::Reverting, why.clone()));
    match moving.release() {
        Some(release) => {
            let action = Action::Revert {
                node: moving.name(),
                release: release.clone(),
                drained_at: None,
                daemon_sets: Vec::new(),
            };
            motion.with(moving.verdict(action, why))
        }
        None => motion,
    }
}

fn look(moving: &Moving<'_, '_>, drained_at: Time, deadline: Time) -> Health {
    let node = moving.view.node;
    let agent_boot = moving.view.update().and_then(|update| update.status.boot_id.as_deref());
    // What was seen before this boot says nothing of it: where Ready never flipped it is older than the reboot.
    let mut since = moving.boot_seen(drained_at);
    let lacks = |what: String, blames: bool| Health {
        missing: Some(Missing { what, blames, reason: WaitReason::Trial, open: false }),
        since: moving.ctx.now,
        questions: Vec::new(),
    };
    if !node.ready.ready || agent_boot != Some(node.boot_id.as_str()) {
        return gone(moving, drained_at);
    }
    // What gates said before this boot is no word about it either, how fresh it may be.
    let asked = gates(moving, Some(since));
    since = since.max(node.ready.since.unwrap_or(since));
    if moving.health().daemon_sets {
        // The gates are asked meanwhile: they have to have been heard when, at the deadline, nothing but they is left to go by.
        let lacks = |what: String, blames: bool| {
            let questions = asked.as_ref().map_or_else(Vec::new, |asked| asked.questions.clone());
            Health { questions, ..lacks(what, blames) }
        };
        let time = moving.ctx.now < deadline || !moving.ctx.set.keeps(Rule::Shaken);
        match super::daemons::ready_since(node, compared(moving), time) {
            Ok(ready) => since = since.max(ready.unwrap_or(since)),
            Err(missing) if moving.before_is_forgotten() => {
                let more = "the Node was deleted meanwhile, and whether that was so before nobody remembers";
                return lacks(format!("{missing} ({more})"), false);
            }
            Err(missing) => return lacks(missing, true),
        }
    }
    let Some(asked) = asked else {
        return Health { missing: None, since: since.min(moving.ctx.now), questions: Vec::new() };
    };
    // Whom nobody has asked has not said no, also after the deadline: a new leader has heard nobody yet.
    let (blames, open) = (!asked.open && blames(moving, &asked), asked.open);
    Health {
        missing: asked.failing.map(|wait| Missing { what: wait.message, blames, reason: WaitReason::HealthGate, open }),
        since: since.max(asked.since).min(moving.ctx.now),
        questions: asked.questions,
    }
}

/// The node is not Ready, or not in the boot that its agent reported from last. Where it went away from a trial that was held beyond its
/// time the guard may have ended that: the agent will say so, however slow the machine is, and nobody is blamed before.
fn gone(moving: &Moving<'_, '_>, drained_at: Time) -> Health {
    let node = moving.view.node;
    let (since, reason) = if node.ready.ready {
        (node.boot_seen, WaitReason::AgentNotReporting)
    } else {
        (node.ready.since.unwrap_or_default(), WaitReason::NodeLost)
    };
    let since = since.min(moving.ctx.now);
    // Gates are asked meanwhile: whoever asks remembers what they said only for as long.
    let late = since > drained_at.after(moving.health().node_ready_timeout);
    let Excuse { held, open, questions } = if late { excuse(moving, drained_at, since) } else { Excuse::default() };
    let what = "the node is not Ready after its reboot";
    let missing = match held {
        Some((why, _)) => Missing { what: format!("{what}, in which {why}"), blames: false, reason, open },
        None => Missing { what: what.to_owned(), blames: !open, reason, open },
    };
    Health { missing: Some(missing), since: moving.ctx.now, questions }
}

/// The DaemonSet pods that the node had before its reboot, to be compared with.
fn compared<'a>(moving: &Moving<'_, 'a>) -> &'a [DaemonSetBefore] {
    let set = moving.ctx.set;
    let compared = set.keeps(Rule::ThisBoot) && set.keeps(Rule::BrokenBefore) && moving.health().daemon_sets;
    if compared { &moving.disruption.daemon_sets } else { &[] }
}

/// The release is permanent: hooks, uncordon, done.
fn committed(moving: &Moving<'_, '_>) -> Motion {
    let version = moving.release().map_or("", |release| release.version.as_str());
    if let Owner::Invalid { why, .. } = moving.owner {
        let name = &moving.spec.policy;
        let message = format!(
            "runs {version}, committed; correct policy {name}, which says what comes before the node takes work again ({why})"
        );
        let wait = Wait::new(WaitReason::InvalidPolicy, message).of("UpdatePolicy", None, name);
        return Motion::waits(RolloutState::Waiting, wait);
    }
    let policy_hooks = moving.hooks();
    let notes = match hooks::next(moving, HookStage::AfterCommit, &policy_hooks.after_commit) {
        hooks::Progress::Running(motion) => return *motion,
        hooks::Progress::Failed(job, why, notes) => {
            let (namespace, name) = job.split_once('/').unwrap_or(("", &job));
            let says = format!("{why}; the node stays cordoned: delete the Job to run the hook again");
            let wait = Wait::new(WaitReason::Hook, says).of("Job", Some(namespace), name);
            let mut motion = Motion::waits(RolloutState::Failed, wait);
            motion.steps = notes;
            return motion;
        }
        hooks::Progress::Done(notes) => notes,
    };
    let says = format!("runs {version}, committed");
    let mut motion = Motion::waits(RolloutState::Current, Wait::new(WaitReason::Current, crate::decide::AT_REST));
    motion.steps = notes;
    // A way back is on trial like any release, and permanent here.
    let outcome = if moving.by_rollback() { DisruptionOutcome::RolledBack } else { DisruptionOutcome::Committed };
    moving.end(motion, outcome, Goal::Committed, "", says)
}
