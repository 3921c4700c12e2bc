//! Invariants 4, 6 and 7, and the promises of a policy's own fields, on every grant of a plan.

use super::{Violation, violation};
use crate::{
    Action, Plan, Snapshot, ValidPolicy,
    plan::{DrainMode, DrainOrder, HookOrder, Taint},
    snapshot::{Cordon, EtcdMember, Excluded, Node, OfferState, PolicyFacts},
};
use bascule_api::{Cause, DisruptionOutcome, EmergencyExemption, IntOrPercent, OnTimeout, Severity, Version};
use std::collections::{BTreeMap, BTreeSet};

/// A grant of the plan with what it is about.
struct Granted<'a> {
    node: &'a Node,
    policy: Option<&'a PolicyFacts>,
    cause: &'a Cause,
    /// The release that is to be installed; `None` for a way back to what the other slot holds.
    installs: Option<&'a Version>,
}

pub(super) fn check(snapshot: &Snapshot, plan: &Plan, found: &mut Vec<Violation>) {
    let nodes: BTreeMap<&str, &Node> = snapshot.nodes.iter().map(|node| (&*node.name, &**node)).collect();
    let mut granted = Vec::new();
    for step in &plan.steps {
        let Some(node) = step.action.node().and_then(|name| nodes.get(name)) else {
            if step.action.node().is_some() {
                found.push(violation(9, step.action.node().unwrap_or_default(), "is not in the snapshot"));
            }
            continue;
        };
        if let Action::Grant { cause, boot_id, generation, .. } = &step.action {
            granted.extend(grant(snapshot, node, cause));
            numbers(snapshot, node, boot_id, *generation, found);
        }
        understood(snapshot, node, &step.action, found);
        own_only(snapshot, node, &step.action, found);
        emptied(snapshot, node, &step.action, found);
        remembered_failure(snapshot, node, &step.action, found);
        given_up(node, &step.action, found);
    }
    for order in &plan.drains {
        if nodes.get(order.node.as_str()).is_some_and(|node| node.unreadable.is_some()) {
            found.push(violation(0, &order.node, "is emptied though what it says can't be read"));
        }
    }
    for order in plan.drains.iter().filter(|order| order.mode != DrainMode::Keep) {
        if nodes.get(order.node.as_str()).is_some_and(|node| node.excluded == Excluded::No) {
            found.push(violation(0, &order.node, "is emptied while external load balancers send to it"));
        }
    }
    for order in plan.drains.iter().filter(|order| order.mode == DrainMode::DeleteRest) {
        deleted(snapshot, order, found);
    }
    for grant in &granted {
        promises(snapshot, grant, found);
        failed_releases(grant, found);
        super::state::check(snapshot, (grant.node, grant.policy), grant.cause, grant.installs, found);
    }
    budgets(snapshot, &granted, found);
    control_plane(snapshot, &granted, found);
    disruption_budgets(snapshot, &granted, found);
    operator_last(snapshot, &granted, found);
    places(snapshot, &granted, found);
}

/// Nothing is done to a node that can't be read, or whose policy can't be, but that one which is new takes work at last; and no node is
/// disrupted beside an order that can't be read.
fn understood(snapshot: &Snapshot, node: &Node, action: &Action, found: &mut Vec<Violation>) {
    let lets_go = matches!(action, Action::Untaint { taint: Taint::Hold, .. });
    if let Some(unreadable) = node.unreadable.as_ref().filter(|_| !lets_go) {
        found.push(violation(0, &node.name, format!("{}, though {unreadable}", action.name())));
    }
    let policy = node.live_update().map(|update| update.spec.policy.as_str());
    let policy = snapshot.policies.iter().find(|known| Some(known.name.as_str()) == policy);
    if let Some(unreadable) = policy.and_then(|policy| policy.unreadable()).filter(|_| !lets_go) {
        found.push(violation(0, &node.name, format!("{}, though {unreadable}", action.name())));
    }
    if let Some(order) = snapshot.unreadable_orders.first()
        && matches!(action, Action::Grant { .. })
    {
        found.push(violation(0, &node.name, format!("is disrupted, though {order}")));
    }
}

