//! What the API server shows around a reboot: the word of the old boot, Node objects that are deleted meanwhile, DaemonSets
//! that were broken before.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{CORDONED_BY_ANNOTATION, Goal, NodeUpdate, UpdatePolicy, WaitReason};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn only(node: &str, more: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

async fn blames_nobody(world: &Cluster, policy: &str) {
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let status = policies.get(policy).await.unwrap().status.unwrap_or_default();
    assert!(status.failures.is_empty() && status.blocked.is_empty(), "{status:?}");
}

fn told_to_boot(update: Option<&NodeUpdate>) -> bool {
    update.is_some_and(|update| update.spec.goal == Goal::Booted)
}

pub const LOGS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: logs, namespace: default}
spec:
  selector: {matchLabels: {app: logs}}
  template:
    metadata: {labels: {app: logs}}
    spec: {containers: [{name: logs, image: example.invalid/logs}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_word_of_the_old_boot_counts_neither_for_health_nor_for_the_soak() {
    let mut world = Cluster::new().await;
    // The kubelet of the new boot comes to its pods three seconds after it said that the node is Ready. That flipped
    // never: the machine was back before the node lifecycle controller noticed.
    world.machine("n1", "a", Habit::SlowPods).await;
    world.control_plane.apply(LOGS).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let logs = async || pods.list(&ListParams::default().labels("app=logs")).await.unwrap().items.pop();
    let ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|all| all.iter().find(|one| one.type_ == "Ready" && one.status == "True"));
        ready.and_then(|one| one.last_transition_time.clone())
    };
    world.eventually("the DaemonSet runs", async || logs().await.as_ref().and_then(ready).is_some()).await;
    let before = ready(&logs().await.unwrap()).unwrap();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"health": {"nodeSoak": "3s"}})).await;
    let committed = |update: Option<&NodeUpdate>| update.is_some_and(|update| update.spec.goal == Goal::Committed);
    world.until_update("n1", "committed", committed).await;
    let at = bascule_tests::clock::now().timestamp();
    let since = ready(&logs().await.unwrap()).expect("the pod is ready when the release is committed").0;
    assert!(since > before.0, "that is the word of the old boot: {since} and {before:?}");
    let soaked = at - since.as_second();
    assert!(soaked >= 3, "committed {soaked} s after the pod was ready in this boot");
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_that_was_broken_before_is_not_blamed_on_the_release() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    // Nothing of it will ever be ready: its pods wait for a scheduler that there is none of.
    let broken = LOGS.replace("containers:", "schedulerName: nobody, containers:");
    world.control_plane.apply(&broken).await.unwrap();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"health": {"nodeReadyTimeout": "60s"}})).await;
    world.until_current("n1", "1.1").await;
    blames_nobody(&world, "workers").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_that_breaks_while_its_node_is_drained_is_waited_for_and_not_blamed_on_the_release() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(LOGS).await.unwrap();
    world.until_ready_on("logs", "n1").await;
    world.shop(2).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"health": {"nodeReadyTimeout": "60s"}})).await;
    world.until_the_shop_holds("n1").await;
    // From now on its pods wait for a scheduler that there is none of.
    let broken = LOGS.replace("containers:", "schedulerName: nobody, containers:");
    world.control_plane.apply(&broken).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let there = ListParams::default().labels("app=logs").fields("spec.nodeName=n1");
    world.eventually("its pod is gone", async || pods.list(&there).await.unwrap().items.is_empty()).await;
    let begun = Instant::now();
    world.clear_of_the_shop("n1").await;
    world.until_current("n1", "1.1").await;
    assert!(begun.elapsed() >= Duration::from_secs(55), "it was waited for");
    let told = async || {
        let notes = world.notes("Committing").await;
        notes.iter().any(|note| note.contains("told to reboot either: default/logs"))
    };
    world.eventually("who was passed over is named", told).await;
    blames_nobody(&world, "workers").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_slow_to_come_back_is_an_alarm_and_blames_nobody() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::SlowSelfTest).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"health": {"nodeReadyTimeout": "60s"}})).await;
    world.until_message("n1", WaitReason::NodeLost, "has not come back within 1m").await;
    assert!(world.update("n1").await.spec.disruption.is_some(), "it takes its place of the budget");
    // The self test ends, and it goes on, though its agent speaks before its kubelet and every deadline was over long ago.
    world.until_current("n1", "1.1").await;
    blames_nobody(&world, "workers").await;
    let generation = world.update("n1").await.spec.grant.map(|grant| grant.generation);
    assert_eq!(generation, Some(1), "one reboot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_deleted_while_it_reboots_is_carried_on_with() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::SlowBoot).await;
    world.machine("n2", "b", Habit::SlowBoot).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let operator = world.operator("first").await;
    let ours = |node: Option<&Node>| {
        node.is_some_and(|node| {
            let annotations = node.metadata.annotations.as_ref();
            let marked = annotations.is_some_and(|all| all.contains_key(CORDONED_BY_ANNOTATION));
            marked && node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
        })
    };

    // The operator saw the NodeUpdate go.
    world.policy("first", only("n1", json!({}))).await;
    world.until_update("n1", "told to boot", told_to_boot).await;
    let before = nodes.get("n1").await.unwrap().metadata.uid;
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    let again = |node: Option<&Node>| node.is_some_and(|node| node.metadata.uid != before) && ours(node);
    world.until_node("n1", "back and cordoned", again).await;
    world.until_current("n1", "1.1").await;
    world.until_node("n1", "uncordoned", |node| node.is_some() && !ours(node)).await;
    blames_nobody(&world, "first").await;

    // Nobody saw it: what is known of the grant is what the agent reports.
    world.policy("second", only("n2", json!({}))).await;
    world.until_update("n2", "told to boot", told_to_boot).await;
    operator.kill().await;
    nodes.delete("n2", &DeleteParams::default()).await.unwrap();
    world.until_node("n2", "back", |node| node.is_some()).await;
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    world.until(updates, "n2", "gone with its Node", |update| update.is_none()).await;
    let _operator = world.operator("second").await;
    world.until_node("n2", "back and cordoned", ours).await;
    world.until_current("n2", "1.1").await;
    world.until_node("n2", "uncordoned", |node| node.is_some() && !ours(node)).await;
    blames_nobody(&world, "second").await;
    for node in ["n1", "n2"] {
        let update = world.update(node).await;
        let used = update.status.as_ref().and_then(|status| status.last_grant);
        assert_eq!((used, update.spec.grant.map(|grant| grant.generation)), (Some(1), Some(1)), "one reboot");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_etcd_on_nodes_of_their_own_go_one_at_a_time() {
    let mut world = Cluster::new().await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::SlowBoot).await;
        // As k3s and RKE2 mark them; they are no control planes.
        let role = json!({"metadata": {"labels": {"node-role.kubernetes.io/etcd": "true"}}});
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(&role)).await.unwrap();
    }
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let most = Arc::new(AtomicUsize::new(0));
    let highest = Arc::clone(&most);
    let watching = tokio::spawn(async move {
        let mut moving: BTreeMap<String, bool> = BTreeMap::new();
        let mut seen = pin!(watcher(updates, watcher::Config::default()).applied_objects());
        while let Some(event) = seen.next().await {
            let Ok(update) = event else { continue };
            moving.insert(update.name_any(), update.spec.disruption.is_some());
            highest.fetch_max(moving.values().filter(|moves| **moves).count(), Ordering::SeqCst);
        }
    });
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"budget": {"maxUnavailable": 2}})).await;
    world.until_reason_of_any(&["n1", "n2", "n3"], WaitReason::ControlPlane).await;
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
    }
    watching.abort();
    assert_eq!(most.load(Ordering::SeqCst), 1, "two were disrupted at once");
}
