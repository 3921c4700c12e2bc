//! The pods bound to the node: what each needs next is decided from its object and from what this kubelet already did
//! for it; the doing happens in one task for each pod.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::node::RETRY;
use super::static_pods::MIRROR;
use super::{Health, KubeletHost, Runtime};
use crate::clock;
use crate::control_plane::request_pod_token;

/// What this kubelet is doing for a pod since it started. A kubelet that starts anew after a reboot knows nothing, and
/// so starts every pod again, as a real one does with the containers of the last boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Running,
    Stopping,
}

/// What a pod needs next.
fn next(pod: &Pod, doing: Option<Doing>) -> Option<Doing> {
    let finished = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    match (pod.metadata.deletion_timestamp.is_some(), doing) {
        (true, Some(Doing::Stopping)) => None,
        (true, _) => Some(Doing::Stopping),
        (false, None) if !finished => Some(Doing::Running),
        (false, _) => None,
    }
}

/// Runs the node's pods until cancelled.
pub(super) async fn keep_running(
    client: Client,
    machine: Arc<KubeletHost>,
    health: watch::Receiver<Health>,
    runtime: Arc<dyn Runtime>,
) {
    sleep(machine.pods_after).await;
    let pods: Api<Pod> = Api::all(client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", machine.node));
    let mut events = pin!(watcher(pods, mine).default_backoff());
    let mut known: HashMap<String, (Doing, AbortHandle)> = HashMap::new();
    // Dropped with this future, and all its tasks with it.
    let mut tasks = JoinSet::new();
    while let Some(event) = events.next().await {
        while tasks.try_join_next().is_some() {}
        match event {
            // The machine runs these by itself.
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) | watcher::Event::Delete(pod))
                if pod.annotations().contains_key(MIRROR) => {}
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                let uid = pod.uid().unwrap_or_default();
                let before = known.get(&uid);
                let Some(doing) = next(&pod, before.map(|(doing, _)| *doing)) else { continue };
                if let Some((_, task)) = before {
                    task.abort();
                }
                let hands = Hands {
                    client: client.clone(),
                    machine: Arc::clone(&machine),
                    health: health.clone(),
                    runtime: Arc::clone(&runtime),
                };
                let task = tasks.spawn(async move {
                    match doing {
                        Doing::Running => hands.run(&pod).await,
                        Doing::Stopping => hands.stop(&pod).await,
                    }
                });
                known.insert(uid, (doing, task));
            }
            Ok(watcher::Event::Delete(pod)) => {
                if let Some((_, task)) = known.remove(&pod.uid().unwrap_or_default()) {
                    task.abort();
                }
                runtime.stop(&pod).await;
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => tracing::debug!(node = machine.node, %error, "the watch on pods broke off"),
        }
    }
}

/// What it takes to change one pod.
struct Hands {
    client: Client,
    machine: Arc<KubeletHost>,
    health: watch::Receiver<Health>,
    runtime: Arc<dyn Runtime>,
}

impl Hands {
    async fn run(mut self, pod: &Pod) {
        self.report(pod, Containers::Starting).await;
        sleep(self.machine.pod_start).await;
        if self.runtime.runs(pod) {
            self.start_containers(pod).await;
        }
        loop {
            let crashing = *self.health.borrow_and_update() == Health::CrashLoop;
            self.report(pod, if crashing { Containers::Crashing } else { Containers::Ready }).await;
            if self.health.changed().await.is_err() {
                return;
            }
        }
    }

    async fn start_containers(&self, pod: &Pod) {
        loop {
            let started = match request_pod_token(self.client.clone(), pod).await {
                Ok(token) => self.runtime.start(pod, &token).await,
                Err(error) => Err(error.to_string()),
            };
            match started {
                Ok(()) => return,
                Err(problem) => tracing::warn!(pod = pod.name_any(), problem, "containers do not start"),
            }
            sleep(RETRY).await;
        }
    }

    async fn stop(self, pod: &Pod) {
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let grace = std::time::Duration::from_secs(grace.unwrap_or(30));
        self.runtime.stop(pod).await;
        sleep(self.machine.pod_stop.min(grace)).await;
        let precondition = Preconditions { uid: pod.uid(), resource_version: None };
        let now = DeleteParams { preconditions: Some(precondition), ..DeleteParams::default().grace_period(0) };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        loop {
            match pods.delete(&pod.name_any(), &now).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => tracing::debug!(pod = pod.name_any(), %error, "cannot confirm the end of a pod yet"),
            }
            sleep(RETRY).await;
        }
    }

    async fn report(&self, pod: &Pod, containers: Containers) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        // The uid in the body makes the server refuse a change meant for an earlier pod of the same name.
        let mut change = json!({ "metadata": { "uid": pod.uid() }, "status": status(pod, containers) });
        if let Some(address) = self.runtime.address(pod)
            && let Some(status) = change.get_mut("status").and_then(Value::as_object_mut)
        {
            status.insert("podIP".to_owned(), json!(address));
            status.insert("podIPs".to_owned(), json!([{ "ip": address }]));
        }
        loop {
            let change = Patch::Strategic(&change);
            match pods.patch_status(&pod.name_any(), &PatchParams::default(), &change).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => return,
                Err(error) => tracing::debug!(pod = pod.name_any(), %error, "cannot report a pod yet"),
            }
            sleep(RETRY).await;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Containers {
    Starting,
    Ready,
    Crashing,
}

fn status(pod: &Pod, containers: Containers) -> Value {
    let ready = containers == Containers::Ready;
    let now = clock::seconds();
    let ran_before = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    let phase = if containers == Containers::Starting && !ran_before { "Pending" } else { "Running" };
    let condition = |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now });
    let specs = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let container_statuses: Vec<Value> = specs
        .iter()
        .map(|container| {
            let (state, restarts) = match containers {
                Containers::Starting => (json!({ "waiting": { "reason": "ContainerCreating" } }), 0),
                Containers::Ready => (json!({ "running": { "startedAt": now } }), 0),
                Containers::Crashing => (json!({ "waiting": { "reason": "CrashLoopBackOff" } }), 3),
            };
            json!({
                "name": container.name, "image": container.image.clone().unwrap_or_default(), "imageID": "",
                "ready": ready, "started": ready, "restartCount": restarts, "state": state,
            })
        })
        .collect();
    json!({
        "phase": phase,
        "startTime": now,
        "conditions": [
            condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready),
        ],
        "containerStatuses": container_statuses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(deleting: bool, phase: &str) -> Pod {
        let deletion = deleting.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": { "name": "p", "deletionTimestamp": deletion }, "status": { "phase": phase },
        }))
        .unwrap()
    }

    #[test]
    fn each_pod_is_started_once_and_stopped_once() {
        assert_eq!(next(&pod(false, "Pending"), None), Some(Doing::Running));
        assert_eq!(next(&pod(false, "Running"), Some(Doing::Running)), None);
        assert_eq!(next(&pod(true, "Running"), Some(Doing::Running)), Some(Doing::Stopping));
        assert_eq!(next(&pod(true, "Running"), Some(Doing::Stopping)), None);
    }

    #[test]
    fn after_a_reboot_running_pods_start_anew_and_finished_ones_stay() {
        assert_eq!(next(&pod(false, "Running"), None), Some(Doing::Running));
        assert_eq!(next(&pod(false, "Succeeded"), None), None);
        assert_eq!(next(&pod(true, "Running"), None), Some(Doing::Stopping));
    }
}
