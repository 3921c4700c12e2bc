//! Scripts whose outcome people have read: what the operator does, and what it says meanwhile.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests and their helpers")]

mod in_flight;
mod maintenances;
mod members;
mod newcomers;
mod people;
mod refused;
mod trials;
mod unreadable;
mod verdicts;
mod waves;

use bascule_api::{Architecture, DisruptionOutcome, Outcome, WaitReason};
use bascule_planner::{Action, model, plan, snapshot::Node};
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
fn a_commit_that_is_being_written_is_learned_from_once() {
    let mut world = world(1, &json!({}));
    world.policy("workers", |policy| policy.status.timings.boot_seconds = Some(1_133));
    let commits = |world: &World| {
        let (plan, _) = plan(&world.snapshot);
        plan.steps.iter().any(|step| matches!(step.action, Action::Commit { .. }))
    };
    for _ in 0..400 {
        if commits(&world) {
            break;
        }
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    // What is remembered is written before the commit, and leads to the next plan, which sees no commit yet.
    let mut learned = Vec::new();
    for _ in 0..4 {
        assert!(commits(&world), "{}", world.story());
        let (given, report) = plan(&world.snapshot);
        for step in given.steps.iter().filter(|step| step.action.node().is_none()) {
            assert_eq!(model::apply(&mut world.snapshot, step, &report), model::Done::Applied);
        }
        learned.push(world.snapshot.policies[0].status.timings.boot_seconds.unwrap());
        world.pass(1);
    }
    assert!(learned[0] < 1_133, "{learned:?}");
    assert!(learned.iter().all(|seconds| *seconds == learned[0]), "{learned:?}");
    // Each further node lets it fall once.
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let after = world.snapshot.policies[0].status.timings.boot_seconds.unwrap();
    assert!(after < learned[0] && after > learned[0] * 3 / 4, "{after} after {learned:?}");
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
    for (waits, blamed) in [("a2", "b1"), ("b2", "a1"), ("c1", "a1")] {
        let (_, report) = plan(&world.snapshot);
        let said = report.nodes.iter().find(|said| &*said.node == waits).unwrap();
        let written = said.rollout(None, world.snapshot.now).object.unwrap();
        assert_eq!((written.kind.as_str(), written.name.as_str()), ("Node", blamed), "{waits}");
    }
    for machine in world.machines.values_mut() {
        machine.unready = false;
    }
    world.until(400, |world| on(world, "1.1") == 6 && granted(world) == 0).unwrap();
}

#[test]
fn a_release_for_one_architecture_is_one_rollout_and_not_one_with_each_node() {
    let mut offer = (*build::offer(&["1.0", "1.1", "1.2"])).clone();
    for release in &mut offer.releases {
        release.digests.insert(Architecture::Arm64, build::digest(release.version.as_str()));
    }
    offer.releases.last_mut().unwrap().digests.remove(&Architecture::X86_64);
    let mut world = World::scripted(1, vec![build::policy("workers", &json!({}), &Arc::new(offer))]);
    let arm = world.snapshot.nodes.iter_mut().find(|node| &*node.name == "b1").unwrap();
    Arc::make_mut(arm).architecture = Some(Architecture::Arm64);
    // They take turns.
    for (goes, version) in [("a1", "1.1"), ("b1", "1.2"), ("c1", "1.1")] {
        let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
        hold.spec.nodes = ["a1", "b1", "c1"].into_iter().filter(|name| *name != goes).map(str::to_owned).collect();
        world.snapshot.freezes = vec![Arc::new(hold)];
        let runs = |world: &World| world.running(goes).is_some_and(|running| running.as_str() == version);
        world.until(400, |world| runs(world) && granted(world) == 0).unwrap();
    }
    world.operate_for(None).unwrap();
    let history = &world.snapshot.policies[0].status.history;
    let rollouts: Vec<_> = history.iter().map(|entry| (entry.version.as_str(), entry.outcome)).collect();
    assert_eq!(rollouts, [("1.1", Outcome::Superseded), ("1.2", Outcome::Done)], "{}", world.story());
}

#[test]
fn who_has_its_turn_is_told_and_not_written_into_every_node_that_waits() {
    // All hold the release by the time that the window opens.
    let fields = json!({
        "maintenanceWindows": [{"schedule": "10 12 * * *", "duration": "2h"}],
        "budget": {"maxUnavailable": "100%", "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1}}
    });
    let mut world = world(1, &fields);
    let for_the_domain = |world: &World| {
        let (_, report) = plan(&world.snapshot);
        report.nodes.into_iter().filter(|said| said.wait.reason == WaitReason::DomainBusy).collect::<Vec<_>>()
    };
    world.until(200, |world| granted(world) == 1 && for_the_domain(world).len() == 2).unwrap();
    let moves = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap();
    let waiting = for_the_domain(&world);
    for said in waiting {
        assert_eq!(said.wait.object.as_ref().unwrap().name, *moves.name, "{}", said.node);
        assert_eq!(said.rollout(None, world.snapshot.now).object, None, "it is another one in a moment");
    }
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
fn a_node_that_reboots_in_each_of_its_drains_gives_its_place_away() {
    let mut world = world(1, &json!({}));
    world.with_pods(3);
    let mut restless = None;
    for _ in 0..400 {
        world.operate_for(None).unwrap();
        let drained = world.snapshot.nodes.iter().find(|node| node.is_being_emptied());
        if let Some(name) = drained.map(|node| node.name.to_string())
            && *restless.get_or_insert_with(|| name.clone()) == name
            && world.machines[&name].is_up()
        {
            world.cut_power(&name);
        }
        if on(&world, "1.1") == 2 {
            break;
        }
        world.pass(10);
    }
    assert_eq!(on(&world, "1.1"), 2, "{}\n{}", world.story(), world.shown());
    let ended = node(&world, &restless.unwrap()).update.as_ref().unwrap().spec.last_disruption.clone().unwrap();
    assert_eq!(ended.outcome, DisruptionOutcome::Interrupted, "{}", ended.message);
    assert!((1..8).contains(&ended.given_up), "{} drains\n{}", ended.given_up, world.story());
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_node_that_was_emptied_for_a_release_that_it_lost_is_not_drained_again_at_once() {
    let mut world = world(1, &json!({}));
    let boots = |world: &World| {
        let (plan, _) = plan(&world.snapshot);
        plan.steps.iter().any(|step| matches!(step.action, Action::Boot { .. }))
    };
    for _ in 0..400 {
        if boots(&world) {
            break;
        }
        world.operate_for(None).unwrap();
        world.pass(1);
    }
    assert!(boots(&world), "{}", world.story());
    let name = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    let emptied = world.snapshot.nodes.iter_mut().find(|node| *node.name == *name).unwrap();
    Arc::make_mut(emptied).update.as_mut().unwrap().status.staged = None;
    world.operate_for(None).unwrap();
    let ended = node(&world, &name).update.as_ref().unwrap().spec.last_disruption.clone().unwrap();
    assert_eq!((ended.outcome, ended.given_up), (DisruptionOutcome::Interrupted, 1), "{}", ended.message);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
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
fn what_could_be_better_about_a_policy_is_said_once_and_holds_nobody_up() {
    let mut world = world(1, &json!({}));
    let advice = "spec.health.gates[0].object: object gates may list pods and not watch them";
    world.policy("workers", |policy| policy.advice = Some(advice.to_owned()));
    let accepted = |world: &World| {
        let status = &world.snapshot.policies[0].status;
        let accepted = bascule_api::conditions::get(&status.conditions, bascule_api::conditions::ACCEPTED).unwrap();
        (accepted.status.clone(), accepted.message.clone(), accepted.last_transition_time.clone())
    };
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let (status, message, since) = accepted(&world);
    assert_eq!((status.as_str(), message.as_str()), ("True", advice));
    world.policy("workers", |policy| policy.advice = None);
    world.pass(60);
    world.operate_for(None).unwrap();
    assert_eq!(accepted(&world), ("True".to_owned(), String::new(), since), "it was usable all the time");
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
