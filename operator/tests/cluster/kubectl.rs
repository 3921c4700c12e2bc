//! Which pods go, stay or stop a drain: the real `kubectl drain` is asked about random pods and budgets, and gives the same
//! answer as we do. Where we differ on purpose stands in docs/drain.md, "Beside `kubectl drain`".
//!
//! `BASCULE_KUBECTL_SEEDS=first..end` asks about other pods, `BASCULE_KUBECTL_SEEDS=4711..4712` about those of one seed again.

use crate::world::{Cluster, PATIENCE};
use bascule_api::{Drain, Selector};
use bascule_operator::clock::Clock;
use bascule_operator::gather::{BudgetFact, Fact as _, PodFact};
use bascule_planner::drain::{Hour, sort};
use bascule_tests::control_plane::ControlPlane;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::Range;

/// Five rounds of pods where nobody asks for others: some go, some are held, some stop a drain.
const USUAL: Range<u64> = 15..16;

/// Whose pods are asked about.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("BASCULE_KUBECTL_SEEDS") else { return USUAL };
    let (first, end) = text.split_once("..").expect("first..end");
    let seeds: Range<u64> = first.parse().expect("a number")..end.parse().expect("a number");
    assert!(!seeds.is_empty(), "no seed is in {text}");
    seeds
}

/// What a drain does: the pods that go, those that a budget holds of them, and those that stop it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    go: BTreeSet<String>,
    held: BTreeSet<String>,
    stop: BTreeSet<String>,
}

fn chance(random: &mut ChaCha8Rng, percent: u32) -> bool {
    random.random_range(0..100) < percent
}

/// A random pod of one of the owners or none, its phase, whether it is ready, and whether it is being deleted.
fn pod(random: &mut ChaCha8Rng, index: usize, owners: &[Value; 2]) -> (Value, &'static str, bool, bool) {
    let app = ["web", "db", "none"][random.random_range(0..3)];
    let deleting = chance(random, 10);
    let mut metadata = json!({"name": format!("p{index}"), "labels": {"app": app}});
    if chance(random, 80) {
        let [controller, daemons] = owners;
        let of_daemons = chance(random, 25);
        metadata["ownerReferences"] = json!([if of_daemons { daemons } else { controller }]);
        if of_daemons {
            metadata["labels"]["daemons"] = json!("kept");
        }
    }
    if deleting {
        metadata["finalizers"] = json!(["example.com/hold"]);
    }
    if chance(random, 10) {
        metadata["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        metadata["ownerReferences"] = json!(null);
    }
    let mut spec = json!({
        "nodeName": "n1", "automountServiceAccountToken": false, "enableServiceLinks": false,
        "containers": [{"name": "c", "image": "example.invalid/c"}]
    });
    if chance(random, 30) {
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    }
    let phase = ["Running", "Running", "Running", "Pending", "Succeeded", "Failed"][random.random_range(0..6)];
    (json!({"metadata": metadata, "spec": spec}), phase, phase == "Running" && chance(random, 80), deleting)
}

/// A DaemonSet that is there for `kubectl` to find, as an owner. Its controller lets the pods of one that is being deleted be, and
/// a finalizer keeps it there (Kubernetes, `pkg/controller/daemon`, `syncDaemonSet`).
async fn daemon_set(world: &Cluster, namespace: &str) -> Value {
    let sets: Api<DaemonSet> = Api::namespaced(world.client.clone(), namespace);
    let labels = json!({"daemons": "kept"});
    let set = serde_json::from_value(json!({
        "metadata": {"name": "daemons", "finalizers": ["example.com/hold"]},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": {"nowhere": "yes"}, "containers": [{"name": "c", "image": "example.invalid/c"}]
                }
            }
        }
    }))
    .unwrap();
    let set = sets.create(&PostParams::default(), &set).await.unwrap();
    sets.delete("daemons", &DeleteParams::background()).await.unwrap();
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "daemons", "uid": set.metadata.uid, "controller": true})
}