/// A node is not emptied of a pod that would find no other node, nodes that the same plan empties included.
fn places(snapshot: &Snapshot, granted: &[Granted<'_>], found: &mut Vec<Violation>) {
    let open = |node: &&Node, but: &Node| {
        node.name != but.name
            && node.ready.ready
            && !node.cordon.is_cordoned()
            && node.update.as_ref().is_none_or(|update| update.spec.disruption.is_none())
            && !(node.deleting || node.taints.hold || node.leaving.is_some())
    };
    for grant in granted.iter().filter(|grant| grant.installs.is_some() && grant.cause.object.kind != "Rollback") {
        let others = || snapshot.nodes.iter().map(|node| &**node).filter(|node| open(node, grant.node));
        // Where nobody will take any pod there is no better time.
        let stays = |node: &Node| node.name != grant.node.name && !node.deleting && node.leaving.is_none();
        if !snapshot.nodes.iter().any(|node| stays(node) && node.space.barriers.is_empty()) {
            continue;
        }
        let left = || others().filter(|node| !granted.iter().any(|other| other.node.name == node.name));
        let lost = grant.node.pods.needs.iter().find(|(_, needs)| !left().any(|node| needs.fit(node)));
        if let Some((pod, _)) = lost {
            found.push(violation(0, &grant.node.name, format!("no other node could take {pod}")));
        }
    }
    // Nor of one that would find no other node for a pod on its way. (Ways back ask for no places.)
    let forward = |grant: &Granted<'_>| grant.installs.is_some() && grant.cause.object.kind != "Rollback";
    if !granted.iter().all(forward) {
        return;
    }
    for from in snapshot.nodes.iter().filter(|node| node.is_being_emptied()) {
        let places = || snapshot.nodes.iter().map(|node| &**node).filter(|node| open(node, from));
        let taken = |node: &Node| granted.iter().any(|grant| grant.node.name == node.name);
        for (pod, needs) in &from.pods.needs {
            let had = places().any(|node| needs.fit(node));
            if had && !places().any(|node| needs.fit(node) && !taken(node)) {
                found.push(violation(0, &from.name, format!("the last place of {pod} is emptied")));
            }
        }
    }
}

fn grant<'a>(snapshot: &'a Snapshot, node: &'a Node, cause: &'a Cause) -> Option<Granted<'a>> {
    let spec = &node.update.as_ref()?.spec;
    let policy = snapshot.policies.iter().find(|policy| policy.name == spec.policy).map(|policy| &**policy);
    let installs = (spec.goal == bascule_api::Goal::Staged)
        .then_some(spec.release.as_ref())
        .flatten()
        .map(|release| &release.version);
    Some(Granted { node, policy, cause, installs })
}

fn numbers(snapshot: &Snapshot, node: &Node, boot_id: &str, generation: i64, found: &mut Vec<Violation>) {
    let Some(update) = &node.update else { return };
    let spec = update.spec.grant.as_ref().map_or(0, |grant| grant.generation);
    if generation <= spec.max(update.status.last_grant.unwrap_or(0)) {
        found.push(violation(9, &node.name, format!("grant {generation} was given before")));
    }
    if snapshot.hooks.iter().any(|run| run.node == *node.name && run.grant == generation) {
        found.push(violation(9, &node.name, format!("a hook ran for grant {generation} before it was given")));
    }
    if update.spec.disruption.is_some() {
        found.push(violation(9, &node.name, "is granted twice"));
    }
    if boot_id != node.boot_id || update.status.boot_id.as_deref() != Some(boot_id) {
        found.push(violation(3, &node.name, "is granted for a boot that the agent does not run"));
    }
}

/// A node is not told to reboot while a pod is on it that may not be evicted, however the drain came to its end.
fn emptied(snapshot: &Snapshot, node: &Node, action: &Action, found: &mut Vec<Violation>) {
    let reboots = matches!(action, Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. });
    let Some(reboots) = reboots.then_some(node) else { return };
    if let (Some(volume), Some(disruption)) =
        (reboots.pods.attached.first(), reboots.update.as_ref().and_then(|update| update.spec.disruption.as_ref()))
    {
        let policy = node.update.as_ref().map(|update| update.spec.policy.as_str());
        let policy = snapshot.policies.iter().find(|known| Some(known.name.as_str()) == policy);
        let within = policy.and_then(|policy| policy.spec.as_ref().ok()).map_or_else(
            || bascule_api::Drain::default().volume_detach_timeout,
            |valid| valid.spec.drain.volume_detach_timeout,
        );
        if disruption.emptied_at.map_or(within.as_secs() > 0, |emptied| snapshot.now < emptied.after(within)) {
            found.push(violation(0, &node.name, format!("is told to reboot while {volume} is attached")));
        }
    }
    if let Some(pod) = node.pods.undrainable.first() {
        found.push(violation(
            0,
            &node.name,
            format!("is told to reboot under pod {}, which may not be evicted", pod.pod),
        ));
    }
}

