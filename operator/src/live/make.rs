//! Makes the report of a plan. What nodes share in the plan they share here.

use super::Planned;
use crate::gather::{Caches, Key};
use bascule_api::{
    LIVE_REPORT_FORMAT, LiveNode, LiveOrder, LivePolicy, LiveReport, LiveWait, Time, UpdatePolicyStatus,
};
use bascule_planner::{
    GATES, NodeReport, Wait,
    snapshot::{Node, PolicyFacts},
};
use std::{collections::HashMap, sync::Arc};

/// As long as in an object.
const MESSAGE: usize = 1024;
const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) fn report(plan: &Planned) -> LiveReport {
    let (snapshot, report) = (plan.snapshot.as_ref(), plan.report.as_ref());
    let mut waits = Waits::default();
    let nodes = report.nodes.iter().zip(&snapshot.nodes);
    let nodes = nodes.map(|(said, facts)| node(said, facts, waits.index(&said.wait), &plan.world)).collect();
    let policies = snapshot.policies.iter().zip(&report.policies);
    LiveReport {
        format: LIVE_REPORT_FORMAT,
        planned_at: snapshot.now,
        planned_by: plan.identity.to_string(),
        clock_skew: plan.world.api_servers.skew().map(whole_seconds),
        operator_version: env!("CARGO_PKG_VERSION").to_owned(),
        time_zones: crate::zones::current().version(),
        gates: GATES.iter().map(|gate| gate.name().to_owned()).collect(),
        health_gates: Vec::new(),
        waits: waits.list,
        policies: policies.map(|(facts, said)| policy(facts, &said.status)).collect(),
        nodes,
        freezes: snapshot
            .freezes
            .iter()
            .zip(&report.freezes)
            .map(|(facts, said)| order(&facts.name, facts.created_at, &facts.spec, &said.status))
            .collect(),
        rollbacks: snapshot
            .rollbacks
            .iter()
            .zip(&report.rollbacks)
            .map(|(facts, status)| order(&facts.name, facts.created_at, &facts.spec, status))
            .collect(),
    }
}

/// The nearest.
const fn whole_seconds(span: chrono::TimeDelta) -> i64 {
    span.num_milliseconds().saturating_add(500).div_euclid(1000)
}

fn order<Spec: Clone, Status: Clone>(
    name: &str,
    created_at: Time,
    spec: &Spec,
    status: &Status,
) -> LiveOrder<Spec, Status> {
    LiveOrder { name: name.to_owned(), created_at, spec: spec.clone(), status: status.clone() }
}

fn policy(facts: &PolicyFacts, status: &UpdatePolicyStatus) -> LivePolicy {
    let spec = facts.spec.as_ref().ok().map(|valid| &valid.spec);
    LivePolicy {
        forecast: None,
        name: facts.name.clone(),
        paused: spec.is_some_and(|spec| spec.paused),
        max_unavailable: spec.and_then(|spec| spec.budget.max_unavailable.of(status.counts.nodes).ok()),
        status: status.clone(),
    }
}

fn node(said: &NodeReport, facts: &Node, wait: usize, world: &Caches) -> LiveNode {
    let status = facts.update.as_ref().map(|update| &update.status);
    // The object remembers since when, as long as it says the same.
    let since = world.updates.get(&Key::cluster(&said.node)).and_then(|update| {
        let told = update.rollout.as_ref()?;
        if (told.state, told.reason) == (said.state, said.wait.reason) { told.since } else { None }
    });
    LiveNode {
        name: said.node.to_string(),
        policy: said.policy,
        zone: facts.labels.get(ZONE).cloned(),
        state: said.state,
        wait,
        since,
        gates_passed: said.gates_passed.map(usize::from),
        drain: said.drain.clone(),
        booted: status.and_then(|status| status.booted.as_ref()).map(|booted| booted.version.clone()),
        staged: status.and_then(|status| status.staged.as_ref()).map(|staged| staged.version.clone()),
        percent: status.and_then(|status| status.transfer.as_ref()).map(|transfer| transfer.percent),
    }
}

/// Each wait once, in the order in which nodes refer to them.
#[derive(Debug, Default)]
struct Waits {
    list: Vec<LiveWait>,
    /// By address first: most nodes share the very same.
    known: HashMap<*const Wait, usize>,
    equal: HashMap<LiveWait, usize>,
}

impl Waits {
    fn index(&mut self, wait: &Arc<Wait>) -> usize {
        if let Some(index) = self.known.get(&Arc::as_ptr(wait)) {
            return *index;
        }
        let live = LiveWait {
            reason: wait.reason,
            message: wait.message.chars().take(MESSAGE).collect(),
            object: wait.object.clone(),
            until: wait.until,
        };
        let index = *self.equal.entry(live.clone()).or_insert_with(|| {
            self.list.push(live);
            self.list.len() - 1
        });
        self.known.insert(Arc::as_ptr(wait), index);
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::WaitReason;

    #[test]
    fn a_skew_is_told_in_the_nearest_seconds() {
        let of = |millis| whole_seconds(chrono::TimeDelta::milliseconds(millis));
        assert_eq!([0, 499, 500, -500, -501, -599_996].map(of), [0, 0, 1, 0, -1, -600]);
    }

    #[test]
    fn nodes_that_wait_for_the_same_thing_share_it() {
        let shared = Arc::new(Wait::new(WaitReason::Freeze, "frozen"));
        let equal = Arc::new(Wait::new(WaitReason::Freeze, "frozen"));
        let other = Arc::new(Wait::new(WaitReason::Freeze, "frozen too"));
        let mut waits = Waits::default();
        let places = [&shared, &shared, &equal, &other].map(|wait| waits.index(wait));
        assert_eq!((places, waits.list.len()), ([0, 0, 0, 1], 2));
    }
}
