//! An image becomes a release: a dm-verity tree over the root, and a unified kernel image whose command line names the
//! tree's root hash. Kept beside the image, under the same hash of inputs.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_image::Sha256;
use bascule_image::uki;
use bascule_image::verity::{self, Parameters};
use bascule_image::work::Watch;
use bascule_os_image::OsImage;

use crate::reference::{COMMAND_LINE, PRODUCT};

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
    /// systemd-boot, which goes onto the ESP once, when a host is installed.
    pub boot_loader: PathBuf,
}

impl Release {
    /// File name of the boot entry, without a counter.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("{PRODUCT}_{}.efi", self.version)
    }

    /// Salt and UUID of the tree.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        parameters(&self.version)
    }

    /// Makes the release of `image`, or finds it.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn of(image: &OsImage) -> anyhow::Result<Self> {
        let data = image.root();
        let folder = data.parent().context("an image without a folder")?.to_owned();
        let hashes = folder.join("root.verity");
        let uki = folder.join("release.efi");
        let kept = folder.join("root-hash");
        let root_hash = match fs::read(&kept) {
            Ok(bytes) => Sha256::from_bytes(bytes.try_into().ok().context("a root hash of the wrong length")?),
            Err(_) => {
                let hash = write_tree(&data, &hashes, &image.version)?;
                write_uki(image, hash, &uki)?;
                fs::write(&kept, hash.as_bytes()).with_context(|| format!("writing {}", kept.display()))?;
                hash
            }
        };
        Ok(Self { version: image.version.clone(), data, hashes, root_hash, uki, boot_loader: image.boot_loader() })
    }
}

/// Fixed for each version, so that the same image always gives the same tree.
fn parameters(version: &str) -> Parameters {
    let identity = Sha256::of(format!("{PRODUCT} {version}").as_bytes());
    Parameters { salt: identity.as_bytes().to_vec(), uuid: identity.first_half() }
}

fn write_tree(data: &Path, hashes: &Path, version: &str) -> anyhow::Result<Sha256> {
    let file = File::open(data).with_context(|| format!("opening {}", data.display()))?;
    let size = file.metadata()?.len();
    let parameters = parameters(version);
    let tree = verity::build(&file, size, &parameters, NonZeroUsize::MIN, &Watch::none())
        .with_context(|| format!("hashing {}", data.display()))?;
    fs::write(hashes, tree.to_bytes()).with_context(|| format!("writing {}", hashes.display()))?;
    Ok(tree.root_hash())
}

fn write_uki(image: &OsImage, root_hash: Sha256, path: &Path) -> anyhow::Result<()> {
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("reading {}", path.display()));
    let (stub, kernel, initrd) = (read(image.stub())?, read(image.kernel())?, read(image.initrd())?);
    let parts = uki::Parts {
        stub: &stub,
        kernel: &kernel,
        initrd: &initrd,
        command_line: &format!("roothash={root_hash} {COMMAND_LINE}"),
        os_release: &image.os_release,
        kernel_release: None,
    };
    let bytes = uki::build(&parts).with_context(|| format!("building the UKI of {}", image.version))?;
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
