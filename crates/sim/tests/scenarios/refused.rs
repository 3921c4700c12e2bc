//! Writes that the API server does not take: a webhook that denies, a quota that is used up. Nobody holds a place for it that others
//! could have, nothing is said to be done that was not, and people read what the API server says.

use crate::{granted, node, on, state, world};
use bascule_api::{DisruptionOutcome, Goal, LastDisruption, Time, conditions};
use bascule_planner::{Action, plan, snapshot::Write};
use bascule_sim::world::{World, Written};
use serde_json::{Value, json};

/// What the API server says here.
const WORDS: &str = "admission webhook \"writes.example.com\" denied the request";

fn hook(name: &str) -> Value {
    json!([{"name": name, "namespace": "hooks", "timeout": "3m", "job": {"template": {}}}])
}

fn last(world: &World, name: &str) -> Option<LastDisruption> {
    node(world, name).update.as_ref()?.spec.last_disruption.clone()
}

fn done(world: &World) -> bool {
    on(world, "1.1") == 3 && granted(world) == 0
}

fn pause(world: &mut World) {
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.paused = true;
        policy.spec = bascule_planner::validate(&spec).map(std::sync::Arc::new);
    });
}

/// The others are done, and this node was given back for this reason.
fn gives_its_place_away(world: &mut World, name: &str, why: &str) {
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let ended = last(world, name).expect("it was granted");
    assert_eq!(ended.outcome, DisruptionOutcome::DrainFailed, "{}", ended.message);
    assert!(ended.message.contains(why) && ended.message.contains(WORDS), "{}", ended.message);
    world.take_writes();
    world.until(600, done).unwrap();
}

#[test]
fn a_cordon_that_is_refused_is_told_and_its_place_goes_to_the_next_node() {
    let mut world = world(1, &json!({"drain": {"timeout": "2m"}}));
    world.refuse(Written::Node, Some("a1"));
    world.until(400, |world| node(world, "a1").granted() && state("a1", world).contains("WriteRefused")).unwrap();
    let (_, report) = plan(&world.snapshot);
    let said = report.nodes.iter().find(|said| &*said.node == "a1").unwrap();
    let message = said.rollout(None, world.snapshot.now).message;
    assert!(message.contains("Cordon has failed since") && message.contains(WORDS), "{message}");
    assert!(message.starts_with("the node is being cordoned"), "{message}");
    gives_its_place_away(&mut world, "a1", "the node could not be cordoned in the drain's time");
}

#[test]
fn a_truce_that_is_refused_before_the_hooks_gives_its_place_away_too() {
    let mut world = world(1, &json!({"drain": {"timeout": "2m"}, "hooks": {"beforeDrain": hook("before")}}));
    world.refuse(Written::Node, Some("a1"));
    world.until(400, |world| node(world, "a1").granted() && state("a1", world).contains("Truce has failed")).unwrap();
    assert!(!world.snapshot.hooks.iter().any(|run| run.node == "a1"), "{}", world.story());
    gives_its_place_away(&mut world, "a1", "autoscalers could not be asked in time");
}

#[test]
fn a_hook_before_the_drain_whose_job_can_not_be_made_gives_its_place_away() {
    let mut world = world(1, &json!({"hooks": {"beforeDrain": hook("before")}}));
    world.refuse(Written::Job, Some("a1"));
    world.until(400, |world| node(world, "a1").granted() && state("a1", world).contains("RunHook has failed")).unwrap();
    assert!(state("a1", &world).contains("hook before starts"), "{}", world.shown());
    gives_its_place_away(&mut world, "a1", "hook before could not be started in its time");
}

#[test]
fn a_hook_after_the_commit_whose_job_can_not_be_made_is_an_alarm() {
    let mut world = world(1, &json!({"hooks": {"afterCommit": hook("after")}}));
    world.refuse(Written::Job, None);
    let failed = |world: &World| world.shown().lines().any(|line| line.contains("Failed") && line.contains("Hook"));
    world.until(400, failed).unwrap();
    let shown = world.shown();
    assert!(
        shown.contains("hook after can't be started, and the node stays cordoned") && shown.contains(WORDS),
        "{shown}"
    );
    assert_eq!((on(&world, "1.1"), granted(&world)), (1, 1));
    world.take_writes();
    world.until(600, done).unwrap();
}

