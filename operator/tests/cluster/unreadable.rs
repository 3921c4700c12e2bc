//! What another version wrote: an object that this operator does not understand hides no other, and nothing is done to its node.

use crate::{agent::Habit, world::Cluster};
use bascule_api::{NodeUpdate, WaitReason};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// The definition of a version with a failure and a reason more.
async fn newer_definition(world: &Cluster) {
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let name = "nodeupdates.bascule.dev";
    let mut newer = serde_json::to_value(definitions.get(name).await.unwrap()).unwrap();
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    for (field, value) in [("lastError/properties/category", "Volcano"), ("rollout/properties/reason", "Eclipse")] {
        let values = newer.pointer_mut(&format!("{status}/{field}/enum")).and_then(Value::as_array_mut);
        values.unwrap().push(json!(value));
    }
    let newer = serde_json::from_value(newer).unwrap();
    definitions.replace(name, &PostParams::default(), &newer).await.unwrap();
}

/// NodeUpdates as they are, understood or not.
fn updates(world: &Cluster) -> Api<DynamicObject> {
    Api::all_with(world.client.clone(), &ApiResource::erase::<NodeUpdate>(&()))
}

async fn seen(world: &Cluster, node: &str) -> Value {
    updates(world).get(node).await.unwrap().data
}

/// Writes a part of a status, as soon as the API server knows the newer definition.
async fn write(world: &Cluster, node: &str, status: Value) {
    let change = Patch::Merge(json!({"status": status}));
    let taken = async || updates(world).patch_status(node, &PatchParams::default(), &change).await.is_ok();
    world.eventually("the newer definition is served", taken).await;
}

async fn told(listen: &str, path: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(format!("http://{listen}{path}")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_update_that_a_newer_version_wrote_holds_its_node_and_nobody_else() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    newer_definition(&world).await;
    let first = world.operator("first").await;
    world.policy("workers", json!({"paused": true})).await;
    for node in ["n1", "n2", "n3"] {
        world.until_reason(node, WaitReason::Paused).await;
    }

    // What an operator said of a node nobody decides by: it is said anew.
    write(&world, "n2", json!({"rollout": {"state": "Waiting", "reason": "Eclipse"}})).await;
    let reason = async |node: &str| seen(&world, node).await["status"]["rollout"]["reason"].clone();
    world.eventually("n2 is explained anew", async || reason("n2").await == "Paused").await;

    // What an agent says, its node hangs on.
    let failed = json!({"category": "Volcano", "message": "m", "attempts": 1, "at": "2026-11-21T12:00:00Z"});
    write(&world, "n1", json!({"lastError": failed})).await;
    world.eventually("n1 is held", async || reason("n1").await == "Unreadable").await;

    // Whoever comes to lead now has never read it otherwise.
    first.stop().await;
    let second = world.operator("second").await;
    world.change_policy("workers", json!({"paused": false})).await;
    world.until_message("n2", WaitReason::Budget, "unavailable without being updated: n1").await;
    let says = told(&second.listen, "/readyz").await;
    assert!(says.starts_with("ok\nNodeUpdate n1 can't be read") && says.contains("Volcano"), "{says}");
    let metrics = told(&second.listen, "/metrics").await;
    assert!(metrics.contains("bascule_unreadable_objects{kind=\"NodeUpdate\"} 1"), "{metrics}");

    world.change_policy("workers", json!({"budget": {"maxUnavailable": 2}})).await;
    world.until_current("n2", "1.1").await;
    world.until_current("n3", "1.1").await;
    let held = seen(&world, "n1").await;
    assert_eq!((&held["spec"]["disruption"], &held["status"]["booted"]["version"]), (&Value::Null, &json!("1.0")));
    assert_eq!(held["status"]["rollout"]["reason"], "Unreadable", "{held}");

    // Its agent is of another version again.
    write(&world, "n1", json!({"lastError": null})).await;
    world.until_current("n1", "1.1").await;
    assert_eq!(told(&second.listen, "/readyz").await, "ok\n");
}
