//! Static pods: what a machine runs from its own disk, whether or not there is an API server. The kubelet shows each as a
//! mirror pod, which nobody can end through the API, and says of it what it sees of the real thing.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::KubeletHost;
use super::node::RETRY;
use crate::clock;

/// Marks a pod that only mirrors a static one.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where kubeadm has them.
const NAMESPACE: &str = "kube-system";

/// One pod from the machine's own disk.
#[derive(Debug, Clone)]
pub struct StaticPod {
    /// Its label `component`; with the node's name behind it, its name.
    pub component: String,
    /// Whether its readiness probe succeeds.
    pub ready: watch::Receiver<bool>,
}

/// Shows all static pods of a machine until cancelled.
pub(super) async fn keep_showing(client: Client, machine: Arc<KubeletHost>) {
    join_all(machine.static_pods.iter().map(|pod| keep_one(&client, &machine, pod.clone()))).await;
}

async fn keep_one(client: &Client, machine: &KubeletHost, mut pod: StaticPod) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let name = format!("{}-{}", pod.component, machine.node);
    loop {
        let ready = *pod.ready.borrow_and_update();
        let status = Patch::Strategic(json!({ "status": status(&pod.component, ready) }));
        let shown = match pods.patch_status(&name, &PatchParams::default(), &status).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => match create(client, &pods, machine, &pod).await {
                // Its status is still to be told.
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = shown {
            tracing::debug!(node = machine.node, pod = name, %error, "cannot show a static pod yet");
            sleep(RETRY).await;
        } else if pod.ready.changed().await.is_err() {
            return;
        }
    }
}

/// NodeRestriction takes a mirror pod from a kubelet only if it belongs to the kubelet's own Node.
async fn create(client: &Client, pods: &Api<Pod>, machine: &KubeletHost, pod: &StaticPod) -> kube::Result<()> {
    let node = Api::<Node>::all(client.clone()).get(&machine.node).await?;
    let object = mirror(&machine.node, &node.uid().unwrap_or_default(), &pod.component);
    let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match pods.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn mirror(node: &str, uid: &str, component: &str) -> Value {
    let hash = format!("{component}-{node}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{component}-{node}"), "namespace": NAMESPACE,
            "labels": { "component": component, "tier": "control-plane" },
            "annotations": { MIRROR: hash, "kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": true }],
        },
        "spec": {
            "nodeName": node, "hostNetwork": true, "enableServiceLinks": false,
            "priorityClassName": "system-node-critical",
            "tolerations": [{ "operator": "Exists", "effect": "NoExecute" }],
            "containers": [{ "name": component, "image": format!("registry.k8s.io/{component}") }],
        },
    })
}

fn status(component: &str, ready: bool) -> Value {
    let now = clock::seconds();
    let condition = |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now });
    json!({
        "phase": "Running",
        "startTime": now,
        "conditions": [
            condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready),
        ],
        "containerStatuses": [{
            "name": component, "image": format!("registry.k8s.io/{component}"), "imageID": "", "ready": ready,
            "started": true, "restartCount": 0, "state": { "running": { "startedAt": now } },
        }],
    })
}
