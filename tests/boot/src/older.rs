//! The tree of an earlier commit, from which what an admin installed before is built: its manifests and its images, or its agent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use bascule_os_image::shipped;
use bascule_tests::page;

/// What the agent's records did not hold in the older format: a file, and words that came with it.
const RECORDED_SINCE: (&str, &str) = ("crates/agent-core/src/boot/mod.rs", "pub partition: Option<BootPartition>");
/// A clone without history can't do any of this.
const NO_HISTORY: &str = "this needs the history of this tree: clone it with its commits (git fetch --unshallow)";

/// The shipped agent of the last commit whose records of boot images did not say where these lie.
///
/// # Errors
/// When there is no history, or the compiler or git refuses.
pub fn agent_with_older_records(workspace: &Path) -> anyhow::Result<Vec<u8>> {
    let (file, words) = RECORDED_SINCE;
    let since = git(workspace, &["log", "--reverse", "--format=%H", &format!("-S{words}"), "--", file])?;
    let since = since.lines().next().with_context(|| format!("no commit brought '{words}' into {file}"))?;
    let commit = git(workspace, &["rev-parse", &format!("{since}^")]).context(NO_HISTORY)?;
    let (commit, tree) = (commit.trim(), workspace.join("target/boot-tests-records"));
    check_out(workspace, &tree, commit)?;
    crate::say(&format!("building the agent of {commit}, whose records have an older format"));
    let path = shipped::build(&tree, &["bascule-agent"])?.join("bascule-agent");
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// An earlier commit, checked out below `target/`.
#[derive(Debug, Clone)]
pub struct Older {
    tree: PathBuf,
    commit: String,
}

impl Older {
    /// Checks out the last commit that had other manifests than this one, and builds its programs as they are shipped.
    ///
    /// # Errors
    /// When there is no history, or the compiler or git refuses.
    pub fn prepare(workspace: &Path) -> anyhow::Result<Self> {
        let commit = page::previous_commit().context(NO_HISTORY)?;
        let tree = workspace.join("target/boot-tests-before");
        check_out(workspace, &tree, &commit)?;
        for package in ["bascule-agent", "bascule-operator"] {
            crate::say(&format!("building the {package} of {commit} as it is shipped"));
            shipped::build(&tree, &[package])?;
        }
        Ok(Self { tree, commit })
    }

    /// The root of its tree.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The commit.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }
}

/// Has a commit checked out in `tree`, which shares what is compiled.
fn check_out(workspace: &Path, tree: &Path, commit: &str) -> anyhow::Result<()> {
    // Below a checkout that is none itself, git would answer for the one around it.
    let at = if tree.join(".git").exists() { git(tree, &["rev-parse", "HEAD"])? } else { String::new() };
    if at.trim() == commit {
        return Ok(());
    }
    if tree.exists() {
        std::fs::remove_dir_all(tree).with_context(|| format!("emptying {}", tree.display()))?;
    }
    let place = tree.to_str().context("a path that is not UTF-8")?;
    git(workspace, &["clone", "--quiet", "--shared", "--no-checkout", ".", place])?;
    git(tree, &["checkout", "--quiet", "--detach", commit])?;
    let shared = tree.join("target");
    std::os::unix::fs::symlink(workspace.join("target"), &shared)
        .with_context(|| format!("making {}", shared.display()))
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().context("starting git")?;
    let refused = || format!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    ensure!(output.status.success(), refused());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
