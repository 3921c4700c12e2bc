//! `cargo xtask sandbox`: the whole way from an empty machine to a fleet that patches itself, on real parts.

mod acts;
mod cluster;
mod disks;
mod invariants;
mod killing;
mod machines;
mod observe;
mod oncall;
mod options;
mod place;
mod pods;
mod probes;
mod programs;
mod releases;
mod report;
mod repository;
mod snapshot;
mod story;
mod view;
mod workload;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use disks::write_disk;
pub(crate) use options::Options;
pub(crate) use releases::{Built, CHANNEL, build_first};
pub(crate) use repository::Repository;
use story::{Stage, Story};
use view::View;

/// How long what still runs in the background after the story is waited for.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// How the story ended.
enum End {
    /// Every invariant held.
    Good,
    /// The report says what did not hold.
    Bad,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

/// Runs the story; everything it started is gone when this returns.
pub(crate) fn run(options: Options) -> ExitCode {
    bascule_tests::install_tls_provider();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let played = runtime.block_on(play(options));
    // Where it was interrupted while a release was built, the thread that builds is not waited for; what lies half built
    // goes with the next start.
    bascule_os_image::end_tools();
    runtime.shutdown_timeout(AFTERWARDS);
    match played {
        Ok(End::Good) => ExitCode::SUCCESS,
        Ok(End::Bad) => ExitCode::FAILURE,
        Ok(End::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(options: Options) -> anyhow::Result<End> {
    let mut stop = Stop::listen()?;
    let (view, keep) = (View::new(options.plain), options.keep);
    let stage = tokio::select! {
        stage = Stage::prepare(options, view) => stage?,
        () = stop.asked() => return Ok(End::Interrupted),
    };
    let mut story = Story::set(stage).await?;
    let end = tokio::select! {
        end = tell(&mut story) => end,
        () = stop.asked() => Ok(End::Interrupted),
    };
    if keep && !matches!(end, Ok(End::Interrupted)) {
        println!("everything is still running. In another terminal, as on call:");
        println!("  {}", story.on_call.shell());
        println!("  bascule status");
        if let Some(kubeconfig) = story.cluster.kubeconfig() {
            println!("as the cluster's admin:\n  export KUBECONFIG={}", kubeconfig.display());
        }
        println!("end it with Ctrl-C");
        stop.asked().await;
    }
    story.leave().await.context("the cluster still holds objects of the sandbox; the next run takes them out")?;
    end
}

/// Ctrl-C and SIGTERM. One that comes while nobody waits for it is kept.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn tell(story: &mut Story) -> anyhow::Result<End> {
    let played = acts::play(story).await;
    story.view.stop();
    let broken = match &played {
        Ok(()) => None,
        Err(error) => Some(format!("{error:#}")),
    };
    let report = invariants::report(story, broken).await?;
    let text = report.text();
    let json = serde_json::to_string_pretty(&report).context("cannot print the report")?;
    let typed = story.on_call.transcript();
    for (name, content) in [("report.txt", &text), ("report.json", &json), ("transcript.txt", &typed)] {
        let path = story.place.file(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(page) = story.on_call.page(&invariants::setting(story)) {
        let path = story.place.file("on-call.md");
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("\n{text}");
    println!("the report is in {}", story.place.file("report.json").display());
    Ok(if report.good() { End::Good } else { End::Bad })
}
