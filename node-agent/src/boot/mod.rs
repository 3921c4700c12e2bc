//! Telling the boot loader what to boot: two backends with the same few operations.
//!
//! Each operation is durable when it returns, may be repeated, and leaves at every instant something that boots: the
//! old release or the new one, whole.

mod error;
mod gptprio;
mod image_file;
pub mod name;
mod systemd_boot;

use bascule_api::{BootControlBackend, Product, RootHash, SlotName, Version};

pub use error::BootError;
pub use gptprio::GptPrio;
pub use systemd_boot::SystemdBoot;

use crate::core::{BootFacts, Entry, Partition, PerSlot, ReleaseTarget, SlotContent};

/// What a backend needs to know of the machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The product whose boot entries are ours.
    pub product: Product,
    /// The running release.
    pub version: Version,
    /// Its root hash.
    pub root_hash: RootHash,
    /// The running slot.
    pub booted: SlotName,
    /// The slots' partitions.
    pub partitions: PerSlot<(Partition, Partition)>,
    /// What they say they hold.
    pub contents: PerSlot<SlotContent>,
}

impl Machine {
    /// The root hash that a slot's boot entry must name.
    pub fn root_hash_of(&self, slot: SlotName) -> Option<&RootHash> {
        if slot == self.booted { Some(&self.root_hash) } else { self.contents.get(slot).root_hash() }
    }
}

/// What a backend sees.
#[derive(Debug, Clone)]
pub struct Seen {
    /// For the facts.
    pub facts: BootFacts,
    /// The slots' entries.
    pub entries: PerSlot<Entry>,
    /// Whether a slot has more than one entry.
    pub doubled: PerSlot<bool>,
}

/// A way of telling a boot loader what to boot.
pub trait BootBackend {
    /// Which.
    fn kind(&self) -> BootControlBackend;

    /// Looks.
    fn observe(&self, machine: &Machine) -> Result<Seen, BootError>;

    /// Takes away the entry of a slot that does not run, and with it every boot image of ours that the running slot does
    /// not need.
    fn retire(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError>;

    /// Lays a boot image where no boot loader looks. `fetch` writes it to where it is told to; what it wrote is read
    /// back and compared before it counts.
    fn stage_uki(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
        fetch: &mut dyn FnMut(&mut dyn std::io::Write) -> Result<(), crate::host::FetchError>,
    ) -> Result<(), BootError>;

    /// The boot image that would be armed, to be looked at; `None` where the firmware does not start it itself.
    fn open_uki(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
    ) -> Result<Option<Box<dyn bascule_image::io::ReadAt>>, BootError>;

    /// Compares the boot image that would be armed with the manifest.
    fn verify_uki(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError>;

    /// Installs the entry with its counter.
    fn arm(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
        tries: u32,
        set_aside_running: bool,
    ) -> Result<(), BootError>;

    /// Gives the entry of a running trial back the counter that it lost, with `left` tries after this one.
    fn recount(&self, machine: &Machine, slot: SlotName, left: u32) -> Result<(), BootError>;

    /// Takes an armed entry back.
    fn disarm(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError>;

    /// Makes the entry of a slot permanent.
    fn bless(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError>;

    /// Makes the entry of a slot that failed the last choice.
    fn mark_bad(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError>;

    /// Makes a permanent entry the last choice without calling it failed.
    fn set_aside(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError>;

    /// Brings the entry of a slot back to one file.
    fn tidy(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError>;

    /// Removes entries of this product that boot neither slot.
    fn remove_strays(&self, machine: &Machine) -> Result<(), BootError>;
}
