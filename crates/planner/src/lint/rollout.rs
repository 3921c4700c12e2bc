//! The order of a rollout: waves and their soak, the way back that is kept, the halt after failures, nodes in trouble
//! last.

use super::{Violation, violation};
use crate::{
    Action, Plan, Report, Snapshot,
    snapshot::{Node, Offer, OfferState, PolicyFacts},
};
use bascule_api::{
    BlockedRelease, Counting, DisruptionOutcome, Duration, EmergencyExemption, Goal, Severity, SlotState, Time,
    Version, WaitReason, Wave,
};
use std::collections::BTreeSet;

pub(super) fn check(snapshot: &Snapshot, plan: &Plan, report: &Report, found: &mut Vec<Violation>) {
    for (node, said) in snapshot.nodes.iter().zip(&report.nodes) {
        held(snapshot, node, said.wait.reason, (plan, report), found);
    }
    for (index, policy) in snapshot.policies.iter().enumerate() {
        passed_waves(snapshot, (index, &**policy), report, found);
    }
    for step in &plan.steps {
        if let Action::Stage { node, policy, release, .. } = &step.action
            && step.cause.as_ref().is_none_or(|cause| cause.object.kind != "Rollback")
        {
            way_back(snapshot, node, policy, &release.version, found);
        }
    }
    let granted: BTreeSet<&str> = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Grant { .. }))
        .filter_map(|step| step.action.node())
        .collect();
    let updates: BTreeSet<&str> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Grant { node, cause, .. } if cause.object.kind == "UpdatePolicy" => Some(node.as_str()),
            _ => None,
        })
        .collect();
    for name in updates.iter().copied() {
        let Some(node) = snapshot.nodes.iter().find(|node| &*node.name == name) else { continue };
        let Some(spec) = node.update.as_ref().map(|update| &update.spec) else { continue };
        let Some(version) = spec.release.as_ref().filter(|_| spec.goal == Goal::Staged).map(|asked| &asked.version)
        else {
            continue;
        };
        let Some(policy) = snapshot.policies.iter().find(|policy| policy.name == spec.policy) else { continue };
        waves(snapshot, policy, node, version, &updates, found);
        halted(snapshot, policy, node, found);
        in_trouble(snapshot, policy, node, &granted, found);
    }
}

/// A new node that is held takes no pods, so it must not wait for what may take days: they may have nowhere else to go. Nor
/// is it let go for what is not known yet: its pods would be moved by its update minutes later.
fn held(
    snapshot: &Snapshot,
    node: &Node,
    reason: WaitReason,
    (plan, report): (&Plan, &Report),
    found: &mut Vec<Violation>,
) {
    if !node.taints.hold || node.deleting {
        return;
    }
    let mut selecting =
        snapshot.policies.iter().filter(|policy| members(snapshot, policy).any(|one| one.uid == node.uid));
    let policy = selecting.next();
    let for_days = match reason {
        WaitReason::BootCountingBroken
        | WaitReason::Paused
        | WaitReason::Freeze
        | WaitReason::Halted
        | WaitReason::MinimumAge
        | WaitReason::RollbackRetention
        | WaitReason::Wave
        | WaitReason::WaveSoak => true,
        WaitReason::RepositoryUnavailable => policy.is_some_and(|policy| !is_awaited(&policy.offer)),
        WaitReason::VersionSkew => snapshot.api_server.is_some(),
        _ => false,
    };
    let is_let_go = |step: &crate::Step| matches!(&step.action, Action::Untaint { node: name, taint: crate::plan::Taint::Hold } if **name == *node.name);
    let let_go = plan.steps.iter().any(is_let_go);
    if for_days && !let_go {
        found.push(violation(0, &node.name, format!("is held while it waits with {reason}")));
    }
    let young = snapshot.now < node.created_at.after(HELD_AT_MOST);
    let halts = |policy: &PolicyFacts| {
        let mut said = report.policies.iter().filter(|said| said.policy == policy.name);
        said.any(|said| !said.status.blocked.is_empty())
    };
    if let_go && young && policy.is_some_and(|policy| is_held_for(snapshot, policy, node) && !halts(policy)) {
        found.push(violation(0, &node.name, "is let go before anybody knows what it should run"));
    }
    let under_way = node.granted() || node.is_hidden();
    if !let_go && !young && !under_way && snapshot.policies.iter().all(|policy| policy.spec.is_ok()) {
        found.push(violation(0, &node.name, format!("is held for longer than {HELD_AT_MOST}")));
    }
}

