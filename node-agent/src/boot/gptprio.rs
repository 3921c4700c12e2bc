//! Boot selection by GPT attribute bits, as ChromeOS, CoreOS, Flatcar and Bottlerocket do it: priority in bits 48 to 51,
//! tries in 52 to 55, success in 56 of the data partition. The loader takes the highest priority that has tries left or
//! was successful, and takes one try off before it boots. Priority 0 never boots.
//!
//! A change is one write of the partition table, so nothing lies between two states. The boot image of a slot lies at
//! `EFI/bascule/slot-<a|b>.efi`, for boot loaders that start what the partition's slot has there.

use bascule_api::{BootControlBackend, Counting, SlotName};

use super::error::esp;
use super::image_file::{self, parse_waiting, waiting_name};
use super::{BootBackend, BootError, Machine, Seen};
use crate::core::{BootFacts, Entry, PerSlot, ReleaseTarget, SlotContent};
use crate::gpt::{Change, Table};
use crate::host::{Disk, Esp, FetchError};

/// Where the boot images of the slots lie.
const DIRECTORY: &str = "EFI/bascule";
const PRIORITY_SHIFT: u32 = 48;
const TRIES_SHIFT: u32 = 52;
const SUCCESSFUL: u64 = 1 << 56;
const ALL: u64 = 0x1ff << PRIORITY_SHIFT;
/// The highest value of priority and tries.
const MAX: u64 = 15;

/// The backend.
#[allow(missing_debug_implementations, reason = "it holds the host's traits")]
pub struct GptPrio<'a> {
    /// The disk with the slots.
    pub disk: &'a dyn Disk,
    /// Where boot images lie.
    pub esp: &'a dyn Esp,
}

/// The bits of one partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bits {
    priority: u64,
    tries: u64,
    successful: bool,
}

impl Bits {
    const fn of(attributes: u64) -> Self {
        Self {
            priority: attributes >> PRIORITY_SHIFT & MAX,
            tries: attributes >> TRIES_SHIFT & MAX,
            successful: attributes & SUCCESSFUL != 0,
        }
    }

    fn change(self) -> Change {
        let successful = if self.successful { SUCCESSFUL } else { 0 };
        let set = self.priority.min(MAX) << PRIORITY_SHIFT | self.tries.min(MAX) << TRIES_SHIFT | successful;
        Change { set, clear: ALL, ..Change::default() }
    }

    fn entry(self, runs: bool) -> Entry {
        match self {
            Self { successful: true, priority: 1.., .. } => Entry::Good,
            Self { priority: 1.., tries: 1.., .. } => Entry::Trying { left: self.tries as u32, done: None },
            // The last try is running, or all are used up.
            Self { priority: 1.., .. } => Entry::Bad { done: None },
            // What runs without bits was given up just now, or started by hand: the next boot will not pick it.
            _ if runs => Entry::Bad { done: None },
            _ => Entry::None,
        }
    }
}

fn file_of(slot: SlotName) -> String {
    match slot {
        SlotName::A => format!("{DIRECTORY}/slot-a.efi"),
        SlotName::B => format!("{DIRECTORY}/slot-b.efi"),
    }
}

impl GptPrio<'_> {
    fn bits(machine: &Machine, slot: SlotName) -> Bits {
        Bits::of(machine.partitions.get(slot).0.attributes)
    }

    /// Writes the bits of both slots in one change of the table.
    fn write(&self, machine: &Machine, changes: &[(SlotName, Bits)]) -> Result<(), BootError> {
        let mut table = Table::read(self.disk)?;
        let mut changed = false;
        for (slot, bits) in changes {
            let partition = &machine.partitions.get(*slot).0;
            changed |= Bits::of(partition.attributes) != *bits;
            table.change(partition.number, &bits.change())?;
        }
        if changed { Ok(table.write(self.disk)?) } else { Ok(()) }
    }

    fn has_image(&self, slot: SlotName) -> Result<bool, BootError> {
        let path = file_of(slot);
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        Ok(files.iter().any(|file| format!("{DIRECTORY}/{}", file.name).eq_ignore_ascii_case(&path)))
    }

    /// Puts the waiting boot image in its place. The slot has no priority at that moment, so nothing boots it.
    fn place_image(&self, target: &ReleaseTarget) -> Result<(), BootError> {
        let path = file_of(target.slot);
        if self.has_image(target.slot)? {
            if image_file::verify(self.esp, &path, target).is_ok() {
                return Ok(());
            }
            self.esp.remove(&path).map_err(esp("removing", &path))?;
        }
        let no_entry = || BootError::NoEntry { slot: target.slot, root_hash: target.root_hash.clone() };
        let (digest, _) = target.uki.as_ref().ok_or_else(no_entry)?;
        let waiting = format!("{DIRECTORY}/{}", waiting_name(digest));
        self.esp.rename(&waiting, &path).map_err(esp("renaming", &waiting))?;
        self.esp.sync().map_err(esp("syncing", &path))
    }
}

