//! The node's own object and its lease.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Health, KubeletHost};
use crate::clock;

/// Between two attempts at a request that failed.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Makes the Node object unless it is there; a node that comes back from a reboot finds its own.
pub(super) async fn register(client: &Client, machine: &KubeletHost) {
    let nodes: Api<Node> = Api::all(client.clone());
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": machine.node, "labels": machine.labels },
    });
    let Ok(object) = serde_json::from_value::<Node>(object) else { return };
    loop {
        match nodes.create(&PostParams::default(), &object).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => return,
            Err(error) => {
                tracing::debug!(node = machine.node, %error, "cannot register yet");
                sleep(RETRY).await;
            }
        }
    }
}

/// Reports status and renews the lease until cancelled; at once when the health changes.
pub(super) async fn keep_reporting(client: Client, machine: Arc<KubeletHost>, mut health: watch::Receiver<Health>) {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let ready_at = Instant::now() + machine.ready_after;
    let mut last = None;
    let mut beat = interval(machine.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (up, now) = (Instant::now() >= ready_at, *health.borrow_and_update());
        let ready = up && now != Health::NeverReady;
        let changed = last.is_none_or(|(before, _)| before != ready);
        let since = match last {
            Some((before, since)) if before == ready => since,
            _ => clock::now(),
        };
        let status = json!({ "status": status(&machine, ready, &since.to_rfc3339()) });
        let reported = nodes.patch_status(&machine.node, &PatchParams::default(), &Patch::Strategic(status)).await;
        let renewed = renew(&leases, &machine).await;
        match reported.and(renewed) {
            Ok(()) => last = Some((ready, since)),
            Err(error) => {
                tracing::debug!(node = machine.node, %error, "cannot report");
                if let kube::Error::Api(status) = &error
                    && status.code == 404
                {
                    register_again(&nodes, &machine).await;
                }
                sleep(RETRY).await;
                continue;
            }
        }
        if changed {
            tracing::debug!(node = machine.node, ready, "reported");
        }
        tokio::select! {
            () = tokio::time::sleep_until(ready_at), if !up => {}
            _ = beat.tick() => {}
            changed = health.changed() => if changed.is_err() { return },
        }
    }
}

/// A kubelet does not make its Node again by itself while it runs; a deleted Node comes back with its next start. The
/// stand-in only waits.
async fn register_again(nodes: &Api<Node>, machine: &KubeletHost) {
    tracing::info!(node = machine.node, "the Node object is gone; this kubelet waits for it to come back");
    while nodes.get_opt(&machine.node).await.is_ok_and(|node| node.is_none()) {
        sleep(RETRY).await;
    }
}

async fn renew(leases: &Api<Lease>, machine: &KubeletHost) -> kube::Result<()> {
    let spec = json!({
        "holderIdentity": machine.node,
        "leaseDurationSeconds": 40,
        "renewTime": clock::microseconds(),
    });
    let change = Patch::Merge(json!({ "spec": spec }));
    match leases.patch(&machine.node, &PatchParams::default(), &change).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let object = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": machine.node }, "spec": spec,
            });
            let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
            leases.create(&PostParams::default(), &object).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn status(machine: &KubeletHost, ready: bool, since: &str) -> Value {
    let heartbeat = clock::seconds();
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
            "lastHeartbeatTime": heartbeat, "lastTransitionTime": since,
        })
    };
    let (reason, message) = if ready {
        ("KubeletReady", "kubelet is posting ready status")
    } else {
        ("KubeletNotReady", "container runtime is not ready")
    };
    let resources = json!({
        "cpu": "8", "memory": "16Gi", "ephemeral-storage": "50Gi", "pods": machine.pod_capacity.to_string(),
    });
    json!({
        "capacity": resources,
        "allocatable": resources,
        "addresses": [
            { "type": "InternalIP", "address": "127.0.0.1" },
            { "type": "Hostname", "address": machine.node },
        ],
        "nodeInfo": {
            "bootID": machine.boot_id, "machineID": machine.node, "systemUUID": machine.node,
            "osImage": machine.os_image, "kernelVersion": machine.kernel_version,
            "kubeletVersion": "v1.36.0-standin", "kubeProxyVersion": "",
            "containerRuntimeVersion": "none://0", "operatingSystem": "linux", "architecture": "amd64",
        },
        "conditions": [
            condition("Ready", ready, reason, message),
            condition("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory"),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID"),
        ],
    })
}
