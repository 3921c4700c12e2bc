//! How the initrd finds the root file system and what dm-verity makes of it: systemd-veritysetup-generator looks for
//! the partitions whose PARTUUIDs are the first and the last 128 bits of `roothash=`; the kernel refuses every block that
//! the root hash does not vouch for. Here all blocks are looked at, at once.

use std::io;
use std::num::NonZeroUsize;

use bascule_image::digest::Sha256;
use bascule_image::io::ReadAt;
use bascule_image::verity::{self, BLOCK_SIZE, CheckError, Superblock, SuperblockError};
use bascule_image::work::Watch;

use crate::disk::Part;
use crate::layout::{Slot, Table, uuid_of_half};

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No root hash on the command line.
    #[error("the command line has no root hash")]
    NoHash,
    /// No partition has the PARTUUID that the hash asks for.
    #[error("no {what} partition is named after root hash {root_hash}")]
    Missing {
        /// Data or verity.
        what: &'static str,
        /// The hash.
        root_hash: Sha256,
    },
    /// Two partitions have it: which one the kernel would take is chance.
    #[error("more than one {what} partition is named after root hash {root_hash}")]
    Ambiguous {
        /// Data or verity.
        what: &'static str,
        /// The hash.
        root_hash: Sha256,
    },
    /// Data and verity partition are of different slots.
    #[error("the data partition is of slot {data}, the verity partition of slot {verity}")]
    Mixed {
        /// Slot of the data.
        data: Slot,
        /// Slot of the tree.
        verity: Slot,
    },
    /// The verity partition has no superblock.
    #[error("slot {slot}: {reason}")]
    Superblock {
        /// The slot.
        slot: Slot,
        /// What was wrong.
        reason: SuperblockError,
    },
    /// Data or tree do not match the hash.
    #[error("slot {slot}: {reason}")]
    Content {
        /// The slot.
        slot: Slot,
        /// What was wrong.
        reason: CheckError,
    },
    /// The disk can't be read.
    #[error("slot {slot} can't be read: {reason}")]
    Disk {
        /// The slot.
        slot: Slot,
        /// Why.
        reason: io::Error,
    },
}

/// A partition as the image crate reads it.
#[derive(Debug)]
pub struct PartReader(pub Part);

impl ReadAt for PartReader {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.length())
    }
}

/// Finds the slot that a root hash names and checks every block of it.
pub fn find_and_check(table: &Table, root_hash: Sha256) -> Result<Slot, RootError> {
    let data = find(table, "data", root_hash, root_hash.first_half(), Slot::data)?;
    let verity = find(table, "verity", root_hash, root_hash.second_half(), Slot::verity)?;
    if data != verity {
        return Err(RootError::Mixed { data, verity });
    }
    check(table, data, root_hash)?;
    Ok(data)
}

/// The root hash that a slot's PARTUUIDs spell.
pub fn hash_of_slot(table: &Table, slot: Slot) -> Sha256 {
    let mut bytes = [0; 32];
    let halves = table.unique(slot.data()).into_bytes().into_iter().chain(table.unique(slot.verity()).into_bytes());
    bytes.iter_mut().zip(halves).for_each(|(place, byte)| *place = byte);
    Sha256::from_bytes(bytes)
}

/// Checks all blocks and the whole tree of one slot.
pub fn check(table: &Table, slot: Slot, root_hash: Sha256) -> Result<(), RootError> {
    let disk = |reason| RootError::Disk { slot, reason };
    let data = PartReader(table.part(slot.data()).map_err(disk)?);
    let tree = PartReader(table.part(slot.verity()).map_err(disk)?);
    let mut block = vec![0; BLOCK_SIZE];
    tree.read_at(&mut block, 0).map_err(disk)?;
    let superblock = Superblock::parse(&block).map_err(|reason| RootError::Superblock { slot, reason })?;
    let size = superblock.data_blocks * BLOCK_SIZE as u64;
    verity::verify(&data, &tree, size, &superblock.parameters, root_hash, NonZeroUsize::MIN, &Watch::none())
        .map(|_| ())
        .map_err(|reason| RootError::Content { slot, reason })
}

fn find(
    table: &Table,
    what: &'static str,
    root_hash: Sha256,
    half: [u8; 16],
    number: fn(Slot) -> u32,
) -> Result<Slot, RootError> {
    // udev finds a partition by its PARTUUID whatever its type says.
    let unique = uuid_of_half(half);
    let mut found = Slot::BOTH.into_iter().filter(|slot| table.unique(number(*slot)) == unique);
    match (found.next(), found.next()) {
        (Some(slot), None) => Ok(slot),
        (Some(_), Some(_)) => Err(RootError::Ambiguous { what, root_hash }),
        (None, _) => Err(RootError::Missing { what, root_hash }),
    }
}
