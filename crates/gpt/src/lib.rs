//! GUID partition tables: both copies are read and judged, and written in an order that survives power loss.
//!
//! A GUID partition table lies on the disk twice (UEFI specification 2.10, section 5.3.2). A change touches some thirty
//! sectors of each copy, and only single sectors are written whole, so: the backup first, flushed, then the primary,
//! flushed. At every instant one copy is valid, and it says the old or the new.
//!
//! The one reader and writer of tables for the agent, the maker of disks, the simulated machines and the reference OS's first
//! program; below it is `gptman`, whose numbers are not trusted before they were checked here.

mod create;
pub mod kind;
mod medium;
mod window;

use std::io::{self, Cursor};

use gptman::{GPTHeader, GPTPartitionEntry};
use uuid::Uuid;

pub use create::NewPartition;
pub use medium::{FileMedium, Geometry, Medium};
use window::Window;

/// Size of an entry; the only one that is in use.
const ENTRY_SIZE: u32 = 128;
/// More entries than this are not accepted; 128 is usual.
const MAX_ENTRIES: u32 = 1024;

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
    /// A copy would lie where none can be.
    #[error(
        "the {which} would lie in sectors {first} to {last}, which are in use or not on the disk: nothing is written; repair the \
         table with gdisk"
    )]
    Place {
        /// Which copy.
        which: &'static str,
        /// Its first sector.
        first: u64,
        /// Its last.
        last: u64,
    },
    /// A copy could not be read, so it is not known what writing would put an end to.
    #[error(
        "the {which} can't be read: the disk or the way to it fails (dmesg says how). It is not written over for that; replace the \
         disk, or repair the table with gdisk"
    )]
    Unread {
        /// Which copy.
        which: &'static str,
    },
    /// There is no partition with this number.
    #[error("there is no partition {0}")]
    Missing(u32),
    /// Another partition has the PARTUUID.
    #[error(
        "partition {number} can't have PARTUUID {uuid}: partition {other} has it, and whoever looks for it would find either"
    )]
    Taken {
        /// The partition that was to get it.
        number: u32,
        /// The one that has it.
        other: u32,
        /// The PARTUUID.
        uuid: Uuid,
    },
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

/// Which of the two.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub enum Copy {
    /// At the start of the disk.
    Primary,
    /// At its end.
    Backup,
}

impl Copy {
    const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary partition table",
            Self::Backup => "backup partition table",
        }
    }
}

/// How the two copies are.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub enum Health {
    /// Both are valid and say the same.
    Good,
    /// The primary copy is broken; the backup was read.
    PrimaryBroken,
    /// The primary copy can't be read; the backup was. What the primary says may be newer: nothing is written.
    PrimaryUnread,
    /// The backup copy is broken or says something else.
    BackupBroken,
}

/// A partition in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its type, as it is written (not in the table's byte order).
    pub kind: Uuid,
    /// Its PARTUUID, likewise.
    pub uuid: Uuid,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its label.
    pub label: String,
    /// Its attribute bits.
    pub attributes: u64,
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
    geometry: Geometry,
    /// As the primary copy has it.
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    health: Health,
}

impl Table {
    /// Reads both copies. The primary decides where both are valid and differ, as firmware and kernel see it.
    ///
    /// # Errors
    /// The disk can't be read, or neither copy is valid. A copy that can't be read is none that is broken.
    pub fn read(disk: &(impl Medium + ?Sized)) -> Result<Self, TableError> {
        let failed = |source| TableError::Disk { doing: "measuring", which: "disk", source };
        let geometry = disk.geometry().map_err(failed)?;
        let primary = read_copy(disk, geometry, Copy::Primary, 1);
        let last = (geometry.length / geometry.sector.max(1)).saturating_sub(1);
        let backup_at = primary.as_ref().map_or(last, |(header, _)| header.backup_lba);
        let backup = read_copy(disk, geometry, Copy::Backup, backup_at);
        let (header, entries, health) = match (primary, backup) {
            (Ok((header, entries)), Ok((other, copies))) => {
                let same =
                    other.backup_lba == header.primary_lba && other.disk_guid == header.disk_guid && entries == copies;
                (header, entries, if same { Health::Good } else { Health::BackupBroken })
            }
            (Ok((header, entries)), Err(_)) => (header, entries, Health::BackupBroken),
            (Err(error), Ok((header, entries))) => {
                let unread = matches!(error, TableError::Disk { .. });
                let health = if unread { Health::PrimaryUnread } else { Health::PrimaryBroken };
                let primary = GPTHeader {
                    primary_lba: header.backup_lba,
                    backup_lba: header.primary_lba,
                    partition_entry_lba: 2,
                    ..header
                };
                (primary, entries, health)
            }
            // Of two copies of which one can't be read, nobody knows that neither is valid.
            (Err(unread @ TableError::Disk { .. }), Err(_)) | (Err(_), Err(unread @ TableError::Disk { .. })) => {
                return Err(unread);
            }
            (Err(primary), Err(backup)) => {
                return Err(TableError::Invalid { primary: primary.to_string(), backup: backup.to_string() });
            }
        };
        Ok(Self { geometry, header, entries, health })
    }