/// How long a new node is held at most.
const HELD_AT_MOST: Duration = Duration::from_minutes(15);

/// Whether there is nothing that a node waits for but what comes to be known by itself. Says no where it would have to
/// follow the planner.
fn is_held_for(snapshot: &Snapshot, policy: &PolicyFacts, node: &Node) -> bool {
    let Ok(valid) = &policy.spec else { return false };
    let update = node.live_update();
    let status = update.map(|update| &update.status);
    let silent = status.is_none_or(|status| status.booted.is_none());
    let counts = status
        .and_then(|status| status.boot_control.as_ref())
        .is_none_or(|control| control.counting != Counting::Broken);
    let expired = policy.offer.repository.expires_at.is_some_and(|expires| expires <= snapshot.now);
    let awaited = is_awaited(&policy.offer);
    let read = matches!(policy.offer.state, OfferState::Valid | OfferState::Stale { .. }) && !expired;
    let stopped = valid.spec.paused
        || !valid.spec.waves.is_empty()
        || !snapshot.rollbacks.is_empty()
        || !snapshot.freezes.is_empty();
    valid.spec.new_nodes.hold && counts && !stopped && (awaited || (silent && read))
}

/// Whether a repository comes to be read by itself.
fn is_awaited(offer: &Offer) -> bool {
    let unreachable = |reason: &str| reason == bascule_api::conditions::reason::UNREACHABLE;
    matches!(&offer.state, OfferState::Unread)
        || matches!(&offer.state, OfferState::Unusable { reason, .. } if unreachable(reason))
}

/// Overwriting the other slot destroys the way back, so the running release must be proven. A newer release is no way back: the node
/// went back from it.
fn way_back(snapshot: &Snapshot, name: &str, policy: &str, version: &Version, found: &mut Vec<Violation>) {
    let Some(update) = snapshot.nodes.iter().find(|node| &*node.name == name).and_then(|node| node.update.as_ref())
    else {
        return;
    };
    let (Some(booted), Some(slots)) = (&update.status.booted, &update.status.slots) else { return };
    let other = slots.get(booted.slot.other());
    let policy = snapshot.policies.iter().find(|known| known.name == policy);
    let Some(Ok(valid)) = policy.map(|policy| &policy.spec) else { return };
    if other.state != SlotState::Good || other.version.as_ref() == Some(version) {
        return;
    }
    if other.version.as_ref().is_some_and(|held| *held > booted.version) {
        return;
    }
    if snapshot.now < done_at(update, &booted.version, snapshot.now).after(valid.spec.proven_after) {
        let kept = other.version.as_ref().map_or("", |version| version.as_str());
        found.push(violation(1, name, format!("the way back to {kept} is overwritten before it may be")));
    }
}

fn done_at(update: &crate::snapshot::UpdateFacts, version: &Version, now: Time) -> Time {
    let permanent = [DisruptionOutcome::Committed, DisruptionOutcome::RolledBack];
    let freed = update
        .spec
        .last_disruption
        .as_ref()
        .filter(|last| permanent.contains(&last.outcome) && last.version.as_ref() == Some(version));
    // What the agent says counts as far as its clock can be believed.
    let dealt = update.spec.last_disruption.as_ref().map(|last| last.ended_at);
    let reported = update.status.booted.as_ref().and_then(|booted| booted.committed_at);
    let reported = match (reported, dealt) {
        (Some(reported), Some(dealt)) => Some(reported.min(dealt)),
        (Some(reported), None) if reported > now => None,
        (reported, _) => reported,
    };
    freed.map(|last| last.ended_at).or(reported).unwrap_or_default().min(now)
}

