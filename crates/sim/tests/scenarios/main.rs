//! Scripts whose outcome people have read: what the operator does, and what it says meanwhile.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests and their helpers")]

mod newcomers;
mod trials;

use bascule_api::{DisruptionOutcome, WaitReason};
use bascule_planner::{Action, plan, snapshot::Node};
use bascule_sim::world::{Fate, World, build};
use serde_json::{Value, json};
use std::sync::Arc;

fn world(per_zone: usize, fields: &Value) -> World {
    World::scripted(per_zone, vec![build::policy("workers", fields, &build::offer(&["1.0", "1.1"]))])
}

fn on(world: &World, version: &str) -> usize {
    world.machines.keys().filter(|name| world.running(name).is_some_and(|running| running.as_str() == version)).count()
}

fn node<'a>(world: &'a World, name: &str) -> &'a Node {
    world.snapshot.nodes.iter().find(|node| &*node.name == name).unwrap()
}

fn granted(world: &World) -> usize {
    world.snapshot.nodes.iter().filter(|node| node.granted()).count()
}

fn state(node: &str, world: &World) -> String {
    let shown = world.shown();
    shown.lines().find(|line| line.starts_with(node)).unwrap_or_default().to_owned()
}

#[test]
fn a_window_closes_half_way() {
    // Opens at 12:00 UTC for 14 minutes: one node after the other fits, then no more.
    let fields = json!({"maintenanceWindows": [{"schedule": "0 12 * * *", "duration": "14m"}]});
    let mut world = world(4, &fields);
    world.until(400, |world| world.snapshot.now > build::at(13 * 60) && granted(world) == 0).unwrap();
    assert!(world.snapshot.now <= build::at(14 * 60), "what was started was done before the window closed");
    world.until(400, |world| world.snapshot.now > build::at(15 * 60)).unwrap();
    let half = on(&world, "1.1");
    assert!((1..12).contains(&half), "{half} of 12 nodes");
    insta::assert_snapshot!("window_closes_half_way", world.shown());
    // The next day the rest goes.
    world.pass(86_400 - 20 * 60);
    world.until(600, |world| on(world, "1.1") == 12 && granted(world) == 0).unwrap();
}

#[test]
fn a_learned_time_that_fits_no_window_is_learned_anew() {
    // One trial took forty minutes because nobody looked; the windows have fourteen.
    let fields = json!({
        "budget": {"maxUnavailable": "100%"},
        "maintenanceWindows": [{"schedule": "0 12 * * *", "duration": "14m"}]
    });
    let mut world = world(4, &fields);
    world.policy("workers", |policy| policy.status.timings.boot_seconds = Some(2_400));
    let (mut most, mut days) = (0, 0);
    while on(&world, "1.1") < 4 {
        days += 1;
        assert!(days < 8, "locked out: {}", world.shown());
        world
            .until(150, |world| {
                most = most.max(granted(world));
                let elapsed = world.snapshot.now.seconds_since(build::at(0));
                elapsed % 86_400 >= 20 * 60
            })
            .unwrap();
        world.pass(86_400 - 20 * 60);
    }
    assert_eq!(most, 1, "one node at a time, as long as what was learned fits no window");
}

#[test]
fn the_canary_fails_and_nobody_else_is_touched() {
    let fields = json!({
        "waves": [{"name": "canary", "count": 1, "soak": "5m"}, {"name": "rest"}],
        "health": {"nodeReadyTimeout": "5m"}
    });
    let mut world = world(2, &fields);
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    world.until(200, |world| !world.snapshot.policies[0].status.blocked.is_empty() && granted(world) == 0).unwrap();
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(on(&world, "1.0"), 6);
    assert_eq!(world.machines.values().filter(|machine| !machine.history.is_empty()).count(), 1, "one node rebooted");
    insta::assert_snapshot!("canary_fails", format!("{}{}", world.take_story(), world.shown()));
    // A release that mends it ends the halt.
    let offer = build::offer(&["1.0", "1.1", "1.2"]);
    world.policy("workers", |policy| policy.offer = Arc::clone(&offer));
    world.until(1_000, |world| on(world, "1.2") == 6 && granted(world) == 0).unwrap();
}

