//! The invariants, checked on the world itself.

use super::{Judge, World, faults::carries, pods::RETURNS, refusing::Written};
use bascule_api::{Duration, Goal, IntOrPercent, PolicyFailure, Time, WaitReason, conditions::reason};
use bascule_planner::{
    Action, Report, ValidPolicy, Violation,
    plan::{DrainMode, MemoryChange},
    snapshot::{Cordon, Excluded, HookRun, HookStage, Node, Truce},
};
use std::collections::BTreeMap;

/// For how many rounds a trial may be without anybody who carries on with it: the operator dies now and then.
const ORPHANED: u32 = 8;
/// For how many rounds a node may hold its grant beyond its time: what fails is told after ten seconds.
const OVERDUE: u32 = 4;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The planner's own lint found it in a plan.
    Lint(Violation),
    /// The world shows it: the invariant's number, or 0 where it has none (docs/invariants.md), and what is seen.
    World(u8, String),
    /// The world's history shows it to one of its judges.
    Judged(Judge, String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lint(violation) => write!(f, "{violation} (lint)"),
            Self::World(number, what) => write!(f, "invariant {number}: {what}"),
            Self::Judged(judge, what) => write!(f, "invariant {}: {what} (history, {judge:?})", judge.invariant()),
        }
    }
}

/// Right after a step was carried out on the newest facts.
pub(super) fn step(world: &World, action: &Action) -> Vec<Broken> {
    let mut broken = remembered(world, action);
    if let Action::RunHook(order) = action
        && let Some(node) = world.snapshot.nodes.iter().find(|node| *node.name == *order.node)
        && order.stage == HookStage::BeforeDrain
        && node.truce != Truce::Held
    {
        broken.push(Broken::World(0, format!("{} waits for a hook, and an autoscaler may take it away", node.name)));
    }
    if let Action::RunHook(order) | Action::RunRolloutHook(order) = action {
        let key = (format!("{}/{}", order.policy, order.node), order.grant, order.stage.key(&order.hook));
        if world.workload.succeeded.contains(&key) {
            broken.push(Broken::World(9, format!("{} runs hook {} again, which succeeded", order.node, key.2)));
        }
    }
    if let Action::RunRolloutHook(order) = action
        && order.stage == HookStage::BeforeRollout
        && let Some(policy) = world.snapshot.policies.iter().find(|policy| policy.name == order.policy)
    {
        let kept = |hook: &bascule_api::Hook| {
            let of = |run: &HookRun| run.stage == HookStage::AfterRollout && run.policy == order.policy;
            world.snapshot.hooks.iter().any(|run| of(run) && run.grant == order.grant && run.is_of(hook))
        };
        let mut after = policy.spec.iter().flat_map(|valid| &valid.spec.hooks.after_rollout);
        if let Some(hook) = after.find(|hook| !kept(hook)) {
            let what =
                format!("rollout {} of {} begins, and nobody keeps hook {}", order.grant, order.policy, hook.name);
            broken.push(Broken::World(9, what));
        }
    }
    if let Action::Cordon { node, .. } = action
        && let Some(node) = world.snapshot.nodes.iter().find(|known| *known.name == **node)
        && let Some(disruption) = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref())
        && disruption.was_cordoned
    {
        broken.push(Broken::World(7, format!("{} is cordoned again, which a person uncordoned", node.name)));
    }
    // A way back names what it makes permanent, and is made so as it is.
    if let Action::Commit { node, release: None } = action {
        broken.extend(committed(world, node));
    }
    let Action::Grant { node, cause, .. } = action else { return broken };
    let ignores = world
        .snapshot
        .rollbacks
        .iter()
        .any(|rollback| rollback.name == cause.object.name && rollback.spec.ignore_budgets);
    let Some(granted) = world.snapshot.nodes.iter().find(|known| *known.name == **node) else { return broken };
    let Some(policy) = granted.update.as_ref().map(|update| update.spec.policy.clone()) else { return broken };
    let known = |node: &&std::sync::Arc<Node>| node.granted() && !world.adopted_meanwhile.contains(&*node.name);
    let ours = |name: &str| {
        let moving = world.snapshot.nodes.iter().filter(known);
        moving.filter(|node| node.update.as_ref().is_some_and(|update| update.spec.policy == name)).count()
    };
    let members = |valid: &bascule_planner::ValidPolicy| {
        let selects =
            |node: &&std::sync::Arc<bascule_planner::snapshot::Node>| valid.spec.node_selector.matches(&node.labels);
        world.nodes_seen().iter().filter(selects).count()
    };
    if let Some(Ok(valid)) = world.policies_seen().iter().find(|known| known.name == policy).map(|policy| &policy.spec)
        && !ignores
    {
        let most = limit(&valid.spec.budget.max_unavailable, members(valid).max(ours(&policy)));
        if ours(&policy) > most {
            broken.push(Broken::World(4, format!("{} nodes of {policy} are granted, {most} may be", ours(&policy))));
        }
    }
    let all = world.snapshot.nodes.iter().filter(known).count();
    if let Some(ceiling) = world.snapshot.ceiling.as_ref().filter(|_| !ignores) {
        let most = limit(ceiling, world.nodes_seen().len());
        if all > most {
            broken.push(Broken::World(4, format!("{all} nodes of the cluster are granted, {most} may be")));
        }
    }
    // Of these two are never away at once, whatever somebody did to their Nodes.
    let control = world.snapshot.nodes.iter().filter(|node| node.granted() && carries(node)).count();
    if control > 1 && carries(granted) {
        broken.push(Broken::World(4, format!("{control} nodes of control plane or etcd are granted")));
    }
    // By the machines: what was seen with a member has it still, whatever became of its Node.
    let unseen = world.lost.iter().filter(|node| carries(node) && world.is_remembered(&node.name));
    // What is seen still nobody could miss.
    let is_seen = |name: &&str| world.nodes_seen().iter().any(|node| *node.name == **name);
    let mut unseen = unseen.map(|node| &*node.name).chain(world.dead.iter().map(String::as_str));
    let unseen = unseen.find(|name| !is_seen(name));
    if let Some(unseen) = unseen.filter(|_| carries(granted)) {
        broken.push(Broken::World(4, format!("{node} is granted, and etcd counts the member of {unseen}")));
    }
    broken
}

