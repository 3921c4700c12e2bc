//! Gates that ask about objects of the API server: for each node where their expression names it, by one LIST and what changes after it, with the
//! rights that an owner granted.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{Gate, UpdatePolicy, WaitReason};
use bascule_operator::health::{Asker, GateAnswer};
use bascule_tests::control_plane::Request;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::time::{Duration, Instant};

/// What the owner of a namespace granted to gates that watched nothing.
pub const PODS_OF_DEFAULT: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: gates-pods, namespace: default}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: gates-pods, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: gates-pods}
subjects: [{kind: ServiceAccount, name: bascule-gates, namespace: bascule-system}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_names_the_node_is_asked_for_each_and_a_missing_field_is_not_yet() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let build = async |name: &str, node: Option<&str>| {
        let scheduler = if node.is_some() { "default-scheduler" } else { "nobody" };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"job": "build"}},
            "spec": {"nodeName": node, "schedulerName": scheduler,
                "containers": [{"name": "build", "image": "example.invalid/build"}]}
        }))
        .unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
    };
    build("running", Some("n1")).await;
    // The owner of one namespace grants what is in it, and nothing elsewhere.
    world.control_plane.apply(PODS_OF_DEFAULT).await.unwrap();
    let _operator = world.operator("first").await;
    let gate = json!([{"name": "ci", "object": {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "selector": {"matchLabels": {"job": "build"}},
        "cel": "object.spec.nodeName != node", "optional": true,
    }}]);
    world.policy("workers", json!({"health": {"gates": gate}, "drain": {"force": true}})).await;
    world.until_current("n2", "1.1").await;
    world.until_message("n1", WaitReason::HealthGate, "default/running does not fulfil").await;
    // A build that waits for its place says of no node that it may go, and blames nobody.
    build("pending", None).await;
    let now = DeleteParams::default().grace_period(0);
    pods.delete("running", &now).await.unwrap();
    world.until_message("n1", WaitReason::HealthGate, "it has no nodeName yet").await;
    assert!(world.update("n1").await.spec.grant.is_none());
    pods.delete("pending", &now).await.unwrap();
    world.until_current("n1", "1.1").await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    assert!(policies.get("workers").await.unwrap().status.unwrap().failures.is_empty());
}

/// The same with the right to watch.
fn pods_watched() -> String {
    PODS_OF_DEFAULT.replace("verbs: [list]", "verbs: [list, watch]")
}

/// A pod that is placed nowhere, with a label that says what it does.
fn build(name: &str, state: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"job": "build", "state": state}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "build", "image": "example.invalid/build"}]}
    }))
    .unwrap()
}

