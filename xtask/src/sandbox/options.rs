//! What `cargo xtask sandbox` can be told.

use std::path::PathBuf;

use clap::Parser;

use super::acts::Tale;

/// Start a cluster of simulated machines from nothing and show how it patches itself: a rollout, a release that fails
/// and is blocked, a freeze, a rollback, and repositories that must be refused. With --control-planes: how machines are
/// patched that carry the cluster's own control plane.
///
/// Exit codes: 0 every invariant held; 1 something did not; 2 wrong command line; 130 interrupted.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Options {
    /// How many nodes, spread over three zones.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=60), value_name = "N")]
    pub(crate) nodes: u16,

    /// Tell another story: three machines that carry the cluster itself, a member of etcd and an API server each behind a
    /// balancer, are all updated, and wait when one member is broken.
    #[arg(
        long,
        value_parser = control_planes,
        conflicts_with_all = ["nodes", "kubeconfig", "kill"],
        value_name = "N"
    )]
    pub(crate) control_planes: Option<u16>,

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

    /// End after this act (the report covers what was shown). Default: the last one.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5), value_name = "ACT")]
    pub(crate) until: Option<u8>,

    /// Kill -9 the operator and agents at moments drawn from this seed during acts 2 to 4, at most 24 times in each. The
    /// end must be the same.
    #[arg(long, value_name = "SEED")]
    pub(crate) kill: Option<u64>,
}

impl Options {
    /// How many machines take part.
    pub(crate) fn machines(&self) -> u16 {
        self.control_planes.unwrap_or(self.nodes)
    }

    /// The story to tell.
    pub(crate) fn tale(&self) -> Tale {
        if self.control_planes.is_some() { Tale::ControlPlanes } else { Tale::Fleet }
    }

    /// The last act to play.
    ///
    /// # Errors
    /// The story has no such act.
    pub(crate) fn last_act(&self) -> Result<u8, String> {
        let acts = self.tale().acts();
        match self.until {
            Some(wanted) if wanted > acts => Err(format!("this story has {acts} acts: give --until 1 to {acts}")),
            wanted => Ok(wanted.unwrap_or(acts)),
        }
    }
}

/// As many control planes as keep their quorum while one of them reboots, and lose it where one is broken besides: with more
/// the second act would be another story.
fn control_planes(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(3) => Ok(3),
        Ok(1) => Err("with one control plane there is no API while it reboots: give 3".to_owned()),
        _ => Err("the story is told of three control planes: give 3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_nodes_are_refused_before_anything_starts() {
        for wrong in [&["sandbox", "--nodes", "2"][..], &["sandbox", "--until", "6"], &["sandbox", "--port", "70000"]] {
            assert!(Options::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
        let ordinary = Options::try_parse_from(["sandbox"]).unwrap();
        assert_eq!((ordinary.machines(), ordinary.last_act()), (5, Ok(5)));
    }

    #[test]
    fn control_planes_keep_a_quorum_and_have_a_story_of_their_own() {
        let with = |more: &[&str]| {
            let arguments: Vec<&str> = ["sandbox", "--control-planes"].iter().chain(more).copied().collect();
            Options::try_parse_from(arguments)
        };
        for (wrong, why) in [
            (&["1"][..], "no API while it reboots"),
            (&["0"], "give 3"),
            (&["2"], "give 3"),
            (&["4"], "give 3"),
            (&["5"], "give 3"),
            (&["three"], "give 3"),
            (&["3", "--nodes", "5"], "cannot be used with"),
            (&["3", "--kubeconfig", "file"], "cannot be used with"),
            (&["3", "--kill", "1"], "cannot be used with"),
        ] {
            let said = with(wrong).unwrap_err().to_string();
            assert!(said.contains(why), "{wrong:?} says {said}");
        }
        let three = with(&["3"]).unwrap();
        assert_eq!((three.machines(), three.last_act()), (3, Ok(3)));
        assert_eq!(with(&["3", "--until", "2"]).unwrap().last_act(), Ok(2));
        assert!(with(&["3", "--until", "4"]).unwrap().last_act().unwrap_err().contains("3 acts"));
    }
}
