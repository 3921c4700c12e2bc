//! The disk of a new simulated host, as whoever makes real ones makes it (`bascule-disk`); and what a boot loader that goes by
//! attribute bits wants of it.

use std::io::{self, Read};

use bascule_disk::{BootFiles, Plan, SectorSize, Sizes};
use bascule_gpt::{Geometry, Medium};
use bascule_image::digest::Sha256;
use bascule_names::Architecture;
use uuid::Uuid;

use super::{Slot, Table};
use crate::disk::{Disk, Part, SECTOR};
use crate::firmware::{BootLoader, gptprio};

/// The smallest host on which everything still happens: for power cuts by the ten thousand. The agent wants a MiB to spare on
/// the ESP.
pub fn tiny() -> Sizes {
    let (esp, data, verity, state) = (1200 << 10, 64 << 10, 16 << 10, 8 << 10);
    Sizes { esp, data, verity, state, xbootldr: 0, alignment: 4096, sector: SectorSize::B512 }
}

/// The release that the host is installed with.
pub struct Installed<'a> {
    /// Version: label of the partitions.
    pub version: &'a str,
    /// dm-verity root hash.
    pub root_hash: Sha256,
    /// The image.
    pub data: &'a mut dyn Read,
    /// Superblock and hash tree.
    pub verity: &'a mut dyn Read,
    /// The boot image.
    pub uki: &'a [u8],
    /// Its file name in `EFI/Linux`, without counters.
    pub entry: &'a str,
}

impl std::fmt::Debug for Installed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installed")
            .field("version", &self.version)
            .field("root_hash", &self.root_hash)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// Writes table, file systems and the first release, and flushes all. The disk must be at least [`Sizes::disk`] long. There is no
/// boot loader on it: the simulated firmware has one built in.
pub fn provision(
    disk: &Disk,
    sizes: Sizes,
    boot: BootLoader,
    identity: Uuid,
    first: &mut Installed<'_>,
) -> io::Result<()> {
    let (mut esp, mut xbootldr) = (BootFiles::of_esp(None), BootFiles::default());
    if boot == BootLoader::SystemdBoot {
        let home = if sizes.xbootldr > 0 { &mut xbootldr } else { &mut esp };
        home.add_entry(first.entry, first.uki.to_vec()).map_err(io::Error::other)?;
    }
    let plan = Plan { sizes, identity, esp: &esp, xbootldr: &xbootldr };
    let mut installed = bascule_disk::Installed {
        version: first.version,
        architecture: Architecture::X86_64,
        root_hash: first.root_hash,
        data: &mut *first.data,
        verity: &mut *first.verity,
    };
    bascule_disk::provision(&Plain(disk), plan, &mut installed).map_err(io::Error::other)?;
    if boot == BootLoader::Gptprio {
        let mut table = Table::read(disk)?;
        let bits = gptprio::Attributes { priority: 2, tries: 0, successful: true };
        let number = Slot::A.data();
        table.set_attributes(number, bits.merged_into(table.attributes(number)))?;
    }
    Ok(())
}

/// A disk to which everything is written as it is told: nobody cuts the power of an installer.
struct Plain<'a>(&'a Disk);

impl Medium for Plain<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        Ok(Geometry { length: self.0.length(), sector: SECTOR as u64 })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Part::whole(self.0).read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Part::whole(self.0).write_all(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        Part::whole(self.0).flush()
    }
}
