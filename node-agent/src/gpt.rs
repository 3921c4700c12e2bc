//! The partition table: both copies are read and judged, and written in an order that survives power loss.
//!
//! A GUID partition table lies on the disk twice (UEFI specification 2.10, section 5.3.2). A change touches some thirty
//! sectors of each copy, and only single sectors are written whole, so: the backup first, flushed, then the primary,
//! flushed. At every instant one copy is valid, and it says the old or the new.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use bascule_api::NodeError;
use gptman::{GPTHeader, GPTPartitionEntry};
use uuid::Uuid;

use crate::core::{Partition, TableHealth};
use crate::host::{Disk, DiskGeometry, Extent};

/// Size of an entry; the only one that is in use.
const ENTRY_SIZE: u32 = 128;
/// More entries than this are not accepted; 128 is usual.
const MAX_ENTRIES: u32 = 1024;

/// Header and entries of one copy lie within so many bytes.
const MAX_TABLE: usize = 1 << 20;

/// Why the partition table can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Reading or writing failed.
    #[error("{doing} the {which} failed")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// Which copy.
        which: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither copy is valid.
    #[error("the disk has no valid partition table (primary: {primary}; backup: {backup}): repair it with gdisk")]
    Invalid {
        /// What is wrong with the primary copy.
        primary: String,
        /// What is wrong with the backup copy.
        backup: String,
    },
    /// A copy can't be put into bytes.
    #[error("the {which} can't be put together: {reason}")]
    Encode {
        /// Which copy.
        which: &'static str,
        /// Why.
        reason: String,
    },
    /// There is no partition with this number.
    #[error("there is no partition {0}")]
    Missing(u32),
    /// A label does not fit.
    #[error("the label '{0}' has more than 36 characters")]
    Label(String),
    /// What was read back is not what was written.
    #[error("the {which} does not read back as it was written: the disk lies, replace it")]
    ReadBack {
        /// Which copy.
        which: &'static str,
    },
}

impl TableError {
    /// The kind, for status and metrics.
    pub const fn category(&self) -> NodeError {
        match self {
            Self::Label(_) | Self::Encode { .. } => NodeError::Internal,
            _ => NodeError::Storage,
        }
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Primary,
    Backup,
}

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary partition table",
            Self::Backup => "backup partition table",
        }
    }
}

/// What to change of one entry. What is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The label.
    pub label: Option<String>,
    /// The PARTUUID.
    pub uuid: Option<Uuid>,
    /// Attribute bits to set.
    pub set: u64,
    /// Attribute bits to clear.
    pub clear: u64,
}

/// A partition table in memory.
#[derive(Debug, Clone)]
pub struct Table {
    geometry: DiskGeometry,
    /// As the primary copy has it.
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    health: TableHealth,
}

impl Table {
    /// Reads both copies. The primary decides where both are valid and differ, as firmware and kernel see it.
    ///
    /// # Errors
    /// The disk can't be read, or neither copy is valid.
    pub fn read(disk: &dyn Disk) -> Result<Self, TableError> {
        let failed = |source| TableError::Disk { doing: "measuring", which: "disk", source };
        let geometry = disk.geometry().map_err(failed)?;
        let primary = read_copy(disk, geometry, Which::Primary, 1);
        let last = (geometry.length / geometry.sector.max(1)).saturating_sub(1);
        let backup_at = primary.as_ref().map_or(last, |(header, _)| header.backup_lba);
        let backup = read_copy(disk, geometry, Which::Backup, backup_at);
        let (header, entries, health) = match (primary, backup) {
            (Ok((header, entries)), Ok((other, copies))) => {
                let same =
                    other.backup_lba == header.primary_lba && other.disk_guid == header.disk_guid && entries == copies;
                (header, entries, if same { TableHealth::Good } else { TableHealth::BackupBroken })
            }
            (Ok((header, entries)), Err(_)) => (header, entries, TableHealth::BackupBroken),
            (Err(_), Ok((header, entries))) => {
                let primary = GPTHeader {
                    primary_lba: header.backup_lba,
                    backup_lba: header.primary_lba,
                    partition_entry_lba: 2,
                    ..header
                };
                (primary, entries, TableHealth::PrimaryBroken)
            }
            (Err(primary), Err(backup)) => {
                return Err(TableError::Invalid { primary: primary.to_string(), backup: backup.to_string() });
            }
        };
        Ok(Self { geometry, header, entries, health })
    }

