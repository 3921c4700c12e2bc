//! From a root tree to a file system image that depends on the tree alone: EROFS, not compressed (deltas find nothing in
//! compressed data, and packs are compressed on their way), fixed time stamps and UUID.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_image::Sha256;
use bascule_names::{Architecture, Product, Version};
use uuid::Uuid;

/// What the parts of a release that need not be random are derived from, so that the same input gives the same bytes.
#[derive(Debug, Clone)]
pub(crate) struct Identity<'a> {
    pub(crate) product: &'a Product,
    pub(crate) version: &'a Version,
    pub(crate) architecture: Architecture,
}

impl Identity<'_> {
    /// 32 bytes for a purpose.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        let text = format!("bascule {purpose}\n{}\n{}\n{}\n", self.product, self.version, self.architecture);
        *Sha256::of(text.as_bytes()).as_bytes()
    }

    /// A UUID for a purpose (RFC 9562, version 8: custom).
    pub(crate) fn uuid(&self, purpose: &str) -> Uuid {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(self.derive(purpose)).for_each(|(to, from)| *to = from);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

/// Makes an EROFS image of `tree` with mkfs.erofs.
pub(crate) fn make_erofs(tree: &Path, image: &Path, uuid: Uuid, time: u64) -> anyhow::Result<()> {
    ensure!(tree.is_dir(), "{} is no folder; --root takes the root tree of the OS", tree.display());
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", &format!("-T{time}"), &format!("-U{uuid}")]);
    command.args([image.as_os_str().to_owned(), OsString::from(tree)]);
    // A locale must not change the order of names.
    command.env("LC_ALL", "C");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("mkfs.erofs is not there; install erofs-utils (apt install erofs-utils), or give a ready --image")
        }
        Err(error) => return Err(error).context("can't run mkfs.erofs"),
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        bail!("mkfs.erofs failed on {} ({}): {last}", tree.display(), output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_depends_on_the_release_and_the_purpose() {
        let (product, version) = ("acme-os".parse().unwrap(), "1.0".parse().unwrap());
        let this = Identity { product: &product, version: &version, architecture: Architecture::X86_64 };
        let other = Identity { architecture: Architecture::Arm64, ..this.clone() };
        assert_eq!(this.derive("salt"), this.derive("salt"));
        assert_ne!(this.derive("salt"), this.derive("uuid"));
        assert_ne!(this.derive("salt"), other.derive("salt"));
        assert_eq!(this.uuid("x").get_version_num(), 8);
    }
}
