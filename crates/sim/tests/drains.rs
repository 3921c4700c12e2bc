//! What a drain does with workloads that tolerate it, come back, complete late or move only after the cordon, and with
//! people who cordon and uncordon.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests and their helpers")]

use bascule_api::{DisruptionOutcome, LastDisruption};
use bascule_planner::snapshot::{Cordon, Excluded, Node};
use bascule_sim::world::{Broken, Fate, Meanwhile, World, build};
use serde_json::{Value, json};
use std::sync::Arc;

fn world(fields: &Value) -> World {
    World::scripted(1, vec![build::policy("workers", fields, &build::offer(&["1.0", "1.1"]))])
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

fn last(world: &World, name: &str) -> Option<LastDisruption> {
    node(world, name).update.as_ref()?.spec.last_disruption.clone()
}

fn done(world: &World) -> bool {
    on(world, "1.1") == 3 && granted(world) == 0
}

#[test]
fn what_tolerates_the_cordon_is_told_once_and_never_again() {
    let mut world = world(&json!({}));
    for name in ["a1", "b1", "c1"] {
        world.with_tolerant(name);
    }
    world.until(200, done).unwrap();
    assert_eq!(world.evictions(), 3, "{}", world.story());
    let story = world.take_story();
    assert!(story.contains("left there, since they come back whenever they are evicted: shop/pinned-"), "{story}");
}

#[test]
fn what_a_drain_may_leave_is_no_reboot_under_pods() {
    let loose = json!({"matchLabels": {"kind": "loose"}});
    let rules = json!([{"name": "loose", "selector": loose, "behavior": "Skip"}]);
    let mut world = world(&json!({"drain": {"timeout": "10m", "rules": rules}}));
    world.remember();
    world.with_pods(2);
    for name in ["a1", "b1", "c1"] {
        world.with_tolerant(name);
        world.with_returning(name);
    }
    world.until(800, done).unwrap();
    assert_eq!(world.judged(), [], "{}", world.story());
}

#[test]
fn a_build_is_waited_for_as_the_rule_says_and_no_longer() {
    let builds = json!({"matchLabels": {"kind": "job"}});
    let rules = json!([{"name": "builds", "selector": builds, "behavior": "WaitCompleted", "timeout": "10m"}]);
    let fields = json!({"drain": {"timeout": "20m", "rules": rules}});
    let mut world = world(&fields);
    world.with_build("a1", 100_000);
    world.with_build("b1", 300);
    world.until(400, |world| world.shown().contains("PodsCompleting")).unwrap();
    assert!(world.shown().contains("(rule builds) may complete"), "{}", world.shown());
    world.until(400, done).unwrap();
    assert_eq!(world.evictions(), 1, "only the one that never ended: {}", world.story());
    let drains = world.take_story();
    assert!(drains.contains("empty after 10m"), "{drains}");
}

#[test]
fn a_budget_that_opens_after_the_cordon_is_given_time_where_somebody_says_so() {
    // Nobody says so: no cordon, and the wait tells of the way.
    let mut shy = world(&json!({}));
    shy.with_switching_app("shop/db", &["a1", "b1", "c1"]);
    for _ in 0..60 {
        shy.operate_for(None).unwrap();
        shy.pass(30);
    }
    assert_eq!((on(&shy, "1.1"), granted(&shy)), (0, 0));
    assert!(shy.shown().contains("spec.drain.budgetsOpenAfterCordon"), "{}", shy.shown());

    let fields = json!({"drain": {"budgetsOpenAfterCordon": "2m"}, "budget": {"maxUnavailable": 3}});
    let mut bold = world(&fields);
    bold.with_switching_app("shop/db", &["a1", "b1", "c1"]);
    let mut most = 0;
    bold.until(400, |world| {
        let holds = |node: &&Arc<Node>| {
            let begun = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref());
            begun.is_some_and(|disruption| disruption.drained_at.is_none()) && !node.pods.budgets.is_empty()
        };
        most = most.max(world.snapshot.nodes.iter().filter(holds).count());
        done(world)
    })
    .unwrap();
    assert_eq!(most, 1, "one node for each budget");

    // It does not open after all: given back within its time, and the others go on.
    let mut vain = world(&fields);
    vain.with_app("shop/db", &["a1"], 1);
    vain.until(400, |world| on(world, "1.1") == 2 && last(world, "a1").is_some()).unwrap();
    let ended = last(&vain, "a1").unwrap();
    assert_eq!(ended.outcome, DisruptionOutcome::DrainFailed);
    assert!(ended.message.contains("did not open within 2m of the cordon"), "{}", ended.message);
    assert_eq!(node(&vain, "a1").cordon, Cordon::None);
    // And a Rollback takes the same way.
    vain.set_desired("shop/db", 0);
    vain.until(400, done).unwrap();
    let mut back = build::rollback("back", "workers", vain.snapshot.now);
    back.spec.block = true;
    vain.snapshot.rollbacks.push(Arc::new(back));
    vain.with_switching_app("shop/other", &["b1", "c1"]);
    vain.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn only_a_budget_that_was_closed_at_the_grant_is_given_up_for_not_opening() {
    let mut world = world(&json!({"drain": {"budgetsOpenAfterCordon": "2m", "timeout": "15m"}}));
    world.with_switching_app("shop/db", &["a1", "b1", "c1"]);
    world.with_app("shop/web", &["a1", "b1", "c1"], 2);
    while granted(&world) == 0 {
        world.pass(10);
        world.operate_for(None).unwrap();
    }
    let name = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    let disruption = node(&world, &name).update.as_ref().unwrap().spec.disruption.clone().unwrap();
    assert_eq!(disruption.closed_budgets, ["shop/db"]);
    // The other one allowed a disruption then, and is used up by what happens elsewhere.
    world.set_desired("shop/web", 3);
    let later = world.snapshot.now.after(bascule_api::Duration::from_minutes(6));
    while world.snapshot.now < later {
        world.operate_for(None).unwrap();
        assert!(node(&world, &name).granted(), "{}", world.story());
        world.pass(20);
    }
    world.set_desired("shop/web", 2);
    world.until(600, done).unwrap();
    assert!(["a1", "b1", "c1"].iter().all(|name| last(&world, name).unwrap().given_up == 0), "{}", world.story());
}

#[test]
fn deleting_after_the_timeout_reaches_a_budget_that_was_at_zero_from_the_start() {
    let fields = json!({"drain": {"timeout": "30s", "onTimeout": "Delete"}, "staging": {"maxConcurrent": 3}});
    let mut world = world(&fields);
    world.with_app("shop/one", &["a1"], 1);
    world.until(400, done).unwrap();
    let story = world.take_story();
    let position = |what: &str| story.find(what).unwrap_or_else(|| panic!("{what} is missing: {story}"));
    assert!(position("Grant b1") < position("Grant a1") && position("Grant c1") < position("Grant a1"), "{story}");
}

#[test]
fn a_drain_that_the_policy_holds_keeps_its_node_as_it_is_until_somebody_resolves_it() {
    let mut world = world(&json!({"drain": {"timeout": "5m", "onTimeout": "Hold"}}));
    world.stick("a1");
    // It was given up before, and nobody waits for it afterwards.
    world.with_returning("a1");
    world.until(200, |world| world.shown().contains("DrainHeld")).unwrap();
    let evictions = world.evictions();
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(120);
        let held = node(&world, "a1");
        assert!(held.granted() && matches!(held.cordon, Cordon::Ours { .. }), "{}\n{}", world.story(), world.shown());
    }
    assert!(world.shown().contains("the policy holds: 1 pods are left"), "{}", world.shown());
    assert_eq!(world.evictions(), evictions, "nobody is asked any more");
    world.unstick("a1");
    world.until(400, done).unwrap();
}

