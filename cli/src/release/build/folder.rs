//! The folder that a build leaves: the files under the paths they will have in the repository, and the raw image, which
//! the next release needs as the base of its delta. `release.json` is written last, so that a folder without it is
//! unfinished.
//!
//! A build that failed or was killed leaves a folder that is marked as unfinished: the same command takes it over.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_image::Sha256;
use bascule_image::release::manifest::{self, File as Described, Manifest};
use bascule_names::{Architecture, Digest, Version};

/// Stands in a folder from the beginning of a build to its end.
const UNFINISHED: &str = ".unfinished";
/// Name of the raw image in the folder.
const IMAGE: &str = "image.raw";

/// A build folder.
#[derive(Debug, Clone)]
pub(crate) struct BuildFolder {
    root: PathBuf,
}

impl BuildFolder {
    /// A folder for a new build: it must be missing or empty, or hold a build that was never finished.
    pub(crate) fn create(root: &Path) -> anyhow::Result<Self> {
        let mark = root.join(UNFINISHED);
        let make = || {
            if mark.is_file() {
                for part in [root.join("releases"), root.join(IMAGE)] {
                    match fs::symlink_metadata(&part) {
                        Ok(found) if found.is_dir() => fs::remove_dir_all(&part)?,
                        Ok(_) => fs::remove_file(&part)?,
                        Err(_) => {}
                    }
                }
            }
            fs::create_dir_all(root)
        };
        make().with_context(|| format!("can't make {}", root.display()))?;
        let entries = fs::read_dir(root).with_context(|| format!("can't read {}", root.display()))?;
        let others = entries.flatten().filter(|entry| entry.file_name() != UNFINISHED).count();
        ensure!(others == 0, "{} is not empty; give a new folder for each build", root.display());
        fs::write(&mark, "").with_context(|| format!("can't write {}", mark.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The architectures that a folder holds finished releases for, in the order of their names.
    pub(crate) fn architectures(root: &Path) -> anyhow::Result<Vec<Architecture>> {
        let releases = root.join("releases");
        let failed = || format!("{} is no build folder: it has no releases in it", root.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&releases).with_context(failed)? {
            let version = entry.with_context(|| format!("can't read {}", releases.display()))?.path();
            let all = [Architecture::Arm64, Architecture::X86_64];
            found.extend(all.into_iter().filter(|one| version.join(one.as_str()).join("release.json").is_file()));
        }
        found.sort_unstable_by_key(Architecture::as_str);
        found.dedup();
        Ok(found)
    }

    /// A finished build and its manifest.
    pub(crate) fn open(root: &Path, architecture: Architecture) -> anyhow::Result<(Self, Manifest)> {
        let folder = Self { root: root.to_owned() };
        let releases = root.join("releases");
        let mut found = Vec::new();
        let entries = fs::read_dir(&releases)
            .with_context(|| format!("{} is no build folder: it has no releases in it", root.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("can't read {}", releases.display()))?.path();
            let file = path.join(architecture.as_str()).join("release.json");
            if file.is_file() {
                found.push(file);
            }
        }
        let path = match found.as_slice() {
            [path] => path,
            [] => bail!("{} holds no finished release for {architecture}", root.display()),
            _ => bail!("{} holds more than one release for {architecture}", root.display()),
        };
        let size = fs::metadata(path).with_context(|| format!("can't read {}", path.display()))?.len();
        ensure!(size <= manifest::MAX_LENGTH as u64, "{} is too long for a manifest", path.display());
        let bytes = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let manifest = Manifest::parse(&bytes).with_context(|| format!("{} is no manifest", path.display()))?;
        Ok((folder, manifest))
    }

    /// The path of a file in the repository.
    pub(crate) fn repository_path(version: &Version, architecture: Architecture, name: &str) -> String {
        format!("releases/{version}/{architecture}/{name}")
    }

    /// Where a repository path lies here.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The raw image.
    pub(crate) fn image_path(&self) -> PathBuf {
        self.root.join(IMAGE)
    }

    /// Opens the raw image for reading.
    pub(crate) fn image(&self) -> anyhow::Result<File> {
        let path = self.image_path();
        File::open(&path).with_context(|| format!("can't read {}; a base needs its raw image", path.display()))
    }

    /// Makes a file, and the folders above it.
    pub(crate) fn create_file(&self, path: &str) -> anyhow::Result<File> {
        let path = self.at(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        }
        File::create(&path).with_context(|| format!("can't write {}", path.display()))
    }

    /// Writes a file and describes it for the manifest.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) -> anyhow::Result<Described> {
        self.create_file(path)?.write_all(bytes).with_context(|| format!("can't write {}", self.at(path).display()))?;
        Ok(Described {
            path: path.parse().with_context(|| format!("{path} is no path for a repository"))?,
            size: bytes.len() as u64,
            digest: Digest::from(Sha256::of(bytes)),
        })
    }

    /// Writes the manifest in one step: with it the build is finished.
    pub(crate) fn finish(&self, manifest: &Manifest) -> anyhow::Result<PathBuf> {
        let path = self.at(&Self::repository_path(&manifest.version, manifest.architecture, "release.json"));
        let bytes = manifest.to_bytes().context("the manifest would be refused by a node")?;
        let parent = path.parent().unwrap_or(&self.root);
        let write = || {
            fs::create_dir_all(parent)?;
            let mut file = tempfile::Builder::new().prefix(".release-").tempfile_in(parent)?;
            file.write_all(&bytes)?;
            // Whoever publishes may be another user than whoever built, who is often root.
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            match fs::remove_file(self.root.join(UNFINISHED)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        write().with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }
}
