//! The partitions of a simulated host: a real GPT with an ESP, two slots of data and verity, and a state partition.

mod provision;

use std::io;

use bascule_gpt::{Change, Geometry, Health, Medium};
use uuid::{Uuid, uuid};

use crate::disk::{Cache, Disk, Part, SECTOR};
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

/// Sectors in which tables count, in bytes: usual ones, and those of disks that have no smaller ones.
const SECTORS: [u64; 2] = [SECTOR as u64, 4096];

/// What the header of a table begins with (UEFI specification, section 5.3.2).
const HEADER: &[u8; 8] = b"EFI PART";

/// Bytes of a disk's sectors, as its device node says them: by where its table has a header, the first one or the one at the end. 512
/// where there is none. Not an access that a fault could strike.
pub(crate) fn sector_of(disk: &Disk) -> u64 {
    let whole = Part::whole(disk);
    let [usual, large] = SECTORS;
    let has_header = |at: u64| {
        let (mut cached, mut medium) = ([0_u8; 8], [0_u8; 8]);
        whole.peek(at, &mut cached, &mut medium).is_ok() && cached == *HEADER
    };
    let at_the_end = disk.length().checked_sub(large).is_some_and(has_header);
    if has_header(large) || at_the_end { large } else { usual }
}

/// The simulated disk as a medium of tables: through its own device node.
struct Whole<'a> {
    disk: &'a Disk,
    /// The unit in which the table counts. What the disk writes whole or not at all is [`SECTOR`] all the same.
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
    /// Reads the table; it says itself what its sectors are, since its header lies in the second one. Errors: neither copy is
    /// valid, or the disk can't be read.
    pub fn read(disk: &Disk) -> io::Result<Self> {
        let read = |sector| bascule_gpt::Table::read(&Whole { disk, sector }).map(|gpt| (sector, gpt));
        let [usual, large] = SECTORS;
        let (sector, gpt) = read(usual).or_else(|error| read(large).map_err(|_| error)).map_err(io::Error::other)?;
        Ok(Self { disk: disk.clone(), sector, gpt })
    }

    /// Bytes of a sector, the unit of the table.
    pub fn sector(&self) -> u64 {
        self.sector
    }

    fn whole(&self) -> Whole<'_> {
        Whole { disk: &self.disk, sector: self.sector }
    }

    /// The first partition of a type.
    pub fn of_type(&self, kind: Uuid) -> Option<u32> {
        self.gpt.partitions().into_iter().find(|found| found.kind == kind).map(|found| found.number)
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

/// A GPT GUID from the 16 bytes of a root hash half, as systemd's `roothash=` look-up reads them (big-endian text form).
pub fn uuid_of_half(half: [u8; 16]) -> Uuid {
    Uuid::from_bytes(half)
}
