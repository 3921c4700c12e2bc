//! `cargo xtask agent` and `cargo xtask programs`: what is shipped, as it is shipped. Images, boot tests and benchmarks
//! build it the same way.

use crate::workspace_root;
use anyhow::Context as _;
use bascule_os_image::shipped::{self, Architecture};
use std::path::PathBuf;

/// The package of the node agent and its program.
const AGENT: (&str, &str) = ("bascule-agent", "bascule-agent");
/// The same of the operator.
const OPERATOR: (&str, &str) = ("bascule-operator", "bascule-operator");
/// The same of the command line tool.
const COMMAND_LINE: (&str, &str) = ("bascule-cli", "bascule");
/// Every program that is shipped, by package.
const ALL: [(&str, &str); 3] = [AGENT, OPERATOR, COMMAND_LINE];

/// Builds the agent and returns the file.
pub(crate) fn agent(architecture: Architecture) -> anyhow::Result<PathBuf> {
    build(AGENT, architecture)
}

/// Builds the operator and returns the file.
pub(crate) fn operator(architecture: Architecture) -> anyhow::Result<PathBuf> {
    build(OPERATOR, architecture)
}

/// Builds the command line tool and returns the file.
pub(crate) fn command_line() -> anyhow::Result<PathBuf> {
    build(COMMAND_LINE, own_architecture()?)
}

/// This machine's.
pub(crate) fn own_architecture() -> anyhow::Result<Architecture> {
    let arch = std::env::consts::ARCH;
    Architecture::own().with_context(|| format!("programs are built on x86-64 and arm64, and this is {arch}"))
}

fn build((package, program): (&str, &str), architecture: Architecture) -> anyhow::Result<PathBuf> {
    eprintln!("building {package} for {} (some minutes the first time)", architecture.target());
    Ok(shipped::build_for(&workspace_root(), &[package], architecture)?.join(program))
}

/// `cargo xtask agent`.
pub(crate) fn run_agent() -> anyhow::Result<()> {
    run(&[AGENT])
}

/// `cargo xtask programs`.
pub(crate) fn run_all() -> anyhow::Result<()> {
    run(&ALL)
}

fn run(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    // One by one: each has its own profile.
    for (package, program) in wanted.iter().copied() {
        let file = build((package, program), own_architecture()?)?;
        let size = std::fs::metadata(&file).with_context(|| format!("reading {}", file.display()))?.len();
        eprintln!("{program}: {size} bytes, static, without symbols");
        println!("{}", file.display());
    }
    Ok(())
}
