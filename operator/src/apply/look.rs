//! What is read past every watch before a word that can't be taken back: a watch that is late does not show what has become of a node
//! since. Each is one list of what belongs to one node, which the API server answers from what is so now.

use super::{ApplyError, Writer};
use crate::gather::{Fact as _, Key, NodeFact, node_now};
use bascule_api::NodeUpdate;
use bascule_planner::plan::Judged;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::ListParams};

impl Writer {
    /// Before a reboot, a node's pods: one may have come before the cordon, and a node goes down only with pods that the plan knew of.
    pub(super) async fn look_at_pods(&self, node: &str) -> Result<(), ApplyError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let found =
            pods.list(&params).await.map_err(|error| ApplyError::unread(format!("the pods of Node {node}"), error))?;
        let before = self.world.pods.of_place(node);
        for pod in &found.items {
            self.world.pods.written(pod);
        }
        if before == self.world.pods.of_place(node) {
            return Ok(());
        }
        Err(ApplyError::Conflict(format!("what runs on Node {node}")))
    }

    /// Before a verdict on a trial, its Node. The verdict is about one boot, in which the machine may have lost its power since; and
    /// about a kubelet that was Ready in it, or was not.
    pub(super) async fn look_at_node(&self, known: &NodeFact) -> Result<(), ApplyError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let what = || format!("Node {}", known.name);
        let params = ListParams::default().fields(&format!("metadata.name={}", known.name));
        let found = nodes.list(&params).await.map_err(|error| ApplyError::unread(what(), error))?;
        let found = found.items.into_iter().next().ok_or_else(|| ApplyError::Gone(what()))?;
        let now = NodeFact::of(&found);
        if (&now.uid, &now.boot_id, now.ready) == (&known.uid, &known.boot_id, known.ready) {
            return Ok(());
        }
        self.world.nodes.written(&found);
        Err(ApplyError::Conflict(what()))
    }

    /// Before a verdict is remembered, the Node and the NodeUpdate of its trial: what a policy remembers carries no version of either.
    pub(super) async fn look_at_trial(&self, trial: &Judged) -> Result<(), ApplyError> {
        let gone = || ApplyError::Gone(format!("Node {}", trial.node));
        let node = self.world.nodes.get(&Key::cluster(&trial.node)).ok_or_else(gone)?;
        self.look_at_node(&node).await?;
        let updates: Api<NodeUpdate> = Api::all(self.client.clone());
        let what = || format!("NodeUpdate {}", trial.node);
        let params = ListParams::default().fields(&format!("metadata.name={}", trial.node));
        let found = updates.list(&params).await.map_err(|error| ApplyError::unread(what(), error))?;
        let found = found.items.into_iter().next().ok_or_else(|| ApplyError::Gone(what()))?;
        self.world.updates.written(&found);
        let now = node_now(&self.world, &trial.node).ok_or_else(gone)?;
        trial.expect.check(&now)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, events::Events, gather::World, metrics::Metrics};
    use axum::{
        Json, Router,
        http::{StatusCode, Uri},
        routing::get,
    };
    use bascule_planner::{Action, Expect, Step};
    use kube::{Client, Config};
    use serde_json::{Value, json};
    use std::sync::Arc;

    const NOON: &str = "2026-11-21T12:00:00Z";

    fn node(version: &str, boot: &str, (ready, since): (&str, &str)) -> Value {
        json!({
            "metadata": {"name": "n1", "uid": "u", "resourceVersion": version},
            "status": {
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}],
                "nodeInfo": {"architecture": "amd64", "bootID": boot, "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                    "osImage": "", "systemUUID": ""}
            }
        })
    }

    /// What becomes of the word to commit where the watch has shown a node that is Ready in boot `b1` since noon, and the API server
    /// lists these, or refuses. Nobody takes a write there.
    async fn commit(listed: Result<Vec<Value>, &'static str>) -> (ApplyError, World) {
        bascule_tests::install_tls_provider();
        let answer = async move |uri: Uri| {
            let query = uri.query().unwrap_or_default();
            assert!(query.contains("metadata.name%3Dn1") && !query.contains("resourceVersion"), "{query}");
            match listed {
                Ok(items) => {
                    let metadata = json!({"resourceVersion": "9"});
                    let list = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": metadata, "items": items});
                    (StatusCode::OK, Json(list))
                }
                Err(message) => {
                    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403,
                        "reason": "Forbidden", "message": message});
                    (StatusCode::FORBIDDEN, Json(status))
                }
            }
        };
        let router = Router::new().route("/api/v1/nodes", get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
        let world = World::new(Arc::new(tokio::sync::watch::Sender::new(0)), &Clock::system());
        world.nodes.written(&serde_json::from_value(node("5", "b1", ("True", NOON))).unwrap());
        let (events, _told) = Events::to_nowhere();
        let writer = Writer::new(client, world.clone(), Metrics::new(), events);
        let action = Action::Commit { node: "n1".to_owned(), release: None };
        let step = Step { action, expect: Expect::default(), cause: None, says: String::new() };
        (writer.step(&step).await.unwrap_err(), world)
    }

    #[tokio::test]
    async fn a_verdict_is_about_the_node_as_it_is_and_not_as_a_late_watch_shows_it() {
        let later = "2026-11-21T12:03:00Z";
        let (error, _) = commit(Ok(vec![node("6", "b1", ("True", NOON))])).await;
        assert_eq!(
            error.to_string(),
            "NodeUpdate n1 does not exist any more",
            "nothing but the word is left to be written"
        );
        for (what, boot, ready) in [
            ("it lost its power", "b2", ("True", NOON)),
            ("its kubelet is away", "b1", ("Unknown", later)),
            ("its kubelet was away", "b1", ("True", later)),
        ] {
            let (error, world) = commit(Ok(vec![node("6", boot, ready)])).await;
            assert_eq!(error.to_string(), "Node n1 was changed meanwhile", "{what}");
            let known = world.nodes.get(&Key::cluster("n1")).unwrap();
            assert_eq!(
                (known.boot_id.as_str(), known.ready.ready),
                (boot, ready.0 == "True"),
                "the next plan knows: {what}"
            );
        }
        let (error, _) = commit(Ok(Vec::new())).await;
        assert_eq!(error.to_string(), "Node n1 does not exist any more");
    }

    /// It is tried again as a write is, and a trial that its guard ends meanwhile was kept from its commit.
    #[tokio::test]
    async fn what_could_not_be_looked_at_has_failed_and_was_not_written() {
        let (error, _) = commit(Err("nodes is forbidden")).await;
        assert_eq!((error.category(), error.is_stale(), error.is_unknown()), ("unread", false, false));
        assert_eq!(
            (error.to_string(), error.words()),
            ("cannot read Node n1".to_owned(), "nodes is forbidden".to_owned())
        );
    }

    /// The watches show a trial in boot `b1`, and the API server has newer objects.
    #[tokio::test]
    async fn a_trial_is_looked_at_past_the_watches_before_a_verdict_on_it_is_remembered() {
        bascule_tests::install_tls_provider();
        let update = |version: &str, boot: &str| {
            json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "spec": {"policy": "p"},
                "metadata": {"name": "n1", "uid": "u", "resourceVersion": version}, "status": {"bootID": boot}})
        };
        let boot = || "b1".to_owned();
        let expect = Expect { boot_id: Some(boot()), agent_boot: Some(Some(boot())), ..Expect::default() };
        let trial = Judged { node: "n1".to_owned(), expect };
        for (kubelet, agent, came_to) in
            [("b1", "b1", None), ("b2", "b1", Some("conflict")), ("b1", "b2", Some("boot-id"))]
        {
            let list = |kind: &str, item: Value| {
                let metadata = json!({"resourceVersion": "9"});
                let list = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "items": [item]});
                get(move || async move { Json(list) })
            };
            let router = Router::new()
                .route("/api/v1/nodes", list("NodeList", node("8", kubelet, ("False", NOON))))
                .route("/apis/bascule.dev/v1alpha1/nodeupdates", list("NodeUpdateList", update("9", agent)));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(listener, router).await });
            let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
            let world = World::new(Arc::new(tokio::sync::watch::Sender::new(0)), &Clock::system());
            world.nodes.written(&serde_json::from_value(node("6", "b1", ("False", NOON))).unwrap());
            world.updates.written(&serde_json::from_value(update("7", "b1")).unwrap());
            let (events, _told) = Events::to_nowhere();
            let writer = Writer::new(client, world.clone(), Metrics::new(), events);
            let looked = writer.look_at_trial(&trial).await;
            assert_eq!(looked.as_ref().err().map(ApplyError::category), came_to, "{kubelet}, {agent}");
            let known = node_now(&world, "n1").unwrap();
            let known_agent = known.update.as_ref().and_then(|update| update.status.boot_id.as_deref());
            assert_eq!(known.boot_id, kubelet, "the next plan knows it");
            assert!(kubelet != "b1" || known_agent == Some(agent), "the next plan knows it: {known_agent:?}");
        }
    }
}
