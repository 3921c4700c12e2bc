//! Draining against the real eviction API: what it answers, and that nothing is left behind when it can't succeed.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{NodeUpdate, RolloutState, UpdatePolicy, WaitReason};
use bascule_operator::drain::{Answer, EvictionApi, EvictionBackend as _, Target};
use bascule_tests::webhook::DenyingWebhook;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeSet;

pub fn cordoned(node: Option<&Node>) -> bool {
    node.and_then(|node| node.spec.as_ref()?.unschedulable).unwrap_or(false)
}

fn target(pod: &Pod) -> Target {
    let meta = &pod.metadata;
    Target {
        namespace: meta.namespace.clone().unwrap(),
        name: meta.name.clone().unwrap(),
        uid: meta.uid.clone().unwrap(),
        grace_period_seconds: None,
    }
}

const TWICE: &str = r#"
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: second, namespace: default}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: shop}}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eviction_api_answers_as_we_understand_it() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.shop(4).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    let counted = |budget: Option<&PodDisruptionBudget>| {
        budget.and_then(|budget| budget.status.as_ref()).is_some_and(|status| status.disruptions_allowed == Some(1))
    };
    world.until(budgets.clone(), "shop", "counted", counted).await;
    let mut config = world.control_plane.admin().config().await.unwrap();
    config.default_retry = false;
    let backend = EvictionApi::new(kube::Client::try_from(config).unwrap());
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let all = pods.list(&ListParams::default().labels("app=shop")).await.unwrap().items;

    // The budget's one disruption is used up by the first.
    assert_eq!(backend.evict(&target(&all[0])).await, Answer::Accepted);
    let refused = backend.evict(&target(&all[1])).await;
    let Answer::Budget { budget, message, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(budget.as_ref().unwrap().to_string(), "PodDisruptionBudget default/shop", "{message}");

    // Two budgets over one pod can never be satisfied through this API.
    world.control_plane.apply(TWICE).await.unwrap();
    let several = backend.evict(&target(&all[2])).await;
    assert!(matches!(several, Answer::SeveralBudgets { .. }), "{several:?}");

    let gone = Target { name: "never-was".to_owned(), ..target(&all[3]) };
    assert_eq!(backend.evict(&gone).await, Answer::Gone);

    // An identity without the right says so, which is another thing than a budget's no.
    let nobody = world.control_plane.user("nobody", &[]).unwrap().client().await.unwrap();
    let forbidden = EvictionApi::new(nobody).evict(&target(&all[3])).await;
    assert!(matches!(forbidden, Answer::Forbidden { .. }), "{forbidden:?}");

    // Without budgets: an eviction that the precondition stops costs its budget a disruption for two minutes all the same.
    for budget in ["shop", "second"] {
        budgets.delete(budget, &DeleteParams::default()).await.unwrap();
    }
    // Another pod has taken the name: the one that was meant is gone, and the other is left alone.
    let stranger = Target { uid: "00000000-0000-0000-0000-000000000000".to_owned(), ..target(&all[3]) };
    assert_eq!(backend.evict(&stranger).await, Answer::Gone);
    assert!(pods.get(&stranger.name).await.unwrap().metadata.deletion_timestamp.is_none());
    assert_eq!(backend.delete(&stranger).await, Answer::Gone);
    assert!(pods.get(&stranger.name).await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_can_not_succeed_is_not_begun() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    world.shop(4).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    let strict = json!({"spec": {"minAvailable": 4}});
    budgets.patch("shop", &PatchParams::default(), &Patch::Merge(&strict)).await.unwrap();
    let none = |budget: Option<&PodDisruptionBudget>| {
        budget.and_then(|budget| budget.status.as_ref()).is_some_and(|status| status.desired_healthy == Some(4))
    };
    world.until(budgets.clone(), "shop", "at zero", none).await;

    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_reason("n1", WaitReason::DisruptionBudget).await;
    world.until_reason("n2", WaitReason::DisruptionBudget).await;
    let update = world.update("n1").await;
    let rollout = update.status.unwrap().rollout.unwrap();
    assert!(rollout.message.contains("shop"), "{rollout:?}");
    assert_eq!(rollout.object.unwrap().to_string(), "PodDisruptionBudget default/shop");
    let nodes: Api<Node> = Api::all(world.client.clone());
    for node in ["n1", "n2"] {
        assert!(!cordoned(Some(&nodes.get(node).await.unwrap())), "seen before the cordon");
    }
    let lenient = json!({"spec": {"minAvailable": 3}});
    budgets.patch("shop", &PatchParams::default(), &Patch::Merge(&lenient)).await.unwrap();
    world.until_current("n1", "1.1").await;
    world.until_current("n2", "1.1").await;
}

/// A pod that takes a finalizer's time to go, so that a drain hangs as long as the test wants.
const STUBBORN: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: stubborn, namespace: default}
spec:
  replicas: 1
  serviceName: stubborn
  selector: {matchLabels: {app: stubborn}}
  template:
    metadata: {labels: {app: stubborn}, finalizers: [example.com/hold]}
    spec:
      containers: [{name: c, image: example.invalid/c}]
