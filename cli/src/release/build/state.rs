//! Which state version a release declares. Nodes read it from os-release, so the manifest says the same.

use anyhow::{anyhow, ensure};
use bascule_image::uki::{OsRelease, STATE_VERSION, Uki};

/// The state version that an os-release declares.
pub(super) fn declared(what: &str, text: &str) -> anyhow::Result<Option<u32>> {
    let release = OsRelease::parse(text);
    release.state_version().map_err(|found| anyhow!("{what} has {STATE_VERSION}={found}; it is a number from 1 on"))
}

/// A node reads it from the tree, so nothing else may be signed.
pub(super) fn of_tree(in_tree: Option<u32>, asked: Option<u32>) -> anyhow::Result<Option<u32>> {
    ensure!(
        asked.is_none() || asked == in_tree,
        "--state-version differs from the tree's os-release, which nodes go by: write {STATE_VERSION}={} there",
        asked.unwrap_or_default()
    );
    Ok(in_tree)
}

/// The image of others can't be looked into; their UKI carries its os-release.
#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
pub(super) fn of_image(uki: &Vec<u8>, asked: Option<u32>) -> anyhow::Result<Option<u32>> {
    let text = Uki::open(uki)?.os_release()?;
    let in_uki = declared("the UKI's os-release", text.as_str())?;
    ensure!(
        asked.is_none() || in_uki.is_none() || asked == in_uki,
        "--state-version differs from {STATE_VERSION}={} in the UKI's os-release",
        in_uki.unwrap_or_default()
    );
    Ok(in_uki.or(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_what_a_node_reads() {
        assert_eq!(declared("it", "ID=a\nBASCULE_STATE_VERSION=3\n").unwrap(), Some(3));
        let refused = declared("the tree's os-release", "BASCULE_STATE_VERSION=v3\n").unwrap_err().to_string();
        assert!(refused.contains("the tree's os-release has BASCULE_STATE_VERSION=v3"), "{refused}");
        assert_eq!(of_tree(Some(3), None).unwrap(), Some(3));
        assert_eq!(of_tree(Some(3), Some(3)).unwrap(), Some(3));
        for in_tree in [None, Some(2)] {
            let refused = of_tree(in_tree, Some(3)).unwrap_err().to_string();
            assert!(refused.contains("write BASCULE_STATE_VERSION=3 there"), "{refused}");
        }
    }
}
