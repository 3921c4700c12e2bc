//! The partition table of the host's disk. Reading, judging and writing both copies is `bascule-gpt`'s.

use std::io;

use bascule_api::NodeError;
pub use bascule_gpt::{Change, TableError};
use bascule_gpt::{Geometry, Health, Medium};
use uuid::Uuid;

use crate::core::{Partition, TableHealth};
use crate::host::{Disk, Extent};

/// The host's disk as a medium of tables.
struct Whole<'a>(&'a dyn Disk);

impl Medium for Whole<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        self.0.geometry()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The kind of an error, for status and metrics.
pub const fn category(error: &TableError) -> NodeError {
    match error {
        TableError::Label(_) | TableError::Encode { .. } => NodeError::Internal,
        TableError::Taken { .. } => NodeError::Unsuitable,
        _ => NodeError::Storage,
    }
}

/// A partition table in memory.
#[derive(Debug, Clone)]
pub struct Table(bascule_gpt::Table);

impl Table {
    /// Reads both copies. The primary decides where both are valid and differ, as firmware and kernel see it.
    ///
    /// # Errors
    /// The disk can't be read, or neither copy is valid.
    pub fn read(disk: &dyn Disk) -> Result<Self, TableError> {
        bascule_gpt::Table::read(&Whole(disk)).map(Self)
    }

    /// How the copies are.
    pub const fn health(&self) -> TableHealth {
        match self.0.health() {
            Health::Good => TableHealth::Good,
            Health::PrimaryBroken => TableHealth::PrimaryBroken,
            Health::PrimaryUnread => TableHealth::PrimaryUnread,
            Health::BackupBroken => TableHealth::BackupBroken,
        }
    }

    /// The partitions in use, by number, with their types.
    pub fn partitions(&self) -> Vec<(Uuid, Partition)> {
        let partitions = self.0.partitions().into_iter();
        let described = partitions.map(|found| {
            let extent = Extent { start: found.start, length: found.length };
            let (number, uuid, label, attributes) = (found.number, found.uuid, found.label, found.attributes);
            (found.kind, Partition { number, extent, uuid, label, attributes })
        });
        described.collect()
    }

    /// Changes an entry in memory.
    ///
    /// # Errors
    /// There is no such partition, or the label is too long.
    pub fn change(&mut self, number: u32, change: &Change) -> Result<(), TableError> {
        self.0.change(number, change)
    }

    /// Writes both copies, the backup first, each flushed, then reads both back.
    ///
    /// # Errors
    /// The disk fails, or does not give back what was written.
    pub fn write(&mut self, disk: &dyn Disk) -> Result<(), TableError> {
        self.0.write(&Whole(disk))
    }
}
