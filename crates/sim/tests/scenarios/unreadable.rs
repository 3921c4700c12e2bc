//! Objects that another version of the operator or of an agent wrote, and that this one does not understand: what they say is not known,
//! nothing is done to whom they speak of, and everybody else goes on.

use crate::{granted, node, on, state, world};
use bascule_api::ObjectRef;
use bascule_planner::{
    Action, PolicyError, PolicyErrorKind,
    snapshot::{Node, PolicyFacts, Unreadable},
};
use bascule_sim::world::{World, build};
use serde_json::{Value, json};
use std::sync::Arc;

fn unreadable(kind: &str, name: &str) -> Unreadable {
    let object = ObjectRef { kind: kind.to_owned(), namespace: None, name: name.to_owned() };
    Unreadable { object, why: "unknown variant `Volcano`".to_owned() }
}

pub(crate) fn change(world: &mut World, name: &str, change: impl Fn(&mut Node)) {
    let node = world.snapshot.nodes.iter_mut().find(|node| *node.name == *name).unwrap();
    change(Arc::make_mut(node));
}

pub(crate) fn hide(world: &mut World, name: &str) {
    change(world, name, |node| node.unreadable = Some(Arc::new(unreadable("NodeUpdate", name))));
}

/// Gives a policy another spec.
fn respec(world: &mut World, name: &str, fields: &Value) {
    let spec = build::policy(name, fields, &build::offer(&["1.0", "1.1"])).spec;
    world.policy(name, |policy| policy.spec = spec.clone());
}

/// A world in which every node has its NodeUpdate and none is asked for anything.
fn enrolled(per_zone: usize) -> World {
    let mut world = world(per_zone, &json!({"paused": true}));
    world.until(20, |world| world.snapshot.nodes.iter().all(|node| node.update.is_some())).unwrap();
    world
}

#[test]
fn a_node_that_can_not_be_read_stays_as_it_is_in_the_middle_of_its_drain_and_the_others_go_on() {
    let mut world = world(1, &json!({"budget": {"maxUnavailable": 2}}));
    world.with_pods(3);
    world.until(200, |world| world.snapshot.nodes.iter().any(|node| node.cordon.is_cordoned())).unwrap();
    let name = world.snapshot.nodes.iter().find(|node| node.cordon.is_cordoned()).unwrap().name.to_string();
    hide(&mut world, &name);
    let before = node(&world, &name).clone();
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 1).unwrap();
    let after = node(&world, &name);
    assert_eq!(after.update.as_ref().map(|update| &update.spec), before.update.as_ref().map(|update| &update.spec));
    assert_eq!((&after.cordon, after.truce, after.taints), (&before.cordon, before.truce, before.taints));
    let said = state(&name, &world);
    assert!(said.contains("Unreadable") && said.contains(&format!("NodeUpdate {name} can't be read")), "{said}");
    change(&mut world, &name, |node| node.unreadable = None);
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_node_that_can_not_be_read_takes_a_place_of_the_budget() {
    let mut world = enrolled(1);
    hide(&mut world, "a1");
    respec(&mut world, "workers", &json!({}));
    world.until(200, |world| state("b1", world).contains("unavailable without being updated: a1")).unwrap();
    assert_eq!((granted(&world), on(&world, "1.1")), (0, 0));
    respec(&mut world, "workers", &json!({"budget": {"maxUnavailable": 2}}));
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    assert!(world.machines["a1"].history.is_empty() && state("a1", &world).contains("Unreadable"), "{}", world.story());
}

#[test]
fn a_node_of_which_nothing_was_ever_read_counts_as_under_way_and_gets_no_second_node_update() {
    let mut world = enrolled(1);
    hide(&mut world, "a1");
    change(&mut world, "a1", |node| node.update = None);
    let (plan, report) = bascule_planner::plan(&world.snapshot);
    assert_eq!(bascule_planner::lint(&world.snapshot, &plan, &report), []);
    assert!(plan.steps.iter().all(|step| step.action.node() != Some("a1")), "{:?}", plan.steps);
    let counts = &report.policies[0].status.counts;
    assert_eq!((counts.nodes, counts.in_progress, counts.unavailable), (3, 1, 1));
}

