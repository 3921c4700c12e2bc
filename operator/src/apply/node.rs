//! Writing Nodes: cordon, load balancer label, taints, and the conditions of KEP-5683.
//!
//! These are merge patches that carry the resourceVersion, not server-side apply: a Node's taints are one atomic list,
//! which apply could only own whole. What we did is recognised by our annotation, by the label's value and by the
//! taints' keys, so that only that is undone.

use super::{ApplyError, Writer};
use crate::gather::NodeFact;
use bascule_api::{CORDONED_BY_ANNOTATION, OPERATOR_MANAGER, OUTDATED_TAINT, Time};
use bascule_planner::plan::Taint;
use k8s_openapi::api::core::v1::{Node, Taint as NodeTaint};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Takes a node out of external load balancers (Kubernetes, "Well-known labels").
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The label's value when we put it there; its presence alone counts for load balancers.
const EXCLUDED_BY_US: &str = "bascule";

/// The patch that cordons a node; `None` where it shows that already.
pub(super) fn cordon(node: &NodeFact, mark: &str) -> Option<Value> {
    let marked = node.cordon_mark.as_deref() == Some(mark);
    if marked && node.cordon.is_cordoned() && node.labels.contains_key(EXCLUDE_LABEL) {
        return None;
    }
    let mut patch = json!({
        "metadata": {"annotations": {CORDONED_BY_ANNOTATION: mark}},
        "spec": {"unschedulable": true},
    });
    if !node.labels.contains_key(EXCLUDE_LABEL)
        && let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("labels".to_owned(), json!({EXCLUDE_LABEL: EXCLUDED_BY_US}));
    }
    Some(patch)
}

/// The patch that undoes our cordon; `None` where nothing of ours is left.
pub(super) fn uncordon(node: &NodeFact, remove_outdated: bool) -> Option<Value> {
    let mut metadata = serde_json::Map::new();
    let mut spec = serde_json::Map::new();
    if node.cordon_mark.is_some() {
        metadata.insert("annotations".to_owned(), json!({CORDONED_BY_ANNOTATION: null}));
        if node.cordon.is_cordoned() {
            spec.insert("unschedulable".to_owned(), Value::Null);
        }
    }
    if node.labels.get(EXCLUDE_LABEL).is_some_and(|value| value == EXCLUDED_BY_US) {
        metadata.insert("labels".to_owned(), json!({EXCLUDE_LABEL: null}));
    }
    if remove_outdated && node.our_taints().outdated {
        spec.insert("taints".to_owned(), json!(without(&node.taints, OUTDATED_TAINT)));
    }
    if metadata.is_empty() && spec.is_empty() {
        return None;
    }
    Some(json!({"metadata": metadata, "spec": spec}))
}

/// The patch that puts a taint of ours on a node or takes it off; `None` where it shows that already.
pub(super) fn taint(node: &NodeFact, taint: Taint, wanted: bool) -> Option<Value> {
    let there = node.taints.iter().any(|found| found.key == taint.key());
    if there == wanted {
        return None;
    }
    let mut taints = without(&node.taints, taint.key());
    if wanted {
        let (key, effect) = (taint.key().to_owned(), taint.effect().to_owned());
        taints.push(NodeTaint { key, effect, ..NodeTaint::default() });
    }
    Some(json!({"spec": {"taints": taints}}))
}

fn without(taints: &[NodeTaint], key: &str) -> Vec<NodeTaint> {
    taints.iter().filter(|taint| taint.key != key).cloned().collect()
}

impl Writer {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Writes a patch of the functions above.
    pub(super) async fn patch_node(&self, node: &NodeFact, patch: Option<Value>) -> Result<bool, ApplyError> {
        let Some(mut patch) = patch else { return Ok(false) };
        if let Some(patch) = patch.as_object_mut() {
            let metadata = patch.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("uid".to_owned(), json!(node.uid));
                metadata.insert("resourceVersion".to_owned(), json!(node.resource_version));
            }
        }
        let params = PatchParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
        let written = self.nodes().patch(&node.name, &params, &Patch::Merge(&patch)).await;
        let written = written.map_err(|error| ApplyError::of(format!("Node {}", node.name), error))?;
        self.metrics.wrote("Node");
        self.world.nodes.written(&written);
        Ok(true)
    }

    /// Writes the conditions of KEP-5683, as a strategic merge by type.
    pub(crate) async fn write_maintenance(
        &self,
        node: &str,
        conditions: &BTreeMap<&'static str, bool>,
        message: &str,
        now: Time,
    ) -> Result<(), ApplyError> {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(type_, holds)| {
                json!({
                    "type": type_, "status": if *holds { "True" } else { "False" }, "reason": "BasculeUpdate",
                    "message": message, "lastTransitionTime": now, "lastHeartbeatTime": now,
                })
            })
            .collect();
        let patch = json!({"status": {"conditions": conditions}});
        let params = PatchParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
        let written = self.nodes().patch_status(node, &params, &Patch::Strategic(&patch)).await;
        let written = written.map_err(|error| ApplyError::of(format!("the status of Node {node}"), error))?;
        self.metrics.wrote("Node/status");
        self.world.nodes.written(&written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::Fact as _;

    fn node(json: Value) -> NodeFact {
        NodeFact::of(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_cordon_is_one_patch_and_is_not_repeated() {
        let plain = node(json!({"metadata": {"name": "n1"}}));
        let patch = cordon(&plain, "n1/1").unwrap();
        assert_eq!(patch["spec"]["unschedulable"], true);
        assert_eq!(patch["metadata"]["annotations"][CORDONED_BY_ANNOTATION], "n1/1");
        assert_eq!(patch["metadata"]["labels"][EXCLUDE_LABEL], "bascule");
        let done = node(json!({
            "metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/1"}, "labels": {EXCLUDE_LABEL: "bascule"}},
            "spec": {"unschedulable": true}
        }));
        assert!(cordon(&done, "n1/1").is_none());
        assert!(cordon(&done, "n1/2").is_some(), "another grant");
    }

    #[test]
    fn only_what_is_ours_is_undone() {
        let theirs = node(json!({
            "metadata": {"name": "n1", "labels": {EXCLUDE_LABEL: "true"}}, "spec": {"unschedulable": true}
        }));
        assert!(uncordon(&theirs, true).is_none(), "an admin's cordon and label stay");
        let mixed = node(json!({
            "metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/1"}, "labels": {EXCLUDE_LABEL: "true"}},
            "spec": {"unschedulable": true, "taints": [
                {"key": OUTDATED_TAINT, "effect": "PreferNoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}]}
        }));
        let patch = uncordon(&mixed, true).unwrap();
        assert!(patch["metadata"].get("labels").is_none());
        assert_eq!(patch["spec"]["unschedulable"], Value::Null);
        assert_eq!(patch["spec"]["taints"], json!([{"key": "gpu", "effect": "NoSchedule"}]));
        assert!(uncordon(&mixed, false).unwrap()["spec"].get("taints").is_none());
    }

    #[test]
    fn uncordoned_by_somebody_else_only_our_mark_goes() {
        let marked = node(json!({"metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/1"}}}));
        let patch = uncordon(&marked, false).unwrap();
        assert!(patch["spec"].get("unschedulable").is_none());
    }

    #[test]
    fn other_taints_are_kept() {
        let gpu =
            node(json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}));
        let patch = taint(&gpu, Taint::Hold, true).unwrap();
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 2);
        assert!(taint(&gpu, Taint::Hold, false).is_none());
    }
}
