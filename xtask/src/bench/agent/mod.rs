//! `cargo xtask bench agent`: what the shipped agent costs on a node, measured on the program as it is shipped.
//!
//! The agent runs in a root that holds nothing but itself and what a host would show it: a disk image with a real GPT and
//! a mounted ESP, a system bus with a logind that counts, a real API server with an audit log, and a signed repository
//! served over HTTPS. It stages a real release by its delta, is granted the reboot, comes up as a trial and is committed;
//! beside it this program reads `/proc` and the audit log.

mod host;
mod logind;
mod process;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bascule_api::NodeUpdate;
use bascule_tests::control_plane::{ControlPlane, Options as ControlPlaneOptions, apply};
use clap::Args;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::prerequisites::{self, Tool};
use crate::sandbox::{Built, CHANNEL, Repository, build_first};
use crate::workspace_root;
use host::Host;
use process::{Memory, Sampled};

/// The node, and the user that the agent's requests are counted by.
const NODE: &str = "bench";
const USER: &str = "bench-agent";
/// Longest wait for anything that the agent has to reach.
const PATIENCE: Duration = Duration::from_secs(300);
/// After this time the agent has come to rest.
const SETTLED: Duration = Duration::from_secs(30);
const TOOLS: &[Tool] = &[
    Tool { program: "dbus-daemon", package: "dbus-daemon" },
    Tool { program: "mount", package: "mount" },
    Tool { program: "chroot", package: "coreutils" },
    Tool { program: "mkfs.ext4", package: "e2fsprogs" },
];

