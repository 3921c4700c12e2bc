//! Turns the caches into the planner's snapshot. Facts that did not change keep their pointer, by which the planner
//! recognises them.

use super::{BudgetFact, DaemonSetFact, NodeFact, PodFact, PolicyFact, UpdateFact, World};
use crate::drain::{Progress, Verdict, judge};
use bascule_api::{Drain, Duration, IntOrPercent, Source, Time};
use bascule_planner::{
    Snapshot,
    snapshot::{
        BlockedPod, DaemonSets, DisruptionBudget, EtcdMember, GateAnswer, Node, NodePods, Offer, PolicyFacts,
        UndrainablePod,
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// How many pods a fact names at most, and how many budgets that a drain waited for.
const NAMED: usize = 5;

/// Facts that do not come from the API server.
pub struct Outside<'a> {
    /// The time.
    pub now: Time,
    /// Orders nodes between which nothing else decides.
    pub seed: u64,
    /// What a source's channel offers.
    pub offer: &'a dyn Fn(&Source) -> Arc<Offer>,
    /// Answers of gates.
    pub gates: Vec<GateAnswer>,
    /// How far drains are.
    pub drains: &'a BTreeMap<String, Progress>,
    /// The cluster-wide ceiling.
    pub ceiling: Option<IntOrPercent>,
    /// The node this operator runs on.
    pub operator_node: Option<String>,
}

impl std::fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Makes snapshots, one after the other.
#[derive(Debug, Default)]
pub struct Assembler {
    nodes: HashMap<String, Arc<Node>>,
    policies: HashMap<String, Arc<PolicyFacts>>,
}

/// The caches, indexed for one snapshot.
struct Index<'a> {
    now: Time,
    policies: &'a [Arc<PolicyFact>],
    updates: HashMap<&'a str, &'a UpdateFact>,
    pods: HashMap<&'a str, Vec<&'a PodFact>>,
    budgets: HashMap<&'a str, Vec<&'a BudgetFact>>,
    daemon_sets: &'a [Arc<DaemonSetFact>],
    drains: &'a BTreeMap<String, Progress>,
}

/// What the running drain of a node has met. Of several pods that do not go it is the one of which only a person can
/// get rid, else the first that a budget holds.
fn progress_of(progress: &Progress, pods: &mut NodePods) {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    pods.total = Some(count(progress.pods));
    let worst = progress.blocked.iter().min_by_key(|one| (!one.permanent, one.object.is_none(), &one.pod));
    pods.blocked = worst.map(|one| BlockedPod {
        pod: one.pod.clone(),
        why: one.message.clone(),
        budget: one.object.clone(),
        permanent: one.permanent,
        more: count(progress.blocked.len().saturating_sub(1)),
    });
    let waited = progress.waited_for.iter().filter(|(_, waited)| waited.as_secs() > 0).take(NAMED);
    pods.waited = waited.map(|(budget, waited)| (budget.clone(), Duration::from_secs(waited.as_secs()))).collect();
}

impl Assembler {
    /// The snapshot of what is known now.
    pub fn assemble(&mut self, world: &World, outside: Outside<'_>) -> Snapshot {
        let (nodes, pods, updates) = (world.nodes.all(), world.pods.all(), world.updates.all());
        let (budgets, daemon_sets, policies) = (world.budgets.all(), world.daemon_sets.all(), world.policies.all());
        let mut index = Index {
            now: outside.now,
            policies: &policies,
            updates: updates.iter().map(|update| (update.name.as_str(), update.as_ref())).collect(),
            pods: HashMap::new(),
            budgets: HashMap::new(),
            daemon_sets: &daemon_sets,
            drains: outside.drains,
        };
        for pod in pods.iter().filter(|pod| !pod.node.is_empty()) {
            index.pods.entry(&pod.node).or_default().push(pod);
        }
        for budget in &budgets {
            index.budgets.entry(&budget.namespace).or_default().push(budget);
        }

        let mut needed: BTreeMap<String, &BudgetFact> = BTreeMap::new();
        let mut kept = HashMap::with_capacity(nodes.len());
        let assembled: Vec<Arc<Node>> = nodes
            .iter()
            .map(|fact| {
                let node = index.node(fact, &mut needed);
                let shared = match self.nodes.remove(&fact.name) {
                    Some(before) if *before == node => before,
                    _ => Arc::new(node),
                };
                kept.insert(fact.name.clone(), Arc::clone(&shared));
                shared
            })
            .collect();
        self.nodes = kept;
        let disruption_budgets =
            needed.into_iter().map(|(path, budget)| (path, disruption_budget(budget, &pods))).collect();
        Snapshot {
            now: outside.now,
            seed: outside.seed,
            policies: self.policies(&policies, outside.offer),
            nodes: assembled,
            budgets: Arc::new(disruption_budgets),
            freezes: world.freezes.all().iter().map(|freeze| Arc::clone(&freeze.0)).collect(),
            rollbacks: world.rollbacks.all().iter().map(|rollback| Arc::clone(&rollback.0)).collect(),
            gates: outside.gates,
            hooks: world.jobs.all().iter().filter_map(|job| job.run.clone()).collect(),
            ceiling: outside.ceiling,
            operator_node: outside.operator_node,
        }
    }

