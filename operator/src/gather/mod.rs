//! Everything the operator knows of the cluster: one bounded cache for each kind it watches.

mod api_servers;
mod cache;
mod catch_up;
mod sent;
mod snapshot;
mod state;
mod watch;

pub use api_servers::ApiServers;
pub use bascule_facts::{
    AttachmentFact, BudgetFact, ClaimFact, DaemonSetFact, DeadlineFact, EXCLUDE_LABEL, EXCLUDED_BY_US, FreezeFact,
    MAINTENANCE_CONDITIONS, NodeFact, PodFact, PolicyFact, RollbackFact, TruceNote, UpdateFact,
    hook::{After, HOOK_LABEL, JobFact},
};
pub use cache::{Cache, Fact, Key, Place};
pub use catch_up::CatchUpError;
pub use snapshot::{Assembler, Outside, node_now};

use crate::{clock::Clock, drain::PodSource, metrics::Metrics};
use bascule_api::{ObjectRef, UpdatePolicySpec};
use bascule_planner::{PolicyError, PolicyErrorKind, ValidPolicy, snapshot::Unreadable};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{Api, Client, runtime::watcher};
use std::{fmt::Debug, sync::Arc};
use tokio::task::JoinSet;

/// The label that all replicas of the operator carry (manifests/operator/deployment.yaml).
const APP_LABEL: &str = "app.kubernetes.io/name";

/// The caches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caches {
    /// Nodes.
    pub nodes: Cache<NodeFact>,
    /// NodeUpdates.
    pub updates: Cache<UpdateFact>,
    /// UpdatePolicies.
    pub policies: Cache<PolicyFact>,
    /// Freezes.
    pub freezes: Cache<FreezeFact>,
    /// Rollbacks.
    pub rollbacks: Cache<RollbackFact>,
    /// Pods.
    pub pods: Cache<PodFact>,
    /// PodDisruptionBudgets.
    pub budgets: Cache<BudgetFact>,
    /// DaemonSets.
    pub daemon_sets: Cache<DaemonSetFact>,
    /// The Jobs of hooks.
    pub jobs: Cache<JobFact>,
    /// The deadlines of all other Jobs.
    pub deadlines: Cache<DeadlineFact>,
    /// VolumeAttachments.
    pub attachments: Cache<AttachmentFact>,
    /// PersistentVolumeClaims.
    pub claims: Cache<ClaimFact>,
    /// The versions of the API servers, and their time.
    pub api_servers: ApiServers,
    changes: Arc<tokio::sync::watch::Sender<u64>>,
    /// Told of pods and budgets alone: drains look at nothing else, and there are many of them.
    pod_changes: Arc<tokio::sync::watch::Sender<u64>>,
    /// Told when another object can't be read, or one can be again.
    noted: Arc<tokio::sync::watch::Sender<u64>>,
}

impl Caches {
    /// Empty caches that tell `changes`.
    #[must_use]
    pub fn new(changes: Arc<tokio::sync::watch::Sender<u64>>, clock: &Clock) -> Self {
        let pod_changes = Arc::new(tokio::sync::watch::Sender::new(0));
        let noted = Arc::new(tokio::sync::watch::Sender::new(0));
        Self {
            nodes: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            updates: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            policies: Cache::new([Arc::clone(&changes)], clock).noting(&noted).validating(validate),
            freezes: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            rollbacks: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            pods: Cache::new([Arc::clone(&changes), Arc::clone(&pod_changes)], clock).noting(&noted),
            budgets: Cache::new([Arc::clone(&changes), Arc::clone(&pod_changes)], clock).noting(&noted),
            daemon_sets: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            jobs: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            attachments: Cache::new([Arc::clone(&changes)], clock).noting(&noted),
            // Looked up when something else changed.
            claims: Cache::new([], clock).noting(&noted).awaited_by(&changes),
            deadlines: Cache::new([], clock).noting(&noted).awaited_by(&changes),
            api_servers: ApiServers::new(clock),
            changes,
            pod_changes,
            noted,
        }
    }

    /// With API servers that were asked before.
    #[must_use]
    pub fn with_api_servers(self, api_servers: ApiServers) -> Self {
        Self { api_servers, ..self }
    }