async fn populate(world: &Cluster, namespace: &str, random: &mut ChaCha8Rng) {
    world
        .control_plane
        .apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}"))
        .await
        .unwrap();
    // An owner that is there and that no controller acts for: the garbage collector leaves its pods alone.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), namespace);
    let map = serde_json::from_value(json!({"metadata": {"name": "owner"}})).unwrap();
    let map = maps.create(&PostParams::default(), &map).await.unwrap();
    let owner = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": map.metadata.uid, "controller": true
    });
    let daemons = daemon_set(world, namespace).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
    for index in 0..14 {
        let (raw, phase, ready, deleting) = pod(random, index, &[owner.clone(), daemons.clone()]);
        let made: Pod = serde_json::from_value(raw).unwrap();
        let name = pods.create(&PostParams::default(), &made).await.unwrap().metadata.name.unwrap();
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        if deleting {
            pods.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), namespace);
    for app in ["web", "db"] {
        let policy = if chance(random, 50) { "AlwaysAllow" } else { "IfHealthyBudget" };
        let budget = serde_json::from_value(json!({
            "metadata": {"name": app},
            "spec": {"minAvailable": random.random_range(1..5), "unhealthyPodEvictionPolicy": policy,
                "selector": {"matchLabels": {"app": app}}}
        }))
        .unwrap();
        budgets.create(&PostParams::default(), &budget).await.unwrap();
    }
}

/// Waits until the disruption controller has counted what is there.
async fn counted(world: &Cluster, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), namespace);
    for app in ["web", "db"] {
        let of_app = pods.list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap().items;
        let healthy = of_app.iter().map(PodFact::of).filter(|pod| pod.ready && pod.deletes_at.is_none()).count();
        let seen = move |budget: Option<&PodDisruptionBudget>| {
            let status = budget.and_then(|budget| budget.status.as_ref());
            status.is_some_and(|status| {
                status.observed_generation == Some(1) && status.current_healthy == i32::try_from(healthy).ok()
            })
        };
        world.until(budgets.clone(), app, "counted", seen).await;
    }
}

/// What we would do.
async fn ours(world: &Cluster, namespace: &str, settings: &Drain) -> Outcome {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), namespace);
    let pods: Vec<PodFact> = pods.list(&ListParams::default()).await.unwrap().iter().map(PodFact::of).collect();
    let budgets: Vec<BudgetFact> =
        budgets.list(&ListParams::default()).await.unwrap().iter().map(BudgetFact::of).collect();
    let none = BTreeSet::new();
    let sorted = sort(&pods, settings, &Hour { now: Clock::system().now(), begun: None, given_up: &none, own: None });
    let Ok(go) = sorted.asked() else {
        let stop = sorted.refused.iter().map(|(pod, _)| pod.name.clone()).collect();
        return Outcome { stop, ..Outcome::default() };
    };
    let holds = |pod: &&&PodFact| {
        budgets.iter().any(|budget| budget.covers(pod) && budget.is_needed_for(pod) && budget.allowed == 0)
    };
    Outcome {
        go: go.iter().map(|pod| pod.name.clone()).collect(),
        held: go.iter().filter(holds).map(|pod| pod.name.clone()).collect(),
        stop: BTreeSet::new(),
    }
}

