//! A policy brings every node to the channel's release while the workload stays available.

use crate::agent::Habit;
use crate::reboots::LOGS;
use crate::world::Cluster;
use bascule_api::conditions::{ACTIVE, is_true};
use bascule_api::{CORDONED_BY_ANNOTATION, Freeze, NodeUpdate, Rollback, UpdatePolicy, WaitReason};
use bascule_tests::bascule::OPERATOR;
use bascule_tests::control_plane::{Request, RequestCounts};
use bascule_tests::workload::Guard;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

fn untouched(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let marked = node.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CORDONED_BY_ANNOTATION));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    !cordoned && !marked && !taints.iter().any(|taint| taint.key.starts_with("bascule.dev/"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_updated_and_the_workload_stays_available() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    world.shop(4).await;
    let guard = Guard::start(&world.client);

    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    for node in ["n1", "n2", "n3"] {
        world.until_current(node, "1.1").await;
        world.until_node(node, "left as it was", |node| node.is_some_and(untouched)).await;
    }
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let done = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| status.columns.updated == "3/3")
    };
    world.until(policies, "workers", "3/3 updated", done).await;
    assert!(!guard.was_broken(), "the budget was broken");

    // What people and Prometheus see.
    let metrics = reqwest::get(format!("http://{}/metrics", operator.listen)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("bascule_nodes{policy=\"workers\",state=\"Current\"} 3"), "{metrics}");
    for measured in ["bascule_drain_seconds", "bascule_boot_seconds", "bascule_reaction_seconds"] {
        let count = metrics.lines().filter(|line| line.starts_with(&format!("{measured}_count")));
        let count: u32 = count.map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()).sum();
        assert!(count >= 3, "{measured} was observed {count} times");
    }
    let ready = reqwest::get(format!("http://{}/readyz", operator.listen)).await.unwrap();
    assert_eq!(ready.status().as_u16(), 200);
    let counts = RequestCounts::of(&world.control_plane.requests().unwrap());
    println!("requests of the operator for 3 nodes: {:?}", counts.0.get(OPERATOR));
    // Everything the operator wrote for a node, events apart, from enrolling it to the last explanation. A write that meets
    // a newer object is refused (409) and changes nothing.
    let requests = world.control_plane.requests().unwrap();
    for node in ["n1", "n2", "n3"] {
        let own = |one: &&Request| {
            one.user == OPERATOR && one.writes() && one.name == node && one.resource != "events" && one.code < 300
        };
        let writes: Vec<String> =
            requests.iter().filter(own).map(|one| format!("{} {} {}", one.verb, one.resource, one.code)).collect();
        println!("{node}: {} writes: {writes:?}", writes.len());
        assert!(writes.len() <= 12, "{node} took {} writes: {writes:?}", writes.len());
    }

    // On-call: a Freeze is seen at once, and a Rollback brings a node back to what its other slot holds.
    let rollback: Rollback = serde_json::from_value(json!({
        "metadata": {"name": "back"}, "spec": {"reason": "breaks the network", "policy": "workers", "nodes": ["n1"]}
    }))
    .unwrap();
    let rollbacks: Api<Rollback> = Api::all(world.client.clone());
    rollbacks.create(&PostParams::default(), &rollback).await.unwrap();
    let back = |update: Option<&bascule_api::NodeUpdate>| {
        let booted = update.and_then(|update| update.status.as_ref()?.booted.as_ref());
        booted.is_some_and(|booted| booted.version.as_str() == "1.0")
            && update.is_some_and(|update| update.spec.disruption.is_none())
    };
    world.until_update("n1", "back on 1.0", back).await;
    world
        .until_node("n1", "left as it was", |node| {
            node.is_some_and(|node| node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true))
        })
        .await;
    operator.stop().await;
}