/// Who answers asks the API server itself, as the account that the operator impersonates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gate_asks_about_is_read_once_and_then_its_changes_and_the_end_of_its_right_are_heard() {
    const GATES: &str = "system:serviceaccount:bascule-system:bascule-gates";
    let world = Cluster::new().await;
    world.control_plane.apply(&pods_watched()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    for name in ["one", "two", "three"] {
        pods.create(&PostParams::default(), &build(name, "idle")).await.unwrap();
    }
    let gates = world.control_plane.service_account("bascule-system", "bascule-gates").await.unwrap();
    let asker = Asker::new(world.client.clone(), gates.client().await.unwrap(), "bascule-system", &[]).unwrap();
    let gate: Gate = serde_json::from_value(json!({"object": {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "selector": {"matchLabels": {"job": "build"}},
        "cel": "object.metadata.labels.state != 'busy' && node != ''",
    }}))
    .unwrap();
    let health = bascule_api::Health::default();
    let ask = async |node: &str| asker.ask(&health, &gate, Some(node)).await;
    let asked = || {
        let requests = world.control_plane.requests().unwrap();
        let of_gates = requests.into_iter().filter(|request| request.user == GATES && request.resource == "pods");
        let (lists, others): (Vec<_>, Vec<_>) = of_gates.partition(|request| request.verb == "list");
        let of_one = |request: &Request| request.query.split('&').any(|part| part == "limit=1");
        let (probes, lists): (Vec<_>, Vec<_>) = lists.into_iter().partition(of_one);
        (lists, probes, others)
    };
    // The API server needs a moment for the Role.
    world.eventually("the gate passes", async || ask("n0").await.answer.passed()).await;
    // It may have refused before.
    let before = asked().0.len();
    let began = Instant::now();
    for question in 0..20 {
        let heard = ask(&format!("n{question}")).await;
        assert!(heard.answer.passed() && heard.as_of.elapsed() < Duration::from_secs(31), "{heard:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (lists, probes, watches) = asked();
    assert_eq!(lists.len(), before, "it is read again although it is watched: {lists:?}");
    assert!(watches.iter().all(|request| request.verb == "watch" && request.code == 200), "{watches:?}");
    // Two requests every ten seconds: twenty where this machine has nothing else to do.
    let periods = usize::try_from(began.elapsed().as_secs() / 10).unwrap().max(2);
    let few = (1..=periods + 3).contains(&watches.len()) && (1..=periods + 2).contains(&probes.len());
    assert!(few, "{watches:?} {probes:?}");

    let busy = json!({"metadata": {"labels": {"state": "busy"}}});
    pods.patch("two", &PatchParams::default(), &Patch::Merge(&busy)).await.unwrap();
    let changed = Instant::now();
    let fails = async || matches!(ask("n0").await.answer, GateAnswer::Failed(why) if why.contains("default/two"));
    world.eventually("the gate closes", fails).await;
    assert!(changed.elapsed() < Duration::from_secs(1), "it was heard after {:?}", changed.elapsed());
    pods.delete("two", &DeleteParams::default().grace_period(0)).await.unwrap();
    world.eventually("the gate opens", async || ask("n0").await.answer.passed()).await;
    assert_eq!(asked().0.len(), before);

    // The API server ends no watch for that, and the next request of any kind tells.
    let roles: Api<RoleBinding> = Api::namespaced(world.client.clone(), "default");
    roles.delete("gates-pods", &DeleteParams::default()).await.unwrap();
    let taken = Instant::now();
    let refused = async || match ask("n0").await.answer {
        GateAnswer::Unknown(why) => why.starts_with("Pod can't be read: ") && why.contains("forbidden"),
        _ => false,
    };
    world.eventually("the gate closes for want of a right", async || refused().await).await;
    assert!(taken.elapsed() < Duration::from_secs(20), "it was noticed after {:?}", taken.elapsed());
    assert!(refused().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_without_the_right_to_watch_goes_on_and_its_policy_says_what_is_better() {
    let world = Cluster::new().await;
    world.control_plane.apply(PODS_OF_DEFAULT).await.unwrap();
    let _operator = world.operator("first").await;
    let gate = json!([{"name": "ci", "object": {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "cel": "true", "optional": true,
    }}]);
    world.policy("workers", json!({"health": {"gates": gate}})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let accepted = |policy: Option<&UpdatePolicy>, holds: &dyn Fn(&str) -> bool| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let accepted = bascule_api::conditions::get(conditions, bascule_api::conditions::ACCEPTED);
        accepted.is_some_and(|accepted| accepted.status == "True" && holds(&accepted.message))
    };
    let advice = "spec.health.gates[0].object: object gates may list pods in the namespace default and not watch them";
    let advised = |policy: Option<&UpdatePolicy>| accepted(policy, &|said| said.starts_with(advice));
    world.until(policies.clone(), "workers", "accepted, with advice", advised).await;
    world.control_plane.apply(&pods_watched()).await.unwrap();
    let quiet = |policy: Option<&UpdatePolicy>| accepted(policy, &str::is_empty);
    world.until(policies, "workers", "accepted, without advice", quiet).await;
}
