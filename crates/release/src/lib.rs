//! From a file system image to a folder that a repository publishes: verity tree, boot image, packs, manifest.
//!
//! This is what `bascule release build` does once it has an image and has looked at it. Whatever else makes releases, of the tests and
//! of the sandbox, makes them with this crate, so that what they install is what a vendor's command would have built. It reads and
//! writes files, and knows no repository, no private key, no network and no clock: what signs is called.

mod boot;
mod error;
mod folder;
mod identity;
pub mod policy;
mod release;

pub use boot::{BootParts, Pcr};
pub use error::Error;
pub use folder::BuildFolder;
pub use identity::Identity;
pub use release::{Base, Extras, Hashed, Release};

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// It can't be read, or is longer.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes));
    read.map_err(Error::read(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLong { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
