//! What people say in the middle of it: stop, undo, go back, hold this node, try again.

use crate::{granted, node, on, state, world};
use bascule_api::{Digest, DisruptionOutcome, Duration, Time, WaitReason};
use bascule_planner::{
    Action, Planner, Snapshot, model,
    snapshot::{HookState, Node},
};
use bascule_sim::world::{Fate, Meanwhile, World, build};
use serde_json::json;
use std::sync::Arc;

#[test]
fn a_freeze_in_a_drain_lets_the_node_finish() {
    let mut world = world(1, &json!({}));
    world.with_pods(3);
    world.until(200, |world| world.snapshot.nodes.iter().any(|node| node.cordon.is_cordoned())).unwrap();
    let freeze = build::freeze("incident", world.snapshot.now, 3_600);
    world.snapshot.freezes.push(Arc::new(freeze));
    let end = world.snapshot.freezes[0].ends_at();
    world.until(100, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.1"), 1, "what moved is finished");
    insta::assert_snapshot!("freeze_in_a_drain", world.shown());
    world.until(500, |world| world.snapshot.now >= end && granted(world) > 0).unwrap();
    world.until(300, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_freeze_that_somebody_ends_holds_nobody_and_stays_on_record() {
    let mut world = world(1, &json!({}));
    let freeze = build::freeze("incident", world.snapshot.now, 86_400);
    let short = build::freeze("short", world.snapshot.now, 60);
    world.snapshot.freezes.extend([Arc::new(freeze), Arc::new(short)]);
    let begun = world.snapshot.now;
    world.until(100, |world| world.snapshot.now > begun.after(bascule_api::Duration::from_secs(120))).unwrap();
    let ended_at = |world: &World, index: usize| world.snapshot.freezes[index].status.ended_at;
    assert_eq!((on(&world, "1.1"), granted(&world), ended_at(&world, 0)), (0, 0, None));
    assert_eq!(ended_at(&world, 1), Some(world.snapshot.freezes[1].ends_at()), "its time was over");

    let ended = build::ended(&world.snapshot.freezes[0], "bob");
    world.snapshot.freezes[0] = Arc::new(ended);
    let end = world.snapshot.now;
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let seen = ended_at(&world, 0).unwrap();
    assert!(end <= seen && seen <= end.after(bascule_api::Duration::from_secs(60)), "{seen}");
    let status = &world.snapshot.freezes[0].status;
    assert!(!bascule_api::conditions::is_true(&status.conditions, bascule_api::conditions::ACTIVE), "{status:?}");
    assert!(world.snapshot.now < world.snapshot.freezes[0].ends_at(), "long before its time");
}

/// What a plan forgets, once it was looked at that it breaks no rule.
fn forgotten(snapshot: &Snapshot) -> (Vec<String>, Option<Time>) {
    let (plan, report) = bascule_planner::plan(snapshot);
    assert_eq!(bascule_planner::lint(snapshot, &plan, &report), []);
    let forgets = |step: &bascule_planner::Step| match &step.action {
        Action::ForgetFreeze { freeze } => Some(freeze.clone()),
        _ => None,
    };
    (plan.steps.iter().filter_map(forgets).collect(), plan.wake_at)
}

#[test]
fn the_record_of_a_freeze_is_kept_for_ninety_days_after_its_end() {
    let mut snapshot = world(1, &json!({})).snapshot;
    let begun = snapshot.now;
    let after = |minutes: u64| begun.after(Duration::from_minutes(minutes));
    let mut old = build::ended(&build::freeze("old", begun, 60), "bob");
    old.status.ended_at = Some(after(1));
    // Its end is not on record yet, and so it can't be told from when on it is kept.
    let unnoted = build::ended(&build::freeze("unnoted", begun, 3_600), "bob");
    let holds = build::freeze("holds", begun, 200 * 86_400);
    snapshot.freezes = [old, unnoted, holds].map(Arc::new).into();
    let due = after(1 + 90 * 24 * 60);
    snapshot.now = after(90 * 24 * 60);
    let (forgets, wakes) = forgotten(&snapshot);
    assert!(forgets.is_empty() && wakes.is_some_and(|at| at <= due), "{forgets:?} {wakes:?}");
    snapshot.now = due;
    assert_eq!(forgotten(&snapshot).0, ["old"]);

    let (plan, report) = bascule_planner::plan(&snapshot);
    let step = plan.steps.iter().find(|step| matches!(step.action, Action::ForgetFreeze { .. })).unwrap();
    for part in ["Freeze old", "by alice", "by bob", "incident"] {
        assert!(step.says.contains(part), "{}", step.says);
    }
    assert_eq!(model::apply(&mut snapshot, step, &report), model::Done::Applied);
    assert_eq!(model::apply(&mut snapshot, step, &report), model::Done::Gone);
    model::write_statuses(&mut snapshot, &report);
    let left: Vec<_> = snapshot.freezes.iter().map(|freeze| (freeze.name.as_str(), freeze.status.ended_at)).collect();
    assert_eq!(left, [("unnoted", Some(after(60))), ("holds", None)], "each with its own status");
    assert!(forgotten(&snapshot).0.is_empty(), "once");
}

#[test]
fn a_freeze_that_a_tool_would_make_anew_stays_however_old_it_is() {
    let mut snapshot = world(1, &json!({})).snapshot;
    let begun = snapshot.now;
    let mut kept = build::ended(&build::freeze("kept-in-git", begun, 60), "bob");
    kept.status.ended_at = Some(begun.after(Duration::from_minutes(1)));
    kept.kept_elsewhere = true;
    let mut typed = kept.clone();
    (typed.name, typed.kept_elsewhere) = ("typed".to_owned(), false);
    snapshot.freezes = [kept, typed].map(Arc::new).into();
    snapshot.now = begun.after(Duration::from_minutes(365 * 24 * 60));
    assert_eq!(forgotten(&snapshot).0, ["typed"]);
}

#[test]
fn of_many_freezes_those_that_ended_last_stay_on_record() {
    let mut snapshot = world(1, &json!({})).snapshot;
    let begun = snapshot.now;
    let ended = |index: u64| {
        let mut freeze = build::ended(&build::freeze(&format!("f{index:03}"), begun, 3_600), "bob");
        freeze.status.ended_at = Some(begun.after(Duration::from_secs(index)));
        Arc::new(freeze)
    };
    snapshot.freezes = (0..259).rev().map(ended).collect();
    snapshot.freezes.push(Arc::new(build::freeze("holds", begun, 86_400)));
    snapshot.now = begun.after(Duration::from_secs(7_200));
    assert_eq!(forgotten(&snapshot).0, ["f000", "f001", "f002"]);
    snapshot.freezes.retain(|freeze| !["f000", "f001", "f002"].contains(&freeze.name.as_str()));
    assert!(forgotten(&snapshot).0.is_empty());
}

#[test]
fn an_abort_gives_a_draining_node_back_and_lets_nothing_start() {
    let mut world = world(1, &json!({}));
    world.with_pods(3);
    world.until(200, |world| world.snapshot.nodes.iter().any(|node| node.cordon.is_cordoned())).unwrap();
    let mut abort = build::freeze("incident", world.snapshot.now, 3_600);
    (abort.spec.policies, abort.spec.undo_drains) = (vec!["workers".to_owned()], true);
    world.snapshot.freezes.push(Arc::new(abort));
    world.until(100, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.0"), 3, "the node runs what it ran");
    assert!(world.snapshot.nodes.iter().all(|node| !node.cordon.is_cordoned()), "it takes work again");
    let end = world.snapshot.freezes[0].ends_at();
    world.until(500, |world| world.snapshot.now >= end).unwrap();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn an_abort_does_not_stop_a_reboot_in_its_middle() {
    let mut world = world(1, &json!({}));
    let boots = |world: &World| {
        let goals = world.snapshot.nodes.iter().filter_map(|node| node.update.as_ref());
        goals.filter(|update| update.spec.goal == bascule_api::Goal::Booted).count()
    };
    world.until(200, |world| boots(world) == 1).unwrap();
    let mut abort = build::freeze("incident", world.snapshot.now, 3_600);
    abort.spec.undo_drains = true;
    world.snapshot.freezes.push(Arc::new(abort));
    world.until(200, |world| granted(world) == 0).unwrap();
    assert_eq!(on(&world, "1.1"), 1, "what reboots is finished");
}

#[test]
fn a_node_that_is_held_waits_and_the_others_go() {
    let mut world = world(1, &json!({}));
    let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
    let held = world.snapshot.nodes[0].name.to_string();
    hold.spec.nodes = vec![held.clone()];
    world.snapshot.freezes.push(Arc::new(hold));
    world.until(400, |world| on(world, "1.1") == 2 && granted(world) == 0).unwrap();
    let (_, report) = bascule_planner::plan(&world.snapshot);
    let said = report.nodes.iter().find(|node| *node.node == *held).unwrap();
    assert_eq!((said.wait.reason, said.wait.object.as_ref().unwrap().name.as_str()), (WaitReason::Freeze, "hold"));
    world.snapshot.freezes.clear();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_rollback_during_a_rollout() {
    let mut world = world(2, &json!({"budget": {"maxUnavailable": 2}}));
    world.until(400, |world| on(world, "1.1") == 3).unwrap();
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    let _ = world.take_story();
    world.until(600, |world| on(world, "1.0") == 6 && granted(world) == 0).unwrap();
    assert!(world.snapshot.rollbacks[0].status.completed_at.is_some(), "{:?}", world.snapshot.rollbacks[0].status);
    insta::assert_snapshot!("rollback_in_a_rollout", format!("{}{}", world.take_story(), world.shown()));
    let before = world.snapshot.policies[0].status.clone();
    assert!(before.blocked.iter().any(|block| block.version.as_str() == "1.1"));
    world.pass(600);
    world.operate_for(None).unwrap();
    for _ in 0..50 {
        assert_eq!(world.operate_for(None).unwrap(), 0, "it stays there");
        world.pass(600);
    }
}

/// The agent keeps what it left as good, set aside: with the word of a way back it would have to be kept until what was gone back to is
/// proven.
#[test]
fn what_a_rollback_left_does_not_hold_up_what_mends_it() {
    let mut world = world(1, &json!({"provenAfter": "1h", "budget": {"maxUnavailable": "100%"}}));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    for machine in world.machines.values_mut() {
        machine.keep(&build::version("1.1"));
    }
    world.policy("workers", |policy| policy.offer = build::offer(&["1.0", "1.1", "1.2"]));
    let published = world.snapshot.now;
    world.until(250, |world| on(world, "1.2") == 3 && granted(world) == 0).unwrap();
    assert!(world.snapshot.now < published.after(Duration::from_minutes(60)), "before 1.0 was proven");
}

/// On-call reads of a node that it went back, and not that it was updated.
#[test]
fn a_way_back_that_a_person_asked_for_ends_as_one() {
    let mut world = world(1, &json!({}));
    let outcomes = |world: &World| -> Vec<(DisruptionOutcome, String)> {
        let nodes = world.snapshot.nodes.iter().filter_map(|node| node.update.as_ref());
        let last = nodes.filter_map(|update| update.spec.last_disruption.as_ref());
        last.map(|last| (last.outcome, last.version.as_ref().unwrap().to_string())).collect()
    };
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(outcomes(&world), vec![(DisruptionOutcome::Committed, "1.1".to_owned()); 3]);
    world.snapshot.rollbacks.push(Arc::new(build::rollback("nic-offload", "workers", world.snapshot.now)));
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    assert_eq!(outcomes(&world), vec![(DisruptionOutcome::RolledBack, "1.0".to_owned()); 3], "{}", world.story());
}

#[test]
fn nobody_goes_back_over_a_state_version_unless_a_person_accepts_it() {
    let mut world = world(1, &json!({}));
    for machine in world.machines.values_mut() {
        machine.states.insert("1.1".parse().unwrap(), 2);
    }
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let mut rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback.clone()));
    for _ in 0..20 {
        world.operate_for(None).unwrap();
        world.pass(60);
        assert_eq!((granted(&world), on(&world, "1.1")), (0, 3), "nobody is drained for it\n{}", world.story());
    }
    let said = state("a1", &world);
    assert!(
        said.contains("StateVersion") && said.contains("state version 0, and the machine was used with 2"),
        "{said}"
    );
    rollback.name = "accepted".to_owned();
    rollback.created_at = world.snapshot.now;
    rollback.spec.accept_state = true;
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(600, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    // What was accepted is where the machine is from then on.
    let of = |update: &bascule_planner::snapshot::UpdateFacts| update.status.state_version;
    let used: Vec<_> = world.snapshot.nodes.iter().filter_map(|node| node.update.as_ref().map(of)).collect();
    assert_eq!(used, [None; 3]);
}

#[test]
fn a_release_that_failed_is_not_left_by_itself_over_a_state_version() {
    let mut world = world(1, &json!({"automaticRollback": true}));
    for machine in world.machines.values_mut() {
        machine.states.insert("1.1".parse().unwrap(), 2);
    }
    world.until(600, |world| on(world, "1.1") >= 1 && granted(world) == 0).unwrap();
    let block = bascule_api::BlockedRelease {
        version: "1.1".parse().unwrap(),
        at: world.snapshot.now,
        by: bascule_api::conditions::reason::FAILURE_THRESHOLD.to_owned(),
        reason: "it failed".to_owned(),
    };
    world.policy("workers", |policy| policy.status.blocked.push(block.clone()));
    for _ in 0..20 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(granted(&world), 0, "{}", world.story());
    assert!(world.shown().contains("StateVersion"), "{}", world.shown());
}

#[test]
fn a_way_back_to_what_no_channel_offers_is_made_permanent() {
    // 1.0 came with the installer: the operator never saw a manifest of it, and has no digest to name it by.
    let mut world = World::scripted(1, vec![build::policy("workers", &json!({}), &build::offer(&["1.1"]))]);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    world.until(400, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    assert!(world.machines.values().all(|machine| machine.is_calm()), "still on trial\n{}", world.story());
    // Long after the guard would have led them forward again.
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(on(&world, "1.0"), 3, "{}", world.story());
    let boots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    assert_eq!(boots, [2, 2, 2], "one reboot there and one back for each");
}

#[test]
fn a_way_back_to_a_version_that_was_published_anew_is_made_permanent() {
    let mut world = world(1, &json!({}));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    // What the nodes have of 1.1 is what it was first.
    let mut offer = (*build::offer(&["1.0", "1.1", "1.2"])).clone();
    let anew = build::digest_anew("1.1", 1);
    offer.releases[1].digests.insert(bascule_api::Architecture::X86_64, anew);
    let offer = Arc::new(offer);
    world.policy("workers", |policy| policy.offer = Arc::clone(&offer));
    world.until(400, |world| on(world, "1.2") == 3 && granted(world) == 0).unwrap();
    world.snapshot.rollbacks.push(Arc::new(build::rollback("nic-offload", "workers", world.snapshot.now)));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert!(world.machines.values().all(|machine| machine.is_calm()), "still on trial\n{}", world.story());
    let boots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    assert_eq!(boots, [3, 3, 3], "two reboots there and one back for each\n{}", world.story());
}

/// The other slot and the boot partition hold the first image of the version when the second is asked for.
#[test]
fn a_node_that_had_staged_what_is_published_anew_boots_the_new_image() {
    let mut world = world(1, &json!({}));
    let freeze = build::freeze("incident", world.snapshot.now, 86_400);
    world.snapshot.freezes.push(Arc::new(freeze));
    let staged = |world: &World| {
        let holds = |node: &Arc<bascule_planner::snapshot::Node>| node.update.as_ref()?.status.staged.clone();
        world.snapshot.nodes.iter().all(|node| holds(node).is_some())
    };
    world.until(200, staged).unwrap();
    let mut offer = (*build::offer(&["1.0", "1.1"])).clone();
    let anew = build::digest_anew("1.1", 1);
    offer.releases[1].digests.insert(bascule_api::Architecture::X86_64, anew.clone());
    let offer = Arc::new(offer);
    world.policy("workers", |policy| policy.offer = Arc::clone(&offer));
    // Who has to be told once more what to stage is told of the new one.
    world.delete_and_forget("a1");
    world.snapshot.freezes.clear();
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let booted = node(&world, "a1").update.as_ref().unwrap().status.booted.as_ref().unwrap();
    assert_eq!(booted.root_hash, build::root_hash(&anew), "{}", world.story());
}

/// What the node was in the middle of nobody remembers, and nothing shows it: the place is free, and no budget is broken.
#[test]
fn a_node_update_that_somebody_deletes_after_the_commit_frees_its_place() {
    let mut world = world(1, &json!({}));
    world.remember();
    let told = |world: &World| {
        world
            .snapshot
            .nodes
            .iter()
            .filter_map(|node| node.update.as_ref())
            .any(|update| update.spec.goal == bascule_api::Goal::Committed && update.spec.disruption.is_some())
    };
    world.until(400, told).unwrap();
    world.pass(10);
    assert!(world.story().contains("commits 1.1"), "{}", world.story());
    let name = world.snapshot.nodes.iter().find(|node| node.granted()).unwrap().name.to_string();
    world.delete_node_update(&name, false);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    assert_eq!(world.judged(), [], "{}", world.story());
}

/// The second drain has the number of the first, which nobody remembers, and pods of its own to move.
#[test]
fn a_drain_after_a_node_update_was_deleted_is_another_one() {
    let mut world = world(1, &json!({}));
    let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
    hold.spec.nodes = vec!["b1".to_owned(), "c1".to_owned()];
    world.snapshot.freezes.push(Arc::new(hold));
    world.with_pods(3);
    world.until(400, |world| world.evictions() == 3).unwrap();
    assert_eq!(world.running("a1"), Some(&build::version("1.0")), "{}", world.story());
    world.delete_node_update("a1", false);
    world.with_pods(3);
    world.until(400, |world| on(world, "1.1") == 1 && granted(world) == 0).unwrap();
    assert_eq!(world.evictions(), 6, "{}", world.story());
    world.operate_late(Meanwhile::Waits, |_| {}).unwrap();
}

/// The number of a grant begins anew with the NodeUpdate, and a hook's Job is known by it.
#[test]
fn a_hook_runs_anew_for_the_drain_after_a_node_update_was_deleted() {
    let hook = json!([{"name": "before", "namespace": "hooks", "timeout": "3m", "job": {"template": {}}}]);
    let mut world = world(1, &json!({"hooks": {"beforeDrain": hook}}));
    let mut hold = build::freeze("hold", world.snapshot.now, 86_400);
    hold.spec.nodes = vec!["b1".to_owned(), "c1".to_owned()];
    world.snapshot.freezes.push(Arc::new(hold));
    let runs = |world: &World| world.story().matches("RunHook a1").count();
    world.until(400, |world| runs(world) == 1).unwrap();
    // It succeeds, and nobody has noted that when the NodeUpdate goes.
    for _ in 0..4 {
        world.pass(10);
    }
    let jobs = world.snapshot.hooks.clone();
    assert_eq!(jobs.iter().map(|run| &run.state).collect::<Vec<_>>(), [&HookState::Succeeded], "{}", world.story());
    world.delete_node_update("a1", false);
    for _ in 0..120 {
        world.operate_for(None).unwrap();
        // A Job is kept for an hour, whatever became of its grant.
        let gone: Vec<_> = jobs.iter().filter(|job| !world.snapshot.hooks.contains(*job)).cloned().collect();
        world.snapshot.hooks.extend(gone);
        world.pass(10);
    }
    assert_eq!(runs(&world), 2, "{}\n{}", world.story(), world.shown());
    assert_eq!(on(&world, "1.1"), 1, "{}\n{}", world.story(), world.shown());
}

/// No repository has the first manifest any more: a node that is asked for it can't bring it, and is not to boot what it had before.
#[test]
fn what_is_published_anew_before_it_was_booted_is_asked_for_anew() {
    let mut world = world(1, &json!({"staging": {"maxConcurrent": 3}}));
    let freeze = build::freeze("incident", world.snapshot.now, 86_400);
    world.snapshot.freezes.push(Arc::new(freeze));
    let staged = |world: &World, digest: &Digest| {
        let staged =
            |node: &Arc<Node>| node.update.as_ref()?.status.staged.as_ref().map(|staged| staged.digest.clone());
        world.snapshot.nodes.iter().all(|node| staged(node).as_ref() == Some(digest))
    };
    // All but one of them have it.
    world.machines.get_mut("c1").unwrap().stage_seconds = 100_000;
    world
        .until(200, |world| node(world, "b1").update.as_ref().is_some_and(|update| update.status.staged.is_some()))
        .unwrap();
    let mut offer = (*build::offer(&["1.0", "1.1"])).clone();
    let anew = build::digest_anew("1.1", 1);
    offer.releases[1].digests.insert(bascule_api::Architecture::X86_64, anew.clone());
    let offer = Arc::new(offer);
    world.policy("workers", |policy| policy.offer = Arc::clone(&offer));
    world.machines.get_mut("c1").unwrap().stage_seconds = 60;
    world.until(400, |world| staged(world, &anew)).unwrap();
    world.snapshot.freezes.clear();
    world.until(600, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let runs = |name| node(&world, name).update.as_ref().unwrap().status.booted.as_ref().unwrap().root_hash.clone();
    assert_eq!(["a1", "b1", "c1"].map(runs), [(); 3].map(|()| build::root_hash(&anew)), "{}", world.story());
}

#[test]
fn a_way_back_whose_word_is_taken_back_too_late_is_made_permanent() {
    let mut world = world(1, &json!({}));
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    let silence = |world: &mut World, is| world.machines.values_mut().for_each(|machine| machine.silent = is);
    silence(&mut world, true);
    let rollback = build::rollback("nic-offload", "workers", world.snapshot.now);
    world.snapshot.rollbacks.push(Arc::new(rollback));
    let waited = |world: &World| {
        let drained =
            |node: &bascule_planner::snapshot::Node| node.update.as_ref()?.spec.disruption.as_ref()?.drained_at;
        world.snapshot.nodes.iter().find_map(|node| drained(node)).map(|at| world.snapshot.now.seconds_since(at))
    };
    world.until(400, |world| waited(world).is_some_and(|seconds| seconds >= 590)).unwrap();
    // The agent is there again, and reboots the machine, in the very moment in which the operator has waited long enough.
    silence(&mut world, false);
    world.pass(10);
    let _ = world.take_story();
    world.operate_for(None).unwrap();
    assert!(world.story().contains("Retract"), "{}", world.story());
    world.until(600, |world| on(world, "1.0") == 3 && granted(world) == 0).unwrap();
    assert!(world.machines.values().all(|machine| machine.is_calm()), "still on trial\n{}", world.story());
    let boots: Vec<usize> = world.machines.values().map(|machine| machine.history.len()).collect();
    assert_eq!(boots, [2, 2, 2], "one reboot there and one back for each\n{}", world.story());
}

#[test]
fn a_person_who_cordons_first_keeps_the_node() {
    let mut world = world(1, &json!({}));
    let held = |world: &mut World, cordon| {
        let node = world.snapshot.nodes.iter_mut().find(|node| &*node.name == "a1").unwrap();
        Arc::make_mut(node).cordon = cordon;
    };
    use bascule_planner::snapshot::Cordon;
    held(&mut world, Cordon::Other { by: Some("alice".to_owned()), since: None });
    for _ in 0..200 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    // The cordoned node takes the only place of the budget.
    assert_eq!(on(&world, "1.1"), 0);
    assert!(state("a1", &world).contains("Cordoned"), "{}", world.shown());
    assert!(state("b1", &world).contains("Budget"), "{}", world.shown());
    held(&mut world, Cordon::None);
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
}

#[test]
fn a_block_that_an_admin_lifts_is_in_force_again_after_further_failures() {
    let mut world = world(2, &json!({"health": {"nodeReadyTimeout": "5m"}}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let tried = |world: &World| world.machines.values().filter(|machine| !machine.history.is_empty()).count();
    world.until(300, |world| !world.snapshot.policies[0].status.blocked.is_empty() && granted(world) == 0).unwrap();
    assert_eq!(tried(&world), 1);
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.allowed_versions = vec![build::version("1.1")];
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
    });
    world.until(300, |world| tried(world) == 2 && granted(world) == 0).unwrap();
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    assert_eq!(tried(&world), 2, "one more node tried it, and it failed there too\n{}", world.story());
    assert_eq!(on(&world, "1.0"), 6);
}

/// Invariant 6 holds until a person says otherwise, for one node and once.

#[test]
fn a_node_tries_a_failed_release_again_when_a_person_says_so_and_once() {
    let mut world = world(2, &json!({"health": {"nodeReadyTimeout": "5m"}, "failureThreshold": 9}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    world
        .until(600, |world| {
            world.machines.values().all(|machine| !machine.failed_ever.is_empty()) && granted(world) == 0
        })
        .unwrap();
    let boots =
        |world: &World| -> Vec<usize> { world.machines.values().map(|machine| machine.history.len()).collect() };
    let before = boots(&world);
    let retry = |world: &mut World| {
        let at = world.snapshot.now;
        world.policy("workers", |policy| {
            let mut spec = policy.spec.as_ref().unwrap().spec.clone();
            spec.retries = vec![bascule_api::Retry { node: "a1".to_owned(), at, reason: None }];
            policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        });
    };
    retry(&mut world);
    for _ in 0..60 {
        world.operate_for(None).unwrap();
        world.pass(60);
    }
    let after = boots(&world);
    assert!(after[0] > before[0], "a1 tried it again\n{}", world.story());
    assert_eq!(after[1..], before[1..], "nobody else did");
    let once = after[0] - before[0];
    let status = &world.snapshot.policies[0].status;
    assert!(status.failures.iter().any(|failure| failure.node == "a1"), "it failed again: {:?}", status.failures);
    assert_eq!(status.retried.len(), 1);

    // The machine was repaired, and the next word is followed to the end.
    world.fates.remove("1.1");
    retry(&mut world);
    world
        .until(400, |world| world.running("a1").is_some_and(|version| version.as_str() == "1.1") && granted(world) == 0)
        .unwrap();
    assert!(boots(&world)[0] > before[0] + once);
    assert_eq!(on(&world, "1.0"), boots(&world).len() - 1);
}

/// A planner that plans on says the same as one that knows nothing, also when what it remembers has just been written.
fn agrees(planner: &mut Planner, world: &World) {
    let mut seen = world.snapshot.clone();
    let (given, report) = planner.plan(&seen);
    for step in given.steps.iter().filter(|step| step.action.node().is_none()) {
        let _ = bascule_planner::model::apply(&mut seen, step, &report);
    }
    assert_eq!(planner.plan(&seen), bascule_planner::plan(&seen), "{}", world.story());
}

#[test]
fn a_node_that_tries_again_does_not_wait_for_what_a_planner_saw_before_that() {
    let mut world = world(2, &json!({"health": {"nodeReadyTimeout": "5m"}, "failureThreshold": 9}));
    world.fates.insert("1.1".to_owned(), Fate::NeverReady);
    let all_failed = |world: &World| world.machines.values().all(|machine| !machine.failed_ever.is_empty());
    world.until(600, |world| all_failed(world) && granted(world) == 0).unwrap();
    let at = world.snapshot.now;
    world.policy("workers", |policy| {
        let mut spec = policy.spec.as_ref().unwrap().spec.clone();
        spec.retries = vec![bascule_api::Retry { node: "a1".to_owned(), at, reason: None }];
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
    });
    let mut planner = Planner::default();
    for _ in 0..20 {
        agrees(&mut planner, &world);
        world.operate_for(None).unwrap();
        world.pass(10);
    }
    assert_eq!(world.snapshot.policies[0].status.retried.len(), 1, "{}", world.story());
}
