//! After the reboot: when a release counts as healthy, when as failed, and when nobody can tell yet.

use crate::{granted, node, on, state, world};
use bascule_api::{Goal, Time};
use bascule_planner::{Action, snapshot::GateAnswer};
use bascule_sim::world::{Fate, Meanwhile, World, build};
use serde_json::{Value, json};

#[test]
fn a_reboot_that_nobody_noticed_does_not_count_for_the_soak() {
    // Back before the node lifecycle controller has noticed, so that Ready never flips; and the kubelet takes its time to
    // come to the DaemonSet pods, of which the API still shows what the old boot said.
    let mut world = world(1, &json!({"health": {"nodeSoak": "1m"}}));
    for machine in world.machines.values_mut() {
        machine.boot_seconds = 20;
        machine.daemon_seconds = 40;
    }
    let goal = |world: &World| {
        world.snapshot.nodes.iter().find_map(|node| {
            let update = node.update.as_ref()?;
            (update.spec.goal == bascule_api::Goal::Committed && update.spec.disruption.is_some()).then(|| node.clone())
        })
    };
    world.until(400, |world| goal(world).is_some()).unwrap();
    let node = goal(&world).unwrap();
    assert_eq!(node.ready.since, Some(build::at(-86_400)), "Ready never flipped");
    let machine = &world.machines[&*node.name];
    let healthy = machine.daemons_since.expect("the pods run").max(machine.up_since);
    assert!(world.snapshot.now.seconds_since(healthy) >= 60, "{}\n{}", world.story(), world.shown());
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_slow_machine_is_an_alarm_and_no_verdict() {
    let mut world = world(1, &json!({}));
    for machine in world.machines.values_mut() {
        // A minute beyond nodeReadyTimeout.
        machine.boot_seconds = 660;
    }
    world.until(200, |world| world.shown().contains("NodeLost")).unwrap();
    assert_eq!(granted(&world), 1, "its place is taken\n{}", world.shown());
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert!(world.machines.values().all(|machine| machine.history.len() == 1), "one reboot each");
}

#[test]
fn a_slow_machine_whose_agent_speaks_before_its_kubelet_has_all_its_time() {
    let mut world = world(1, &json!({}));
    for machine in world.machines.values_mut() {
        // Every deadline that began with the word to reboot, or when the node was seen away, is over when the agent speaks.
        (machine.boot_seconds, machine.kubelet_seconds) = (660, 45);
    }
    world.until(1_200, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert!(world.machines.values().all(|machine| machine.history.len() == 1), "one reboot each");
}

/// The boot loader counts another try, and it is the same trial in another boot.
#[test]
fn a_machine_whose_power_fails_in_its_trial_tries_on() {
    let mut world = world(1, &json!({"health": {"nodeSoak": "5m"}}));
    world.until(200, on_trial).unwrap();
    let name = granted_one(&world);
    world.cut_power(&name);
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert_eq!(world.machines[&name].history.len(), 2, "{}", world.story());
    assert_eq!(world.story().matches(&format!("{name}: boots 1.1 as a trial")).count(), 2, "{}", world.story());
}

#[test]
fn what_does_not_boot_has_three_tries() {
    let mut world = world(1, &json!({}));
    world.fates.insert("1.1".to_owned(), Fate::NoBoot);
    world.until(400, |world| world.snapshot.policies[0].status.failures.len() == 1).unwrap();
    let booted = |name: &str| -> Vec<String> { world.machines[name].history.iter().map(ToString::to_string).collect() };
    let failure = &world.snapshot.policies[0].status.failures[0];
    assert_eq!(booted(&failure.node), ["1.1", "1.1", "1.1", "1.0"], "{}", world.story());
}

/// Somebody at the machines picks the running release in the boot menu: what is armed was never tried, and nobody blames it.
#[test]
fn what_the_boot_loader_was_kept_from_taking_is_not_blamed() {
    let mut world = world(1, &json!({}));
    for machine in world.machines.values_mut() {
        machine.elsewhere = true;
    }
    let waits = |world: &World| ["a1", "b1", "c1"].iter().all(|name| state(name, world).contains("BootCountingBroken"));
    world.until(600, waits).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert!(world.machines.values().all(|machine| machine.history.len() == 1), "one reboot each\n{}", world.story());
    assert_eq!((on(&world, "1.0"), granted(&world)), (3, 0), "{}", world.story());
}

/// The agent was away when the machine came up with another entry, and says so only when somebody has seen to the machine.
#[test]
fn what_was_not_taken_while_the_agent_was_away_is_armed_again_once_somebody_has_seen_to_it() {
    let mut world = world(1, &json!({}));
    let leaves = |world: &World| world.machines.values().any(|machine| !machine.is_up());
    world.until(200, leaves).unwrap();
    let name = granted_one(&world);
    let machine = world.machines.get_mut(&name).unwrap();
    (machine.elsewhere, machine.silent) = (true, true);
    world.until(200, |world| world.machines[&name].history.len() == 1).unwrap();
    assert_eq!(on(&world, "1.0"), 3, "{}", world.story());
    world.mend(&name);
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert_eq!(world.machines[&name].history.len(), 2, "{}", world.story());
}

#[test]
fn a_second_machine_that_does_not_come_back_is_a_verdict() {
    let mut world = world(1, &json!({"budget": {"maxUnavailable": 2}, "failureThreshold": 2}));
    for machine in world.machines.values_mut() {
        machine.dies = true;
    }
    world.until(400, |world| !world.snapshot.policies[0].status.blocked.is_empty()).unwrap();
    let status = &world.snapshot.policies[0].status;
    assert_eq!(status.failures.len(), 2, "{}", world.story());
    // Who comes back after all goes back by itself.
    for machine in world.machines.values_mut() {
        machine.dies = false;
    }
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
}

/// What the other was blamed for stays on record, which was no verdict over one machine when it was made.
#[test]
fn a_person_who_has_one_of_two_lost_nodes_try_again_leaves_the_other_as_it_is() {
    let mut world = world(1, &json!({"budget": {"maxUnavailable": 2}, "failureThreshold": 2}));
    for machine in world.machines.values_mut() {
        machine.dies = true;
    }
    world.until(400, |world| !world.snapshot.policies[0].status.blocked.is_empty()).unwrap();
    for machine in world.machines.values_mut() {
        machine.dies = false;
    }
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    let blamed = world.snapshot.policies[0].status.failures[0].node.clone();
    let retry = bascule_api::Retry { node: blamed, at: world.snapshot.now, reason: None };
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.retries = vec![retry.clone()];
        policy.spec = bascule_planner::validate(&spec).map(std::sync::Arc::new);
    });
    world.until(100, |world| world.snapshot.policies[0].status.failures.len() == 1).unwrap();
    world.operate_late(Meanwhile::Waits, |_| {}).unwrap();
}