fn members<'a>(snapshot: &'a Snapshot, policy: &'a PolicyFacts) -> impl Iterator<Item = &'a Node> {
    let selector = policy.spec.as_ref().ok().map(|valid| &valid.spec.node_selector);
    let selects = move |node: &Node| selector.is_some_and(|selector| selector.matches(&node.labels));
    let nodes = snapshot.nodes.iter().map(|node| &**node);
    nodes.filter(move |node| selects(node) && super::disruption::selected_once(snapshot, node))
}

/// What was complete once holds nobody back again, and its soak ends when it would have ended. That is remembered only of what runs
/// somewhere, and says nothing that lies ahead.
fn passed_waves(
    snapshot: &Snapshot,
    (index, policy): (usize, &PolicyFacts),
    report: &Report,
    found: &mut Vec<Violation>,
) {
    let (Some(said), Ok(valid)) = (report.policies.iter().find(|said| said.policy == policy.name), &policy.spec) else {
        return;
    };
    let target = said.status.target.as_ref().map(|target| &target.version);
    let Some(known) = said.status.complete_waves.as_ref().filter(|known| Some(&known.version) == target) else {
        return;
    };
    if said.status.complete_waves != policy.status.complete_waves {
        let runs = |node: &Node| {
            let status = node.live_update().map(|update| &update.status);
            status.is_some_and(|status| {
                status.trial.is_none() && status.booted.as_ref().is_some_and(|booted| booted.version == known.version)
            })
        };
        if !members(snapshot, policy).any(runs) || known.waves.iter().any(|wave| wave.complete_at > snapshot.now) {
            let what = format!("notes a wave of {} as complete, which no node runs, or not yet", known.version);
            found.push(violation(0, &policy.name, what));
        }
    }
    let ends = |wave: &Wave| {
        let known = known.waves.iter().find(|known| known.name == wave.name);
        known.map(|known| known.complete_at.after(wave.soak))
    };
    let waves = &valid.spec.waves;
    let passed = waves.iter().take_while(|wave| ends(wave).is_some_and(|ends| ends <= snapshot.now));
    let passed: Vec<String> = passed.map(|wave| format!("wave {} of ", wave.name)).collect();
    for node in report.nodes.iter().filter(|node| node.policy == Some(index)) {
        let wait = &node.wait;
        let held = wait.reason == WaitReason::Wave && passed.iter().any(|wave| wait.message.starts_with(wave));
        let soaks_again = wait.reason == WaitReason::WaveSoak
            && waves.iter().any(|wave| {
                wait.message.starts_with(&format!("wave {} is done ", wave.name))
                    && ends(wave).is_some_and(|ends| wait.until.is_some_and(|until| until > ends))
            });
        if held || soaks_again {
            found.push(violation(0, &node.node, format!("waits anew for what has passed: {}", wait.message)));
        }
    }
}

