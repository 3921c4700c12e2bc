//! A kubelet without containers: as much of one as the rest of a cluster can see. It registers its node, renews its
//! lease, reports a boot id, brings the pods bound to it to Ready, and ends deleted pods after their grace. It speaks
//! with the kubelet's own certificate, so the Node authorizer and NodeRestriction hold it as they hold a real one.
//!
//! KWOK could do most of this for a thousand nodes at once, but its stages are written for nodes that never reboot;
//! here one kubelet is one machine's, and stops and comes back with it.

mod node;
mod pods;
mod runtime;
mod static_pods;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use runtime::{NoContainers, Runtime};
pub use static_pods::StaticPod;

/// What a kubelet tells about its machine, and how fast it is.
#[derive(Debug, Clone)]
pub struct KubeletHost {
    /// The node's name.
    pub node: String,
    /// Labels set at registration. NodeRestriction refuses `node-role.kubernetes.io/*` from a kubelet, as it should.
    pub labels: BTreeMap<String, String>,
    /// Changes with each boot of the machine.
    pub boot_id: String,
    /// `PRETTY_NAME` of the running system.
    pub os_image: String,
    /// The running kernel's release.
    pub kernel_version: String,
    /// How many pods fit.
    pub pod_capacity: u32,
    /// From the start of the kubelet to its first Ready.
    pub ready_after: Duration,
    /// From the start of the kubelet until it comes to the pods; till then the API shows what the last boot said of them.
    pub pods_after: Duration,
    /// From a pod being bound (or the machine having booted) to the pod being Ready.
    pub pod_start: Duration,
    /// The longest a deleted pod takes to end; its own grace period may be shorter.
    pub pod_stop: Duration,
    /// Between two renewals of the lease and two reports of the status (Kubernetes: 10 s and up to 5 min).
    pub heartbeat: Duration,
    /// Pods that the machine runs by itself, from its own disk: what kubeadm makes a control plane of.
    pub static_pods: Vec<StaticPod>,
}

impl KubeletHost {
    /// A machine of ordinary speed for tests: everything within a second.
    #[must_use]
    pub fn named(node: &str, zone: &str) -> Self {
        let labels = [
            ("kubernetes.io/hostname", node),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
            ("topology.kubernetes.io/zone", zone),
        ];
        Self {
            node: node.to_owned(),
            labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            boot_id: uuid::Uuid::new_v4().to_string(),
            os_image: "Test machine".to_owned(),
            kernel_version: "6.0.0".to_owned(),
            pod_capacity: 110,
            ready_after: Duration::from_millis(200),
            pods_after: Duration::ZERO,
            pod_start: Duration::from_millis(500),
            pod_stop: Duration::from_millis(500),
            heartbeat: Duration::from_secs(4),
            static_pods: Vec::new(),
        }
    }
}

/// What is wrong with the node, as its release or a test wants it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Health {
    /// Nothing.
    #[default]
    Good,
    /// The kubelet reports, but never that it is Ready.
    NeverReady,
    /// The node is Ready, and every container on it ends as soon as it starts.
    CrashLoop,
}

/// A running kubelet. Dropping it is a power cut: it says nothing more.
pub struct Kubelet {
    node: String,
    health: watch::Sender<Health>,
    runtime: Arc<dyn Runtime>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Kubelet").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Kubelet {
    /// Starts it; returns at once, [`KubeletHost::ready_after`] and the API server decide when the node is Ready. `client`
    /// is the node's own identity. Requests that fail are tried again until it is stopped.
    #[must_use]
    pub fn start(client: Client, machine: KubeletHost, health: Health, runtime: Arc<dyn Runtime>) -> Self {
        let (sender, receiver) = watch::channel(health);
        let machine = Arc::new(machine);
        let (node, containers) = (machine.node.clone(), Arc::clone(&runtime));
        let task = tokio::spawn(async move {
            node::register(&client, &machine).await;
            tokio::join!(
                node::keep_reporting(client.clone(), Arc::clone(&machine), receiver.clone()),
                static_pods::keep_showing(client.clone(), Arc::clone(&machine)),
                pods::keep_running(client, machine, receiver, containers),
            );
        });
        Self { node, health: sender, runtime, task }
    }

    /// Changes what is wrong from now on.
    pub fn set_health(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// Ends it, and its pods, as a power cut does: no goodbye. Returns when nothing of it runs any more.
    pub async fn stop(self) {
        let mut this = self;
        this.task.abort();
        // The only error is the cancellation just asked for.
        let _ = (&mut this.task).await;
        this.runtime.power_off(&this.node).await;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}
