//! A cluster with nodes, a repository and operators, for one test each.

use crate::agent::{self, Habit};
use bascule_api::{NodeUpdate, RolloutState, UpdatePolicy, WaitReason};
use bascule_operator::{clock::Clock, run::run, settings::Settings};
use bascule_tests::control_plane::{ControlPlane, Options, free_port};
use bascule_tests::https::HttpsServer;
use bascule_tests::kubelet::Machine;
use bascule_tests::vendor::Vendor;
use clap::Parser as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine; a wait that ends this way is a failure.
pub const PATIENCE: Duration = Duration::from_secs(360);
pub const OPERATOR: &str = "system:serviceaccount:bascule-system:bascule-operator";

pub struct World {
    pub control_plane: ControlPlane,
    pub client: Client,
    /// Keeps the repository's folder.
    _vendor: Vendor,
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

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

impl World {
    /// A cluster with the manifests, and a repository with releases 1.0 and 1.1 that is valid now.
    pub async fn new() -> Self {
        bascule_tests::install_tls_provider();
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        for manifest in [
            "namespace.yaml",
            "crds/updatepolicies.yaml",
            "crds/nodeupdates.yaml",
            "crds/freezes.yaml",
            "crds/rollbacks.yaml",
            "rbac/operator.yaml",
            "rbac/agent.yaml",
            "admission/operator.yaml",
            "components/host-agent/rbac.yaml",
            "admission/agent.yaml",
        ] {
            let text = std::fs::read_to_string(manifests().join(manifest)).unwrap();
            control_plane.apply(&text).await.unwrap();
        }
        let client = control_plane.client().await.unwrap();
        let mut vendor = Vendor::empty();
        // The vendor's story begins on a fixed day; this cluster lives now, so everything is signed afresh.
        vendor.now = bascule_tests::clock::now();
        let keys = vendor.keys(&["root-1", "root-2", "targets", "snapshot", "timestamp"]);
        vendor.publisher().rotate(&BTreeMap::new(), vendor.signing(&keys)).unwrap();
        vendor.publish("1.0", None);
        vendor.publish("1.1", Some("1.0"));
        let server = HttpsServer::start(vendor.repository()).await.unwrap();
        let root = String::from_utf8(vendor.trust_root()).unwrap();
        let map: ConfigMap = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "bascule-trust-root"}, "data": {"root.json": root}
        }))
        .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "bascule-system");
        maps.create(&PostParams::default(), &map).await.unwrap();
        let files = tempfile::tempdir().unwrap();
        Self { control_plane, client, _vendor: vendor, server, files, machines: BTreeMap::new() }
    }

    /// Adds a machine that runs 1.0, and waits until it is Ready.
    pub async fn machine(&mut self, node: &str, zone: &str, habit: Habit) {
        let mut machine = Machine::named(node, zone);
        machine.labels.insert("role".to_owned(), "worker".to_owned());
        let kubelet = self.control_plane.kubelet(node).unwrap().client().await.unwrap();
        let run = agent::run(kubelet.clone(), kubelet, machine, "1.0", habit);
        self.machines.insert(node.to_owned(), tokio::spawn(run));
        let ready = |node: Option<&Node>| {
            let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        self.until_node(node, "Ready", ready).await;
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

    /// Starts an operator with the rights that the manifests give it.
    pub async fn operator(&self, identity: &str) -> Operator {
        self.operator_with(identity, None, &[]).await
    }

    /// The same with more arguments, and with another way to the API server.
    pub async fn operator_with(&self, identity: &str, server: Option<&str>, more: &[&str]) -> Operator {
        let kubeconfig = self.files.path().join(format!("{identity}.kubeconfig"));
        let credentials = self.control_plane.service_account("bascule-system", "bascule-operator").await.unwrap();
        credentials.write_to(&kubeconfig).unwrap();
        if let Some(server) = server {
            let text = std::fs::read_to_string(&kubeconfig).unwrap();
            std::fs::write(&kubeconfig, text.replace(self.control_plane.server(), server)).unwrap();
        }
        let authority = self.files.path().join("repository-ca.pem");
        std::fs::write(&authority, self.server.ca_pem()).unwrap();
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let more: Vec<&std::ffi::OsStr> = more.iter().map(AsRef::as_ref).collect();
        let own: [&std::ffi::OsStr; 11] = [
            "bascule-operator".as_ref(),
            "--kubeconfig".as_ref(),
            kubeconfig.as_os_str(),
            "--extra-ca".as_ref(),
            authority.as_os_str(),
            "--identity".as_ref(),
            identity.as_ref(),
            "--lease-seconds".as_ref(),
            "3".as_ref(),
            "--listen".as_ref(),
            listen.as_ref(),
        ];
        let settings = Settings::parse_from(own.iter().chain(&more));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            run(settings, Clock::system(), stopped).await.unwrap();
        });
        Operator { task, stop: Some(stop), listen }
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

impl Drop for World {
    fn drop(&mut self) {
        for machine in self.machines.values() {
            machine.abort();
        }
    }
}
