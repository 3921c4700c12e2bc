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
    let folder = shipped::build(workspace, &["bascule-agent", "bascule-boot-guest"])?;
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Programs { trust_root, agent: read("bascule-agent")?, guest: read("bascule-boot-guest")? })
}