impl BootBackend for GptPrio<'_> {
    fn kind(&self) -> BootControlBackend {
        BootControlBackend::GptPrio
    }

    fn observe(&self, machine: &Machine) -> Result<Seen, BootError> {
        let entry = |slot| Self::bits(machine, slot).entry(slot == machine.booted);
        let other = machine.booted.other();
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        let waiting = files.iter().find_map(|file| Some((parse_waiting(&file.name)?.to_owned(), file.size)));
        // A slot that can be armed again has its image in place, and no entry that would show it.
        let in_place = self.has_image(other)? && matches!(machine.contents.get(other), SlotContent::Release { .. });
        let spare = files.iter().filter(|file| {
            image_file::is_unfinished(&file.name)
                || parse_waiting(&file.name).is_some()
                || file_of(other).ends_with(&format!("/{}", file.name))
        });
        let reclaimable = spare.map(|file| file.size).sum();
        let mut entries = PerSlot { a: entry(SlotName::A), b: entry(SlotName::B) };
        if in_place && *entries.get(other) == Entry::None {
            *entries.get_mut(other) = Entry::Bad { done: Some(0) };
        }
        let facts = BootFacts {
            backend: self.kind(),
            counting: Counting::Unknown,
            counting_message: Some("the first trial shows whether the boot loader counts".to_owned()),
            strays: Vec::new(),
            space: self.esp.space().map_err(esp("measuring", DIRECTORY))?,
            waiting_uki: waiting,
            reclaimable,
            running_sorts_first: false,
        };
        Ok(Seen { facts, entries, doubled: PerSlot::default() })
    }

    fn retire(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        if slot == machine.booted {
            return Err(BootError::Running("retiring"));
        }
        self.write(machine, &[(slot, Bits::default())])?;
        let path = file_of(slot);
        self.esp.remove(&path).map_err(esp("removing", &path))?;
        self.esp.sync().map_err(esp("syncing", DIRECTORY))
    }

    fn stage_uki(
        &self,
        _machine: &Machine,
        target: &ReleaseTarget,
        fetch: &mut dyn FnMut(&mut dyn std::io::Write) -> Result<(), FetchError>,
    ) -> Result<(), BootError> {
        if self.has_image(target.slot)? && image_file::verify(self.esp, &file_of(target.slot), target).is_ok() {
            return Ok(());
        }
        image_file::lay_down(self.esp, DIRECTORY, target, fetch)
    }

    fn open_uki(
        &self,
        _machine: &Machine,
        _target: &ReleaseTarget,
    ) -> Result<Option<Box<dyn bascule_image::io::ReadAt>>, BootError> {
        // What these loaders start is their own business: a kernel from the slot, or this file after a check of their own.
        Ok(None)
    }

    fn verify_uki(&self, _machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError> {
        let in_place = file_of(target.slot);
        match &target.uki {
            Some((digest, _)) => {
                let waiting = format!("{DIRECTORY}/{}", waiting_name(digest));
                let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
                let waits = files.iter().any(|file| waiting.ends_with(&format!("/{}", file.name)));
                image_file::verify(self.esp, if waits { &waiting } else { &in_place }, target)
            }
            // An installer's slot may have its kernel elsewhere; dm-verity vouches for the rest.
            None if self.has_image(target.slot)? => image_file::verify(self.esp, &in_place, target),
            None => Ok(()),
        }
    }

    fn arm(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
        tries: u32,
        _set_aside_running: bool,
    ) -> Result<(), BootError> {
        if target.slot == machine.booted {
            return Err(BootError::Running("arming"));
        }
        if target.uki.is_some() {
            self.place_image(target)?;
        }
        let running = Self::bits(machine, machine.booted);
        // Room above the running one; it keeps its order against nothing else than the other slot.
        let kept = Bits { priority: running.priority.clamp(1, MAX - 1), successful: true, ..running };
        let armed = Bits { priority: kept.priority + 1, tries: u64::from(tries), successful: false };
        self.write(machine, &[(machine.booted, kept), (target.slot, armed)])
    }

    fn recount(&self, machine: &Machine, slot: SlotName, left: u32) -> Result<(), BootError> {
        let bits = Self::bits(machine, slot);
        self.write(machine, &[(slot, Bits { tries: u64::from(left), successful: false, ..bits })])
    }

    fn disarm(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError> {
        if target.slot == machine.booted {
            return Err(BootError::Running("disarming"));
        }
        self.write(machine, &[(target.slot, Bits::default())])
    }

    fn bless(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        let bits = Self::bits(machine, slot);
        self.write(machine, &[(slot, Bits { priority: bits.priority.max(1), tries: 0, successful: true })])
    }

    fn mark_bad(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        self.write(machine, &[(slot, Bits::default())])
    }

    fn set_aside(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        let bits = Self::bits(machine, slot);
        self.write(machine, &[(slot, Bits { priority: 1, ..bits })])
    }

    fn tidy(&self, _machine: &Machine, _slot: SlotName) -> Result<(), BootError> {
        Ok(())
    }

    fn remove_strays(&self, _machine: &Machine) -> Result<(), BootError> {
        Ok(())
    }
}
