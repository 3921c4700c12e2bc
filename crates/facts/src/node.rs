//! What decisions need to know of a Node object. Its list of images alone would be most of the operator's memory.

use crate::{
    Fact, PodFact, Untyped, fact,
    needs::{amounts, barrier},
};
use bascule_api::{
    AUTOSCALER_ANNOTATIONS, Architecture, CORDONED_BY_ANNOTATION, HOLD_TAINT, LEAVING_TAINTS, OLD_HOLD_TAINT,
    OUTDATED_TAINT, TRUCE_ANNOTATION, Time,
};
use bascule_planner::{
    drain::Space,
    snapshot::{Cordon, Excluded, Readiness, Taints, Truce},
};
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Marks control-plane nodes (Kubernetes, "Well-known labels").
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Takes a node out of external load balancers (Kubernetes, "Well-known labels").
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The label's value when we put it there; its presence alone counts for load balancers.
pub const EXCLUDED_BY_US: &str = "bascule";

/// One Node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFact {
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
    /// For writes that must not overwrite what somebody else wrote meanwhile.
    pub resource_version: String,
    /// When it was created.
    pub created_at: Time,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The kubelet's Ready condition.
    pub ready: Readiness,
    /// Whether it is cordoned, and by whom.
    pub cordon: Cordon,
    /// Our annotation, whether or not the node is cordoned.
    pub cordon_mark: Option<String>,
    /// What stands in our annotation while autoscalers are asked to leave the node alone.
    pub truce_note: Option<TruceNote>,
    /// What the node says to autoscalers.
    pub autoscaler_annotations: BTreeMap<String, String>,
    /// What its pods may request in all.
    pub allocatable: BTreeMap<String, u64>,
    /// All its taints.
    pub taints: Vec<Taint>,
    /// The boot the kubelet reports from.
    pub boot_id: String,
    /// When this operator, leading or not, saw that boot first.
    pub boot_seen: Time,
    /// When this operator, leading or not, could read it again after it could not, the last time.
    pub read_again: Option<Time>,
    /// Its architecture, where releases exist for such.
    pub architecture: Option<Architecture>,
    /// The conditions of KEP-5683 on it, type and status.
    pub maintenance: BTreeMap<String, bool>,
}

impl NodeFact {
    /// Whether it is a control-plane node.
    #[must_use]
    pub fn control_plane(&self) -> bool {
        self.labels.contains_key(CONTROL_PLANE_LABEL)
    }

    /// The taints of ours.
    #[must_use]
    pub fn our_taints(&self) -> Taints {
        let has = |key: &str| self.taints.iter().any(|taint| taint.key == key);
        Taints { outdated: has(OUTDATED_TAINT), hold: has(HOLD_TAINT) || has(OLD_HOLD_TAINT) }
    }

    /// Whether autoscalers are asked to leave it alone.
    #[must_use]
    pub fn truce(&self) -> Truce {
        match &self.truce_note {
            None => Truce::None,
            Some(TruceNote { until: None, .. }) => Truce::Held,
            Some(TruceNote { until: Some(until), .. }) => Truce::Until(*until),
        }
    }

    /// Whether it is taken out of external load balancers.
    #[must_use]
    pub fn excluded(&self) -> Excluded {
        match self.labels.get(EXCLUDE_LABEL).map(String::as_str) {
            None => Excluded::No,
            Some(EXCLUDED_BY_US) => Excluded::ByUs,
            Some(_) => Excluded::ByOthers,
        }
    }

    /// What it has to give beside the pods that it has.
    #[must_use]
    pub fn space<'a>(&self, pods: impl Iterator<Item = &'a PodFact>) -> Space {
        let keeps =
            |taint: &&Taint| taint.effect != "PreferNoSchedule" && taint.key != "node.kubernetes.io/unschedulable";
        let mut free = self.allocatable.clone();
        for (resource, much) in pods.filter(|pod| !pod.finished).flat_map(|pod| &pod.needs.requests) {
            if let Some(free) = free.get_mut(resource) {
                *free = free.saturating_sub(*much);
            }
        }
        Space { free, barriers: self.taints.iter().filter(keeps).map(barrier).collect() }
    }

    /// The taint by which an autoscaler says that it removes the node.
    #[must_use]
    pub fn leaving(&self) -> Option<String> {
        let says = |taint: &&Taint| LEAVING_TAINTS.contains(&taint.key.as_str());
        self.taints.iter().find(says).map(|taint| taint.key.clone())
    }
}

