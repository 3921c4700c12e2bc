//! What drain and gates need to know of a pod, and nothing more: a cluster has many pods and each is kept in memory.

use super::cache::Fact;
use bascule_api::ObjectRef;
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::collections::BTreeMap;

/// The annotation of a pod that a kubelet runs from a file; the API object is only its mirror
/// (Kubernetes, "Create static Pods").
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFact {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID: another pod of the same name is another pod.
    pub uid: String,
    /// The node it is bound to; empty while it is pending.
    pub node: String,
    /// Its labels, which budgets select by.
    pub labels: BTreeMap<String, String>,
    /// The controller that would bring it back.
    pub controller: Option<Controller>,
    /// Whether it is only the mirror of a static pod.
    pub mirror: bool,
    /// Whether it has an emptyDir volume.
    pub empty_dir: bool,
    /// Whether it has ended (phase Succeeded or Failed).
    pub finished: bool,
    /// Whether it has not started yet (phase Pending).
    pub pending: bool,
    /// Whether its Ready condition is true.
    pub ready: bool,
    /// Since when the Ready condition is what it is.
    pub ready_since: Option<DateTime<Utc>>,
    /// Why a container does not run, e.g. `CrashLoopBackOff`.
    pub waiting: Option<String>,
    /// When its grace period ends, once it is being deleted.
    pub deletes_at: Option<DateTime<Utc>>,
}

/// A pod's controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// E.g. `apps/v1`.
    pub api_version: String,
    /// E.g. `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodFact {
    /// `namespace/name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The pod as an object to point at.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        ObjectRef { kind: "Pod".to_owned(), namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }

    /// Whether a DaemonSet controls it.
    #[must_use]
    pub fn of_daemon_set(&self) -> bool {
        self.controller
            .as_ref()
            .is_some_and(|controller| controller.kind == "DaemonSet" && controller.api_version.starts_with("apps/"))
    }
}

impl Fact for PodFact {
    type Raw = Pod;

    fn of(pod: &Pod) -> Self {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"));
        let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            controller: controller.map(|owner| Controller {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
            mirror: meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR_ANNOTATION)),
            empty_dir: spec
                .and_then(|spec| spec.volumes.as_ref())
                .is_some_and(|volumes| volumes.iter().any(|volume| volume.empty_dir.is_some())),
            finished: matches!(phase, "Succeeded" | "Failed"),
            pending: phase == "Pending",
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(moment),
            waiting: status.and_then(|status| waiting(status.container_statuses.as_deref().unwrap_or_default())),
            deletes_at: meta.deletion_timestamp.as_ref().map(moment),
        }
    }

    fn place(&self) -> &str {
        &self.node
    }
}

fn waiting(containers: &[ContainerStatus]) -> Option<String> {
    containers
        .iter()
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .map(|reason| reason.chars().take(64).collect())
        .next()
}

/// A moment of Kubernetes' own type.
pub(crate) fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> DateTime<Utc> {
    bascule_api::Time::from_kubernetes(time).get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_drain_and_gates_need() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"},
                "annotations": {"kubernetes.io/config.mirror": "x"},
                "deletionTimestamp": "2026-11-21T10:00:30Z",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o"},
                    {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": true}
                ]
            },
            "spec": {"nodeName": "n1", "containers": [], "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T01:12:00Z"}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 9,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
            }
        }))
        .unwrap();
        let fact = PodFact::of(&pod);
        assert_eq!(fact.path(), "shop/web-1");
        assert!(fact.of_daemon_set() && fact.mirror && fact.empty_dir && !fact.finished && !fact.ready);
        assert_eq!(fact.waiting.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(fact.deletes_at.unwrap().timestamp(), 1_795_255_230);
        assert!(PodFact::of(&Pod::default()).controller.is_none());
    }
}
