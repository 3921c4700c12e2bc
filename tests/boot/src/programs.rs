//! Builds what the tests start or put into an image: the agent exactly as it is shipped and the tests' own program beside it,
//! operator and command line tool, the control plane.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use bascule_os_image::shipped;
use bascule_tests::control_plane::Binaries;

use crate::reference::Programs;
use crate::say;

/// The image's programs.
///
/// # Errors
/// When cargo fails, or what it built can't be read.
pub fn of_the_image(workspace: &Path) -> anyhow::Result<Programs> {
    // One after the other: built together, the agent would get the features that the guest asks of what they share.
    let read = |name: &str| -> anyhow::Result<Vec<u8>> {
        let path = shipped::build(workspace, &[name])?.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Programs { agent: read("bascule-agent")?, guest: read("bascule-boot-guest")? })
}

/// Operator and command line tool, beside this program. Returns their folder.
///
/// # Errors
/// When cargo fails.
pub fn of_the_cluster(workspace: &Path) -> anyhow::Result<PathBuf> {
    beside_this(workspace, &["bascule-operator", "bascule"])
}

/// Command line tool, and what makes initrds, beside this program. Returns their folder.
///
/// # Errors
/// When cargo fails.
pub fn of_the_vendor(workspace: &Path) -> anyhow::Result<PathBuf> {
    beside_this(workspace, &["bascule", "bascule-os-image"])
}

fn beside_this(workspace: &Path, programs: &[&str]) -> anyhow::Result<PathBuf> {
    let status = bascule_os_image::cargo()
        .current_dir(workspace)
        // With the whole workspace's features, so that nothing is compiled that the tests have compiled before.
        .args(["build", "--quiet", "--workspace"])
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("{} do not build ({status})", programs.join(" and "));
    }
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.parent().context("this program lies in no folder")?.to_owned())
}

/// Builds all of it, and the control plane, so that the tests find it built.
///
/// # Errors
/// When a compiler fails or is missing.
pub fn build_all(workspace: &Path) -> anyhow::Result<()> {
    say("building the agent as it is shipped, and what stands in for a kubelet");
    of_the_image(workspace)?;
    say("building the initrd's program");
    shipped::build(workspace, &["bascule-init"])?;
    say("building the operator as it is shipped, for its container image");
    shipped::build(workspace, &["bascule-operator"])?;
    say("building operator and command line tool");
    of_the_cluster(workspace)?;
    Binaries::locate(&say)?;
    Ok(())
}
