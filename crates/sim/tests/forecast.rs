//! The forecast: what it says for clusters whose end can be reckoned by hand, and against worlds that run.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests and their helpers"
)]

use bascule_api::{Duration, Goal, Time};
use bascule_planner::forecast::{Forecast, Options};
use bascule_sim::world::{World, build};
use serde_json::{Value, json};
use std::sync::Arc;

/// A minute of staging, drain and boot each.
const OPTIONS: Options = Options {
    horizon: Duration::from_secs(30 * 86_400),
    staging: Duration::from_secs(60),
    drain: Duration::from_secs(60),
    boot: Duration::from_secs(60),
    plans: 10_000,
};

/// Nine workers on 1.0 whose agents have reported, and a policy that offers 1.1.
fn world(fields: &Value) -> World {
    let offer = build::offer(&["1.0"]);
    let mut world = World::scripted(3, vec![build::policy("workers", fields, &offer)]);
    world.with_pods(2);
    let all_current = |world: &World| world.shown().lines().filter(|line| line.contains(" Current ")).count() == 9;
    world.until(20, all_current).unwrap();
    world.policy("workers", |policy| policy.offer = build::offer(&["1.0", "1.1"]));
    world
}

fn forecast(world: &World) -> Forecast {
    let seen = bascule_planner::forecast(&world.snapshot, &OPTIONS);
    assert!(!seen.cut, "looked far enough");
    assert_eq!(seen.nodes.len(), world.snapshot.nodes.len());
    seen
}

fn minutes(world: &World, at: Option<Time>) -> Option<i64> {
    at.map(|at| at.seconds_since(world.snapshot.now) / 60)
}

#[test]
fn nodes_that_are_done_are_done_now() {
    let mut world = world(&json!({}));
    world.policy("workers", |policy| policy.offer = build::offer(&["1.0"]));
    let seen = forecast(&world);
    assert!(seen.nodes.iter().all(|done| *done == Some(world.snapshot.now)), "{seen:?}");
    assert_eq!(seen.policies, [Some(world.snapshot.now)]);
}

#[test]
fn a_budget_of_three_takes_three_rounds() {
    let world = world(&json!({"budget": {"maxUnavailable": 3}, "staging": {"maxConcurrent": "100%"}}));
    let seen = forecast(&world);
    // A minute of staging, then three times a drain and a boot.
    assert_eq!(minutes(&world, seen.policies[0]), Some(1 + 3 * 2));
    let mut done: Vec<_> = seen.nodes.iter().map(|at| minutes(&world, *at).unwrap()).collect();
    done.sort_unstable();
    assert_eq!(done, [3, 3, 3, 5, 5, 5, 7, 7, 7]);
}

#[test]
fn what_drains_and_boots_took_lately_counts_and_not_a_guess() {
    let mut world = world(&json!({
        "budget": {"maxUnavailable": 9}, "staging": {"maxConcurrent": "100%"}, "drain": {"waitForPlaces": false}
    }));
    world.policy("workers", |policy| {
        policy.status.timings.drain_seconds = Some(600);
        policy.status.timings.boot_seconds = Some(300);
    });
    assert_eq!(minutes(&world, forecast(&world).policies[0]), Some(1 + 15));
}

#[test]
fn load_balancers_have_their_time_before_anybody_is_evicted() {
    let world = world(&json!({
        "budget": {"maxUnavailable": 9}, "staging": {"maxConcurrent": "100%"},
        "drain": {"waitForPlaces": false, "loadBalancerDelay": "5m"}
    }));
    // Staging, the delay, drain and boot.
    assert_eq!(minutes(&world, forecast(&world).policies[0]), Some(1 + 5 + 2));
}

#[test]
fn nothing_is_done_before_the_window_opens_or_the_freeze_ends() {
    // The world began on Monday at noon.
    let fields = json!({
        "budget": {"maxUnavailable": 9}, "staging": {"maxConcurrent": "100%"}, "drain": {"waitForPlaces": false},
        "maintenanceWindows": [{"schedule": "0 22 * * *", "duration": "1h"}]
    });
    let mut world = world(&fields);
    let opens = build::at(10 * 3_600);
    assert_eq!(forecast(&world).policies, [Some(opens.after(Duration::from_secs(120)))]);
    let freeze = build::freeze("incident", world.snapshot.now, 11 * 3_600);
    let thawed = freeze.ends_at();
    world.snapshot.freezes.push(Arc::new(freeze));
    let seen = forecast(&world).policies[0].unwrap();
    assert!(seen > thawed && seen > opens.after(Duration::from_secs(86_400)), "the next night: {seen}");
}