    /// Starts the watches. They end when the returned set is dropped. API servers are asked for their version with a client that
    /// nobody else uses.
    #[must_use]
    pub fn watch(&self, client: &Client, versions: Client, metrics: &Metrics) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        spawn(&mut tasks, client, &self.nodes, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.updates, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.policies, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.freezes, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.rollbacks, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.pods, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.budgets, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.daemon_sets, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.jobs, watcher::Config::default().labels(HOOK_LABEL), metrics);
        let others = format!("!{HOOK_LABEL}");
        spawn(&mut tasks, client, &self.deadlines, watcher::Config::default().labels(&others), metrics);
        spawn(&mut tasks, client, &self.attachments, watcher::Config::default(), metrics);
        spawn(&mut tasks, client, &self.claims, watcher::Config::default(), metrics);
        tasks.spawn(self.api_servers.clone().keep_asking(versions, metrics.clone(), Arc::clone(&self.changes)));
        tasks
    }

    /// Told whenever anything changes.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Told whenever another object can't be read, or one can be again.
    #[must_use]
    pub fn noted(&self) -> tokio::sync::watch::Receiver<u64> {
        self.noted.subscribe()
    }

    /// The objects that can't be read as they are now.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Unreadable> {
        [
            self.nodes.all_unreadable(),
            self.updates.all_unreadable(),
            self.policies.all_unreadable(),
            self.freezes.all_unreadable(),
            self.rollbacks.all_unreadable(),
            self.pods.all_unreadable(),
            self.budgets.all_unreadable(),
            self.daemon_sets.all_unreadable(),
            self.jobs.all_unreadable(),
            self.deadlines.all_unreadable(),
            self.attachments.all_unreadable(),
            self.claims.all_unreadable(),
        ]
        .concat()
    }

    /// The kinds whose first list is not complete.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("Node", self.nodes.is_synced()),
            ("NodeUpdate", self.updates.is_synced()),
            ("UpdatePolicy", self.policies.is_synced()),
            ("Freeze", self.freezes.is_synced()),
            ("Rollback", self.rollbacks.is_synced()),
            ("Pod", self.pods.is_synced()),
            ("PodDisruptionBudget", self.budgets.is_synced()),
            ("DaemonSet", self.daemon_sets.is_synced()),
            ("Job", self.jobs.is_synced() && self.deadlines.is_synced()),
            ("VolumeAttachment", self.attachments.is_synced()),
            ("PersistentVolumeClaim", self.claims.is_synced()),
        ]
        .into_iter()
        .filter_map(|(kind, synced)| (!synced).then_some(kind))
        .collect()
    }
}

/// The planner's validation, and what only the language itself can say: that the expressions of object gates can be parsed, and
/// which of them ask about a node.
fn validate(spec: &UpdatePolicySpec) -> Result<ValidPolicy, PolicyError> {
    let mut valid = bascule_planner::validate_with(spec, crate::zones::current())?;
    for (index, gate) in spec.health.gates.iter().enumerate() {
        if let Some(object) = &gate.object {
            let about_node = crate::health::check_expression(&object.cel).map_err(|why| {
                PolicyError::new(format!("spec.health.gates[{index}].object.cel"), PolicyErrorKind::Expression(why))
            })?;
            if let Some(name) = valid.gates.get_mut(index) {
                name.per_node = about_node;
            }
        }
    }
    Ok(valid)
}

fn spawn<T>(tasks: &mut JoinSet<()>, client: &Client, cache: &Cache<T>, config: watcher::Config, metrics: &Metrics)
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Send + 'static,
{
    tasks.spawn(watch::run(Api::all(client.clone()), config, cache.clone(), metrics.clone()));
}

impl PodSource for Caches {
    fn on_node(&self, node: &str) -> Vec<Arc<PodFact>> {
        self.pods.of_place(node).values().cloned().collect()
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.pod_changes.subscribe()
    }

    fn allows(&self, budget: &ObjectRef) -> Option<bool> {
        let key = Key { namespace: budget.namespace.clone().unwrap_or_default(), name: budget.name.clone() };
        self.budgets.get(&key).map(|budget| budget.allowed > 0)
    }