/// What is left is deleted only where the policy says so, and when the drain's time is over.
fn deleted(snapshot: &Snapshot, order: &DrainOrder, found: &mut Vec<Violation>) {
    let policy = snapshot.policies.iter().find(|policy| policy.name == order.policy);
    let Some(valid) = policy.and_then(|policy| policy.spec.as_ref().ok()) else { return };
    let drain = &valid.spec.drain;
    let ends = order.begun.after(drain.load_balancer_delay).after(drain.timeout);
    if drain.on_timeout != OnTimeout::Delete || snapshot.now < ends {
        found.push(violation(0, &order.node, "pods are deleted there before the drain's time is over"));
    }
}

/// Invariant 7: what somebody else cordoned stays cordoned.
fn own_only(snapshot: &Snapshot, node: &Node, action: &Action, found: &mut Vec<Violation>) {
    let named = |cause: &Cause| {
        let mut rollbacks = snapshot.rollbacks.iter().filter(|rollback| rollback.name == cause.object.name);
        cause.object.kind == "Rollback"
            && rollbacks.any(|rollback| rollback.spec.nodes.iter().any(|name| **name == *node.name))
    };
    match action {
        Action::Uncordon { mark, .. }
            if node.cordon != (Cordon::Ours { mark: mark.clone() })
                && node.cordon != (Cordon::Lifted { mark: mark.clone() }) =>
        {
            found.push(violation(7, &node.name, "is uncordoned, and we did not cordon it"));
        }
        Action::Cordon { .. } if matches!(node.cordon, Cordon::Other { .. }) => {
            found.push(violation(7, &node.name, "is taken although somebody else cordoned it"));
        }
        Action::Cordon { mark, .. } if node.cordon == (Cordon::Lifted { mark: mark.clone() }) => {
            found.push(violation(7, &node.name, "is cordoned again under a grant that a person uncordoned"));
        }
        Action::Grant { cause, .. } if matches!(node.cordon, Cordon::Other { .. }) && !named(cause) => {
            found.push(violation(7, &node.name, "is taken although somebody else cordoned it"));
        }
        Action::RunHook(HookOrder { grant, .. }) => {
            let in_force = node.update.as_ref().filter(|update| update.spec.disruption.is_some());
            if in_force.and_then(|update| update.spec.grant.as_ref()).map(|granted| granted.generation) != Some(*grant)
            {
                found.push(violation(9, &node.name, "runs a hook without its grant"));
            }
        }
        _ => {}
    }
}

/// Invariant 6: a failed release is not staged or booted again.
fn remembered_failure(snapshot: &Snapshot, node: &Node, action: &Action, found: &mut Vec<Violation>) {
    let Some(spec) = node.update.as_ref().map(|update| &update.spec) else { return };
    let (version, policy) = match (action, &spec.release) {
        (Action::Stage { release, policy, .. }, _) => (&release.version, policy),
        (Action::Boot { .. }, Some(release)) => (&release.version, &spec.policy),
        _ => return,
    };
    let reported = node
        .update
        .as_ref()
        .is_some_and(|update| update.status.failed_releases.iter().any(|failed| failed.version == *version));
    if reported {
        found.push(violation(6, &node.name, format!("{version} failed there and is tried again")));
    }
    let policy = snapshot.policies.iter().find(|known| known.name == *policy);
    if policy.is_some_and(|policy| super::blocked(policy, version)) {
        found.push(violation(6, &node.name, format!("{version} is blocked and is tried again")));
    }
}

/// A drain is given up for a budget that does not open only where that one was closed when the node was granted.
fn given_up(node: &Node, action: &Action, found: &mut Vec<Violation>) {
    let Action::FreeGrant { outcome: DisruptionOutcome::DrainFailed, message, .. } = action else { return };
    let named = message.strip_prefix("PodDisruptionBudget ").and_then(|rest| rest.split_once(" did not open within "));
    let disruption = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref());
    if let (Some((key, _)), Some(disruption)) = (named, disruption)
        && !disruption.closed_budgets.iter().any(|closed| closed == key)
    {
        let what = format!("is given up for budget {key}, which was not closed at its grant");
        found.push(violation(0, &node.name, what));
    }
}

