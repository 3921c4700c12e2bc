//! Waves of a cluster whose nodes come and go. Of nodes that run the release or move to it those with the lowest lots are in the
//! first wave, so that who joins in the middle may be in one that is long done.

use crate::{granted, node, on, world};
use bascule_api::{CompleteWaves, Duration, Time, WaitReason};
use bascule_planner::{lot, plan};
use bascule_sim::world::{Fate, World, build};
use serde_json::{Value, json};
use std::sync::Arc;

fn two_waves() -> Value {
    json!({
        "waves": [{"name": "early", "count": 1, "soak": "1h"}, {"name": "rest"}],
        "health": {"nodeSoak": "2m", "nodeReadyTimeout": "5m"}
    })
}

/// How many nodes run the release, committed.
fn updated(world: &World) -> u32 {
    world.snapshot.policies.first().unwrap().status.counts.updated
}

fn complete(world: &World) -> Option<&CompleteWaves> {
    world.snapshot.policies.first().unwrap().status.complete_waves.as_ref()
}

/// When a wave was complete first.
fn complete_at(world: &World, wave: &str) -> Time {
    complete(world).unwrap().waves.iter().find(|known| known.name == wave).unwrap().complete_at
}

/// What nodes say that wait for a wave, and until when they do.
fn waits(world: &World) -> Vec<(String, Option<Time>)> {
    let (_, report) = plan(&world.snapshot);
    let waiting = report.nodes.iter().map(|said| &said.wait);
    let waiting = waiting.filter(|wait| matches!(wait.reason, WaitReason::Wave | WaitReason::WaveSoak));
    waiting.map(|wait| (wait.message.clone(), wait.until)).collect()
}

/// The node that goes first.
fn first(world: &World) -> String {
    let names = world.machines.keys();
    names.min_by_key(|name| lot(world.snapshot.seed, name)).unwrap().clone()
}

/// A name that goes before all nodes.
fn earlier(world: &World) -> String {
    let of = |name: &str| lot(world.snapshot.seed, name);
    let least = of(&first(world));
    (0..1_000).map(|number| format!("n{number}")).find(|name| of(name) < least).unwrap()
}

/// Six nodes, of which the first has soaked and a second is done.
fn in_the_last_wave(mut world: World) -> World {
    world.until(900, |world| updated(world) == 2).unwrap();
    assert!(waits(&world).is_empty(), "{}", world.shown());
    world
}

fn set(world: &mut World, fields: &Value) {
    let spec = bascule_planner::validate(&build::spec(fields)).map(Arc::new);
    world.policy("workers", |policy| policy.spec.clone_from(&spec));
}

/// The rest of the rollout: nobody waits for a wave again, though this node, which the first wave is the place of, moves before
/// others.
fn nobody_waits_again(world: &mut World, early: &str) {
    let mut moved_before_others = false;
    world
        .until(900, |world| {
            assert!(waits(world).is_empty(), "{}\n{}", world.story(), world.shown());
            moved_before_others |= node(world, early).granted() && on(world, "1.0") > 1;
            on(world, "1.1") == world.machines.len() && granted(world) == 0
        })
        .unwrap();
    assert!(moved_before_others, "{}", world.story());
}

#[test]
fn a_wave_that_has_passed_is_not_closed_by_a_node_that_joins() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    let early = earlier(&world);
    world.join(&early, false);
    nobody_waits_again(&mut world, &early);
}

#[test]
fn a_wave_that_has_passed_is_not_closed_by_a_machine_in_the_place_of_one_that_was_lost() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    let early = first(&world);
    world.remove_node(&early);
    world.join(&early, false);
    nobody_waits_again(&mut world, &early);
}

#[test]
fn a_wave_that_has_passed_is_not_closed_by_a_node_that_recovers() {
    let mut fields = two_waves();
    fields["budget"] = json!({"maxUnavailable": 2});
    let mut world = world(2, &fields);
    let early = first(&world);
    world.machines.get_mut(&early).unwrap().unready = true;
    let mut world = in_the_last_wave(world);
    world.machines.get_mut(&early).unwrap().unready = false;
    nobody_waits_again(&mut world, &early);
}

#[test]
fn whoever_joins_after_the_rollout_waits_for_no_wave() {
    let mut world = world(2, &two_waves());
    world.until(1_200, |world| updated(world) == 6 && granted(world) == 0).unwrap();
    let early = earlier(&world);
    world.join(&early, false);
    world.join("z9", false);
    nobody_waits_again(&mut world, &early);
}