    /// How the copies are.
    pub const fn health(&self) -> TableHealth {
        self.health
    }

    /// The partitions in use, by number, with their types.
    pub fn partitions(&self) -> Vec<(Uuid, Partition)> {
        let used = (1_u32..).zip(&self.entries).filter(|(_, entry)| entry.is_used());
        used.map(|(number, entry)| (Uuid::from_bytes_le(entry.partition_type_guid), self.describe(number, entry)))
            .collect()
    }

    fn describe(&self, number: u32, entry: &GPTPartitionEntry) -> Partition {
        let sector = self.geometry.sector;
        let sectors = entry.ending_lba.saturating_sub(entry.starting_lba).saturating_add(1);
        Partition {
            number,
            extent: Extent { start: entry.starting_lba.saturating_mul(sector), length: sectors.saturating_mul(sector) },
            uuid: Uuid::from_bytes_le(entry.unique_partition_guid),
            label: entry.partition_name.as_str().to_owned(),
            attributes: entry.attribute_bits,
        }
    }

    /// Changes an entry in memory.
    ///
    /// # Errors
    /// There is no such partition, or the label is too long.
    pub fn change(&mut self, number: u32, change: &Change) -> Result<(), TableError> {
        let index = usize::try_from(number).unwrap_or(usize::MAX).checked_sub(1);
        let entry = index
            .and_then(|index| self.entries.get_mut(index))
            .filter(|entry| entry.is_used())
            .ok_or(TableError::Missing(number))?;
        if let Some(label) = &change.label {
            if label.encode_utf16().count() > 36 {
                return Err(TableError::Label(label.clone()));
            }
            entry.partition_name = label.as_str().into();
        }
        if let Some(uuid) = change.uuid {
            entry.unique_partition_guid = uuid.to_bytes_le();
        }
        entry.attribute_bits = (entry.attribute_bits & !change.clear) | change.set;
        Ok(())
    }

    /// Writes both copies, the backup first, each flushed, then reads both back.
    ///
    /// # Errors
    /// The disk fails, or does not give back what was written.
    pub fn write(&mut self, disk: &dyn Disk) -> Result<(), TableError> {
        // A primary that is broken holds nothing to lose; one that is valid must stay so until the backup is.
        let order = match self.health {
            TableHealth::Good | TableHealth::BackupBroken => [Which::Backup, Which::Primary],
            TableHealth::PrimaryBroken => [Which::Primary, Which::Backup],
        };
        for which in order {
            self.write_copy(disk, which)?;
        }
        let written = Self::read(disk)?;
        let which = if written.entries == self.entries { Which::Backup } else { Which::Primary };
        if written.entries != self.entries || written.health != TableHealth::Good {
            return Err(TableError::ReadBack { which: which.name() });
        }
        self.health = TableHealth::Good;
        Ok(())
    }

    fn write_copy(&self, disk: &dyn Disk, which: Which) -> Result<(), TableError> {
        let sector = self.geometry.sector;
        let mut header = self.header.clone();
        let array_sectors =
            (u64::from(header.number_of_partition_entries) * u64::from(ENTRY_SIZE)).div_ceil(sector.max(1));
        if which == Which::Backup {
            std::mem::swap(&mut header.primary_lba, &mut header.backup_lba);
            header.partition_entry_lba = header.primary_lba.saturating_sub(array_sectors);
        }
        let name = which.name();
        let encode = |reason: String| TableError::Encode { which: name, reason };
        let mut window = Window::default();
        header.write_into(&mut window, sector, &self.entries).map_err(|error| encode(error.to_string()))?;
        let failed = |source| TableError::Disk { doing: "writing", which: name, source };
        let array = window.piece(header.partition_entry_lba * sector, array_sectors * sector);
        disk.write(header.partition_entry_lba * sector, &array).map_err(failed)?;
        let first = window.piece(header.primary_lba * sector, sector);
        disk.write(header.primary_lba * sector, &first).map_err(failed)?;
        disk.flush().map_err(|source| TableError::Disk { doing: "flushing", which: name, source })
    }
}

