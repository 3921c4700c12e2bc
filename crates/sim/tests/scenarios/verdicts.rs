//! Who may judge a release, and what becomes of it while nobody can.

use crate::{granted, node, on, state, unreadable, world};
use bascule_api::{DisruptionOutcome, Goal, LastDisruption, Time, UpdatePolicySpec};
use bascule_planner::{PolicyError, PolicyErrorKind, Snapshot, validate};
use bascule_sim::world::{Fate, World, build};
use serde_json::{Value, json};
use std::sync::Arc;

/// Somebody mistypes a time zone in the only policy. What it said before.
fn mistype(world: &mut World) -> UpdatePolicySpec {
    let policy = world.snapshot.policies.first().unwrap();
    let before = policy.spec.as_ref().unwrap().spec.clone();
    let window = json!({"schedule": "0 22 * * *", "duration": "5h", "timeZone": "Europe/Berln"});
    let wrong = validate(&build::spec(&json!({"maintenanceWindows": [window]}))).map(Arc::new);
    assert!(wrong.is_err());
    world.policy("workers", |policy| policy.spec = wrong.clone());
    before
}

fn mend(world: &mut World, spec: &UpdatePolicySpec) {
    world.policy("workers", |policy| policy.spec = validate(spec).map(Arc::new));
}

/// A world whose policy has a gate and a soak, and in which a node tries the release.
fn trying() -> (World, String) {
    let mut world = world(1, &watchful());
    let first = |world: &World| {
        let trying = world.machines.iter().find(|(_, machine)| machine.tries_a_release());
        trying.map(|(name, _)| name.clone())
    };
    world.until(200, |world| first(world).is_some()).unwrap();
    let name = first(&world).unwrap();
    (world, name)
}

fn watchful() -> Value {
    json!({"health": {
        "nodeReadyTimeout": "5m", "nodeSoak": "5m", "prometheus": "https://prometheus.example.com",
        "gates": [{"name": "alerts", "promQL": {"query": "max(ALERTS)", "equals": 0}}]
    }})
}

fn tries(world: &World, name: &str) -> bool {
    world.machines.get(name).unwrap().tries_a_release()
}

/// The operator is at work for so many seconds.
fn live(world: &mut World, seconds: i64) {
    let until = Time::new(world.snapshot.now.get() + chrono::TimeDelta::seconds(seconds));
    world.until(1_000, |world| world.snapshot.now >= until).unwrap();
}

fn last(world: &World, name: &str) -> LastDisruption {
    node(world, name).update.as_ref().unwrap().spec.last_disruption.clone().unwrap()
}

