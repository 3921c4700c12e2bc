//! What boots: facts of the boot partitions, what they mean, and the changes that follow. Pure; the driver reads and writes.

mod attributes;
mod change;
mod files;
mod inventory;
mod leftover;
pub(crate) mod loader;
pub mod name;
pub(crate) mod plan;
mod records;
pub(crate) mod update;
mod view;
pub(crate) mod way_back;

pub use attributes::Attributes;
pub use change::{BootChange, BootPurpose, BootStep, Expected};
pub use files::{is_unfinished, parse_waiting, unfinished_name, waiting_name};
pub use inventory::{
    BootFile, BootInventory, BootPartition, FileContent, ImageFacts, LoaderFacts, PartitionFacts, Pin, ShownFacts,
    TextContent, TextEntry, TextFacts,
};
pub use loader::loader_order;
pub use update::{
    ExpectedLoader, LeftBecause, LoaderChange, LoaderContent, LoaderCopy, LoaderMemory, LoaderPlace, LoaderStep,
    is_beside,
};
pub use view::{BootView, SlotImages};
pub(crate) use view::{Judge, base, entry_of};

use bascule_api::{Digest, RootHash};
use serde::{Deserialize, Serialize};

use crate::Facts;
use crate::protocol::NoPlan;

/// Rules that keep a node whole. Each can be left out, so that tests show that they notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Safeguard {
    /// What could not be read is not taken for absent.
    UnreadIsNotAbsent,
    /// What the agent did not place is left alone.
    ForeignIsLeftAlone,
    /// Nothing is armed unless the boot loader would take it, and come back afterwards.
    WayBackBeforeArming,
    /// An armed entry that the boot loader did not take is remembered, and nothing is armed any more.
    NotTakenIsRemembered,
    /// A trial is committed before anything is repaired.
    CommitBeforeRepair,
    /// A boot image is looked at before anything of the other slot is given up for it.
    ImageBeforeSlot,
    /// What lies shorter under the name of a placed image is the agent's only if it begins as that did.
    LeftoverBeginsAlike,
}

/// A boot image that the agent placed, or took over from the installer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacedImage {
    /// The root hash that it boots.
    pub root_hash: RootHash,
    /// On which partition. A journal from before that was on record does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<BootPartition>,
    /// Its name without counters and ending.
    pub base: String,
    /// Its length in bytes.
    pub size: u64,
    /// Digest of all of it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Digest of its first 512 bytes. A journal from before that was on record does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Digest>,
}

impl PlacedImage {
    /// Whether it may be on this partition.
    pub(crate) fn is_on(&self, partition: BootPartition) -> bool {
        self.partition.is_none_or(|home| home == partition)
    }
}

/// What takes the machine back from the running release, without an agent: first the way back, then the way out, so that
/// at no moment there is neither. A step that can't be taken says why.
pub fn steps_back(facts: &Facts) -> [Result<BootStep, String>; 2] {
    let why = |no_plan: NoPlan| match no_plan {
        NoPlan::Unseen(why) | NoPlan::Refused(why) => why,
    };
    [
        plan::permanent(facts, facts.inactive(), BootPurpose::Restore).map_err(why),
        plan::mark_bad(facts, facts.booted).map_err(why),
    ]
}

/// What could not be read of the boot partitions, in a sentence.
pub fn unread(facts: &Facts) -> String {
    plan::unread(facts)
}
