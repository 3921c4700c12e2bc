//! Pods that really run: what the kubelets say about them, followed from the moment on in which they are made.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::container_os::{SHOP as IMAGE, SHOP_PORT};

/// The Deployment of [`shop`].
pub const SHOP: &str = "shop";
/// Selects its pods.
pub const SHOP_LABELS: &str = "app=shop";

/// A Deployment of containers that are really started, spread over the nodes with a real kubelet. A pod is Ready when its
/// kubelet reaches its port over the pod's own network.
#[must_use]
pub fn shop(replicas: usize) -> String {
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: {SHOP}, namespace: default}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {SHOP}}}}}
  template:
    metadata: {{labels: {{app: {SHOP}}}}}
    spec:
      nodeSelector: {{example.invalid/containers: real}}
      automountServiceAccountToken: false
      dnsPolicy: Default
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: {SHOP}}}}}
      containers:
      - name: shop
        image: {IMAGE}
        imagePullPolicy: Never
        readinessProbe: {{tcpSocket: {{port: {SHOP_PORT}}}, periodSeconds: 2}}
"#
    )
}

/// A pod that is Ready.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its identity.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub node: String,
    /// The runtime's id of its container.
    pub container: String,
}

#[derive(Debug, Default)]
struct Seen {
    pods: BTreeMap<String, Pod>,
    /// Exit codes by the container's id.
    ended: BTreeMap<String, i32>,
}

/// Follows some pods for as long as it lives.
#[derive(Debug)]
pub struct Pods {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Pods {
    /// Begins to follow the pods of the namespace `default` that `labels` selects.
    #[must_use]
    pub fn watch(client: &Client, labels: &str) -> Self {
        let (note, seen) = watch::channel(Seen::default());
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        let selected = watcher::Config::default().labels(labels);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(pods, selected).default_backoff());
            while let Some(event) = events.next().await {
                note.send_modify(|seen| match event {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => seen.note(pod, false),
                    Ok(watcher::Event::Delete(pod)) => seen.note(pod, true),
                    // A watch that breaks off is begun again.
                    Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_) => {}
                });
            }
        });
        Self { seen, task }
    }

    /// Waits until the pods that are Ready and not told to end are as `wanted`. Returns them.
    ///
    /// # Errors
    /// With what they are, when that is not so within `patience`.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&[Running]) -> bool,
    ) -> anyhow::Result<Vec<Running>> {
        let waited = tokio::time::timeout(patience, async {
            let seen = self.seen.wait_for(|seen| wanted(&seen.running())).await;
            anyhow::Ok(seen.context("nobody watches the pods any more")?.running())
        });
        if let Ok(running) = waited.await {
            return running;
        }
        let seen = self.seen.borrow();
        let statuses: Vec<_> = seen.pods.values().map(|pod| &pod.status).collect();
        let pods = serde_json::to_string(&statuses)?;
        anyhow::bail!("{what} was not so within {} s; the pods are {pods}", patience.as_secs())
    }

    /// Waits for the kubelet's word that a container has ended. Returns its exit code.
    ///
    /// # Errors
    /// When it does not end within `patience`.
    pub async fn until_ended(&mut self, pod: &Running, patience: Duration) -> anyhow::Result<i32> {
        let ended = self.seen.wait_for(|seen| seen.ended.contains_key(&pod.container));
        let seen = tokio::time::timeout(patience, ended).await;
        let seen = seen.with_context(|| format!("the container of {} has not ended", pod.name))??;
        seen.ended.get(&pod.container).copied().context("no exit code")
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn note(&mut self, pod: Pod, gone: bool) {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        for status in statuses {
            let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            if let (Some(id), Some(ended)) = (container_id(status.container_id.as_deref()), ended) {
                self.ended.insert(id, ended.exit_code);
            }
        }
        let uid = pod.uid().unwrap_or_default();
        if gone {
            self.pods.remove(&uid);
        } else {
            self.pods.insert(uid, pod);
        }
    }

    fn running(&self) -> Vec<Running> {
        let kept = self.pods.values().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        kept.filter_map(|pod| {
            let status = pod.status.as_ref()?;
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
            let container = status.container_statuses.as_ref()?.first()?;
            Some(Running {
                uid: pod.uid()?,
                name: pod.name_any(),
                node: pod.spec.as_ref()?.node_name.clone()?,
                container: container_id(container.container_id.as_deref())?,
            })
        })
        .collect()
    }
}

/// `containerd://0123…` without the runtime's name.
fn container_id(id: Option<&str>) -> Option<String> {
    Some(id?.strip_prefix("containerd://")?.to_owned())
}
