//! Hooks around a whole rollout, whatever its end.

use crate::{granted, on, world};
use bascule_sim::world::World;
use serde_json::json;

#[test]
fn hooks_around_a_rollout_run_before_the_first_node_and_after_the_last_and_when_a_window_closes() {
    let hook = |name: &str| json!([{"name": name, "namespace": "ceph", "job": {"template": {}}}]);
    let fields = json!({
        "hooks": {"beforeRollout": hook("set-noout"), "afterRollout": hook("unset-noout")},
        "maintenanceWindows": [{"schedule": "0 12 * * *", "duration": "14m"}]
    });
    let mut world = world(4, &fields);
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    use bascule_planner::snapshot::{
        HookStage::{AfterRollout, BeforeRollout},
        HookState::Kept,
    };
    let of = |world: &World, stage| {
        world.snapshot.hooks.iter().filter(|run| run.stage == stage).cloned().collect::<Vec<_>>()
    };
    let ran = |world: &World, stage| of(world, stage).iter().filter(|run| run.state != Kept).count();
    // Announced, and nobody is touched before the hook is done.
    world.until(200, |world| open(world).is_some()).unwrap();
    let planned = &world.snapshot.policies[0].status.conditions;
    assert!(bascule_api::conditions::is_true(planned, bascule_api::conditions::MAINTENANCE_PLANNED));
    // Before anything is done, what undoes it stands where it outlives the policy.
    world.until(200, |world| ran(world, BeforeRollout) == 1).unwrap();
    let kept = |world: &World| {
        let kept = of(world, AfterRollout).into_iter().filter(|run| run.state == Kept);
        kept.map(|run| run.hook).collect::<Vec<_>>()
    };
    assert_eq!(kept(&world), ["unset-noout"]);
    // Somebody deletes it: nobody is touched before it is there again, and whoever waits reads so.
    world.pass(30);
    world.snapshot.hooks.retain(|run| run.stage != AfterRollout);
    let (_, report) = bascule_planner::plan(&world.snapshot);
    let reads = |part: &str| report.nodes.iter().any(|said| said.wait.message.contains(part));
    assert!(reads("are there: unset-noout") && !reads("have not succeeded yet"), "{}", world.shown());
    world.operate_for(None).unwrap();
    assert_eq!((kept(&world), granted(&world)), (vec!["unset-noout".to_owned()], 0));
    world.until(200, |world| granted(world) > 0).unwrap();
    assert!(open(&world).unwrap().begun_at.is_some());
    assert_eq!((ran(&world, BeforeRollout), ran(&world, AfterRollout)), (1, 0));
    // The window closes half way: the hook after it runs all the same.
    world.until(400, |world| open(world).is_none()).unwrap();
    assert!((1..12).contains(&on(&world, "1.1")), "{}", world.shown());
    assert_eq!((ran(&world, BeforeRollout), ran(&world, AfterRollout)), (1, 1));
    // The next days the rest goes, with hooks around it.
    for _ in 0..5 {
        if on(&world, "1.1") == 12 {
            break;
        }
        world.pass(85_000);
        world.until(400, |world| open(world).is_some()).unwrap();
        world.until(400, |world| open(world).is_none()).unwrap();
    }
    assert_eq!((on(&world, "1.1"), granted(&world)), (12, 0), "{}", world.shown());
    assert_eq!(ran(&world, BeforeRollout), ran(&world, AfterRollout));
}

#[test]
fn a_hook_after_the_last_node_that_fails_is_told_although_nobody_waits_for_it() {
    let hook = |name: &str| json!([{"name": name, "namespace": "ceph", "job": {"template": {}}}]);
    let mut world = world(1, &json!({"hooks": {"afterRollout": hook("unset-noout")}}));
    let open = |world: &World| world.snapshot.policies[0].status.maintenance.clone();
    world.until(400, |world| on(world, "1.1") == 3 && granted(world) == 0).unwrap();
    world.fail_hooks(true);
    world.until(100, |world| open(world).is_some_and(|open| open.failed.is_some())).unwrap();
    let condition = |world: &World| {
        let status = &world.snapshot.policies[0].status;
        bascule_api::conditions::get(&status.conditions, bascule_api::conditions::MAINTENANCE_PLANNED).cloned().unwrap()
    };
    let told = condition(&world);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", "HookFailed"));
    assert!(told.message.contains("unset-noout failed") && told.message.contains("delete the Job"), "{}", told.message);
    // It stays so, and costs nothing: what was told is not told anew.
    for _ in 0..20 {
        world.operate_for(None).unwrap();
        world.pass(30);
    }
    assert_eq!(condition(&world), told);
    // A person repairs it and deletes the Job: it runs once more, and the maintenance is over.
    world.fail_hooks(false);
    world.until(100, |world| open(world).is_none()).unwrap();
    assert_eq!(condition(&world).status, "False");
}

#[test]
fn what_fits_a_window_only_just_goes_when_its_gates_have_answered() {
    let hook = json!([{"name": "set-noout", "namespace": "ceph", "timeout": "3m", "job": {"template": {}}}]);
    let fields = json!({
        "hooks": {"beforeRollout": hook},
        "maintenanceWindows": [{"schedule": "30 12-20 * * *", "duration": "25m"}],
        "health": {
            "prometheus": "https://prometheus.example.com",
            "gates": [{"name": "alerts", "promQL": {"query": "max(ALERTS)", "equals": 0}}]
        }
    });
    let mut world = world(1, &fields);
    // 1,195 s, with the hooks and the time until the first node 1,495 s of 1,500 s: the answer comes ten seconds later.
    world.policy("workers", |policy| {
        policy.status.timings.drain_seconds = Some(100);
        policy.status.timings.boot_seconds = Some(1_095);
    });
    world.until(400, |world| on(world, "1.1") > 0).unwrap();
}