/// What our annotation says while autoscalers are asked to leave a node alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TruceNote {
    /// Until when; absent: as long as the node is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// What others had said by the same annotations, to be put back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<String, String>,
}

impl Fact for NodeFact {
    type Raw = Node;

    fn of(node: &Node) -> Self {
        let (meta, spec) = (&node.metadata, node.spec.as_ref());
        let status = node.status.as_ref();
        let info = status.and_then(|status| status.node_info.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let cordon_mark =
            meta.annotations.as_ref().and_then(|annotations| annotations.get(CORDONED_BY_ANNOTATION)).cloned();
        let cordoned = spec.and_then(|spec| spec.unschedulable) == Some(true);
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        Self {
            name: fact::name(node),
            uid: fact::uid(node),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            created_at: fact::created(node),
            deleting: meta.deletion_timestamp.is_some(),
            labels: Arc::new(meta.labels.clone().unwrap_or_default()),
            ready: Readiness {
                ready: ready.is_some_and(|condition| condition.status == "True"),
                since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(Time::from_kubernetes),
            },
            cordon: match (cordoned, &cordon_mark) {
                (false, None) => Cordon::None,
                (false, Some(mark)) => Cordon::Lifted { mark: mark.clone() },
                (true, Some(mark)) => Cordon::Ours { mark: mark.clone() },
                (true, None) => {
                    let (by, since) = who_cordoned(meta.managed_fields.as_deref().unwrap_or_default());
                    Cordon::Other { by, since }
                }
            },
            cordon_mark,
            // One that can't be read is ours all the same, and says nothing of what was before.
            truce_note: annotation(TRUCE_ANNOTATION).map(|text| serde_json::from_str(&text).unwrap_or_default()),
            autoscaler_annotations: AUTOSCALER_ANNOTATIONS
                .iter()
                .filter_map(|key| Some(((*key).to_owned(), annotation(key)?)))
                .collect(),
            allocatable: amounts(status.and_then(|status| status.allocatable.as_ref())),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            boot_id: info.map(|info| info.boot_id.clone()).unwrap_or_default(),
            boot_seen: Time::default(),
            read_again: None,
            architecture: info.and_then(|info| architecture(&info.architecture)),
            maintenance: conditions
                .iter()
                .filter(|condition| MAINTENANCE_CONDITIONS.contains(&condition.type_.as_str()))
                .map(|condition| (condition.type_.clone(), condition.status == "True"))
                .collect(),
        }
    }

    /// One that was never read is at least there.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self> {
        let by_its_metadata = || Self::of(&Node { metadata: untyped.metadata().clone(), ..Node::default() });
        before.is_none().then(by_its_metadata)
    }

    fn follow(&mut self, before: Option<&Self>, now: Time) {
        let same = before.filter(|before| before.uid == self.uid && before.boot_id == self.boot_id);
        self.boot_seen = same.map_or(now, |before| before.boot_seen);
        self.read_again = before.filter(|before| before.uid == self.uid).and_then(|before| before.read_again);
    }

    fn is_read_again(&mut self, now: Time) {
        self.read_again = Some(now);
    }

    fn is_news(&self, before: &Self) -> bool {
        *self != Self { resource_version: self.resource_version.clone(), ..before.clone() }
    }
}

/// The conditions of KEP-5683.
pub const MAINTENANCE_CONDITIONS: [&str; 3] = [
    bascule_api::conditions::NODE_DRAIN_IN_PROGRESS,
    bascule_api::conditions::NODE_DRAINED,
    bascule_api::conditions::NODE_MAINTENANCE_IN_PROGRESS,
];

/// `nodeInfo.architecture` is Go's name; releases use the Discoverable Partitions' names.
fn architecture(go: &str) -> Option<Architecture> {
    match go {
        "amd64" => "x86-64".parse().ok(),
        other => other.parse().ok(),
    }
}

