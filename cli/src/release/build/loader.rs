//! The boot loader that a release brings: systemd-boot, as it lies in the image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use bascule_image::Sha256;
use bascule_image::boot_loader::{BootLoader, MAX_SIZE, in_image};
use bascule_image::release::manifest;
use bascule_names::{Architecture, Digest};
use bascule_release::read_bounded;
use clap::Args;

use super::check::{Finding, LOADER_NOT_SIGNED, NO_BOOT_LOADER, NO_SBAT, firmware_file, is_signed, vouched};
use crate::release::secure_boot::SecureBoot;

#[derive(Debug, Args)]
pub(crate) struct LoaderArguments {
    /// Nodes that have committed the release put the systemd-boot that is in the image in the place of their own. With --image, of which
    /// the tree is not at hand, FILE is that boot loader.
    #[arg(long, value_name = "FILE", require_equals = true, help_heading = "Boot loader")]
    boot_loader: Option<Option<PathBuf>>,

    /// Nodes take it also where it is older than what they have.
    #[arg(long, requires = "boot_loader", help_heading = "Boot loader")]
    boot_loader_downgrade: bool,
}

/// A boot loader that was found.
pub(super) struct Found {
    bytes: Vec<u8>,
    version: String,
    downgrade: bool,
}

impl LoaderArguments {
    /// Finds it in the tree, or reads the file that is given, and looks at it; `None` where the release is to bring none, or what there is
    /// is none, which the findings say.
    pub(super) fn look(
        &self,
        root: Option<&Path>,
        architecture: Architecture,
        secure_boot: Option<&SecureBoot>,
    ) -> anyhow::Result<(Option<Found>, Vec<Finding>)> {
        let Some(given) = &self.boot_loader else { return Ok((None, Vec::new())) };
        let missing = |text: String| Ok((None, vec![NO_BOOT_LOADER.found(text)]));
        let [signed, plain] = in_image(architecture);
        let path = match (root.map(|root| in_tree(root, [&signed, &plain])), given) {
            (None, Some(path)) => path.clone(),
            (None, None) => {
                bail!("say with --boot-loader=FILE which boot loader is in the image: --image is not looked into")
            }
            (Some(None), _) => return missing(format!("the tree has neither {signed} nor {plain}")),
            (Some(Some(path)), given) => {
                if let Some(given) = given {
                    let same = read_bounded(given, MAX_SIZE)? == read_bounded(&path, MAX_SIZE)?;
                    ensure!(
                        same,
                        "{} is not what nodes will find in the tree, {}: copy it there, and leave the name out",
                        given.display(),
                        path.display()
                    );
                }
                path
            }
        };
        let bytes = read_bounded(&path, MAX_SIZE)?;
        let mut findings = firmware_file("the boot loader", &bytes, architecture);
        let Some(loader) = BootLoader::read(&bytes)? else {
            return missing(format!("{} is no systemd-boot that says its version", path.display()));
        };
        if !loader.has_sbat {
            findings.push(NO_SBAT.found("the boot loader has no .sbat section"));
        }
        if let Some(secure_boot) = secure_boot {
            let refused = vouched("the boot loader", &bytes, &[secure_boot.certificate().to_vec()]);
            findings.extend(refused.into_iter().map(|refused| LOADER_NOT_SIGNED.found(refused.text)));
        }
        let found = Found { bytes, version: loader.version, downgrade: self.boot_loader_downgrade };
        Ok((Some(found), findings))
    }
}

impl Found {
    /// Whether firmware that starts the UKI would start it, as far as the two are signed.
    #[allow(clippy::ptr_arg, reason = "the reader of signatures takes a sized thing")]
    pub(super) fn beside(&self, uki: &Vec<u8>) -> anyhow::Result<Option<Finding>> {
        let alone = is_signed(uki)? && !is_signed(&self.bytes)?;
        let text = "the UKI is signed for Secure Boot, the boot loader is not";
        Ok(alone.then(|| LOADER_NOT_SIGNED.found(text)))
    }

    /// As the manifest has it.
    pub(super) fn entry(&self) -> manifest::BootLoader {
        manifest::BootLoader {
            version: self.version.clone(),
            size: self.bytes.len() as u64,
            digest: Digest::from(Sha256::of(&self.bytes)),
            downgrade: self.downgrade,
        }
    }
}

/// The first of these files in a tree, or in one that is mounted at `/usr`. A link, which may lead out of the tree, is not followed.
fn in_tree(root: &Path, paths: [&str; 2]) -> Option<PathBuf> {
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    paths.into_iter().flat_map(|path| [path, path.trim_start_matches("usr/")]).map(|path| root.join(path)).find(is_file)
}
