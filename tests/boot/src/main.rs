//! Runs the boot tests: `cargo xtask boot -- --help`.

use std::path::Path;
use std::process::ExitCode;

use bascule_boot_tests::arguments::{Arguments, Inner};
use bascule_boot_tests::{example, programs, relay, runner, say};
use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    let done = match arguments.inner {
        Some(Inner::Build) => build(workspace, arguments).map(|()| true),
        Some(Inner::Example { step }) => step_of_the_example(workspace, step).map(|()| true),
        Some(Inner::Relay { port }) => relay::run(port).map(|()| true).map_err(Into::into),
        None => run(workspace, arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all scenarios passed.
fn run(workspace: &Path, arguments: Arguments) -> anyhow::Result<bool> {
    runtime()?.block_on(runner::run(workspace, arguments.wanted()))
}

fn step_of_the_example(workspace: &Path, step: example::Step) -> anyhow::Result<()> {
    let folder = std::env::current_dir()?;
    match step {
        example::Step::Programs => example::programs(workspace, &folder),
        example::Step::Cluster => runtime()?.block_on(example::cluster(workspace, &folder)),
    }
}

fn build(workspace: &Path, arguments: Arguments) -> anyhow::Result<()> {
    programs::build_all(workspace)?;
    runtime()?.block_on(runner::make_ahead(workspace, &arguments.wanted()))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}