/// Right after a policy's memory was written: failures block a release only where they are as many as the policy asked for when it
/// could be used last, and no machine that did not come back is blamed alone.
pub(super) fn remembered(world: &World, action: &Action) -> Vec<Broken> {
    let Action::Remember { policy: name, changes, .. } = action else { return Vec::new() };
    let Some(policy) = world.snapshot.policies.iter().find(|policy| policy.name == *name) else { return Vec::new() };
    let mut broken = lone_verdicts(&policy.status.failures, changes);
    let Some(threshold) = world.thresholds.get(name) else { return broken };
    let blocked = changes.iter().filter_map(|change| match change {
        MemoryChange::Blocked { version, by, .. } if by.as_str() == reason::FAILURE_THRESHOLD => Some(version),
        _ => None,
    });
    let hasty = blocked.filter_map(|version| {
        let failures = policy.status.failures.iter().filter(|failure| failure.version == *version).count();
        let too_few = failures < usize::try_from(*threshold).unwrap_or(usize::MAX);
        too_few.then(|| {
            Broken::World(6, format!("{name} blocks {version} after {failures} failures, {threshold} are asked for"))
        })
    });
    broken.extend(hasty);
    broken
}

/// By whose settings a trial is judged: those of the policy that gave the grant, whoever selects the node by now, and where that
/// is gone those of the only one that selects it. Or why nobody may judge it.
fn judge<'w>(world: &'w World, node: &Node, granted_by: &str) -> Result<&'w ValidPolicy, &'static str> {
    let mut policies = world.policies_seen().iter();
    if let Some(policy) = policies.find(|policy| policy.name == granted_by) {
        return policy.spec.as_ref().map(|valid| &**valid).map_err(|_| "its policy can't be used");
    }
    let valid = world.policies_seen().iter().filter_map(|policy| policy.spec.as_ref().ok());
    let mut selecting = valid.filter(|valid| valid.spec.node_selector.matches(&node.labels));
    match (selecting.next(), selecting.next()) {
        (Some(valid), None) => Ok(valid),
        _ => Err("its policy is gone, and no other one alone selects it"),
    }
}

