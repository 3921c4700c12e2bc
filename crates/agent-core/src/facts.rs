//! What the agent reads from the machine each time before it decides.

use bascule_api::{Architecture, BootControlBackend, Counting, Product, RootHash, SlotName, Version};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::boot::{BootFile, BootInventory, BootView, Judge, Safeguard, way_back};
use super::{Extent, Journal};

/// One value for each slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerSlot<T> {
    /// Of slot A.
    pub a: T,
    /// Of slot B.
    pub b: T,
}

impl<T> PerSlot<T> {
    /// The value of one slot.
    pub const fn get(&self, slot: SlotName) -> &T {
        match slot {
            SlotName::A => &self.a,
            SlotName::B => &self.b,
        }
    }

    /// The value of one slot, to be changed.
    pub const fn get_mut(&mut self, slot: SlotName) -> &mut T {
        match slot {
            SlotName::A => &mut self.a,
            SlotName::B => &mut self.b,
        }
    }
}

/// A partition of a slot as the table describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Where it lies.
    pub extent: Extent,
    /// Its PARTUUID, as it is written (not in the table's byte order).
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Its attribute bits.
    pub attributes: u64,
}

/// What a slot's partitions say they hold. Nobody has looked at the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotContent {
    /// Nothing.
    Empty,
    /// Something that is not whole.
    Writing {
        /// Version of the release that was being written.
        version: Option<Version>,
    },
    /// A release: label and PARTUUIDs are those of one.
    Release {
        /// From the label.
        version: Version,
        /// From the two PARTUUIDs, which are its halves.
        root_hash: RootHash,
    },
    /// Anything else, e.g. partitions that an installer labelled in another way.
    Foreign,
}

impl SlotContent {
    /// The root hash of a whole release.
    pub const fn root_hash(&self) -> Option<&RootHash> {
        match self {
            Self::Release { root_hash, .. } => Some(root_hash),
            _ => None,
        }
    }
}

/// The boot entry of a slot, whatever the boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// None: the slot can't be booted.
    None,
    /// Permanent.
    Good,
    /// With tries left.
    Trying {
        /// How often it would still be tried.
        left: u32,
        /// How often it was tried, where the boot loader writes that down.
        done: Option<u32>,
    },
    /// No tries left. The boot loader picks it only if there is nothing better.
    Bad {
        /// How often it was tried. 0: it was set aside by the agent, not used up.
        done: Option<u32>,
    },
    /// None was seen, and not everything could be read: it may be there.
    Unseen,
}

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// The data partition.
    pub data: Partition,
    /// The verity partition.
    pub verity: Partition,
    /// What they say they hold.
    pub content: SlotContent,
    /// Its boot entry; [`Entry::Unseen`] until it was judged.
    pub entry: Entry,
    /// More than one file claims to be its boot entry: a rename that power loss cut in the middle.
    pub entry_doubled: bool,
}

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFacts {
    /// The backend.
    pub backend: BootControlBackend,
    /// What lies on the boot partitions, and what the boot loader says.
    pub inventory: BootInventory,
    /// What that means. Empty until it was judged ([`Facts::judge`]).
    pub view: BootView,
    /// What can be said about its counting from this boot alone.
    pub counting: Counting,
    /// Why, in a sentence, if counting is not known to work.
    pub counting_message: Option<String>,
    /// Why nothing may be armed, in a sentence: there would be no way back, or the boot loader would not take it.
    pub obstacle: Option<String>,
    /// Of two entries without counters, the boot loader picks the running slot's first. Then the other slot can be
    /// armed only by setting the running one's entry aside.
    pub running_sorts_first: bool,
}

impl BootFacts {
    /// As the driver hands it over: read, not judged.
    pub fn read(backend: BootControlBackend, inventory: BootInventory) -> Self {
        Self {
            backend,
            inventory,
            view: BootView::default(),
            counting: Counting::Unknown,
            counting_message: None,
            obstacle: None,
            running_sorts_first: false,
        }
    }

    /// Whether everything that matters could be read.
    pub fn saw_everything(&self) -> bool {
        self.view.unread.is_empty() && self.inventory.loader.unread.is_empty()
    }

    /// Where new boot images go.
    pub fn home(&self) -> super::boot::BootPartition {
        let first = self.inventory.partitions.first().map(|facts| facts.partition);
        self.view.home.or(first).unwrap_or(super::boot::BootPartition::Esp)
    }
}

/// How the two copies of the partition table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableHealth {
    /// Both are valid and say the same.
    Good,
    /// The primary copy is broken; the backup was read.
    PrimaryBroken,
    /// The primary copy could not be read; the backup was. It may be whole, and say something newer.
    PrimaryUnread,
    /// The backup copy is broken or says something else.
    BackupBroken,
}