#[test]
fn who_waits_for_a_person_is_not_promised_anything() {
    let mut world = world(&json!({"budget": {"maxUnavailable": 9}, "staging": {"maxConcurrent": "100%"}}));
    let cordoned = Arc::make_mut(&mut world.snapshot.nodes[4]);
    cordoned.cordon = bascule_planner::snapshot::Cordon::Other { by: Some("alice".to_owned()), since: None };
    let seen = forecast(&world);
    assert_eq!((seen.nodes[4], seen.policies[0]), (None, None));
    assert_eq!(seen.nodes.iter().flatten().count(), 8);
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.paused = true;
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
    });
    assert!(forecast(&world).nodes.iter().all(Option::is_none), "a paused policy moves nobody");
}

#[test]
fn hooks_gates_soaks_and_waves_are_gone_through() {
    let hook = |name: &str| json!([{"name": name, "namespace": "hooks", "timeout": "3m", "job": {"template": {}}}]);
    let world = world(&json!({
        "budget": {"maxUnavailable": 9}, "staging": {"maxConcurrent": "100%"},
        "waves": [{"name": "canary", "count": 1, "soak": "30m"}, {"name": "rest"}],
        "hooks": {"beforeDrain": hook("before"), "afterCommit": hook("after")},
        "health": {
            "nodeSoak": "5m", "prometheus": "http://prometheus.example.com:9090",
            "gates": [{"promQL": {"query": "max(ALERTS)", "equals": 0}}]
        }
    }));
    let seen = forecast(&world);
    let mut done: Vec<_> = seen.nodes.iter().map(|at| minutes(&world, *at).unwrap()).collect();
    done.sort_unstable();
    // Staging, drain, boot and the node's soak; then the wave's soak; then the same for all others at once.
    assert_eq!((done[0], done[1], done[8]), (1 + 2 + 5, 8 + 30 + 7, 8 + 30 + 7));
}

#[test]
fn a_forecast_that_may_not_look_far_says_so() {
    let world = world(&json!({}));
    let seen = bascule_planner::forecast(&world.snapshot, &Options { plans: 3, ..OPTIONS });
    assert!(seen.cut && seen.policies == [None]);
}

#[test]
fn a_world_of_such_machines_ends_when_the_forecast_says() {
    let mut world = world(&json!({"budget": {"maxUnavailable": 2}, "staging": {"maxConcurrent": 3}}));
    let began = world.snapshot.now;
    let promised = forecast(&world).policies[0].unwrap().seconds_since(began);
    for machine in world.machines.values_mut() {
        (machine.boot_seconds, machine.stage_seconds) = (60, 60);
    }
    world.until(400, |world| runs_everywhere(world, "1.1")).unwrap();
    let took = world.snapshot.now.seconds_since(began);
    // Pods of no budget go within a round, the forecast gives each drain a minute; rounds are ten seconds long.
    let drains = 5 * 60;
    assert!((promised - drains - 60..=promised + 60).contains(&took), "took {took} s, promised {promised} s");
}