#[test]
fn a_drain_that_is_held_forgets_nobody_whom_it_gave_up() {
    let mut world = world(&json!({"drain": {"timeout": "5m", "onTimeout": "Hold"}}));
    for name in ["a1", "b1", "c1"] {
        world.with_tolerant(name);
    }
    world.stick("a1");
    world.until(400, |world| world.shown().contains("DrainHeld")).unwrap();
    for _ in 0..10 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    // Somebody looks after the one that did not go; the other one was asked once and is left for the reboot.
    world.unstick("a1");
    world.until(400, done).unwrap();
    assert_eq!(world.evictions(), 3, "{}", world.story());
}

#[test]
fn a_rollback_that_names_a_node_takes_it_though_a_person_cordoned_it_and_leaves_it_so() {
    let mut world = world(&json!({}));
    world.until(400, done).unwrap();
    world.person("a1", true);
    world.person("b1", true);
    let mut rollback = build::rollback("bad-node", "workers", world.snapshot.now);
    rollback.spec.nodes = vec!["a1".to_owned()];
    rollback.spec.block = false;
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(400, |world| on(world, "1.0") == 1 && granted(world) == 0).unwrap_err();
    // The other cordoned node takes the only place of the budget, which a person may say to ignore.
    world.person("b1", false);
    world.until(400, |world| on(world, "1.0") == 1 && granted(world) == 0).unwrap();
    assert_eq!(world.running("a1").unwrap().as_str(), "1.0");
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert!(matches!(node(&world, "a1").cordon, Cordon::Other { .. }), "{}", world.story());
    assert_eq!(node(&world, "a1").excluded, Excluded::No, "it is back in load balancers");
}

