//! The operator's rights against what it does, by the API server's own log: a right that nothing needs is one that only an
//! attacker would use.

use crate::agent::Habit;
use crate::world::World;
use bascule_tests::bascule::OPERATOR;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use std::collections::BTreeSet;

/// Granted and not used here, with what uses it.
const ELSEWHERE: &[(&str, &str)] = &[
    ("delete pods", "spec.drain.onTimeout: Delete"),
    ("patch nodes/status", "--node-conditions"),
    ("patch rollbacks/status.bascule.dev", "a Rollback"),
    ("patch events.events.k8s.io", "an event that comes again becomes a series"),
    ("get secrets", "spec.health.prometheusSecret"),
];

const MAY_LIST_BUDGETS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: gates-budgets, labels: {bascule.dev/aggregate-to-gates: "true"}}
rules: [{apiGroups: [policy], resources: [poddisruptionbudgets], verbs: [list]}]
"#;

fn granted(rules: Option<Vec<PolicyRule>>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for rule in rules.into_iter().flatten() {
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                all.extend(rule.resources.iter().flatten().map(|resource| right(verb, resource, group)));
            }
        }
    }
    all
}

fn right(verb: &str, resource: &str, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{verb} {resource}{dot}{group}")
}

/// The operator's own namespace.
const OWN: &str = "bascule-system";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_has_the_rights_that_it_uses() {
    let mut world = World::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(2).await;
    let operator = world.operator("first").await;
    let freezes: Api<bascule_api::Freeze> = Api::all(world.client.clone());
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
    let explained: BTreeSet<String> = ELSEWHERE.iter().map(|(right, _)| (*right).to_owned()).collect();
    // A right for the whole cluster that is used in its own namespace only is too wide.
    let cluster: Api<ClusterRole> = Api::all(world.client.clone());
    let roles: Api<Role> = Api::namespaced(world.client.clone(), OWN);
    let everywhere = granted(cluster.get("bascule-operator").await.unwrap().rules);
    let at_home = granted(roles.get("bascule-operator").await.unwrap().rules);
    let itself = || own().filter(|request| request.impersonated.is_none());
    let used = |at_home: bool| -> BTreeSet<String> {
        let there = itself().filter(|request| (request.namespace == OWN) == at_home);
        there.map(|request| right(&request.verb, &request.resource, &request.group)).collect()
    };
    let (mut used_at_home, used_elsewhere) = (used(true), used(false));
    used_at_home.insert("impersonate serviceaccounts".to_owned());
    for (rights, used) in [(everywhere, used_elsewhere), (at_home, used_at_home)] {
        let unused: Vec<_> = rights.difference(&used).filter(|right| !explained.contains(*right)).collect();
        assert!(unused.is_empty(), "nothing uses these rights, so an attacker would be the first: {unused:?}");
    }
}