fn failed_releases(grant: &Granted<'_>, found: &mut Vec<Violation>) {
    let (Some(version), Some(policy)) = (grant.installs, grant.policy) else { return };
    let name = &grant.node.name;
    let on_node = policy.status.failures.iter().any(|failure| failure.version == *version && *failure.node == **name);
    let reported = grant
        .node
        .update
        .as_ref()
        .is_some_and(|update| update.status.failed_releases.iter().any(|failed| failed.version == *version));
    if on_node || reported {
        found.push(violation(6, name, format!("{version} failed there and is granted again")));
    }
    let failures: BTreeSet<&str> = policy
        .status
        .failures
        .iter()
        .filter(|failure| failure.version == *version)
        .map(|failure| failure.node.as_str())
        .collect();
    let threshold = policy.spec.as_ref().map_or(1, |valid| valid.spec.failure_threshold);
    let too_many = failures.len() >= usize::try_from(threshold).unwrap_or(usize::MAX);
    let listed = policy.spec.as_ref().is_ok_and(|valid| valid.spec.blocked_versions.contains(version));
    let allowed = policy.spec.as_ref().is_ok_and(|valid| valid.spec.allowed_versions.contains(version));
    if listed || super::blocked(policy, version) || (too_many && !allowed) {
        found.push(violation(6, name, format!("{version} is blocked for the policy and is granted")));
    }
    if policy.offer.releases.iter().any(|release| release.version == *version && release.withdrawn.is_some()) {
        found.push(violation(2, name, format!("{version} was withdrawn and is granted")));
    }
}

/// What the policy's own fields promise.
fn promises(snapshot: &Snapshot, grant: &Granted<'_>, found: &mut Vec<Violation>) {
    let (name, now) = (&*grant.node.name, snapshot.now);
    let mut broken = |what: &str| found.push(violation(0, name, what));
    let Some(policy) = grant.policy else { return broken("no policy stands behind the grant") };
    let Ok(valid) = &policy.spec else { return broken("the policy is not valid") };
    if !valid.spec.node_selector.matches(&grant.node.labels) {
        broken("the policy does not select the node");
    }
    let others = snapshot.policies.iter().filter(|other| other.name != policy.name);
    if others
        .filter_map(|other| other.spec.as_ref().ok())
        .any(|other| other.spec.node_selector.matches(&grant.node.labels))
    {
        broken("another policy selects the node too");
    }
    let open = policy.status.maintenance.as_ref();
    for hook in &valid.spec.hooks.before_rollout {
        let key = crate::snapshot::HookStage::BeforeRollout.key(&hook.name);
        if !open.is_some_and(|open| open.begun_at.is_some() && !open.ending && open.hooks_done.contains(&key)) {
            broken("a hook before the rollout has not succeeded");
        }
    }
    if snapshot.freezes.iter().any(|freeze| freeze.holds(policy, now) || freeze.holds_node(name, now)) {
        broken("a Freeze holds the policy or the node");
    }
    if valid.spec.paused && grant.cause.object.kind != "Rollback" {
        broken("the policy is paused");
    }
    if grant.node.leaving.is_some() {
        broken("an autoscaler is removing the node");
    }
    let Some(update) = &grant.node.update else { return broken("there is no NodeUpdate") };
    if update.status.boot_control.as_ref().is_some_and(|control| control.counting == bascule_api::Counting::Broken) {
        found.push(violation(5, name, "a trial there could not revert by itself"));
    }
    let brought = grant.installs.and_then(|version| policy.offer.release(version));
    if let Some((release, kubelet)) = brought.and_then(|release| Some((release, release.kubelet?))) {
        let newer = snapshot.api_server.is_none_or(|server| kubelet > server);
        if newer && !(release.brings_api_server && grant.node.control_plane) {
            found.push(violation(0, name, format!("kubelet {kubelet} is newer than an API server")));
        }
    }
    if !grant.node.pods.undrainable.is_empty() {
        found.push(violation(0, name, "its drain can't succeed: a pod can't be evicted"));
    }
    if let Some(last) = &update.spec.last_disruption
        && last.given_up > 0
    {
        let (pause, says) = match last.outcome {
            DisruptionOutcome::Interrupted => (30, "it was interrupted less than half a minute ago"),
            _ => (300, "its drain failed less than five minutes ago"),
        };
        if now < last.ended_at.after(bascule_api::Duration::from_secs(pause)) {
            found.push(violation(0, name, says));
        }
    }
    updates_only(snapshot, grant, policy, valid, found);
}

