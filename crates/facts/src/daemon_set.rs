//! Which DaemonSets should have a pod on a node: the DaemonSet controller's own question, answered from what is cached.

use crate::{
    Fact, NodeFact,
    needs::{barrier, needs_of},
};
use bascule_planner::drain::Needs;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Taint};

/// The taints that the DaemonSet controller lets every pod of its tolerate
/// (Kubernetes, "DaemonSet", "Taints and tolerations").
const ALWAYS_TOLERATED: [&str; 6] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
];

/// One DaemonSet.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonSetFact {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID, by which its pods name it.
    pub uid: String,
    needs: Needs,
    node_name: Option<String>,
}

impl DaemonSetFact {
    /// `namespace/name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it should have a pod on a node.
    #[must_use]
    pub fn belongs_on(&self, node: &NodeFact) -> bool {
        self.node_name.as_ref().is_none_or(|name| *name == node.name)
            && self.needs.select(&node.name, &node.labels)
            && node.taints.iter().all(|taint| self.tolerates(taint))
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        taint.effect == "PreferNoSchedule"
            || ALWAYS_TOLERATED.contains(&taint.key.as_str())
            || self.needs.tolerate(&barrier(taint))
    }
}

impl Fact for DaemonSetFact {
    type Raw = DaemonSet;

    fn of(set: &DaemonSet) -> Self {
        let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        Self {
            namespace: set.metadata.namespace.clone().unwrap_or_default(),
            name: set.metadata.name.clone().unwrap_or_default(),
            uid: set.metadata.uid.clone().unwrap_or_default(),
            needs: needs_of(pod),
            node_name: pod.and_then(|pod| pod.node_name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;

    fn node(taints: serde_json::Value) -> NodeFact {
        let raw: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "labels": {"zone": "a", "disks": "4"}}, "spec": {"taints": taints}
        }))
        .unwrap();
        NodeFact::of(&raw)
    }

    fn set(pod: serde_json::Value) -> DaemonSetFact {
        let raw: DaemonSet = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "d", "namespace": "kube-system", "uid": "u"},
            "spec": {"selector": {}, "template": {"spec": pod}}
        }))
        .unwrap();
        DaemonSetFact::of(&raw)
    }

    fn affinity(operator: &str, key: &str, values: &[&str]) -> serde_json::Value {
        serde_json::json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}
            ]}
        }}})
    }

    #[test]
    fn selectors_and_affinity_decide() {
        let plain = node(serde_json::json!([]));
        assert!(set(serde_json::json!({"containers": []})).belongs_on(&plain));
        assert!(set(serde_json::json!({"containers": [], "nodeSelector": {"zone": "a"}})).belongs_on(&plain));
        assert!(!set(serde_json::json!({"containers": [], "nodeSelector": {"zone": "b"}})).belongs_on(&plain));
        for (operator, key, values, fits) in [
            ("In", "zone", &["a", "b"][..], true),
            ("NotIn", "zone", &["a"], false),
            ("Exists", "gpu", &[], false),
            ("DoesNotExist", "gpu", &[], true),
            ("Gt", "disks", &["3"], true),
            ("Lt", "disks", &["3"], false),
            ("Gt", "zone", &["3"], false),
        ] {
            assert_eq!(set(affinity(operator, key, values)).belongs_on(&plain), fits, "{operator} {key}");
        }
    }

    #[test]
    fn taints_keep_pods_away_unless_tolerated() {
        let bare = set(serde_json::json!({"containers": []}));
        let all = set(serde_json::json!({"containers": [], "tolerations": [{"operator": "Exists"}]}));
        let gpu = set(serde_json::json!({"containers": [], "tolerations": [
            {"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}));
        let gpu_taint = serde_json::json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
        for (taints, expected) in [
            (gpu_taint, (false, true, true)),
            (serde_json::json!([{"key": "gpu", "value": "no", "effect": "NoSchedule"}]), (false, true, false)),
            (
                serde_json::json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
                (true, true, true),
            ),
            (serde_json::json!([{"key": "bascule.dev/outdated", "effect": "PreferNoSchedule"}]), (true, true, true)),
        ] {
            let node = node(taints);
            assert_eq!((bare.belongs_on(&node), all.belongs_on(&node), gpu.belongs_on(&node)), expected);
        }
    }
}