/// A release is committed only after its own boot has run for as long as the policy says: what the machine itself knows of
/// its boots is asked, not what the API showed.
fn committed(world: &World, node: &str) -> Option<Broken> {
    let known = world.snapshot.nodes.iter().find(|known| *known.name == *node)?;
    let update = known.update.as_ref()?;
    // What a person's Rollback ordered is made permanent as it is.
    update.spec.disruption.as_ref().filter(|disruption| disruption.cause.object.kind == "UpdatePolicy")?;
    let health = match judge(world, known, &update.spec.policy) {
        Ok(valid) => &valid.spec.health,
        Err(why) => return Some(Broken::World(0, format!("{node} commits, and {why}"))),
    };
    // The word reaches nobody while the machine is down.
    let machine = world.machines.get(node).filter(|machine| machine.is_up())?;
    let (now, soak) = (world.snapshot.now, i64::try_from(health.node_soak.as_secs()).unwrap_or(i64::MAX));
    let since = machine.up_since;
    (now.seconds_since(since) < soak).then(|| {
        let healthy = now.seconds_since(since);
        Broken::World(0, format!("{node} commits {healthy} s after it booted, {soak} s are asked"))
    })
}

fn limit(quantity: &IntOrPercent, of: usize) -> usize {
    usize::try_from(quantity.of(u32::try_from(of).unwrap_or(u32::MAX)).unwrap_or(0)).unwrap_or(0)
}

/// After each round.
pub(super) fn world(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    for held in &world.held_by_people {
        let node = world.snapshot.nodes.iter().find(|node| *node.name == **held);
        if node.is_some_and(|node| !node.cordon.is_cordoned()) {
            broken.push(Broken::World(7, format!("{held} was cordoned by a person and is not any more")));
        }
    }
    for node in world.snapshot.nodes.iter().filter(|node| matches!(node.cordon, Cordon::Ours { .. })) {
        if node.truce != Truce::Held {
            broken.push(Broken::World(0, format!("{} is cordoned and an autoscaler may take it away", node.name)));
        }
    }
    for order in world.workload.orders.iter().filter(|order| order.mode != DrainMode::Keep) {
        let node = world.snapshot.nodes.iter().find(|node| *node.name == *order.node);
        if node.is_some_and(|node| node.truce != Truce::Held) {
            broken.push(Broken::World(0, format!("{} is emptied, and an autoscaler may take it away", order.node)));
        }
    }
    broken.extend(world.workload.hurried.iter().map(|what| Broken::World(0, what.clone())));
    broken.extend(evictions(world));
    broken.extend(hurried_verdicts(world));
    broken.extend(cluster_gates(world));
    broken.extend(broken_before(world));
    broken.extend(rollouts_left_open(world));
    broken.extend(world.refusing.hurried(world.snapshot.now));
    for (name, rounds) in world.overdue.iter().filter(|(_, rounds)| **rounds > OVERDUE) {
        let what = format!("{name} has not been cordoned in its time, and has held its grant for {rounds} rounds more");
        broken.push(Broken::World(0, what));
    }
    for (name, rounds) in world.orphans.iter().filter(|(_, rounds)| **rounds > ORPHANED) {
        broken.push(Broken::World(9, format!("nobody has carried on with the trial of {name} for {rounds} rounds")));
    }
    for (name, machine) in &world.machines {
        // A way back may fail, too: what counts is what was booted since.
        for (failed, boots) in &machine.failed_ever {
            let tried = machine.history.iter().skip(*boots).filter(|booted| *booted == failed).count();
            if tried > 0 {
                let what = format!("{name} booted {failed} {tried} times more, and it failed there");
                broken.push(Broken::World(6, what));
            }
        }
    }
    broken
}