    /// How the copies are.
    pub const fn health(&self) -> Health {
        self.health
    }

    /// The partitions in use, by number.
    pub fn partitions(&self) -> Vec<Partition> {
        let used = (1_u32..).zip(&self.entries).filter(|(_, entry)| entry.is_used());
        used.map(|(number, entry)| self.describe(number, entry)).collect()
    }

    /// The partition with this number, if it is in use.
    pub fn partition(&self, number: u32) -> Option<Partition> {
        let entry = usize::try_from(number).ok()?.checked_sub(1).and_then(|index| self.entries.get(index))?;
        entry.is_used().then(|| self.describe(number, entry))
    }

    fn describe(&self, number: u32, entry: &GPTPartitionEntry) -> Partition {
        let sector = self.geometry.sector;
        let sectors = entry.ending_lba.saturating_sub(entry.starting_lba).saturating_add(1);
        Partition {
            number,
            kind: Uuid::from_bytes_le(entry.partition_type_guid),
            uuid: Uuid::from_bytes_le(entry.unique_partition_guid),
            start: entry.starting_lba.saturating_mul(sector),
            length: sectors.saturating_mul(sector),
            label: entry.partition_name.as_str().to_owned(),
            attributes: entry.attribute_bits,
        }
    }

    /// Changes an entry in memory.
    ///
    /// # Errors
    /// There is no such partition, the label is too long, or another partition has the PARTUUID.
    pub fn change(&mut self, number: u32, change: &Change) -> Result<(), TableError> {
        let index = usize::try_from(number).unwrap_or(usize::MAX).checked_sub(1);
        if let Some(uuid) = change.uuid
            && let Some(other) = self.partitions().iter().find(|other| other.number != number && other.uuid == uuid)
        {
            return Err(TableError::Taken { number, other: other.number, uuid });
        }
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
    /// The disk fails, or does not give back what was written; or a copy could not be read before.
    pub fn write(&mut self, disk: &(impl Medium + ?Sized)) -> Result<(), TableError> {
        // A primary that is broken holds nothing to lose; one that is valid must stay so until the backup is.
        let order = match self.health {
            Health::Good | Health::BackupBroken => [Copy::Backup, Copy::Primary],
            Health::PrimaryBroken => [Copy::Primary, Copy::Backup],
            Health::PrimaryUnread => return Err(TableError::Unread { which: Copy::Primary.name() }),
        };
        for which in order {
            self.write_copy(disk, which)?;
        }
        let written = Self::read(disk)?;
        if written.health == Health::PrimaryUnread {
            return Err(TableError::Unread { which: Copy::Primary.name() });
        }
        let which = if written.entries == self.entries { Copy::Backup } else { Copy::Primary };
        if written.entries != self.entries || written.health != Health::Good {
            return Err(TableError::ReadBack { which: which.name() });
        }
        self.health = Health::Good;
        Ok(())
    }

    /// The header of a copy, and how many sectors its entries take.
    fn header_of(&self, which: Copy) -> (GPTHeader, u64) {
        let mut header = self.header.clone();
        let bytes = u64::from(header.number_of_partition_entries) * u64::from(ENTRY_SIZE);
        let array_sectors = bytes.div_ceil(self.geometry.sector.max(1));
        if which == Copy::Backup {
            std::mem::swap(&mut header.primary_lba, &mut header.backup_lba);
            header.partition_entry_lba = header.primary_lba.saturating_sub(array_sectors);
        }
        (header, array_sectors)
    }

    /// A header says itself where its copies lie, and a right checksum does not make that sane: nothing is written past the end of
    /// the disk, over a partition, or over the other copy.
    fn check_places(&self) -> Result<(), TableError> {
        let sectors = self.geometry.length / self.geometry.sector.max(1);
        // The protective MBR first.
        let mut taken: Vec<(u64, u64)> = vec![(0, 0)];
        let used = self.entries.iter().filter(|entry| entry.is_used());
        taken.extend(used.map(|entry| (entry.starting_lba, entry.ending_lba)));
        for which in [Copy::Primary, Copy::Backup] {
            let (header, array_sectors) = self.header_of(which);
            for (first, count) in [(header.partition_entry_lba, array_sectors), (header.primary_lba, 1)] {
                let last = first.saturating_add(count.saturating_sub(1));
                let free = last < sectors && taken.iter().all(|(from, to)| last < *from || *to < first);
                if !free {
                    return Err(TableError::Place { which: which.name(), first, last });
                }
                taken.push((first, last));
            }
        }
        Ok(())
    }

    /// Writes one copy, and flushes it.
    ///
    /// # Errors
    /// A copy would lie where none can be: nothing is written then. The disk fails.
    pub fn write_copy(&self, disk: &(impl Medium + ?Sized), which: Copy) -> Result<(), TableError> {
        self.check_places()?;
        let sector = self.geometry.sector;
        let (mut header, array_sectors) = self.header_of(which);
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

type Content = (GPTHeader, Vec<GPTPartitionEntry>);

fn read_copy(disk: &(impl Medium + ?Sized), geometry: Geometry, which: Copy, lba: u64) -> Result<Content, TableError> {
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
