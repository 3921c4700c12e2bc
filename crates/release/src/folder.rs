//! The folder that a build leaves: the files under the paths they will have in the repository, and the raw image, which
//! the next release needs as the base of its delta. `release.json` is written last, so that a folder without it is
//! unfinished.
//!
//! A build that failed or was killed leaves a folder that is marked as unfinished: the same command takes it over.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bascule_image::Sha256;
use bascule_image::release::manifest::{self, File as Described, Manifest};
use bascule_image::release::names::TargetPath;
use bascule_names::{Architecture, Digest};

use crate::{Error, Identity, read_bounded};

/// Stands in a folder from the beginning of a build to its end.
const UNFINISHED: &str = ".unfinished";
/// Name of the raw image in the folder.
const IMAGE: &str = "image.raw";

/// A build folder.
#[derive(Debug, Clone)]
pub struct BuildFolder {
    root: PathBuf,
}

impl BuildFolder {
    /// A folder for a new build: it must be missing or empty, or hold a build that was never finished.
    ///
    /// # Errors
    /// It holds something else, or can't be made.
    pub fn create(root: &Path) -> Result<Self, Error> {
        let mark = root.join(UNFINISHED);
        let make = || {
            if mark.is_file() {
                for part in [root.join("releases"), root.join(IMAGE)] {
                    match fs::symlink_metadata(&part) {
                        Ok(found) if found.is_dir() => fs::remove_dir_all(&part)?,
                        Ok(_) => fs::remove_file(&part)?,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            fs::create_dir_all(root)
        };
        make().map_err(Error::make(root))?;
        for entry in fs::read_dir(root).map_err(Error::read(root))? {
            if entry.map_err(Error::read(root))?.file_name() != UNFINISHED {
                return Err(Error::NotEmpty(root.to_owned()));
            }
        }
        fs::write(&mark, "").map_err(Error::write(&mark))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The architectures that a folder holds finished releases for, in the order of their names.
    ///
    /// # Errors
    /// It is no build folder, or can't be read.
    pub fn architectures(root: &Path) -> Result<Vec<Architecture>, Error> {
        let releases = root.join("releases");
        let mut found = Vec::new();
        for entry in read_releases(root, &releases)? {
            let version = entry.map_err(Error::read(&releases))?.path();
            let all = [Architecture::Arm64, Architecture::X86_64];
            found.extend(all.into_iter().filter(|one| version.join(one.as_str()).join("release.json").is_file()));
        }
        found.sort_unstable_by_key(Architecture::as_str);
        found.dedup();
        Ok(found)
    }

    /// A finished build and its manifest.
    ///
    /// # Errors
    /// It holds no release for this architecture, or several, or one that no node would take.
    pub fn open(root: &Path, architecture: Architecture) -> Result<(Self, Manifest), Error> {
        let releases = root.join("releases");
        let mut found = Vec::new();
        for entry in read_releases(root, &releases)? {
            let path = entry.map_err(Error::read(&releases))?.path();
            let file = path.join(architecture.as_str()).join("release.json");
            if file.is_file() {
                found.push(file);
            }
        }
        let path = match found.as_slice() {
            [path] => path,
            [] => return Err(Error::NoRelease { path: root.to_owned(), architecture }),
            _ => return Err(Error::SeveralReleases { path: root.to_owned(), architecture }),
        };
        let bytes = read_bounded(path, manifest::MAX_LENGTH as u64)?;
        let manifest = Manifest::parse(&bytes).map_err(|source| Error::NoManifest { path: path.to_owned(), source })?;
        Ok((Self { root: root.to_owned() }, manifest))
    }

    /// Where a repository path lies here.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The raw image.
    #[must_use]
    pub fn image_path(&self) -> PathBuf {
        self.root.join(IMAGE)
    }

    /// Opens the raw image for reading.
    ///
    /// # Errors
    /// It can't be read.
    pub fn image(&self) -> Result<File, Error> {
        let path = self.image_path();
        File::open(&path).map_err(|source| Error::NoImage { path, source })
    }

    /// Makes a file, and the folders above it.
    ///
    /// # Errors
    /// A folder can't be made, or the file not be written.
    pub fn create_file(&self, path: &str) -> Result<File, Error> {
        let path = self.at(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::make(parent))?;
        }
        File::create(&path).map_err(Error::write(&path))
    }

    /// Writes a file and describes it for the manifest.
    ///
    /// # Errors
    /// It can't be written, or no repository would take its path.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<Described, Error> {
        self.create_file(path)?.write_all(bytes).map_err(Error::write(&self.at(path)))?;
        Ok(Described {
            path: repository_path(path)?,
            size: bytes.len() as u64,
            digest: Digest::from(Sha256::of(bytes)),
        })
    }

    /// Writes the manifest in one step: with it the build is finished.
    ///
    /// # Errors
    /// A node would refuse it, or it can't be written.
    pub fn finish(&self, manifest: &Manifest) -> Result<PathBuf, Error> {
        let Manifest { product, version, architecture, .. } = manifest;
        let identity = Identity { product, version, architecture: *architecture };
        let path = self.at(&identity.path("release.json"));
        let bytes = manifest.to_bytes().map_err(Error::Refused)?;
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
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        write().map_err(Error::write(&path))?;
        Ok(path)
    }
}

/// The folders of releases in a build folder.
fn read_releases(root: &Path, releases: &Path) -> Result<fs::ReadDir, Error> {
    fs::read_dir(releases).map_err(|source| Error::NoBuildFolder { path: root.to_owned(), source })
}

/// A path as a manifest names it.
pub(crate) fn repository_path(path: &str) -> Result<TargetPath, Error> {
    path.parse().map_err(|source| Error::NoRepositoryPath { path: path.to_owned(), source })
}
