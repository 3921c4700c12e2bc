//! One partition of a disk, written through the cache of its own device node.

use std::io;

use super::{Cache, Disk};

/// A byte range of a disk with its own page cache: what `/dev/disk/by-partuuid/…` opens.
#[derive(Clone, Debug)]
pub struct Part {
    disk: Disk,
    cache: Cache,
    offset: u64,
    length: u64,
}

impl Part {
    /// The range of `length` bytes from `offset`, written through `cache`.
    pub fn new(disk: Disk, cache: Cache, offset: u64, length: u64) -> Self {
        Self { disk, cache, offset, length }
    }

    /// The whole disk, as its own device node shows it.
    pub fn whole(disk: &Disk) -> Self {
        Self { disk: disk.clone(), cache: Cache::WHOLE, offset: 0, length: disk.length() }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Offset on the disk in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Through which cache this partition is written.
    pub fn cache(&self) -> Cache {
        self.cache
    }

    /// The disk that the partition lies on.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads through the page cache.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.position(offset, buffer.len())?;
        self.disk.read(self.cache, at, buffer)
    }

    /// Reads past the page cache.
    pub fn read_direct(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.position(offset, buffer.len())?;
        self.disk.read_direct(self.cache, at, buffer)
    }

    /// What the page cache and what the medium hold at one place, as the simulation itself sees it: no fault strikes.
    pub(crate) fn peek(&self, offset: u64, cached: &mut [u8], medium: &mut [u8]) -> io::Result<()> {
        let at = self.position(offset, cached.len())?;
        self.disk.peek(at, cached, medium)
    }

    /// Writes and says how many bytes were taken.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let at = self.position(offset, data.len())?;
        self.disk.write(self.cache, at, data)
    }

    /// Writes all of `data`.
    pub fn write_all(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.position(offset, data.len())?;
        self.disk.write_all(self.cache, at, data)
    }

    /// Makes what was written through this partition durable.
    pub fn flush(&self) -> io::Result<()> {
        self.disk.flush(self.cache)
    }

    fn position(&self, offset: u64, length: usize) -> io::Result<u64> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.length => Ok(self.offset + offset),
            // EINVAL: past the end of the partition.
            _ => Err(io::Error::from_raw_os_error(22)),
        }
    }
}

/// The position after a seek in something of `length` bytes.
pub(crate) fn seek(position: u64, length: u64, to: io::SeekFrom) -> io::Result<u64> {
    let target = match to {
        io::SeekFrom::Start(at) => Some(at),
        io::SeekFrom::Current(by) => position.checked_add_signed(by),
        io::SeekFrom::End(by) => length.checked_add_signed(by),
    };
    target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))
}