/// Nobody goes beyond the first wave before one of its nodes has run the release for its soak.
fn waves(
    snapshot: &Snapshot,
    policy: &PolicyFacts,
    node: &Node,
    version: &Version,
    updates: &BTreeSet<&str>,
    found: &mut Vec<Violation>,
) {
    let Ok(valid) = &policy.spec else { return };
    let Some(first) = valid.spec.waves.first() else { return };
    let severity = policy.offer.releases.iter().map(|release| release.severity).max().unwrap_or(Severity::None);
    if valid.skips(severity, EmergencyExemption::Wave) {
        return;
    }
    let runs = |node: &Node| {
        let booted = node.update.as_ref().and_then(|update| update.status.booted.as_ref());
        // What runs something newer stepped through this release, unless that is something to get away from.
        let sound = |newer: &Version| {
            policy.offer.release(newer).is_some_and(|release| release.withdrawn.is_none())
                && !policy.status.blocked.iter().any(|block| block.version == *newer)
        };
        booted.is_some_and(|booted| booted.version == *version || (booted.version > *version && sound(&booted.version)))
    };
    // Who goes back because of a Rollback is in no wave.
    let updating = |node: &Node| {
        let disruption = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref());
        disruption.is_some_and(|disruption| disruption.cause.object.kind == "UpdatePolicy")
    };
    let in_motion = |node: &Node| updating(node) || updates.contains(&*node.name);
    let in_first: Vec<&Node> = match &first.selector {
        Some(selector) => {
            let wave: Vec<&Node> = members(snapshot, policy).filter(|node| selector.matches(&node.labels)).collect();
            if selector.matches(&node.labels) || wave.is_empty() {
                return;
            }
            wave
        }
        None => {
            let all = members(snapshot, policy).count();
            let share = first.percent.map_or(usize::MAX, |percent| (all * percent as usize).div_ceil(100));
            let most = first.count.map_or(share, |count| count as usize);
            if members(snapshot, policy).filter(|node| runs(node) || in_motion(node)).count() <= most {
                return;
            }
            members(snapshot, policy).collect()
        }
    };
    // Those that did may be gone.
    let known = policy.status.complete_waves.as_ref().filter(|known| known.version >= *version);
    let known = known.and_then(|known| known.waves.iter().find(|known| known.name == first.name));
    let remembered = known.is_some_and(|known| known.complete_at.after(first.soak) <= snapshot.now);
    let soaked = remembered
        || in_first.iter().any(|node| {
            runs(node)
                && !node.granted()
                && node.update.as_ref().is_some_and(|update| {
                    let running = update.status.booted.as_ref().map_or(version, |booted| &booted.version);
                    update.status.trial.is_none()
                        && done_at(update, running, snapshot.now).after(first.soak) <= snapshot.now
                })
        });
    if !soaked {
        let what = format!("goes before wave {} has run {version} for {}", first.name, first.soak);
        found.push(violation(0, &node.name, what));
    }
}

/// After the newest release failed too often nothing new starts, not even with an older one.
fn halted(snapshot: &Snapshot, policy: &PolicyFacts, node: &Node, found: &mut Vec<Violation>) {
    let Ok(valid) = &policy.spec else { return };
    let newest = policy.offer.releases.iter().rev().find(|release| {
        release.withdrawn.is_none()
            && !valid.spec.blocked_versions.contains(&release.version)
            && valid.spec.version.as_ref().is_none_or(|pin| *pin == release.version)
    });
    let block = newest.and_then(|newest| policy.status.blocked.iter().find(|block| block.version == newest.version));
    let lifted = |at: Time| {
        snapshot.rollbacks.iter().any(|rollback| rollback.spec.policy == policy.name && rollback.created_at >= at)
    };
    let holds = |block: &BlockedRelease| super::blocked(policy, &block.version) && !lifted(block.at);
    if block.is_some_and(|block| block.by == "FailureThreshold" && holds(block)) {
        found.push(violation(6, &node.name, "starts although the policy halted after failures"));
    }
}

/// A node that is not Ready is not tried while others are.
fn in_trouble(
    snapshot: &Snapshot,
    policy: &PolicyFacts,
    node: &Node,
    granted: &BTreeSet<&str>,
    found: &mut Vec<Violation>,
) {
    let others = members(snapshot, policy)
        .any(|other| other.name != node.name && (other.granted() || granted.contains(&*other.name)));
    if !node.ready.ready && others {
        found.push(violation(0, &node.name, "is not Ready and is tried together with others"));
    }
}
