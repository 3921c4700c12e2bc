//! Turns facts into the planner's snapshot. Those that did not change keep their pointer, by which the planner recognises them.

use crate::{
    BudgetFact, DaemonSetFact, FreezeFact, JobFact, Key, LookUp, NodeFacts, PodFact, PolicyFact, RollbackFact,
    one_node::{Ground, NAMED},
};
use bascule_api::Time;
use bascule_planner::{
    Snapshot,
    snapshot::{DisruptionBudget, HookRun, Node, NodePods, Offer, PolicyFacts, Unreadable},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The objects that a snapshot is made from, as they are known now. Lists are in the order of their objects' keys.
pub struct Gathered<'a> {
    /// The time.
    pub now: Time,
    /// Orders nodes between which nothing else decides.
    pub seed: u64,
    /// Each Node with what belongs to it.
    pub nodes: Vec<NodeFacts>,
    /// The UpdatePolicies.
    pub policies: Vec<Arc<PolicyFact>>,
    /// What a policy's channel offers.
    pub offer: &'a dyn Fn(&PolicyFact) -> Arc<Offer>,
    /// The PodDisruptionBudgets.
    pub budgets: Vec<Arc<BudgetFact>>,
    /// The DaemonSets.
    pub daemon_sets: Vec<Arc<DaemonSetFact>>,
    /// The Freezes.
    pub freezes: Vec<Arc<FreezeFact>>,
    /// The Rollbacks.
    pub rollbacks: Vec<Arc<RollbackFact>>,
    /// Freezes and Rollbacks that can't be read.
    pub unreadable_orders: Vec<Unreadable>,
    /// The Jobs of hooks.
    pub jobs: Vec<Arc<JobFact>>,
    /// Everything that is asked for by its key.
    pub known: &'a dyn LookUp,
    /// The UID of the operator's own pod, where it has to stay with its node.
    pub own_pod: Option<String>,
}

impl std::fmt::Debug for Gathered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Makes snapshots, one after the other. What rests on facts that did not change is kept.
#[derive(Debug, Default)]
pub struct Assembler {
    ground: Ground,
    nodes: HashMap<Arc<str>, (NodeFacts, Arc<Node>)>,
    policies: HashMap<String, Arc<PolicyFacts>>,
    /// On how many nodes pods need each budget, by `namespace/name`.
    needed: HashMap<String, usize>,
}

impl Assembler {
    /// The snapshot of what was gathered. What comes from elsewhere than the API server is left out.
    pub fn assemble(&mut self, gathered: Gathered<'_>) -> Snapshot {
        let Gathered { now, known, policies, budgets, .. } = gathered;
        let ground = Ground::new(&policies, &budgets, gathered.daemon_sets, gathered.own_pod);
        let stands = ground.carries(&self.ground);
        self.ground = ground;
        let mut before = std::mem::take(&mut self.nodes);
        self.nodes.reserve(gathered.nodes.len());
        let nodes = gathered.nodes.into_iter().map(|facts| {
            let before = before.remove(facts.node.name.as_str());
            self.node(before, facts, stands, known, now)
        });
        let nodes = nodes.collect();
        for (_, gone) in before.into_values() {
            self.needs(&gone, false);
        }
        Snapshot {
            now,
            seed: gathered.seed,
            policies: self.policies(&policies, gathered.offer),
            nodes,
            budgets: Arc::new(self.disruption_budgets(known, &budgets, now)),
            freezes: gathered.freezes.iter().map(|freeze| Arc::clone(&freeze.0)).collect(),
            rollbacks: gathered.rollbacks.iter().map(|rollback| Arc::clone(&rollback.0)).collect(),
            unreadable_orders: gathered.unreadable_orders,
            hooks: runs(&gathered.jobs, &policies),
            ..Snapshot::default()
        }
    }

    /// One node; `before` is what was known of it, which `stands` unless all nodes are to be looked at again.
    fn node(
        &mut self,
        before: Option<(NodeFacts, Arc<Node>)>,
        facts: NodeFacts,
        stands: bool,
        known: &dyn LookUp,
        now: Time,
    ) -> Arc<Node> {
        let node = match before {
            Some((same, node)) if stands && same.hold(&facts) && steady(&node.pods) => node,
            before => {
                let (node, before) = (facts.node(&self.ground, known, now), before.map(|(_, node)| node));
                match before {
                    Some(before) if *before == node => before,
                    before => {
                        before.iter().for_each(|before| self.needs(before, false));
                        self.needs(&node, true);
                        Arc::new(node)
                    }
                }
            }
        };
        self.nodes.insert(Arc::clone(&node.name), (facts, Arc::clone(&node)));
        node
    }

