//! Manifests that change below an operator at work: a newer version is applied in the middle of a rollout, and everything
//! is taken out in the middle of a drain, each as docs/install.md has it.

use crate::agent::Habit;
use crate::drain::{cordoned, hanging_in, let_go};
use crate::world::Cluster;
use bascule_api::{AUTOSCALER_ANNOTATIONS, CORDONED_BY_ANNOTATION, Goal, NodeUpdate};
use bascule_tests::control_plane::ControlPlane;
use bascule_tests::files::copy_folder;
use bascule_tests::page::{self, Page};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use std::path::Path;

/// Types something in the overlay's folder; gives what it said.
async fn types(control_plane: &ControlPlane, script: &str, folder: &Path) -> String {
    let mut shell = page::shell(control_plane, script, folder, &[]);
    let output = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const APPLY: &str = "kubectl apply --server-side -k .";

/// A cluster with these manifests, installed as the page has it.
async fn installed(manifests: &Path, folder: &Path) -> Cluster {
    Cluster::installed(async |control_plane, vendor| {
        Page::read().lay_out(folder, manifests, &String::from_utf8(vendor.trust_root()).unwrap());
        types(control_plane, APPLY, folder).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_version_in_the_middle_of_a_rollout_loses_nothing() {
    let (older, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(previous) = page::previous_manifests(older.path()) else {
        bascule_tests::skipped(
            "there are no manifests of an earlier commit here: in a shallow clone, git fetch --unshallow",
        );
        return;
    };
    let before = older.path().join("before");
    copy_folder(&previous, &before).unwrap();
    // Definitions and rights come first in an upgrade, and this program waits for those of its own version. The rest is older.
    for newer in ["crds", "admission", "roles"] {
        copy_folder(&page::tree().join("manifests").join(newer), &before.join(newer)).unwrap();
    }
    std::fs::copy(page::tree().join("manifests/operator/rbac.yaml"), before.join("operator/rbac.yaml")).unwrap();
    let mut world = installed(&before, folder.path()).await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(4).await;
    let before = world.operator("before").await;
    world.policy("workers", json!({"health": {"nodeSoak": "2s"}})).await;
    let granted = |update: Option<&NodeUpdate>| update.is_some_and(|update| update.spec.disruption.is_some());
    tokio::select! {
        () = world.until_update("n1", "granted", granted) => {}
        () = world.until_update("n2", "granted", granted) => {}
        () = world.until_update("n3", "granted", granted) => {}
    }

    std::fs::remove_dir_all(folder.path().join("manifests")).unwrap();
    let trust_root = String::from_utf8(world.vendor.trust_root()).unwrap();
    Page::read().lay_out(folder.path(), &page::tree().join("manifests"), &trust_root);
    types(&world.control_plane, APPLY, folder.path()).await;
    // The Deployment's new pods come, and the old ones end.
    let _after = world.operator("after").await;
    before.stop().await;
    world.until_no_eviction_is_lost().await;

    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
        world.until_node(node, "open", |node| !cordoned(node)).await;
    }
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    for update in updates.list(&ListParams::default()).await.unwrap() {
        let grant = update.spec.grant.as_ref().map(|grant| grant.generation);
        assert_eq!(grant, Some(1), "each was disrupted once: {update:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_taken_out_in_the_middle_of_a_drain_leaves_no_node_cordoned() {
    let folder = tempfile::tempdir().unwrap();
    let world = hanging_in(installed(&page::tree().join("manifests"), folder.path()).await).await;
    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_node("n1", "cordoned", cordoned).await;

    // The order that the page warns of. Whether the operator sees its policy go before it is gone itself is anybody's guess;
    // here it does not.
    operator.kill().await;
    types(&world.control_plane, "kubectl delete -k .", folder.path()).await;
    let left = types(&world.control_plane, "kubectl get -k . --ignore-not-found -o name", folder.path()).await;
    assert_eq!(left, "", "something is left");
    // Discovery follows the definitions a moment later.
    let listed = "kubectl api-resources --api-group=bascule.dev -o name";
    world
        .eventually("no definition is left", async || {
            types(&world.control_plane, listed, folder.path()).await.is_empty()
        })
        .await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = nodes.get("n1").await.unwrap();
    assert!(cordoned(Some(&node)) && node.annotations().contains_key(CORDONED_BY_ANNOTATION), "{node:?}");

    // What gives such a node back is on the page, too.
    types(&world.control_plane, &Page::read().block("give-back"), folder.path()).await;
    let node = nodes.get("n1").await.unwrap();
    assert!(!cordoned(Some(&node)), "{node:?}");
    let ours = |key: &str| key.contains("bascule.dev") || key.contains("load-balancers");
    let marks: Vec<&String> = node.annotations().keys().chain(node.labels().keys()).filter(|key| ours(key)).collect();
    assert!(AUTOSCALER_ANNOTATIONS.iter().all(|key| !node.annotations().contains_key(*key)), "{node:?}");
    assert!(marks.is_empty(), "{marks:?}");
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    assert!(taints.iter().all(|taint| !taint.key.contains("bascule")), "{taints:?}");

    // And the node takes pods again: the one that was evicted comes back to it.
    let_go(&world).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let back = |pod: Option<&Pod>| {
        pod.is_some_and(|pod| {
            let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some("n1"));
            placed && pod.metadata.deletion_timestamp.is_none()
        })
    };
    world.until(pods, "stubborn-0", "back on n1", back).await;
    let_go(&world).await;
}

/// The order that the page asks for: what is under way is finished, a trial too, and nothing is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_takes_out_what_is_under_way_by_finishing_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = installed(&page::tree().join("manifests"), folder.path()).await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let operator = world.operator("first").await;
    world.policy("workers", json!({"health": {"nodeSoak": "3s"}})).await;
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let updates = async || updates.list(&ListParams::default()).await.unwrap().items;
    let told_to_reboot = async || updates().await.iter().any(|update| update.spec.goal == Goal::Booted);
    world.eventually("a node is told to reboot", told_to_reboot).await;

    types(&world.control_plane, &Page::read().block("stop"), folder.path()).await;
    let all = updates().await;
    let runs = |update: &NodeUpdate| Some(update.status.as_ref()?.booted.as_ref()?.version.to_string());
    let (done, rest): (Vec<_>, Vec<_>) = all.iter().partition(|update| update.spec.grant.is_some());
    assert!(!done.is_empty(), "{all:?}");
    assert!(done.iter().all(|update| runs(update).as_deref() == Some("1.1")), "what began is finished: {done:?}");
    assert!(rest.iter().all(|update| runs(update).as_deref() == Some("1.0")), "nothing new begins: {rest:?}");
    assert!(all.iter().all(|update| update.spec.disruption.is_none()), "{all:?}");

    operator.stop().await;
    types(&world.control_plane, "kubectl delete -k .", folder.path()).await;
    types(&world.control_plane, &Page::read().block("give-back"), folder.path()).await;
    for node in Api::<Node>::all(world.client.clone()).list(&ListParams::default()).await.unwrap() {
        assert!(!cordoned(Some(&node)), "{node:?}");
        let marks = |key: &str| key.contains("bascule") || AUTOSCALER_ANNOTATIONS.contains(&key);
        let left: Vec<&String> =
            node.annotations().keys().chain(node.labels().keys()).filter(|key| marks(key)).collect();
        assert!(left.is_empty(), "{left:?}");
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        assert!(taints.iter().all(|taint| !taint.key.contains("bascule")), "{taints:?}");
    }
}

const ROLLED_OUT: &str = "kubectl -n bascule-system rollout status deployment/bascule-operator --timeout=100s";
const RESTARTED: &str = "kubectl -n bascule-system rollout restart deployment/bascule-operator";

/// The Deployment, the budget and the affinity as they are shipped, with two replicas where one node takes pods, and where two do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_deployment_is_rolled_out_in_the_middle_of_an_update_on_one_node_and_on_two() {
    for nodes in [&[("n1", "a")][..], &[("n1", "a"), ("n2", "b")]] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut world = installed(&page::tree().join("manifests"), folder).await;
        for (node, zone) in nodes {
            world.machine(node, zone, Habit::Good).await;
        }
        types(&world.control_plane, ROLLED_OUT, folder).await;
        let _operator = world.operator("first").await;
        world.policy("workers", json!({"health": {"nodeSoak": "3s"}})).await;
        let granted = async || {
            let updates: Api<NodeUpdate> = Api::all(world.client.clone());
            updates.list(&ListParams::default()).await.unwrap().iter().any(|update| update.spec.disruption.is_some())
        };
        world.eventually("a node is granted", granted).await;
        types(&world.control_plane, RESTARTED, folder).await;
        types(&world.control_plane, ROLLED_OUT, folder).await;
        for (node, _) in nodes {
            world.until_current(node, "1.1").await;
            world.until_node(node, "open", |node| !cordoned(node)).await;
        }
        types(&world.control_plane, ROLLED_OUT, folder).await;
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), "bascule-system");
        let there = pods.list(&ListParams::default()).await.unwrap().items;
        let stay = there.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        assert_eq!(stay.count(), 2, "{there:?}");
    }
}
