//! Builds what goes into the image: the agent exactly as it is shipped (release profile, statically linked), and the
//! tests' own program beside it. cargo decides what is up to date.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use bascule_os_image::Store;

use crate::reference::Programs;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// glibc and all else inside the binary: it must also run in an empty root.
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds both programs.
///
/// # Errors
/// When cargo fails; its messages are on standard error then.
pub fn build(workspace: &Path, store: &Store, trust_root: String) -> anyhow::Result<Programs> {
    // The same folder in which the image store builds the initrd's program: the same flags, nothing built twice.
    let target = store.folder().join("cargo");
    let status = Command::new("cargo")
        .current_dir(workspace)
        .env("RUSTFLAGS", STATIC)
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["--package", "bascule-agent", "--package", "bascule-boot-guest"])
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("building the agent and the guest's program failed ({status})");
    }
    let read = |name: &str| {
        let path = target.join(TARGET).join("release").join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Programs { trust_root, agent: read("bascule-agent")?, guest: read("bascule-boot-guest")? })
}
