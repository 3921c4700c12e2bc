//! The file system of boot entries: FAT, so nothing on it is atomic but what the agent makes so.

use std::io::{self, Read};

use bascule_image::io::ReadAt;
use uuid::Uuid;

use super::Space;

/// A file in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EspFile {
    /// Its long name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

/// The EFI system partition, or the extended boot loader partition where entries lie there. Paths are relative to its
/// root, with `/` between names, never leading.
///
/// Nothing is durable before [`Esp::sync`]. Errors are those of the file system; a read-only one answers
/// `ReadOnlyFilesystem`, a full one `StorageFull`.
pub trait Esp: Send + Sync {
    /// The files (no directories) of a directory. A missing directory has none.
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>>;

    /// A whole small file. Longer than `limit` bytes is an error (`FileTooLarge`).
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>>;

    /// Opens a file for reading at any place, past the page cache where that is possible.
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>>;

    /// Creates `path` with what `content` gives, replacing an older file, and its directory if that is missing. Does not
    /// read `content` further than its end; an error of `content` ends the writing and is returned as it is.
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<()>;

    /// Writes over the first bytes of a file that is there and longer; nothing else of it changes.
    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Renames a file within its directory. Never replaces another (`AlreadyExists`). Wherever power is lost from then on, also within
    /// the next [`Esp::sync`], the content is found under one of the names, or under both; under neither only where a name lies in two
    /// sectors of the directory.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Puts a file in the place of another one of its directory, whose name it takes. Both must be there, and `from` must be durable. At
    /// each instant, also after a power cut, `to` is whole: what it was, or what `from` was. `from` may be left then, on the same clusters.
    fn replace(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; one that is not there is no error.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Makes everything written so far durable: the files, their directories and the file system (`syncfs`).
    fn sync(&self) -> io::Result<()>;

    /// Room that is left.
    fn space(&self) -> io::Result<Space>;

    /// Whether nothing can be written now: it was mounted so, or the kernel made it so when it found the file system damaged.
    fn is_read_only(&self) -> io::Result<bool>;

    /// The PARTUUID of the partition, `None` where that can't be told.
    fn partition_uuid(&self) -> io::Result<Option<Uuid>> {
        Ok(None)
    }
}
