//! Two replicas: one acts; when it dies the other goes on from what the objects show.

use crate::agent::Habit;
use crate::world::World;
use bascule_api::NodeUpdate;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_in_the_middle_loses_nothing() {
    let mut world = World::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(4).await;
    let first = world.operator("first").await;
    let second = world.operator("second").await;
    world.policy("workers", json!({"health": {"nodeSoak": "1s"}})).await;

    // Kill whoever leads while a node is granted, again and again.
    let granted = |update: Option<&NodeUpdate>| update.is_some_and(|update| update.spec.disruption.is_some());
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    tokio::select! {
        () = world.until_update("n1", "granted", granted) => {}
        () = world.until_update("n2", "granted", granted) => {}
        () = world.until_update("n3", "granted", granted) => {}
    }
    first.kill().await;
    second.kill().await;
    let third = world.operator("third").await;
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
    }
    // Each node was granted exactly once: nothing was repeated.
    for update in updates.list(&ListParams::default()).await.unwrap() {
        let grant = update.spec.grant.as_ref().map(|grant| grant.generation);
        assert_eq!(grant, Some(1), "{update:?}");
    }
    // A clean stop gives the Lease back, so that the next one need not wait for its end.
    third.stop().await;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(world.client.clone(), "bascule-system");
    let lease = leases.get("bascule-operator").await.unwrap();
    let holder = lease.spec.unwrap().holder_identity.unwrap_or_default();
    assert!(holder.is_empty(), "still held by {holder}");
}
