//! Writing Nodes: cordon, load balancer label, taints, and the conditions of KEP-5683.
//!
//! These are merge patches that carry the resourceVersion, not server-side apply: a Node's taints are one atomic list,
//! which apply could only own whole. What we did is recognised by our annotation, by the label's value and by the
//! taints' keys, so that only that is undone.

use super::{ApplyError, Writer};
use crate::gather::{EXCLUDE_LABEL, EXCLUDED_BY_US, NodeFact, TruceNote};
use bascule_api::{
    AUTOSCALER_ANNOTATIONS, CORDONED_BY_ANNOTATION, HOLD_TAINT, OLD_HOLD_TAINT, OPERATOR_MANAGER, OUTDATED_TAINT,
    TRUCE_ANNOTATION, Time,
};
use bascule_planner::{plan::Taint, snapshot::Excluded};
use k8s_openapi::api::core::v1::{Node, Taint as NodeTaint};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What [`AUTOSCALER_ANNOTATIONS`] say.
const LEAVE_ALONE: &str = "true";

/// The patch that cordons a node; `None` where it shows that already.
pub(super) fn cordon(node: &NodeFact, mark: &str) -> Option<Value> {
    let marked = node.cordon_mark.as_deref() == Some(mark);
    let mut annotations = truce_annotations(node);
    if marked && node.cordon.is_cordoned() && node.labels.contains_key(EXCLUDE_LABEL) && annotations.is_empty() {
        return None;
    }
    annotations.insert(CORDONED_BY_ANNOTATION.to_owned(), json!(mark));
    let mut patch = json!({"metadata": {"annotations": annotations}, "spec": {"unschedulable": true}});
    if !node.labels.contains_key(EXCLUDE_LABEL)
        && let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("labels".to_owned(), json!({EXCLUDE_LABEL: EXCLUDED_BY_US}));
    }
    Some(patch)
}

/// The annotations that ask autoscalers to leave a node alone while it is under way, and remember what others had said;
/// none where it shows that already.
fn truce_annotations(node: &NodeFact) -> serde_json::Map<String, Value> {
    let mut annotations = serde_json::Map::new();
    let said = |key: &str| node.autoscaler_annotations.get(key).map(String::as_str);
    // What stands there under a truce is ours.
    let before =
        node.truce_note.as_ref().map_or_else(|| node.autoscaler_annotations.clone(), |note| note.before.clone());
    if node.truce_note.as_ref().is_none_or(|note| note.until.is_some()) {
        let note = TruceNote { until: None, before };
        annotations.insert(TRUCE_ANNOTATION.to_owned(), json!(serde_json::to_string(&note).unwrap_or_default()));
    }
    for key in AUTOSCALER_ANNOTATIONS.iter().filter(|key| said(key) != Some(LEAVE_ALONE)) {
        annotations.insert((*key).to_owned(), json!(LEAVE_ALONE));
    }
    annotations
}

/// The patch that asks autoscalers to leave a node alone, and load balancers where that is wanted; `None` where it shows
/// that already.
pub(super) fn truce(node: &NodeFact, exclude: bool) -> Option<Value> {
    let mut metadata = serde_json::Map::new();
    let annotations = truce_annotations(node);
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    if exclude && node.excluded() == Excluded::No {
        metadata.insert("labels".to_owned(), json!({EXCLUDE_LABEL: EXCLUDED_BY_US}));
    }
    (!metadata.is_empty()).then(|| json!({"metadata": metadata}))
}

