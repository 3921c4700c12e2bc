//! What goes onto a disk, each part looked at before it is taken: the release against its manifest, the boot loader, files of the
//! vendor's own.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_disk::{BootFiles, BootLoader};
use bascule_image::release::manifest::{MAX_UKI_SIZE, Manifest};
use bascule_image::verity::{self, Parameters};
use bascule_image::{Sha256, io::ReadAt as _};
use bascule_names::{Architecture, Digest, RootHash};
use bascule_release::{BuildFolder, read_bounded};

use crate::release::build::check::{Finding, ONE_SIGNED, is_signed};
use crate::release::progress::Bar;

/// Longest file of a vendor's own on the ESP: a boot image of another system, at most.
const MAX_FILE: u64 = MAX_UKI_SIZE;
/// Folders within folders that are followed.
const MAX_DEPTH: usize = 16;

/// A build folder of which nothing is trusted but what fits its manifest.
#[derive(Debug)]
pub(crate) struct Release {
    folder: BuildFolder,
    manifest: Manifest,
}

impl Release {
    pub(crate) fn open(root: &Path, architecture: Option<Architecture>) -> anyhow::Result<Self> {
        let found = BuildFolder::architectures(root)?;
        let architecture = match (architecture, found.as_slice()) {
            (Some(asked), _) if found.contains(&asked) => asked,
            (Some(asked), [_, ..]) => {
                let names: Vec<&str> = found.iter().map(Architecture::as_str).collect();
                bail!("{} is built for {}, not for {asked}", root.display(), names.join(" and "))
            }
            (None, [only]) => *only,
            (None, [_, _, ..]) => bail!("{} is built for several architectures: say --architecture", root.display()),
            (_, []) => bail!("{} holds no finished release: make one with bascule release build", root.display()),
        };
        let (folder, manifest) = BuildFolder::open(root, architecture)?;
        Ok(Self { folder, manifest })
    }

    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) const fn architecture(&self) -> Architecture {
        self.manifest.architecture
    }

    pub(crate) fn image(&self) -> anyhow::Result<File> {
        Ok(self.folder.image()?)
    }

    /// The boot image, if it is the manifest's.
    pub(crate) fn boot_image(&self) -> anyhow::Result<Vec<u8>> {
        let described = &self.manifest.uki;
        let path = self.folder.at(described.path.as_str());
        let bytes = read_bounded(&path, MAX_UKI_SIZE)?;
        ensure!(
            bytes.len() as u64 == described.size && Digest::from(Sha256::of(&bytes)) == described.digest,
            "{} is not the boot image that the manifest describes: build the release again",
            path.display()
        );
        Ok(bytes)
    }

    /// Root hash, superblock and hash tree of the image, if it is the manifest's.
    pub(crate) fn verified(&self) -> anyhow::Result<(Sha256, Vec<u8>)> {
        let image = self.image()?;
        let size = image.size().context("can't measure the image")?;
        let verity = &self.manifest.verity;
        let parameters = Parameters { salt: verity.salt.clone(), uuid: *verity.uuid.as_bytes() };
        let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let tree = Bar::new("verity tree", size)
            .during(|watch| verity::build(&image, size, &parameters, workers, watch))
            .context("can't compute the verity tree")?;
        let root_hash = tree.root_hash();
        ensure!(
            size == self.manifest.image.size && verity.root_hash == RootHash::from(root_hash),
            "{} is not the image that the manifest describes (root hash {}): build the release again",
            self.folder.image_path().display(),
            verity.root_hash
        );
        Ok((root_hash, tree.to_bytes()))
    }
}

/// systemd-boot, checked.
pub(crate) fn boot_loader(path: Option<&Path>, architecture: Architecture) -> anyhow::Result<Vec<u8>> {
    let usual = PathBuf::from(BootLoader::usual_path(architecture));
    let path = path.unwrap_or(&usual);
    ensure!(
        path.is_file(),
        "{} is not there; install systemd's boot loader (apt install systemd-boot-efi) or name it with --boot-loader",
        path.display()
    );
    let bytes = read_bounded(path, MAX_UKI_SIZE)?;
    BootLoader::parse(&bytes, architecture).with_context(|| format!("{} is not usable", path.display()))?;
    Ok(bytes)
}

/// With Secure Boot the firmware judges both.
#[allow(clippy::ptr_arg, reason = "the reader of signatures takes a sized thing")]
pub(crate) fn both_signed(boot_loader: &Vec<u8>, boot_image: &Vec<u8>) -> anyhow::Result<Vec<Finding>> {
    let loader = is_signed(boot_loader).context("can't read the boot loader's signature")?;
    let image = is_signed(boot_image).context("can't read the boot image's signature")?;
    Ok(match (loader, image) {
        (true, false) => vec![ONE_SIGNED.found("the boot loader is signed for Secure Boot, the boot image is not")],
        (false, true) => vec![ONE_SIGNED.found("the boot image is signed for Secure Boot, the boot loader is not")],
        _ => Vec::new(),
    })
}

/// Adds the files of a folder.
pub(crate) fn add_folder(files: &mut BootFiles, folder: &Path) -> anyhow::Result<()> {
    ensure!(folder.is_dir(), "{} is no folder", folder.display());
    add(files, folder, "", 0)
}

fn add(files: &mut BootFiles, folder: &Path, inside: &str, depth: usize) -> anyhow::Result<()> {
    ensure!(depth <= MAX_DEPTH, "{} lies more than {MAX_DEPTH} folders deep", folder.display());
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.with_context(|| format!("can't read {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let place = format!("{inside}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().with_context(|| format!("can't read {}", path.display()))?;
        if kind.is_dir() {
            add(files, &path, &format!("{place}/"), depth + 1)?;
        } else if kind.is_file() {
            files.add(&place, read_bounded(&path, MAX_FILE)?)?;
        } else {
            bail!("{} is neither file nor folder: FAT has nothing else", path.display());
        }
    }
    Ok(())
}
