//! Writing NodeUpdates: the operator's word to the agents, and its explanation to people.

use super::{ApplyError, Writer};
use crate::gather::{Key, NodeFact, UpdateFact};
use bascule_api::{NodeUpdate, NodeUpdateSpec, OPERATOR_MANAGER, Rollout};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

impl Writer {
    fn updates(&self) -> Api<NodeUpdate> {
        Api::all(self.client.clone())
    }

    /// Creates the NodeUpdate of a node, owned by it.
    pub(super) async fn create_update(&self, node: &NodeFact, spec: &NodeUpdateSpec) -> Result<(), ApplyError> {
        self.apply_spec(node, None, spec).await
    }

    /// Writes the whole spec, if it differs.
    pub(super) async fn write_spec(
        &self,
        node: &NodeFact,
        update: &UpdateFact,
        spec: &NodeUpdateSpec,
    ) -> Result<(), ApplyError> {
        if update.facts.spec == *spec {
            return Ok(());
        }
        self.apply_spec(node, Some(update), spec).await
    }

    async fn apply_spec(
        &self,
        node: &NodeFact,
        before: Option<&UpdateFact>,
        spec: &NodeUpdateSpec,
    ) -> Result<(), ApplyError> {
        let object = || format!("NodeUpdate {}", node.name);
        let mut document = json!({
            "apiVersion": "bascule.dev/v1alpha1",
            "kind": "NodeUpdate",
            "metadata": {
                "name": node.name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
            },
            "spec": spec,
        });
        if let Some(before) = before
            && let Some(metadata) = document.get_mut("metadata").and_then(serde_json::Value::as_object_mut)
        {
            // With these an object that was deleted or changed meanwhile is neither created anew nor overwritten.
            metadata.insert("uid".to_owned(), json!(before.uid));
            metadata.insert("resourceVersion".to_owned(), json!(before.resource_version));
        }
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let written = self.updates().patch(&node.name, &params, &Patch::Apply(&document)).await;
        let written = written.map_err(|error| ApplyError::of(object(), error))?;
        self.metrics.wrote("NodeUpdate");
        if written.spec != *spec {
            // Somebody else wrote fields that apply leaves to them. Nobody edits this object by hand, so it is set right.
            tracing::warn!(node = node.name, "the NodeUpdate was edited by hand and is set right");
            let found = serde_json::to_value(&written.spec).unwrap_or_default();
            let patch = json!({
                "metadata": {"resourceVersion": written.metadata.resource_version},
                "spec": correction(&found, &json!(spec)),
            });
            let params = PatchParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
            let written = self.updates().patch(&node.name, &params, &Patch::Merge(&patch)).await;
            let written = written.map_err(|error| ApplyError::of(object(), error))?;
            self.metrics.wrote("NodeUpdate");
            self.world.updates.written(&written);
            return Ok(());
        }
        self.world.updates.written(&written);
        Ok(())
    }

    /// Writes the explanation.
    pub(crate) async fn write_rollout(&self, node: &str, rollout: &Rollout) -> Result<(), ApplyError> {
        let Some(update) = self.world.updates.get(&Key::cluster(node)) else { return Ok(()) };
        let document = json!({
            "apiVersion": "bascule.dev/v1alpha1",
            "kind": "NodeUpdate",
            "metadata": {"name": node, "uid": update.uid},
            "status": {"rollout": rollout},
        });
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let written = self.updates().patch_status(node, &params, &Patch::Apply(&document)).await;
        let written = written.map_err(|error| ApplyError::of(format!("the status of NodeUpdate {node}"), error))?;
        self.metrics.wrote("NodeUpdate/status");
        self.world.updates.written(&written);
        Ok(())
    }
}

/// The merge patch (RFC 7396) that turns one object into another: what is too much becomes null.
fn correction(found: &Value, wanted: &Value) -> Value {
    let (Some(found), Some(wanted)) = (found.as_object(), wanted.as_object()) else { return wanted.clone() };
    let mut patch: serde_json::Map<String, Value> =
        found.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in wanted {
        let value = found.get(key).map_or_else(|| value.clone(), |before| correction(before, value));
        patch.insert(key.clone(), value);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_removes_what_is_too_much_at_every_depth() {
        let found = json!({"goal": "Booted", "grant": {"generation": 9}, "disruption": {"a": 1, "b": 2}});
        let wanted = json!({"goal": "Idle", "disruption": {"a": 3}});
        assert_eq!(
            correction(&found, &wanted),
            json!({"goal": "Idle", "grant": null, "disruption": {"a": 3, "b": null}})
        );
    }
}