/// A trial that nobody could judge is over. The others go on, whose policy is there all the time.
fn ends_unproven(world: &mut World, name: &str) {
    let free = |world: &World| node(world, name).update.as_ref().unwrap().spec.disruption.is_none();
    world.until(200, free).unwrap();
    assert_eq!(last(world, name).outcome, DisruptionOutcome::Unproven, "{}", world.story());
    world.until(1_000, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    blames_nobody(world);
    assert!(state(name, world).contains("FailedHere"), "{}", world.shown());
}

fn blames_nobody(world: &World) {
    for policy in &world.snapshot.policies {
        assert!(policy.status.failures.is_empty() && policy.status.blocked.is_empty(), "{}", world.story());
    }
}

/// The world as a leader sees it that does not know its rights yet.
fn before_rights_are_known(world: &World) -> Snapshot {
    let mut seen = world.snapshot.clone();
    for policy in &mut seen.policies {
        let asked = PolicyErrorKind::Right("whether the operator may create Jobs in ops is being asked".to_owned());
        Arc::make_mut(policy).spec = Err(PolicyError::new("spec.hooks.beforeDrain[0].namespace", asked));
    }
    seen
}

#[test]
fn who_does_not_know_yet_how_many_failures_are_too_many_blocks_nothing() {
    let fields = json!({"failureThreshold": 3, "automaticRollback": true, "health": {"nodeReadyTimeout": "5m"}});
    let mut world = world(1, &fields);
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    world.until(400, |world| world.snapshot.policies[0].status.failures.len() == 1).unwrap();
    world.fates.remove("1.1");
    world.until(400, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let seen = before_rights_are_known(&world);
    world.operate_on(&seen, None).unwrap();
    for _ in 0..30 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    let status = &world.snapshot.policies[0].status;
    assert!(status.blocked.is_empty() && status.failures.len() == 1, "{:?}\n{}", status.blocked, world.story());
    assert_eq!(on(&world, "1.1"), 2, "nobody goes back\n{}", world.story());
}

#[test]
fn what_fails_under_a_policy_that_can_not_be_used_is_noted_and_judged_once_it_can() {
    let mut world = world(1, &json!({"failureThreshold": 2}));
    world.fates.insert("1.1".to_owned(), Fate::NoBoot);
    let failures = |world: &World| world.snapshot.policies[0].status.failures.len();
    world.until(400, |world| failures(world) == 1).unwrap();
    let told = |world: &World| {
        let updates = world.snapshot.nodes.iter().filter_map(|node| node.update.as_ref());
        updates.filter(|update| update.spec.goal == Goal::Booted).count()
    };
    world.until(400, |world| told(world) == 1).unwrap();
    let before = mistype(&mut world);
    world.until(400, |world| granted(world) == 0).unwrap();
    let status = &world.snapshot.policies[0].status;
    assert!(status.failures.len() == 2 && status.blocked.is_empty(), "{status:?}\n{}", world.story());
    mend(&mut world, &before);
    world.operate_for(None).unwrap();
    assert_eq!(world.snapshot.policies[0].status.blocked.len(), 1, "{}", world.story());
}

#[test]
fn a_mistake_in_its_policy_holds_a_trial_which_goes_on_once_it_is_corrected() {
    let (mut world, name) = trying();
    let before = mistype(&mut world);
    live(&mut world, 400);
    assert!(tries(&world, &name), "nobody makes it permanent\n{}", world.story());
    let said = state(&name, &world);
    assert!(said.contains("InvalidPolicy") && said.contains("Europe/Berln"), "{said}");
    assert!(said.contains("correct policy workers, or the guard on the node takes it back"), "{said}");
    mend(&mut world, &before);
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(last(&world, &name).outcome, DisruptionOutcome::Committed, "{}", world.story());
    blames_nobody(&world);
}

#[test]
fn a_trial_that_ends_while_nobody_can_judge_it_blames_nobody() {
    // Corrected a while after the guard has ended it; and shortly before, so that its soak is not over by then.
    for (seconds, ends_before) in [(1_500, true), (840, false)] {
        let (mut world, name) = trying();
        let before = mistype(&mut world);
        let since = world.snapshot.now.seconds_since(node(&world, &name).boot_seen);
        live(&mut world, seconds - since);
        assert_eq!(granted(&world) == 0, ends_before, "{}", world.story());
        mend(&mut world, &before);
        ends_unproven(&mut world, &name);
    }
}

#[test]
fn a_trial_that_ends_while_its_node_or_its_policy_can_not_be_read_blames_nobody() {
    for of_policy in [false, true] {
        let (mut world, name) = trying();
        let before = world.snapshot.policies[0].spec.clone();
        if of_policy {
            world.policy("workers", |policy| unreadable::not_to_be_read(policy, true));
        } else {
            unreadable::hide(&mut world, &name);
        }
        live(&mut world, 1_500);
        assert!(!tries(&world, &name) && granted(&world) == 1, "the guard ended it\n{}", world.story());
        let now = world.snapshot.now;
        if of_policy {
            world.policy("workers", |policy| (policy.spec, policy.read_again) = (before.clone(), Some(now)));
        } else {
            unreadable::change(&mut world, &name, |node| (node.unreadable, node.read_again) = (None, Some(now)));
        }
        ends_unproven(&mut world, &name);
    }
}

/// The operator that could not read it is replaced by one that can, which sees nothing of that in the object.
#[test]
fn a_trial_that_ended_while_an_operator_before_this_one_could_not_read_its_node_blames_nobody() {
    let (mut world, name) = trying();
    unreadable::hide(&mut world, &name);
    live(&mut world, 1_500);
    assert!(!tries(&world, &name) && granted(&world) == 1, "the guard ended it\n{}", world.story());
    world.snapshot.unread_at = Some(world.snapshot.now);
    unreadable::change(&mut world, &name, |node| node.unreadable = None);
    ends_unproven(&mut world, &name);
}

/// Nobody leads until the guard has ended a trial. What could not be read before it, and a policy for other nodes, held nothing then.
#[test]
fn what_could_not_be_read_at_another_time_or_elsewhere_saves_no_release() {
    let (mut world, name) = trying();
    let began = node(&world, &name).update.as_ref().unwrap().spec.disruption.as_ref().unwrap().drained_at;
    unreadable::change(&mut world, &name, |node| node.read_again = began);
    world.policy("workers", |policy| policy.read_again = began);
    world.snapshot.unread_at = began;
    let elsewhere = json!({"nodeSelector": {"matchLabels": {"role": "gateway"}}});
    let mut others = build::policy("others", &elsewhere, &build::offer(&["1.0", "1.1"]));
    others.read_again = Some(world.snapshot.now);
    world.snapshot.policies.push(Arc::new(others));
    for seconds in [1_500, 120, 120] {
        world.pass(seconds);
    }
    assert!(!tries(&world, &name) && began.is_some(), "{}", world.story());
    let free = |world: &World| node(world, &name).update.as_ref().unwrap().spec.disruption.is_none();
    world.until(200, free).unwrap();
    assert_eq!(last(&world, &name).outcome, DisruptionOutcome::Failed, "{}", world.story());
    assert_eq!(world.snapshot.policies[0].status.failures.len(), 1, "{}", world.story());
}

#[test]
fn a_trial_under_two_policies_is_judged_by_the_one_that_granted() {
    let (mut world, name) = trying();
    world.alert(true);
    let other = build::policy("others", &json!({}), &build::offer(&["1.0", "1.1"]));
    world.snapshot.policies.push(Arc::new(other));
    live(&mut world, 400);
    assert!(tries(&world, &name), "{}", world.story());
    assert!(state(&name, &world).contains("gate alerts: 1 alert fires"), "{}", world.shown());
    world.alert(false);
    let ended = |world: &World| node(world, &name).update.as_ref().unwrap().spec.disruption.is_none();
    world.until(400, ended).unwrap();
    assert_eq!(last(&world, &name).outcome, DisruptionOutcome::Committed, "{}", world.story());
    blames_nobody(&world);
    assert!(state(&name, &world).contains("PolicyConflict"), "{}", world.shown());
}

#[test]
fn a_trial_is_judged_by_a_policy_that_took_the_place_of_its_own() {
    let (mut world, name) = trying();
    world.alert(true);
    let mut renamed = build::policy("renamed", &watchful(), &build::offer(&["1.0", "1.1"]));
    renamed.created_at = world.snapshot.now;
    world.snapshot.policies = vec![Arc::new(renamed)];
    live(&mut world, 400);
    assert!(tries(&world, &name), "{}", world.story());
    assert!(state(&name, &world).contains("gate alerts: 1 alert fires"), "{}", world.shown());
    world.alert(false);
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(last(&world, &name).outcome, DisruptionOutcome::Committed, "{}", world.story());
    blames_nobody(&world);
}

#[test]
fn a_trial_whose_policy_is_gone_is_held_until_the_guard_ends_it() {
    let (mut world, name) = trying();
    let policies = std::mem::take(&mut world.snapshot.policies);
    live(&mut world, 400);
    assert!(tries(&world, &name), "{}", world.story());
    let said = state(&name, &world);
    assert!(said.contains("NotSelected") && said.contains("policy workers is not there any more"), "{said}");
    world.until(200, |world| granted(world) == 0).unwrap();
    assert_eq!((on(&world, "1.0"), last(&world, &name).outcome), (3, DisruptionOutcome::Unproven), "{}", world.story());
    // It is there again: what ended without it is no fault of the release.
    world.snapshot.policies = policies;
    world.until(1_000, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    blames_nobody(&world);
}

#[test]
fn hooks_after_the_commit_are_not_passed_over_for_a_mistake_in_their_policy() {
    let hook = json!([{"name": "tell", "namespace": "ops", "job": {"template": {}}}]);
    let mut world = world(1, &json!({"hooks": {"afterCommit": hook}}));
    let asked = |world: &World| {
        let updates = world.snapshot.nodes.iter().filter(|node| node.granted());
        let mut goals = updates.filter_map(|node| Some((node.name.to_string(), node.update.as_ref()?.spec.goal)));
        goals.find(|(_, goal)| *goal == Goal::Committed).map(|(name, _)| name)
    };
    world.until(200, |world| asked(world).is_some()).unwrap();
    let name = asked(&world).unwrap();
    let before = mistype(&mut world);
    live(&mut world, 300);
    assert!(node(&world, &name).cordon.is_cordoned(), "{}", world.story());
    assert!(state(&name, &world).contains("InvalidPolicy"), "{}", world.shown());
    mend(&mut world, &before);
    world.until(1_000, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(world.story().matches("RunHook").count(), 3, "{}", world.story());
}