/// Over a rollout there is one eviction for each pod that had to move, and nothing to speak of beyond; and in a drain no owner
/// is told again and again.
fn evictions(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut rollouts: BTreeMap<&(String, String), (u32, u32)> = BTreeMap::new();
    for ((uid, grant), cost) in &world.workload.costs {
        let (evictions, stood) = rollouts.entry(&cost.rollout).or_default();
        *evictions += cost.evictions;
        *stood += cost.stood;
        let (pods, told) = cost.returning;
        if told > pods + RETURNS {
            let what =
                format!("drain {grant} of {uid} told pods {told} times that come back, of which {pods} stood there");
            broken.push(Broken::World(11, what));
        }
    }
    for ((policy, release), (evictions, stood)) in rollouts {
        if evictions.saturating_mul(100) > stood.saturating_mul(105) {
            let what = format!("{evictions} evictions for {stood} pods that had to move for {release} of {policy}");
            broken.push(Broken::World(11, what));
        }
    }
    broken
}

/// Trials that nobody carries on with, though a policy could, and since how many rounds.
pub(super) fn orphans(world: &World) -> std::collections::BTreeMap<String, u32> {
    let orphaned = world.snapshot.nodes.iter().filter(|node| {
        let policies = world.snapshot.policies.iter().filter_map(|policy| Some((policy, policy.spec.as_ref().ok()?)));
        let selecting: Vec<_> = policies.filter(|(_, valid)| valid.spec.node_selector.matches(&node.labels)).collect();
        let all_valid = world.snapshot.policies.iter().all(|policy| policy.spec.is_ok());
        let [(policy, _)] = selecting[..] else { return false };
        let Some(machine) = world.machines.get(&*node.name).filter(|machine| machine.tries_a_release()) else {
            return false;
        };
        let offered = machine.running().is_some_and(|version| policy.offer.release(version).is_some());
        let alone = node.live_update().is_none_or(|update| update.spec.disruption.is_none());
        // It is cordoned before it is carried on with: its pods may not come yet.
        let refused = [Written::NodeUpdate, Written::Node].into_iter().any(|what| world.refuses(what, &node.name));
        all_valid && offered && alone && !node.deleting && !refused
    });
    orphaned
        .map(|node| (node.name.to_string(), world.orphans.get(&*node.name).map_or(1, |rounds| rounds + 1)))
        .collect()
}

/// Nodes that hold their grant though they are not cordoned and their drain should have begun, and for how many rounds that an operator
/// lived through which had lived through the one before.
pub(super) fn overdue(world: &World) -> BTreeMap<String, u32> {
    let more = u32::from(world.lived > 1);
    let late = world.snapshot.nodes.iter().filter(|node| {
        let update = node.live_update().filter(|update| matches!(update.spec.goal, Goal::Idle | Goal::Staged));
        let Some(update) = update.filter(|update| update.status.trial.is_none()) else { return false };
        let Some(disruption) = &update.spec.disruption else { return false };
        let policy = world.snapshot.policies.iter().find(|policy| policy.name == update.spec.policy);
        let Some(Ok(valid)) = policy.map(|policy| &policy.spec) else { return false };
        let hooks: u64 = valid.spec.hooks.before_drain.iter().map(|hook| hook.timeout.as_secs()).sum();
        let drain = &valid.spec.drain;
        let begins = drain.load_balancer_delay.as_secs() + drain.timeout.as_secs().max(60);
        let by = disruption.granted_at.after(Duration::from_secs(2 * hooks + begins));
        let free = disruption.drained_at.is_none() && !node.cordon.is_cordoned() && !node.deleting;
        free && world.snapshot.now >= by && !world.refuses(Written::NodeUpdate, &node.name)
    });
    late.map(|node| {
        let known = world.overdue.get(&*node.name).copied().unwrap_or_default();
        (node.name.to_string(), known + more)
    })
    .collect()
}

/// A trial that ended because a gate said no of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unproven {
    version: String,
    node: String,
    gate: String,
    ended_at: Time,
}

/// Trials that ended because of the cluster.
pub(super) fn unproven(world: &World) -> Vec<Unproven> {
    let ended = world.snapshot.nodes.iter().filter_map(|node| {
        let last = node.update.as_ref()?.spec.last_disruption.as_ref()?;
        // What nobody could be asked, or ended for another reason, shows nothing.
        let gate = last.gate.as_ref().filter(|_| last.outcome == bascule_api::DisruptionOutcome::Unproven)?;
        let (version, node) = (last.version.as_ref()?.to_string(), node.name.to_string());
        Some(Unproven { version, node, gate: gate.clone(), ended_at: last.ended_at })
    });
    ended.collect()
}

