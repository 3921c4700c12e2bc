//! Nodes that carry the cluster itself, a control plane and a member of etcd each, and whose Node objects are deleted: the quorum's
//! arithmetic goes by the members, not by the Nodes.

use crate::{granted, node, on, state};
use bascule_planner::snapshot::EtcdMember;
use bascule_sim::world::{World, build};
use serde_json::{Value, json};
use std::sync::Arc;

fn three_members(fields: &Value) -> World {
    let mut world = crate::world(1, fields);
    for node in &mut world.snapshot.nodes {
        let node = Arc::make_mut(node);
        (node.control_plane, node.etcd) = (true, EtcdMember::Healthy);
    }
    world
}

/// Ten minutes in which nothing is granted.
fn nothing_moves(world: &mut World) {
    for _ in 0..20 {
        world.operate_for(None).unwrap();
        assert_eq!(granted(world), 0, "{}\n{}", world.story(), world.shown());
        world.pass(30);
    }
}

fn removed(world: &mut World, nodes: &[&str]) {
    world.policy("workers", |policy| {
        policy.spec = bascule_planner::validate(&build::spec(&json!({"removedClusterMembers": nodes}))).map(Arc::new);
    });
}

#[test]
fn a_member_whose_node_is_deleted_during_its_reboot_is_away_until_it_is_back() {
    let mut world = three_members(&json!({"budget": {"maxUnavailable": 3}}));
    world.until(200, |world| !world.machines["a1"].is_up()).unwrap();
    world.lose_node("a1");
    nothing_moves(&mut world);
    assert!(state("b1", &world).contains("ControlPlane") && state("b1", &world).contains("the Node of a1"));
    world.find_lost();
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_member_whose_machine_is_dead_counts_until_a_person_says_that_it_was_taken_out() {
    let mut world = three_members(&json!({"paused": true}));
    world.operate_for(None).unwrap();
    world.remove_node("c1");
    removed(&mut world, &[]);
    // Every plan is that of an operator that knows nothing but what the API server has.
    nothing_moves(&mut world);
    assert!(state("a1", &world).contains("removedClusterMembers"), "{}", world.shown());
    removed(&mut world, &["c1"]);
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let known = |world: &World| -> Vec<String> {
        let known = world.snapshot.policies[0].status.cluster_members.iter();
        known.map(|member| member.node.clone()).collect()
    };
    assert_eq!(known(&world), ["a1", "b1"]);
}

#[test]
fn a_word_of_a_removal_does_not_outlive_the_return_of_the_node() {
    let mut world = three_members(&json!({"removedClusterMembers": ["c1"]}));
    nothing_moves(&mut world);
    assert!(state("a1", &world).contains("take it out of the list"), "{}", world.shown());
    removed(&mut world, &[]);
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_word_of_a_removal_does_not_hide_the_next_loss_of_a_node_that_returned() {
    let mut world = three_members(&json!({"removedClusterMembers": ["c1"]}));
    nothing_moves(&mut world);
    world.remove_node("c1");
    nothing_moves(&mut world);
    let said = state("a1", &world);
    assert!(said.contains("the Node of c1") && said.contains("take it out of that list"), "{said}");
    // What a policy that can't be used names is not known, and then it is the old word again.
    let window = json!([{"schedule": "0 22 * * *", "duration": "5h", "timeZone": "Europe/Berln"}]);
    let wrong = bascule_planner::validate(&build::spec(&json!({"maintenanceWindows": window}))).map(Arc::new);
    assert!(wrong.is_err());
    world.policy("workers", |policy| policy.spec = wrong.clone());
    nothing_moves(&mut world);
    removed(&mut world, &["c1"]);
    nothing_moves(&mut world);
    // A new word is one that was not there before.
    removed(&mut world, &[]);
    nothing_moves(&mut world);
    assert!(state("a1", &world).contains("name it in spec.removedClusterMembers"), "{}", world.shown());
    removed(&mut world, &["c1"]);
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
}

#[test]
fn a_member_that_is_not_seen_on_its_node_is_not_healthy() {
    let mut world = three_members(&json!({"paused": true}));
    world.operate_for(None).unwrap();
    // Its pod is gone; Ready and the label of the control plane are not.
    Arc::make_mut(&mut world.snapshot.nodes[2]).etcd = EtcdMember::None;
    assert!(node(&world, "c1").control_plane);
    removed(&mut world, &[]);
    world.until(400, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    nothing_moves(&mut world);
    assert_eq!(
        world.running("c1").unwrap().as_str(),
        "1.1",
        "the one that was broken, without which there is a quorum"
    );
    assert!(state("a1", &world).contains("1 healthy of 3 members"), "{}", world.shown());
    Arc::make_mut(&mut world.snapshot.nodes[2]).etcd = EtcdMember::Healthy;
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}
