//! What developers and CI run: `cargo xtask sandbox`, `cargo xtask test`, `cargo xtask generate`.
//!
//! The README names two of these commands; everything they need is built or installed by themselves.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

mod bench;
mod boot;
mod deny;
#[cfg(test)]
mod documented;
mod generate;
mod images;
mod krew;
mod prerequisites;
mod sandbox;
mod shipped;
mod test;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks of the Bascule project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the node agent as it is shipped, one static file; prints where it lies.
    Agent,
    /// Become the container that a file describes. Started by tests, in a mount namespace of its own.
    #[command(hide = true)]
    Container {
        /// The description.
        description: std::path::PathBuf,
    },
    /// Measure what docs/benchmarks.md shows.
    Bench(bench::Options),
    /// Boot whole virtual machines, update them, break them, and take their power away.
    Boot(boot::Options),
    /// Hold deny.toml against Cargo.lock: licenses, versions that are there twice, registries.
    Deny,
    /// Do a step of the example in examples/debian/: build its programs, or start a cluster for its machine to join.
    Example(boot::Example),
    /// Write everything that is generated (CRDs, the names of their fields, docs/reasons.md, docs/api.md, docs/rights.md), or check that it is up to date.
    Generate(generate::Options),
    /// Build the container images of operator and agent, with an SBOM and provenance; put them into a registry.
    Images(images::Options),
    /// Pack the command line tool for `kubectl krew`, with its manifest.
    Krew(krew::Options),
    /// Build agent, operator and command line tool as they are shipped, one static file each; prints where they lie.
    Programs,
    /// Show a fleet that patches itself, from nothing.
    Sandbox(sandbox::Options),
    /// Run every check and test, as CI does.
    Test(test::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Agent => shipped::run_agent(),
        Task::Container { description } => container(&description),
        Task::Bench(options) => bench::run(&options),
        Task::Boot(options) => boot::run(&options),
        Task::Deny => deny::run(),
        Task::Example(options) => boot::example(&options),
        Task::Generate(options) => generate::run(&options),
        Task::Images(options) => images::run(&options),
        Task::Krew(options) => krew::run(&options),
        Task::Programs => shipped::run_all(),
        Task::Sandbox(options) => return sandbox::run(options),
        Task::Test(options) => test::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only with the reason why it is not the container's program.
fn container(description: &std::path::Path) -> anyhow::Result<()> {
    let container: bascule_tests::container::Container = serde_json::from_slice(&std::fs::read(description)?)?;
    let error = bascule_tests::container::enter(&container);
    Err(error).with_context(|| format!("cannot become {}", container.program.display()))
}

/// The root of the checkout that is worked in: the one whose cargo runs this, or the one this stands in. Never the place where
/// this program was built, which a copied build folder would carry along.
fn workspace_root() -> std::path::PathBuf {
    let is_root = |folder: &std::path::Path| folder.join("xtask/Cargo.toml").is_file();
    let by_cargo = std::env::var_os("CARGO_MANIFEST_DIR").map(std::path::PathBuf::from);
    let here = by_cargo.or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    here.ancestors().find(|folder| is_root(folder)).unwrap_or(&here).to_owned()
}
