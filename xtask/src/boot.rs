//! `cargo xtask boot …`: the tests with whole machines (docs/boot-tests.md). Their program is built with the features of the
//! whole workspace, as the other tests are: built alone, half of what it depends on would be compiled a second time.

use crate::{
    prerequisites::{self, EXAMPLE_TOOLS, TEST_TOOLS, Tool},
    workspace_root,
};
use anyhow::{Context as _, bail};
use clap::Args;
use std::{env, process::Command};

/// What is passed on.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Passed on; `cargo xtask boot -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// `cargo xtask boot`.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    start(TEST_TOOLS, &options.arguments)
}

/// A step of examples/debian/README.md that is no shell file.
#[derive(Debug, Args)]
pub(crate) struct Example {
    /// `programs` or `cluster`; `cargo xtask example -- --help` says what each does.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// `cargo xtask example`: the machines of the tests are that OS, so their program makes what it needs.
pub(crate) fn example(options: &Example) -> anyhow::Result<()> {
    let own = std::iter::once("example".to_owned());
    start(EXAMPLE_TOOLS, &own.chain(options.arguments.iter().cloned()).collect::<Vec<_>>())
}

fn start(tools: &[Tool], arguments: &[String]) -> anyhow::Result<()> {
    prerequisites::require("go", "the control plane is built with it")?;
    prerequisites::ensure(tools)?;
    let programs = ["bascule-boot-tests", "bascule-operator", "bascule"];
    let built = bascule_os_image::cargo()
        .args(["build", "--quiet", "--workspace"])
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .current_dir(workspace_root())
        .status()
        .context("starting cargo")?;
    if !built.success() {
        bail!("the boot tests do not build ({built})");
    }
    let own = env::current_exe().context("finding this program")?;
    let tests = own.with_file_name("bascule-boot-tests");
    let status =
        Command::new(&tests).args(arguments).status().with_context(|| format!("starting {}", tests.display()))?;
    if !status.success() {
        bail!("{} ended with {status}", tests.display());
    }
    Ok(())
}
