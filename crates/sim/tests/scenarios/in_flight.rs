//! Writes in flight: what no object shows yet holds its place all the same.

use crate::{node, world};
use bascule_api::{Goal, RolloutState, Time, WaitReason};
use bascule_planner::{
    Action, Plan, Step, forecast,
    forecast::Options,
    plan,
    snapshot::{Cordon, Ending, Truce, Write, Writes},
};
use bascule_sim::world::{Meanwhile, World, build};
use serde_json::json;
use std::{sync::Arc, time::Duration};

fn grants(plan: &Plan) -> Vec<&Step> {
    plan.steps.iter().filter(|step| matches!(step.action, Action::Grant { .. })).collect()
}

fn granted_by(world: &World) -> Vec<String> {
    let (plan, _) = plan(&world.snapshot);
    grants(&plan).into_iter().filter_map(|step| step.action.node()).map(str::to_owned).collect()
}

/// A world whose nodes have staged, at the moment at which they may go, of which the first grant is being written. Its node, too.
fn granting(most: u32) -> (World, String) {
    let window = json!([{"schedule": "0 13 * * *", "duration": "2h"}]);
    let mut world = world(1, &json!({"budget": {"maxUnavailable": most}, "maintenanceWindows": window}));
    for _ in 0..500 {
        if !granted_by(&world).is_empty() {
            break;
        }
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    let (plan, _) = plan(&world.snapshot);
    let step = grants(&plan).first().copied().unwrap();
    let name = step.action.node().unwrap().to_owned();
    let now = world.snapshot.writes.now;
    world.snapshot.writes.begin(Some(&name), &[step], now);
    (world, name)
}

/// What is being written to a node ends.
fn end(world: &mut World, name: &str, ending: Ending) {
    let now = world.snapshot.writes.now;
    world.snapshot.writes.end(name, ending, now);
}

#[test]
fn a_grant_in_flight_holds_its_place_though_no_object_shows_it() {
    let (world, name) = granting(1);
    assert_eq!(granted_by(&world), Vec::<String>::new(), "neither again, nor another");
    let (plan, report) = plan(&world.snapshot);
    let said = report.nodes.iter().find(|said| *said.node == *name).unwrap();
    assert_eq!(said.wait.message, "may be disrupted now");
    assert_eq!(plan.schedule.in_flight, [name]);
}

#[test]
fn where_a_budget_has_room_for_two_a_grant_in_flight_leaves_room_for_one() {
    let (world, name) = granting(2);
    let beside = granted_by(&world);
    assert!(beside.len() == 1 && beside[0] != name, "{name} and {beside:?}");
}

#[test]
fn a_grant_of_which_nobody_heard_is_given_again_first_and_holds_its_place_for_a_minute() {
    let (mut world, name) = granting(1);
    end(&mut world, &name, Ending::Unknown);
    assert_eq!(granted_by(&world), std::slice::from_ref(&name));
    // It can't be given again, and it may have been given.
    let index = world.snapshot.nodes.iter().position(|node| *node.name == *name).unwrap();
    Arc::make_mut(&mut world.snapshot.nodes[index]).leaving = Some("ToBeDeletedByClusterAutoscaler".to_owned());
    assert_eq!(granted_by(&world), Vec::<String>::new());
    let (given, _) = plan(&world.snapshot);
    let free = given.wake_at.map(|at| at.seconds_since(world.snapshot.now));
    assert!(free.is_some_and(|seconds| seconds <= 61), "somebody waits for its place: {free:?}");
    world.snapshot.writes.now += Duration::from_secs(60);
    let then = granted_by(&world);
    assert!(then.len() == 1 && then[0] != name, "{then:?}");
}

#[test]
fn a_grant_that_was_refused_leaves_its_place_to_others() {
    let (mut world, name) = granting(1);
    let index = world.snapshot.nodes.iter().position(|node| *node.name == *name).unwrap();
    Arc::make_mut(&mut world.snapshot.nodes[index]).leaving = Some("ToBeDeletedByClusterAutoscaler".to_owned());
    end(&mut world, &name, Ending::NotDone);
    let then = granted_by(&world);
    assert!(then.len() == 1 && then[0] != name, "{then:?}");
}

#[test]
fn of_a_grant_that_nobody_answers_for_long_people_read_so_while_it_holds_its_place() {
    const WORDS: &str = "the API server did not answer Grant in time";
    let (mut world, name) = granting(1);
    let mut before = world.snapshot.clone();
    before.writes = Writes::default();
    let (given, _) = plan(&before);
    let grant = Write::of(&grants(&given).first().unwrap().action);
    for seconds in [30, 0] {
        let at = Time::new(world.snapshot.now.get() - chrono::TimeDelta::seconds(seconds));
        world.snapshot.refused.note(grant.clone(), Some(WORDS), at);
    }
    for tried_again in [true, false] {
        if !tried_again {
            end(&mut world, &name, Ending::Unknown);
        }
        let (given, report) = plan(&world.snapshot);
        assert!(grants(&given).is_empty(), "{given:?}");
        let said = report.nodes.iter().find(|said| *said.node == *name).unwrap();
        assert_eq!((said.state, said.wait.reason), (RolloutState::Waiting, WaitReason::WriteRefused));
        assert!(said.wait.message.contains(WORDS), "{}", said.wait.message);
        assert_eq!(report.policies[0].status.counts.unavailable, 1);
    }
}

#[test]
fn hooks_of_a_rollout_that_are_new_take_no_place_from_a_grant_that_may_have_been_given() {
    let (mut world, name) = granting(1);
    end(&mut world, &name, Ending::Unknown);
    let hook = json!([{"name": "set-noout", "namespace": "hooks", "timeout": "3m", "job": {"template": {}}}]);
    let fields = json!({"hooks": {"beforeRollout": hook}});
    let spec = build::policy("workers", &fields, &build::offer(&["1.0", "1.1"])).spec;
    world.policy("workers", |policy| policy.spec = spec.clone());
    let (given, report) = plan(&world.snapshot);
    assert!(grants(&given).is_empty(), "{given:?}");
    assert_eq!(report.policies[0].status.counts.unavailable, 1);
}

#[test]
fn a_forecast_takes_a_grant_in_flight_for_one_that_is_to_be_given() {
    let (world, _) = granting(1);
    let seen = forecast(&world.snapshot, &Options::default());
    assert!(seen.nodes.iter().all(Option::is_some), "{seen:?}");
}

#[test]
fn a_node_that_is_registered_anew_beside_a_grant_in_flight_breaks_no_promise() {
    let mut world = world(1, &json!({"health": {"nodeReadyTimeout": "20m", "nodeSoak": "10m"}}));
    let trying = |world: &World| {
        let found = world.machines.iter().find(|(_, machine)| machine.tries_a_release());
        found.map(|(name, _)| name.clone()).filter(|name| node(world, name).ready.ready)
    };
    world.until(400, |world| trying(world).is_some()).unwrap();
    let name = trying(&world).unwrap();
    world.delete_and_forget(&name);
    let pause = |world: &mut World, paused: bool| {
        world.policy("workers", |policy| {
            let mut spec = policy.spec.as_ref().unwrap().spec.clone();
            spec.paused = paused;
            policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        });
    };
    // It has a NodeUpdate again, and its agent has not spoken since.
    pause(&mut world, true);
    world.operate_for(None).unwrap();
    pause(&mut world, false);
    assert!(!granted_by(&world).is_empty(), "{}", world.shown());
    let late = world.operate_late(Meanwhile::Waits, |world| world.pass(10));
    late.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(world.story().contains("operator  adopts beside a grant"), "{}", world.story());
    world.until(600, |world| crate::on(world, "1.1") == 3 && crate::granted(world) == 0).unwrap();
}

/// Between the plan and the word to reboot the uncordon lands that a leader had sent before it died: pods may come by then.
#[test]
fn a_node_that_takes_pods_again_is_not_told_to_reboot_by_a_plan_of_before() {
    let mut world = world(1, &json!({}));
    let tells = |world: &World| {
        let (plan, _) = plan(&world.snapshot);
        let boots = plan.steps.iter().find(|step| matches!(step.action, Action::Boot { .. }));
        boots.and_then(|step| step.action.node()).map(str::to_owned)
    };
    for _ in 0..500 {
        if tells(&world).is_some() {
            break;
        }
        world.operate_for(None).unwrap();
        if tells(&world).is_none() {
            world.pass(10);
        }
    }
    let name = tells(&world).unwrap();
    let seen = world.snapshot.clone();
    let place = seen.nodes.iter().position(|node| *node.name == *name).unwrap();
    let lifted = Arc::make_mut(&mut world.snapshot.nodes[place]);
    (lifted.cordon, lifted.truce) = (Cordon::None, Truce::None);
    world.operate_on(&seen, None).unwrap();
    let goal = |world: &World| node(world, &name).update.as_ref().unwrap().spec.goal;
    assert_eq!(goal(&world), Goal::Staged, "{}", world.story());
    world.operate_for(None).unwrap();
    assert!(matches!(node(&world, &name).cordon, Cordon::Ours { .. }), "it is emptied anew\n{}", world.story());
    world
        .until(600, |world| world.machines.keys().all(|name| world.running(name) == Some(&build::version("1.1"))))
        .unwrap();
}
