//! What people wait for in a large cluster: the live report through a real API server, `bascule status`, and the dashboard with what it
//! costs the operator. `cargo xtask bench people` runs it; docs/benchmarks.md has what was measured. No test: a slow
//! machine breaks nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a benchmark"
)]

#[path = "../tests/cluster/facts.rs"]
mod facts;

use bascule_dashboard::Dashboard;
use bascule_operator::clock::Clock;
use bascule_operator::gather::{Assembler, Outside};
use bascule_operator::health::Heard;
use bascule_operator::live::{Live, Planned};
use bascule_operator::metrics::Metrics;
use bascule_operator::server::{Readiness, serve};
use bascule_planner::{Planner, Report, Snapshot, snapshot::Offer};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Options};
use clap::Parser;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// The size of the cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes.
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    /// Readers of the dashboard at once.
    #[arg(long, default_value_t = 10)]
    readers: usize,
    /// How often each thing is asked for.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The command line tool's program.
    #[arg(long, value_name = "FILE")]
    bascule: PathBuf,
    /// Only read the dashboard there, and say what came. Used by the example itself.
    #[arg(long, hide = true)]
    read: Option<String>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments = Arguments::parse();
    if let Some(address) = &arguments.read {
        return read(address, arguments.readers).await;
    }
    bascule_tests::install_tls_provider();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let folder = tempfile::tempdir().unwrap();

    let facts = facts::facts(arguments.nodes);
    let now = bascule_api::Time::new(chrono::Utc::now());
    let (first, report) = plan(&facts, now);
    let live = Live::default();
    let gates = Heard::new(Clock::system());
    let planned = |snapshot: &Arc<Snapshot>, report: &Arc<Report>| Planned {
        snapshot: Arc::clone(snapshot),
        report: Arc::clone(report),
        world: facts.clone(),
        identity: Arc::from("large"),
        gates: gates.clone(),
    };
    live.planned(planned(&first, &report));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(listener, Metrics::new(), Readiness::default(), live.clone()));
    bascule::operator_pod(&client, "large", &listen).await;
    lease(&client).await;

    println!("{} nodes", arguments.nodes);
    // Before anybody asks: what is made for the first answer stays, and serving it is what is measured.
    let before = memory("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    control_plane.admin().write_to(&kubeconfig).unwrap();
    for round in 0..arguments.rounds {
        let (took, bytes) = ask(&client).await;
        println!("round {round}: report through the API server: {} ms, {bytes} bytes", took.as_millis());
    }
    for (name, command) in [("status", &["status"][..]), ("status -o wide", &["status", "-o", "wide"])] {
        for round in 0..arguments.rounds {
            let begun = Instant::now();
            let output = tokio::process::Command::new(&arguments.bascule)
                .args(command)
                .env("KUBECONFIG", &kubeconfig)
                .output()
                .await
                .unwrap();
            let took = begun.elapsed();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && !said.contains("not live"), "{said}");
            println!("round {round}: bascule {name}: {} ms, {} bytes shown", took.as_millis(), said.len());
        }
    }

    // What the page costs this process, which holds what an operator holds.
    let dashboard = Dashboard::new(live.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(bascule_dashboard::serve(listener, dashboard.router("")));
    let mut reader = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--bascule", "-", "--read", &address, "--readers", &arguments.readers.to_string()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Plans as they come while much happens: twice a second, some nodes of each another than before.
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut next = Report::clone(&report);
        for index in 0..20 {
            let place = (round * 20 + index) % next.nodes.len();
            next.nodes[place].state = bascule_api::RolloutState::Draining;
        }
        round += 1;
        live.planned(planned(&first, &Arc::new(next)));
    }
    let (after, peak) = (memory("VmRSS"), memory("VmHWM"));
    drop(reader.stdin.take());
    reader.wait().await.unwrap();
    println!(
        "report, status, and dashboard with {} readers and {round} plans in 30 s: resident {before} KiB before all of it, {after} KiB with them (+{} KiB), {peak} KiB at most (+{} KiB)",
        arguments.readers,
        after.saturating_sub(before),
        peak.saturating_sub(before),
    );
}

fn plan(facts: &bascule_operator::gather::Caches, now: bascule_api::Time) -> (Arc<Snapshot>, Arc<Report>) {
    let drains = Default::default();
    let outside = Outside {
        now,
        seed: 1,
        offer: &|_| Arc::new(Offer::default()),
        gates: Vec::new(),
        drains: &drains,
        ceiling: None,
        operator_node: None,
        own_pod: None,
        refused: Default::default(),
        writes: Default::default(),
    };
    let snapshot = Assembler::default().assemble(facts, outside);
    let (_, report) = Planner::default().plan(&snapshot);
    (Arc::new(snapshot), Arc::new(report))
}

/// Who leads, as the operator's election writes it.
async fn lease(client: &Client) {
    let lease = json!({"metadata": {"name": bascule_api::OPERATOR_LEASE},
        "spec": {"holderIdentity": "large", "leaseDurationSeconds": 3600, "renewTime": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)}});
    let lease: k8s_openapi::api::coordination::v1::Lease = serde_json::from_value(lease).unwrap();
    Api::namespaced(client.clone(), "bascule-system").create(&PostParams::default(), &lease).await.unwrap();
}

async fn ask(client: &Client) -> (Duration, usize) {
    let path = "/api/v1/namespaces/bascule-system/pods/large/proxy/report";
    let begun = Instant::now();
    let text = client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    (begun.elapsed(), text.len())
}

/// A line of proc(5), `status`, in KiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(':')).unwrap();
    found.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Reads as so many browsers do until stdin ends; says what came to one of them.
async fn read(address: &str, readers: usize) {
    let changes = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..readers {
        let (address, changes) = (address.to_owned(), Arc::clone(&changes));
        tasks.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let (begun, mut buffer, mut first, mut told) = (Instant::now(), vec![0; 1 << 20], Vec::new(), false);
            loop {
                let read = stream.read(&mut buffer).await.unwrap_or_default();
                if read == 0 {
                    return;
                }
                if told {
                    changes.fetch_add(if number == 0 { read } else { 0 }, Ordering::Relaxed);
                    continue;
                }
                first.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&first);
                told = text.split_once("event: whole").is_some_and(|(_, rest)| rest.contains("\n\n"));
                if told && number == 0 {
                    println!(
                        "dashboard: the whole fleet after {} ms, {} bytes",
                        begun.elapsed().as_millis(),
                        first.len()
                    );
                }
            }
        });
    }
    let mut stdin = Vec::new();
    let _ = tokio::io::stdin().read_to_end(&mut stdin).await;
    println!("dashboard: {} bytes of changes for one reader afterwards", changes.load(Ordering::Relaxed));
    tasks.shutdown().await;
}