#[test]
fn an_uncordon_ends_the_drain_of_a_node_too_that_a_person_had_cordoned() {
    let mut world = world(&json!({}));
    world.until(400, done).unwrap();
    world.person("a1", true);
    world.stick("a1");
    let mut rollback = build::rollback("bad-node", "workers", world.snapshot.now);
    rollback.spec.nodes = vec!["a1".to_owned()];
    rollback.spec.block = false;
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(400, |world| world.shown().contains("pods are being evicted")).unwrap();
    // There is no mark of ours on it by which that could be told.
    world.person("a1", false);
    world.operate_for(None).unwrap();
    let ended = last(&world, "a1").unwrap();
    assert_eq!((ended.outcome, ended.given_up), (DisruptionOutcome::Uncordoned, 1), "{}", ended.message);
    for _ in 0..12 {
        world.operate_for(None).unwrap();
        assert_eq!(node(&world, "a1").cordon, Cordon::None, "{}", world.story());
        world.pass(20);
    }
    assert_eq!(node(&world, "a1").excluded, Excluded::No, "it is back in load balancers");
}

#[test]
fn a_rollback_of_all_nodes_leaves_alone_what_a_person_cordoned() {
    let mut world = world(&json!({"budget": {"maxUnavailable": 2}}));
    world.until(400, done).unwrap();
    world.person("a1", true);
    world.snapshot.rollbacks.push(Arc::new(build::rollback("all", "workers", world.snapshot.now)));
    world.until(400, |world| on(world, "1.0") == 2 && granted(world) == 0).unwrap();
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert_eq!(world.running("a1").unwrap().as_str(), "1.1");
}

#[test]
fn a_paused_policy_starts_no_rollback_of_its_own_either() {
    let fields = json!({"automaticRollback": true, "failureThreshold": 1, "health": {"nodeReadyTimeout": "5m"}});
    let mut world = world(&fields);
    let third = |world: &World| {
        let node = world.snapshot.nodes.iter().find(|node| node.granted());
        node.is_some_and(|node| world.running(&node.name).is_some_and(|running| running.as_str() == "1.0"))
    };
    world.until(400, |world| on(world, "1.1") == 2 && third(world)).unwrap();
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let pause = |world: &mut World, paused: bool| {
        world.policy("workers", |policy| {
            let mut spec = policy.spec.as_ref().unwrap().spec.clone();
            spec.paused = paused;
            policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        });
    };
    world.until(400, |world| !world.snapshot.policies[0].status.blocked.is_empty()).unwrap();
    pause(&mut world, true);
    world.until(200, |world| granted(world) == 0).unwrap();
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
        assert_eq!(granted(&world), 0, "{}", world.story());
    }
    assert_eq!(on(&world, "1.1"), 2);
    assert!(world.shown().contains("Paused"), "{}", world.shown());
    pause(&mut world, false);
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn an_admins_uncordon_in_the_middle_of_a_drain_ends_it() {
    let mut world = world(&json!({}));
    for name in ["a1", "b1", "c1"] {
        world.stick(name);
    }
    world.until(200, |world| world.shown().contains("pods are being evicted")).unwrap();
    let name = world.snapshot.nodes.iter().find(|node| node.cordon.is_cordoned()).unwrap().name.to_string();
    world.person(&name, false);
    world.operate_for(None).unwrap();
    let ended = last(&world, &name).unwrap();
    assert_eq!((ended.outcome, ended.given_up), (DisruptionOutcome::Uncordoned, 1), "{}", ended.message);
    assert!(ended.message.contains("somebody uncordoned the node"), "{}", ended.message);
    let again = ended.ended_at.after(bascule_api::Duration::from_minutes(5));
    while world.snapshot.now < again {
        world.operate_for(None).unwrap();
        assert!(!node(&world, &name).cordon.is_cordoned(), "{}", world.story());
        world.pass(20);
    }
    let left = &node(&world, &name).cordon;
    assert_eq!(*left, Cordon::None, "nothing of ours is left behind");
}