/// Zones of which one may be busy at a time: who waits for a node under way waits for it in the forecast too, and for ever if that
/// one never came back.
fn one_zone_at_a_time(more: &Value) -> World {
    let mut fields = json!({
        "budget": {"maxUnavailable": 2, "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1}},
        "staging": {"maxConcurrent": "100%"}, "drain": {"waitForPlaces": false}
    });
    for (key, value) in more.as_object().unwrap() {
        fields[key] = value.clone();
    }
    world(&fields)
}

fn runs_everywhere(world: &World, version: &str) -> bool {
    world
        .snapshot
        .nodes
        .iter()
        .all(|node| !node.granted() && world.running(&node.name).is_some_and(|running| running.as_str() == version))
}

/// Compares what is foretold now with when all nodes run a version and are let go.
#[track_caller]
fn comes_true(mut world: World, version: &str) {
    let began = world.snapshot.now;
    // Pods of no budget go within a round.
    let seen = bascule_planner::forecast(&world.snapshot, &Options { drain: Duration::from_secs(10), ..OPTIONS });
    let promised = seen.policies[0].unwrap_or_else(|| panic!("{seen:?}\n{}", world.shown()));
    let promised = promised.seconds_since(began);
    world.until(600, |world| runs_everywhere(world, version)).unwrap();
    let took = world.snapshot.now.seconds_since(began);
    // Of each of the at most six pairs the world takes some rounds of ten seconds to see what happened.
    assert!(
        (promised - 60..=promised + 240).contains(&took),
        "took {took} s, promised {promised} s\n{}",
        world.story()
    );
}

#[test]
fn a_drain_under_way_is_gone_on_from() {
    let mut world = one_zone_at_a_time(&json!({}));
    let drains = |world: &World| world.snapshot.nodes.iter().any(|node| node.is_being_emptied());
    world.until(200, drains).unwrap();
    comes_true(world, "1.1");
}

#[test]
fn the_word_to_reboot_that_the_agent_has_not_heard_is_gone_on_from() {
    let mut world = one_zone_at_a_time(&json!({}));
    let told =
        |world: &World| world.snapshot.nodes.iter().any(|node| node.update.as_ref().unwrap().spec.goal == Goal::Booted);
    world.until(200, told).unwrap();
    assert!(world.machines.values().all(bascule_sim::world::Machine::is_up));
    comes_true(world, "1.1");
}

#[test]
fn a_machine_between_two_boots_comes_back() {
    let mut world = one_zone_at_a_time(&json!({}));
    world.until(200, |world| world.machines.values().any(|machine| !machine.is_up())).unwrap();
    comes_true(world, "1.1");
}

#[test]
fn a_machine_that_is_away_for_too_long_is_not_promised() {
    let mut world = one_zone_at_a_time(&json!({}));
    world.until(200, |world| world.machines.values().any(|machine| !machine.is_up())).unwrap();
    for machine in world.machines.values_mut().filter(|machine| !machine.is_up()).take(1) {
        machine.dies = true;
    }
    let lost = |world: &World| world.shown().contains("NodeLost");
    world.until(200, lost).unwrap();
    assert_eq!(forecast(&world).policies, [None], "{}", world.shown());
}

#[test]
fn a_trial_that_soaks_is_gone_on_from() {
    let mut world = one_zone_at_a_time(&json!({"health": {"nodeSoak": "2m"}}));
    world.until(200, |world| world.machines.values().any(bascule_sim::world::Machine::tries_a_release)).unwrap();
    comes_true(world, "1.1");
}

#[test]
fn a_kubelet_that_is_slower_than_its_agent_speaks_in_the_end() {
    let mut world = one_zone_at_a_time(&json!({}));
    for machine in world.machines.values_mut() {
        (machine.boot_seconds, machine.kubelet_seconds, machine.daemon_seconds) = (30, 20, 30);
    }
    let agent_alone = |world: &World| {
        let back = |node: &bascule_planner::snapshot::Node| {
            let boot = node.update.as_ref().and_then(|update| update.status.boot_id.as_ref());
            boot.is_some_and(|boot| *boot != node.boot_id)
        };
        world.snapshot.nodes.iter().any(|node| back(node))
    };
    world.until(200, agent_alone).unwrap();
    comes_true(world, "1.1");
}

#[test]
fn a_way_back_under_way_is_gone_on_from() {
    let mut world = one_zone_at_a_time(&json!({}));
    world.until(600, |world| runs_everywhere(world, "1.1")).unwrap();
    world.snapshot.rollbacks.push(Arc::new(build::rollback("nic-offload", "workers", world.snapshot.now)));
    world.until(200, |world| world.machines.values().any(|machine| !machine.is_up())).unwrap();
    comes_true(world, "1.0");
}

#[test]
fn a_trial_that_is_given_up_goes_back_without_another_grant() {
    let mut world = one_zone_at_a_time(&json!({"health": {"nodeSoak": "10m"}}));
    world.until(200, |world| world.machines.values().any(bascule_sim::world::Machine::tries_a_release)).unwrap();
    world.snapshot.rollbacks.push(Arc::new(build::rollback("nic-offload", "workers", world.snapshot.now)));
    let leaves = |world: &World| {
        world.snapshot.nodes.iter().any(|node| node.update.as_ref().unwrap().spec.goal == Goal::Reverted)
    };
    world.until(200, leaves).unwrap();
    comes_true(world, "1.0");
}
