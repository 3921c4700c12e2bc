//! Why a pack could not be applied.

use std::io;

use crate::digest::Sha256;
use crate::pack::FrameError;
use crate::verity::IncompleteTree;
use crate::work::Cancelled;

/// Why a pack could not be applied. What was written until then are whole, checked frames: trying again with
/// `Options::resume` keeps them.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A delta pack, and no base or another one than it names.
    #[error("the delta pack needs the base with root hash {needed}, {}", have(found))]
    WrongBase {
        /// Root hash of the base it names.
        needed: Sha256,
        /// Root hash of the base that was given.
        found: Option<Sha256>,
    },
    /// The base with the right name has another size than the pack was built against.
    #[error("the base image has {found} bytes, the delta pack was built against {expected}")]
    BaseSize {
        /// Size by the index.
        expected: u64,
        /// Size of what was given.
        found: u64,
    },
    /// The base can't even say its size.
    #[error("the base image can't be read")]
    Base(#[source] io::Error),
    /// The slot is smaller than the image.
    #[error("the slot has {found} bytes, the image needs {needed}")]
    SlotTooSmall {
        /// Size of the image.
        needed: u64,
        /// Size of the slot.
        found: u64,
    },
    /// The source failed.
    #[error("fetching {length} bytes at offset {offset} of the pack failed")]
    Source {
        /// Offset in the pack.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source ended a range early.
    #[error("the pack is truncated: the range of {length} bytes at offset {offset} ended after {found}")]
    Truncated {
        /// Offset in the pack.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A frame is not what the index says.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame made from the base is not what the index says, or the base could not be read for it: the base is damaged, or
    /// the pack was on its way. A full pack without a base tells, and heals.
    #[error("a frame that is made from the base image failed")]
    BaseFrame(#[source] FrameError),
    /// Reading back from or writing to the slot failed.
    #[error("{action} the slot at offset {offset} failed")]
    Sink {
        /// What was attempted.
        action: &'static str,
        /// Offset in the slot in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All frames are right and the tree over them is not the release's: index and manifest contradict each other.
    #[error("the written image has root hash {found}, the release says {expected}")]
    RootHash {
        /// Root hash by the index, which was compared with the manifest.
        expected: Sha256,
        /// Root hash of what was written.
        found: Sha256,
    },
    /// A defect of this program: not all frames were seen.
    #[error(transparent)]
    Incomplete(#[from] IncompleteTree),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A worker thread ended without a result, which only a defect of a reader or writer can cause.
    #[error("a worker thread died")]
    Worker,
}

fn have(found: &Option<Sha256>) -> String {
    match found {
        Some(found) => format!("this one has {found}"),
        None => "and none was given".to_owned(),
    }
}

impl ApplyError {
    /// Whether the base may be what is wrong: the same pack fails the same way for as long as the base is what it is, while
    /// a full pack applied without a base does not need it.
    pub fn blames_base(&self) -> bool {
        matches!(self, Self::WrongBase { .. } | Self::BaseSize { .. } | Self::Base(_) | Self::BaseFrame(_))
    }

    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::WrongBase { .. } | Self::BaseSize { .. } => "base-wrong",
            Self::Base(_) => "base-unreadable",
            Self::SlotTooSmall { .. } => "slot-too-small",
            Self::Source { .. } => "pack-unreadable",
            Self::Truncated { .. } => "pack-truncated",
            Self::Frame(error) | Self::BaseFrame(error) => error.category(),
            Self::Sink { .. } => "slot-io",
            Self::RootHash { .. } | Self::Incomplete(_) => "root-hash-mismatch",
            Self::Cancelled(_) => "cancelled",
            Self::Worker => "internal",
        }
    }
}