"#;

pub async fn let_go(world: &Cluster) {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let free = json!({"metadata": {"finalizers": null}});
    pods.patch("stubborn-0", &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fluo_188_kured_63_a_failed_drain_means_no_reboot_and_no_cordon_left() {
    let world = hanging().await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"drain": {"timeout": "3s"}})).await;
    world.until_node("n1", "cordoned", cordoned).await;
    // FLUO #188: never rebooted although the drain failed; kured #63, brupop #691: never left cordoned.
    world.until_node("n1", "uncordoned", |node| !cordoned(node)).await;
    let given_up = |update: Option<&NodeUpdate>| {
        let spec = update.map(|update| &update.spec);
        spec.is_some_and(|spec| {
            spec.disruption.is_none() && spec.last_disruption.as_ref().is_some_and(|l| l.given_up == 1)
        })
    };
    world.until_update("n1", "given up", given_up).await;
    let update = world.update("n1").await;
    assert_eq!(update.status.unwrap().booted.unwrap().version.as_str(), "1.0");
    let_go(&world).await;
}

/// The drain of n1 hangs at a pod.
async fn hanging() -> Cluster {
    hanging_in(Cluster::new().await).await
}

/// The same in a cluster that is there.
pub async fn hanging_in(mut world: Cluster) -> Cluster {
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(STUBBORN).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref()?.phase.clone()).is_some_and(|phase| phase == "Running")
    };
    world.until(pods, "stubborn-0", "running", running).await;
    world
}

async fn until_undone(world: &Cluster) {
    world.until_node("n1", "uncordoned", |node| !cordoned(node)).await;
    world.until_update("n1", "free", |update| update.is_some_and(|update| update.spec.disruption.is_none())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_the_policy_holds_names_who_does_not_go_and_goes_on_once_a_person_has_let_it_go() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.shop(2).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"drain": {"onTimeout": "Hold"}})).await;
    world.until_the_shop_holds("n1").await;
    // Its time is over now.
    world.change_policy("workers", json!({"drain": {"timeout": "3s"}})).await;
    world.until_message("n1", WaitReason::DrainHeld, "Pod default/shop-").await;
    let told = async || world.notes("DrainHeld").await.iter().any(|note| note.contains("Pod default/shop-"));
    world.eventually("somebody is told", told).await;
    still_on_the_old_release(&world).await;
    world.clear_of_the_shop("n1").await;
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_lets_a_node_go_in_the_middle_of_its_drain_leaves_nothing_behind() {
    let world = hanging().await;
    let _operator = world.operator("first").await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    world.policy("workers", json!({})).await;
    world.until_node("n1", "cordoned", cordoned).await;
    // Its selector is changed.
    world.change_policy("workers", json!({"nodeSelector": {"matchLabels": {"role": "database"}}})).await;
    until_undone(&world).await;
    // A typing error makes it invalid.
    world.change_policy("workers", json!({"nodeSelector": {"matchLabels": {"role": "worker"}}})).await;
    world.until_node("n1", "cordoned again", cordoned).await;
    world.change_policy("workers", json!({"maintenanceWindows": [{"schedule": "0 25 * * *", "duration": "1h"}]})).await;
    until_undone(&world).await;
    // It is deleted.
    world.change_policy("workers", json!({"maintenanceWindows": null})).await;
    world.until_node("n1", "cordoned once more", cordoned).await;
    policies.delete("workers", &DeleteParams::default()).await.unwrap();
    until_undone(&world).await;
    let_go(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brupop_594_kured_137_neither_a_blocked_drain_nor_a_deleted_node_holds_the_only_place() {
    let mut world = hanging().await;
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    let waves =
        json!([{"name": "first", "selector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}}, {"name": "rest"}]);
    world.policy("workers", json!({"waves": waves})).await;
    world.until_node("n1", "cordoned", cordoned).await;
    world.until_reason("n2", WaitReason::Wave).await;
    // Without waves the place would be free for the other one, were it not taken.
    world.change_policy("workers", json!({"waves": null})).await;
    world.until_reason("n2", WaitReason::Budget).await;
    // The machine goes for good in the middle of its drain.
    world.power_off("n1");
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    world.until_current("n2", "1.1").await;
    world.until_update("n1", "gone with its node", |update| update.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brupop_650_a_drain_that_is_given_up_frees_the_place_for_another_node() {
    let mut world = hanging().await;
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"drain": {"timeout": "3s"}})).await;
    world.until_current("n2", "1.1").await;
    world.until_reason("n1", WaitReason::DrainBackoff).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    assert!(!cordoned(Some(&nodes.get("n1").await.unwrap())));
    let_go(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_down_count_and_not_only_our_own() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    world.power_off("n2");
    let down = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status != "True"))
    };
    world.until_node("n2", "down", down).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_reason("n1", WaitReason::Budget).await;
    let update = world.update("n1").await;
    let message = update.status.unwrap().rollout.unwrap().message;
    assert!(message.contains("n2"), "names who takes the place: {message}");
    assert!(update.spec.grant.is_none());
}

/// Denies evictions as an admission webhook does, inside the API server.
const DENIAL: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-evictions}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods/eviction]}
  validations:
  - {expression: "false", message: "the database is being backed up"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-evictions}
