//! New tables, as an installer makes them.

use std::io::Cursor;

use gptman::{GPT, GPTPartitionEntry};
use uuid::Uuid;

use crate::{Copy, Geometry, Health, Medium, Table, TableError};

/// A partition of a new table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Its number, from 1.
    pub number: u32,
    /// Its type.
    pub kind: Uuid,
    /// Its PARTUUID.
    pub uuid: Uuid,
    /// Its length in bytes; rounded up to whole alignments.
    pub length: u64,
    /// Its label.
    pub label: String,
}

impl Table {
    /// A table with these partitions one after the other, each at the first place where it fits. Nothing is written yet.
    ///
    /// # Errors
    /// The disk is too short, or a number is out of range.
    pub fn create(
        geometry: Geometry,
        identity: Uuid,
        alignment: u64,
        partitions: &[NewPartition],
    ) -> Result<Self, TableError> {
        let encode = |reason: String| TableError::Encode { which: "new partition table", reason };
        let empty = vec![0; usize::try_from(geometry.length.min(4 * geometry.sector)).unwrap_or(0)];
        // The library asks only for the length.
        let mut disk = Long { cursor: Cursor::new(empty), length: geometry.length };
        let created = GPT::new_from(&mut disk, geometry.sector, identity.to_bytes_le());
        let mut gpt = created.map_err(|error| encode(error.to_string()))?;
        gpt.align = (alignment / geometry.sector).max(1);
        for partition in partitions {
            let sectors = partition.length.next_multiple_of(alignment.max(1)) / geometry.sector;
            let start = gpt.find_first_place(sectors).ok_or_else(|| {
                encode(format!("the disk is too short for partition {} ({})", partition.number, partition.label))
            })?;
            let (_, place) = gpt
                .iter_mut()
                .find(|(number, _)| *number == partition.number)
                .ok_or(TableError::Missing(partition.number))?;
            *place = GPTPartitionEntry {
                partition_type_guid: partition.kind.to_bytes_le(),
                unique_partition_guid: partition.uuid.to_bytes_le(),
                starting_lba: start,
                ending_lba: start + sectors - 1,
                attribute_bits: 0,
                partition_name: partition.label.as_str().into(),
            };
        }
        let entries = gpt.iter().map(|(_, entry)| entry.clone()).collect();
        Ok(Self { geometry, header: gpt.header, entries, health: Health::Good })
    }

    /// Writes a new table over whatever was there: the protective MBR and both copies.
    ///
    /// # Errors
    /// The disk fails.
    pub fn install(&self, disk: &(impl Medium + ?Sized)) -> Result<(), TableError> {
        let failed = |source| TableError::Disk { doing: "writing", which: "protective MBR", source };
        let mut first = Long { cursor: Cursor::new(Vec::new()), length: self.geometry.length };
        GPT::write_protective_mbr_into(&mut first, self.geometry.sector)
            .map_err(|error| TableError::Encode { which: "protective MBR", reason: error.to_string() })?;
        let mut bytes = first.cursor.into_inner();
        bytes.resize(usize::try_from(self.geometry.sector).unwrap_or(512), 0);
        disk.write(0, &bytes).map_err(failed)?;
        self.write_copy(disk, Copy::Backup)?;
        self.write_copy(disk, Copy::Primary)
    }
}

/// A disk in memory that is longer than what is kept of it.
struct Long {
    cursor: Cursor<Vec<u8>>,
    length: u64,
}

impl std::io::Read for Long {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::io::Read::read(&mut self.cursor, buffer)
    }
}

impl std::io::Write for Long {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::Write::write(&mut self.cursor, bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Long {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let to = match to {
            std::io::SeekFrom::End(back) => {
                let place = self.length.checked_add_signed(back).ok_or(std::io::ErrorKind::InvalidInput)?;
                std::io::SeekFrom::Start(place)
            }
            other => other,
        };
        std::io::Seek::seek(&mut self.cursor, to)
    }
}