/// How to measure.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// How many seconds to watch the idle agent.
    #[arg(long, default_value_t = 620, value_parser = clap::value_parser!(u64).range(30..=7200))]
    idle: u64,
    /// Only start the agent and watch it idle, without an update.
    #[arg(long)]
    only_idle: bool,
    /// Measure this program instead of building one.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Measures and prints the table.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    prerequisites::ensure(TOOLS)?;
    if !rustix::process::geteuid().is_root() {
        bail!("the agent is measured in a root of its own (chroot, mount): start this as root");
    }
    bascule_tests::install_tls_provider();
    let agent = match &options.agent {
        Some(file) => file.clone(),
        None => {
            eprintln!("building the agent as it is shipped");
            crate::shipped::agent(crate::shipped::own_architecture()?)?
        }
    };
    let size = fs::metadata(&agent).with_context(|| format!("reading {}", agent.display()))?.len();
    let place = workspace_root().join("target/agent-bench");
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("removing {}", place.display()))?;
    }
    fs::create_dir_all(&place)?;
    let mut rows = vec![row("size of the program, stripped", "16 MB", &format!("{:.1} MB", megabytes(size)))];
    rows.push(row("runs in an empty root", "yes", &empty_root(&agent, &place.join("empty"))?));
    let runtime = tokio::runtime::Runtime::new()?;
    let idle = Duration::from_secs(options.idle);
    rows.extend(runtime.block_on(measure(&agent, &place, idle, options.only_idle))?);
    println!("| what | target | measured |\n|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

fn row(what: &str, target: &str, measured: &str) -> String {
    format!("| {what} | {target} | {measured} |")
}

#[allow(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Starts the program where there is nothing else, not even a loader.
fn empty_root(agent: &Path, root: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(root)?;
    fs::copy(agent, root.join("bascule-agent"))?;
    let inside = |argument: &str| {
        Command::new("chroot").arg(root).args(["/bascule-agent", argument]).output().context("starting chroot")
    };
    let version = inside("--version")?;
    if !version.status.success() {
        bail!("in an empty root it fails ({}): {}", version.status, String::from_utf8_lossy(&version.stderr));
    }
    let status = inside("status")?;
    let said = String::from_utf8_lossy(&status.stderr).trim().to_owned();
    // Nothing to be an agent of, which is exit code 4 and a sentence.
    if status.status.code() != Some(4) || said.is_empty() {
        bail!("`status` in an empty root ended with {}: {said}", status.status);
    }
    Ok(format!("{}; `status` there: code 4, \"{said}\"", String::from_utf8_lossy(&version.stdout).trim()))
}

/// Everything that needs the machine, the cluster and the repository.
async fn measure(agent: &Path, place: &Path, idle: Duration, only_idle: bool) -> anyhow::Result<Vec<String>> {
    let say = |sentence: &str| eprintln!("{sentence}");
    let count = if only_idle { 1 } else { 2 };
    let built = tokio::task::spawn_blocking(move || build_first(count, &say)).await??;
    let old = built.first().context("no release was built")?.clone();
    let repository = Repository::open(&place.join("vendor"), None, built.clone()).await?;
    for release in &built {
        repository.publish(&release.version).await?;
    }
    let cluster = ControlPlane::start_telling(ControlPlaneOptions::default(), say).await?;
    let credentials = cluster.user(USER, &["system:masters"])?;
    let objects = objects(&cluster, &old, &repository).await?;
    let mut host = Host::install(agent, &place.join("root"), &old, &repository, &credentials).await?;

    eprintln!("the agent starts");
    let began = Instant::now();
    host.start_agent(place)?;
    let seen =
        wait(&objects, host.log(), "its first report", |found| booted(found) == Some(old.version.as_str())).await?;
    let first_report = began.elapsed();
    let boot_id = seen.status.and_then(|status| status.boot_id).context("the agent reported no boot ID")?;
    let mut rows = vec![row("start to first report", "-", &milliseconds(first_report))];
    rows.extend(idle_rows(&host, &cluster, idle).await?);
    let Some(new) = built.get(1) else { return Ok(rows) };

    eprintln!("staging {} by its delta", new.version);
    let sent = repository.packs_sent();
    process::reset_peak(host.pid()?)?;
    let began = Instant::now();
    tell(&objects, json!({"goal": "Staged", "release": named(new, &repository)?})).await?;
    wait(&objects, host.log(), "the staged release", |found| staged(found) == Some(new.version.as_str())).await?;
    let took = began.elapsed();
    let memory = Memory::read(host.pid()?)?;
    let moved = megabytes(repository.packs_sent() - sent);
    let whole = megabytes(new.full_bytes);
    let image = megabytes(fs::metadata(&new.root)?.len());
    let what = format!("staging an image of {image:.0} MB by {moved:.1} MB ({whole:.1} MB whole): peak RSS");
    rows.push(row(&what, "48 MiB", &memory.peak()));
    rows.push(row("the same: time, lowest priority", "-", &milliseconds(took)));
    sleep(SETTLED).await;
    rows.push(row("RSS idle after a transfer", "12 MiB", &Memory::read(host.pid()?)?.now()));

    eprintln!("granting the reboot");
    let grant = json!({"bootID": boot_id, "generation": 1});
    let disruption = json!({
        "grantedAt": "2026-01-01T00:00:00Z",
        "wasCordoned": false,
        "cause": {"object": {"kind": "UpdatePolicy", "name": "bench"}},
    });
    // The drain has begun: the agent reads the staged slot again now, as in a cluster, and is ready when the grant comes.
    tell(&objects, json!({"disruption": disruption})).await?;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    tell(&objects, json!({"goal": "Booted", "grant": grant})).await?;
    let asked = timeout(PATIENCE, host.reboot_asked()).await.context("the agent asked for no reboot")??;
    rows.push(row("grant to reboot call", "1 s", &milliseconds(asked.saturating_duration_since(began))));

    eprintln!("the machine boots {} as a trial", new.version);
    host.reboot_into(new, place).await?;
    wait(&objects, host.log(), "the trial", |found| booted(found) == Some(new.version.as_str())).await?;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    tell(&objects, json!({"goal": "Committed"})).await?;
    wait(&objects, host.log(), "the commit", is_committed).await?;
    rows.push(row("word to commit → committed and reported", "2 s", &milliseconds(began.elapsed())));
    if host.entries()?.iter().any(|entry| entry.contains('+')) {
        bail!("a boot entry still has a counter: {:?}", host.entries()?);
    }
    sleep(SETTLED).await;
    rows.push(row("RSS idle after a commit", "12 MiB", &Memory::read(host.pid()?)?.now()));
    Ok(rows)
}

/// Watches the agent doing nothing.
async fn idle_rows(host: &Host, cluster: &ControlPlane, idle: Duration) -> anyhow::Result<Vec<String>> {
    // What the start left to do is over by then.
    sleep(SETTLED).await;
    let asked = |cluster: &ControlPlane| -> anyhow::Result<Vec<String>> {
        let requests = cluster.requests()?;
        let own = requests.iter().filter(|request| request.user == USER);
        Ok(own.map(|request| format!("{} {}", request.verb, request.resource)).collect())
    };
    let before = asked(cluster)?;
    eprintln!("watching it idle for {} s (requests so far: {})", idle.as_secs(), before.join(", "));
    let sampled = Sampled::watch(host.pid()?, idle).await?;
    let after = asked(cluster)?;
    let requests = after.get(before.len()..).unwrap_or_default();
    let memory = Memory::read(host.pid()?)?;
    let seconds = idle.as_secs();
    let told = if requests.is_empty() { "none".to_owned() } else { requests.join(", ") };
    Ok(vec![
        row("RSS idle before the first transfer", "12 MiB", &memory.now()),
        row(&format!("wake-ups in {seconds} s idle"), "one every 30 s", &sampled.often(seconds)),
        row("from one wake-up to the next", "30 s", &sampled.gaps()),
        row("wake-ups by the threads that woke", "-", &sampled.by_threads()),
        row("longest wait of systemd's watchdog", &format!("{} s", host.patience().as_secs()), &host.watchdog_told()),
        row(&format!("requests to the API server in {seconds} s idle"), "renewals of the watch", &told),
        row("processor time while idle", "-", &format!("{} ms", sampled.processor_ms)),
        row("threads", "-", &sampled.threads.join(", ")),
    ])
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// The Node and its NodeUpdate, as the operator would have made them.
async fn objects(cluster: &ControlPlane, old: &Built, repository: &Repository) -> anyhow::Result<Api<NodeUpdate>> {
    let client: Client = cluster.client().await?;
    let path = workspace_root().join("manifests/crds/nodeupdates.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    apply(client.clone(), &text).await?;
    let api: Api<NodeUpdate> = Api::all(client);
    let object = json!({
        "apiVersion": "bascule.dev/v1alpha1",
        "kind": "NodeUpdate",
        "metadata": {"name": NODE},
        "spec": {"policy": "bench", "goal": "Idle", "release": named(old, repository)?},
    });
    let began = Instant::now();
    // A definition is served a moment after it was accepted.
    loop {
        match api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await {
            Ok(_) => return Ok(api),
            Err(error) if began.elapsed() > Duration::from_secs(30) => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

fn named(release: &Built, repository: &Repository) -> anyhow::Result<Value> {
    let digest = release.digest()?;
    Ok(json!({"version": release.version, "digest": digest, "repository": repository.url(), "channel": CHANNEL}))
}

/// Says the operator's word.
async fn tell(objects: &Api<NodeUpdate>, spec: Value) -> anyhow::Result<()> {
    objects.patch(NODE, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
    Ok(())
}

/// Waits until the agent's report is as wanted.
async fn wait(
    objects: &Api<NodeUpdate>,
    log: PathBuf,
    what: &str,
    wanted: impl Fn(&NodeUpdate) -> bool,
) -> anyhow::Result<NodeUpdate> {
    let condition = |found: Option<&NodeUpdate>| found.is_some_and(&wanted);
    match timeout(PATIENCE, await_condition(objects.clone(), NODE, condition)).await {
        Ok(found) => found?.context("the NodeUpdate is gone"),
        Err(_) => {
            let found = objects.get(NODE).await?;
            let error = found.status.and_then(|status| status.last_error).map(|error| error.message);
            bail!("waited in vain for {what}; last error: {error:?}; the agent's log: {}", log.display())
        }
    }
}

fn booted(found: &NodeUpdate) -> Option<&str> {
    Some(found.status.as_ref()?.booted.as_ref()?.version.as_str())
}

fn staged(found: &NodeUpdate) -> Option<&str> {
    Some(found.status.as_ref()?.staged.as_ref()?.version.as_str())
}

fn is_committed(found: &NodeUpdate) -> bool {
    let status = found.status.as_ref();
    let committed = status.and_then(|status| status.booted.as_ref()).and_then(|booted| booted.committed_at.as_ref());
    committed.is_some() && status.is_some_and(|status| status.trial.is_none())
}
