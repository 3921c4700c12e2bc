//! What is kept of a pod.

use super::{cache::Fact, daemon_sets::tolerates};
use bascule_planner::drain::{Controller, Pod as PodFact, Wish, opens_after_cordon};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, Taint};
use std::sync::{Arc, LazyLock};

/// The annotation of a pod that a kubelet runs from a file; the API object is only its mirror
/// (Kubernetes, "Create static Pods").
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The taint that the node lifecycle controller puts on cordoned nodes (Kubernetes, "Well-Known Labels, Annotations and
/// Taints").
static CORDON_TAINT: LazyLock<Taint> = LazyLock::new(|| Taint {
    key: "node.kubernetes.io/unschedulable".to_owned(),
    effect: "NoSchedule".to_owned(),
    ..Taint::default()
});

impl Fact for PodFact {
    type Raw = Pod;

    fn of(pod: &Pod) -> Self {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"));
        let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let created_at = meta.creation_timestamp.as_ref().map(moment).unwrap_or_default();
        let started_at = status.and_then(|status| status.start_time.as_ref()).map_or(created_at, moment);
        let deadline = spec.and_then(|spec| spec.active_deadline_seconds).and_then(TimeDelta::try_seconds);
        let labels = meta.labels.clone().unwrap_or_default();
        let none = std::collections::BTreeMap::new();
        let annotations = meta.annotations.as_ref().unwrap_or(&none);
        let tolerations = spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            created_at,
            controller: controller.map(|owner| Controller {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
            mirror: annotations.contains_key(MIRROR_ANNOTATION),
            empty_dir: spec
                .and_then(|spec| spec.volumes.as_ref())
                .is_some_and(|volumes| volumes.iter().any(|volume| volume.empty_dir.is_some())),
            finished: matches!(phase, "Succeeded" | "Failed"),
            pending: phase == "Pending",
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(moment),
            waiting: status.and_then(|status| waiting(status.container_statuses.as_deref().unwrap_or_default())),
            deletes_at: meta.deletion_timestamp.as_ref().map(moment),
            tolerates_cordon: tolerates(tolerations, &CORDON_TAINT),
            completes: spec.and_then(|spec| spec.restart_policy.as_deref()).is_some_and(|policy| policy != "Always"),
            ends_by: deadline.and_then(|deadline| started_at.checked_add_signed(deadline)),
            claims: claims(pod),
            needs: Arc::new(super::needs::needs(spec)),
            wish: Wish::of(&labels, annotations, started_at),
            opens_after_cordon: opens_after_cordon(annotations),
            labels,
        }
    }

    fn place(&self) -> &str {
        &self.node
    }
}

/// The claims of a pod, those of its generic ephemeral volumes included (Kubernetes, "Ephemeral Volumes", "PersistentVolumeClaim
/// naming").
fn claims(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().filter_map(|spec| spec.volumes.as_ref()).flatten();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let claim = volumes.filter_map(|volume| {
        let ephemeral = || volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name));
        volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()).or_else(ephemeral)
    });
    claim.collect()
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
                "creationTimestamp": "2026-11-21T10:00:00Z",
                "annotations": {"kubernetes.io/config.mirror": "x", "karpenter.sh/do-not-disrupt": "5m"},
                "deletionTimestamp": "2026-11-21T10:00:30Z",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o"},
                    {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": true}
                ]
            },
            "spec": {
                "nodeName": "n1", "containers": [], "volumes": [
                    {"name": "v", "emptyDir": {}}, {"name": "e", "ephemeral": {}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}],
                "restartPolicy": "Never",
                "activeDeadlineSeconds": 60, "tolerations": [{"operator": "Exists"}]
            },
            "status": {
                "phase": "Running", "startTime": "2026-11-21T10:00:10Z",
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
        assert!(fact.tolerates_cordon && fact.completes);
        assert_eq!(fact.claims, ["web-1-e", "data"]);
        assert_eq!(fact.ends_by.unwrap().timestamp(), 1_795_255_210 + 60);
        let Wish::Undisturbed { until: Some(until), .. } = fact.wish else { panic!("{:?}", fact.wish) };
        assert_eq!(until.timestamp(), 1_795_255_210 + 300);
        let plain = PodFact::of(&Pod::default());
        assert!(plain.controller.is_none() && !plain.tolerates_cordon && !plain.completes);
    }

    #[test]
    fn whether_a_pod_tolerates_the_cordon_is_the_schedulers_question() {
        for (toleration, expected) in [
            (serde_json::json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}), true),
            (
                serde_json::json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
            (serde_json::json!({"operator": "Exists", "effect": "NoSchedule"}), true),
            (serde_json::json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}), true),
            (serde_json::json!({"key": "node.kubernetes.io/unschedulable", "value": "x"}), false),
            (serde_json::json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists"}), false),
        ] {
            let raw =
                serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": [toleration]}});
            let pod: Pod = serde_json::from_value(raw.clone()).unwrap();
            assert_eq!(PodFact::of(&pod).tolerates_cordon, expected, "{raw}");
        }
    }
}
