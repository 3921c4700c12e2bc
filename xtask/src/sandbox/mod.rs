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
mod programs;
mod releases;
mod report;
mod repository;
mod snapshot;
mod story;
mod view;
mod workload;

use std::process::ExitCode;

use anyhow::Context as _;

pub(crate) use options::Options;
use story::Story;
use view::View;

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
    match runtime.block_on(play(options)) {
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
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot listen for SIGTERM")?;
    tokio::select! {
        ended = tell(options) => ended,
        _ = tokio::signal::ctrl_c() => Ok(End::Interrupted),
        _ = terminated.recv() => Ok(End::Interrupted),
    }
}

async fn tell(options: Options) -> anyhow::Result<End> {
    let view = View::new(options.plain);
    let keep = options.keep;
    let mut story = Story::prepare(options, view).await?;
    let played = acts::play(&mut story).await;
    story.view.stop();
    let broken = match &played {
        Ok(()) => None,
        Err(error) => Some(format!("{error:#}")),
    };
    let report = invariants::report(&mut story, broken).await?;
    let text = report.text();
    let json = serde_json::to_string_pretty(&report).context("cannot print the report")?;
    for (name, content) in [("report.txt", &text), ("report.json", &json)] {
        let path = story.place.file(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("\n{text}");
    println!("the report is in {}", story.place.file("report.json").display());
    if keep {
        if let Some(kubeconfig) = story.cluster.kubeconfig() {
            println!("everything is still running:\n  export KUBECONFIG={}", kubeconfig.display());
        }
        println!("end it with Ctrl-C");
        std::future::pending::<()>().await;
    }
    story.leave().await?;
    Ok(if report.good() { End::Good } else { End::Bad })
}
