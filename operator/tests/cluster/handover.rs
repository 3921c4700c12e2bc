//! Two replicas: one acts; when it dies the other goes on from what the objects show.

use crate::agent::Habit;
use crate::proxy::Proxy;
use crate::world::Cluster;
use bascule_api::{LiveReport, NodeUpdate, WaitReason};
use futures::future::select_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_in_the_middle_loses_nothing() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(4).await;
    let first = world.operator("first").await;
    let second = world.operator("second").await;
    world.policy("workers", json!({"health": {"nodeSoak": "1s"}})).await;

    // Kill whoever leads while a node is granted, once for each node.
    let granted = |update: Option<&NodeUpdate>| update.is_some_and(|update| update.spec.disruption.is_some());
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let mut running = vec![first, second];
    let mut still = BTreeSet::from(["n1", "n2", "n3"]);
    while !still.is_empty() {
        let waiting = still.iter().map(|&node| {
            let world = &world;
            Box::pin(async move {
                world.until_update(node, "granted", granted).await;
                node
            })
        });
        let (node, ..) = select_all(waiting).await;
        for operator in running.drain(..) {
            operator.kill().await;
        }
        still.remove(node);
        running.push(world.operator(&format!("after-{node}")).await);
        // Killed in the middle of an eviction, it may have left one that the budget counts for two minutes.
        println!("{}", world.until_no_eviction_is_lost().await);
    }
    let last = running.remove(0);
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
    }
    // Each node was granted exactly once: nothing was repeated.
    for update in updates.list(&ListParams::default()).await.unwrap() {
        let grant = update.spec.grant.as_ref().map(|grant| grant.generation);
        assert_eq!(grant, Some(1), "{update:?}");
    }
    // A clean stop gives the Lease back, so that the next one need not wait for its end.
    last.stop().await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "bascule-system");
    let lease = leases.get("bascule-operator").await.unwrap();
    let holder = lease.spec.unwrap().holder_identity.unwrap_or_default();
    assert!(holder.is_empty(), "still held by {holder}");
}

impl Cluster {
    /// Waits until a replica holds the Lease.
    async fn until_held_by(&self, identity: &str) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "bascule-system");
        let holds = |lease: Option<&Lease>| {
            lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref()).is_some_and(|one| one == identity)
        };
        self.until(leases, "bascule-operator", &format!("held by {identity}"), holds).await;
    }

    /// What a replica answers to a GET.
    async fn asked(&self, listen: &str, path: &str) -> Option<String> {
        let answer = reqwest::get(format!("http://{listen}{path}")).await.ok()?;
        if answer.status().is_success() { answer.text().await.ok() } else { None }
    }
}

/// A replica whose watch of NodeUpdates is late takes over. For what it has seen no node was ever granted, so that a cordon with our mark
/// would be one that was forgotten: it reads the newest state before its first plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_whose_watch_is_late_undoes_nothing_of_its_predecessor() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let build = world.a_build_runs().await;
    let first = world.operator("first").await;
    world.until_held_by("first").await;
    let proxy = Proxy::honest(&world.control_plane).await;
    let late = world.operator_with("late", Some(&proxy.url), &[]).await;
    let ready = async || world.asked(&late.listen, "/readyz").await.is_some();
    world.eventually("the second replica has read everything", ready).await;
    proxy.hold_back_watches_of(vec!["nodeupdates"]);

    world.policy("workers", json!({})).await;
    world.until_reason("n1", WaitReason::PodsCompleting).await;
    first.kill().await;
    world.until_held_by("late").await;
    let plans = async || {
        let report = world.asked(&late.listen, "/report").await;
        let report = report.and_then(|text| serde_json::from_str::<LiveReport>(&text).ok());
        report.is_some_and(|report| report.planned_by == "late" && report.nodes.iter().any(|node| node.name == "n1"))
    };
    world.eventually("the new leader plans", plans).await;
    // What it planned was carried out when it plans once more.
    let plans = async || {
        let text = world.asked(&late.listen, "/metrics").await.unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("bascule_plan_seconds_count "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
    };
    let before = plans().await;
    world.change_policy("workers", json!({"drain": {"timeout": "2h"}})).await;
    world.eventually("the new leader plans again", async || plans().await > before + 1).await;
    let node = Api::<Node>::all(world.client.clone()).get("n1").await.unwrap();
    assert_eq!(node.spec.unwrap().unschedulable, Some(true), "the cordon of a running drain was lost");
    proxy.hold_back_watches_of(Vec::new());
    world.the_build_ends(&build).await;
    world.until_current("n1", "1.1").await;
    assert_eq!(world.update("n1").await.spec.grant.map(|grant| grant.generation), Some(1), "nothing was repeated");
}

/// The API server never answers about one policy's status. Its nodes wait, and those of others do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_whose_status_hangs_holds_up_nobody_else() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let proxy = Proxy::honest(&world.control_plane).await;
    proxy.be_silent_about("/updatepolicies/hangs/status");
    let _operator = world.operator_with("first", Some(&proxy.url), &[]).await;
    let only = |node: &str| json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node}}});
    world.policy("hangs", only("n1")).await;
    world.policy("works", only("n2")).await;
    world.until_current("n2", "1.1").await;
    let hanging = world.update("n1").await;
    assert!(hanging.spec.disruption.is_none(), "what was not remembered is not acted upon: {hanging:?}");
}