#[test]
fn a_soak_counts_from_when_its_wave_was_complete_first() {
    let mut fields = two_waves();
    fields["waves"][0] = json!({"name": "canary", "selector": {"matchLabels": {"canary": "yes"}}, "soak": "1h"});
    let mut world = world(2, &fields);
    world.label("a1", "canary", Some("yes"));
    world.until(300, |world| updated(world) == 1).unwrap();
    let begun = complete_at(&world, "canary");
    world.until(300, |world| world.snapshot.now >= begun.after(Duration::from_minutes(30))).unwrap();
    world.join("n9", false);
    world.label("n9", "canary", Some("yes"));
    let others = |world: &World| {
        let mut moving = world.snapshot.nodes.iter().filter(|node| node.granted());
        moving.any(|node| !["a1", "n9"].contains(&&*node.name))
    };
    world.until(600, others).unwrap();
    let waited = world.snapshot.now.seconds_since(begun);
    assert!((3_600..3_660).contains(&waited), "{waited} s\n{}", world.story());
    assert_eq!(world.running("n9").unwrap().as_str(), "1.1", "it went meanwhile");
}

#[test]
fn what_fails_on_a_node_that_joins_late_counts_like_any_failure() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    let early = earlier(&world);
    world.join(&early, false);
    world.until(200, |world| node(world, &early).granted()).unwrap();
    assert_eq!(granted(&world), 1, "nobody else tries it");
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let before = on(&world, "1.1");
    world.until(300, |world| !world.snapshot.policies[0].status.blocked.is_empty() && granted(world) == 0).unwrap();
    let failures = &world.snapshot.policies[0].status.failures;
    assert_eq!(failures.iter().map(|failure| &*failure.node).collect::<Vec<_>>(), [&*early], "{}", world.story());
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!((on(&world, "1.1"), granted(&world)), (before, 0), "{}", world.shown());
    let conditions = &world.snapshot.policies[0].status.conditions;
    assert!(bascule_api::conditions::is_true(conditions, bascule_api::conditions::HALTED), "{conditions:?}");
}

#[test]
fn waves_that_are_edited_in_the_middle_go_by_their_names() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    let begun = complete_at(&world, "early");
    world.until(60, |world| granted(world) == 1).unwrap();
    // A longer soak counts from the same moment; what moves is finished.
    let mut longer = two_waves();
    longer["waves"][0]["soak"] = json!("5h");
    set(&mut world, &longer);
    world.until(200, |world| updated(world) == 3 && granted(world) == 0).unwrap();
    let until = Some(begun.after(Duration::from_minutes(300)));
    assert!(!waits(&world).is_empty() && waits(&world).iter().all(|(_, ends)| *ends == until), "{}", world.shown());
    // A larger wave has passed; one that is new has not.
    let mut more = two_waves();
    more["waves"] = json!([
        {"name": "early", "count": 2, "soak": "1h"}, {"name": "second", "count": 2, "soak": "1h"}, {"name": "rest"}
    ]);
    set(&mut world, &more);
    let second = "wave second of 2 nodes comes first";
    assert!(
        waits(&world).iter().all(|(message, _)| message == second) && waits(&world).len() == 2,
        "{}",
        world.shown()
    );
    world.operate_for(None).unwrap();
    assert_eq!(complete_at(&world, "early"), begun);
}

#[test]
fn a_release_that_was_rolled_back_begins_its_waves_anew() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    // What moves is finished, and nothing is on trial when somebody rolls it back.
    let mut paused = two_waves();
    paused["paused"] = json!(true);
    set(&mut world, &paused);
    world.until(200, |world| granted(world) == 0).unwrap();
    assert!(complete(&world).is_some_and(|known| known.version.as_str() == "1.1"));
    world.snapshot.rollbacks.push(Arc::new(build::rollback("back", "workers", world.snapshot.now)));
    world
        .until(900, |world| {
            let over = world.snapshot.rollbacks[0].status.completed_at.is_some();
            over && on(world, "1.0") == 6 && granted(world) == 0
        })
        .unwrap();
    let mut allowed = two_waves();
    allowed["allowedVersions"] = json!(["1.1"]);
    set(&mut world, &allowed);
    world.until(300, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    let tried = world.snapshot.now;
    world
        .until(300, |world| {
            assert_eq!(on(world, "1.1"), 1, "{}", world.story());
            world.snapshot.now >= tried.after(Duration::from_minutes(40))
        })
        .unwrap();
    assert!(world.shown().contains("wave early is done and soaks"), "{}", world.shown());
}

#[test]
fn what_an_older_operator_does_not_remember_is_looked_at_anew() {
    let mut world = in_the_last_wave(world(2, &two_waves()));
    let begun = complete_at(&world, "early");
    world.policy("workers", |policy| policy.status.complete_waves = None);
    world.operate_for(None).unwrap();
    assert_eq!(complete_at(&world, "early"), begun);
    world.until(1_200, |world| on(world, "1.1") == 6 && granted(world) == 0).unwrap();
}
