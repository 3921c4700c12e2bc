//! Measures releases: how large packs are, how long building and applying takes, and what other tools make of the same images.
//!
//! A binary of its own and not part of `xtask`, because it must be built with the release profile and because every measured
//! step is a process of its own, whose time and peak memory GNU time reports. `cargo xtask bench release` builds and runs it.
//! Needs root (for building root trees) and the Debian packages named in [`roots::TOOLS`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

mod http;
mod measure;
mod ours;
mod results;
mod roots;
mod run;
mod table;
mod tools;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the images, measure what was not measured yet, print the table.
    Release(run::Options),
    /// One measured step; started by `release`.
    #[command(flatten)]
    Step(ours::Step),
    /// Serve a folder on loopback with range requests; started by `release`. Prints the port.
    #[command(hide = true)]
    Serve {
        /// The folder.
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Release(options) => run::release(&options),
        Command::Step(step) => step.run(),
        Command::Serve { folder } => http::serve(&folder),
    }
}