/// What `kubectl drain` says: nothing is evicted, budgets are asked.
fn kubectls(control_plane: &ControlPlane, namespace: &str, settings: &Drain) -> Outcome {
    let mut kubectl = control_plane.kubectl();
    kubectl.args(["drain", "n1", "--ignore-daemonsets", "--dry-run=server", "--timeout=4s"]);
    kubectl.arg(format!("--force={}", settings.force));
    kubectl.arg(format!("--delete-emptydir-data={}", settings.delete_empty_dir_data));
    if let Some(selector) = &settings.pod_selector {
        let labels = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        kubectl.arg(format!("--pod-selector={}", labels.collect::<Vec<_>>().join(",")));
    }
    let output = kubectl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let mut outcome = Outcome::default();
    let prefix = format!("{namespace}/");
    let of_ours = |text: &str| -> Vec<String> {
        let words = text.split(|letter: char| letter.is_whitespace() || letter == ',' || letter == '"');
        words.filter_map(|word| word.trim_end_matches([';', ']']).strip_prefix(&prefix)).map(str::to_owned).collect()
    };
    for line in said.lines() {
        if line.contains("evicting pod ") {
            outcome.go.extend(of_ours(line));
        } else if line.contains("disruption budget") {
            // error when evicting pods/"p1" -n "a" (will retry after 5s): Cannot evict pod as it would violate …
            let named = line.split("pods/\"").nth(1).and_then(|rest| rest.split('"').next());
            if line.contains(&format!("-n \"{namespace}\"")) {
                outcome.held.extend(named.map(str::to_owned));
            }
        } else if line.contains("cannot delete") {
            outcome.stop.extend(of_ours(line));
        }
    }
    if !outcome.stop.is_empty() {
        outcome.go.clear();
    }
    assert!(!said.contains("unknown"), "{said}");
    outcome
}

/// How often something was seen to happen to a pod.
#[derive(Debug, Default)]
struct Seen {
    went: usize,
    held: usize,
    stopped: usize,
    daemons: usize,
}

/// Asks both about the pods of a namespace, with each of some settings.
async fn compare(world: &Cluster, namespace: &str, seen: &mut Seen) {
    let there = Api::<Pod>::namespaced(world.client.clone(), namespace).list(&ListParams::default()).await.unwrap();
    seen.daemons += there.iter().map(PodFact::of).filter(|pod| pod.of_daemon_set() && !pod.finished).count();
    for (force, data, app) in [
        (true, true, None),
        (true, true, Some("web")),
        (false, true, None),
        (true, false, None),
        (false, false, Some("db")),
    ] {
        let pod_selector = app.map(|app: &str| Selector {
            match_labels: [("app".to_owned(), app.to_owned())].into(),
            ..Selector::default()
        });
        let settings = Drain { force, delete_empty_dir_data: data, pod_selector, ..Drain::default() };
        let theirs = {
            let (control_plane, settings) = (&world.control_plane, &settings);
            tokio::task::block_in_place(|| kubectls(control_plane, namespace, settings))
        };
        let ours = ours(world, namespace, &settings).await;
        assert_eq!(ours, theirs, "ours, then kubectl's; {namespace} {settings:?}");
        seen.went += ours.go.len();
        seen.held += ours.held.len();
        seen.stopped += ours.stop.len();
    }
}

/// The next round has the node for itself.
async fn clear(world: &Cluster, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        let name = pod.metadata.name.unwrap();
        let free = json!({"metadata": {"finalizers": null}});
        pods.patch(&name, &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // One that was being deleted has gone with its finalizer.
        let _ = pods.delete(&name, &at_once).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_pods_go_stay_or_stop_the_drain_as_with_kubectl() {
    let world = Cluster::new().await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {"unschedulable": true}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let mut seen = Seen::default();
    for seed in seeds() {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for round in 0..5 {
            let namespace = format!("seed-{seed}-round-{round}");
            populate(&world, &namespace, &mut random).await;
            counted(&world, &namespace).await;
            compare(&world, &namespace, &mut seen).await;
            clear(&world, &namespace).await;
        }
    }
    let Seen { went, held, stopped, daemons } = seen;
    println!(
        "{went} pods go, {held} of them are held by budgets, {stopped} stop a drain, {daemons} are of a DaemonSet"
    );
    // Of other seeds nobody knows what they have.
    if seeds() == USUAL {
        let all = [went > 20, held > 3, stopped > 5, daemons > 3];
        assert!(all == [true; 4], "{went} {held} {stopped} {daemons} within {PATIENCE:?}");
    }
}