    fn policies(
        &mut self,
        policies: &[Arc<PolicyFact>],
        offer: &dyn Fn(&Source) -> Arc<Offer>,
    ) -> Vec<Arc<PolicyFacts>> {
        let mut kept = HashMap::with_capacity(policies.len());
        let assembled = policies
            .iter()
            .map(|policy| {
                let mut facts = PolicyFacts {
                    name: policy.name.clone(),
                    uid: policy.uid.clone(),
                    generation: policy.generation,
                    created_at: policy.created_at,
                    labels: policy.labels.clone(),
                    spec: policy.valid.clone(),
                    status: policy.status.clone(),
                    offer: offer(&policy.spec.source),
                };
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

/// One node as the planner sees it, from what the caches hold this instant; what an action's expectations are compared
/// with. The pods are left out: no expectation speaks of them.
#[must_use]
pub fn node_now(world: &World, name: &str) -> Option<Node> {
    let fact = world.nodes.get(&super::Key::cluster(name))?;
    let update = world.updates.get(&super::Key::cluster(name));
    Some(bare(&fact, update.as_deref()))
}

fn bare(fact: &NodeFact, update: Option<&UpdateFact>) -> Node {
    Node {
        name: fact.name.as_str().into(),
        uid: fact.uid.clone(),
        created_at: fact.created_at,
        deleting: fact.deleting,
        labels: fact.labels.clone(),
        ready: fact.ready,
        cordon: fact.cordon.clone(),
        taints: fact.our_taints(),
        boot_id: fact.boot_id.clone(),
        architecture: fact.architecture,
        control_plane: fact.control_plane(),
        etcd: EtcdMember::None,
        update: update.map(|update| update.facts.clone()),
        pods: NodePods::default(),
        daemon_sets: DaemonSets::default(),
    }
}

impl<'a> Index<'a> {
    fn node(&self, fact: &NodeFact, needed: &mut BTreeMap<String, &'a BudgetFact>) -> Node {
        let update = self.updates.get(fact.name.as_str()).copied();
        let pods = self.pods.get(fact.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let mut node = bare(fact, update);
        if node.control_plane {
            node.etcd = etcd(pods);
        }
        if let Some(drain) = self.drain_settings(fact, update) {
            node.pods = self.node_pods(pods, drain, needed);
            if let Some(progress) = self.drains.get(&fact.name) {
                progress_of(progress, &mut node.pods);
            }
            node.daemon_sets = self.daemon_sets(fact, pods);
        }
        node
    }

    /// The settings under which the node would be drained: those of the policy that disrupts it, or else of the first
    /// that selects it. (Where two do, neither touches it.)
    fn drain_settings(&self, fact: &NodeFact, update: Option<&UpdateFact>) -> Option<&'a Drain> {
        let named =
            update.filter(|update| update.facts.spec.disruption.is_some()).map(|update| &update.facts.spec.policy);
        let by_name = named.and_then(|name| self.policies.iter().find(|policy| policy.name == *name));
        by_name
            .or_else(|| self.policies.iter().find(|policy| policy.spec.node_selector.matches(&fact.labels)))
            .map(|policy| &policy.spec.drain)
    }

    fn node_pods(
        &self,
        pods: &[&'a PodFact],
        drain: &Drain,
        needed: &mut BTreeMap<String, &'a BudgetFact>,
    ) -> NodePods {
        let mut facts = NodePods::default();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for pod in pods {
            match judge(pod, drain, self.now.get()) {
                Verdict::Stay(_) => {}
                Verdict::Refuse(refusal) => {
                    if facts.undrainable.len() < NAMED {
                        facts.undrainable.push(UndrainablePod { pod: pod.path(), why: refusal.hint().to_owned() });
                    }
                }
                Verdict::Go => {
                    facts.remaining += 1;
                    let budgets = self.budgets.get(pod.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
                    for budget in budgets.iter().filter(|budget| budget.covers(pod) && budget.is_needed_for(pod)) {
                        *counts.entry(budget.path()).or_default() += 1;
                        needed.entry(budget.path()).or_insert(budget);
                    }
                }
            }
        }
        facts.budgets = counts.into_iter().collect();
        facts
    }

    fn daemon_sets(&self, fact: &NodeFact, pods: &[&PodFact]) -> DaemonSets {
        let mut facts = DaemonSets::default();
        for set in self.daemon_sets.iter().filter(|set| set.belongs_on(fact)) {
            facts.wanted += 1;
            let ready = pods.iter().find(|pod| {
                pod.ready
                    && pod.deletes_at.is_none()
                    && pod.controller.as_ref().is_some_and(|owner| owner.uid == set.uid)
            });
            match ready {
                Some(pod) => {
                    facts.ready += 1;
                    facts.since = facts.since.max(pod.ready_since.map(Time::new));
                }
                None if facts.missing.len() < NAMED => facts.missing.push(set.path()),
                None => {}
            }
        }
        facts
    }
}

/// kubeadm's static pod of etcd carries these labels.
fn etcd(pods: &[&PodFact]) -> EtcdMember {
    let member = pods.iter().find(|pod| {
        pod.namespace == "kube-system" && pod.labels.get("component").is_some_and(|component| component == "etcd")
    });
    match member {
        None => EtcdMember::None,
        Some(pod) if pod.ready => EtcdMember::Healthy,
        Some(_) => EtcdMember::Unhealthy,
    }
}

fn disruption_budget(budget: &BudgetFact, pods: &[Arc<PodFact>]) -> DisruptionBudget {
    let unhealthy = if budget.allowed > 0 {
        Vec::new() // nobody will ask
    } else {
        let unready = pods.iter().filter(|pod| budget.covers(pod) && !pod.ready && !pod.finished);
        unready.take(NAMED).map(|pod| describe(pod)).collect()
    };
    DisruptionBudget {
        allowed: budget.allowed,
        healthy: budget.healthy,
        desired: budget.desired,
        expected: budget.expected,
        unhealthy,
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