#[test]
fn a_drain_does_not_begin_anew_beside_the_writes_that_end_it() {
    for meanwhile in [Meanwhile::Waits, Meanwhile::Drains] {
        let mut world = world(&json!({"drain": {"timeout": "5m", "onTimeout": "Abort"}}));
        world.stick("a1");
        let stuck = "pods are being evicted";
        world.until(200, |world| node(world, "a1").granted() && world.shown().contains(stuck)).unwrap();
        let ends = (0..100).any(|_| {
            world.pass(5);
            world.shown().contains("the drain's time is over")
        });
        assert!(ends, "{}", world.shown());
        // While it is given back, and that is not seen yet, its last pod goes, and the next plan would have it rebooted.
        let ended = world.operate_late(meanwhile, |world| {
            world.pass(2);
            world.unstick("a1");
        });
        assert_eq!(node(&world, "a1").cordon, Cordon::None, "{}", world.story());
        let told = |broken: &Broken| matches!(broken, Broken::World(0, what) if what.contains("a1 is emptied, and an"));
        match ended {
            Ok(()) => assert_eq!(meanwhile, Meanwhile::Waits),
            Err(failure) => {
                assert_eq!(meanwhile, Meanwhile::Drains, "{failure}");
                assert!(failure.broken.iter().any(told), "{failure}");
            }
        }
    }
}

#[test]
fn a_pod_that_fits_nowhere_keeps_its_node_from_being_emptied_until_somebody_says_otherwise() {
    let mut world = world(&json!({}));
    world.with_anchored("a1");
    world.until(400, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(30);
        assert!(!node(&world, "a1").cordon.is_cordoned(), "{}", world.story());
    }
    let shown = world.shown();
    assert!(shown.contains("PodFitsNowhere: no other node could take pod shop/anchored-"), "{shown}");
    assert!(shown.contains("kubernetes.io/hostname=a1"), "{shown}");
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.drain.wait_for_places = false;
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
    });
    world.until(400, done).unwrap();
}

#[test]
fn the_last_place_of_pods_that_are_on_their_way_is_not_emptied_too() {
    let staging = json!({"maxConcurrent": "100%"});
    let mut world = world(&json!({"budget": {"maxUnavailable": 3}, "staging": staging, "drain": {"timeout": "10m"}}));
    // It does not go for as long as the drain lasts; the other two nodes are empty.
    world.stick("a1");
    world.until(60, |world| node(world, "a1").granted()).unwrap();
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(10);
        let others = ["b1", "c1"].map(|name| node(&world, name)).map(|node| node.granted() || !node.ready.ready);
        let drains = node(&world, "a1").granted();
        assert!(!(drains && others == [true, true]), "{}\n{}", world.story(), world.shown());
    }
    let story = world.take_story();
    assert!(story.contains("Cordon a1"), "{story}");
}

#[test]
fn a_new_node_is_not_held_while_it_is_not_its_turn() {
    let waves = json!([{"name": "canary", "count": 1, "soak": "2h"}, {"name": "rest"}]);
    let mut world = world(&json!({"waves": waves, "newNodes": {"hold": true}}));
    world.until(400, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    let now = world.snapshot.now;
    let name = world.machines.keys().find(|name| world.running(name).is_some_and(|running| running.as_str() == "1.0"));
    let name = name.unwrap().clone();
    let joined = world.snapshot.nodes.iter_mut().find(|node| *node.name == *name).map(Arc::make_mut).unwrap();
    (joined.uid, joined.created_at, joined.update) = ("uid-new".to_owned(), now, None);
    world.take_story();
    world.until(60, |world| node(world, &name).update.is_some() && !node(world, &name).taints.hold).unwrap();
    let story = world.take_story();
    assert!(story.contains(&format!("Taint {name}")) && story.contains(&format!("Untaint {name}")), "{story}");
    assert_eq!(world.running(&name).unwrap().as_str(), "1.0", "it takes work before its turn");
    world.until(60, |world| world.shown().contains("WaveSoak")).unwrap();
    world.until(2_000, done).unwrap();
}
