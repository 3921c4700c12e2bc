//! A policy brings every node to the channel's release while the workload stays available.

use crate::agent::Habit;
use crate::world::{OPERATOR, World};
use bascule_api::{CORDONED_BY_ANNOTATION, Freeze, NodeUpdate, Rollback, UpdatePolicy, WaitReason};
use bascule_tests::control_plane::{Request, RequestCounts};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub const SHOP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: default}
spec:
  replicas: 4
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: shop}}}
      containers: [{name: shop, image: example.invalid/shop}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: shop, namespace: default}
spec: {minAvailable: 3, selector: {matchLabels: {app: shop}}}
"#;

/// Waits until the shop has this many ready pods.
pub async fn until_ready(world: &World, replicas: i32) {
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), "default");
    let holds = move |shop: Option<&Deployment>| {
        shop.and_then(|shop| shop.status.as_ref()?.ready_replicas).unwrap_or(0) == replicas
    };
    world.until(deployments, "shop", "ready", holds).await;
}

/// Notes in `broken` if the budget's healthy pods ever fall below what it asks for.
pub fn guard(world: &World, broken: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    tokio::spawn(async move {
        let mut seen = pin!(watcher(budgets, watcher::Config::default()).default_backoff().applied_objects());
        while let Some(Ok(budget)) = seen.next().await {
            let status = budget.status.unwrap_or_default();
            if status.current_healthy < status.desired_healthy {
                broken.store(true, Ordering::SeqCst);
            }
        }
    })
}

fn untouched(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let marked = node.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CORDONED_BY_ANNOTATION));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    !cordoned && !marked && !taints.iter().any(|taint| taint.key.starts_with("bascule.dev/"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_updated_and_the_workload_stays_available() {
    let mut world = World::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.control_plane.apply(SHOP).await.unwrap();
    until_ready(&world, 4).await;
    let broken = Arc::new(AtomicBool::new(false));
    let guard = guard(&world, Arc::clone(&broken));

    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
        world.until_node(node, "left as it was", |node| node.is_some_and(untouched)).await;
    }
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let done = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| status.columns.updated == "3/3")
    };
    world.until(policies, "workers", "3/3 updated", done).await;
    assert!(!broken.load(Ordering::SeqCst), "the budget was broken");
    guard.abort();

    // What people and Prometheus see.
    let metrics = reqwest::get(format!("http://{}/metrics", operator.listen)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("bascule_nodes{policy=\"workers\",state=\"Current\"} 3"), "{metrics}");
    let ready = reqwest::get(format!("http://{}/readyz", operator.listen)).await.unwrap();
    assert_eq!(ready.status().as_u16(), 200);
    let counts = RequestCounts::of(&world.control_plane.requests().unwrap());
    println!("requests of the operator for 3 nodes: {:?}", counts.0.get(OPERATOR));
    // Orders to a node and marks on its Node object, events apart, from the word to stage on: what comes before enrols the
    // node. A write that meets a newer object is refused and changes nothing. How often the status is written besides
    // depends on how many different waits are seen on the way, and so on the machine's speed: that is printed here, and
    // measured by `cargo xtask bench operator`.
    let requests = world.control_plane.requests().unwrap();
    for node in ["n1", "n2", "n3"] {
        let own = |one: &&Request| {
            one.user == OPERATOR && one.writes() && one.name == node && one.resource != "events" && one.code == 200
        };
        let writes: Vec<String> =
            requests.iter().filter(own).map(|one| format!("{} {}", one.verb, one.resource)).collect();
        let staged = writes.iter().position(|one| one == "patch nodeupdates").unwrap();
        let statuses = writes.iter().skip(staged).filter(|one| one.ends_with("/status")).count();
        let orders = writes.len() - staged - statuses;
        println!("{node}: {orders} orders and marks, {statuses} statuses: {writes:?}");
        assert!(orders <= 9, "{node} took {orders} orders and marks: {writes:?}");
    }

    // On-call: a Freeze is seen at once, and a Rollback brings a node back to what its other slot holds.
    let rollback: Rollback = serde_json::from_value(json!({
        "metadata": {"name": "back"}, "spec": {"reason": "breaks the network", "policy": "workers", "nodes": ["n1"]}
    }))
    .unwrap();
    let rollbacks: Api<Rollback> = Api::all(world.client.clone());
    rollbacks.create(&PostParams::default(), &rollback).await.unwrap();
    let back = |update: Option<&bascule_api::NodeUpdate>| {
        let booted = update.and_then(|update| update.status.as_ref()?.booted.as_ref());
        booted.is_some_and(|booted| booted.version.as_str() == "1.0")
            && update.is_some_and(|update| update.spec.disruption.is_none())
    };
    world.until_update("n1", "back on 1.0", back).await;
    world
        .until_node("n1", "left as it was", |node| {
            node.is_some_and(|node| node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true))
        })
        .await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kured_1409_suc_341_a_freeze_holds_and_an_admins_cordon_is_kept() {
    let mut world = World::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let freezes: Api<Freeze> = Api::all(world.client.clone());
    let freeze: Freeze = serde_json::from_value(json!({
        "metadata": {"name": "incident"}, "spec": {"reason": "checkout incident", "duration": "1h"}
    }))
    .unwrap();
    freezes.create(&PostParams::default(), &freeze).await.unwrap();
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.cordon("n1").await.unwrap();

    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_reason("n2", WaitReason::Freeze).await;
    freezes.delete("incident", &DeleteParams::default()).await.unwrap();
    // The other node goes; the cordoned one waits and stays as the admin left it.
    world.until_reason("n1", WaitReason::Cordoned).await;
    nodes.uncordon("n1").await.unwrap();
    world.until_current("n1", "1.1").await;
    world.until_current("n2", "1.1").await;
    let left = nodes.get("n1").await.unwrap();
    assert!(untouched(&left), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_fails_is_blocked_and_no_node_is_drained_for_it_again() {
    let mut world = World::new().await;
    world.machine("n1", "a", Habit::Fails).await;
    world.machine("n2", "b", Habit::Fails).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let blocked = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| {
            status.failures.len() == 1 && status.blocked.iter().any(|one| one.version.as_str() == "1.1")
        })
    };
    world.until(policies, "workers", "blocked after one failure", blocked).await;
    for node in ["n1", "n2"] {
        world.until_node(node, "left as it was", |node| node.is_some_and(untouched)).await;
        world
            .until_update(node, "at rest on 1.0", |update| {
                update.is_some_and(|update| {
                    let booted = update.status.as_ref().and_then(|status| status.booted.as_ref());
                    update.spec.disruption.is_none() && booted.is_some_and(|booted| booted.version.as_str() == "1.0")
                })
            })
            .await;
    }
    let grants = async || {
        let updates: Api<NodeUpdate> = Api::all(world.client.clone());
        let all = updates.list(&ListParams::default()).await.unwrap().items;
        all.iter().filter_map(|update| update.spec.grant.as_ref()).map(|grant| grant.generation).sum::<i64>()
    };
    assert_eq!(grants().await, 1, "one node was drained, once");

    // An admin looked into it and lets the release go on: the node where it failed stays, the other one tries it. It
    // fails there too, and the block is in force again.
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let allow = json!({"spec": {"allowedVersions": ["1.1"]}});
    policies.patch("workers", &PatchParams::default(), &Patch::Merge(&allow)).await.unwrap();
    let again = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| {
            status.failures.len() == 2 && bascule_api::conditions::is_true(&status.conditions, "Halted")
        })
    };
    world.until(policies, "workers", "halted again", again).await;
    assert_eq!(grants().await, 2, "each node tried it once");
}
