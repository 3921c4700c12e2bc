//! The partitions of a simulated host: a real GPT with an ESP, two slots of data and verity, and a state partition.

mod provision;

use std::io::{self, Seek};

use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use uuid::{Uuid, uuid};

use crate::disk::{Cache, Cursor, Disk, Overlay, Part, SECTOR, write_back};
use crate::esp::Esp;

pub use provision::{Installed, Sizes, provision};

/// Type of an EFI system partition (UEFI specification, section 5.3.3).
pub const ESP_TYPE: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Type of an extended boot loader partition (Discoverable Partitions Specification).
pub const XBOOTLDR_TYPE: Uuid = uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172");
/// Type of a root partition on x86-64 (Discoverable Partitions Specification).
pub const ROOT_TYPE: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
/// Type of the verity partition of a root partition on x86-64 (Discoverable Partitions Specification).
pub const ROOT_VERITY_TYPE: Uuid = uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");
/// Type of a partition for variable data, where the state lives (Discoverable Partitions Specification, `/var`).
pub const STATE_TYPE: Uuid = uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d");

/// Label of a slot without a release (systemd-sysupdate's convention).
pub const EMPTY_LABEL: &str = "_empty";

/// Number of the ESP in the table.
pub const ESP: u32 = 1;
/// Number of the state partition in the table.
pub const STATE: u32 = 6;
/// Number of the extended boot loader partition in the table, where there is one.
pub const XBOOTLDR: u32 = 7;

/// One of the two system slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Both, in order.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// Number of the data partition in the table.
    pub fn data(self) -> u32 {
        match self {
            Slot::A => 2,
            Slot::B => 4,
        }
    }

    /// Number of the verity partition in the table.
    pub fn verity(self) -> u32 {
        self.data() + 1
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Slot::A => "A",
            Slot::B => "B",
        })
    }
}

/// The partition table of a disk, as firmware and kernel read it: the primary copy, or the backup where that is broken.
#[derive(Clone, Debug)]
pub struct Table {
    disk: Disk,
    gpt: GPT,
}

impl Table {
    /// Reads the table. Errors: neither copy is valid, or the disk can't be read.
    pub fn read(disk: &Disk) -> io::Result<Self> {
        let mut cursor = Cursor::from(Part::whole(disk));
        let gpt = GPT::read_from(&mut cursor, SECTOR as u64).map_err(io::Error::other)?;
        Ok(Self { disk: disk.clone(), gpt })
    }

    /// The entries that are used, with their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &GPTPartitionEntry)> {
        self.gpt.iter().filter(|(_, entry)| entry.is_used())
    }

    /// One used entry.
    pub fn entry(&self, number: u32) -> Option<&GPTPartitionEntry> {
        self.entries().find(|(at, _)| *at == number).map(|(_, entry)| entry)
    }

    /// The first partition of a type.
    pub fn of_type(&self, kind: Uuid) -> Option<u32> {
        self.entries().find(|(_, entry)| entry.partition_type_guid == kind.to_bytes_le()).map(|(number, _)| number)
    }

    /// The partition with this PARTUUID.
    pub fn with_uuid(&self, unique: Uuid) -> Option<u32> {
        self.entries().find(|(_, entry)| entry.unique_partition_guid == unique.to_bytes_le()).map(|(number, _)| number)
    }

    /// The bytes of a partition.
    pub fn part(&self, number: u32) -> io::Result<Part> {
        let entry = self.entry(number).ok_or_else(|| missing(number))?;
        let sectors = entry.size().map_err(io::Error::other)?;
        Ok(Part::new(self.disk.clone(), Cache(number), entry.starting_lba * SECTOR as u64, sectors * SECTOR as u64))
    }

    /// The file system on the ESP.
    pub fn esp(&self) -> io::Result<Esp> {
        let number = self.of_type(ESP_TYPE).ok_or_else(|| missing(ESP))?;
        Ok(Esp::new(self.part(number)?))
    }

    /// Label of a partition; empty where there is none.
    pub fn label(&self, number: u32) -> String {
        self.entry(number).map(|entry| entry.partition_name.as_str().to_owned()).unwrap_or_default()
    }

    /// PARTUUID of a partition; nil where there is none.
    pub fn unique(&self, number: u32) -> Uuid {
        self.entry(number).map(|entry| Uuid::from_bytes_le(entry.unique_partition_guid)).unwrap_or_default()
    }

    /// Attribute bits of a partition.
    pub fn attributes(&self, number: u32) -> u64 {
        self.entry(number).map_or(0, |entry| entry.attribute_bits)
    }

    /// Whether primary and backup copy are both valid and hold the same partitions (`sgdisk -v` complains otherwise).
    pub fn copies_agree(&self) -> bool {
        let mut cursor = Cursor::from(Part::whole(&self.disk));
        let copy = |cursor: &mut Cursor, sector: u64| {
            cursor.seek(io::SeekFrom::Start(sector * SECTOR as u64))?;
            let header = GPTHeader::read_from(cursor).map_err(io::Error::other)?;
            let entries = header.read_partitions(cursor, SECTOR as u64).map_err(io::Error::other)?;
            Ok::<_, io::Error>((header, entries))
        };
        let last = self.disk.length() / SECTOR as u64 - 1;
        match (copy(&mut cursor, 1), copy(&mut cursor, last)) {
            (Ok((primary, held)), Ok((backup, also))) => {
                held == also
                    && primary.disk_guid == backup.disk_guid
                    && (primary.primary_lba, primary.backup_lba) == (1, last)
                    && (backup.primary_lba, backup.backup_lba) == (last, 1)
            }
            _ => false,
        }
    }

    /// Sets the attribute bits of a partition durably, as a boot loader does: first in the primary copy, then in the backup.
    pub fn set_attributes(&mut self, number: u32, bits: u64) -> io::Result<()> {
        match self.gpt.iter_mut().find(|(at, _)| *at == number) {
            Some((_, entry)) => entry.attribute_bits = bits,
            None => return Err(missing(number)),
        }
        let whole = Part::whole(&self.disk);
        let mut overlay = Overlay::new(whole.clone());
        self.gpt.write_into(&mut overlay).map_err(io::Error::other)?;
        let middle = whole.length() / 2 / SECTOR as u64;
        let (primary, backup): (Vec<_>, Vec<_>) =
            overlay.changes()?.into_iter().partition(|(sector, _)| *sector < middle);
        for copy in [primary, backup] {
            write_back(&whole, &copy)?;
            whole.flush()?;
        }
        Ok(())
    }
}

fn missing(number: u32) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the table has no partition {number}"))
}

/// A GPT GUID from the 16 bytes of a root hash half, as systemd's `roothash=` look-up reads them (big-endian text form).
pub fn uuid_of_half(half: [u8; 16]) -> Uuid {
    Uuid::from_bytes(half)
}
