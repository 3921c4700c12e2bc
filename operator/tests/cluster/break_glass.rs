//! Somebody on a node acts without the operator: it must not stay a secret.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::NodeUpdate;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_glass_command_used_on_a_node_is_an_event_on_it() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"paused": true})).await;
    let reports = |update: Option<&NodeUpdate>| {
        update.and_then(|update| update.status.as_ref()).is_some_and(|status| status.boot_id.is_some())
    };
    world.until_update("n1", "its agent's report", reports).await;

    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
    let told = async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        all.into_iter().filter(|event| event.reason.as_deref() == Some("BreakGlassUsed")).collect::<Vec<_>>()
    };
    let mut used = Vec::new();
    for (at, action, count) in [("10:00:00", "stage", 1), ("10:05:00", "commit", 2), ("10:06:00", "commit", 2)] {
        used.push(json!({"action": action, "at": format!("2026-11-21T{at}Z"), "user": "alice"}));
        let status = json!({"status": {"manualActions": used}});
        updates.patch_status("n1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        world.eventually("an event tells of it", async || told().await.len() == count).await;
    }
    // The same command again is the same event, as a series.
    let twice = async || told().await.iter().any(|event| event.series.as_ref().is_some_and(|series| series.count == 2));
    world.eventually("the second commit is told", twice).await;
    for event in told().await {
        let about = event.regarding.unwrap();
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Node"), Some("n1")));
        assert_eq!(event.related.unwrap().kind.as_deref(), Some("NodeUpdate"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let note = event.note.unwrap();
        assert!(note.starts_with("alice used `bascule-agent "), "{note}");
    }
}
