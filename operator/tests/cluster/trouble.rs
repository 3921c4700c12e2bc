//! An API server that is slow, says 409, 410 and 503, loses answers and drops watches; clocks that differ; leaders that
//! die under load. All of it costs time, and nothing else.

use crate::agent::Habit;
use crate::drain::{hanging_in, let_go};
use crate::proxy::Proxy;
use crate::world::Cluster;
use bascule_api::{DisruptionOutcome, Freeze, NodeUpdate, WaitReason};
use bascule_tests::workload::Guard;
use chrono::TimeDelta;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

/// Each node was granted exactly once, and is left as it was.
async fn nothing_was_repeated(world: &Cluster) {
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    for update in updates.list(&ListParams::default()).await.unwrap() {
        let grant = update.spec.grant.as_ref().map(|grant| grant.generation);
        assert_eq!(grant, Some(1), "{update:?}");
    }
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.client.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        assert!(node.spec.as_ref().and_then(|spec| spec.unschedulable).is_none(), "{node:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_api_server_with_conflicts_lost_answers_410_and_dropped_watches_costs_only_time() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(4).await;
    let guard = Guard::start(&world.client);
    let proxy = Proxy::start(&world.control_plane).await;
    let _operator = world.operator_with("first", Some(&proxy.url), &[]).await;
    world.policy("workers", json!({})).await;
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
    }
    let seen = proxy.counts();
    println!("{seen:?}");
    assert!(seen.conflicts > 0 && seen.lost > 0 && seen.overloads > 0 && seen.gone > 0 && seen.cut > 0, "{seen:?}");
    proxy.mend();
    assert!(!guard.was_broken(), "the budget was broken");
    nothing_was_repeated(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_differ_by_years_stop_nobody() {
    let mut world = Cluster::new().await;
    // What this machine says of times is ten years ahead of the operator.
    world.machine("n1", "a", Habit::ClockAhead).await;
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    let waves = json!([
        {"name": "canary", "selector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}, "soak": "2s"},
        {"name": "rest"}
    ]);
    world.policy("workers", json!({"waves": waves, "health": {"nodeSoak": "1s"}})).await;
    world.until_current("n1", "1.1").await;
    // The soak is counted by the API server's clock, as the operator knows it.
    world.until_current("n2", "1.1").await;
    nothing_was_repeated(&world).await;
}

/// By what the clocks of operators are wrong: far more than a pod is given to end.
const WRONG: TimeDelta = TimeDelta::minutes(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_whose_clock_is_ahead_takes_no_pod_that_is_ending_for_one_that_never_will() {
    let world = hanging_in(Cluster::new().await).await;
    let operator = world.operator_ahead("first", WRONG).await;
    world.policy("workers", json!({"drain": {"timeout": "10s"}})).await;
    // The pod was asked to go and is given its time. By the operator's own clock that was over long ago, so that the node would
    // be taken for empty, and reboot under it.
    let given_up = |update: Option<&NodeUpdate>| {
        let spec = update.map(|update| &update.spec);
        spec.is_some_and(|spec| {
            spec.disruption.is_none() && spec.last_disruption.as_ref().is_some_and(|last| last.given_up == 1)
        })
    };
    world.until_update("n1", "given up", given_up).await;
    let update = world.update("n1").await;
    assert_eq!(update.status.unwrap().booted.unwrap().version.as_str(), "1.0");
    // What is written is in the API server's time, so that a leader on another machine judges as this one.
    let ended = update.spec.last_disruption.unwrap().ended_at;
    let off = (bascule_tests::clock::now() - ended.get()).abs();
    assert!(off < WRONG / 2, "it ended at {ended}");

    let shown = async || {
        let text = reqwest::get(format!("http://{}/metrics", operator.listen)).await.unwrap().text().await.unwrap();
        let skew = text.lines().find_map(|line| line.strip_prefix("bascule_clock_skew_seconds ").map(str::to_owned));
        skew.and_then(|skew| skew.parse::<f64>().ok()).is_some_and(|skew| (skew - WRONG.as_seconds_f64()).abs() < 12.0)
    };
    world.eventually("the skew is shown", shown).await;
    let_go(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_whose_clock_is_behind_ends_a_freeze_when_it_is_over() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let freeze = json!({"metadata": {"name": "short"}, "spec": {"reason": "a test", "duration": "5s"}});
    let freeze: Freeze = serde_json::from_value(freeze).unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &freeze).await.unwrap();
    let _operator = world.operator_ahead("first", -WRONG).await;
    world.policy("workers", json!({"health": {"nodeSoak": "1s"}})).await;
    // By the operator's own clock it is not even created yet, and holds for eight minutes more.
    world.until_current("n1", "1.1").await;
    nothing_was_repeated(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_changes_hands_under_load_and_nothing_is_repeated() {
    let mut world = Cluster::new().await;
    let nodes = ["n1", "n2", "n3", "n4", "n5", "n6"];
    for (index, node) in nodes.iter().enumerate() {
        world.machine(node, ["a", "b", "c"][index % 3], Habit::Good).await;
    }
    world.shop(4).await;
    let guard = Guard::start(&world.client);
    let mut replicas = vec![("first".to_owned(), world.operator("first").await)];
    replicas.push(("second".to_owned(), world.operator("second").await));
    world.policy("workers", json!({"budget": {"maxUnavailable": 2}, "health": {"nodeSoak": "1s"}})).await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "bascule-system");
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    for round in 0..3 {
        let moving = async || {
            let all = updates.list(&ListParams::default()).await.unwrap().items;
            let moves = all.iter().any(|update| update.spec.disruption.is_some());
            let done = all.iter().filter(|update| update.spec.last_disruption.is_some()).count();
            (moves && done >= round) || done == nodes.len()
        };
        world.eventually("a node moves", moving).await;
        let lease = leases.get("bascule-operator").await.unwrap();
        let holder = lease.spec.unwrap().holder_identity.unwrap_or_default();
        // The one that leads dies without a word, and a new replica takes its place beside the other.
        if let Some(at) = replicas.iter().position(|(identity, _)| *identity == holder) {
            replicas.remove(at).1.kill().await;
            let identity = format!("replica-{round}");
            let operator = world.operator(&identity).await;
            replicas.push((identity, operator));
            println!("{}", world.until_no_eviction_is_lost().await);
        }
    }
    for node in nodes {
        world.until_current(node, "1.1").await;
    }
    assert!(!guard.was_broken(), "the budget was broken");
    nothing_was_repeated(&world).await;
}

/// An admission webhook denies what the operator writes to one node. People read its words where they look, the node's place goes to the
/// next one, and the webhook is not asked with every plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordon_that_a_webhook_denies_is_told_in_its_words_and_the_place_goes_to_the_next_node() {
    const WORDS: &str = "admission webhook \"cordons.example.com\" denied the request: not before the audit";
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let proxy = Proxy::honest(&world.control_plane).await;
    proxy.deny("/api/v1/nodes/n1?", WORDS);
    let _operator = world.operator_with("first", Some(&proxy.url), &[]).await;
    world.policy("workers", json!({"drain": {"timeout": "30s"}})).await;

    world.until_message("n1", WaitReason::WriteRefused, WORDS).await;
    let told = async || world.notes("WriteRefused").await.iter().any(|note| note.contains(WORDS));
    world.eventually("it is an event", told).await;
    let given_back = |update: Option<&NodeUpdate>| {
        update.and_then(|update| update.spec.last_disruption.as_ref()).is_some_and(|last| {
            last.outcome == DisruptionOutcome::DrainFailed
                && last.message.contains("could not be cordoned")
                && last.message.contains(WORDS)
        })
    };
    world.until_update("n1", "given back", given_back).await;
    world.until_message("n1", WaitReason::DrainBackoff, WORDS).await;
    world.until_current("n2", "1.1").await;
    assert!(world.update("n1").await.spec.disruption.is_none());
    // Two kinds of writes, each tried at once, after 1, 2, 4 s and so on, and once a minute then.
    let denials = proxy.denials();
    println!("{denials} writes were denied");
    assert!((3..40).contains(&denials), "{denials} writes were denied");
}
