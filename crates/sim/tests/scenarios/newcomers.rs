//! Nodes that join under `newNodes.hold`, as an autoscaler adds them: with the taint from their first moment. What is not
//! known of them yet does not let them go; what may take days does, and the time since they joined does in any case.

use crate::{node, on, world};
use bascule_planner::snapshot::{Offer, OfferState};
use bascule_sim::world::{World, build};
use serde_json::json;
use std::sync::Arc;

/// How long a node is held at most: 15 minutes, in seconds.
const AT_MOST: i64 = 900;

fn holding() -> World {
    let mut world = world(1, &json!({"newNodes": {"hold": true}}));
    world.until(600, |world| on(world, "1.1") == 3 && world.snapshot.nodes.iter().all(|node| !node.granted())).unwrap();
    world
}

fn held(world: &World) -> bool {
    node(world, "new").taints.hold
}

/// The seconds after its joining at which the node is let go, and the release that it runs then.
fn let_go(world: &mut World) -> (i64, String) {
    let joined = node(world, "new").created_at;
    world.until(400, |world| !held(world)).unwrap();
    (world.snapshot.now.seconds_since(joined), world.running("new").unwrap().to_string())
}

fn offers(world: &mut World, offer: Offer) {
    let offer = Arc::new(offer);
    world.policy("workers", |policy| policy.offer = Arc::clone(&offer));
}

/// Two minutes in which it is asked at each step whether the node is held still.
fn stays_held(world: &mut World) {
    let ends = world.snapshot.now.after(bascule_api::Duration::from_minutes(2));
    world
        .until(40, |world| {
            assert!(held(world), "it was let go\n{}\n{}", world.story(), world.shown());
            world.snapshot.now >= ends
        })
        .unwrap();
}

#[test]
fn what_is_not_known_yet_lets_no_new_node_go() {
    type Change = fn(&mut World);
    let unread: Change = |world| offers(world, Offer::default());
    let unreachable: Change = |world| {
        let (reason, message) = (bascule_api::conditions::reason::UNREACHABLE, "connection refused".to_owned());
        offers(world, Offer { state: OfferState::Unusable { reason, message }, ..Offer::default() });
    };
    let read: Change = |world| offers(world, (*build::offer(&["1.0", "1.1"])).clone());
    let silent: Change = |world| world.machines.get_mut("new").unwrap().silent = true;
    let speaks: Change = |world| world.machines.get_mut("new").unwrap().silent = false;
    let no_server: Change = |world| {
        let mut offer = (*build::offer(&["1.0", "1.1"])).clone();
        offer.releases.last_mut().unwrap().kubelet = Some(build::kubernetes(35));
        offers(world, offer);
        world.snapshot.api_server = None;
    };
    let server: Change = |world| world.snapshot.api_server = Some(build::kubernetes(35));
    let unlabelled: Change = |world| world.label("new", "role", None);
    let labelled: Change = |world| world.label("new", "role", Some("worker"));
    let cases: [(&str, Change, Change); 5] = [
        ("the repository has not been read", unread, read),
        ("the repository could not be reached", unreachable, read),
        ("its agent has not reported", silent, speaks),
        ("no API server has said its version", no_server, server),
        ("its labels are to come", unlabelled, labelled),
    ];
    for (what, forget, learn) in cases {
        println!("{what}");
        let mut world = holding();
        world.join("new", true);
        forget(&mut world);
        if what == "its labels are to come" {
            // Half of the time in which they do.
            world.until(6, |world| world.snapshot.now.seconds_since(node(world, "new").created_at) >= 50).unwrap();
            assert!(held(&world), "{}", world.story());
        } else {
            stays_held(&mut world);
        }
        learn(&mut world);
        let (seconds, running) = let_go(&mut world);
        assert!(running == "1.1" && seconds < AT_MOST, "{running} after {seconds} s\n{}", world.story());
    }
}

#[test]
fn a_leader_that_has_just_begun_lets_no_node_go_in_the_middle_of_its_staging() {
    let mut world = holding();
    world.join("new", true);
    world.until(60, |world| world.shown().contains("Transferring")).unwrap();
    let read = Arc::clone(&world.snapshot.policies[0].offer);
    offers(&mut world, Offer::default());
    world.operate_for(None).unwrap();
    assert!(held(&world), "{}\n{}", world.story(), world.shown());
    world.policy("workers", |policy| policy.offer = Arc::clone(&read));
    assert_eq!(let_go(&mut world).1, "1.1");
}

#[test]
fn no_node_is_held_for_longer_than_its_time() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 3] = [
        ("its agent never reports", |world| world.machines.get_mut("new").unwrap().silent = true),
        ("its staging never ends", |world| world.machines.get_mut("new").unwrap().stage_seconds = 1_000_000),
        ("the policy is not valid", |world| {
            let wrong = build::spec(&json!({"maintenanceWindows": [{"schedule": "never", "duration": "1h"}]}));
            world.policy("workers", |policy| policy.spec = bascule_planner::validate(&wrong).map(Arc::new));
        }),
    ];
    for (what, change) in cases {
        println!("{what}");
        let mut world = holding();
        world.join("new", true);
        world.until(10, |world| node(world, "new").update.is_some()).unwrap();
        change(&mut world);
        world.take_story();
        let (seconds, running) = let_go(&mut world);
        assert!((AT_MOST..AT_MOST + 30).contains(&seconds), "{seconds} s\n{}", world.story());
        assert_eq!(running, "1.0");
        let story = world.take_story();
        assert!(story.contains("Untaint new takes work before its update: it has been held for 15m"), "{story}");
    }
}

#[test]
fn what_may_take_days_lets_a_new_node_go_at_once_even_while_other_things_are_not_known() {
    let paused: fn(&mut World) = |world| {
        let spec = build::spec(&json!({"newNodes": {"hold": true}, "paused": true}));
        world.policy("workers", |policy| policy.spec = bascule_planner::validate(&spec).map(Arc::new));
    };
    let frozen: fn(&mut World) = |world| {
        let freeze = build::freeze("incident", world.snapshot.now, 86_400);
        world.snapshot.freezes.push(Arc::new(freeze));
    };
    for stop in [paused, frozen] {
        let mut world = holding();
        world.join("new", true);
        world.machines.get_mut("new").unwrap().silent = true;
        stop(&mut world);
        let (seconds, running) = let_go(&mut world);
        assert!(seconds <= 30 && running == "1.0", "{running} after {seconds} s\n{}", world.story());
    }
    // Somebody has to mend a repository whose metadata has expired, or that is not who it was.
    let mut world = holding();
    world.join("new", true);
    let (reason, message) = (bascule_api::conditions::reason::EXPIRED, "the metadata expired".to_owned());
    offers(&mut world, Offer { state: OfferState::Unusable { reason, message }, ..Offer::default() });
    let (seconds, _) = let_go(&mut world);
    assert!(seconds <= 30, "{seconds} s");
    // What no policy holds nodes for, or no policy selects for good, is let go, too.
    let mut world = holding();
    world.join("new", true);
    world.label("new", "role", None);
    let (seconds, _) = let_go(&mut world);
    assert!((120..150).contains(&seconds), "{seconds} s");
}
