//! Changes of what boots, as data: decided here, carried out by the driver, which first looks whether it finds what is
//! expected and afterwards whether the change is there.

use bascule_api::{Digest, RootHash, SlotName};

use super::{BootFile, BootPartition, FileContent};

/// What must be found before a file is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its length.
    pub size: u64,
    /// What it says of itself.
    pub content: FileContent,
    /// Digest of all of it, where the change hangs on that.
    pub digest: Option<Digest>,
}

impl Expected {
    /// As it was seen.
    pub fn of(file: &BootFile) -> Self {
        Self { size: file.size, content: file.content.clone(), digest: file.digest.clone() }
    }
}

/// One change, durable when it is done. All names are in the folder of boot images of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootChange {
    /// Give a file another name that no file has.
    Rename {
        /// On which partition.
        partition: BootPartition,
        /// Its name.
        from: String,
        /// Its new name.
        to: String,
        /// What must be found under `from`.
        expect: Expected,
    },
    /// The same for an image that never ran here: it is no program until its name is whole
    /// (docs/decisions/0005-a-trial-is-what-nobody-began-to-commit.md).
    PutInPlace {
        /// On which partition.
        partition: BootPartition,
        /// Its name.
        from: String,
        /// Its new name.
        to: String,
        /// What must be found under `from`.
        expect: Expected,
    },
    /// Remove a file.
    Remove {
        /// On which partition.
        partition: BootPartition,
        /// Its name.
        file: String,
        /// What must be found there.
        expect: Expected,
    },
    /// Write a copy of a file under a name that no file has, and read it back.
    Copy {
        /// On which partition.
        partition: BootPartition,
        /// Its name.
        from: String,
        /// The copy's name.
        to: String,
        /// What must be found under `from`.
        expect: Expected,
    },
    /// Set the boot attributes of data partitions in one change of the partition table.
    Attributes(Vec<(SlotName, super::Attributes)>),
}

impl BootChange {
    /// A rename of a file that was seen.
    pub(crate) fn rename(file: &BootFile, to: String) -> Option<Self> {
        (file.name != to).then(|| Self::Rename {
            partition: file.partition,
            from: file.name.clone(),
            to,
            expect: Expected::of(file),
        })
    }

    /// The removal of a file that was seen.
    pub(crate) fn remove(file: &BootFile) -> Self {
        Self::Remove { partition: file.partition, file: file.name.clone(), expect: Expected::of(file) }
    }
}

/// What a chain of changes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BootPurpose {
    /// Take away what the agent placed and what boots nothing any more.
    ClearAway,
    /// Take away what earlier downloads left, before a boot image is laid down.
    ClearDownloads,
    /// Bring an entry that power loss left under several names back to one file.
    Untangle,
    /// Take away the entry of a slot that is to be overwritten.
    Retire,
    /// Install an entry with a counter.
    Arm,
    /// Give an entry its counter back.
    Recount,
    /// Take back what was armed and not booted.
    Disarm,
    /// Make the running release's entry permanent.
    Commit,
    /// Make what failed the last choice.
    MarkBad,
    /// Make an entry permanent that was set aside or used up.
    Restore,
    /// Make a permanent entry the last choice without calling it failed.
    SetAside,
}

impl BootPurpose {
    /// A stable name for logs, metrics and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClearAway => "clear-away",
            Self::ClearDownloads => "clear-downloads",
            Self::Untangle => "untangle",
            Self::Retire => "retire-entry",
            Self::Arm => "arm",
            Self::Recount => "recount",
            Self::Disarm => "disarm",
            Self::Commit => "bless",
            Self::MarkBad => "mark-bad",
            Self::Restore => "restore",
            Self::SetAside => "set-aside",
        }
    }

    /// In words, for whoever wonders why shutdown is held back.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ClearAway => "removing boot images that boot nothing",
            Self::ClearDownloads => "removing what earlier downloads left",
            Self::Untangle => "repairing a boot entry",
            Self::Retire => "removing a boot entry",
            Self::Arm => "arming a slot",
            Self::Recount => "giving a boot entry its counter back",
            Self::Disarm => "disarming a slot",
            Self::Commit => "committing a release",
            Self::MarkBad => "giving a release up",
            Self::Restore => "restoring a boot entry",
            Self::SetAside => "setting a boot entry aside",
        }
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootStep {
    /// What for.
    pub purpose: BootPurpose,
    /// The slot that it is about, and what that must hold.
    pub slot: SlotName,
    /// The release that the slot must hold when the step begins; `None` where that does not matter.
    pub release: Option<RootHash>,
    /// In this order.
    pub changes: Vec<BootChange>,
}
