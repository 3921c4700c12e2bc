//! The manifest of a release: one signed object that binds image, verity parameters, UKI and packs together, so that
//! nothing of one release can be mixed with something of another.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use bascule_names::{Architecture, Digest, KubernetesVersion, Product, RootHash, Version};

use super::measured::Measured;
use super::names::TargetPath;
use super::parse::{self, ParseError};
use crate::boot_loader;
use crate::verity;

/// The format of a manifest that every reader understands.
pub const FORMAT: u64 = 1;
/// The format of a manifest that declares a state version. A reader that does not know it would go back over that version, so it
/// has to refuse the release.
pub const FORMAT_WITH_STATE: u64 = 2;
/// Longest manifest in bytes. 64 packs with long paths take 40 KiB.
pub const MAX_LENGTH: usize = 256 << 10;
/// Largest image in bytes. The verity tree is held in memory while a slot is written: 128 MiB for this size.
pub const MAX_IMAGE_SIZE: u64 = 16 << 30;
/// Largest UKI in bytes; an ESP holds two of them.
pub const MAX_UKI_SIZE: u64 = 256 << 20;
/// Largest package list in bytes.
pub const MAX_PACKAGE_LIST_SIZE: u64 = 64 << 20;
/// Longest pack index in bytes: 16384 frames of a full image with 60 reference ranges each.
pub const MAX_INDEX_LENGTH: u64 = 8 << 20;
/// Most packs of one release.
pub const MAX_PACKS: usize = 64;

const WHAT: &str = "manifest";

/// A release for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Format version of this file, [`FORMAT`] or [`FORMAT_WITH_STATE`]; see [`format_for`].
    pub format: u64,
    /// The product whose hosts may install this.
    pub product: Product,
    /// Version of the release.
    pub version: Version,
    /// Architecture of the hosts that may install this.
    pub architecture: Architecture,
    /// The file system image.
    pub image: Image,
    /// dm-verity parameters of the image.
    pub verity: Verity,
    /// The unified kernel image that boots the release.
    pub uki: File,
    /// Downloads of the image: exactly one full pack, and deltas.
    pub packs: Vec<Pack>,
    /// Software bill of materials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<PackageList>,
    /// What of Kubernetes is in the image. The operator does not update a node to a kubelet that its API servers are not
    /// made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// What the release makes of the machine's state once it is committed. A machine whose state was used with a higher one does
    /// not go to this release unless somebody accepts that. None counts as 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_version: Option<u32>,
    /// What a TPM holds once the boot image has run, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// The boot loader that lies in the image. A host that has committed the release puts it in the place of the one on its ESP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_loader: Option<BootLoader>,
}

/// A boot loader in an image, at the path of [`crate::boot_loader::in_image`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootLoader {
    /// The version of systemd-boot that it says it is.
    pub version: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub digest: Digest,
    /// Hosts take it also where it is older than what they have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downgrade: bool,
}

/// The format that a manifest has to have.
pub const fn format_for(state_version: Option<u32>) -> u64 {
    match state_version {
        Some(_) => FORMAT_WITH_STATE,
        None => FORMAT,
    }
}

/// What of Kubernetes an image brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubernetes {
    /// The kubelet's version.
    pub kubelet: KubernetesVersion,
    /// Whether the image brings the API server too, as k3s and RKE2 do: then control planes go first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub api_server: bool,
}

/// The file system image that fills a data slot from its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Size in bytes, a multiple of the verity block size.
    pub size: u64,
}

/// dm-verity parameters: hash type 1, SHA-256, data and hash blocks of the same size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verity {
    /// Hash algorithm; only `sha256`.
    pub algorithm: String,
    /// Data and hash block size in bytes; only 4096.
    pub block_size: u32,
    /// Salt, prepended to every block that is hashed; 0 to 256 bytes.
    #[serde(with = "hex::serde")]
    pub salt: Vec<u8>,
    /// UUID in the superblock.
    pub uuid: Uuid,
    /// Root hash; also the name by which a delta pack names its base.
    pub root_hash: RootHash,
    /// Size of superblock and tree in bytes: what the verity slot must hold.
    pub hash_tree_size: u64,
}

/// A target with its length and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Path in the repository.
    pub path: TargetPath,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the whole file.
    pub digest: Digest,
}

