//! Runs the boot tests: `cargo xtask boot -- --help`.

use std::path::Path;
use std::process::ExitCode;

use bascule_boot_tests::runner::{self, Wanted};
use bascule_boot_tests::{example, programs, relay, say};
use clap::{Parser, Subcommand};

/// Boots whole machines, updates them, breaks them, and takes their power away.
///
/// Without options: the short list. Logs and consoles are left in target/boot-tests/, and the disks of what failed.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Everything, also what takes long.
    #[arg(long)]
    all: bool,
    /// Only the scenarios whose name contains this text. May be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// How many power cuts, four on each node.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1000))]
    cuts: u32,
    /// Decides the moments of the cuts and what they lose.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first cut to run, to repeat a single one: `--first-cut 17 --cuts 1`.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    first_cut: u32,
    /// How many machines run at once. Four keep two processors busy, since a machine that waits for a deadline idles.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    machines: u16,
    #[command(subcommand)]
    inner: Option<Inner>,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// Build the programs that the tests put into images or start, and with `--only kubelet` or `--only install` the images
    /// with containers too, and end.
    Build,
    /// A step of the example in examples/debian/, in the folder that this is called in.
    Example {
        /// Which one.
        #[command(subcommand)]
        step: example::Step,
    },
    /// Started by QEMU for each connection out of a machine.
    #[command(hide = true)]
    Relay {
        /// Port of the host's loopback.
        port: u16,
    },
}

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
    runtime()?.block_on(runner::run(workspace, wanted(arguments)))
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
    runtime()?.block_on(runner::make_ahead(workspace, &wanted(arguments)))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn wanted(arguments: Arguments) -> Wanted {
    Wanted {
        all: arguments.all,
        only: arguments.only,
        cuts: arguments.first_cut..arguments.first_cut + arguments.cuts,
        seed: arguments.seed,
        machines: arguments.machines.into(),
    }
}
