//! What the operator costs at scale: a real control plane, nodes and pods that KWOK plays, agents that do at once what
//! they are told, and the operator as a process of its own. `cargo xtask bench operator` runs it; docs/benchmarks.md has
//! what was measured. No test: a slow machine breaks nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

mod agents;
mod cluster;
mod lateness;
mod measure;

use bascule_api::UpdatePolicy;
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::kwok::{Kwok, Pace};
use clap::Parser;
use kube::Api;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The size of the cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes, in waves of a tenth.
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Pods on each node, on average.
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// Seconds of quiet that are watched after the rollout.
    #[arg(long, default_value_t = 3_600)]
    quiet: u64,
    /// Seconds of a freeze of everything, when a fifth of the nodes are done. Whoever waits then waits for another reason.
    #[arg(long, default_value_t = 0)]
    freeze: u64,
    /// Roll out to a tenth of the nodes only, then let a second replica come and take over from the first: what a start, a follower and a
    /// restart cost, where a whole rollout is more than the machine has time for.
    #[arg(long, conflicts_with = "freeze")]
    tenth: bool,
    /// Seconds after which a phase that does not end is given up.
    #[arg(long, default_value_t = 3_600)]
    patience: u64,
    /// The operator's program.
    #[arg(long, value_name = "FILE")]
    operator: PathBuf,
}

/// Kubelets renew their Leases every ten seconds; here it is every forty for each thousand of nodes, since all nodes share the operator's
/// processors.
const LEASE: Duration = Duration::from_secs(160);

/// How often what was written in the quiet is told, in seconds.
const LOOK: u64 = 300;

/// How long series of events and the last explanations take at most.
const SETTLES: Duration = Duration::from_secs(60);

/// For how long autoscalers are asked to leave a node alone after its update (docs/policies.md); then that is taken back.
const TRUCE: Duration = Duration::from_secs(11 * 60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments = Arguments::parse();
    let patience = Duration::from_secs(arguments.patience);
    bascule_tests::install_tls_provider();
    let lease = LEASE * u32::try_from(arguments.nodes.div_ceil(1_000)).unwrap();
    let control_plane =
        ControlPlane::start(Options { node_monitor_grace: 5 * lease / 4, ..Options::default() }).await.unwrap();
    let client = control_plane.client().await.unwrap();
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    let (vendor, server) = bascule::repository().await;
    bascule::trust(&client, &vendor).await;
    let _kwok = Kwok::start(&control_plane, &Pace { lease, ..Pace::default() }).await.unwrap();

    let begun = Instant::now();
    cluster::add_nodes(&client, arguments.nodes).await;
    cluster::add_pods(&control_plane, &client, arguments.nodes * arguments.pods, patience).await;
    println!(
        "{} nodes and {} pods are up after {:.0} s",
        arguments.nodes,
        arguments.nodes * arguments.pods,
        begun.elapsed().as_secs_f64()
    );

    let mut operator = cluster::start_operator("bench", &arguments.operator, &control_plane, &server).await;
    let agents = agents::Agents::start(client.clone());
    let policies: Api<UpdatePolicy> = Api::all(client.clone());
    let lateness = lateness::Lateness::start(client.clone(), operator.listen());

    // One node without pods, alone: what the operator itself adds to its way.
    let before = control_plane.requests().unwrap().len();
    cluster::policy(&policies, "probe", "probe", &server).await;
    cluster::until_all_run("1.0", &policies, "probe", 1, patience).await;
    cluster::release(&policies, "probe").await;
    cluster::until_all_run("1.1", &policies, "probe", 1, patience).await;
    let alone = agents.overheads_of(1, SETTLES).await;
    println!("one empty node alone, from the grant until it is free: {:.2} s", alone[0]);

    // Nodes are enrolled once in their life; what an update costs is counted from there.
    let begun = Instant::now();
    cluster::policy(&policies, "workers", "worker", &server).await;
    cluster::until_all_run("1.0", &policies, "workers", arguments.nodes, patience).await;
    println!("{} nodes are enrolled after {:.0} s", arguments.nodes, begun.elapsed().as_secs_f64());
    // A rollout over thousands of nodes may be more than a machine has time for.
    measure::memory("all enrolled", operator.pid());
    tokio::time::sleep(SETTLES).await;
    let enrolled = control_plane.requests().unwrap().len();
    measure::writes("its enrolment", &control_plane.requests().unwrap()[before..enrolled], |_| true);

    let (begun, processor, released) = (Instant::now(), measure::Processor::now(), chrono::Utc::now());
    cluster::release(&policies, "workers").await;
    if arguments.freeze > 0 {
        cluster::until_run("1.1", &policies, "workers", (arguments.nodes / 5, false), patience).await;
        lateness.tell("the first fifth of the rollout");
        cluster::freeze(&client, arguments.freeze).await;
        tokio::time::sleep(Duration::from_secs(arguments.freeze)).await;
        lateness.tell("under a freeze");
    }
    if arguments.tenth {
        cluster::until_run("1.1", &policies, "workers", (arguments.nodes.div_ceil(10), false), patience).await;
        cluster::pause(&policies, "workers", patience).await;
    } else {
        cluster::until_all_run("1.1", &policies, "workers", arguments.nodes, patience).await;
    }
    let (took, updated) = (begun.elapsed(), cluster::that_run("1.1", &client).await);
    println!(
        "rollout over {} of {} nodes in waves of a tenth, a tenth at once: {:.0} s",
        updated.len(),
        arguments.nodes,
        took.as_secs_f64()
    );

    processor.used("the rollout");

    // What was under way (series of events, the last statuses) ends within a minute; then nothing may be written.
    tokio::time::sleep(SETTLES).await;
    let requests = control_plane.requests().unwrap();
    measure::writes("its whole update", &requests[enrolled..], |node| updated.contains(node));
    measure::first_writes(released, &requests[enrolled..]);
    measure::explanations(&agents.explanations());
    lateness.tell("the rollout");
    measure::overheads("each node of the rollout, drain apart", &agents.overheads_of(updated.len(), SETTLES).await);
    measure::memory("the rollout done", operator.pid());
    measure::reaction(&operator.metrics().await);
    if arguments.tenth {
        let second = cluster::start_operator("second", &arguments.operator, &control_plane, &server).await;
        second.until_ready(patience).await;
        tokio::time::sleep(SETTLES).await;
        measure::memory("a follower that has just started", second.pid());
        operator = second; // the first is killed by that
        operator.until_it_leads(patience).await;
        tokio::time::sleep(SETTLES).await;
        measure::memory("the same, leading", operator.pid());
    }

    if arguments.quiet == 0 {
        return;
    }
    tokio::time::sleep(TRUCE).await;
    let requests = control_plane.requests().unwrap();
    let settled = requests.len();
    let all = "its whole update, the end of the truce with autoscalers included";
    measure::writes(all, &requests[enrolled..], |node| updated.contains(node));
    let processor = measure::Processor::now();
    // Told in between: an hour is long, and what was seen until it is broken off counts too.
    let mut seen = 0;
    while seen < arguments.quiet {
        let step = LOOK.min(arguments.quiet - seen);
        tokio::time::sleep(Duration::from_secs(step)).await;
        seen += step;
        measure::quiet(&control_plane.requests().unwrap()[settled..], seen);
    }
    processor.used("quiet");
    measure::memory("at the end", operator.pid());
}
