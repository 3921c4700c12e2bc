//! What a unified kernel image says about itself, as far as the agent decides by it.

use std::io;

use bascule_api::RootHash;
use bascule_image::io::ReadAt;
use bascule_image::uki::{ReadUkiError, Uki};

/// What a boot loader and the agent read from an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UkiFacts {
    /// What the boot loader sorts by first.
    pub sort_key: Option<String>,
    /// What it sorts by next.
    pub version: Option<String>,
    /// The root hash on its command line; none where that names none of ours, or is none that could be read as text.
    pub root_hash: Option<RootHash>,
}

/// Reads them. `None` if the bytes were read and are no image that a boot loader shows: none at all, or one whose os-release has no
/// name, which systemd-boot passes over.
///
/// # Errors
/// Reading failed: nothing is known about the file.
pub fn read(file: &dyn ReadAt) -> io::Result<Option<UkiFacts>> {
    match facts(file) {
        Ok(facts) => Ok(facts),
        Err(ReadUkiError::NotUki(_)) => Ok(None),
        Err(ReadUkiError::Unreadable { source, .. }) => Err(source),
    }
}

fn facts(file: &dyn ReadAt) -> Result<Option<UkiFacts>, ReadUkiError> {
    let uki = Uki::open(file)?;
    let release = uki.os_release()?;
    if release.title().is_none() {
        return Ok(None);
    }
    // The boot loader shows it whatever its command line says (systemd, src/boot/boot.c: `.osrel` decides).
    let root_hash = match uki.root_hash() {
        Ok(root_hash) => root_hash,
        Err(ReadUkiError::NotUki(_)) => None,
        Err(error) => return Err(error),
    };
    Ok(Some(UkiFacts {
        sort_key: release.sort_key().map(str::to_owned),
        version: release.version().map(str::to_owned),
        root_hash,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_none() {
        assert_eq!(read(&b"MZ".to_vec()).unwrap(), None);
        assert_eq!(read(&Vec::new()).unwrap(), None);
    }
}
