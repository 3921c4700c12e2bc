//! What `cargo xtask sandbox` can be told.

use std::path::PathBuf;

use clap::Parser;

/// Start a cluster of simulated machines from nothing and show how it patches itself: a rollout, a release that fails
/// and is blocked, a freeze, a rollback, and repositories that must be refused.
///
/// Exit codes: 0 every invariant held; 1 something did not; 2 wrong command line; 130 interrupted.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Options {
    /// How many nodes, spread over three zones.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=60), value_name = "N")]
    pub(crate) nodes: u16,

    /// Leave everything running after the story, say how to reach it, and end with Ctrl-C.
    #[arg(long)]
    pub(crate) keep: bool,

    /// Use this cluster instead of starting a control plane. Simulated nodes join it, and leave it at the end; pods of
    /// the sandbox run on them only. Its user must be a cluster admin that may impersonate.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Where the sandbox lives: disks, repository, logs, report. Two sandboxes need two folders.
    #[arg(long, value_name = "FOLDER", default_value = "target/sandbox")]
    pub(crate) folder: PathBuf,

    /// The loopback port of the release repository. Default: a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,

    /// Plain lines instead of a live table, also on a terminal.
    #[arg(long)]
    pub(crate) plain: bool,

    /// End after this act (the report covers what was shown).
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=5), value_name = "ACT")]
    pub(crate) until: u8,

    /// Kill -9 the operator and agents at moments drawn from this seed during acts 2 to 4, at most 24 times in each. The
    /// end must be the same.
    #[arg(long, value_name = "SEED")]
    pub(crate) kill: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_nodes_are_refused_before_anything_starts() {
        for wrong in [&["sandbox", "--nodes", "2"][..], &["sandbox", "--until", "6"], &["sandbox", "--port", "70000"]] {
            assert!(Options::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(Options::try_parse_from(["sandbox"]).unwrap().nodes, 5);
    }
}
