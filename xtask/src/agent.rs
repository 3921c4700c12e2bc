//! `cargo xtask agent`: the node agent as it is shipped. Images, boot tests and benchmarks build it the same way.

use crate::workspace_root;
use anyhow::Context as _;
use bascule_os_image::shipped;
use std::path::PathBuf;

/// Builds the agent and returns the file.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    Ok(shipped::build(&workspace_root(), &["bascule-agent"])?.join("bascule-agent"))
}

pub(crate) fn run() -> anyhow::Result<()> {
    eprintln!("building the agent for {} (some minutes the first time)", shipped::target());
    let file = build()?;
    let size = std::fs::metadata(&file).with_context(|| format!("reading {}", file.display()))?.len();
    eprintln!("{size} bytes, static, without symbols");
    println!("{}", file.display());
    Ok(())
}
