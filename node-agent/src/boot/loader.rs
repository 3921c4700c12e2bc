//! The boot loader itself: what lies on the ESP, whether the one in the running image would be started here, and how it takes the place
//! of the other. What is to be done is decided in [`crate::core::boot`].

use std::io;

use bascule_api::{Architecture, Digest, NodeError};
use bascule_image::boot_loader::{self, BootLoader};
use bascule_image::digest::Sha256;
use bascule_image::release::manifest;
use bascule_image::uki::ReadUkiError;
use bascule_secure_boot::{Refusal, SecureBoot, StateError, judge};

use super::BootError;
use super::error::esp;
use super::files::digest;
use crate::core::boot::{
    ExpectedLoader, LoaderChange, LoaderContent, LoaderCopy, LoaderFacts, LoaderPlace, LoaderStep, is_beside,
};
use crate::engine::in_one_line;
use crate::host::{Esp, Firmware, SystemInfo};

/// The variable with the file that the boot loader was started from.
const IMAGE: &str = "LoaderImageIdentifier";

/// Why the boot loader could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The running image can't be read.
    #[error("the boot loader in the running image could not be read")]
    Image(#[source] io::Error),
    /// It has another one, or none.
    #[error(
        "the running image has no systemd-boot with {wanted} in {folder}, which its manifest names: it was changed after the release \
         was built, or something is mounted over it"
    )]
    Missing {
        /// The digest of the one that was signed.
        wanted: Digest,
        /// Where it should be.
        folder: &'static str,
    },
    /// It can't be looked at.
    #[error("the boot loader can't be looked at")]
    Unreadable(#[from] ReadUkiError),
    /// It is not what the manifest says.
    #[error(
        "the release's boot loader is {found}, and not systemd-boot {wanted} for {architecture}: publish one that is"
    )]
    Other {
        /// What it is.
        found: String,
        /// The version in the manifest.
        wanted: String,
        /// The machine's.
        architecture: Architecture,
    },
    /// What the firmware checks by is not known.
    #[error("whether this machine's firmware would start the boot loader can't be told")]
    State(#[from] StateError),
    /// The firmware would refuse it.
    #[error("this machine's firmware would refuse systemd-boot {version}, so the one that it has stays")]
    SecureBoot {
        /// Its version.
        version: String,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// The ESP.
    #[error(transparent)]
    Esp(#[from] BootError),
    /// The medium gave back something else than was written. What was in place is in place.
    #[error("{path} on the ESP read back as something else than was written")]
    ReadBack {
        /// The file.
        path: String,
    },
}

impl LoaderError {
    /// The kind, for conditions and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Image(_) | Self::Unreadable(_) | Self::ReadBack { .. } => NodeError::Storage,
            Self::Missing { .. } => NodeError::Trust,
            Self::Other { .. } => NodeError::Unsuitable,
            Self::State(_) => NodeError::BootControl,
            Self::SecureBoot { .. } => NodeError::SecureBoot,
            Self::Esp(error) => error.category(),
        }
    }

    /// Whether trying again soon may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Esp(error) if error.is_transient())
    }
}

/// Reads what lies on the ESP where a boot loader is started from, and what says from where this one was.
pub(super) fn look(esp_fs: &dyn Esp, firmware: &dyn Firmware, architecture: Architecture, facts: &mut LoaderFacts) {
    match firmware.variable(IMAGE) {
        Ok(value) => facts.image = value.map(|bytes| super::inventory::lossy_utf16(&bytes)),
        Err(error) => facts.image_unread = Some(format!("the EFI variable {IMAGE}: {error}")),
    }
    for place in LoaderPlace::ALL {
        let (folder, name) = place.file(architecture);
        let files = match esp_fs.list(folder) {
            Ok(files) => files,
            Err(error) => {
                let content = LoaderContent::Unread(error.to_string());
                facts.copies.push(LoaderCopy { place, path: folder.to_owned(), size: 0, content, digest: None });
                continue;
            }
        };
        let found = |name: &str, size, (content, digest)| LoaderCopy {
            place,
            path: format!("{folder}/{name}"),
            size,
            content,
            digest,
        };
        let in_place = files.iter().find(|file| file.name.eq_ignore_ascii_case(&name));
        let in_place = in_place.map(|file| {
            let seen = read(esp_fs, &format!("{folder}/{}", file.name), file.size);
            found(&file.name, file.size, seen)
        });
        for file in files.iter().filter(|file| is_beside(&file.name)) {
            // What is not finished may have clusters that are free. Only what may be one file with what is in place is read.
            let may_be_the_same = in_place.as_ref().is_some_and(|copy| copy.size == file.size);
            let seen = if may_be_the_same {
                read(esp_fs, &format!("{folder}/{}", file.name), file.size)
            } else {
                (LoaderContent::Other, None)
            };
            facts.beside.push(found(&file.name, file.size, seen));
        }
        facts.copies.extend(in_place);
    }
}