/// When nodes that are in the middle of it were told to reboot.
pub(super) fn told(world: &World) -> Vec<(String, Time)> {
    let told = world.snapshot.nodes.iter().filter_map(|node| {
        let disruption = node.update.as_ref()?.spec.disruption.as_ref()?;
        Some((node.name.to_string(), disruption.drained_at?))
    });
    told.collect()
}

/// Nodes that were told to reboot, with the release where a DaemonSet pod had lost its readiness since the grant.
pub(super) fn shaken(world: &World) -> Vec<(String, Option<String>)> {
    let told = world.snapshot.nodes.iter().filter_map(|node| {
        let spec = &node.update.as_ref()?.spec;
        let disruption = spec.disruption.as_ref().filter(|disruption| disruption.drained_at.is_some())?;
        let shaken = disruption.daemon_sets.iter().any(|pod| !pod.ready && pod.since.is_some());
        let release = spec.release.as_ref().filter(|_| shaken);
        Some((node.name.to_string(), release.map(|release| release.version.to_string())))
    });
    told.collect()
}

/// What a gate says of the cluster is no verdict over a release, until the same gate has said so of another node's trial, which
/// was over when this one was told to reboot.
fn cluster_gates(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    for failure in world.snapshot.policies.iter().flat_map(|policy| &policy.status.failures) {
        let by_gate = failure.message.starts_with("not healthy within") && failure.message.contains(": gate ");
        let told = world.told.get(&failure.node);
        let again = |ended: &Unproven| {
            ended.version == failure.version.as_str()
                && ended.node != failure.node
                && failure.message.contains(&format!(": gate {}: ", ended.gate))
                && told.is_none_or(|told| ended.ended_at <= *told)
        };
        if by_gate && !world.unproven.iter().any(again) {
            let what = format!("{} is blamed on {} for what the cluster does", failure.version, failure.node);
            broken.push(Broken::World(6, what));
        }
    }
    broken
}

/// A DaemonSet pod that was never ready on a machine, or that broke between the grant and the word to reboot, is no fault of a
/// release.
fn broken_before(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    for failure in world.snapshot.policies.iter().flat_map(|policy| &policy.status.failures) {
        let never = world.machines.get(&*failure.node).is_some_and(|machine| machine.never_ready);
        let shaken = world.shaken.get(&failure.node).is_some_and(|version| *version == *failure.version.as_str());
        if failure.message.contains("DaemonSet pods are ready") && (never || shaken) {
            let what = format!("{} is blamed on {} for what was broken before", failure.version, failure.node);
            broken.push(Broken::World(6, what));
        }
    }
    broken
}

/// What the hooks before a rollout did is undone by those after it, before anybody says that the rollout is over.
fn rollouts_left_open(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (of, number, key) in &world.workload.succeeded {
        let Some(policy) = world.snapshot.policies.iter().find(|policy| format!("{}/", policy.name) == *of) else {
            continue;
        };
        let open = policy.status.maintenance.as_ref().is_some_and(|open| open.number == *number);
        let after = policy.spec.iter().flat_map(|valid| &valid.spec.hooks.after_rollout);
        let undone = after
            .map(|hook| HookStage::AfterRollout.key(&hook.name))
            .find(|after| !world.workload.succeeded.contains(&(of.clone(), *number, after.clone())));
        if let (false, Some(hook)) = (open, undone)
            && key.starts_with(HookStage::BeforeRollout.key("").as_str())
        {
            broken.push(Broken::World(9, format!("rollout {number} of {} is over without hook {hook}", policy.name)));
        }
    }
    broken
}

