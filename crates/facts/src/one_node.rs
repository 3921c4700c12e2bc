//! One node as the planner sees it, and on what that rests, so that it is made anew only where that changed.

use crate::{
    AttachmentFact, BudgetFact, ClaimFact, DaemonSetFact, DeadlineFact, Key, NodeFact, Place, PodFact, PolicyFact,
    Progress, UpdateFact,
};
use bascule_api::{Drain, Duration, Selector, Time};
use bascule_planner::{
    drain::{Hour, Needed, Space, node_pods, sort},
    snapshot::{BlockedPod, DaemonSetPod, DaemonSets, EtcdMember, Node, NodePods, Unreadable, agent_pod_trouble},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// How many pods a fact names at most, and how many budgets that a drain waited for.
pub(crate) const NAMED: usize = 5;

/// Marks nodes with an etcd member, as k3s, RKE2 and Rancher do.
const ETCD_LABEL: &str = "node-role.kubernetes.io/etcd";

/// What all nodes rest on, beside their own facts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ground {
    policies: Vec<DrainSettings>,
    /// By namespace.
    budgets: HashMap<String, Vec<Arc<BudgetFact>>>,
    daemon_sets: Vec<Arc<DaemonSetFact>>,
    /// The UID of the operator's own pod, where it has to stay with its node.
    own_pod: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct DrainSettings {
    policy: String,
    selector: Selector,
    drain: Drain,
}

impl Ground {
    pub(crate) fn new(
        policies: &[Arc<PolicyFact>],
        budgets: &[Arc<BudgetFact>],
        daemon_sets: Vec<Arc<DaemonSetFact>>,
        own_pod: Option<String>,
    ) -> Self {
        let settings = policies.iter().map(|policy| DrainSettings {
            policy: policy.name.clone(),
            selector: policy.spec.node_selector.clone(),
            drain: policy.spec.drain.clone(),
        });
        let mut by_namespace: HashMap<String, Vec<Arc<BudgetFact>>> = HashMap::new();
        for budget in budgets {
            by_namespace.entry(budget.namespace.clone()).or_default().push(Arc::clone(budget));
        }
        Self { policies: settings.collect(), budgets: by_namespace, daemon_sets, own_pod }
    }

    /// Whether nodes that were made on another ground would be the same on this one. How much a budget allows is not part
    /// of a node.
    pub(crate) fn carries(&self, other: &Self) -> bool {
        let same = |(one, two): (&Arc<BudgetFact>, &Arc<BudgetFact>)| Arc::ptr_eq(one, two) || one.needs_the_same(two);
        self.policies == other.policies
            && self.daemon_sets == other.daemon_sets
            && self.own_pod == other.own_pod
            && self.budgets.len() == other.budgets.len()
            && self.budgets.iter().all(|(namespace, budgets)| {
                let others = other.budgets.get(namespace).map(Vec::as_slice).unwrap_or_default();
                budgets.len() == others.len() && budgets.iter().zip(others).all(same)
            })
    }
}

/// What is looked up by its key, as it is known now.
pub trait LookUp {
    /// A pod.
    fn pod(&self, key: &Key) -> Option<Arc<PodFact>>;
    /// The pods that are neither ready nor finished.
    fn unready_pods(&self) -> Vec<Arc<PodFact>>;
    /// The deadline of a Job.
    fn deadline(&self, key: &Key) -> Option<Arc<DeadlineFact>>;
    /// A PersistentVolumeClaim.
    fn claim(&self, key: &Key) -> Option<Arc<ClaimFact>>;
}

/// What one node rests on.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The Node.
    pub node: Arc<NodeFact>,
    /// Its NodeUpdate, as far as it can be read.
    pub update: Option<Arc<UpdateFact>>,
    /// The NodeUpdate that went in the middle of a disruption, until there is a new one.
    pub earlier: Option<Arc<UpdateFact>>,
    /// What is said of its NodeUpdate, or of its Node, where that can't be read as it is now.
    pub unreadable: Option<Arc<Unreadable>>,
    /// The pods on it.
    pub pods: Place<PodFact>,
    /// The volumes that are attached to it.
    pub attachments: Place<AttachmentFact>,
    /// How far its drain is, where one runs.
    pub drain: Option<Progress>,
}