spec: {policyName: no-evictions, validationActions: [Deny]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_that_an_admission_policy_denies_is_tried_again_until_it_may() {
    use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding as Binding;
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    world.shop(4).await;
    assert_eq!(nodes_of_the_shop(&world).await, ["n1", "n2"], "a node without a pod needs no eviction and is rebooted");
    world.control_plane.apply(DENIAL).await.unwrap();
    until_denied(&world).await;
    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    let denied = async || {
        let text = reqwest::get(format!("http://{}/metrics", operator.listen)).await.unwrap().text().await.unwrap();
        text.lines().any(|line| line.starts_with("bascule_evictions_total") && line.contains("denied"))
    };
    world.eventually("an eviction was denied", denied).await;
    // Neither node was rebooted, and once the denial goes both are updated without anybody's doing.
    still_on_the_old_release(&world).await;
    let bindings: Api<Binding> = Api::all(world.client.clone());
    bindings.delete("no-evictions", &DeleteParams::default()).await.unwrap();
    world.until_current("n1", "1.1").await;
    world.until_current("n2", "1.1").await;
}

/// Asks the eviction API about a pod that is not there until admission answers, which learns of its rules a moment late.
async fn until_denied(world: &Cluster) {
    let probe = EvictionApi::new(world.client.clone());
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let pod = pods.list(&ListParams::default().labels("app=shop")).await.unwrap().items.remove(0);
    let unknown = Target { name: "never-was".to_owned(), ..target(&pod) };
    let denies = async || matches!(probe.evict(&unknown).await, Answer::Denied { .. });
    world.eventually("admission denies evictions", denies).await;
}

/// The nodes that pods of the shop are on, by name.
async fn nodes_of_the_shop(world: &Cluster) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let all = pods.list(&ListParams::default().labels("app=shop")).await.unwrap();
    let nodes: BTreeSet<String> = all.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    nodes.into_iter().collect()
}

async fn still_on_the_old_release(world: &Cluster) {
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    for update in updates.list(&ListParams::default()).await.unwrap() {
        assert_eq!(update.status.unwrap().booted.unwrap().version.as_str(), "1.0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_denies_evictions_and_one_that_can_not_be_reached_hold_the_drain_and_are_named() {
    use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    world.shop(4).await;
    let webhook = DenyingWebhook::start("the database is being backed up").await.unwrap();
    world.control_plane.apply(&webhook.configuration("evictions", "pods/eviction")).await.unwrap();
    until_denied(&world).await;
    let probed = webhook.asked();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}})).await;
    world.until_message("n1", WaitReason::Draining, "the database is being backed up").await;
    assert!(webhook.asked() > probed, "the API server asked the webhook");
    let object = world.update("n1").await.status.unwrap().rollout.unwrap().object.unwrap();
    assert_eq!(object.kind, "Pod");
    // Nobody answers any more: that is no permission either.
    drop(webhook);
    // A drain's detail is written anew after minutes only, and at once where the policy was changed.
    world.change_policy("workers", json!({"drain": {"timeout": "50m"}})).await;
    world.until_message("n1", WaitReason::Draining, "failed calling webhook").await;
    still_on_the_old_release(&world).await;
    // Once nobody stands in the way, the node is updated without anybody's doing.
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(world.client.clone());
    configurations.delete("evictions", &DeleteParams::default()).await.unwrap();
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_used_up_in_the_middle_of_a_drain_is_named_and_waited_for() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.shop(2).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    // There is no other node: the first pod that goes is not replaced, and the budget holds the second one.
    world.until_message("n1", WaitReason::DisruptionBudget, "PodDisruptionBudget default/shop").await;
    let rollout = world.update("n1").await.status.unwrap().rollout.unwrap();
    assert_eq!(rollout.state, RolloutState::Draining, "{rollout:?}");
    assert_eq!(rollout.object.unwrap().to_string(), "PodDisruptionBudget default/shop");
    // Another machine gives the pods a place, and the drain goes on.
    world.machine("n2", "b", Habit::Good).await;
    world.until_current("n1", "1.1").await;
    world.until_current("n2", "1.1").await;
}
