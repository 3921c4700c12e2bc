//! What is kept of a pod: what drains and gates look at.

use crate::{Fact, Untyped, fact, needs::shared_needs_of, shared::Shared};
use bascule_planner::drain::{Barrier, Controller, Pod as PodFact, Wish, opens_after_cordon};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::{
    api::core::v1::{self, ContainerStatus, PodSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::{collections::BTreeMap, sync::LazyLock};

/// The annotation of a pod that a kubelet runs from a file; the API object is only its mirror
/// (Kubernetes, "Create static Pods").
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// How much of a container's last line is kept.
const LAST_WORDS: usize = 256;

/// The taint that the node lifecycle controller puts on cordoned nodes (Kubernetes, "Well-Known Labels, Annotations and
/// Taints").
static CORDON_TAINT: LazyLock<Barrier> = LazyLock::new(|| Barrier {
    key: "node.kubernetes.io/unschedulable".to_owned(),
    value: String::new(),
    effect: "NoSchedule".to_owned(),
});

/// Pods of a workload have the same labels, but those of StatefulSets and Jobs with an index.
static LABELS: LazyLock<Shared<BTreeMap<String, String>>> = LazyLock::new(Shared::default);
static CONTROLLERS: LazyLock<Shared<Controller>> = LazyLock::new(Shared::default);

impl Fact for PodFact {
    type Raw = v1::Pod;

    fn of(pod: &v1::Pod) -> Self {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"));
        let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let created_at = meta.creation_timestamp.as_ref().map(moment).unwrap_or_default();
        let started_at = status.and_then(|status| status.start_time.as_ref()).map_or(created_at, moment);
        let deadline = spec.and_then(|spec| spec.active_deadline_seconds).and_then(TimeDelta::try_seconds);
        let labels = LABELS.of(meta.labels.clone().unwrap_or_default());
        let none = BTreeMap::new();
        let annotations = meta.annotations.as_ref().unwrap_or(&none);
        let needs = shared_needs_of(spec);
        let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let idle = containers.iter().find_map(|container| Some((idle(container)?, container)));
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: fact::name(pod),
            uid: fact::uid(pod),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            created_at,
            controller: controller.map(|owner| {
                CONTROLLERS.of(Controller {
                    api_version: owner.api_version.clone(),
                    kind: owner.kind.clone(),
                    name: owner.name.clone(),
                    uid: owner.uid.clone(),
                })
            }),
            mirror: annotations.contains_key(MIRROR_ANNOTATION),
            empty_dir: spec
                .and_then(|spec| spec.volumes.as_ref())
                .is_some_and(|volumes| volumes.iter().any(|volume| volume.empty_dir.is_some())),
            finished: matches!(phase, "Succeeded" | "Failed"),
            pending: phase == "Pending",
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(moment),
            waiting: idle.map(|(why, _)| why.chars().take(64).collect()),
            last_words: idle.and_then(|(_, container)| last_words(container)),
            deletes_at: meta.deletion_timestamp.as_ref().map(moment),
            tolerates_cordon: needs.tolerate(&CORDON_TAINT),
            completes: spec.and_then(|spec| spec.restart_policy.as_deref()).is_some_and(|policy| policy != "Always"),
            ends_by: deadline.and_then(|deadline| started_at.checked_add_signed(deadline)),
            claims: claims(pod),
            needs,
            wish: Wish::of(&labels, annotations, started_at),
            opens_after_cordon: opens_after_cordon(annotations),
            labels,
        }
    }

    /// One that was never read is at least there: its node is not empty while it stands on it.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self> {
        let where_it_stands = || {
            let spec = PodSpec { node_name: untyped.part("/spec/nodeName"), ..PodSpec::default() };
            Self::of(&v1::Pod { metadata: untyped.metadata().clone(), spec: Some(spec), ..v1::Pod::default() })
        };
        before.is_none().then(where_it_stands)
    }

    fn place(&self) -> &str {
        &self.node
    }

    /// One that keeps budgets closed.
    fn stands_out(&self) -> bool {
        !self.ready && !self.finished
    }
}