/// The operator is at work until its next plan takes a trial back for what it sees itself.
fn until_one_is_given_up(world: &mut World) -> String {
    let given_up = |world: &World| {
        let (plan, _) = bascule_planner::plan(&world.snapshot);
        let revert = plan.steps.iter().find(|step| matches!(step.action, Action::Revert { .. }));
        revert.and_then(|step| step.action.node()).map(str::to_owned)
    };
    for _ in 0..500 {
        if let Some(name) = given_up(world) {
            return name;
        }
        world.operate_for(None).unwrap();
        if given_up(world).is_none() {
            world.pass(10);
        }
    }
    panic!("none is given up\n{}", world.story());
}

/// What a policy remembers has no version of a Node or NodeUpdate: what it is about is looked at before it is written.
#[test]
fn a_verdict_from_an_old_view_is_not_remembered_of_a_machine_that_has_booted_since() {
    let mut world = world(1, &json!({"health": {"nodeReadyTimeout": "5m"}}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let name = until_one_is_given_up(&mut world);
    let mut seen = world.snapshot.clone();
    let status = |world: &World| node(world, &name).update.as_ref().unwrap().status.clone();
    let before = status(&world).boot_id;
    world.cut_power(&name);
    for _ in 0..60 {
        if status(&world).boot_id != before {
            break;
        }
        world.pass(10);
    }
    assert_ne!(status(&world).boot_id, before, "{}", world.story());
    seen.now = world.snapshot.now;
    world.operate_on(&seen, None).unwrap();
    let remembered = world.snapshot.policies[0].status.clone();
    assert!(remembered.failures.is_empty() && remembered.blocked.is_empty(), "{}", world.story());
    assert_eq!(node(&world, &name).update.as_ref().unwrap().spec.goal, Goal::Booted, "{}", world.story());
    // This boot is not healthy in its time either, and that is remembered.
    world.until(400, |world| world.snapshot.policies[0].status.failures.len() == 1).unwrap();
}

#[test]
fn two_machines_that_are_back_since_an_old_view_are_no_verdict() {
    let mut world = world(1, &json!({"budget": {"maxUnavailable": 2}}));
    for machine in world.machines.values_mut() {
        machine.boot_seconds = 660;
    }
    until_one_is_given_up(&mut world);
    let mut seen = world.snapshot.clone();
    for _ in 0..12 {
        world.pass(10);
    }
    assert!(on(&world, "1.1") > 0, "{}", world.story());
    seen.now = world.snapshot.now;
    world.operate_on(&seen, None).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
}

#[test]
fn what_was_broken_before_is_no_fault_of_the_release() {
    let mut world = world(1, &json!({}));
    for machine in world.machines.values_mut() {
        machine.daemons_broken = true;
    }
    for _ in 0..5 {
        world.pass(30);
    }
    assert!(world.snapshot.nodes.iter().all(|node| node.daemon_sets.0.iter().all(|pod| !pod.ready)));
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
}

/// A world in which a node's DaemonSet broke while the node was drained, and whose drain ends now.
fn broken_during_a_drain(fields: &Value) -> World {
    let mut world = world(1, fields);
    for name in ["a1", "b1", "c1"] {
        world.stick(name);
    }
    world.until(400, |world| granted(world) == 1).unwrap();
    // Everything was fine at the grant; somebody breaks a DaemonSet while the node waits for a pod to go.
    assert!(world.snapshot.nodes.iter().all(|node| node.daemon_sets.0.iter().all(|pod| pod.ready)));
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    for machine in world.machines.values_mut() {
        machine.daemons_broken = true;
    }
    world.pass(60);
    for name in ["a1", "b1", "c1"] {
        world.unstick(name);
    }
    world
}

#[test]
fn what_breaks_during_a_drain_is_no_fault_of_the_release() {
    let mut world = broken_during_a_drain(&json!({"drain": {"timeout": "4h"}, "health": {"nodeReadyTimeout": "5m"}}));
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    assert!(world.machines.values().all(|machine| machine.history.len() == 1), "one reboot each");
    assert!(world.story().contains("not ready when the node was told to reboot either"), "{}", world.story());
}

#[test]
fn gates_are_heard_by_the_time_that_what_broke_during_a_drain_is_passed_over() {
    for cluster_gates in ["Revert", "Hold"] {
        let mut fields = alerts();
        fields["drain"] = json!({"timeout": "4h"});
        fields["health"]["clusterGates"] = json!(cluster_gates);
        let mut world = broken_during_a_drain(&fields);
        let mut held = false;
        world
            .until(1_000, |world| {
                held |= world.shown().contains("is held as a trial");
                on(world, "1.1") == 3 && granted(world) == 0
            })
            .unwrap();
        assert!(!held, "{cluster_gates}: {}", world.story());
        assert!(world.snapshot.policies[0].status.failures.is_empty(), "{cluster_gates}: {}", world.story());
        assert!(world.machines.values().all(|machine| machine.history.len() == 1), "{cluster_gates}: one reboot each");
    }
}

#[test]
fn a_gate_that_a_new_leader_has_not_asked_yet_is_no_verdict() {
    let mut fields = alerts();
    fields["health"]["clusterGates"] = json!("Revert");
    let mut world = world(1, &fields);
    world.until(200, on_trial).unwrap();
    // The gate says no until shortly before the deadline; the leader that would hear that it passes now is another one.
    world.alert(true);
    world.until(200, |world| world.shown().contains("gate alerts: 1 alert fires")).unwrap();
    let name = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    let since = node(&world, &name).boot_seen;
    world.alert(false);
    let deadline = since.after(bascule_api::Duration::from_minutes(5));
    let seconds = deadline.seconds_since(world.snapshot.now) + 1;
    assert!(seconds > 0, "{}", world.story());
    world.pass(seconds);
    world.snapshot.gates.clear();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
}

#[test]
fn what_may_have_been_broken_before_is_no_fault_where_nobody_remembers() {
    let mut world = world(1, &json!({"health": {"nodeReadyTimeout": "5m"}}));
    for machine in world.machines.values_mut() {
        machine.daemons_broken = true;
    }
    for _ in 0..5 {
        world.pass(30);
    }
    world.until(400, on_trial).unwrap();
    let trying = world.machines.iter().find(|(_, machine)| machine.tries_a_release());
    let name = trying.map(|(name, _)| name.clone()).unwrap();
    world.delete_and_forget(&name);
    world.until(200, |world| world.shown().contains("whether that was so before nobody remembers)")).unwrap();
    world.until(400, |world| world.shown().contains("is held as a trial, and not blamed")).unwrap();
    // The guard on the node ends it, and the other nodes, of which it is known, go on.
    world.until(1_000, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let node = world.snapshot.nodes.iter().find(|node| *node.name == *name).unwrap();
    let last = node.update.as_ref().unwrap().spec.last_disruption.as_ref().unwrap();
    assert_eq!(last.outcome, bascule_api::DisruptionOutcome::Unproven, "{}", world.story());
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
}

fn alerts() -> Value {
    json!({"health": {
        "nodeReadyTimeout": "5m", "prometheus": "https://prometheus.example.com",
        "gates": [{"name": "alerts", "promQL": {"query": "max(ALERTS)", "equals": 0}}]
    }})
}

fn granted_one(world: &World) -> String {
    world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string()
}

fn on_trial(world: &World) -> bool {
    world.machines.values().any(bascule_sim::world::Machine::tries_a_release)
}

#[test]
fn a_gate_about_the_cluster_holds_a_trial_and_blames_the_release_when_a_second_node_shows_it() {
    let mut world = world(1, &alerts());
    world.until(200, on_trial).unwrap();
    world.alert(true);
    world.until(200, |world| world.shown().contains("is held as a trial, and not blamed")).unwrap();
    assert_eq!(granted(&world), 1, "nobody else starts");
    // It ends by itself: the trial goes on.
    world.alert(false);
    world.until(200, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    // It does not end: the guard takes the trial back, and nobody is blamed.
    world.until(200, on_trial).unwrap();
    world.alert(true);
    world.until(400, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.1"), 1, "{}", world.story());
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    // The alert ends, a second node tries, and it fires again.
    world.alert(false);
    world.until(200, on_trial).unwrap();
    world.alert(true);
    world.until(400, |world| granted(world) == 0 && !world.snapshot.policies[0].status.blocked.is_empty()).unwrap();
    assert_eq!(world.snapshot.policies[0].status.failures.len(), 1, "{}", world.story());
}

#[test]
fn a_gate_that_held_a_trial_to_its_end_and_passes_when_the_node_is_back_blames_nobody() {
    for deaf in [false, true] {
        let mut world = world(1, &alerts());
        world.until(200, on_trial).unwrap();
        let name = granted_one(&world);
        let close = |world: &mut World, closes: bool| {
            if deaf {
                world.prometheus_dies(closes);
            } else {
                world.alert(closes);
            }
        };
        close(&mut world, true);
        world.until(200, |world| world.shown().contains("is held as a trial, and not blamed")).unwrap();
        world.until(200, |world| world.story().contains("the guard takes the trial back")).unwrap();
        world.until(10, |world| !node(world, &name).ready.ready).unwrap();
        assert!(!on_trial(&world) && granted(&world) == 1, "it reboots\n{}", world.story());
        // What was wrong with the cluster ends meanwhile.
        close(&mut world, false);
        world.until(100, |world| !node(world, &name).granted()).unwrap();
        let last = node(&world, &name).update.as_ref().unwrap().spec.last_disruption.clone().unwrap();
        assert_eq!(last.outcome, bascule_api::DisruptionOutcome::Unproven, "{}\n{}", last.message, world.story());
        assert_eq!(last.gate.as_deref(), (!deaf).then_some("alerts"), "{}", last.message);
        assert!(last.message.contains("gate alerts did not pass at the end of its time"), "{}", last.message);
        assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    }
}

#[test]
fn a_machine_that_is_slow_to_come_back_from_a_held_trial_is_an_alarm_and_no_verdict() {
    let mut world = world(1, &alerts());
    world.until(200, on_trial).unwrap();
    let name = granted_one(&world);
    // Longer than nodeReadyTimeout.
    world.machines.get_mut(&name).unwrap().boot_seconds = 900;
    world.alert(true);
    world.until(200, |world| world.story().contains("the guard takes the trial back")).unwrap();
    world.until(100, |world| state(&name, world).contains("NodeLost")).unwrap();
    let says = state(&name, &world);
    assert!(says.contains("Failed") && says.contains("not blamed") && says.contains("gate alerts"), "{says}");
    assert_eq!(granted(&world), 1, "its place is taken\n{}", world.shown());
    world.until(200, |world| !node(world, &name).granted()).unwrap();
    let last = node(&world, &name).update.as_ref().unwrap().spec.last_disruption.clone().unwrap();
    assert_eq!(last.outcome, bascule_api::DisruptionOutcome::Unproven, "{}\n{}", last.message, world.story());
    assert_eq!(last.gate.as_deref(), Some("alerts"), "{}", last.message);
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
}

/// Others waited for the gate while the node rebooted, and where many questions are each is asked once a minute.
#[test]
fn what_a_gate_said_before_the_reboot_neither_commits_nor_blames() {
    for passes in [true, false] {
        let mut fields = alerts();
        fields["health"]["clusterGates"] = json!("Revert");
        fields["health"]["nodeReadyTimeout"] = json!("90s");
        let mut world = world(1, &fields);
        world.until(200, on_trial).unwrap();
        let name = granted_one(&world);
        let goal = |world: &World| node(world, &name).update.as_ref().unwrap().spec.goal;
        let booted = node(&world, &name).boot_seen;
        let said = |at: Time| GateAnswer {
            policy: "workers".to_owned(),
            gate: "alerts".to_owned(),
            node: None,
            passes,
            known: true,
            message: String::new(),
            at,
            since: at,
            missed: None,
        };
        if !passes {
            // Its time is over.
            world.pass(91);
        }
        world.snapshot.gates = vec![said(Time::new(booted.get() - chrono::TimeDelta::seconds(1)))];
        world.operate_for(None).unwrap();
        assert_eq!(goal(&world), Goal::Booted, "{}", world.story());
        let says = state(&name, &world);
        assert!(says.contains("gate alerts has not been asked since the reboot"), "{says}");
        // Nothing else was in the way.
        world.snapshot.gates = vec![said(booted)];
        let wanted = if passes { Goal::Committed } else { Goal::Reverted };
        world.until(1, |world| goal(world) == wanted).unwrap();
    }
}

#[test]
fn a_prometheus_that_dies_while_several_nodes_try_a_release_blames_nobody() {
    let mut fields = alerts();
    fields["budget"] = json!({"maxUnavailable": 3});
    fields["staging"] = json!({"maxConcurrent": 3});
    fields["health"]["nodeSoak"] = json!("2m");
    let mut world = world(1, &fields);
    let all_try = |world: &World| world.machines.values().all(bascule_sim::world::Machine::tries_a_release);
    world.until(400, all_try).unwrap();
    // The guard of one ends its trial first; the others are past their time, too.
    world.prometheus_dies(true);
    world.until(1_000, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.0"), 3, "{}", world.story());
    assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    let last = |node: &std::sync::Arc<bascule_planner::snapshot::Node>| {
        let last = node.update.as_ref().unwrap().spec.last_disruption.as_ref().unwrap();
        (last.outcome, last.gate.clone())
    };
    let ended: Vec<_> = world.snapshot.nodes.iter().map(last).collect();
    assert!(ended.iter().all(|end| *end == (bascule_api::DisruptionOutcome::Unproven, None)), "{ended:?}");
}

#[test]
fn what_ended_a_trial_for_another_reason_is_no_first_node_that_shows_it() {
    for other in [None, Some("another")] {
        let mut world = world(1, &alerts());
        world.until(200, on_trial).unwrap();
        world.alert(true);
        world.until(400, |world| granted(world) == 0).unwrap();
        for node in &mut world.snapshot.nodes {
            let update = std::sync::Arc::make_mut(node).update.as_mut().unwrap();
            if let Some(last) = &mut update.spec.last_disruption {
                assert_eq!(last.gate.as_deref(), Some("alerts"));
                last.gate = other.map(str::to_owned);
            }
        }
        world.alert(false);
        world.until(200, on_trial).unwrap();
        world.alert(true);
        world.until(400, |world| granted(world) == 0).unwrap();
        assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    }
}

#[test]
fn a_gate_about_the_cluster_is_a_verdict_where_the_policy_says_so() {
    let mut fields = alerts();
    fields["health"]["clusterGates"] = json!("Revert");
    let mut world = world(1, &fields);
    world.until(200, on_trial).unwrap();
    world.alert(true);
    world.until(400, |world| granted(world) == 0 && !world.snapshot.policies[0].status.blocked.is_empty()).unwrap();
    assert_eq!(on(&world, "1.0"), 3);
}
