//! `cargo xtask test`: every check and every test, in the order in which they fail cheapest. CI runs exactly this.

use crate::{prerequisites, workspace_root};
use anyhow::{Context as _, bail};
use clap::Args;
use std::{process::Stdio, time::Instant};

/// Which part to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the steps whose name contains this text.
    #[arg(long)]
    only: Option<String>,
}

struct Step {
    name: &'static str,
    /// What cargo is told.
    cargo: &'static [&'static str],
}

const STEPS: &[Step] = &[
    Step { name: "format", cargo: &["fmt", "--all", "--check"] },
    Step { name: "lints", cargo: &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"] },
    Step { name: "tests", cargo: &["test", "--workspace", "--no-fail-fast"] },
    // What the machines are made of is compiled first, so that nothing competes with them for the processors.
    Step { name: "boot programs", cargo: &["xtask", "boot", "build"] },
    Step { name: "boot", cargo: &["xtask", "boot"] },
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
        println!("==> {}/{} {}: cargo {}", number + 1, wanted.len(), step.name, step.cargo.join(" "));
        let started = Instant::now();
        let status = bascule_os_image::cargo()
            .args(step.cargo)
            .current_dir(workspace_root())
            .stdin(Stdio::null())
            .status()
            .context("starting cargo")?;
        if !status.success() {
            bail!("{} failed ({status}); repeat it with: cargo {}", step.name, step.cargo.join(" "));
        }
        println!("<== {} took {} s", step.name, started.elapsed().as_secs());
    }
    println!("every step passed in {} s", begin.elapsed().as_secs());
    Ok(())
}
