//! Builds what goes into the image: the agent exactly as it is shipped, and the tests' own program beside it.

use std::path::Path;

use anyhow::Context as _;
use bascule_os_image::shipped;

use crate::reference::Programs;

/// Builds both programs.
///
/// # Errors
/// When cargo fails, or what it built can't be read.
pub fn build(workspace: &Path, trust_root: String) -> anyhow::Result<Programs> {
    // One after the other: built together, the agent would get the features that the guest asks of what they share.
    let read = |name: &str| -> anyhow::Result<Vec<u8>> {
        let path = shipped::build(workspace, &[name])?.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Programs { trust_root, agent: read("bascule-agent")?, guest: read("bascule-boot-guest")? })
}
