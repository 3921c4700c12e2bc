//! Pods that fit nowhere: the node waits before its cordon, and the real scheduler says that we judge as it does.

use crate::agent::Habit;
use crate::workloads::one_pod;
use crate::world::Cluster;
use bascule_api::WaitReason;
use bascule_operator::gather::{Fact as _, NodeFact, PodFact};
use bascule_planner::snapshot::Node as PlannedNode;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

async fn label(world: &Cluster, node: &str, labels: Value) {
    let nodes: Api<Node> = Api::all(world.client.clone());
    let change = json!({"metadata": {"labels": labels}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_waits_while_a_pod_of_its_would_fit_nowhere_else() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    label(&world, "n1", json!({"disk": "fast"})).await;
    world.starts(&one_pod("reports", "nodeSelector: {disk: fast}"), "reports").await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    budgets.delete("reports", &DeleteParams::default()).await.unwrap();
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_message("n1", WaitReason::PodFitsNowhere, "no other node could take pod default/reports-").await;
    world.until_message("n1", WaitReason::PodFitsNowhere, "disk=fast").await;
    world.until_current("n2", "1.1").await;
    let node = Api::<Node>::all(world.client.clone()).get("n1").await.unwrap();
    assert!(node.spec.and_then(|spec| spec.unschedulable).is_none(), "it is not cordoned for nothing");
    label(&world, "n2", json!({"disk": "fast"})).await;
    world.until_current("n1", "1.1").await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let moved = async || {
        let pods = pods.list(&ListParams::default().labels("app=reports")).await.unwrap().items;
        pods.iter().any(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n2"))
    };
    world.eventually("the pod has its other place", moved).await;
}

/// A random pod that looks for a place.
fn pod(random: &mut ChaCha8Rng, index: usize, cpu: &str) -> Pod {
    let mut spec = json!({"containers": [
        {"name": "c", "image": "example.invalid/c", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}]});
    let mut one_in = |of: u32| random.random_range(0..of) == 0;
    if one_in(4) {
        spec["nodeSelector"] = if one_in(2) { json!({"group": "a"}) } else { json!({"group": "none"}) };
    }
    if one_in(3) {
        spec["tolerations"] = json!([{"key": "gpu", "operator": "Exists"}]);
    } else if one_in(3) {
        spec["tolerations"] = json!([{"key": "gpu", "value": if one_in(2) { "yes" } else { "no" }}]);
    } else if one_in(4) {
        spec["tolerations"] = json!([{"operator": "Exists", "effect": "NoExecute"}]);
    }
    if one_in(5) {
        spec["initContainers"] = json!([{"name": "i", "image": "example.invalid/c",
            "resources": {"requests": {"cpu": if one_in(2) { "7" } else { "9" }}}}]);
    }
    if one_in(2) {
        let (key, operator, values) = [
            ("group", "In", json!(["b", "c"])),
            ("group", "NotIn", json!(["a", "b"])),
            ("group", "Exists", json!([])),
            ("none", "Exists", json!([])),
            ("group", "DoesNotExist", json!([])),
            ("disks", "Gt", json!(["3"])),
            ("disks", "Lt", json!(["2"])),
        ][random.random_range(0..7)]
        .clone();
        let mut term = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        if random.random_range(0..3) == 0 {
            let operator = ["In", "NotIn"][random.random_range(0..2)];
            term["matchFields"] = json!([{"key": "metadata.name", "operator": operator, "values": ["n2"]}]);
        }
        spec["affinity"] = json!({"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{index}")}, "spec": spec});
    serde_json::from_value(pod).unwrap()
}

/// What we say: whether some node could take the pod.
async fn we_say(world: &Cluster, pod: &Pod) -> bool {
    let nodes = Api::<Node>::all(world.client.clone()).list(&ListParams::default()).await.unwrap().items;
    let pods = Api::<Pod>::all(world.client.clone()).list(&ListParams::default()).await.unwrap().items;
    let pods: Vec<PodFact> = pods.iter().map(PodFact::of).collect();
    let pod = PodFact::of(pod);
    nodes.iter().map(NodeFact::of).any(|node| {
        let there = pods.iter().filter(|pod| pod.node == node.name);
        let known = PlannedNode {
            name: node.name.as_str().into(),
            labels: node.labels.clone(),
            space: node.space(there),
            ..PlannedNode::default()
        };
        pod.needs.fit(&known)
    })
}

/// What the scheduler says.
async fn it_says(world: &Cluster, name: &str) -> bool {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let verdict = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "PodScheduled"))
    };
    world.until(pods.clone(), name, "looked at by the scheduler", verdict).await;
    pods.get(name).await.unwrap().spec.unwrap().node_name.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_says_the_same_of_which_pods_fit_nowhere() {
    let mut world = Cluster::new().await;
    for (name, group, disks) in [("n1", "a", "1"), ("n2", "b", "2"), ("n3", "c", "4")] {
        world.machine(name, group, Habit::Good).await;
        label(&world, name, json!({"group": group, "disks": disks})).await;
    }
    // One is nearly full, one keeps most pods away.
    let nodes: Api<Node> = Api::all(world.client.clone());
    let taint = json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}});
    nodes.patch("n3", &PatchParams::default(), &Patch::Merge(&taint)).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let hog = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hog"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "example.invalid/c", "resources": {"requests": {"cpu": "7"}}}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(hog).unwrap()).await.unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(20_261_129);
    let (mut placed, mut nowhere) = (0, 0);
    for index in 0..60 {
        let cpu = ["10m", "10m", "2500m", "9"][random.random_range(0..4)];
        let made = pods.create(&PostParams::default(), &pod(&mut random, index, cpu)).await.unwrap();
        let (name, scheduled) = (made.name_any(), it_says(&world, &made.name_any()).await);
        // It has no place yet in what is asked of us.
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
        world.until(pods.clone(), &name, "gone", |pod| pod.is_none()).await;
        assert_eq!(we_say(&world, &made).await, scheduled, "{}", serde_json::to_string(&made.spec).unwrap());
        if scheduled { placed += 1 } else { nowhere += 1 }
    }
    assert!(placed > 10 && nowhere > 10, "{placed} placed, {nowhere} nowhere");
}
