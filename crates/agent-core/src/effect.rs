//! What the agent does to the machine: plain data, carried out one after the other by the engine.
//!
//! Every effect may be repeated, and the machine may lose power or the agent its life between any two: the next look
//! at the machine tells how far it came.

use bascule_api::{Digest, NodeUpdateStatus, PackFallback, RootHash, SlotName, Version};

use super::{Journal, KnownRelease, ReleaseQuery};

/// Which release goes into which slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseTarget {
    /// The slot; never the running one.
    pub slot: SlotName,
    /// The release's version.
    pub version: Version,
    /// Its root hash.
    pub root_hash: RootHash,
    /// The digest of its manifest. Unknown for a release that an installer put there.
    pub digest: Option<Digest>,
    /// Digest and size of its UKI. Unknown for a release that an installer put there: then its command line must name
    /// the root hash.
    pub uki: Option<(Digest, u64)>,
}

impl ReleaseTarget {
    /// A release whose manifest was verified, in a slot.
    pub fn known(slot: SlotName, release: &KnownRelease) -> Self {
        Self {
            slot,
            version: release.version.clone(),
            root_hash: release.root_hash.clone(),
            digest: Some(release.digest.clone()),
            uki: Some((release.uki_digest.clone(), release.uki_size)),
        }
    }
}

/// Why the machine goes down, for the wall message and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// To boot a release as a trial.
    Boot {
        /// What runs.
        from: Version,
        /// What is to run.
        to: Version,
    },
    /// Because a trial is given up.
    Revert {
        /// What runs.
        from: Version,
        /// In a sentence.
        reason: String,
    },
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Boot { from, to } => write!(f, "Bascule reboots from OS release {from} into {to}"),
            Self::Revert { from, reason } => write!(f, "Bascule leaves OS release {from}: {reason}"),
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Look at the machine.
    Observe,
    /// Write the journal durably.
    Persist(Journal),
    /// Read and verify the repository's word on a release; answers with [`super::Event::Resolved`].
    Resolve(ReleaseQuery),
    /// Bring both copies of the partition table to what the good one says.
    RepairTable,
    /// Remove the boot entries of this product that boot neither slot.
    RemoveStrays,
    /// Bring a doubled boot entry back to one file.
    TidyEntry(SlotName),
    /// Take away the boot entry of a slot, durably: from here its content can't be booted by mistake.
    RetireEntry(SlotName),
    /// Mark a slot as being written, durably.
    MarkWriting(ReleaseTarget),
    /// Mark a slot as holding nothing, durably.
    MarkEmpty(SlotName),
    /// Fetch what the slot does not hold already, check each frame, write it, write the verity tree, make it durable.
    WriteSlot {
        /// What is wanted where.
        target: ReleaseTarget,
        /// Whether a pack that is missing on the server may be replaced by a dearer one.
        fallback: PackFallback,
        /// Whether frames may be made from the running slot. Not where it is known to have changed: a delta would fail, and
        /// fail again.
        from_running: bool,
    },
    /// Fetch the UKI and lay it where no boot loader looks, durably.
    StageUki(ReleaseTarget),
    /// Read the running slot past the page cache and compare its root hash: dm-verity notices a change only where
    /// something is read.
    Inspect(ReleaseTarget),
    /// Read the slot back past the page cache and compare the root hash.
    ReadBack(ReleaseTarget),
    /// Give a slot its PARTUUIDs, labels and flags, durably.
    Seal(ReleaseTarget),
    /// Check slot and UKI once more before they are armed.
    Verify {
        /// What must be there.
        target: ReleaseTarget,
        /// Skip reading the whole slot: it was read back a short time ago in this boot.
        quick: bool,
    },
    /// Install the boot entry with a counter, durably.
    Arm {
        /// What is armed.
        target: ReleaseTarget,
        /// How often the boot loader may try it.
        tries: u32,
        /// Set the running slot's entry aside, because it would be picked before the armed one.
        set_aside_running: bool,
    },
    /// Give the entry of the running trial back the counter that it lost, durably.
    Recount {
        /// The running slot.
        slot: SlotName,
        /// How often it may still be tried after this boot.
        left: u32,
    },
    /// Take an armed entry back that was never booted.
    Disarm(ReleaseTarget),
    /// Make the running slot's entry permanent, durably.
    Bless {
        /// The slot, with the root hash it must have.
        slot: SlotName,
        /// Its root hash.
        root_hash: RootHash,
    },
    /// Tell the guard that the trial is over.
    TellGuard {
        /// This boot.
        boot_id: String,
    },
    /// Make sure that a slot whose release failed is picked only if there is nothing else, durably.
    MarkBad(SlotName),
    /// Make the entry of a slot permanent again that was set aside or used up, durably.
    Restore(SlotName),
    /// Set a permanent entry aside: picked only if there is nothing else, durably.
    SetAside(SlotName),
    /// Reboot through logind, unless somebody blocks it.
    Reboot(Why),
    /// Stop the work in progress.
    Cancel,
    /// Write the status to the API server, when that is reachable.
    Publish(Box<NodeUpdateStatus>),
}

impl Effect {
    /// A stable name for logs, metrics and tests.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Persist(_) => "persist",
            Self::Resolve(_) => "resolve",
            Self::RepairTable => "repair-table",
            Self::RemoveStrays => "remove-strays",
            Self::TidyEntry(_) => "tidy-entry",
            Self::RetireEntry(_) => "retire-entry",
            Self::MarkWriting(_) => "mark-writing",
            Self::MarkEmpty(_) => "mark-empty",
            Self::WriteSlot { .. } => "write-slot",
            Self::StageUki(_) => "stage-uki",
            Self::Inspect(_) => "inspect",
            Self::ReadBack(_) => "read-back",
            Self::Seal(_) => "seal",
            Self::Verify { .. } => "verify",
            Self::Arm { .. } => "arm",
            Self::Recount { .. } => "recount",
            Self::Disarm(_) => "disarm",
            Self::Bless { .. } => "bless",
            Self::TellGuard { .. } => "tell-guard",
            Self::MarkBad(_) => "mark-bad",
            Self::Restore(_) => "restore",
            Self::SetAside(_) => "set-aside",
            Self::Reboot(_) => "reboot",
            Self::Cancel => "cancel",
            Self::Publish(_) => "publish",
        }
    }
}
