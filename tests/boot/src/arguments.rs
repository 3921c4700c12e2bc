//! The command line of `cargo xtask boot`.

use clap::{Parser, Subcommand};

use crate::example;
use crate::runner::Wanted;

/// Boots whole machines, updates them, breaks them, and takes their power away.
///
/// Without options: the short list. Logs and consoles are left in target/boot-tests/, and the disks of what failed.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
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
    /// Something else than to run scenarios.
    #[command(subcommand)]
    pub inner: Option<Inner>,
}

/// What it does beside running scenarios.
#[derive(Debug, Subcommand)]
pub enum Inner {
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

impl Arguments {
    /// What to run.
    #[must_use]
    pub fn wanted(self) -> Wanted {
        Wanted {
            all: self.all,
            only: self.only,
            cuts: self.first_cut..self.first_cut + self.cuts,
            seed: self.seed,
            machines: self.machines.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;
    use std::path::{Path, PathBuf};

    /// What begins each of them.
    const TASK: &str = "cargo xtask boot";

    fn pages() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
        for folder in ["docs", "docs/decisions"] {
            pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
        }
        pages.retain(|page| page.extension().is_some_and(|ending| ending == "md"));
        pages
    }

    /// A command line up to the end of its code, a remark or a redirection; `…` stands for what may follow.
    fn line(shown: &str) -> &str {
        let end = shown.find(['`', '#', '\n', '>', '…']).unwrap_or(shown.len());
        shown.get(..end).unwrap_or_default().trim_end_matches(" 2").trim()
    }

    fn wrong(line: &str) -> Option<String> {
        let words = line.split_whitespace().filter(|word| *word != "--");
        let scenarios = include_str!("runner.rs");
        match Arguments::try_parse_from(std::iter::once("boot").chain(words)) {
            Ok(arguments) => {
                let mut named = arguments.only.into_iter();
                named.find(|text| !scenarios.contains(&format!("\"{text}")))
            }
            Err(error) => (error.kind() != ErrorKind::DisplayHelp).then(|| error.to_string()),
        }
    }

    #[test]
    fn each_command_of_the_docs_runs_a_scenario() {
        let mut all = 0;
        for page in pages() {
            let text = std::fs::read_to_string(&page).unwrap();
            for (at, _) in text.match_indices(TASK) {
                all += 1;
                let line = line(text.get(at + TASK.len()..).unwrap());
                assert_eq!(wrong(line), None, "{}: {line}", page.display());
            }
        }
        assert!(all > 15, "{all}");
        for line in ["--only nothing", "--nope", "--cuts many"] {
            assert!(wrong(line).is_some(), "{line}");
        }
        assert_eq!(line(" --only install 2>&1 | tee log"), "--only install");
    }
}