type Copy = (GPTHeader, Vec<GPTPartitionEntry>);

fn read_copy(disk: &dyn Disk, geometry: DiskGeometry, which: Which, lba: u64) -> Result<Copy, TableError> {
    let name = which.name();
    let sector = geometry.sector;
    let failed = |source| TableError::Disk { doing: "reading", which: name, source };
    let invalid = |reason: String| TableError::Encode { which: name, reason };
    let mut bytes = vec![0; usize::try_from(sector).unwrap_or(512)];
    let offset = lba.checked_mul(sector).ok_or_else(|| invalid("lies past the end of the disk".to_owned()))?;
    disk.read(offset, &mut bytes).map_err(failed)?;
    let header = GPTHeader::read_from(&mut Cursor::new(&bytes)).map_err(|error| invalid(error.to_string()))?;
    // The library trusts these numbers; a valid checksum does not make them sane.
    if header.size_of_partition_entry != ENTRY_SIZE || header.number_of_partition_entries > MAX_ENTRIES {
        return Err(invalid("has entries of an unusual size or number".to_owned()));
    }
    if header.primary_lba != lba {
        return Err(invalid(format!("says that it lies in sector {}, not {lba}", header.primary_lba)));
    }
    let length = u64::from(header.number_of_partition_entries) * u64::from(ENTRY_SIZE);
    let start = header.partition_entry_lba.checked_mul(sector);
    let start = start.filter(|start| start.checked_add(length).is_some_and(|end| end <= geometry.length));
    let start = start.ok_or_else(|| invalid("has its entries past the end of the disk".to_owned()))?;
    let mut array = vec![0; usize::try_from(length.next_multiple_of(sector)).unwrap_or(0)];
    disk.read(start, &mut array).map_err(failed)?;
    // The library reads each entry with a little more than its 128 bytes, also the last one.
    array.resize(array.len() + usize::try_from(ENTRY_SIZE).unwrap_or(128), 0);
    let mut window = Window { start, bytes: array, position: start };
    let entries = header.read_partitions(&mut window, sector).map_err(|error| invalid(error.to_string()))?;
    Ok((header, entries))
}

/// A piece of a disk in memory, addressed as on the disk. It grows where it is written.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    position: u64,
}

impl Window {
    /// The bytes at a place of the disk; zeros where nothing was written.
    fn piece(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(length).unwrap_or(0)];
        let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let there = self.bytes.get(from..).unwrap_or_default();
        out.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        out
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.position.checked_sub(self.start).and_then(|from| usize::try_from(from).ok());
        let there = from.and_then(|from| self.bytes.get(from..)).unwrap_or_default();
        let count = buffer.len().min(there.len());
        buffer.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.start = self.position;
        }
        if self.position < self.start {
            let gap = usize::try_from(self.start - self.position).ok().filter(|gap| *gap <= MAX_TABLE);
            let gap = gap.ok_or(io::ErrorKind::InvalidInput)?;
            self.bytes.splice(0..0, std::iter::repeat_n(0, gap));
            self.start = self.position;
        }
        let from = usize::try_from(self.position - self.start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = from.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        // A header and its entries lie next to each other; anything further apart is not a table of ours.
        if end > MAX_TABLE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(to) = self.bytes.get_mut(from..end) {
            to.copy_from_slice(bytes);
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(by) => self.position.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.position)
    }
}