/// The claims of a pod, those of its generic ephemeral volumes included (Kubernetes, "Ephemeral Volumes", "PersistentVolumeClaim
/// naming").
fn claims(pod: &v1::Pod) -> Vec<String> {
    let volumes = pod.spec.iter().filter_map(|spec| spec.volumes.as_ref()).flatten();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let claim = volumes.filter_map(|volume| {
        let ephemeral = || volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name));
        volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()).or_else(ephemeral)
    });
    claim.collect()
}

/// Why a container does not run.
fn idle(container: &ContainerStatus) -> Option<&str> {
    let state = container.state.as_ref()?;
    let waits = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
    waits.or_else(|| state.terminated.as_ref()?.reason.as_deref())
}

/// The last line of what a container said before it ended, or why it could not be started (Kubernetes, "Determine the Reason
/// for Pod Failure").
fn last_words(container: &ContainerStatus) -> Option<String> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = states.into_iter().flatten().find_map(|state| state.terminated.as_ref()?.message.as_deref());
    let waits = container.state.as_ref().and_then(|state| state.waiting.as_ref()?.message.as_deref());
    let line = ended.or(waits)?.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().take(LAST_WORDS).collect())
}

/// A moment of Kubernetes' own type.
pub(crate) fn moment(time: &Time) -> DateTime<Utc> {
    bascule_api::Time::from_kubernetes(time).get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_drain_and_gates_need() {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
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
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                    "lastState": {"terminated": {"exitCode": 255, "message": "one\nexec /web: exec format error\n"}}}]
            }
        }))
        .unwrap();
        let fact = PodFact::of(&pod);
        assert_eq!(fact.path(), "shop/web-1");
        assert!(fact.of_daemon_set() && fact.mirror && fact.empty_dir && !fact.finished && !fact.ready);
        assert_eq!(fact.waiting.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(fact.last_words.as_deref(), Some("exec /web: exec format error"));
        assert_eq!(fact.deletes_at.unwrap().timestamp(), 1_795_255_230);
        assert!(fact.tolerates_cordon && fact.completes);
        assert_eq!(fact.claims, ["web-1-e", "data"]);
        assert_eq!(fact.ends_by.unwrap().timestamp(), 1_795_255_210 + 60);
        let Wish::Undisturbed { until: Some(until), .. } = fact.wish else { panic!("{:?}", fact.wish) };
        assert_eq!(until.timestamp(), 1_795_255_210 + 300);
        let plain = PodFact::of(&v1::Pod::default());
        assert!(plain.controller.is_none() && !plain.tolerates_cordon && !plain.completes);
    }

    #[test]
    fn why_a_container_does_not_run_and_what_it_said_last_are_the_kubelets_words() {
        let said = |state: serde_json::Value| {
            let status = serde_json::json!({"phase": "Running", "containerStatuses":
                [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 2, "state": state}]});
            let fact = PodFact::of(
                &serde_json::from_value(serde_json::json!({"metadata": {"name": "a-1"}, "status": status})).unwrap(),
            );
            (fact.waiting, fact.last_words)
        };
        let words = |why: &str, last: &str| (Some(why.to_owned()), Some(last.to_owned()));
        let ended =
            serde_json::json!({"exitCode": 255, "reason": "Error", "message": "exec /agent: exec format error\n"});
        assert_eq!(said(serde_json::json!({"terminated": ended})), words("Error", "exec /agent: exec format error"));
        let pull = serde_json::json!({"reason": "ErrImagePull", "message": "no such host"});
        assert_eq!(said(serde_json::json!({"waiting": pull})), words("ErrImagePull", "no such host"));
        assert_eq!(said(serde_json::json!({"running": {}})), (None, None));
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
            let pod: v1::Pod = serde_json::from_value(raw.clone()).unwrap();
            assert_eq!(PodFact::of(&pod).tolerates_cordon, expected, "{raw}");
        }
    }
}