impl NodeFacts {
    /// Whether these are the very same, and stay it whatever time it is.
    pub(crate) fn hold(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<UpdateFact>>, two: &Option<Arc<UpdateFact>>| match (one, two) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        same(&self.update, &other.update)
            && same(&self.earlier, &other.earlier)
            && self.unreadable == other.unreadable
            && Arc::ptr_eq(&self.node, &other.node)
            && Arc::ptr_eq(&self.pods, &other.pods)
            && (Arc::ptr_eq(&self.attachments, &other.attachments) || self.attachments == other.attachments)
            && self.drain == other.drain
            // One that is being deleted stops counting at some time.
            && self.pods.values().all(|pod| pod.deletes_at.is_none())
    }

    /// The node.
    pub(crate) fn node(&self, ground: &Ground, known: &dyn LookUp, now: Time) -> Node {
        let mut node = bare_node(&self.node, self.update.as_deref());
        node.earlier = self.earlier.as_ref().map(|earlier| Arc::new(earlier.facts.spec.clone()));
        node.unreadable.clone_from(&self.unreadable);
        node.etcd = etcd(&self.node, &self.pods);
        node.space = self.node.space(self.pods.values().map(|pod| &**pod));
        node.agent_trouble = agent_pod_trouble(self.pods.values().map(|pod| &**pod), node.architecture);
        if let Some(drain) = self.drain_settings(ground) {
            node.pods = self.pods_under(drain, ground, known, now);
            if self.drain_began().is_some() {
                let (attached, stuck) = self.attached(drain, known, ground, now);
                (node.pods.attached, node.pods.stuck) = (attached, stuck);
            }
            if let Some(progress) = &self.drain {
                progress_of(progress, &mut node.pods);
            }
            node.daemon_sets = self.daemon_sets(ground);
        }
        node
    }

