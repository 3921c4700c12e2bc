//! Makes the disk of a new host: table, ESP, and one release installed in slot A, as an installer would.

use std::io::{self, Read};

use bascule_gpt::{Medium as _, NewPartition};
use bascule_image::digest::Sha256;
use uuid::Uuid;

use super::{
    EMPTY_LABEL, ESP, ESP_TYPE, ROOT_TYPE, ROOT_VERITY_TYPE, STATE, STATE_TYPE, Slot, Table, Whole, XBOOTLDR,
    XBOOTLDR_TYPE, uuid_of_half,
};
use crate::disk::{Disk, Part, SECTOR};
use crate::esp::Esp;
use crate::firmware::{BootLoader, gptprio};

/// Lengths of the partitions in bytes; each is rounded up to whole alignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The EFI system partition.
    pub esp: u64,
    /// Each data partition.
    pub data: u64,
    /// Each verity partition.
    pub verity: u64,
    /// The state partition.
    pub state: u64,
    /// The extended boot loader partition, where the entries lie then; 0: there is none.
    pub xbootldr: u64,
    /// Alignment of every partition.
    pub alignment: u64,
    /// Bytes of a sector, in which table and boot partitions count: 512 or 4096.
    pub sector: u64,
}

impl Sizes {
    /// The smallest host on which everything still happens: for power cuts by the ten thousand. The agent wants a MiB to
    /// spare on the ESP.
    pub fn tiny() -> Self {
        let sector = SECTOR as u64;
        Self { esp: 1200 << 10, data: 64 << 10, verity: 16 << 10, state: 8 << 10, xbootldr: 0, alignment: 4096, sector }
    }

    /// For images of up to `image` bytes with boot images of up to `uki` bytes, as a real host would be cut.
    pub fn for_image(image: u64, uki: u64) -> Self {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20) << 20;
        Self {
            esp: mib(uki * 3).max(64 << 20),
            data: mib(image),
            // One 32nd is more than the 0.8 % that the tree takes, plus the superblock.
            verity: mib(image / 32 + (1 << 20)),
            state: 64 << 20,
            xbootldr: 0,
            alignment: 1 << 20,
            sector: SECTOR as u64,
        }
    }

    /// Length that the disk must have.
    pub fn disk(&self) -> u64 {
        let round = |bytes: u64| bytes.next_multiple_of(self.alignment);
        // Protective MBR, header and 128 entries each way.
        let tables = 2 * round(4 * self.sector + 128 * 128);
        tables
            + round(self.xbootldr)
            + round(self.esp)
            + 2 * (round(self.data) + round(self.verity))
            + round(self.state)
    }
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

/// Writes table, file systems and the first release, and flushes all. The disk must be at least [`Sizes::disk`] long.
pub fn provision(
    disk: &Disk,
    sizes: Sizes,
    boot: BootLoader,
    identity: Uuid,
    first: &mut Installed<'_>,
) -> io::Result<()> {
    write_table(disk, sizes, identity, first)?;
    let mut table = Table::read(disk)?;
    let esp = Esp::format(table.part(ESP)?, sizes.sector)?;
    esp.write("loader/loader.conf", b"timeout 0\nconsole-mode keep\n")?;
    let more = if sizes.xbootldr > 0 { Some(Esp::format(table.part(XBOOTLDR)?, sizes.sector)?) } else { None };
    if boot == BootLoader::SystemdBoot {
        let home = more.as_ref().unwrap_or(&esp);
        home.write(&format!("EFI/Linux/{}", first.entry), first.uki)?;
        home.sync()?;
    } else {
        let bits = gptprio::Attributes { priority: 2, tries: 0, successful: true };
        let number = Slot::A.data();
        table.set_attributes(number, bits.merged_into(table.attributes(number)))?;
    }
    esp.sync()?;
    copy(first.data, &table.part(Slot::A.data())?)?;
    copy(first.verity, &table.part(Slot::A.verity())?)
}

fn write_table(disk: &Disk, sizes: Sizes, identity: Uuid, first: &Installed<'_>) -> io::Result<()> {
    let label = first.version;
    let own = |number: u128| Uuid::from_u128(identity.as_u128() ^ number);
    let mut partitions = vec![
        (ESP, ESP_TYPE, own(1), sizes.esp, "ESP"),
        (Slot::A.data(), ROOT_TYPE, uuid_of_half(first.root_hash.first_half()), sizes.data, label),
        (Slot::A.verity(), ROOT_VERITY_TYPE, uuid_of_half(first.root_hash.second_half()), sizes.verity, label),
        (Slot::B.data(), ROOT_TYPE, own(4), sizes.data, EMPTY_LABEL),
        (Slot::B.verity(), ROOT_VERITY_TYPE, own(5), sizes.verity, EMPTY_LABEL),
        (STATE, STATE_TYPE, own(6), sizes.state, "state"),
    ];
    if sizes.xbootldr > 0 {
        partitions.push((XBOOTLDR, XBOOTLDR_TYPE, own(7), sizes.xbootldr, "XBOOTLDR"));
    }
    let partitions: Vec<_> = partitions
        .into_iter()
        .map(|(number, kind, uuid, length, label)| NewPartition { number, kind, uuid, length, label: label.to_owned() })
        .collect();
    let medium = Whole { disk, sector: sizes.sector };
    let table = bascule_gpt::Table::create(medium.geometry()?, identity, sizes.alignment, &partitions);
    table.and_then(|table| table.install(&medium)).map_err(io::Error::other)
}

/// Copies a stream to the start of a partition and flushes it.
fn copy(from: &mut dyn Read, to: &Part) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0u64;
    loop {
        let read = from.read(&mut buffer)?;
        match buffer.get(..read) {
            Some(bytes) if read > 0 => to.write_all(offset, bytes)?,
            _ => return to.flush(),
        }
        offset += read as u64;
    }
}
