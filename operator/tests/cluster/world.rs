//! A cluster with nodes, a repository and operators, for one test each.

use crate::agent::{self, Habit};
use crate::proxy::Proxy;
use bascule_api::{NodeUpdate, RolloutState, UpdatePolicy, WaitReason};
use bascule_operator::{clock::Clock, run::run, settings::Settings};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::https::HttpsServer;
use bascule_tests::kubelet::KubeletHost;
use bascule_tests::vendor::Vendor;
use bascule_tests::workload;
use chrono::TimeDelta;
use clap::Parser as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine; a wait that ends this way is a failure.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long Kubernetes holds an eviction against a budget whose pod is not deleted (`pkg/controller/disruption`,
/// `DeletionTimeout`).
const LOST_EVICTION: Duration = Duration::from_secs(120);

/// What the owner of the namespace default does who lets hooks run there.
pub const HOOKS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: bascule-hooks, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bascule-hooks}
subjects: [{kind: ServiceAccount, name: bascule-operator, namespace: bascule-system}]
";

pub struct Cluster {
    pub control_plane: ControlPlane,
    pub client: Client,
    /// Signs what the server shows.
    pub vendor: Vendor,
    pub server: HttpsServer,
    files: tempfile::TempDir,
    machines: BTreeMap<String, JoinHandle<()>>,
}

/// A running operator. Dropping it is a crash.
pub struct Operator {
    task: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
    pub listen: String,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Operator {
    /// Stops it as a SIGTERM does.
    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        (&mut self.task).await.unwrap();
    }

    /// Kills it; the Lease is not given back.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Cluster {
    /// A cluster with the manifests, and a repository with releases 1.0 and 1.1 that is valid now.
    pub async fn new() -> Self {
        Self::installed(async |control_plane, vendor| {
            bascule::install(control_plane, bascule::MANIFESTS).await.unwrap();
            bascule::trust(&control_plane.client().await.unwrap(), vendor).await;
        })
        .await
    }

    /// The same with manifests, and the root of trust among them, that somebody else applies.
    pub async fn installed(install: impl AsyncFnOnce(&ControlPlane, &Vendor)) -> Self {
        bascule_tests::install_tls_provider();
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        let (vendor, server) = bascule::repository().await;
        install(&control_plane, &vendor).await;
        bascule::install(&control_plane, &["components/host-agent/rbac.yaml"]).await.unwrap();
        control_plane.apply(HOOKS).await.unwrap();
        let client = control_plane.client().await.unwrap();
        let files = tempfile::tempdir().unwrap();
        Self { control_plane, client, vendor, server, files, machines: BTreeMap::new() }
    }

    /// Adds a machine that runs 1.0, and waits until pods are placed on it. Where its Node is there already, it is left with
    /// the labels that it has.
    pub async fn machine(&mut self, node: &str, zone: &str, habit: Habit) {
        let mut machine = KubeletHost::named(node, zone);
        machine.labels.insert("role".to_owned(), "worker".to_owned());
        let kubelet = self.control_plane.kubelet(node).unwrap().client().await.unwrap();
        let run = agent::run(kubelet.clone(), kubelet, machine, "1.0", habit);
        self.machines.insert(node.to_owned(), tokio::spawn(run));
        self.until_node(node, "ready for pods", ready_for_pods).await;
    }

    /// The machine's power goes, for ever.
    pub fn power_off(&mut self, node: &str) {
        self.machines.remove(node).unwrap().abort();
    }