/// One way to download the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pack {
    /// Full, or a delta against a base.
    #[serde(flatten)]
    pub kind: PackKind,
    /// Path in the repository.
    pub path: TargetPath,
    /// Size of the pack file in bytes.
    pub size: u64,
    /// The index at the end of the pack file.
    pub index: IndexRef,
    /// Bytes a node moves when nothing of the image is there yet (index and frames), to choose the cheapest pack by.
    pub transfer_bytes: u64,
}

/// Whether a pack stands alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum PackKind {
    /// Decodes from nothing.
    Full,
    /// Decodes with another image at hand.
    Delta {
        /// Verity root hash of the base image.
        base: RootHash,
    },
}

/// Length and digest of a pack's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexRef {
    /// Length in bytes; the index is the end of the pack file.
    pub length: u64,
    /// Digest of these bytes.
    pub digest: Digest,
}

/// The list of packages in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackageList {
    /// How the list is written.
    pub format: PackageListFormat,
    /// Where it lies.
    #[serde(flatten)]
    pub file: File,
}

/// Formats of package lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackageListFormat {
    /// CycloneDX JSON
    #[serde(rename = "CycloneDX")]
    CycloneDx,
    /// SPDX JSON
    #[serde(rename = "SPDX")]
    Spdx,
}

impl Manifest {
    /// Reads and checks a manifest. Whoever holds a `Manifest` from here holds one whose numbers fit together.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let manifest: Self = parse::parse(WHAT, bytes, MAX_LENGTH, FORMAT_WITH_STATE)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The bytes to publish; the same manifest always gives the same bytes. Refuses what [`Self::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ParseError> {
        self.validate()?;
        let bytes = parse::print(WHAT, self)?;
        if bytes.len() > MAX_LENGTH {
            return Err(ParseError::TooLong { what: WHAT, length: bytes.len(), max: MAX_LENGTH });
        }
        Ok(bytes)
    }

    /// Refuses a manifest of another product or architecture than the host's.
    pub fn accept_for(&self, product: &Product, architecture: Architecture) -> Result<(), super::channel::Refusal> {
        if &self.product != product {
            return Err(super::channel::Refusal::OtherProduct {
                found: self.product.clone(),
                accepted: product.clone(),
            });
        }
        if self.architecture != architecture {
            return Err(super::channel::Refusal::OtherArchitecture {
                version: self.version.clone(),
                found: vec![self.architecture],
                accepted: architecture,
            });
        }
        Ok(())
    }

    /// The packs a node can use that holds images with these root hashes, cheapest first. When one is missing on the
    /// server, the next in the list is the fallback; the full pack is always in it.
    pub fn usable_packs(&self, held: &[RootHash]) -> Vec<&Pack> {
        let mut packs: Vec<&Pack> = self
            .packs
            .iter()
            .filter(|pack| match &pack.kind {
                PackKind::Full => true,
                PackKind::Delta { base } => held.contains(base),
            })
            .collect();
        packs.sort_by(|a, b| (a.transfer_bytes, &a.path).cmp(&(b.transfer_bytes, &b.path)));
        packs
    }

    fn validate(&self) -> Result<(), ParseError> {
        let invalid = |field, reason: String| ParseError::Invalid { what: WHAT, field, reason };
        if self.format != format_for(self.state_version) {
            let (found, accepted) = (self.format, format_for(self.state_version));
            let reason = match self.state_version {
                Some(_) => {
                    format!("is {found}; a manifest with a stateVersion has {accepted}, or older agents pass over it")
                }
                None => format!("is {found}; a manifest without a stateVersion has {accepted}"),
            };
            return Err(invalid("format", reason));
        }
        if self.state_version == Some(0) {
            return Err(invalid("stateVersion", "is 0; it counts from 1, and none counts as 0".to_owned()));
        }
        self.verity.validate(self.image.size).map_err(|(field, reason)| invalid(field, reason))?;
        if self.uki.size == 0 || self.uki.size > MAX_UKI_SIZE {
            return Err(invalid("uki.size", format!("is {}, accepted are 1 to {MAX_UKI_SIZE} bytes", self.uki.size)));
        }
        if let Some(measured) = &self.measured {
            measured.validate().map_err(|(field, reason)| invalid(field, reason))?;
        }
        if let Some(loader) = &self.boot_loader {
            loader.validate().map_err(|(field, reason)| invalid(field, reason))?;
        }
        if let Some(list) = &self.packages
            && list.file.size > MAX_PACKAGE_LIST_SIZE
        {
            let reason = format!("is {}, accepted are at most {MAX_PACKAGE_LIST_SIZE} bytes", list.file.size);
            return Err(invalid("packages.size", reason));
        }
        self.validate_packs().map_err(|(field, reason)| invalid(field, reason))
    }

    fn validate_packs(&self) -> Result<(), (&'static str, String)> {
        if self.packs.len() > MAX_PACKS {
            return Err(("packs", format!("has {} entries, accepted are {MAX_PACKS}", self.packs.len())));
        }
        let full = self.packs.iter().filter(|pack| pack.kind == PackKind::Full).count();
        if full != 1 {
            return Err(("packs", format!("has {full} full packs, accepted is exactly 1")));
        }
        let largest = max_pack_size(self.image.size);
        let mut paths = BTreeSet::new();
        let mut bases = BTreeSet::new();
        for pack in &self.packs {
            if !paths.insert(&pack.path) {
                return Err(("packs.path", format!("{} occurs twice", pack.path)));
            }
            if let PackKind::Delta { base } = &pack.kind
                && (*base == self.verity.root_hash || !bases.insert(base))
            {
                return Err(("packs.base", format!("{base} occurs twice or is this release itself")));
            }
            if pack.size > largest {
                let reason = format!("is {}, accepted are at most {largest} bytes for this image", pack.size);
                return Err(("packs.size", reason));
            }
            if pack.index.length > MAX_INDEX_LENGTH || pack.index.length > pack.size {
                let reason =
                    format!("is {}, accepted are at most {MAX_INDEX_LENGTH} bytes and the pack", pack.index.length);
                return Err(("packs.index.length", reason));
            }
            if pack.transfer_bytes > pack.size {
                return Err(("packs.transferBytes", format!("is {}, more than the pack has", pack.transfer_bytes)));
            }
        }
        Ok(())
    }
}

