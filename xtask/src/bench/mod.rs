//! `cargo xtask bench …`: measurements for docs/benchmarks.md. What measures releases is a package of its own, because it
//! must be built with the release profile; the agent is measured from outside, as the program that is shipped.

mod agent;

use crate::{
    prerequisites::{self, Tool},
    shipped, workspace_root,
};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The node agent as it is shipped: size, memory, wake-ups, requests, delays. Needs root and a quarter of an hour.
    Agent(agent::Options),
    /// The operator against a real API server with nodes that KWOK plays: memory, writes, reaction, quiet. Needs Go, and half an hour
    /// for a thousand nodes on two cores; `--tenth` for thousands of them.
    Operator {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What people wait for at 5,000 nodes: the live report, `bascule status`, the dashboard and what it costs. Needs Go, and some minutes.
    People {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Releases: bytes to move and speed of applying, against other tools. Needs root, 15 GB and two hours of an idle machine.
    Release {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// The tools that releases are compared with, and those that make the images.
const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mkfs.erofs", package: "erofs-utils" },
    Tool { program: "zstd", package: "zstd" },
    Tool { program: "xdelta3", package: "xdelta3" },
    Tool { program: "casync", package: "casync" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "time", package: "time" },
];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match &options.what {
        What::Agent(options) => agent::run(options),
        What::Operator { arguments } => {
            prerequisites::require("go", "the control plane and KWOK are built with it")?;
            let program = shipped::operator(shipped::own_architecture()?)?;
            let program = program.to_str().context("the workspace's path is not UTF-8")?;
            // Not by its package: built alone it gets other features of what it depends on, which is then compiled a second time.
            let scale = ["run", "--quiet", "--example", "scale", "--"];
            cargo(&[&scale[..], &["--operator", program]].concat(), arguments, "its message says why")
        }
        What::People { arguments } => {
            prerequisites::require("go", "the control plane is built with it")?;
            let program = shipped::command_line()?;
            let program = program.to_str().context("the workspace's path is not UTF-8")?;
            let people = ["run", "--quiet", "--example", "people", "--"];
            cargo(&[&people[..], &["--bascule", program]].concat(), arguments, "its message says why")
        }
        What::Release { arguments } => {
            prerequisites::ensure(TOOLS)?;
            let bench = ["run", "--release", "--quiet", "--package", "bascule-bench", "--", "release"];
            cargo(&bench, arguments, "what it measured so far is kept, the same command goes on")
        }
    }
}

fn cargo(first: &[&str], more: &[String], advice: &str) -> anyhow::Result<()> {
    let status = bascule_os_image::cargo()
        .args(first)
        .args(more)
        .current_dir(workspace_root())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("the benchmark failed ({status}); {advice}");
    }
    Ok(())
}