#[test]
fn hooks_around_a_rollout_whose_jobs_can_not_be_made_are_told_as_those_that_failed() {
    let fields = json!({"hooks": {"beforeRollout": hook("set-noout"), "afterRollout": hook("unset-noout")}});
    let mut world = world(1, &fields);
    let failed = |world: &World| world.snapshot.policies[0].status.maintenance.as_ref()?.failed.clone();
    let condition = |world: &World| {
        let status = &world.snapshot.policies[0].status;
        conditions::get(&status.conditions, conditions::MAINTENANCE_PLANNED).cloned().unwrap()
    };
    // What runs after it is kept first, then what comes before it runs.
    let jobs = [
        ("unset-noout", "can't be kept for the end"),
        ("set-noout", "can't be started"),
        ("unset-noout", "can't be started"),
    ];
    for (index, (name, what)) in jobs.into_iter().enumerate() {
        world.refuse(Written::Job, None);
        world.until(600, |world| failed(world).is_some()).unwrap();
        let told = condition(&world);
        assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", "HookFailed"));
        let says = format!("hook {name} {what}, and is tried again: {WORDS}");
        assert!(told.message.starts_with(&says) && !told.message.contains("delete the Job"), "{}", told.message);
        // In ten minutes it is tried once a minute, and a few times more at first.
        let before = world.refused();
        for _ in 0..60 {
            world.operate_for(None).unwrap();
            world.pass(10);
        }
        assert!((10..=14).contains(&(world.refused() - before)), "{} times", world.refused() - before);
        if index < 2 {
            assert_eq!(granted(&world), 0);
            assert!(state("a1", &world).contains(&says), "who waits for it reads it: {}", world.shown());
        }
        world.take_writes();
        // Until it is made, and no further: the next one is refused too.
        for _ in 0..20 {
            world.operate_for(None).unwrap();
            if world.snapshot.refused.is_empty() {
                break;
            }
            world.pass(10);
        }
        assert!(world.snapshot.refused.is_empty(), "{}", world.story());
    }
    world.until(600, |world| failed(world).is_none()).unwrap();
    world.until(600, |world| done(world) && world.snapshot.policies[0].status.maintenance.is_none()).unwrap();
}

#[test]
fn a_rollout_that_nobody_waits_for_any_more_ends_though_its_first_hook_can_not_be_started() {
    let fields = json!({"hooks": {"beforeRollout": hook("set-noout")}});
    let mut world = world(1, &fields);
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    world.refuse(Written::Job, None);
    world.until(400, |world| open(world).is_some_and(|open| open.failed.is_some())).unwrap();
    pause(&mut world);
    world.until(20, |world| open(world).is_none()).unwrap();
}

#[test]
fn a_rollout_that_nobody_waits_for_any_more_ends_though_its_last_hook_can_not_be_kept() {
    let mut world = world(1, &json!({"hooks": {"afterRollout": hook("unset-noout")}}));
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    world.refuse(Written::Job, None);
    world.until(400, |world| open(world).is_some_and(|open| open.failed.is_some())).unwrap();
    pause(&mut world);
    world.until(20, |world| open(world).is_some_and(|open| open.ending)).unwrap();
    world.take_writes();
    world.until(60, |world| open(world).is_none()).unwrap();
    assert_eq!((on(&world, "1.1"), granted(&world)), (0, 0), "{}", world.story());
}

#[test]
fn a_node_whose_uncordon_is_refused_is_not_said_to_be_done() {
    let mut world = world(1, &json!({}));
    let committing = |world: &World| {
        let committing = world.snapshot.nodes.iter().find(|node| {
            let spec = node.update.as_ref().map(|update| &update.spec);
            spec.is_some_and(|spec| spec.goal == Goal::Committed && spec.disruption.is_some())
        });
        committing.map(|node| node.name.to_string())
    };
    world.until(400, |world| committing(world).is_some()).unwrap();
    let name = committing(&world).unwrap();
    world.refuse(Written::Node, Some(&name));
    world.until(20, |world| state(&name, world).contains("WriteRefused")).unwrap();
    let says = state(&name, &world);
    assert!(says.contains("Failed") && says.contains("Uncordon has failed since") && says.contains(WORDS), "{says}");
    assert!(node(&world, &name).granted() && node(&world, &name).cordon.is_cordoned());
    world.take_writes();
    world.until(600, done).unwrap();
}

#[test]
fn a_grant_ends_where_a_person_uncordoned_though_our_mark_can_not_be_taken_off() {
    let mut world = world(1, &json!({}));
    for name in ["a1", "b1", "c1"] {
        world.stick(name);
    }
    let drained = |world: &World| {
        let cordoned = world.snapshot.nodes.iter().find(|node| node.granted() && node.cordon.is_cordoned());
        cordoned.map(|node| node.name.to_string())
    };
    world.until(200, |world| drained(world).is_some()).unwrap();
    let name = drained(&world).unwrap();
    world.refuse(Written::Node, Some(&name));
    world.person(&name, false);
    world.until(3, |world| !node(world, &name).granted()).unwrap();
    assert_eq!(last(&world, &name).unwrap().outcome, DisruptionOutcome::Uncordoned);
    world.take_writes();
    world.until(20, |world| node(world, &name).cordon == bascule_planner::snapshot::Cordon::None).unwrap();
}