#[test]
fn a_new_node_that_can_not_be_read_takes_work_when_its_time_is_over() {
    let mut world = world(1, &json!({"newNodes": {"hold": true}}));
    world.join("a2", true);
    world.until(5, |world| node(world, "a2").update.is_some()).unwrap();
    hide(&mut world, "a2");
    world.until(30, |world| state("a2", world).contains("Unreadable")).unwrap();
    assert!(node(&world, "a2").taints.hold);
    world.until(120, |world| !node(world, "a2").taints.hold).unwrap();
}

/// Two policies, each for its zones.
fn two_policies() -> World {
    let zone = |operator: &str| {
        let expression = json!({"key": "topology.kubernetes.io/zone", "operator": operator, "values": ["c"]});
        json!({"nodeSelector": {"matchExpressions": [expression]}})
    };
    let offer = build::offer(&["1.0", "1.1"]);
    let policies = [("workers", zone("NotIn")), ("others", zone("In"))];
    World::scripted(1, policies.map(|(name, fields)| build::policy(name, &fields, &offer)).into())
}

pub(crate) fn not_to_be_read(policy: &mut PolicyFacts, selector_known: bool) {
    let selects = policy.spec.as_ref().ok().filter(|_| selector_known).map(|valid| valid.spec.node_selector.clone());
    let kind = PolicyErrorKind::Unreadable { why: "unknown variant `Volcano`".to_owned(), selects };
    policy.spec = Err(PolicyError::new("the policy", kind));
}

#[test]
fn a_policy_that_can_not_be_read_holds_its_nodes_and_no_others() {
    let mut world = two_policies();
    let readable = world.snapshot.policies[0].spec.clone();
    world.with_pods(3);
    let of_workers = |world: &World| {
        let moving = world.snapshot.nodes.iter().filter(|node| node.cordon.is_cordoned());
        moving.map(|node| node.name.to_string()).find(|name| name != "c1")
    };
    world.until(200, |world| of_workers(world).is_some()).unwrap();
    let moving = of_workers(&world).unwrap();
    world.policy("workers", |policy| not_to_be_read(policy, true));
    let before = node(&world, &moving).clone();
    let memory = world.snapshot.policies[0].status.failures.clone();
    world.until(400, |world| on(world, "1.1") == 1 && !node(world, "c1").granted()).unwrap();
    let after = node(&world, &moving);
    assert_eq!(after.update.as_ref().map(|update| &update.spec), before.update.as_ref().map(|update| &update.spec));
    assert_eq!(after.cordon, before.cordon);
    world.join("a2", false);
    for _ in 0..5 {
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    for name in ["a1", "b1", "a2"] {
        let said = state(name, &world);
        assert!(said.contains("Unreadable") && said.contains("UpdatePolicy workers can't be read"), "{said}");
    }
    assert!(node(&world, "a2").update.is_none(), "nobody takes it over");
    // Nothing is written over what it remembers.
    let (plan, _) = bascule_planner::plan(&world.snapshot);
    let remembers =
        |step: &bascule_planner::Step| matches!(&step.action, Action::Remember { policy, .. } if policy == "workers");
    assert!(!plan.steps.iter().any(remembers), "{:?}", plan.steps);
    assert_eq!(world.snapshot.policies[0].status.failures, memory);

    world.policy("workers", |policy| policy.spec = readable.clone());
    world.until(1_000, |world| on(world, "1.1") == 4 && granted(world) == 0).unwrap();
}

#[test]
fn where_a_policys_selector_can_not_be_read_either_nodes_that_nobody_cares_for_yet_wait() {
    let mut world = two_policies();
    world.until(20, |world| world.snapshot.nodes.iter().all(|node| node.update.is_some())).unwrap();
    world.policy("workers", |policy| not_to_be_read(policy, false));
    world.join("c2", false);
    world.label("c2", "topology.kubernetes.io/zone", Some("c"));
    world.until(400, |world| world.running("c1").is_some_and(|running| running.as_str() == "1.1")).unwrap();
    for name in ["a1", "b1", "c2"] {
        assert!(state(name, &world).contains("UpdatePolicy workers can't be read"), "{}", world.shown());
    }
    assert!(node(&world, "c2").update.is_none(), "it may be selected by both");
}

#[test]
fn beside_an_order_that_can_not_be_read_nothing_is_begun() {
    let mut world = world(1, &json!({}));
    world.snapshot.unreadable_orders.push(unreadable("Freeze", "stop"));
    world.until(200, |world| state("a1", world).contains("Freeze stop can't be read")).unwrap();
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert_eq!((granted(&world), on(&world, "1.1")), (0, 0), "{}", world.shown());
    world.snapshot.unreadable_orders.clear();
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}
