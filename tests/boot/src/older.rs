//! The tree of an earlier commit, from which what an admin installed before is built: its manifests and its images.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use bascule_os_image::shipped;
use bascule_tests::page;

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
        let missing = "an upgrade needs the history of this tree: clone it with its commits (git fetch --unshallow)";
        let commit = page::previous_commit().context(missing)?;
        let tree = workspace.join("target/boot-tests-before");
        let at = git(&tree, &["rev-parse", "HEAD"]).unwrap_or_default();
        if at.trim() != commit {
            if tree.exists() {
                std::fs::remove_dir_all(&tree).with_context(|| format!("emptying {}", tree.display()))?;
            }
            let place = tree.to_str().context("a path that is not UTF-8")?;
            git(workspace, &["clone", "--quiet", "--shared", "--no-checkout", ".", place])?;
            git(&tree, &["checkout", "--quiet", "--detach", &commit])?;
            // What both are built from is compiled once.
            let shared = tree.join("target");
            std::os::unix::fs::symlink(workspace.join("target"), &shared)
                .with_context(|| format!("making {}", shared.display()))?;
        }
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

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().context("starting git")?;
    let refused = || format!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    ensure!(output.status.success(), refused());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
