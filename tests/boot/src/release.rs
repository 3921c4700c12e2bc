//! An image becomes a release: a dm-verity tree over the root, and a unified kernel image whose command line names the
//! tree's root hash. Kept beside the image, by what the image does not say: the command line, and the sources of what builds it.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_image::Sha256;
use bascule_image::boot_loader::BootLoader;
use bascule_image::release::manifest;
use bascule_image::uki::PhasePath;
use bascule_image::work::Watch;
use bascule_names::{Architecture, Digest, Product, Version};
use bascule_os_image::{OsImage, Store};
use bascule_release::policy::PcrPolicy;
use bascule_release::{BootParts, Hashed, Identity, Pcr};

use crate::example_os::{COMMAND_LINE, PRODUCT};
use crate::policy_key::PolicyKey;

/// A release as files.
#[derive(Debug, Clone)]
pub struct Release {
    /// Version.
    pub version: String,
    /// Data of the slot.
    pub data: PathBuf,
    /// Superblock and tree of the slot.
    pub hashes: PathBuf,
    /// Root of the tree.
    pub root_hash: Sha256,
    /// The unified kernel image.
    pub uki: PathBuf,
    /// systemd-boot, which goes onto the ESP when a host is installed.
    pub boot_loader: PathBuf,
    /// The boot loader in its image that machines take, as the manifest has it.
    pub brings: Option<manifest::BootLoader>,
    /// Digest of the sources that made it.
    pub builder: String,
}

impl Release {
    /// File name of the boot entry, without a counter.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("{PRODUCT}_{}.efi", self.version)
    }

    /// What of dm-verity belongs to it.
    ///
    /// # Errors
    /// When the image can't be looked at.
    pub fn hashed(&self) -> anyhow::Result<Hashed> {
        let size = fs::metadata(&self.data).with_context(|| format!("looking at {}", self.data.display()))?.len();
        let (product, version) = (PRODUCT.parse()?, self.version.parse()?);
        Ok(Hashed { size, parameters: identity(&product, &version).parameters(), root_hash: self.root_hash })
    }

    /// Makes the release of `image`, or finds it; with a key, what a TPM will hold is signed in its boot image.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn of(store: &Store, image: &OsImage, key: Option<&PolicyKey>) -> anyhow::Result<Self> {
        let data = image.root();
        let builder = store.release_builder()?;
        let beside = data.parent().context("an image without a folder")?;
        // The folder's own name stands for all that is in the image.
        let by = key.map(PolicyKey::name).unwrap_or_default();
        let made_of = Sha256::of(format!("{builder} {PRODUCT} {COMMAND_LINE} {by}").as_bytes());
        let name = format!("release-{made_of}");
        let folder = beside.join(&name);
        let (hashes, uki) = (folder.join("root.verity"), folder.join("release.efi"));
        let kept = folder.join("root-hash");
        let root_hash = match fs::read(&kept) {
            Ok(bytes) => Sha256::from_bytes(bytes.try_into().ok().context("a root hash of the wrong length")?),
            Err(_) => {
                forget_others(beside, &name)?;
                fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
                let hash = write_tree(&data, &hashes, &image.version)?;
                write_uki(image, hash, key, &uki)?;
                fs::write(&kept, hash.as_bytes()).with_context(|| format!("writing {}", kept.display()))?;
                hash
            }
        };
        let (version, boot_loader) = (image.version.clone(), image.boot_loader());
        Ok(Self { version, data, hashes, root_hash, uki, boot_loader, brings: None, builder })
    }
}

/// What a manifest says of a boot loader that lies in the image: what `bascule release build --boot-loader` writes.
///
/// # Errors
/// When it can't be read, or is no systemd-boot.
pub fn brought(path: &Path) -> anyhow::Result<manifest::BootLoader> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let found = BootLoader::read(&bytes).with_context(|| format!("looking at {}", path.display()))?;
    let found = found.with_context(|| format!("{} is no systemd-boot", path.display()))?;
    Ok(manifest::BootLoader {
        version: found.version,
        size: bytes.len() as u64,
        digest: Digest::from(Sha256::of(&bytes)),
        downgrade: false,
    })
}

/// Which release it is.
pub const fn identity<'a>(product: &'a Product, version: &'a Version) -> Identity<'a> {
    Identity { product, version, architecture: Architecture::X86_64 }
}

/// Removes what was made of the same image in other ways: each is as large as a boot image.
fn forget_others(beside: &Path, name: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(beside).with_context(|| format!("reading {}", beside.display()))? {
        let entry = entry?;
        let found = entry.file_name();
        if found != *name && found.to_string_lossy().starts_with("release-") {
            fs::remove_dir_all(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn write_tree(data: &Path, hashes: &Path, version: &str) -> anyhow::Result<Sha256> {
    let file = File::open(data).with_context(|| format!("opening {}", data.display()))?;
    let (product, version) = (PRODUCT.parse()?, version.parse()?);
    let parameters = identity(&product, &version).parameters();
    let (hashed, tree) = Hashed::of(&file, parameters, NonZeroUsize::MIN, &Watch::none())
        .with_context(|| format!("hashing {}", data.display()))?;
    fs::write(hashes, tree.to_bytes()).with_context(|| format!("writing {}", hashes.display()))?;
    Ok(hashed.root_hash)
}

fn write_uki(image: &OsImage, root_hash: Sha256, key: Option<&PolicyKey>, path: &Path) -> anyhow::Result<()> {
    let (stub, kernel, initrd) = (image.stub(), image.kernel(), image.initrd());
    let parts = BootParts {
        stub: &stub,
        kernel: &kernel,
        initrd: &[&initrd],
        command_line: &format!("roothash={{roothash}} {COMMAND_LINE}"),
        kernel_release: None,
        pcr: Pcr::Nothing,
    };
    let build = |pcr: Pcr<'_>| BootParts { pcr, ..parts }.build(&root_hash.into(), &image.os_release);
    let built = match key {
        None => build(Pcr::Nothing),
        Some(key) => {
            let sign = |message: &[u8]| -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
                key.sign(message).map_err(Into::into)
            };
            // Its initrd enters no phase: the volume opens before the system does.
            let phases = [PhasePath::default()];
            let (public_key_pem, public_key) = (key.public_key_pem(), key.public_key());
            build(Pcr::Signed(&PcrPolicy { public_key_pem, public_key, phases: &phases, sign: &sign }))
        }
    };
    let bytes = built.with_context(|| format!("building the UKI of {}", image.version))?;
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