/// What drains and boots took lately fits before the window closes. Where it fits no window of that length at all, one node
/// alone may be tried in its first half.
fn overruns(
    snapshot: &Snapshot,
    grant: &Granted<'_>,
    policy: &PolicyFacts,
    window: crate::windows::Span,
) -> Option<&'static str> {
    let end = window.end?;
    let timings = &policy.status.timings;
    let seen = [timings.drain_seconds, timings.boot_seconds, timings.health_seconds];
    let needs = bascule_api::Duration::from_secs(seen.into_iter().flatten().map(u64::from).sum());
    if snapshot.now.after(needs) <= end {
        return None;
    }
    // What the policy reserves beside what was seen, and two minutes until gates and hooks have answered: where it fits no
    // window with that, it is tried all the same.
    let Ok(valid) = &policy.spec else { return None };
    let hooks = valid.spec.hooks.before_drain.iter().chain(&valid.spec.hooks.before_rollout);
    let reserved =
        hooks.map(|hook| hook.timeout.as_secs()).sum::<u64>() + valid.spec.drain.load_balancer_delay.as_secs() + 120;
    if window.start.after(needs).after(bascule_api::Duration::from_secs(reserved)) <= end {
        return Some("what drains and boots took lately does not fit before the window closes");
    }
    let others = snapshot.nodes.iter().filter(|node| {
        node.name != grant.node.name
            && node.granted()
            && node.update.as_ref().is_some_and(|update| update.spec.policy == policy.name)
    });
    if others.count() > 0 {
        return Some("what drains and boots took lately fits no window, and it is not the only node that is tried");
    }
    let gone = snapshot.now.seconds_since(window.start);
    (gone > end.seconds_since(snapshot.now)).then_some("what fits no window is tried after its first half")
}

/// Promises that hold updates back but not a way back.
fn updates_only(
    snapshot: &Snapshot,
    grant: &Granted<'_>,
    policy: &PolicyFacts,
    valid: &ValidPolicy,
    found: &mut Vec<Violation>,
) {
    let Some(version) = grant.installs.filter(|_| grant.cause.object.kind != "Rollback") else { return };
    let (name, now) = (&*grant.node.name, snapshot.now);
    let mut broken = |what: &str| found.push(violation(0, name, what));
    let release = policy.offer.release(version);
    let severity = policy.offer.releases.iter().map(|release| release.severity).max().unwrap_or(Severity::None);
    if release.is_none_or(|release| now < release.published_at.after(valid.spec.min_release_age))
        && !valid.skips(severity, EmergencyExemption::MinimumAge)
    {
        broken("the release is too young");
    }
    let expired = policy.offer.repository.expires_at.is_some_and(|expires| expires <= now);
    if expired || matches!(policy.offer.state, OfferState::Unread | OfferState::Unusable { .. }) {
        broken("the repository can't be trusted now");
    }
    if !valid.windows.is_empty()
        && !valid.skips(severity, EmergencyExemption::MaintenanceWindow)
        && !grant.node.taints.hold
    {
        match crate::windows::opening(&valid.windows, now) {
            crate::windows::Opening::Closed(_) => broken("no maintenance window is open"),
            crate::windows::Opening::Open(span) => {
                if let Some(why) = overruns(snapshot, grant, policy, span) {
                    broken(why);
                }
            }
            crate::windows::Opening::Always => {}
        }
    }
    let staged = grant.node.update.as_ref().and_then(|update| update.status.staged.as_ref());
    if staged.is_none_or(|staged| staged.version != *version) {
        broken("the release is not staged");
    }
    for gate in &valid.gates {
        let node = gate.per_node.then_some(name);
        let answer = snapshot
            .gates
            .iter()
            .find(|answer| answer.policy == policy.name && answer.gate == gate.name && answer.node.as_deref() == node);
        if answer.is_none_or(|answer| !answer.passes) {
            broken(&format!("health gate {} does not pass", gate.name));
        }
    }
}