#[test]
fn a_budget_at_zero_lets_other_nodes_go_first() {
    let mut world = world(1, &json!({}));
    world.with_app("shop/checkout", &["a1", "b1"], 2);
    world.until(200, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    assert_eq!(world.running("c1").unwrap().as_str(), "1.1");
    insta::assert_snapshot!("budget_at_zero", world.shown());
    world.set_desired("shop/checkout", 1);
    world.until(200, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn two_zones_are_down() {
    let fields = json!({
        "budget": {"maxUnavailable": "100%", "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1}}
    });
    let mut world = world(2, &fields);
    for name in ["a1", "b1"] {
        world.machines.get_mut(name).unwrap().unready = true;
    }
    for _ in 0..40 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert_eq!((on(&world, "1.1"), granted(&world)), (0, 0));
    insta::assert_snapshot!("two_zones_down", world.shown());
    for machine in world.machines.values_mut() {
        machine.unready = false;
    }
    world.until(400, |world| on(world, "1.1") == 6 && granted(world) == 0).unwrap();
}

#[test]
fn the_operator_dies_while_granting() {
    for dies_after in 0..12 {
        let mut world = world(1, &json!({}));
        world.with_pods(3);
        // It dies after its n-th action, in every round, and another one goes on.
        for round in 0..3_000 {
            let lives = if round % 2 == 0 { Some(dies_after % 3) } else { None };
            world.operate_for(lives).unwrap();
            world.pass(7);
            assert!(granted(&world) <= 1, "{}", world.story());
            if on(&world, "1.1") == 3 && granted(&world) == 0 {
                break;
            }
        }
        assert_eq!(on(&world, "1.1"), 3, "{}", world.story());
        assert!(world.snapshot.nodes.iter().all(|node| !node.cordon.is_cordoned()), "{}", world.story());
        assert!(world.machines.values().all(|machine| machine.history.len() == 1), "one reboot each");
    }
}

#[test]
fn a_freeze_in_a_drain_lets_the_node_finish() {
    let mut world = world(1, &json!({}));
    world.with_pods(3);
    world.until(200, |world| world.snapshot.nodes.iter().any(|node| node.cordon.is_cordoned())).unwrap();
    let freeze = build::freeze("incident", world.snapshot.now, 3_600);
    world.snapshot.freezes.push(Arc::new(freeze));
    let end = world.snapshot.freezes[0].ends_at();
    world.until(100, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.1"), 1, "what moved is finished");
    insta::assert_snapshot!("freeze_in_a_drain", world.shown());
    world.until(500, |world| world.snapshot.now >= end && granted(world) > 0).unwrap();
    world.until(300, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn an_abort_gives_a_draining_node_back_and_lets_nothing_start() {
    let mut world = world(1, &json!({}));
    world.with_pods(3);
    world.until(200, |world| world.snapshot.nodes.iter().any(|node| node.cordon.is_cordoned())).unwrap();
    let mut abort = build::freeze("incident", world.snapshot.now, 3_600);
    (abort.spec.policies, abort.spec.undo_drains) = (vec!["workers".to_owned()], true);
    world.snapshot.freezes.push(Arc::new(abort));
    world.until(100, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.0"), 3, "the node runs what it ran");
    assert!(world.snapshot.nodes.iter().all(|node| !node.cordon.is_cordoned()), "it takes work again");
    let end = world.snapshot.freezes[0].ends_at();
    world.until(500, |world| world.snapshot.now >= end).unwrap();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn an_abort_does_not_stop_a_reboot_in_its_middle() {
    let mut world = world(1, &json!({}));
    let boots = |world: &World| {
        let goals = world.snapshot.nodes.iter().filter_map(|node| node.update.as_ref());
        goals.filter(|update| update.spec.goal == bascule_api::Goal::Booted).count()
    };
    world.until(200, |world| boots(world) == 1).unwrap();
    let mut abort = build::freeze("incident", world.snapshot.now, 3_600);
    abort.spec.undo_drains = true;
    world.snapshot.freezes.push(Arc::new(abort));
    world.until(200, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.1"), 1, "what reboots is finished");
}

#[test]
fn a_node_that_is_held_waits_and_the_others_go() {
    let mut world = world(1, &json!({}));
    let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
    let held = world.snapshot.nodes[0].name.to_string();
    hold.spec.nodes = vec![held.clone()];
    world.snapshot.freezes.push(Arc::new(hold));
    world.until(400, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let (_, report) = bascule_planner::plan(&world.snapshot);
    let said = report.nodes.iter().find(|node| *node.node == *held).unwrap();
    assert_eq!((said.wait.reason, said.wait.object.as_ref().unwrap().name.as_str()), (WaitReason::Freeze, "hold"));
    world.snapshot.freezes.clear();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_rollback_during_a_rollout() {
    let mut world = world(2, &json!({"budget": {"maxUnavailable": 2}}));
    world.until(400, |world| on(world, "1.1") == 3).unwrap();
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    let _ = world.take_story();
    world.until(600, |world| on(world, "1.0") == 6 && granted(world) == 0).unwrap();
    assert!(world.snapshot.rollbacks[0].status.completed_at.is_some(), "{:?}", world.snapshot.rollbacks[0].status);
    insta::assert_snapshot!("rollback_in_a_rollout", format!("{}{}", world.take_story(), world.shown()));
    let before = world.snapshot.policies[0].status.clone();
    assert!(before.blocked.iter().any(|block| block.version.as_str() == "1.1"));
    world.pass(600);
    world.operate_for(None).unwrap();
    for _ in 0..50 {
        assert_eq!(world.operate_for(None).unwrap(), 0, "it stays there");
        world.pass(600);
    }
}

#[test]
fn a_way_back_to_what_no_channel_offers_is_made_permanent() {
    // 1.0 came with the installer: the operator never saw a manifest of it, and has no digest to name it by.
    let mut world = World::scripted(1, vec![build::policy("workers", &json!({}), &build::offer(&["1.1"]))]);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    assert!(world.machines.values().all(|machine| machine.is_calm()), "still on trial\n{}", world.story());
    // Long after the guard would have led them forward again.
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(on(&world, "1.0"), 3, "{}", world.story());
    let boots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    assert_eq!(boots, [2, 2, 2], "one reboot there and one back for each");
}

#[test]
fn a_way_back_whose_word_is_taken_back_too_late_is_made_permanent() {
    let mut world = world(1, &json!({}));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let inhibit = |world: &mut World, holds| world.machines.values_mut().for_each(|machine| machine.inhibited = holds);
    inhibit(&mut world, true);
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    let waited = |world: &World| {
        let drained =
            |node: &bascule_planner::snapshot::Node| node.update.as_ref()?.spec.disruption.as_ref()?.drained_at;
        world.snapshot.nodes.iter().find_map(|node| drained(node)).map(|at| world.snapshot.now.seconds_since(at))
    };
    world.until(400, |world| waited(world).is_some_and(|seconds| seconds >= 590)).unwrap();
    // The agent reboots the machine in the very moment in which the operator has waited long enough.
    inhibit(&mut world, false);
    world.pass(10);
    let _ = world.take_story();
    world.operate_for(None).unwrap();
    assert!(world.story().contains("Retract"), "{}", world.story());
    world.until(600, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    assert!(world.machines.values().all(|machine| machine.is_calm()), "still on trial\n{}", world.story());
    let boots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    assert_eq!(boots, [2, 2, 2], "one reboot there and one back for each\n{}", world.story());
}

#[test]
fn an_old_view_does_no_harm() {
    // 410 Gone: the watch was lost, and the operator plans from what it saw a while ago.
    let mut world = world(2, &json!({}));
    let grants = |world: &World| {
        let (plan, _) = plan(&world.snapshot);
        plan.steps.iter().any(|step| matches!(step.action, Action::Grant { .. }))
    };
    while !(grants(&world) && on(&world, "1.1") == 1) {
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    let old = world.snapshot.clone();
    world.until(200, |world| on(world, "1.1") == 3).unwrap();
    let _ = world.take_story();
    let reboots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    world.operate_on(&old, None).unwrap();
    insta::assert_snapshot!("old_view", world.take_story());
    for _ in 0..30 {
        world.pass(10);
    }
    assert!(world.machines.values().zip(&reboots).all(|(machine, before)| machine.history.len() <= before + 1));
    world.until(600, |world| on(world, "1.1") == 6 && granted(world) == 0).unwrap();
}

#[test]
fn a_drain_that_never_ends_gives_its_place_away() {
    let mut world = world(1, &json!({"drain": {"timeout": "5m"}}));
    world.stick("a1");
    world.until(400, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    assert!(state("a1", &world).contains("DrainBackoff") || state("a1", &world).contains("Draining"));
    let cordoned = world.snapshot.nodes.iter().filter(|node| node.cordon.is_cordoned() && !node.granted()).count();
    assert_eq!(cordoned, 0);
}

#[test]
fn a_power_failure_before_the_release_is_armed_is_no_failed_drain() {
    let mut world = world(1, &json!({}));
    world.until(200, |world| granted(world) == 1).unwrap();
    let node = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    world.cut_power(&node);
    let last = |world: &World| {
        let node = world.snapshot.nodes.iter().find(|shown| *shown.name == *node).unwrap();
        node.update.as_ref().unwrap().spec.last_disruption.clone()
    };
    world.until(200, |world| last(world).is_some()).unwrap();
    let ended = last(&world).unwrap();
    assert_eq!((ended.outcome, ended.given_up), (DisruptionOutcome::Interrupted, 1), "{}", ended.message);
    let soon = ended.ended_at.after(bascule_api::Duration::from_secs(40));
    world.until(200, |world| world.snapshot.now >= soon).unwrap();
    assert!(!state(&node, &world).contains("DrainBackoff"), "{}", world.shown());
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(last(&world).unwrap().given_up, 0);
}

#[test]
fn a_policy_that_is_deleted_leaves_nothing_behind() {
    for rounds in 0..40 {
        let mut world = world(1, &json!({}));
        world.with_pods(2);
        world.until(200, |world| granted(world) == 1).unwrap();
        for _ in 0..rounds {
            world.operate_for(None).unwrap();
            world.pass(10);
        }
        world.snapshot.policies.clear();
        world.until(300, |world| granted(world) == 0).unwrap();
        world.pass(3_600);
        world.operate_for(None).unwrap();
        assert!(world.snapshot.nodes.iter().all(|node| !node.cordon.is_cordoned()), "{}", world.story());
        assert!(world.machines.values().all(|machine| machine.is_calm()), "{}", world.story());
    }
}

#[test]
fn a_person_who_cordons_first_keeps_the_node() {
    let mut world = world(1, &json!({}));
    let held = |world: &mut World, cordon| {
        let node = world.snapshot.nodes.iter_mut().find(|node| &*node.name == "a1").unwrap();
        Arc::make_mut(node).cordon = cordon;
    };
    use bascule_planner::snapshot::Cordon;
    held(&mut world, Cordon::Other { by: Some("alice".to_owned()), since: None });
    for _ in 0..200 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    // The cordoned node takes the only place of the budget.
    assert_eq!(on(&world, "1.1"), 0);
    assert!(state("a1", &world).contains("Cordoned"), "{}", world.shown());
    assert!(state("b1", &world).contains("Budget"), "{}", world.shown());
    held(&mut world, Cordon::None);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_quiet_hour_writes_nothing() {
    let mut world = world(2, &json!({}));
    world.until(600, |world| on(world, "1.1") == 6 && granted(world) == 0).unwrap();
    world.operate_for(None).unwrap();
    // Autoscalers are told that they may go on.
    world.pass(600);
    world.operate_for(None).unwrap();
    for _ in 0..60 {
        let (plan, report) = plan(&world.snapshot);
        assert!(plan.is_quiet(), "{:?}", plan.steps.iter().map(|step| step.action.name()).collect::<Vec<_>>());
        for (said, known) in report.policies.iter().zip(&world.snapshot.policies) {
            assert_eq!(said.status, known.status, "a status that changes is a write");
        }
        world.pass(60);
    }
}

#[test]
fn one_update_takes_seven_writes_of_specs() {
    let mut world = world(1, &json!({}));
    world.with_pods(2);
    let mut writes = 0;
    for _ in 0..200 {
        let (plan, _) = plan(&world.snapshot);
        writes += plan.steps.iter().filter(|step| step.action.node() == Some("a1")).count();
        assert!(plan.steps.iter().all(|step| !matches!(step.action, Action::Retract { .. })));
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    // Create, Stage, Grant, Cordon, Boot, Commit, Uncordon, FreeGrant; the outdated taint while others went first; and
    // autoscalers told afterwards that they may go on.
    assert!((9..=10).contains(&writes), "{writes}");
}

#[test]
fn a_block_that_an_admin_lifts_is_in_force_again_after_further_failures() {
    let mut world = world(2, &json!({"health": {"nodeReadyTimeout": "5m"}}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let tried = |world: &World| world.machines.values().filter(|machine| !machine.history.is_empty()).count();
    world.until(300, |world| !world.snapshot.policies[0].status.blocked.is_empty() && granted(world) == 0).unwrap();
    assert_eq!(tried(&world), 1);
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.allowed_versions = vec![build::version("1.1")];
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
    });
    world.until(300, |world| tried(world) == 2 && granted(world) == 0).unwrap();
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(tried(&world), 2, "one more node tried it, and it failed there too\n{}", world.story());
    assert_eq!(on(&world, "1.0"), 6);
}

/// Invariant 6 holds until a person says otherwise, for one node and once.
#[test]
fn a_node_tries_a_failed_release_again_when_a_person_says_so_and_once() {
    let mut world = world(2, &json!({"health": {"nodeReadyTimeout": "5m"}, "failureThreshold": 9}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    world
        .until(600, |world| {
            world.machines.values().all(|machine| !machine.failed_ever.is_empty()) && granted(world) == 0
        })
        .unwrap();
    let boots =
        |world: &World| -> Vec<usize> { world.machines.values().map(|machine| machine.history.len()).collect() };
    let before = boots(&world);
    let retry = |world: &mut World| {
        let at = world.snapshot.now;
        world.policy("workers", |policy| {
            let mut spec = policy.spec.as_ref().unwrap().spec.clone();
            spec.retries = vec![bascule_api::Retry { node: "a1".to_owned(), at, reason: None }];
            policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        });
    };
    retry(&mut world);
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    let after = boots(&world);
    assert!(after[0] > before[0], "a1 tried it again\n{}", world.story());
    assert_eq!(after[1..], before[1..], "nobody else did");
    let once = after[0] - before[0];
    let status = &world.snapshot.policies[0].status;
    assert!(status.failures.iter().any(|failure| failure.node == "a1"), "it failed again: {:?}", status.failures);
    assert_eq!(status.retried.len(), 1);

    // The machine was repaired, and the next word is followed to the end.
    world.fates.remove("1.1");
    retry(&mut world);
    world
        .until(400, |world| world.running("a1").is_some_and(|version| version.as_str() == "1.1") && granted(world) == 0)
        .unwrap();
    assert!(boots(&world)[0] > before[0] + once);
    assert_eq!(on(&world, "1.0"), boots(&world).len() - 1);
}

#[test]
fn a_clock_that_is_ahead_does_not_prolong_a_soak() {
    let fields = json!({"waves": [
        {"name": "canary", "selector": {"matchLabels": {"kubernetes.io/hostname": "a1"}}, "soak": "5m"},
        {"name": "rest"}
    ]});
    let mut world = world(1, &fields);
    // This machine was installed with the release, and its clock is ten hours ahead.
    world.machines.get_mut("a1").unwrap().install(&build::version("1.1"), build::at(36_000));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.now < build::at(7_200), "hours before that clock's time has come");
}

#[test]
fn a_node_with_a_build_waits_and_the_others_go() {
    let cel = "!has(object.spec.nodeName) || object.spec.nodeName != node";
    let gate = json!([{"name": "ci", "object": {"apiVersion": "v1", "kind": "Pod", "namespace": "ci", "cel": cel}}]);
    let mut world = self::world(20, &json!({"health": {"gates": gate}, "budget": {"maxUnavailable": 2}}));
    world.occupy("a1");
    let mut most = 0;
    world
        .until(4_000, |world| {
            most = most.max(world.questions());
            on(world, "1.1") == 59 && granted(world) == 0
        })
        .unwrap();
    assert_eq!(world.running("a1").unwrap().as_str(), "1.0");
    assert!(state("a1 ", &world).contains("gate ci"), "{}", world.shown());
    assert!(most <= 34, "{most} questions at once");

    // Of nodes that wait for something else anyway nobody is asked.
    let windows = json!([{"schedule": "0 20 * * *", "duration": "1h"}]);
    let mut closed = self::world(1, &json!({"health": {"gates": gate}, "maintenanceWindows": windows}));
    for _ in 0..40 {
        closed.operate_for(None).unwrap();
        closed.pass(30);
        assert_eq!(closed.questions(), 0, "{}", closed.shown());
    }
    assert!(state("a1", &closed).contains("MaintenanceWindow"), "{}", closed.shown());
    closed.until(4_000, |world| world.questions() > 0).unwrap();
}

#[test]
fn a_kubelet_that_the_api_servers_are_not_made_for_waits_before_the_disruption() {
    let mut world = world(1, &json!({}));
    world.snapshot.api_server = Some(build::kubernetes(35));
    let brings = |world: &mut World, minor, api_server| {
        let mut offer = (*build::offer(&["1.0", "1.1"])).clone();
        let release = offer.releases.last_mut().unwrap();
        (release.kubelet, release.brings_api_server) = (Some(build::kubernetes(minor)), api_server);
        world.policy("workers", |policy| policy.offer = Arc::new(offer.clone()));
    };
    for (minor, why) in [(36, "must not be newer"), (31, "3 minor versions older")] {
        brings(&mut world, minor, false);
        for _ in 0..20 {
            world.operate_for(None).unwrap();
            world.pass(30);
        }
        assert!(state("a1", &world).contains("VersionSkew") && state("a1", &world).contains(why), "{}", world.shown());
        assert_eq!(granted(&world), 0);
    }
    // A control plane that brings its own API server goes first, and the others when no old API server is left.
    brings(&mut world, 36, true);
    Arc::make_mut(&mut world.snapshot.nodes[0]).control_plane = true;
    world.until(200, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    world.operate_for(None).unwrap();
    assert!(state("b1", &world).contains("VersionSkew"), "{}", world.shown());
    world.snapshot.api_server = Some(build::kubernetes(36));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn hooks_around_a_rollout_run_before_the_first_node_and_after_the_last_and_when_a_window_closes() {
    let hook = |name: &str| json!([{"name": name, "namespace": "ceph", "job": {"template": {}}}]);
    let fields = json!({
        "hooks": {"beforeRollout": hook("set-noout"), "afterRollout": hook("unset-noout")},
        "maintenanceWindows": [{"schedule": "0 12 * * *", "duration": "14m"}]
    });
    let mut world = world(4, &fields);
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    let ran = |world: &World, stage| world.snapshot.hooks.iter().filter(|run| run.stage == stage).count();
    use bascule_planner::snapshot::HookStage::{AfterRollout, BeforeRollout};
    // Announced, and nobody is touched before the hook is done.
    world.until(200, |world| open(world).is_some()).unwrap();
    let planned = &world.snapshot.policies[0].status.conditions;
    assert!(bascule_api::conditions::is_true(planned, bascule_api::conditions::MAINTENANCE_PLANNED));
    world.until(200, |world| granted(world) > 0).unwrap();
    assert!(open(&world).unwrap().begun_at.is_some());
    assert_eq!((ran(&world, BeforeRollout), ran(&world, AfterRollout)), (1, 0));
    // The window closes half way: the hook after it runs all the same.
    world.until(400, |world| open(world).is_none()).unwrap();
    assert!((1..12).contains(&on(&world, "1.1")), "{}", world.shown());
    assert_eq!((ran(&world, BeforeRollout), ran(&world, AfterRollout)), (1, 1));
    // The next days the rest goes, with hooks around it.
    for _ in 0..5 {
        if on(&world, "1.1") == 12 {
            break;
        }
        world.pass(85_000);
        world.until(400, |world| open(world).is_some()).unwrap();
        world.until(400, |world| open(world).is_none()).unwrap();
    }
    assert_eq!((on(&world, "1.1"), granted(&world)), (12, 0), "{}", world.shown());
    assert_eq!(ran(&world, BeforeRollout), ran(&world, AfterRollout));
}

#[test]
fn a_hook_after_the_last_node_that_fails_is_told_although_nobody_waits_for_it() {
    let hook = |name: &str| json!([{"name": name, "namespace": "ceph", "job": {"template": {}}}]);
    let mut world = world(1, &json!({"hooks": {"afterRollout": hook("unset-noout")}}));
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    world.fail_hooks(true);
    world.until(100, |world| open(world).is_some_and(|open| open.failed.is_some())).unwrap();
    let condition = |world: &World| {
        let status = &world.snapshot.policies[0].status;
        bascule_api::conditions::get(&status.conditions, bascule_api::conditions::MAINTENANCE_PLANNED).cloned().unwrap()
    };
    let told = condition(&world);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", "HookFailed"));
    assert!(told.message.contains("unset-noout failed") && told.message.contains("delete the Job"), "{}", told.message);
    // It stays so, and costs nothing: what was told is not told anew.
    for _ in 0..20 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert_eq!(condition(&world), told);
    // A person repairs it and deletes the Job: it runs once more, and the maintenance is over.
    world.fail_hooks(false);
    world.until(100, |world| open(world).is_none()).unwrap();
    assert_eq!(condition(&world).status, "False");
}
