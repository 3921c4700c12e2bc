//! The disk that holds the slots: raw access to its partition table, and to the content of one partition.

use std::io;

use bascule_image::io::{ReadAt, Sink};

use super::Extent;

pub use bascule_gpt::Geometry as DiskGeometry;

/// A disk with a GUID partition table.
///
/// The table is read and written through the device node of the whole disk ([`Disk::read`], [`Disk::write`],
/// [`Disk::flush`]), a partition's content through the partition's own. The agent never writes outside the table and
/// the partitions of the inactive slot.
pub trait Disk: Send + Sync {
    /// Length and sector size.
    fn geometry(&self) -> io::Result<DiskGeometry>;

    /// Reads from the whole disk, past the page cache where that is possible: a partition table is read again after it
    /// was written.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` to the whole disk. Used for partition tables only; whole sectors.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what [`Disk::write`] wrote durable.
    fn flush(&self) -> io::Result<()>;

    /// Opens a partition for writing. `number` counts from 1 as in the table.
    fn partition(&self, number: u32, extent: Extent) -> io::Result<Box<dyn Sink>>;

    /// Opens a partition for reading past the page cache (`O_DIRECT`, or pages dropped before): what the medium holds.
    /// Callers read whole multiples of 4096 bytes at such offsets into buffers aligned to 4096.
    fn partition_direct(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>>;

    /// Opens a partition for reading through the page cache: the base of a delta.
    fn partition_read(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>>;
}
