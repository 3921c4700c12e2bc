//! The partitions of a simulated host: a real GPT with an ESP, two slots of data and verity, and a state partition.

mod provision;

use std::io;

use bascule_gpt::{Change, Geometry, Health, Medium};
use uuid::Uuid;

use crate::disk::{Cache, Disk, Part, SECTOR};
use crate::esp::Esp;

pub use bascule_disk::{EMPTY_LABEL, ESP, STATE, Sizes, SlotNumbers, XBOOTLDR, uuid_of_half};
pub use bascule_gpt::kind::{ESP as ESP_TYPE, XBOOTLDR as XBOOTLDR_TYPE};
pub use provision::{Installed, provision, tiny};

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
        self.numbers().data
    }

    /// Number of the verity partition in the table.
    pub fn verity(self) -> u32 {
        self.numbers().verity
    }

    fn numbers(self) -> SlotNumbers {
        match self {
            Slot::A => SlotNumbers::A,
            Slot::B => SlotNumbers::B,
        }
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

/// The simulated disk as a medium of tables: through its own device node.
struct Whole<'a> {
    disk: &'a Disk,
    sector: u64,
}

impl Medium for Whole<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        Ok(Geometry { length: self.disk.length(), sector: self.sector })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Part::whole(self.disk).read(offset, buffer)
    }

    /// Sector by sector, and only what differs: a power cut leaves nothing unwritten that was not to be changed.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let whole = Part::whole(self.disk);
        let mut before = vec![0; bytes.len()];
        whole.read(offset, &mut before)?;
        for ((index, new), old) in bytes.chunks(SECTOR).enumerate().zip(before.chunks(SECTOR)) {
            if new != old {
                whole.write_all(offset + (index * SECTOR) as u64, new)?;
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Part::whole(self.disk).flush()
    }
}

/// The partition table of a disk, as firmware and kernel read it: the primary copy, or the backup where that is broken.
#[derive(Clone, Debug)]
pub struct Table {
    disk: Disk,
    sector: u64,
    gpt: bascule_gpt::Table,
}

impl Table {
    /// Reads the table. Errors: neither copy is valid, or the disk can't be read.
    pub fn read(disk: &Disk) -> io::Result<Self> {
        Self::read_in_sectors(disk, SECTOR as u64)
    }

    /// The same of a drive whose logical sectors have so many bytes.
    pub fn read_in_sectors(disk: &Disk, sector: u64) -> io::Result<Self> {
        let gpt = bascule_gpt::Table::read(&Whole { disk, sector }).map_err(io::Error::other)?;
        Ok(Self { disk: disk.clone(), sector, gpt })
    }

    fn whole(&self) -> Whole<'_> {
        Whole { disk: &self.disk, sector: self.sector }
    }

    /// Bytes of a logical sector.
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// The first partition of a type.
    pub fn of_type(&self, kind: Uuid) -> Option<u32> {
        self.gpt.partitions().into_iter().find(|found| found.kind == kind).map(|found| found.number)
    }

    /// The partition with this PARTUUID.
    pub fn with_uuid(&self, unique: Uuid) -> Option<u32> {
        self.gpt.partitions().into_iter().find(|found| found.uuid == unique).map(|found| found.number)
    }

    /// The bytes of a partition.
    pub fn part(&self, number: u32) -> io::Result<Part> {
        let found = self.gpt.partition(number).ok_or_else(|| missing(number))?;
        Ok(Part::new(self.disk.clone(), Cache(number), found.start, found.length))
    }

    /// The file system on the ESP.
    pub fn esp(&self) -> io::Result<Esp> {
        let number = self.of_type(ESP_TYPE).ok_or_else(|| missing(ESP))?;
        Ok(Esp::new(self.part(number)?))
    }

    /// Label of a partition; empty where there is none.
    pub fn label(&self, number: u32) -> String {
        self.gpt.partition(number).map(|found| found.label).unwrap_or_default()
    }

    /// PARTUUID of a partition; nil where there is none.
    pub fn unique(&self, number: u32) -> Uuid {
        self.gpt.partition(number).map(|found| found.uuid).unwrap_or_default()
    }

    /// Attribute bits of a partition.
    pub fn attributes(&self, number: u32) -> u64 {
        self.gpt.partition(number).map_or(0, |found| found.attributes)
    }

    /// Whether primary and backup copy are both valid and hold the same partitions (`sgdisk -v` complains otherwise).
    pub fn copies_agree(&self) -> bool {
        bascule_gpt::Table::read(&self.whole()).is_ok_and(|table| table.health() == Health::Good)
    }

    /// Sets the attribute bits of a partition durably, as a boot loader does: first in the primary copy, then in the backup.
    pub fn set_attributes(&mut self, number: u32, bits: u64) -> io::Result<()> {
        let change = Change { set: bits, clear: u64::MAX, ..Change::default() };
        self.gpt.change(number, &change).map_err(io::Error::other)?;
        for copy in [bascule_gpt::Copy::Primary, bascule_gpt::Copy::Backup] {
            self.gpt.write_copy(&self.whole(), copy).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Names a partition, in memory.
    pub fn change(&mut self, number: u32, label: &str, unique: Uuid) -> io::Result<()> {
        let change = Change { label: Some(label.to_owned()), uuid: Some(unique), ..Change::default() };
        self.gpt.change(number, &change).map_err(io::Error::other)
    }

    /// Writes one copy of the table to this disk, and flushes it unless `flush` is left out: for those who make mistakes on
    /// purpose.
    pub fn write_copy(&self, copy: bascule_gpt::Copy, flush: bool) -> io::Result<()> {
        let whole = self.whole();
        let written =
            if flush { self.gpt.write_copy(&whole, copy) } else { self.gpt.write_copy(&Forgetful(whole), copy) };
        written.map_err(io::Error::other)
    }
}

/// A medium whose flushes are left out.
struct Forgetful<'a>(Whole<'a>);

impl Medium for Forgetful<'_> {
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
        Ok(())
    }
}

fn missing(number: u32) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the table has no partition {number}"))
}
