//! The workload under most tests of the whole system: a shop with a PodDisruptionBudget, spread over the nodes.

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A Deployment in the namespace `default` with so many replicas.
pub fn deployment(name: &str, replicas: usize) -> String {
    with_pods(name, replicas, "")
}

fn with_pods(name: &str, replicas: usize, more: &str) -> String {
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: default}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers: [{{name: c, image: example.invalid/c}}]
{more}"#
    )
}

/// A PodDisruptionBudget over a Deployment of [`deployment`]; `rule` is like `minAvailable: 3`.
pub fn budget(name: &str, rule: &str) -> String {
    format!(
        r#"---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: {name}, namespace: default}}
spec: {{{rule}, selector: {{matchLabels: {{app: {name}}}}}}}
"#
    )
}

/// The Deployment `default/shop`: so many replicas, spread over the nodes, of which one may be missing.
pub fn shop(replicas: usize) -> String {
    let spread = "      topologySpreadConstraints:\n      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, \
                  whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: shop}}}\n";
    with_pods("shop", replicas, spread) + &budget("shop", &format!("minAvailable: {}", replicas.saturating_sub(1)))
}

/// Whether a Deployment has exactly so many ready pods.
pub fn has_ready(replicas: i32) -> impl Fn(Option<&Deployment>) -> bool + Clone + Send {
    move |found| found.and_then(|found| found.status.as_ref()?.ready_replicas).unwrap_or(0) == replicas
}

/// Waits until a Deployment of [`deployment`] has exactly so many ready pods; false where it has not in time.
pub async fn until_ready(client: &Client, name: &str, replicas: i32, patience: Duration) -> bool {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let waited = await_condition(deployments, name, has_ready(replicas));
    matches!(tokio::time::timeout(patience, waited).await, Ok(Ok(_)))
}

/// Watches every budget of the namespace `default`, for as long as it lives.
#[derive(Debug)]
pub struct Guard {
    broken: Arc<AtomicBool>,
    /// How often a budget was seen whose pods are all there.
    whole: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Guard {
    /// Begins to watch.
    pub fn start(client: &Client) -> Self {
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "default");
        let broken = Arc::<AtomicBool>::default();
        let whole = Arc::<AtomicUsize>::default();
        let (note, count) = (Arc::clone(&broken), Arc::clone(&whole));
        let task = tokio::spawn(async move {
            let mut seen = pin!(watcher(budgets, watcher::Config::default()).default_backoff().applied_objects());
            while let Some(event) = seen.next().await {
                let Some(status) = event.ok().and_then(|budget| budget.status) else { continue };
                if status.current_healthy < status.desired_healthy {
                    note.store(true, Ordering::SeqCst);
                } else if status.desired_healthy > Some(0) {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { broken, whole, task }
    }

    /// Whether a budget's healthy pods ever were fewer than it asks for.
    ///
    /// # Panics
    /// When the guard was blind: it has not seen a budget that asks for pods and has them, or no longer watches.
    pub fn was_broken(&self) -> bool {
        assert!(self.whole.load(Ordering::SeqCst) > 0, "the guard has seen no budget with its pods: it can't judge");
        assert!(!self.task.is_finished(), "the guard no longer watches");
        self.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}
