//! What the agent does to the machine: plain data, carried out one after the other by the engine.
//!
//! Every effect may be repeated, and the machine may lose power or the agent its life between any two: the next look
//! at the machine tells how far it came.

use bascule_api::{Digest, NodeUpdateStatus, PackFallback, RootHash, SlotName, Version};

use super::boot::{BootPartition, BootPurpose, BootStep, LoaderStep};
use super::{Hook, Journal, KnownRelease, ReleaseQuery};

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
    Persist(Box<Journal>),
    /// Read and verify the repository's word on a release; answers with [`super::Event::Resolved`].
    Resolve(ReleaseQuery),
    /// Bring both copies of the partition table to what the good one says.
    RepairTable,
    /// Change what boots, durably, step by step.
    Boot(BootStep),
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
    /// Look at the UKI where it lies on the server: whether this machine would start it.
    PreviewUki(ReleaseTarget),
    /// Fetch the UKI, lay it where no boot loader looks, durably, and look whether this machine would start it.
    StageUki {
        /// Which.
        target: ReleaseTarget,
        /// On which partition.
        partition: BootPartition,
    },
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
        /// Where its boot image lies; `None` where the boot loader has another way to the kernel.
        image: Option<(BootPartition, String)>,
        /// Skip reading the whole slot: it was read back a short time ago in this boot.
        quick: bool,
    },
    /// Run a hook of the OS image to its end, if the image has it.
    RunHook {
        /// Which.
        hook: Hook,
        /// The release that it is told of.
        version: Version,
    },
    /// Put the boot loader that the running image brings in one of its places on the ESP, durably, if this machine would start it.
    PlaceLoader(LoaderStep),
    /// Tell the guard that the trial is over.
    TellGuard {
        /// This boot.
        boot_id: String,
    },
    /// Reboot through logind, unless somebody blocks it.
    Reboot(Why),
    /// Stop the work in progress.
    Cancel,
    /// Write the status to the API server, when that is reachable.
    Publish(Box<NodeUpdateStatus>),
}

/// Which kind of effect: what steers, is counted and is logged, without what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EffectKind {
    /// [`Effect::Observe`]
    Observe,
    /// [`Effect::Persist`]
    Persist,
    /// [`Effect::Resolve`]
    Resolve,
    /// [`Effect::RepairTable`]
    RepairTable,
    /// [`Effect::Boot`], by its purpose.
    Boot(BootPurpose),
    /// [`Effect::MarkWriting`]
    MarkWriting,
    /// [`Effect::MarkEmpty`]
    MarkEmpty,
    /// [`Effect::WriteSlot`]
    WriteSlot,
    /// [`Effect::PreviewUki`]
    PreviewUki,
    /// [`Effect::StageUki`]
    StageUki,
    /// [`Effect::Inspect`]
    Inspect,
    /// [`Effect::ReadBack`]
    ReadBack,
    /// [`Effect::Seal`]
    Seal,
    /// [`Effect::Verify`]
    Verify,
    /// [`Effect::RunHook`], by the hook.
    RunHook(Hook),
    /// [`Effect::PlaceLoader`]
    PlaceLoader,
    /// [`Effect::TellGuard`]
    TellGuard,
    /// [`Effect::Reboot`]
    Reboot,
    /// [`Effect::Cancel`]
    Cancel,
    /// [`Effect::Publish`]
    Publish,
}

impl EffectKind {
    /// A stable name for logs, metrics and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Persist => "persist",
            Self::Resolve => "resolve",
            Self::RepairTable => "repair-table",
            Self::Boot(purpose) => purpose.name(),
            Self::MarkWriting => "mark-writing",
            Self::MarkEmpty => "mark-empty",
            Self::WriteSlot => "write-slot",
            Self::PreviewUki => "preview-uki",
            Self::StageUki => "stage-uki",
            Self::Inspect => "inspect",
            Self::ReadBack => "read-back",
            Self::Seal => "seal",
            Self::Verify => "verify",
            Self::RunHook(hook) => hook.name(),
            Self::PlaceLoader => "place-loader",
            Self::TellGuard => "tell-guard",
            Self::Reboot => "reboot",
            Self::Cancel => "cancel",
            Self::Publish => "publish",
        }
    }

    /// Whether it only mends or follows what works as it is: it can wait, and nothing waits for it.
    pub const fn is_repair(self) -> bool {
        let follows = matches!(self, Self::RunHook(Hook::AfterCommit));
        follows || matches!(self, Self::RepairTable | Self::Boot(BootPurpose::ClearAway | BootPurpose::Untangle))
    }

    /// Whether it is part of bringing a release into a slot: what fails now here and now there has failed as often in a row.
    pub const fn is_staging(self) -> bool {
        match self {
            Self::Boot(purpose) => matches!(purpose, BootPurpose::ClearDownloads | BootPurpose::Retire),
            Self::MarkWriting | Self::WriteSlot | Self::PreviewUki | Self::StageUki | Self::ReadBack | Self::Seal => {
                true
            }
            _ => false,
        }
    }

    /// Whether it is part of making a trial permanent.
    pub const fn is_commit(self) -> bool {
        matches!(self, Self::Boot(BootPurpose::Commit) | Self::TellGuard | Self::Persist)
    }
}

impl std::fmt::Display for EffectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Effect {
    /// Its kind.
    pub const fn kind(&self) -> EffectKind {
        match self {
            Self::Observe => EffectKind::Observe,
            Self::Persist(_) => EffectKind::Persist,
            Self::Resolve(_) => EffectKind::Resolve,
            Self::RepairTable => EffectKind::RepairTable,
            Self::Boot(step) => EffectKind::Boot(step.purpose),
            Self::MarkWriting(_) => EffectKind::MarkWriting,
            Self::MarkEmpty(_) => EffectKind::MarkEmpty,
            Self::WriteSlot { .. } => EffectKind::WriteSlot,
            Self::PreviewUki(_) => EffectKind::PreviewUki,
            Self::StageUki { .. } => EffectKind::StageUki,
            Self::Inspect(_) => EffectKind::Inspect,
            Self::ReadBack(_) => EffectKind::ReadBack,
            Self::Seal(_) => EffectKind::Seal,
            Self::Verify { .. } => EffectKind::Verify,
            Self::RunHook { hook, .. } => EffectKind::RunHook(*hook),
            Self::PlaceLoader(_) => EffectKind::PlaceLoader,
            Self::TellGuard { .. } => EffectKind::TellGuard,
            Self::Reboot(_) => EffectKind::Reboot,
            Self::Cancel => EffectKind::Cancel,
            Self::Publish(_) => EffectKind::Publish,
        }
    }

    /// A stable name for logs, metrics and tests.
    pub const fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Whether it changes boot entries for this purpose.
    pub fn is_for(&self, purpose: BootPurpose) -> bool {
        self.kind() == EffectKind::Boot(purpose)
    }
}