/// Invariant 4, recounted after all grants of the plan.
fn budgets(snapshot: &Snapshot, granted: &[Granted<'_>], found: &mut Vec<Violation>) {
    let ignores = |grant: &Granted<'_>| {
        let object = &grant.cause.object;
        let rollbacks =
            snapshot.rollbacks.iter().filter(|rollback| object.kind == "Rollback" && rollback.name == object.name);
        rollbacks.into_iter().any(|rollback| rollback.spec.ignore_budgets)
    };
    let counted: Vec<_> = granted.iter().filter(|grant| !ignores(grant)).collect();
    let by_plan: BTreeSet<&str> = granted.iter().map(|grant| &*grant.node.name).collect();
    let out = |node: &Node| {
        let pending = snapshot.writes.pending_grant(&node.name).is_some();
        node.unavailable() || pending || by_plan.contains(&*node.name)
    };
    for policy in &snapshot.policies {
        let Ok(valid) = &policy.spec else { continue };
        if !counted.iter().any(|grant| grant.policy.is_some_and(|own| own.name == policy.name)) {
            continue;
        }
        let cared_for = |node: &Node| {
            let moving =
                node.granted().then(|| node.update.as_ref().map(|update| update.spec.policy.as_str())).flatten();
            match moving.filter(|by| snapshot.policies.iter().any(|policy| policy.name == **by)) {
                Some(by) => by == policy.name,
                None => valid.spec.node_selector.matches(&node.labels) && selected_once(snapshot, node),
            }
        };
        let members: Vec<&Node> = snapshot.nodes.iter().map(|node| &**node).filter(|node| cared_for(node)).collect();
        let unavailable: Vec<&Node> = members.iter().copied().filter(|node| out(node)).collect();
        over(&policy.name, "the policy", &valid.spec.budget.max_unavailable, members.len(), unavailable.len(), found);
        let Some(domain) = &valid.spec.budget.per_domain else { continue };
        let of = |node: &Node| node.labels.get(&domain.topology_key).cloned().unwrap_or_default();
        let busy: BTreeSet<String> = unavailable.iter().map(|node| of(node)).collect();
        if busy.len() > usize::try_from(domain.max_domains).unwrap_or(usize::MAX) {
            found.push(violation(4, &policy.name, format!("{} failure domains have unavailable nodes", busy.len())));
        }
        if let Some(most) = &domain.max_unavailable {
            let touched = counted.iter().map(|grant| of(grant.node)).collect::<BTreeSet<_>>();
            for name in touched {
                let size = members.iter().filter(|node| of(node) == name).count();
                let down = unavailable.iter().filter(|node| of(node) == name).count();
                over(&policy.name, &format!("domain {name}"), most, size, down, found);
            }
        }
    }
    if let Some(ceiling) = &snapshot.ceiling
        && !counted.is_empty()
    {
        let unavailable = snapshot.nodes.iter().filter(|node| out(node)).count();
        over("cluster", "the cluster", ceiling, snapshot.nodes.len(), unavailable, found);
    }
}

pub(super) fn selected_once(snapshot: &Snapshot, node: &Node) -> bool {
    let selecting = snapshot.policies.iter().filter_map(|policy| policy.spec.as_ref().ok());
    selecting.filter(|valid| valid.spec.node_selector.matches(&node.labels)).count() == 1
}

fn over(subject: &str, what: &str, most: &IntOrPercent, of: usize, down: usize, found: &mut Vec<Violation>) {
    let most = most.of(u32::try_from(of).unwrap_or(u32::MAX)).unwrap_or(0);
    if down > usize::try_from(most).unwrap_or(usize::MAX) {
        found.push(violation(4, subject, format!("{down} nodes of {what} would be unavailable, {most} may be")));
    }
}

