//! Invariant 4: how many nodes are unavailable at once, by policy, failure domain and cluster, and that no application falls below
//! its budget. Unavailable is who looked not Ready or was cordoned in what the operator saw, or is disrupted by its own words.

use super::{
    drains::comes_back,
    facts::{down, label, limit, members, moves},
    past::Past,
};
use crate::world::{
    history::{Act, Event, Evicted, Stood},
    pods::Kind,
};
use bascule_api::{Cause, OnTimeout, Time};
use bascule_planner::{
    Action, Snapshot,
    plan::DrainMode,
    snapshot::{Node, PolicyFacts},
};
use std::collections::{BTreeMap, BTreeSet};

/// Each grant, once it was given.
pub(super) fn nodes(past: &Past<'_>, event: &Event) -> Vec<String> {
    let Event::Act(act) = event else { return Vec::new() };
    let Action::Grant { cause, .. } = &act.action else { return Vec::new() };
    let Some((plan, granted)) = past.plan(act.plan).and_then(|plan| Some((plan, plan.node(&act.uid)?))) else {
        return Vec::new();
    };
    let view = &plan.view.facts;
    if ignores_budgets(view, cause) {
        return Vec::new();
    }
    let mut broken = Vec::new();
    // What was being written to others when the plan was made it knew, whether it has come to them or not.
    let pending = |node: &Node| view.writes.pending_grant(&node.name).is_some() && !moves(node);
    let out = |node: &&Node| node.uid == act.uid || down(node) || pending(node) || past.counts(&node.uid, act.plan);
    let named = granted.update.as_ref().and_then(|update| plan.policy(&update.spec.policy));
    if let Some(policy) = named {
        let members = members(view, &policy.name);
        let unavailable: Vec<&Node> = members.iter().copied().filter(out).collect();
        broken.extend(of_policy(policy, granted, &members, &unavailable));
    }
    if let Some(ceiling) = &view.ceiling {
        let (all, most) = (plan.nodes().filter(out).count(), limit(ceiling, view.nodes.len()));
        if all > most {
            broken.push(format!("{all} nodes of the cluster are unavailable with {}, {most} may be", granted.name));
        }
    }
    broken
}

/// Whether a person ordered it whatever the budgets say.
fn ignores_budgets(view: &Snapshot, cause: &Cause) -> bool {
    let mut rollbacks = view.rollbacks.iter().filter(|rollback| rollback.name == cause.object.name);
    cause.object.kind == "Rollback" && rollbacks.any(|rollback| rollback.spec.ignore_budgets)
}

fn of_policy(policy: &PolicyFacts, granted: &Node, members: &[&Node], unavailable: &[&Node]) -> Vec<String> {
    let Ok(valid) = &policy.spec else { return Vec::new() };
    let mut broken = Vec::new();
    let (name, with) = (&policy.name, &granted.name);
    let (down, most) = (unavailable.len(), limit(&valid.spec.budget.max_unavailable, members.len()));
    if down > most {
        broken.push(format!("{down} nodes of {name} are unavailable with {with}, {most} may be"));
    }
    let Some(domains) = &valid.spec.budget.per_domain else { return broken };
    let of = |node: &Node| label(node, &domains.topology_key).to_owned();
    let touched: BTreeSet<String> = unavailable.iter().map(|node| of(node)).collect();
    let most = usize::try_from(domains.max_domains).unwrap_or(usize::MAX);
    if touched.len() > most {
        let count = touched.len();
        broken.push(format!("{count} failure domains of {name} have unavailable nodes with {with}, {most} may have"));
    }
    if let Some(quantity) = &domains.max_unavailable {
        let own = of(granted);
        let within = |nodes: &[&Node]| nodes.iter().filter(|node| of(node) == own).count();
        let (down, most) = (within(unavailable), limit(quantity, within(members)));
        if down > most {
            broken.push(format!("{down} nodes of {name} in domain {own} are unavailable with {with}, {most} may be"));
        }
    }
    broken
}

/// Each pod that was made to leave, and each machine that was told to reboot.
pub(super) fn applications(past: &Past<'_>, at: Time, event: &Event) -> Vec<String> {
    match event {
        Event::Evicted(evicted) => evicted_under(past, at, evicted).into_iter().collect(),
        Event::Act(act) if matches!(act.action, Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. }) => {
            rebooted_under(past, act)
        }
        _ => Vec::new(),
    }
}

/// An app that loses a pod which its budget does not let go, unless the policy's drain says so and its time is over.
fn evicted_under(past: &Past<'_>, at: Time, evicted: &Evicted) -> Option<String> {
    let app = evicted.app.as_ref().filter(|app| !app.switches && app.healthy <= app.desired)?;
    let order = &evicted.order;
    let policy = past.newest().and_then(|plan| plan.policy(&order.policy));
    let drain = policy.and_then(|policy| policy.spec.as_ref().ok()).map(|valid| &valid.spec.drain);
    let deletes = drain.is_some_and(|drain| {
        let over = order.begun.after(drain.load_balancer_delay).after(drain.timeout);
        order.mode == DrainMode::DeleteRest && drain.on_timeout == OnTimeout::Delete && at >= over
    });
    let (pod, key) = (&evicted.pod.name, &app.key);
    (!deletes).then(|| {
        let (healthy, desired) = (app.healthy, app.desired);
        format!("{pod} was made to leave {}, and {key} had {healthy} healthy pods, {desired} wanted", order.node)
    })
}

/// An app that falls below its budget with a machine that was told to reboot.
fn rebooted_under(past: &Past<'_>, act: &Act) -> Vec<String> {
    let Some((plan, node)) = past.plan(act.plan).and_then(|plan| Some((plan, plan.node(&act.uid)?))) else {
        return Vec::new();
    };
    if !node.ready.ready {
        return Vec::new();
    }
    let is_ready = |name: &str| plan.nodes().any(|node| *node.name == *name && node.ready.ready);
    let mut apps: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let counts = |pod: &&Stood| pod.deletes_at.is_none() && is_ready(&pod.node);
    for pod in plan.view.pods.pods.iter().filter(counts) {
        if let Kind::App(key) = &pod.kind {
            let (healthy, here) = apps.entry(key).or_default();
            *healthy += 1;
            let left = pod.node == *node.name && !comes_back(past, plan, node, pod);
            *here += u32::from(left);
        }
    }
    let below = apps.into_iter().filter_map(|(key, (healthy, here))| {
        let desired = *plan.view.pods.budgets.get(key)?;
        (here > 0 && healthy - here < desired).then(|| {
            let name = &node.name;
            format!(
                "{name} is told to reboot under {here} pods of {key}, which has {healthy} healthy, {desired} wanted"
            )
        })
    });
    below.collect()
}
