//! The operator's rights against what it does, by the API server's own log: a right that nothing needs is one that only an
//! attacker would use.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_tests::bascule::OPERATOR;
use bascule_tests::rights::{Granted, OPERATOR_ELSEWHERE};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeSet;

const MAY_LIST_BUDGETS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: gates-budgets, labels: {bascule.dev/aggregate-to-gates: "true"}}
rules: [{apiGroups: [policy], resources: [poddisruptionbudgets], verbs: [list]}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_has_the_rights_that_it_uses() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(2).await;
    let freezes: Api<bascule_api::Freeze> = Api::all(world.client.clone());
    // One that ended so long ago that its record is removed.
    let long_over = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "long-over"},
        "spec": {"reason": "looking", "duration": "1h", "endedBy": "bascule-admin"}});
    freezes.create(&PostParams::default(), &serde_json::from_value(long_over).unwrap()).await.unwrap();
    let then = json!({"status": {"endedAt": "2020-01-01T00:00:00Z"}});
    freezes.patch_status("long-over", &PatchParams::default(), &Patch::Merge(&then)).await.unwrap();
    let operator = world.operator("first").await;
    world.until(freezes.clone(), "long-over", "removed", |freeze| freeze.is_none()).await;
    let freeze = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "short"},
        "spec": {"reason": "looking", "duration": "5s"}});
    freezes.create(&PostParams::default(), &serde_json::from_value(freeze).unwrap()).await.unwrap();
    // Object gates are asked as somebody else.
    world.control_plane.apply(MAY_LIST_BUDGETS).await.unwrap();
    let gate = json!({"object": {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "cel": "true"}});
    world.policy("workers", json!({"newNodes": {"hold": true}, "health": {"gates": [gate]}})).await;
    for node in ["n1", "n2"] {
        world.until_current(node, "1.1").await;
    }
    // A policy that selects nothing says so.
    world.policy("nobody", json!({"nodeSelector": {"matchLabels": {"role": "none"}}})).await;
    let told = |policy: Option<&bascule_api::UpdatePolicy>| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        status.is_some_and(|status| {
            status.conditions.iter().any(|one| one.type_ == "UpToDate" && one.message.contains("selects no node"))
        })
    };
    let policies: Api<bascule_api::UpdatePolicy> = Api::all(world.client.clone());
    world.until(policies, "nobody", "told that it selects nothing", told).await;
    operator.stop().await;

    let requests = world.control_plane.requests().unwrap();
    let own = || requests.iter().filter(|request| request.user == OPERATOR);
    let refused: Vec<_> = own().filter(|request| request.code == 403).collect();
    assert!(refused.is_empty(), "it asks for what it may not: {refused:?}");
    let others: BTreeSet<&str> = own().filter_map(|request| request.impersonated.as_deref()).collect();
    assert_eq!(others, BTreeSet::from(["system:serviceaccount:bascule-system:bascule-gates"]));
    let granted = Granted::of(&world.client, "bascule-operator").await.unwrap();
    assert!(granted.everywhere.len() > 20 && granted.at_home.len() > 3, "{granted:?}");
    let unused = granted.unused(requests.iter(), OPERATOR, OPERATOR_ELSEWHERE);
    assert!(unused.is_empty(), "nothing uses these rights, so an attacker would be the first: {unused:?}");
}