/// What a file is, and its digest.
fn read(esp_fs: &dyn Esp, path: &str, size: u64) -> (LoaderContent, Option<Digest>) {
    if size > boot_loader::MAX_SIZE {
        return (LoaderContent::Other, None);
    }
    let read = || -> Result<(LoaderContent, Digest), BootError> {
        let (digest, length) = digest(esp_fs, path)?;
        if length == 0 && size == 0 {
            return Ok((LoaderContent::Empty, digest));
        }
        let file = esp_fs.open(path).map_err(esp("opening", path))?;
        let found = BootLoader::read(&*file).map_err(|error| esp("reading", path)(io::Error::other(error)))?;
        let content = found.map_or(LoaderContent::Other, |loader| LoaderContent::SystemdBoot(loader.version));
        Ok((content, digest))
    };
    match read() {
        Ok((content, digest)) => (content, Some(digest)),
        Err(error) => (LoaderContent::Unread(in_one_line(&error)), None),
    }
}

/// The boot loader in the running image, if it is the one that was signed and this machine would start it.
///
/// # Errors
/// [`LoaderError`]; nothing was changed.
pub fn brought(
    system: &dyn SystemInfo,
    firmware: &dyn Firmware,
    architecture: Architecture,
    wanted: &manifest::BootLoader,
) -> Result<Vec<u8>, LoaderError> {
    let candidates = system.boot_loaders(architecture).map_err(LoaderError::Image)?;
    let is_it = |bytes: &Vec<u8>| bytes.len() as u64 == wanted.size && Digest::from(Sha256::of(bytes)) == wanted.digest;
    let Some(bytes) = candidates.into_iter().find(is_it) else {
        return Err(LoaderError::Missing { wanted: wanted.digest.clone(), folder: boot_loader::FOLDER });
    };
    let other = |found: String| LoaderError::Other { found, wanted: wanted.version.clone(), architecture };
    let found = BootLoader::read(&bytes)?.ok_or_else(|| other("no systemd-boot".to_owned()))?;
    if found.version != wanted.version || !found.processor.is(architecture) {
        return Err(other(format!("systemd-boot {} for {}", found.version, found.processor)));
    }
    match SecureBoot::read(|vendor, name| firmware.variable_of(vendor, name))? {
        SecureBoot::Off { why } => tracing::debug!(why, "the boot loader's signature is not checked here"),
        SecureBoot::On { databases, .. } => {
            judge(&bytes, &databases)
                .map_err(|source| LoaderError::SecureBoot { version: wanted.version.clone(), source })?;
        }
    }
    Ok(bytes)
}

/// Carries changes out in order; the first that fails ends them.
///
/// # Errors
/// [`LoaderError`]. Whatever fails, what is in place is whole.
pub fn place(esp_fs: &dyn Esp, step: &LoaderStep, bytes: &[u8]) -> Result<(), LoaderError> {
    // All are looked at before the first: they may be one file under two names, of which nothing is left to be seen once one of them
    // leads elsewhere.
    for change in &step.changes {
        let (LoaderChange::Remove { path, expect } | LoaderChange::Replace { path, expect, .. }) = change;
        find(esp_fs, path, expect)?;
    }
    for change in &step.changes {
        match change {
            LoaderChange::Remove { path, .. } => {
                esp_fs.remove(path).map_err(esp("removing", path))?;
                esp_fs.sync().map_err(esp("syncing", path))?;
            }
            LoaderChange::Replace { path, beside, .. } => {
                let mut content = bytes;
                esp_fs.write(beside, &mut content).map_err(esp("writing", beside))?;
                esp_fs.sync().map_err(esp("syncing", beside))?;
                is_written(esp_fs, beside, &step.loader)?;
                esp_fs.replace(beside, path).map_err(esp("replacing", path))?;
                esp_fs.sync().map_err(esp("syncing", path))?;
                is_written(esp_fs, path, &step.loader)?;
            }
        }
    }
    Ok(())
}

fn is_written(esp_fs: &dyn Esp, path: &str, loader: &manifest::BootLoader) -> Result<(), LoaderError> {
    if digest(esp_fs, path)? == (loader.digest.clone(), loader.size) {
        return Ok(());
    }
    Err(LoaderError::ReadBack { path: path.to_owned() })
}

/// Looks whether a file is what is expected.
fn find(esp_fs: &dyn Esp, path: &str, expect: &ExpectedLoader) -> Result<(), LoaderError> {
    let unexpected = |reason: String| Err(BootError::Unexpected { path: path.to_owned(), reason }.into());
    let (folder, name) = path.rsplit_once('/').unwrap_or_default();
    let files = esp_fs.list(folder).map_err(esp("listing", folder))?;
    match files.iter().find(|file| file.name == name).map(|file| file.size) {
        None => return unexpected("it is gone".to_owned()),
        Some(size) if size != expect.size => return unexpected(format!("it has {size} bytes, not {}", expect.size)),
        Some(_) => {}
    }
    if let Some(wanted) = &expect.digest
        && digest(esp_fs, path)?.0 != *wanted
    {
        return unexpected("its content changed".to_owned());
    }
    Ok(())
}