/// The patch that puts back what others had said to autoscalers, and into load balancers what we took out; `None` where
/// nothing of ours is left. What somebody wrote since is left as it is.
pub(super) fn end_truce(node: &NodeFact) -> Option<Value> {
    let mut metadata = serde_json::Map::new();
    if let Some(note) = &node.truce_note {
        let mut annotations = serde_json::Map::from_iter([(TRUCE_ANNOTATION.to_owned(), Value::Null)]);
        for key in AUTOSCALER_ANNOTATIONS {
            let before = note.before.get(key);
            if node.autoscaler_annotations.get(key).is_some_and(|now| now == LEAVE_ALONE && before != Some(now)) {
                annotations.insert(key.to_owned(), json!(before));
            }
        }
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    // Under a cordon of ours it goes with that.
    if node.cordon_mark.is_none() && node.excluded() == Excluded::ByUs {
        metadata.insert("labels".to_owned(), json!({EXCLUDE_LABEL: null}));
    }
    (!metadata.is_empty()).then(|| json!({"metadata": metadata}))
}

/// The patch that undoes our cordon; `None` where nothing of ours is left. Autoscalers leave the node alone until the time
/// given.
pub(super) fn uncordon(node: &NodeFact, remove_outdated: bool, truce_until: Time) -> Option<Value> {
    let mut metadata = serde_json::Map::new();
    let mut spec = serde_json::Map::new();
    if node.cordon_mark.is_some() {
        let mut annotations = serde_json::Map::from_iter([(CORDONED_BY_ANNOTATION.to_owned(), Value::Null)]);
        if let Some(note) = &node.truce_note {
            let note = TruceNote { until: Some(truce_until), before: note.before.clone() };
            annotations.insert(TRUCE_ANNOTATION.to_owned(), json!(serde_json::to_string(&note).unwrap_or_default()));
        }
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
        if node.cordon.is_cordoned() {
            spec.insert("unschedulable".to_owned(), Value::Null);
        }
    }
    if node.excluded() == Excluded::ByUs {
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
    let is_it = |key: &str| key == taint.key() || (taint.key() == HOLD_TAINT && key == OLD_HOLD_TAINT);
    let there = node.taints.iter().any(|found| is_it(&found.key));
    if there == wanted {
        return None;
    }
    let mut taints: Vec<NodeTaint> = node.taints.iter().filter(|found| !is_it(&found.key)).cloned().collect();
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
            "metadata": {"name": "n1", "labels": {EXCLUDE_LABEL: "bascule"}, "annotations": {
                CORDONED_BY_ANNOTATION: "n1/1", TRUCE_ANNOTATION: "{}", AUTOSCALER_ANNOTATIONS[0]: "true",
                AUTOSCALER_ANNOTATIONS[1]: "true"}},
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
        assert!(uncordon(&theirs, true, Time::default()).is_none(), "an admin's cordon and label stay");
        let mixed = node(json!({
            "metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/1"}, "labels": {EXCLUDE_LABEL: "true"}},
            "spec": {"unschedulable": true, "taints": [
                {"key": OUTDATED_TAINT, "effect": "PreferNoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}]}
        }));
        let patch = uncordon(&mixed, true, Time::default()).unwrap();
        assert!(patch["metadata"].get("labels").is_none());
        assert_eq!(patch["spec"]["unschedulable"], Value::Null);
        assert_eq!(patch["spec"]["taints"], json!([{"key": "gpu", "effect": "NoSchedule"}]));
        assert!(uncordon(&mixed, false, Time::default()).unwrap()["spec"].get("taints").is_none());
    }

    #[test]
    fn uncordoned_by_somebody_else_only_our_mark_goes() {
        let marked = node(json!({"metadata": {"name": "n1", "annotations": {CORDONED_BY_ANNOTATION: "n1/1"}}}));
        let patch = uncordon(&marked, false, Time::default()).unwrap();
        assert!(patch["spec"].get("unschedulable").is_none());
    }

    /// What a merge patch makes of a node's annotations and labels.
    fn patched(node: &Value, patch: &Value) -> Value {
        let mut node = node.clone();
        for map in ["annotations", "labels"] {
            for (key, value) in patch["metadata"][map].as_object().into_iter().flatten() {
                match value {
                    Value::Null => drop(node["metadata"][map].as_object_mut().unwrap().remove(key)),
                    value => node["metadata"][map][key] = value.clone(),
                }
            }
        }
        node
    }

    #[test]
    fn what_others_had_said_to_autoscalers_is_put_back() {
        let [scale_down, disrupt] = AUTOSCALER_ANNOTATIONS;
        for (said, later, left) in [
            (json!({}), None, json!({})),
            (json!({scale_down: "true"}), None, json!({scale_down: "true"})),
            (json!({scale_down: "false", "other": "x"}), None, json!({scale_down: "false", "other": "x"})),
            (json!({disrupt: "4h"}), Some("false"), json!({disrupt: "false"})),
        ] {
            let before = json!({"metadata": {"name": "n1", "annotations": said}});
            let mut held = patched(&before, &cordon(&node(before.clone()), "n1/1").unwrap());
            for key in AUTOSCALER_ANNOTATIONS {
                assert_eq!(held["metadata"]["annotations"][key], "true");
            }
            assert_eq!(node(held.clone()).truce(), bascule_planner::snapshot::Truce::Held);
            assert!(truce(&node(held.clone()), true).is_none(), "said once");
            if let Some(later) = later {
                held["metadata"]["annotations"][disrupt] = json!(later);
            }
            let until = Time::new(chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap());
            let freed = patched(&held, &uncordon(&node(held.clone()), false, until).unwrap());
            assert_eq!(node(freed.clone()).truce(), bascule_planner::snapshot::Truce::Until(until));
            // Taken again before that: what was there first is still known.
            if later.is_none() {
                let again = patched(&freed, &truce(&node(freed.clone()), false).unwrap());
                assert_eq!(
                    patched(&again, &end_truce(&node(again.clone())).unwrap())["metadata"]["annotations"][scale_down],
                    left[scale_down]
                );
            }
            let ended = patched(&freed, &end_truce(&node(freed.clone())).unwrap());
            assert_eq!(ended["metadata"]["annotations"], left);
            assert!(end_truce(&node(ended)).is_none());
        }
    }

    #[test]
    fn a_node_that_somebody_else_cordoned_leaves_load_balancers_and_comes_back_to_them() {
        let theirs = |labels: Value| {
            node(json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"unschedulable": true}}))
        };
        assert_eq!(truce(&theirs(json!({})), true).unwrap()["metadata"]["labels"], json!({EXCLUDE_LABEL: "bascule"}));
        assert!(truce(&theirs(json!({})), false).unwrap()["metadata"].get("labels").is_none());
        assert!(truce(&theirs(json!({EXCLUDE_LABEL: "true"})), true).unwrap()["metadata"].get("labels").is_none());
        let end = end_truce(&theirs(json!({EXCLUDE_LABEL: "bascule"}))).unwrap();
        assert_eq!(end, json!({"metadata": {"labels": {EXCLUDE_LABEL: null}}}), "the cordon stays");
        assert!(end_truce(&theirs(json!({EXCLUDE_LABEL: "true"}))).is_none());
    }

    #[test]
    fn the_hold_of_an_older_operator_is_taken_off_too() {
        let held = node(
            json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": OLD_HOLD_TAINT, "effect": "NoSchedule"}]}}),
        );
        assert!(held.our_taints().hold && taint(&held, Taint::Hold, true).is_none());
        assert_eq!(taint(&held, Taint::Hold, false).unwrap()["spec"]["taints"], json!([]));
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