    /// The settings under which the node would be drained: those of the policy that disrupts it, or else of the first
    /// that selects it. (Where two do, neither touches it.)
    fn drain_settings<'a>(&self, ground: &'a Ground) -> Option<&'a Drain> {
        let disrupted = self.update.as_ref().filter(|update| update.facts.spec.disruption.is_some());
        let by_name = disrupted
            .and_then(|update| ground.policies.iter().find(|settings| settings.policy == update.facts.spec.policy));
        let selects = |settings: &&DrainSettings| settings.selector.matches(&self.node.labels);
        by_name.or_else(|| ground.policies.iter().find(selects)).map(|settings| &settings.drain)
    }

    /// Some of the volumes that are attached to the node and that no pod which stays there uses, and some of those of which
    /// the same was so before the drain.
    fn attached(&self, drain: &Drain, known: &dyn LookUp, ground: &Ground, now: Time) -> (Vec<String>, Vec<String>) {
        if self.attachments.is_empty() {
            return Default::default();
        }
        let none = BTreeSet::new();
        let hour = self.hour(ground, &none, now);
        let pods = || self.pods.values().map(|pod| &**pod);
        let leaving: BTreeSet<String> = sort(pods(), drain, &hour).leaving().map(|pod| pod.uid.clone()).collect();
        let staying = pods().filter(|pod| !leaving.contains(&pod.uid));
        let used = staying.flat_map(|pod| {
            let key = |claim: &String| Key { namespace: pod.namespace.clone(), name: claim.clone() };
            pod.claims.iter().filter_map(move |claim| known.claim(&key(claim))).map(|claim| claim.volume.clone())
        });
        let used: BTreeSet<String> = used.collect();
        let begun = self.drain_began().map(Time::new);
        let (mut attached, mut stuck) = (BTreeSet::new(), BTreeSet::new());
        for attachment in self.attachments.values().filter(|attachment| !used.contains(&attachment.volume)) {
            let before = begun.is_some_and(|begun| attachment.was_stuck_before(begun, drain.volume_detach_timeout));
            if before { &mut stuck } else { &mut attached }.insert(attachment.volume.clone());
        }
        let some = |volumes: BTreeSet<String>| volumes.into_iter().take(NAMED).collect();
        (some(attached), some(stuck))
    }

    fn hour<'a>(&'a self, ground: &'a Ground, none: &'a BTreeSet<String>, now: Time) -> Hour<'a> {
        Hour {
            now: now.get(),
            begun: self.drain_began(),
            given_up: self.drain.as_ref().map_or(none, |drain| &drain.given_up),
            own: ground.own_pod.as_deref(),
        }
    }

    fn pods_under(&self, drain: &Drain, ground: &Ground, known: &dyn LookUp, now: Time) -> NodePods {
        let none = BTreeSet::new();
        let hour = self.hour(ground, &none, now);
        let needs = |pod: &PodFact| -> Vec<Needed> {
            let budgets = ground.budgets.get(&pod.namespace).map(Vec::as_slice).unwrap_or_default();
            let needed = budgets.iter().filter(|budget| budget.covers(pod) && budget.is_needed_for(pod));
            needed.map(|budget| (budget.path(), budget.opens_after_cordon)).collect()
        };
        let job_ends_by = |pod: &PodFact| {
            let job = pod.job()?;
            let deadline = known.deadline(&Key { namespace: pod.namespace.clone(), name: job.name.clone() });
            deadline.filter(|deadline| deadline.uid == job.uid)?.ends_by
        };
        node_pods(self.pods.values().map(|pod| &**pod), drain, &hour, needs, job_ends_by)
    }

    fn drain_began(&self) -> Option<chrono::DateTime<chrono::Utc>> {
        let disruption = self.update.as_ref()?.facts.spec.disruption.as_ref()?;
        disruption.drain_started_at.map(Time::get)
    }

    fn daemon_sets(&self, ground: &Ground) -> DaemonSets {
        let sets = ground.daemon_sets.iter().filter(|set| set.belongs_on(&self.node));
        let pods = sets.map(|set| {
            let of_set = |pod: &&Arc<PodFact>| pod.controller.as_ref().is_some_and(|owner| owner.uid == set.uid);
            let is_ready = |pod: &&Arc<PodFact>| pod.ready && pod.deletes_at.is_none();
            let ready = self.pods.values().filter(of_set).find(is_ready);
            let shown = ready.or_else(|| self.pods.values().find(of_set));
            DaemonSetPod {
                set: set.path().into(),
                ready: ready.is_some(),
                since: shown.and_then(|pod| pod.ready_since).map(Time::new),
            }
        });
        DaemonSets(pods.collect())
    }
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

/// The etcd member on a node: its pod, which kubeadm, RKE2 and others label so wherever it runs, or else what the label of
/// the node's role says. A member that is no pod (k3s, Talos) is taken for as healthy as its node is Ready.
fn etcd(node: &NodeFact, pods: &Place<PodFact>) -> EtcdMember {
    let is_etcd = |pod: &&Arc<PodFact>| {
        pod.namespace == "kube-system" && pod.labels.get("component").is_some_and(|component| component == "etcd")
    };
    let mut members = pods.values().filter(is_etcd).map(|pod| pod.ready).peekable();
    let healthy = match members.peek() {
        Some(_) => members.any(|ready| ready),
        None if node.labels.get(ETCD_LABEL).is_some_and(|label| label != "false") => node.ready.ready,
        None => return EtcdMember::None,
    };
    if healthy { EtcdMember::Healthy } else { EtcdMember::Unhealthy }
}

/// One node without what runs on it, and what is said of it beside.
#[must_use]
pub fn bare_node(fact: &NodeFact, update: Option<&UpdateFact>) -> Node {
    Node {
        name: fact.name.as_str().into(),
        uid: fact.uid.clone(),
        created_at: fact.created_at,
        deleting: fact.deleting,
        labels: fact.labels.clone(),
        ready: fact.ready,
        cordon: fact.cordon.clone(),
        taints: fact.our_taints(),
        truce: fact.truce(),
        leaving: fact.leaving(),
        excluded: fact.excluded(),
        space: Space::default(),
        boot_id: fact.boot_id.clone(),
        boot_seen: fact.boot_seen,
        back_seen: back_seen(fact, update),
        architecture: fact.architecture,
        control_plane: fact.control_plane(),
        etcd: EtcdMember::None,
        update: update.map(|update| update.facts.clone()),
        earlier: None,
        pods: NodePods::default(),
        daemon_sets: DaemonSets::default(),
        agent_trouble: None,
        unreadable: None,
        read_again: update.and_then(|update| update.read_again).max(fact.read_again),
    }
}

