//! Kubernetes' own objects, as far as drains look at them. (No client: whoever reads objects can ask.)

use super::{Barrier, Condition, Controller, Needs, Pod, Term, Toleration, Wish, opens_after_cordon};
use bascule_api::{Operator, Requirement};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::{
    api::batch::v1::Job,
    api::core::v1::{self, Container, ContainerStatus, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

type Amounts = BTreeMap<String, u64>;

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

impl Pod {
    /// What drains look at in a pod.
    #[must_use]
    pub fn from_kubernetes(pod: &v1::Pod) -> Self {
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
        let needs = Arc::new(Needs::from_kubernetes(spec));
        let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let idle = containers.iter().find_map(|container| Some((idle(container)?, container)));
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
}

impl Needs {
    /// What a pod needs of a node.
    #[must_use]
    pub fn from_kubernetes(spec: Option<&PodSpec>) -> Self {
        let Some(spec) = spec else { return Self::default() };
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
        Self {
            requests: requests(spec),
            selector: spec.node_selector.clone().unwrap_or_default(),
            terms: required.map(|required| required.node_selector_terms.iter().map(term).collect()),
            tolerations: spec.tolerations.iter().flatten().filter_map(toleration).collect(),
        }
    }
}

impl Barrier {
    /// A taint as tolerations are compared with it.
    #[must_use]
    pub fn from_kubernetes(taint: &Taint) -> Self {
        Self { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect: taint.effect.clone() }
    }
}

/// When a Job has ended at the latest: its `activeDeadlineSeconds` from its start.
#[must_use]
pub fn deadline_of(job: &Job) -> Option<DateTime<Utc>> {
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    let started_at = job.status.as_ref()?.start_time.as_ref().map(moment)?;
    started_at.checked_add_signed(TimeDelta::try_seconds(seconds)?)
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

fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> DateTime<Utc> {
    bascule_api::Time::from_kubernetes(time).get()
}

/// A quantity in whole units, or thousandths for `cpu` (Kubernetes, "Quantity"); what can't be read is nothing.
fn amount(resource: &str, quantity: &Quantity) -> u64 {
    let text = quantity.0.trim();
    let end = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let Ok(number) = number.parse::<f64>() else { return 0 };
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => match exponent.strip_prefix(['e', 'E']).and_then(|power| power.parse::<i32>().ok()) {
            Some(power) => 10_f64.powi(power),
            None => return 0,
        },
    };
    let unit = if resource == "cpu" { 1_000.0 } else { 1.0 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; a cast saturates")]
    {
        // What binary fractions add must not round up.
        (number * (scale * unit) - 1e-6).ceil() as u64
    }
}

/// Amounts by resource: `cpu` in thousandths, everything else in whole units.
#[must_use]
pub fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities.into_iter().flatten().map(|(resource, much)| (resource.clone(), amount(resource, much))).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (resource, much) in more {
        let sum = to.entry(resource.clone()).or_default();
        *sum = sum.saturating_add(*much);
    }
}

fn of_container(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// What a pod requests as the scheduler counts it: its containers and sidecars together, or an init container that wants
/// more beside the sidecars that were started before it, or what the pod itself says; and the overhead of its runtime
/// (Kubernetes, "Sidecar containers", "Pod-level resources", "Pod overhead").
fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut sum, &of_container(container)));
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let mut now = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        for (resource, much) in now {
            let most = starting.entry(resource).or_default();
            *most = much.max(*most);
        }
    }
    add(&mut sum, &sidecars);
    for (resource, much) in starting {
        let most = sum.entry(resource).or_default();
        *most = much.max(*most);
    }
    for (resource, much) in amounts(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref())) {
        sum.insert(resource, much);
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum.insert("pods".to_owned(), 1);
    sum.retain(|_, much| *much > 0);
    sum
}

fn toleration(toleration: &k8s_openapi::api::core::v1::Toleration) -> Option<Toleration> {
    let key = toleration.key.clone().unwrap_or_default();
    let value = match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => None,
        "Equal" => Some(toleration.value.clone().unwrap_or_default()),
        // Comparisons of numbers (KEP-5471) are not judged: as if it were not there.
        _ => return None,
    };
    Some(Toleration { key, value, effect: toleration.effect.clone().unwrap_or_default() })
}

fn condition(requirement: &NodeSelectorRequirement) -> Condition {
    let NodeSelectorRequirement { key, operator, values } = requirement;
    let values = values.clone().unwrap_or_default();
    let number = |greater: bool| match values.first().and_then(|value| value.parse().ok()) {
        Some(than) => Condition::Number { key: key.clone(), greater, than },
        None => Condition::Never,
    };
    let operator = match operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => return number(true),
        "Lt" => return number(false),
        _ => return Condition::Never,
    };
    Condition::Label(Requirement { key: key.clone(), operator, values })
}

fn term(term: &NodeSelectorTerm) -> Term {
    let labels = term.match_expressions.iter().flatten().map(condition);
    // The only field there is: metadata.name.
    let fields = term.match_fields.iter().flatten().map(|requirement| match condition(requirement) {
        Condition::Label(requirement) => Condition::Name(requirement),
        _ => Condition::Never,
    });
    Term(labels.chain(fields).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (resource, text, expected) in [
            ("cpu", "250m", 250),
            ("cpu", "1.5", 1_500),
            ("cpu", "2", 2_000),
            ("memory", "128Mi", 134_217_728),
            ("memory", "1G", 1_000_000_000),
            ("memory", "1e3", 1_000),
            ("memory", "1E", 1_000_000_000_000_000_000),
            ("memory", "500m", 1),
            ("example.com/gpu", "2", 2),
            ("memory", "nonsense", 0),
            ("memory", "1Zi", 0),
        ] {
            assert_eq!(amount(resource, &Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_requests_what_its_containers_do_or_an_init_container_that_wants_more() {
        let spec = |init: serde_json::Value| {
            let raw = serde_json::json!({
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Ki"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "100m"}}}
                ],
                "initContainers": init, "overhead": {"cpu": "5m"}
            });
            requests(&serde_json::from_value(raw).unwrap())
        };
        let wanted = |cpu: u64, memory: u64| {
            Amounts::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory), ("pods".to_owned(), 1)])
        };
        let first = serde_json::json!({"name": "i", "resources": {"requests": {"cpu": "195m", "memory": "3Ki"}}});
        let sidecar =
            serde_json::json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "10m"}}});
        assert_eq!(spec(serde_json::json!([first, sidecar])), wanted(215, 3_072));
        // What starts after a sidecar runs beside it.
        let big = serde_json::json!({"name": "i", "resources": {"requests": {"cpu": "300m"}}});
        assert_eq!(spec(serde_json::json!([sidecar, big])), wanted(315, 1_024));
    }

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
        let fact = Pod::from_kubernetes(&pod);
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
        let plain = Pod::from_kubernetes(&v1::Pod::default());
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
            let pod: v1::Pod = serde_json::from_value(raw.clone()).unwrap();
            assert_eq!(Pod::from_kubernetes(&pod).tolerates_cordon, expected, "{raw}");
        }
    }
}