/// What the guard left behind before it rebooted the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardReport {
    /// The boot in which it acted.
    pub boot_id: String,
    /// The release it gave up.
    pub root_hash: RootHash,
    /// When.
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
}

impl GuardReport {
    /// Name of its file in the state folder.
    pub const FILE: &str = "guard.json";
}

/// All facts of one look at the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's boot ID.
    pub boot_id: String,
    /// The product of the running OS image.
    pub product: Product,
    /// The architecture.
    pub architecture: Architecture,
    /// The running release's version, from its os-release.
    pub version: Version,
    /// What the running release declares of the machine's state (os-release, `BASCULE_STATE_VERSION`).
    pub state_version: Option<u32>,
    /// The running release's root hash, from the kernel's command line.
    pub root_hash: RootHash,
    /// The running slot.
    pub booted: SlotName,
    /// The slots.
    pub slots: PerSlot<SlotFacts>,
    /// The boot loader.
    pub boot: BootFacts,
    /// The partition table.
    pub table: TableHealth,
    /// What the guard left behind.
    pub guard: Option<GuardReport>,
    /// Why that could not be read.
    pub guard_unread: Option<String>,
    /// Units that are expected to run and do not (setting `health.units`), with their state.
    pub failing_units: Vec<String>,
}

impl Facts {
    /// The slot that does not run.
    pub const fn inactive(&self) -> SlotName {
        self.booted.other()
    }

    /// The running slot.
    pub const fn booted_slot(&self) -> &SlotFacts {
        self.slots.get(self.booted)
    }

    /// The slot that does not run.
    pub const fn inactive_slot(&self) -> &SlotFacts {
        self.slots.get(self.inactive())
    }

    /// The root hash that a slot's boot entry must name.
    pub const fn root_hash_of(&self, slot: SlotName) -> Option<&RootHash> {
        if matches!((slot, self.booted), (SlotName::A, SlotName::A) | (SlotName::B, SlotName::B)) {
            Some(&self.root_hash)
        } else {
            self.slots.get(slot).content.root_hash()
        }
    }

    /// Says what the boot inventory means, with what the journal has on record.
    pub fn judge(&mut self, journal: &Journal, without: Option<Safeguard>) {
        let release = |slot: SlotName| match &self.slots.get(slot).content {
            _ if slot == self.booted => Some((&self.root_hash, &self.version)),
            SlotContent::Release { version, root_hash } => Some((root_hash, version)),
            _ => None,
        };
        let judge = Judge {
            inventory: &self.boot.inventory,
            records: &journal.placed,
            product: &self.product,
            booted: self.booted,
            releases: PerSlot { a: release(SlotName::A), b: release(SlotName::B) },
            without,
        };
        let view = judge.view();
        let entries = [SlotName::A, SlotName::B].map(|slot| match self.boot.backend {
            BootControlBackend::SystemdBoot => judge.entry(&view, slot),
            BootControlBackend::GptPrio => self.entry_by_attributes(slot, &view),
        });
        for (slot, entry) in [SlotName::A, SlotName::B].into_iter().zip(entries) {
            let images = view.slots.get(slot);
            let doubled = images.images.len() > 1 || !images.same_clusters.is_empty();
            let facts = self.slots.get_mut(slot);
            facts.entry = entry;
            facts.entry_doubled = doubled;
        }
        self.boot.view = view;
        self.boot.running_sorts_first = way_back::running_sorts_first(self);
        (self.boot.counting, self.boot.counting_message) = way_back::counting(self);
        self.boot.obstacle = match without {
            Some(Safeguard::WayBackBeforeArming) => None,
            _ => way_back::obstacle(self),
        };
    }

    /// A slot that can be armed again has its image in place, and no entry that would show it. What is left of one is none.
    fn entry_by_attributes(&self, slot: SlotName, view: &BootView) -> Entry {
        let facts = self.slots.get(slot);
        let entry = super::boot::Attributes::of(facts.data.attributes).entry(slot == self.booted);
        let name = super::boot::plan::slot_file(slot);
        let left = |file: &BootFile| view.strays.contains(file) || view.slots.get(slot).left_over.contains(file);
        let mut files = self.boot.inventory.files.iter();
        let in_place = files.any(|file| file.name.eq_ignore_ascii_case(name) && file.size > 0 && !left(file));
        match entry {
            Entry::None if in_place && matches!(facts.content, SlotContent::Release { .. }) => {
                Entry::Bad { done: Some(0) }
            }
            entry => entry,
        }
    }
}