    fn own_pod_that_stays(&self, namespace: &str, name: &str) -> Option<String> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let own = self.pods.get(&key).filter(|pod| !pod.node.is_empty())?;
        // Another node that takes pods; what it would tolerate is not looked into: who stays comes back with its node.
        let open = |node: &NodeFact| {
            node.name != own.node
                && node.ready.ready
                && !node.deleting
                && !node.cordon.is_cordoned()
                && node.taints.iter().all(|taint| taint.effect == "PreferNoSchedule")
        };
        if self.nodes.any(open) {
            return None;
        }
        let app = own.labels.get(APP_LABEL);
        let ready = |node: &str| self.nodes.get(&Key::cluster(node)).is_some_and(|node| node.ready.ready);
        let leads = |pod: &PodFact| {
            pod.ready
                && pod.deletes_at.is_none()
                && pod.namespace == own.namespace
                && pod.node != own.node
                && app.is_some()
                && pod.labels.get(APP_LABEL) == app
                && ready(&pod.node)
        };
        (!self.pods.any(leads)).then(|| own.uid.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn object<T: serde::de::DeserializeOwned>(mut value: Value) -> Event<T> {
        value["metadata"]["resourceVersion"] = json!("1");
        Event::Apply(serde_json::from_value(value).unwrap())
    }

    /// A world with these nodes (their name, whether they are Ready, and cordoned) and pods (their name, node and app, whether they are
    /// ready, and being deleted).
    fn world(nodes: &[(&str, bool, bool)], pods: &[(&str, &str, &str, bool, bool)]) -> Caches {
        let world = Caches::new(Arc::new(tokio::sync::watch::Sender::new(0)), &Clock::system());
        let ready = |ready: bool| json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
        for (name, is_ready, cordoned) in nodes {
            world.nodes.apply(&object(json!({
                "metadata": {"name": name}, "spec": {"unschedulable": cordoned}, "status": {"conditions": ready(*is_ready)}
            })));
        }
        for (name, node, app, is_ready, goes) in pods {
            let mut pod = json!({
                "metadata": {"name": name, "namespace": "bascule-system", "uid": name, "labels": {APP_LABEL: app}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": ready(*is_ready)},
            });
            if *goes {
                pod["metadata"]["deletionTimestamp"] = json!("2026-11-30T12:00:00Z");
            }
            world.pods.apply(&object(pod));
        }
        world
    }

    #[test]
    fn the_operators_own_pod_stays_where_it_has_nowhere_to_go_and_nobody_else_leads() {
        let own = ("op-0", "n1", "op", true, false);
        let (one, open, closed) = (("n1", true, false), ("n2", true, false), ("n2", true, true));
        for (what, nodes, other, stays) in [
            ("one node, one replica", vec![one], None, true),
            ("one node, two replicas", vec![one], Some(("op-1", "n1", "op", true, false)), true),
            ("another node takes it", vec![one, open], None, false),
            (
                "another node that is away",
                vec![one, ("n2", false, false)],
                Some(("op-1", "n2", "op", true, false)),
                true,
            ),
            (
                "a replica leads on a node that is closed",
                vec![one, closed],
                Some(("op-1", "n2", "op", true, false)),
                false,
            ),
            (
                "a replica that only begins, as in a rollout",
                vec![one, closed],
                Some(("op-1", "n2", "op", false, false)),
                true,
            ),
            ("a replica that goes, as in a rollout", vec![one, closed], Some(("op-1", "n2", "op", true, true)), true),
            ("somebody else's pod", vec![one, closed], Some(("web-1", "n2", "web", true, false)), true),
        ] {
            let pods: Vec<_> = std::iter::once(own).chain(other).collect();
            let found = world(&nodes, &pods).own_pod_that_stays("bascule-system", "op-0");
            assert_eq!(found.as_deref(), stays.then_some("op-0"), "{what}");
        }
        assert_eq!(world(&[one], &[]).own_pod_that_stays("bascule-system", "op-0"), None);
        let pending = world(&[one], &[("op-0", "", "op", false, false)]);
        assert_eq!(pending.own_pod_that_stays("bascule-system", "op-0"), None);
    }

    /// A gate about the cluster that is taken for one about the node blames the release at once.
    #[test]
    fn which_gates_ask_about_a_node_is_a_question_to_the_language() {
        let gate = |name: &str, cel: &str| serde_json::json!({"name": name, "object": {"apiVersion": "v1", "kind": "Pod", "cel": cel}});
        let spec: UpdatePolicySpec = serde_json::from_value(serde_json::json!({
            "nodeSelector": {}, "source": {"repository": "https://images.example.com/os", "channel": "stable"},
            "health": {"gates": [
                gate("ci", "// don't reboot under a build\nobject.spec.nodeName != node"),
                gate("nodes", "object.status.nodes.all(node, node.ready)"),
            ]},
        }))
        .unwrap();
        let valid = validate(&spec).unwrap();
        let gates: Vec<_> = valid.gates.iter().map(|gate| (gate.name.as_str(), gate.per_node)).collect();
        assert_eq!(gates, [("ci", true), ("nodes", false)]);
    }
}