/// Who owns `spec.unschedulable`, as far as the API server remembers.
fn who_cordoned(managed: &[ManagedFieldsEntry]) -> (Option<String>, Option<Time>) {
    managed
        .iter()
        .find(|entry| {
            entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec")?.get("f:unschedulable")).is_some()
        })
        .map(|entry| (entry.manager.clone(), entry.time.as_ref().map(Time::from_kubernetes)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(json: serde_json::Value) -> NodeFact {
        NodeFact::of(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_cordon_of_ours_is_told_from_another_ones() {
        let ours = node(serde_json::json!({
            "metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/3"}}, "spec": {"unschedulable": true}
        }));
        assert_eq!(ours.cordon, Cordon::Ours { mark: "n1/3".into() });
        let uncordoned = node(serde_json::json!({
            "metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/3"}}
        }));
        assert_eq!(uncordoned.cordon, Cordon::Lifted { mark: "n1/3".into() });
        assert_eq!(uncordoned.cordon_mark.as_deref(), Some("n1/3"));
        let theirs = node(serde_json::json!({
            "metadata": {"name": "n1", "managedFields": [
                {"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}},
                {"manager": "kubectl-cordon", "operation": "Update", "time": "2026-11-18T01:12:00Z",
                 "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}
            ]},
            "spec": {"unschedulable": true}
        }));
        let Cordon::Other { by, since } = theirs.cordon else { panic!("{:?}", theirs.cordon) };
        assert_eq!(by.as_deref(), Some("kubectl-cordon"));
        assert_eq!(since.unwrap().to_string(), "2026-11-18T01:12:00Z");
    }

    #[test]
    fn a_boot_is_seen_once_and_another_one_later() {
        let shows = |uid: &str, boot: &str, before: Option<&NodeFact>, second: i64| {
            let mut fact = node(serde_json::json!({
                "metadata": {"name": "n1", "uid": uid},
                "status": {"nodeInfo": {"bootID": boot, "architecture": "amd64", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                    "operatingSystem": "", "osImage": "", "systemUUID": ""}}
            }));
            fact.follow(before, Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap()));
            fact
        };
        let seen = |fact: &NodeFact| fact.boot_seen.get().timestamp();
        let first = shows("u", "b1", None, 10);
        let later = shows("u", "b1", Some(&first), 20);
        assert_eq!((seen(&first), seen(&later)), (10, 10));
        let rebooted = shows("u", "b2", Some(&later), 30);
        assert_eq!(seen(&rebooted), 30);
        assert_eq!(seen(&shows("v", "b2", Some(&rebooted), 40)), 40, "a Node that was made anew");
    }

    #[test]
    fn what_autoscalers_publish_is_understood() {
        // Cluster autoscaler (its FAQ, "What are the key best practices…", "How can I prevent…"; `utils/taints`) and Karpenter
        // ("NodePools", "Disruption").
        for (taint, leaves) in [
            ("ToBeDeletedByClusterAutoscaler", true),
            ("karpenter.sh/disrupted", true),
            ("karpenter.sh/disruption", true),
            // A candidate is not removed yet, and a start-up taint is a node that comes.
            ("DeletionCandidateOfClusterAutoscaler", false),
            (HOLD_TAINT, false),
            ("karpenter.sh/unregistered", false),
        ] {
            let fact = node(serde_json::json!({
                "metadata": {"name": "n1"}, "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}
            }));
            assert_eq!(fact.leaving().is_some(), leaves, "{taint}");
        }
        assert!(HOLD_TAINT.starts_with("startup-taint.cluster-autoscaler.kubernetes.io/"));
        assert_eq!(
            AUTOSCALER_ANNOTATIONS,
            ["cluster-autoscaler.kubernetes.io/scale-down-disabled", "karpenter.sh/do-not-disrupt"]
        );
    }

    #[test]
    fn takes_boot_architecture_taints_and_readiness() {
        let fact = node(serde_json::json!({
            "metadata": {"name": "n1", "uid": "u", "labels": {CONTROL_PLANE_LABEL: ""}},
            "spec": {"taints": [{"key": HOLD_TAINT, "effect": "NoSchedule"}]},
            "status": {
                "conditions": [{"type": "Ready", "status": "Unknown"}, {"type": "Drained", "status": "True"}],
                "nodeInfo": {"architecture": "amd64", "bootID": "b1", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                    "osImage": "", "systemUUID": ""}
            }
        }));
        assert!(fact.control_plane() && !fact.ready.ready && fact.our_taints().hold && !fact.our_taints().outdated);
        assert_eq!((fact.boot_id.as_str(), fact.architecture.unwrap().as_str()), ("b1", "x86-64"));
        assert_eq!(fact.maintenance, BTreeMap::from([("Drained".to_owned(), true)]));
        assert!(architecture("riscv64").is_none() && architecture("arm64").is_some());
    }
}
