//! `cargo xtask test`: every check and every test, in the order in which they fail cheapest. CI runs exactly this.

use crate::{prerequisites, workspace_root};
use anyhow::{Context as _, bail};
use clap::Args;
use std::{
    process::{Command, Stdio},
    time::Instant,
};

/// Which part to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the steps whose name contains this text.
    #[arg(long)]
    only: Option<String>,
}

struct Step {
    name: &'static str,
    command: &'static [&'static str],
}

const STEPS: &[Step] = &[
    Step { name: "format", command: &["cargo", "fmt", "--all", "--check"] },
    Step {
        name: "lints",
        command: &["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
    },
    Step { name: "tests", command: &["cargo", "test", "--workspace"] },
];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    prerequisites::writable(&workspace_root().join("target"))?;
    prerequisites::require("go", "install Go 1.26 or newer (the control plane of the tests is built from Go modules)")?;
    prerequisites::ensure(prerequisites::TEST_TOOLS)?;
    let wanted: Vec<&Step> =
        STEPS.iter().filter(|step| options.only.as_deref().is_none_or(|text| step.name.contains(text))).collect();
    if wanted.is_empty() {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step has that name; there are: {}", names.join(", "));
    }
    let begin = Instant::now();
    for (number, step) in wanted.iter().enumerate() {
        println!("==> {}/{} {}: {}", number + 1, wanted.len(), step.name, step.command.join(" "));
        let started = Instant::now();
        let (program, arguments) = step.command.split_first().context("a step without a command")?;
        let status = Command::new(program)
            .args(arguments)
            .current_dir(workspace_root())
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("starting {program}"))?;
        if !status.success() {
            bail!("{} failed ({status}); repeat it with: {}", step.name, step.command.join(" "));
        }
        println!("<== {} took {} s", step.name, started.elapsed().as_secs());
    }
    println!("every step passed in {} s", begin.elapsed().as_secs());
    Ok(())
}