#[test]
fn what_is_refused_rests_ever_longer_however_often_plans_are_made() {
    let mut world = world(1, &json!({}));
    world.refuse(Written::NodeUpdate, None);
    let mut tries = Vec::new();
    for second in 0..300 {
        for _ in 0..5 {
            let before = world.refused();
            world.operate_for(None).unwrap();
            tries.extend((before..world.refused()).map(|_| second));
        }
        world.pass(1);
    }
    // Each of the three nodes is to be enrolled.
    let each: Vec<_> = [0, 1, 3, 7, 15, 31, 63, 123, 183, 243].into_iter().flat_map(|second| [second; 3]).collect();
    assert_eq!(tries, each);
    assert!(state("a1", &world).contains("CreateNodeUpdate has failed since"), "{}", world.shown());
    world.take_writes();
    world.until(600, done).unwrap();
    assert!(world.snapshot.refused.is_empty());
}

#[test]
fn a_grant_that_is_refused_gives_its_place_to_the_next_node_and_keeps_no_rollout_open() {
    let fields = json!({"hooks": {"beforeRollout": hook("set-noout"), "afterRollout": hook("unset-noout")}});
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    // Whose turn is first: the same in a world that is the same.
    let mut probe = world(1, &fields);
    probe.until(400, |world| granted(world) > 0).unwrap();
    let name = probe.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    let mut world = world(1, &fields);
    // It is staged and waits for the hooks: from now on only its grant is to be written.
    world.until(400, |world| open(world).is_some_and(|open| open.begun_at.is_none())).unwrap();
    world.refuse(Written::NodeUpdate, Some(&name));
    world.until(600, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    assert_eq!(world.running(&name).unwrap().as_str(), "1.0", "{}", world.story());
    assert!(last(&world, &name).is_none(), "it was never granted");
    world.until(20, |world| state(&name, world).contains("Grant has failed since")).unwrap();
    let says = state(&name, &world);
    assert!(says.contains("WriteRefused") && says.contains(WORDS), "{says}");
    world.until(60, |world| open(world).is_none_or(|open| open.ending)).unwrap();
    world.take_writes();
    world.until(600, done).unwrap();
}

/// A world in which a node tries the release, and is not to be committed yet.
fn trying() -> (World, String) {
    let mut world = world(1, &json!({"health": {"nodeReadyTimeout": "5m", "nodeSoak": "2m"}}));
    let tries = |world: &World| {
        let trying = world.machines.iter().find(|(_, machine)| machine.tries_a_release());
        trying.map(|(name, _)| name.clone())
    };
    world.until(200, |world| tries(world).is_some()).unwrap();
    let name = tries(&world).unwrap();
    (world, name)
}

/// The API server does not take a write that comes before the commits of the policy.
fn refuses(world: &mut World, action: &Action, at: Time) {
    world.snapshot.refused.note(Write::of(action), Some(WORDS), at);
}

fn remember() -> Action {
    Action::Remember { policy: "workers".to_owned(), changes: Vec::new(), judged: Vec::new() }
}

#[test]
fn a_trial_is_not_blamed_for_what_was_refused_before_its_commit_however_long_its_machine_reboots() {
    let accept = || Action::AcceptRollback { rollback: "back".to_owned(), status: Default::default() };
    for (action, is_taken) in [(remember(), false), (remember(), true), (accept(), false), (accept(), true)] {
        let (mut world, name) = trying();
        world.machines.get_mut(&name).unwrap().boot_seconds = 400;
        // It speaks of another node, and holds all of the policy while it can't be accepted.
        let mut back = bascule_sim::world::build::rollback("back", "workers", world.snapshot.now);
        (back.spec.nodes, back.spec.block) = (vec!["another".to_owned()], false);
        world.snapshot.rollbacks.push(std::sync::Arc::new(back));
        let mut passes = 0;
        while !world.story().contains("the guard takes the trial back") {
            assert!(passes < 1_000, "nobody takes it back\n{}", world.story());
            let now = world.snapshot.now;
            refuses(&mut world, &action, now);
            world.pass(10);
            passes += 1;
        }
        if is_taken {
            let now = world.snapshot.now;
            world.snapshot.refused.note(Write::of(&action), None, now);
        }
        world.pass(60);
        assert!(!node(&world, &name).ready.ready && node(&world, &name).granted(), "it reboots\n{}", world.story());
        world.until(100, |world| !node(world, &name).granted()).unwrap();
        let ended = last(&world, &name).unwrap();
        assert_eq!(ended.outcome, DisruptionOutcome::Unproven, "{}\n{}", ended.message, world.story());
        let told = ended.message.contains("it could not be committed") && ended.message.contains(WORDS);
        assert!(told, "{}", ended.message);
        assert!(world.snapshot.policies[0].status.failures.is_empty(), "{}", world.story());
    }
}

/// Nobody leads until the guard has ended it.
#[test]
fn what_could_not_be_remembered_before_the_word_to_reboot_saves_no_release() {
    let (mut world, name) = trying();
    let told = node(&world, &name).update.as_ref().unwrap().spec.disruption.as_ref().unwrap().drained_at.unwrap();
    refuses(&mut world, &remember(), Time::new(told.get() - chrono::TimeDelta::seconds(30)));
    for seconds in [1_500, 120, 120] {
        world.pass(seconds);
    }
    world.until(100, |world| !node(world, &name).granted()).unwrap();
    assert_eq!(last(&world, &name).unwrap().outcome, DisruptionOutcome::Failed, "{}", world.story());
    assert_eq!(world.snapshot.policies[0].status.failures.len(), 1, "{}", world.story());
}

#[test]
fn a_trial_whose_commit_was_refused_until_the_guard_took_it_back_is_not_blamed() {
    let (mut world, name) = trying();
    world.refuse(Written::NodeUpdate, Some(&name));
    world.until(60, |world| state(&name, world).contains("Commit has failed since")).unwrap();
    let says = state(&name, &world);
    assert!(says.contains("WriteRefused") && says.contains(WORDS), "{says}");
    world.until(200, |world| world.running(&name).is_some_and(|running| running.as_str() == "1.0")).unwrap();
    assert!(world.story().contains("the guard takes the trial back"), "{}", world.story());
    // That its grant ends is not taken either, as long as nothing is.
    assert!(node(&world, &name).granted());
    world.take_writes();
    world.until(60, |world| !node(world, &name).granted()).unwrap();
    let ended = last(&world, &name).unwrap();
    assert_eq!(ended.outcome, DisruptionOutcome::Unproven, "{}", ended.message);
    let told = ended.message.contains("it could not be committed") && ended.message.contains(WORDS);
    assert!(told, "{}", ended.message);
    world.until(1_000, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let status = &world.snapshot.policies[0].status;
    assert!(status.failures.is_empty() && status.blocked.is_empty(), "{}", world.story());
    assert!(state(&name, &world).contains("FailedHere"), "{}", world.shown());
}

/// Nobody waits for a grant that is refused, and it is given in the next plan: not beside one whose budget it would break.
#[test]
fn who_goes_back_whatever_the_budgets_say_breaks_none_of_a_node_that_is_granted_before_it() {
    use bascule_sim::world::build;
    let domains = json!({"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1});
    let fields = json!({"budget": {"maxUnavailable": "100%", "perDomain": domains}});
    let policy = build::policy("workers", &fields, &build::offer(&["1.0", "1.1", "1.2"]));
    let mut world = World::scripted(1, vec![policy]);
    let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
    hold.spec.nodes = vec!["b1".to_owned(), "c1".to_owned()];
    world.snapshot.freezes.push(std::sync::Arc::new(hold));
    world.until(400, |world| on(world, "1.2") == 1 && granted(world) == 0).unwrap();
    world.refuse(Written::NodeUpdate, Some("a1"));
    let mut back = build::rollback("back", "workers", world.snapshot.now);
    back.spec.ignore_budgets = true;
    world.snapshot.rollbacks.push(std::sync::Arc::new(back));
    let staged = |world: &World, name: &str| {
        let status = &node(world, name).update.as_ref().unwrap().status;
        status.staged.as_ref().is_some_and(|staged| staged.version.as_str() == "1.1")
    };
    let waits = |world: &World| state("a1", world).contains("WriteRefused");
    world.until(400, |world| staged(world, "b1") && staged(world, "c1") && waits(world)).unwrap();
    world.snapshot.freezes.clear();
    world.operate_for(None).unwrap();
    assert_eq!(granted(&world), 1, "{}", world.shown());
    let said = state("a1", &world);
    assert!(!said.contains("DomainBusy"), "it goes whatever the budgets say\n{said}");
    world.take_writes();
    world.until(100, |world| node(world, "a1").granted() && granted(world) == 2).unwrap();
    world.until(600, |world| on(world, "1.2") == 0 && granted(world) == 0).unwrap();
}
