//! Who may judge a release, and what becomes of it while nobody can.

use crate::{granted, on, world};
use bascule_api::{Goal, UpdatePolicySpec};
use bascule_planner::{PolicyError, PolicyErrorKind, Snapshot, validate};
use bascule_sim::world::{Fate, World, build};
use serde_json::json;
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