    /// A policy over all workers, with more fields of its spec.
    pub async fn policy(&self, name: &str, more: serde_json::Value) -> UpdatePolicy {
        let mut spec = serde_json::json!({
            "nodeSelector": {"matchLabels": {"role": "worker"}},
            "source": {"repository": self.server.url(), "channel": "stable", "pollInterval": "10s"},
            "provenAfter": "0s",
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let policy: UpdatePolicy = serde_json::from_value(serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap();
        let policies: Api<UpdatePolicy> = Api::all(self.client.clone());
        policies.create(&PostParams::default(), &policy).await.unwrap()
    }

    /// Changes fields of a policy's spec.
    pub async fn change_policy(&self, name: &str, spec: serde_json::Value) {
        let policies: Api<UpdatePolicy> = Api::all(self.client.clone());
        let change = serde_json::json!({"spec": spec});
        policies.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    }

    /// A NodeUpdate as it stands.
    pub async fn update(&self, node: &str) -> NodeUpdate {
        Api::all(self.client.clone()).get(node).await.unwrap()
    }

    /// Starts the shop, and waits until all of it is ready.
    pub async fn shop(&self, replicas: usize) {
        self.control_plane.apply(&workload::shop(replicas)).await.unwrap();
        let count = i32::try_from(replicas).unwrap();
        assert!(workload::until_ready(&self.client, "shop", count, PATIENCE).await, "the shop never was ready");
    }

    /// Waits until the drain of a node waits for the shop's budget, as it does where no other node takes the pods of the shop.
    pub async fn until_the_shop_holds(&self, node: &str) {
        let holds = |update: Option<&NodeUpdate>| {
            let rollout = update.and_then(|update| update.status.as_ref()?.rollout.as_ref());
            rollout.is_some_and(|one| one.state == RolloutState::Draining && one.reason == WaitReason::DisruptionBudget)
        };
        self.until_update(node, "held by the shop's budget", holds).await;
    }

    /// A person deletes what is left of the shop on a node.
    pub async fn clear_of_the_shop(&self, node: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let there = ListParams::default().labels("app=shop").fields(&format!("spec.nodeName={node}"));
        for pod in pods.list(&there).await.unwrap() {
            // What was evicted may have gone meanwhile.
            let _ = pods.delete(pod.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await;
        }
    }

    /// Waits until a pod of an app is ready on a node.
    pub async fn until_ready_on(&self, app: &str, node: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let there = ListParams::default().labels(&format!("app={app}")).fields(&format!("spec.nodeName={node}"));
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        let runs = async || pods.list(&there).await.unwrap().iter().any(ready);
        self.eventually(&format!("{app} is ready on {node}"), runs).await;
    }

    /// Starts an operator with the rights that the manifests give it.
    pub async fn operator(&self, identity: &str) -> Operator {
        self.operator_with(identity, None, &[]).await
    }

    /// The same with more arguments, and with another way to the API server.
    pub async fn operator_with(&self, identity: &str, server: Option<&str>, more: &[&str]) -> Operator {
        self.operator_by(Clock::system(), identity, server, more).await
    }

    /// An operator that comes so much later, by its own clock and the API server's.
    pub async fn operator_later(&self, identity: &str, by: TimeDelta) -> Operator {
        let proxy = Proxy::later(&self.control_plane, by).await;
        self.operator_by(ahead(by), identity, Some(&proxy.url), &[]).await
    }

    /// An operator whose clock is so far ahead of the API server's.
    pub async fn operator_ahead(&self, identity: &str, by: TimeDelta) -> Operator {
        self.operator_by(ahead(by), identity, None, &[]).await
    }

    async fn operator_by(&self, clock: Clock, identity: &str, server: Option<&str>, more: &[&str]) -> Operator {
        let launch = bascule::launch(&self.control_plane, &self.server, self.files.path(), identity, server).await;
        let own =
            ["bascule-operator", "--lease-seconds=5"].into_iter().chain(launch.arguments.iter().map(String::as_str));
        let settings = Settings::parse_from(own.chain(more.iter().copied()));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            run(settings, clock, stopped).await.unwrap();
        });
        Operator { task, stop: Some(stop), listen: launch.listen }
    }

    /// Waits for a node.
    pub async fn until_node(&self, name: &str, what: &str, holds: impl Fn(Option<&Node>) -> bool + Send) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        self.until(nodes, name, what, holds).await;
    }

    /// Waits for a NodeUpdate.
    pub async fn until_update(&self, name: &str, what: &str, holds: impl Fn(Option<&NodeUpdate>) -> bool + Send) {
        let updates: Api<NodeUpdate> = Api::all(self.client.clone());
        self.until(updates, name, what, holds).await;
    }

    /// Waits until a node's explanation names a reason.
    pub async fn until_reason(&self, name: &str, reason: WaitReason) {
        let holds = move |update: Option<&NodeUpdate>| {
            update.and_then(|update| update.status.as_ref()?.rollout.as_ref()).is_some_and(|one| one.reason == reason)
        };
        self.until_update(name, reason.as_str(), holds).await;
    }

    /// Waits until the explanation of one of these nodes names a reason.
    pub async fn until_reason_of_any(&self, names: &[&str], reason: WaitReason) {
        let updates: Api<NodeUpdate> = Api::all(self.client.clone());
        let named = async || {
            let all = updates.list(&ListParams::default()).await.unwrap().items;
            all.iter().any(|update| {
                let rollout = update.status.as_ref().and_then(|status| status.rollout.as_ref());
                let name = update.metadata.name.as_deref().unwrap_or_default();
                names.contains(&name) && rollout.is_some_and(|one| one.reason == reason)
            })
        };
        self.eventually(reason.as_str(), named).await;
    }

    /// Waits until a node's explanation names a reason and contains a text.
    pub async fn until_message(&self, name: &str, reason: WaitReason, part: &str) {
        let holds = move |update: Option<&NodeUpdate>| {
            let rollout = update.and_then(|update| update.status.as_ref()?.rollout.as_ref());
            rollout.is_some_and(|one| one.reason == reason && one.message.contains(part))
        };
        self.until_update(name, part, holds).await;
    }

    /// Waits until a node runs a release, committed and at rest.
    pub async fn until_current(&self, name: &str, version: &str) {
        let version = version.to_owned();
        let holds = move |update: Option<&NodeUpdate>| {
            let Some(update) = update else { return false };
            let Some(status) = &update.status else { return false };
            let booted = status.booted.as_ref().is_some_and(|booted| booted.version.as_str() == version);
            let rests = status.rollout.as_ref().is_some_and(|one| one.state == RolloutState::Current);
            booted && rests && update.spec.disruption.is_none()
        };
        self.until_update(name, "current", holds).await;
    }

    /// Waits for an object, and tells everything about the nodes if it does not come.
    pub async fn until<K>(&self, api: Api<K>, name: &str, what: &str, holds: impl Fn(Option<&K>) -> bool + Send)
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
    {
        let waited =
            tokio::time::timeout(PATIENCE, await_condition(api, name, move |object: Option<&K>| holds(object)));
        if waited.await.is_err() {
            panic!("{name} never was {what}\n{}", self.story().await);
        }
    }

    /// Waits until the shop's budget counts no eviction whose pod is still there. One whose client died in its middle stays
    /// in `disruptedPods`, and nobody may evict meanwhile: that time is Kubernetes' and not the operator's. Says how long it was.
    pub async fn until_no_eviction_is_lost(&self) -> String {
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), "default");
        let holds = |budget: Option<&PodDisruptionBudget>| {
            let disrupted = budget.and_then(|budget| budget.status.as_ref()?.disrupted_pods.as_ref());
            disrupted.is_none_or(|pods| pods.is_empty())
        };
        let began = Instant::now();
        let held = budgets.get("shop").await.unwrap().status.and_then(|status| status.disrupted_pods);
        let waited = tokio::time::timeout(LOST_EVICTION + PATIENCE, await_condition(budgets, "shop", holds));
        assert!(waited.await.is_ok(), "an eviction was never forgotten\n{}", self.story().await);
        format!("{} s until no eviction of {held:?} was counted", began.elapsed().as_secs())
    }

    /// Asks again and again, for what no watch tells.
    pub async fn eventually(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let asking = async {
            let mut pause = tokio::time::interval(Duration::from_millis(200));
            while !holds().await {
                pause.tick().await;
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() {
            panic!("it never came to this: {what}\n{}", self.story().await);
        }
    }

    /// What every node does, for a failed test's message.
    pub async fn story(&self) -> String {
        let updates: Api<NodeUpdate> = Api::all(self.client.clone());
        let policies: Api<UpdatePolicy> = Api::all(self.client.clone());
        let mut story = String::new();
        for update in updates.list(&ListParams::default()).await.unwrap() {
            story.push_str(&format!("{}\n", serde_json::to_string_pretty(&update).unwrap()));
        }
        for policy in policies.list(&ListParams::default()).await.unwrap() {
            story.push_str(&format!("{}\n", serde_json::to_string_pretty(&policy.status).unwrap()));
        }
        story
    }
}

fn ahead(by: TimeDelta) -> Clock {
    let right = Clock::system();
    Clock::from_fn(move || right.now() + by)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for machine in self.machines.values() {
            machine.abort();
        }
    }
}

/// Ready, and so for the scheduler too: the node lifecycle controller takes its taint of a new node away a moment after the
/// node says that it is Ready, and until then every pod goes elsewhere (Kubernetes, "Taints and Tolerations").
fn ready_for_pods(node: Option<&Node>) -> bool {
    let Some(node) = node else { return false };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    ready && !taints.is_some_and(|all| all.iter().any(|taint| taint.key == "node.kubernetes.io/not-ready"))
}
