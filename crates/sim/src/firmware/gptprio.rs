//! The boot loader that reads priorities from the partition table: GRUB's gptprio in Bottlerocket, CoreOS' and
//! Flatcar's GRUB, ChromeOS' cgpt. Bits as ChromeOS' "GPT kernel attributes" define them.

use std::io;

use crate::disk::Disk;
use crate::layout::{Slot, Table};

const PRIORITY_SHIFT: u32 = 48;
const TRIES_SHIFT: u32 = 52;
const SUCCESSFUL_SHIFT: u32 = 56;
const ALL: u64 = 0x1ff << PRIORITY_SHIFT;

/// What the attribute bits 48 to 56 of a data partition say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Higher goes first; 0 never boots.
    pub priority: u8,
    /// How often it may still be tried.
    pub tries: u8,
    /// It has been seen to work; tries do not matter any more.
    pub successful: bool,
}

impl Attributes {
    /// Reads the bits of an entry.
    pub fn of(bits: u64) -> Self {
        Self {
            priority: (bits >> PRIORITY_SHIFT & 0xf) as u8,
            tries: (bits >> TRIES_SHIFT & 0xf) as u8,
            successful: bits >> SUCCESSFUL_SHIFT & 1 == 1,
        }
    }

    /// The bits of an entry with these in place of its own; the others stay.
    pub fn merged_into(self, bits: u64) -> u64 {
        bits & !ALL
            | u64::from(self.priority & 0xf) << PRIORITY_SHIFT
            | u64::from(self.tries & 0xf) << TRIES_SHIFT
            | u64::from(self.successful) << SUCCESSFUL_SHIFT
    }

    fn boots(self) -> bool {
        self.priority > 0 && (self.tries > 0 || self.successful)
    }
}

/// Picks the slot with the highest priority that may boot (the earlier partition where they are equal), and takes one
/// try off it, durably, before it is booted. `None` if no slot may boot.
pub fn pick(disk: &Disk) -> io::Result<Option<Slot>> {
    let mut table = Table::read(disk)?;
    let attributes = |table: &Table, slot: Slot| Attributes::of(table.attributes(slot.data()));
    let candidates = Slot::BOTH.into_iter().filter(|slot| attributes(&table, *slot).boots());
    // `max_by_key` takes the last of equals, the loader the first.
    let Some(slot) = candidates.rev().max_by_key(|slot| attributes(&table, *slot).priority) else {
        return Ok(None);
    };
    let picked = attributes(&table, slot);
    if picked.tries > 0 {
        disk.note(format!("firmware: slot {slot} has {} tries left", picked.tries - 1));
        let fewer = Attributes { tries: picked.tries - 1, ..picked };
        let bits = fewer.merged_into(table.attributes(slot.data()));
        table.set_attributes(slot.data(), bits)?;
    }
    Ok(Some(slot))
}