/// When the machine was first seen back in its present boot. Either of kubelet and agent may speak first; while they speak of two
/// boots, the one that was seen later is the present one.
fn back_seen(fact: &NodeFact, update: Option<&UpdateFact>) -> Time {
    match update {
        Some(update) if update.facts.status.boot_id.as_deref() == Some(fact.boot_id.as_str()) => {
            fact.boot_seen.min(update.boot_seen)
        }
        Some(update) => fact.boot_seen.max(update.boot_seen),
        None => fact.boot_seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fact as _;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn an_etcd_member_is_known_by_its_pod_or_by_its_nodes_role() {
        let node = |labels: serde_json::Value, ready: &str| {
            let raw = json!({
                "metadata": {"name": "n1", "labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}
            });
            NodeFact::of(&serde_json::from_value(raw).unwrap())
        };
        let pod = |namespace: &str, ready: &str| {
            let raw = json!({
                "metadata": {"name": "etcd-n1", "namespace": namespace, "labels": {"component": "etcd"}},
                "spec": {"nodeName": "n1", "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
            });
            let fact = PodFact::of(&serde_json::from_value(raw).unwrap());
            let key = Key { namespace: namespace.to_owned(), name: "etcd-n1".to_owned() };
            Place::new(BTreeMap::from([(Arc::new(key), Arc::new(fact))]))
        };
        let (none, role) = (json!({}), json!({"node-role.kubernetes.io/etcd": "true"}));
        for (node, pods, wanted) in [
            (node(none.clone(), "True"), Place::default(), EtcdMember::None),
            (node(none.clone(), "True"), pod("kube-system", "True"), EtcdMember::Healthy),
            (node(role.clone(), "True"), pod("kube-system", "False"), EtcdMember::Unhealthy),
            (node(none, "True"), pod("shop", "True"), EtcdMember::None),
            (node(role.clone(), "True"), Place::default(), EtcdMember::Healthy),
            (node(role, "False"), Place::default(), EtcdMember::Unhealthy),
        ] {
            assert_eq!(etcd(&node, &pods), wanted);
        }
    }

    /// What an agent says late must not begin the soak anew: its guard counts on.
    #[test]
    fn a_machine_is_back_when_the_first_of_kubelet_and_agent_speaks_from_its_boot() {
        let at = |second: i64| Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap());
        let kubelet = |boot: &str, seen: i64| {
            let mut fact = NodeFact::of(&serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap());
            (fact.boot_id, fact.boot_seen) = (boot.to_owned(), at(seen));
            fact
        };
        let agent = |boot: Option<&str>, seen: i64| {
            let raw = json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n1"},
                "spec": {"policy": "workers"}, "status": {"bootID": boot}
            });
            let mut fact = UpdateFact::of(&serde_json::from_value(raw).unwrap());
            fact.boot_seen = at(seen);
            Some(fact)
        };
        for (what, kubelet, agent, boot_seen, back_seen) in [
            ("the agent alone has spoken", kubelet("old", 5), agent(Some("new"), 20), 5, 20),
            ("the kubelet alone has spoken", kubelet("new", 20), agent(Some("old"), 7), 20, 20),
            ("the agent was first", kubelet("new", 30), agent(Some("new"), 20), 30, 20),
            ("the kubelet was first", kubelet("new", 20), agent(Some("new"), 600), 20, 20),
            ("the agent has never spoken", kubelet("new", 20), agent(None, 7), 20, 20),
            ("there is no agent", kubelet("new", 20), None, 20, 20),
        ] {
            let node = bare_node(&kubelet, agent.as_ref());
            assert_eq!((node.boot_seen, node.back_seen), (at(boot_seen), at(back_seen)), "{what}");
        }
    }
}
