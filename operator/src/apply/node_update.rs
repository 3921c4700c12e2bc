//! Writing NodeUpdates: the operator's word to the agents, and its explanation to people.

use super::{ApplyError, Writer};
use crate::gather::{Key, NodeFact, UpdateFact};
use bascule_api::{NodeUpdate, NodeUpdateSpec, OPERATOR_MANAGER, Rollout};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

impl Writer {
    fn updates(&self) -> Api<NodeUpdate> {
        Api::all(self.client.clone())
    }

    /// Creates the NodeUpdate of a node, owned by it. One that is there already, unseen, is not touched: it may hold a grant.
    pub(super) async fn create_update(&self, node: &NodeFact, spec: &NodeUpdateSpec) -> Result<(), ApplyError> {
        let object = || format!("NodeUpdate {}", node.name);
        let new: NodeUpdate = serde_json::from_value(document(node, None, spec))
            .map_err(|error| ApplyError::of(object(), kube::Error::SerdeError(error)))?;
        let params = PostParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
        let written = self.updates().create(&params, &new).await;
        let written = written.map_err(|error| ApplyError::of(object(), error))?;
        self.metrics.wrote("NodeUpdate");
        self.world.updates.written(&written);
        Ok(())
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
        let object = || format!("NodeUpdate {}", node.name);
        // With these an object that was deleted or changed meanwhile is neither created anew nor overwritten.
        let seen = json!({"uid": update.uid, "resourceVersion": update.resource_version});
        let document = document(node, Some(seen), spec);
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let written = self.updates().patch(&node.name, &params, &Patch::Apply(&document)).await;
        let written = written.map_err(|error| ApplyError::of(object(), error))?;
        self.metrics.wrote("NodeUpdate");
        // Whatever comes of the rest: a grant may be among what is written now.
        self.world.updates.written(&written);
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
        }
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
        let updates = self.updates();
        let patch = Patch::Apply(&document);
        let written = updates.patch_status(node, &params, &patch);
        let written = tokio::time::timeout(super::statuses::SLOW_STATUS, written).await;
        let written = written.map_err(|_| ApplyError::TooSlow { action: "the status" })?;
        let written = written.map_err(|error| ApplyError::of(format!("the status of NodeUpdate {node}"), error))?;
        self.metrics.wrote("NodeUpdate/status");
        self.world.updates.written(&written);
        Ok(())
    }
}

/// A NodeUpdate as it is written, with what else its metadata say.
fn document(node: &NodeFact, seen: Option<Value>, spec: &NodeUpdateSpec) -> Value {
    let mut metadata = json!({
        "name": node.name,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
    });
    if let (Some(metadata), Some(Value::Object(seen))) = (metadata.as_object_mut(), seen) {
        metadata.extend(seen);
    }
    json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": metadata, "spec": spec})
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
    use crate::{
        clock::Clock,
        events::Events,
        gather::{Caches, Fact as _},
        metrics::Metrics,
    };
    use axum::{
        Json, Router,
        http::{HeaderMap, StatusCode},
        routing::patch,
    };
    use kube::{Client, Config};
    use std::sync::Arc;

    #[tokio::test]
    async fn what_is_written_is_known_though_what_somebody_else_wrote_could_not_be_set_right() {
        bascule_tests::install_tls_provider();
        let object = |version: &str, spec: Value| {
            json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
                "metadata": {"name": "n1", "uid": "u", "resourceVersion": version}, "spec": spec,
            })
        };
        let wanted = json!({"policy": "p", "grant": {"bootID": "b", "generation": 1}});
        let mut found = wanted.clone();
        found["retry"] = json!("2026-11-21T12:00:00Z");
        let answer = object("8", found);
        let write = async move |headers: HeaderMap| {
            if headers.get("content-type").is_some_and(|kind| kind == "application/merge-patch+json") {
                let denied = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                    "message": "denied", "reason": "Forbidden"});
                (StatusCode::FORBIDDEN, Json(denied))
            } else {
                (StatusCode::OK, Json(answer))
            }
        };
        let router = Router::new().route("/apis/bascule.dev/v1alpha1/nodeupdates/n1", patch(write));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
        let world = Caches::new(Arc::new(tokio::sync::watch::Sender::new(0)), &Clock::system());
        let (events, _told) = Events::to_nowhere();
        let writer = Writer::new(client, world.clone(), Metrics::new(), events);

        let node = NodeFact::of(&serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "n"}})).unwrap());
        let update = UpdateFact::of(&serde_json::from_value(object("7", json!({"policy": "p"}))).unwrap());
        let spec: NodeUpdateSpec = serde_json::from_value(wanted).unwrap();
        let error = writer.write_spec(&node, &update, &spec).await.unwrap_err();
        assert_eq!(error.category(), "refused");
        let known = world.updates.get(&Key::cluster("n1")).unwrap();
        assert_eq!(known.facts.spec.grant, spec.grant);
    }

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