/// One control-plane node at a time; etcd keeps its quorum.
fn control_plane(snapshot: &Snapshot, granted: &[Granted<'_>], found: &mut Vec<Violation>) {
    for grant in granted {
        let node = grant.node;
        let taken = |other: &Node| {
            other.name != node.name
                && (other.unavailable() || granted.iter().any(|grant| grant.node.name == other.name))
        };
        let carries = |node: &Node| node.control_plane || node.etcd != EtcdMember::None;
        if carries(node)
            && let Some(gone) = gone_member(snapshot)
        {
            found.push(violation(4, &node.name, format!("{gone} carries the cluster too, and its Node is gone")));
        }
        if carries(node) && snapshot.nodes.iter().any(|other| carries(other) && taken(other)) {
            found.push(violation(4, &node.name, "two nodes of control plane or etcd would be unavailable"));
        }
        if node.etcd != EtcdMember::None {
            let members = snapshot.nodes.iter().filter(|other| other.etcd != EtcdMember::None);
            let (mut all, mut up) = (0, 0);
            for other in members {
                all += 1;
                up += usize::from(other.name != node.name && other.etcd == EtcdMember::Healthy && !taken(other));
            }
            if all >= 3 && up < all / 2 + 1 {
                found.push(violation(4, &node.name, format!("etcd would have {up} of {all} members")));
            }
        }
    }
}

/// A node that is remembered to carry the cluster, whose Node object is not there and that nobody said was taken out, or only before
/// it was there again.
fn gone_member(snapshot: &Snapshot) -> Option<&str> {
    let is_there = |name: &str| snapshot.nodes.iter().any(|node| *node.name == *name);
    let specs = || snapshot.policies.iter().filter_map(|policy| policy.spec.as_ref().ok()).map(|valid| &valid.spec);
    let taken_out = |name: &str| specs().any(|spec| spec.removed_cluster_members.iter().any(|removed| removed == name));
    let members = snapshot.policies.iter().flat_map(|policy| &policy.status.cluster_members);
    let mut gone = members.filter(|member| !is_there(&member.node));
    gone.find(|member| member.returned || !taken_out(&member.node)).map(|member| member.node.as_str())
}

/// A drain that can't succeed now is not begun, unless somebody said what else is to happen.
fn disruption_budgets(snapshot: &Snapshot, granted: &[Granted<'_>], found: &mut Vec<Violation>) {
    for grant in granted {
        let drain = grant.policy.and_then(|policy| policy.spec.as_ref().ok()).map(|valid| &valid.spec.drain);
        if drain.is_some_and(|drain| drain.on_timeout == OnTimeout::Delete) {
            continue;
        }
        for (key, pods) in grant.node.pods.budgets.iter().filter(|(_, pods)| *pods > 0) {
            let opens = drain.is_some_and(|drain| drain.budgets_open_after_cordon.is_some())
                || grant.node.pods.opening.iter().any(|(opening, _)| opening == key);
            let deletes = |other: &Node| {
                let policy = other.update.as_ref().map(|update| update.spec.policy.as_str());
                let policy = snapshot.policies.iter().find(|known| Some(known.name.as_str()) == policy);
                let valid = policy.and_then(|policy| policy.spec.as_ref().ok());
                valid.is_some_and(|valid| valid.spec.drain.on_timeout == OnTimeout::Delete)
            };
            // A node whose policy deletes asks no budget.
            let with_it = |other: &Node| {
                other.name != grant.node.name
                    && !deletes(other)
                    && (other.granted() || granted.iter().any(|grant| grant.node.name == other.name))
                    && other.pods.budgets.iter().any(|(theirs, pods)| theirs == key && *pods > 0)
            };
            if opens && !snapshot.nodes.iter().any(|other| with_it(other)) {
                continue;
            }
            if snapshot.budgets.get(key).is_some_and(|budget| budget.allowed == 0) {
                let what = format!("its drain can't succeed: {key} lets none of its {pods} pods go");
                found.push(violation(0, &grant.node.name, what));
            }
        }
    }
}

/// The operator's own node goes after those that could go.
fn operator_last(snapshot: &Snapshot, granted: &[Granted<'_>], found: &mut Vec<Violation>) {
    let own = |grant: &&Granted<'_>| Some(&*grant.node.name) == snapshot.operator_node.as_deref();
    let Some(own) = granted.iter().find(own) else { return };
    // A way back does not wait for nodes that go forward.
    let kind = |grant: &Granted<'_>| {
        (grant.policy.map(|policy| policy.name.clone()), grant.cause.object.kind.clone(), grant.installs.is_some())
    };
    if granted.iter().any(|grant| grant.node.name != own.node.name && kind(grant) == kind(own)) {
        found.push(violation(0, &own.node.name, "the operator's own node goes together with others"));
    }
}