/// The columns of `kubectl get`, from STATE on, without the age.
fn state_and_reason(world: &Cluster, node: &str) -> String {
    let output = world.control_plane.kubectl().args(["get", "nodeupdates", node]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines();
    let (head, row) = (lines.next().unwrap(), lines.next().unwrap());
    let (state, until) = (head.find("STATE").unwrap(), head.find("UNTIL").unwrap());
    row[state..until].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kured_1409_suc_341_a_freeze_holds_and_an_admins_cordon_is_kept() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let freezes: Api<Freeze> = Api::all(world.client.clone());
    let freeze: Freeze = serde_json::from_value(json!({
        "metadata": {"name": "incident"}, "spec": {"reason": "checkout incident", "duration": "1h"}
    }))
    .unwrap();
    freezes.create(&PostParams::default(), &freeze).await.unwrap();
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.cordon("n1").await.unwrap();

    let _operator = world.operator("first").await;
    // The cordoned node counts as unavailable.
    world.policy("workers", json!({"budget": {"maxUnavailable": 2}})).await;
    world.until_reason("n2", WaitReason::Freeze).await;
    assert_eq!(state_and_reason(&world, "n2"), "Waiting Freeze");
    let end = json!({"spec": {"endedBy": "bascule-admin"}});
    freezes.patch("incident", &PatchParams::default(), &Patch::Merge(&end)).await.unwrap();
    // The other node goes; the cordoned one waits and stays as the admin left it.
    world.until_current("n2", "1.1").await;
    assert_eq!(state_and_reason(&world, "n2"), "Current", "the same word is not said twice");
    let noted = |freeze: Option<&Freeze>| {
        let status = freeze.and_then(|freeze| freeze.status.as_ref());
        status.is_some_and(|status| status.ended_at.is_some() && !is_true(&status.conditions, ACTIVE))
    };
    world.until(freezes.clone(), "incident", "on record as ended", noted).await;
    world.until_node("n2", "left as it was", |node| node.is_some_and(untouched)).await;
    world.until_reason("n1", WaitReason::Cordoned).await;
    // One that is deleted has ended too.
    let hold: Freeze = serde_json::from_value(json!({
        "metadata": {"name": "hold"}, "spec": {"reason": "not this one", "duration": "1h", "nodes": ["n1"]}
    }))
    .unwrap();
    freezes.create(&PostParams::default(), &hold).await.unwrap();
    world.until_reason("n1", WaitReason::Freeze).await;
    freezes.delete("hold", &DeleteParams::default()).await.unwrap();
    world.until_reason("n1", WaitReason::Cordoned).await;
    let kept = nodes.get("n1").await.unwrap();
    assert_eq!(kept.spec.as_ref().and_then(|spec| spec.unschedulable), Some(true), "the admin's cordon was undone");
    let marks = kept.metadata.annotations.unwrap_or_default();
    assert!(!marks.contains_key(CORDONED_BY_ANNOTATION), "the admin's cordon was taken over: {marks:?}");
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let waits = updates.get("n1").await.unwrap();
    assert!(waits.spec.disruption.is_none() && waits.spec.grant.is_none(), "a cordoned node was granted: {waits:?}");
    nodes.uncordon("n1").await.unwrap();
    world.until_current("n1", "1.1").await;
    world.until_node("n1", "left as it was", |node| node.is_some_and(untouched)).await;
    let left = nodes.get("n1").await.unwrap();
    assert!(untouched(&left), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_fails_is_blocked_and_no_node_is_drained_for_it_again() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Fails).await;
    world.machine("n2", "b", Habit::Fails).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let blocked = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| {
            status.failures.len() == 1 && status.blocked.iter().any(|one| one.version.as_str() == "1.1")
        })
    };
    world.until(policies, "workers", "blocked after one failure", blocked).await;
    for node in ["n1", "n2"] {
        world.until_node(node, "left as it was", |node| node.is_some_and(untouched)).await;
        world
            .until_update(node, "at rest on 1.0", |update| {
                update.is_some_and(|update| {
                    let booted = update.status.as_ref().and_then(|status| status.booted.as_ref());
                    update.spec.disruption.is_none() && booted.is_some_and(|booted| booted.version.as_str() == "1.0")
                })
            })
            .await;
    }
    let grants = async || {
        let updates: Api<NodeUpdate> = Api::all(world.client.clone());
        let all = updates.list(&ListParams::default()).await.unwrap().items;
        all.iter().filter_map(|update| update.spec.grant.as_ref()).map(|grant| grant.generation).sum::<i64>()
    };
    assert_eq!(grants().await, 1, "one node was drained, once");

    // An admin looked into it and lets the release go on: the node where it failed stays, the other one tries it. It
    // fails there too, and the block is in force again.
    world.change_policy("workers", json!({"allowedVersions": ["1.1"]})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let again = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| {
            status.failures.len() == 2 && bascule_api::conditions::is_true(&status.conditions, "Halted")
        })
    };
    world.until(policies, "workers", "halted again", again).await;
    assert_eq!(grants().await, 2, "each node tried it once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tries_again_once_for_each_word_of_a_person() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Fails).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"failureThreshold": 5})).await;
    world.until_reason("n1", WaitReason::FailedHere).await;
    let grants = |update: &NodeUpdate| update.spec.grant.as_ref().map_or(0, |grant| grant.generation);

    for (word, at) in ["2026-11-21T12:00:00Z", "2026-11-21T13:00:00Z"].into_iter().enumerate() {
        let tried = 2 + i64::try_from(word).unwrap();
        world.change_policy("workers", json!({"retries": [{"node": "n1", "at": at, "reason": "disk replaced"}]})).await;
        world
            .until_update("n1", "tried again, in vain", |update| {
                update.is_some_and(|update| {
                    let status = update.status.as_ref();
                    let failed = status.is_some_and(|status| status.failed_releases.len() == 1);
                    grants(update) == tried && update.spec.disruption.is_none() && failed
                })
            })
            .await;
        world.until_reason("n1", WaitReason::FailedHere).await;
    }
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let status = policies.get("workers").await.unwrap().status.unwrap();
    assert_eq!(status.failures.len(), 1, "what failed before was forgotten: {status:?}");
    assert_eq!(status.retried.iter().map(|retry| retry.node.as_str()).collect::<Vec<_>>(), ["n1"]);
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    assert_eq!(grants(&updates.get("n1").await.unwrap()), 3, "once for each word");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_policy_starts_no_rollback_of_its_own() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::PodsCrash).await;
    world.control_plane.apply(LOGS).await.unwrap();
    for node in ["n1", "n2"] {
        world.until_ready_on("logs", node).await;
    }
    let _operator = world.operator("first").await;
    let first = json!({"name": "first", "selector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}});
    let waves = json!([first, {"name": "rest"}]);
    let health = json!({"nodeReadyTimeout": "30s"});
    world.policy("workers", json!({"automaticRollback": true, "waves": waves, "health": health})).await;
    world.until_current("n1", "1.1").await;
    // What moves is finished: the trial on the other node fails, and with it the release.
    let on_trial = |update: Option<&NodeUpdate>| {
        update.and_then(|update| update.status.as_ref()).is_some_and(|status| status.trial.is_some())
    };
    world.until_update("n2", "on trial", on_trial).await;
    world.change_policy("workers", json!({"paused": true})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let blocked = |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| !status.blocked.is_empty())
    };
    world.until(policies, "workers", "blocked", blocked).await;
    let rests = |update: Option<&NodeUpdate>, version: &str| {
        update.is_some_and(|update| {
            let booted = update.status.as_ref().and_then(|status| status.booted.as_ref());
            update.spec.disruption.is_none() && booted.is_some_and(|booted| booted.version.as_str() == version)
        })
    };
    world.until_update("n2", "back on 1.0", |update| rests(update, "1.0")).await;
    world.until_reason("n1", WaitReason::Paused).await;
    let update = world.update("n1").await;
    assert!(rests(Some(&update), "1.1"), "{update:?}");
    assert_eq!(update.spec.grant.map(|grant| grant.generation), Some(1), "it was disrupted for its update alone");
    world.change_policy("workers", json!({"paused": false})).await;
    world.until_update("n1", "back on 1.0", |update| rests(update, "1.0")).await;
}