/// One machine that does not come back is no verdict over its release: somebody's agent says so, or a second machine. Looked at when it is
/// remembered: of two that stand there together a person may have one forgotten later, who has its node try again.
fn lone_verdicts(failures: &[PolicyFailure], changes: &[MemoryChange]) -> Vec<Broken> {
    // What the operator itself concluded, rather than an agent's report.
    let unreported = |failure: &PolicyFailure| {
        ["the node has not come back", "the kubelet came back"].iter().any(|says| failure.message.starts_with(says))
    };
    let new = changes.iter().filter_map(|change| match change {
        MemoryChange::Failed(failure) if unreported(failure) => Some(failure),
        _ => None,
    });
    let lone = new.filter(|failure| {
        let together = |other: &&PolicyFailure| unreported(other) && other.version == failure.version;
        failures.iter().filter(together).count() == 1
    });
    lone.map(|failure| {
        Broken::World(6, format!("{} is blamed for {}, which never said so", failure.version, failure.node))
    })
    .collect()
}

/// A trial has its time from when its machine is back, however long that took and whoever says so first, whatever a plan saw of it. A
/// machine that lost its power in its trial looks like one that never came up where nobody has said so.
fn hurried_verdicts(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    let now = world.snapshot.now;
    for policy in &world.snapshot.policies {
        let Ok(valid) = &policy.spec else { continue };
        let asked = i64::try_from(valid.spec.health.node_ready_timeout.as_secs()).unwrap_or(i64::MAX);
        let verdict = |failure: &&bascule_api::PolicyFailure| {
            failure.message.starts_with("not healthy within") && failure.at == now
        };
        for failure in policy.status.failures.iter().filter(verdict) {
            let Some(machine) = world.machines.get(&failure.node).filter(|machine| machine.is_up()) else { continue };
            let had = now.seconds_since(machine.up_since);
            let boot = machine.boot_id(&failure.node);
            let Some(node) = world.snapshot.nodes.iter().find(|node| *node.name == *failure.node) else { continue };
            let agent = node.update.as_ref().and_then(|update| update.status.boot_id.as_ref());
            let said = node.boot_id == boot || agent == Some(&boot);
            if machine.running() == Some(&failure.version) && said && had < asked {
                let what = format!(
                    "{} is blamed on {}, which has run it for {had} s (kubelet: {}, agent: {agent:?}, seen back at {})",
                    failure.version, failure.node, node.boot_id, node.back_seen
                );
                broken.push(Broken::World(6, what));
            }
        }
    }
    broken
}

/// Whether a node may rest with a reason: a person has to resolve it, or there is nothing to resolve. What windows, waves and halts
/// rest on is asked by a judge of the history ([`Judge::Rest`]).
pub(super) const fn lasts(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::Current
            | WaitReason::NotSelected
            | WaitReason::PolicyConflict
            | WaitReason::ReleaseBlocked
            | WaitReason::ReleaseWithdrawn
            | WaitReason::NoRelease
            | WaitReason::MinimumSourceVersion
            | WaitReason::StateVersion
            | WaitReason::FailedHere
            | WaitReason::Halted
            | WaitReason::Reverted
            | WaitReason::WindowTooShort
            | WaitReason::MaintenanceWindow
            | WaitReason::Wave
    )
}

/// When everything has come to rest: nothing is left behind, and who does not run the policy's release has a reason
/// that a person has to resolve.
pub(super) fn end(world: &World, report: &Report) -> Vec<Broken> {
    let mut broken = Vec::new();
    for policy in world.snapshot.policies.iter().filter(|policy| policy.status.maintenance.is_some()) {
        broken.push(Broken::World(9, format!("the maintenance of {} never ends", policy.name)));
    }
    for (node, said) in world.snapshot.nodes.iter().zip(&report.nodes) {
        // What ends later by itself is not left behind.
        let over = match node.truce {
            Truce::None => false,
            Truce::Held => true,
            Truce::Until(until) => until <= world.snapshot.now,
        };
        if over {
            broken.push(Broken::World(9, format!("{} is left with what we said to autoscalers", node.name)));
        }
        if node.excluded == Excluded::ByUs {
            broken.push(Broken::World(9, format!("{} is left out of load balancers", node.name)));
        }
        if node.cordon != Cordon::None {
            broken.push(Broken::World(9, format!("{} is left cordoned", node.name)));
        }
        if !lasts(said.wait.reason) {
            let what = format!("{} ends with {}: {}", node.name, said.wait.reason, said.wait.message);
            broken.push(Broken::World(9, what));
        }
    }
    broken
}