    /// Counts a node's budgets, or does so no more.
    fn needs(&mut self, node: &Node, more: bool) {
        for (budget, _) in &node.pods.budgets {
            let nodes = self.needed.entry(budget.clone()).or_default();
            *nodes = if more { nodes.saturating_add(1) } else { nodes.saturating_sub(1) };
        }
        if !more {
            self.needed.retain(|_, nodes| *nodes > 0);
        }
    }

    /// The budgets that the pods of some node need.
    fn disruption_budgets(
        &self,
        known: &dyn LookUp,
        budgets: &[Arc<BudgetFact>],
        now: Time,
    ) -> BTreeMap<String, DisruptionBudget> {
        let needed: Vec<_> = budgets
            .iter()
            .map(|budget| (budget.path(), budget))
            .filter(|(path, _)| self.needed.contains_key(path))
            .collect();
        // Of a budget that allows something nobody asks what is not ready.
        let asked = needed.iter().any(|(_, budget)| budget.allowed == 0);
        let unready = if asked { known.unready_pods() } else { Vec::new() };
        needed.into_iter().map(|(path, budget)| (path, disruption_budget(budget, &unready, known, now))).collect()
    }

    fn policies(
        &mut self,
        policies: &[Arc<PolicyFact>],
        offer: &dyn Fn(&PolicyFact) -> Arc<Offer>,
    ) -> Vec<Arc<PolicyFacts>> {
        let mut kept = HashMap::with_capacity(policies.len());
        let assembled = policies
            .iter()
            .map(|policy| {
                let mut facts = policy.facts(offer(policy));
                let before = self.policies.remove(&policy.name);
                if let Some(before) = before.as_ref().filter(|before| before.spec == facts.spec) {
                    facts.spec.clone_from(&before.spec);
                }
                let shared = match before {
                    Some(before) if *before == facts => before,
                    _ => Arc::new(facts),
                };
                kept.insert(policy.name.clone(), Arc::clone(&shared));
                shared
            })
            .collect();
        self.policies = kept;
        assembled
    }
}

/// The Jobs of hooks, but those that a policy which is gone left behind: another one of its name is none of theirs.
fn runs(jobs: &[Arc<JobFact>], policies: &[Arc<PolicyFact>]) -> Vec<HookRun> {
    let has_its_policy = |job: &JobFact| {
        let is_its = |uid: &str| policies.iter().any(|policy| policy.uid == uid);
        job.after.as_ref().is_none_or(|after| is_its(&after.policy_uid))
    };
    jobs.iter().filter(|job| has_its_policy(job)).filter_map(|job| job.run.clone()).collect()
}

/// Whether time alone changes nothing in these facts.
fn steady(pods: &NodePods) -> bool {
    pods.completing.is_none() && pods.undrainable.iter().all(|pod| pod.until.is_none())
}

fn disruption_budget(budget: &BudgetFact, unready: &[Arc<PodFact>], known: &dyn LookUp, now: Time) -> DisruptionBudget {
    let (mut unhealthy, mut unfinished) = (Vec::new(), Vec::new());
    // Of one that allows something nobody will ask.
    if budget.allowed == 0 {
        let unready = unready.iter().filter(|pod| budget.covers(pod));
        unhealthy.extend(unready.take(NAMED).map(|pod| describe(pod)));
        let still_there = |name: &str| {
            let key = Key { namespace: budget.namespace.clone(), name: name.to_owned() };
            known.pod(&key).filter(|pod| pod.deletes_at.is_none())
        };
        let counted = budget.unfinished(now.get()).filter_map(|(name, until)| Some((still_there(name)?, until)));
        let named = counted.take(NAMED).map(|(pod, until)| format!("{} until {}", pod.path(), Time::new(until)));
        unfinished.extend(named);
    }
    DisruptionBudget {
        allowed: budget.allowed,
        healthy: budget.healthy,
        desired: budget.desired,
        expected: budget.expected,
        unhealthy,
        unfinished,
    }
}

fn describe(pod: &PodFact) -> String {
    let mut text = pod.path();
    if !pod.node.is_empty() {
        text.push_str(&format!(" on {}", pod.node));
    }
    match (&pod.waiting, pod.pending) {
        (Some(reason), _) => text.push_str(&format!(" ({reason})")),
        (None, true) => text.push_str(" (Pending)"),
        (None, false) => {}
    }
    text
}