/// Largest pack that makes sense for an image: every frame raw, and the longest index.
pub fn max_pack_size(image_size: u64) -> u64 {
    image_size.saturating_add(MAX_INDEX_LENGTH)
}

impl BootLoader {
    fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.size == 0 || self.size > boot_loader::MAX_SIZE {
            let reason = format!("is {}, accepted are 1 to {} bytes", self.size, boot_loader::MAX_SIZE);
            return Err(("bootLoader.size", reason));
        }
        if self.version.is_empty() || !boot_loader::is_plain(&self.version) {
            let reason = format!("is no plain text of 1 to {} bytes", boot_loader::MAX_VERSION);
            return Err(("bootLoader.version", reason));
        }
        Ok(())
    }
}

impl Verity {
    /// The parameters as the verity module computes with them.
    pub fn parameters(&self) -> verity::Parameters {
        verity::Parameters { salt: self.salt.clone(), uuid: *self.uuid.as_bytes() }
    }

    fn validate(&self, image_size: u64) -> Result<(), (&'static str, String)> {
        if self.algorithm != "sha256" {
            let shown: String = self.algorithm.chars().take(32).collect();
            return Err(("verity.algorithm", format!("is {shown:?}, accepted is sha256")));
        }
        if self.block_size != verity::BLOCK_SIZE as u32 {
            return Err(("verity.blockSize", format!("is {}, accepted is {}", self.block_size, verity::BLOCK_SIZE)));
        }
        if self.salt.len() > verity::MAX_SALT_LENGTH {
            let reason = format!("has {} bytes, accepted are at most {}", self.salt.len(), verity::MAX_SALT_LENGTH);
            return Err(("verity.salt", reason));
        }
        if image_size == 0 || image_size > MAX_IMAGE_SIZE || !image_size.is_multiple_of(verity::BLOCK_SIZE as u64) {
            let reason =
                format!("is {image_size}, accepted are multiples of {} up to {MAX_IMAGE_SIZE}", verity::BLOCK_SIZE);
            return Err(("image.size", reason));
        }
        let hash_tree_size = verity::Geometry::of_image(image_size).hash_size();
        if self.hash_tree_size != hash_tree_size {
            let reason = format!("is {}, for this image it must be {hash_tree_size}", self.hash_tree_size);
            return Err(("verity.hashTreeSize", reason));
        }
        Ok(())
    }
}
