//! What a partition table lies on.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

/// Size and sector size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Length in bytes.
    pub length: u64,
    /// Logical sector size in bytes, 512 or 4096: the unit in which a partition table counts.
    pub sector: u64,
}

/// A disk, as far as its partition table goes.
pub trait Medium {
    /// Length and sector size.
    fn geometry(&self) -> io::Result<Geometry>;

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes`; whole sectors.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    fn flush(&self) -> io::Result<()>;
}

/// A disk image in a file, or a device node, of known sector size.
#[derive(Debug)]
pub struct FileMedium<'a> {
    /// The file.
    pub file: &'a File,
    /// Bytes of a sector.
    pub sector: u64,
}

impl Medium for FileMedium<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        let mut handle = self.file;
        Ok(Geometry { length: handle.seek(SeekFrom::End(0))?, sector: self.sector })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
