//! How long a rollout over 5,000 simulated machines takes, against the least that its budget allows:
//! `cargo bench -p bascule-sim --bench makespan`. The real planner plans every second of the world; machines boot in 120
//! to 180 seconds each, by their seed. No test: a slow machine breaks nothing.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use bascule_sim::world::{World, build};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const NODES: usize = 5_001;
const AT_ONCE: usize = 500;

fn main() {
    let fields = json!({"budget": {"maxUnavailable": AT_ONCE}, "staging": {"maxConcurrent": "100%"}});
    let mut world = World::scripted(NODES / 3, vec![build::policy("workers", &fields, &build::offer(&["1.0"]))]);
    world.with_pods(3);
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut boots = 0_i64;
    for machine in world.machines.values_mut() {
        machine.boot_seconds = random.random_range(120..=180);
        machine.stage_seconds = 60;
        boots += machine.boot_seconds;
    }
    let offers = |versions: &'static [&'static str]| {
        let offer = build::offer(versions);
        move |policy: &mut bascule_planner::snapshot::PolicyFacts| policy.offer = std::sync::Arc::clone(&offer)
    };
    live(&mut world, 5);
    world.policy("workers", offers(&["1.0", "1.1"]));
    // Staging runs ahead of any window; what is measured begins with the first grant.
    while !world.snapshot.nodes.iter().any(|node| node.granted()) {
        live(&mut world, 1);
    }
    let began = world.snapshot.now;
    let mut most = 0;
    loop {
        live(&mut world, 1);
        let moving = world.snapshot.nodes.iter().filter(|node| node.granted()).count();
        most = most.max(moving);
        let done = world.machines.keys().all(|name| world.running(name).is_some_and(|it| it.as_str() == "1.1"));
        if done && moving == 0 {
            break;
        }
    }
    let took = world.snapshot.now.seconds_since(began);
    let bound = boots as f64 / AT_ONCE as f64;
    println!(
        "{NODES} machines, at most {most} at once (budget {AT_ONCE}), boots of 120 to 180 s: makespan {took} s, lower bound {bound:.0} s, ratio {:.3}",
        took as f64 / bound
    );
}

/// Seconds pass one by one, with the operator at work in each.
fn live(world: &mut World, seconds: usize) {
    for _ in 0..seconds {
        for _ in 0..4 {
            if world.operate_for(None).unwrap() == 0 {
                break;
            }
        }
        world.pass(1);
    }
}
