//! The forecast: what it says for clusters whose end can be reckoned by hand, and against worlds that run.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests and their helpers")]

use bascule_api::{Duration, Time};
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
    let on =
        |world: &World| {
            world.snapshot.nodes.iter().all(|node| {
                !node.granted() && world.running(&node.name).is_some_and(|version| version.as_str() == "1.1")
            })
        };
    world.until(400, on).unwrap();
    let took = world.snapshot.now.seconds_since(began);
    // Pods of no budget go within a round, the forecast gives each drain a minute; rounds are ten seconds long.
    let drains = 5 * 60;
    assert!((promised - drains - 60..=promised + 60).contains(&took), "took {took} s, promised {promised} s");
}
