//! Why an index is refused. Apart from the parser, so that both stay readable.

use bascule_names::{Digest, RootHash};

/// Why bytes are no index this version accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The bytes end before what the header announces, or go on after it.
    #[error("the pack index has {found} bytes, by its header it must have {expected}")]
    Length {
        /// Bytes by the header (the header itself where it is not whole).
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Longer than any index may be.
    #[error("the pack index has {found} bytes, accepted are at most {max}")]
    TooLong {
        /// Bytes that are there.
        found: u64,
        /// The cap.
        max: u64,
    },
    /// No index at all.
    #[error("these bytes are no pack index: the magic is missing")]
    Magic,
    /// Written in a format this version does not know.
    #[error("the pack index has format version {found}, this version accepts {accepted}")]
    UnknownFormat {
        /// The version found.
        found: u32,
        /// The version this program reads.
        accepted: u32,
    },
    /// A field of the header has a value that is not accepted or contradicts another.
    #[error("the pack index's {field} is {found}: {accepted}")]
    Header {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What is accepted.
        accepted: &'static str,
    },
    /// A frame's record is not accepted.
    #[error("frame {frame} of the pack index is not valid: {fault}")]
    Frame {
        /// Number of the frame, from 0.
        frame: u32,
        /// What is wrong. Part of the message, not a source: it is a value, not an error that happened.
        fault: FrameFault,
    },
}

/// What is wrong with one frame's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFault {
    /// A codec number this version does not know, or one that a full pack can't have.
    Codec(u8),
    /// A stored length that the codec does not allow.
    StoredLength(u32),
    /// The number of ranges does not suit the codec, or is more than the index holds.
    RangeCount(u16),
    /// A range is empty or lies (partly) outside the base.
    RangeOutsideBase {
        /// First block of the range.
        first: u32,
        /// Blocks of the range.
        count: u32,
    },
    /// The ranges of a reference are not ascending and apart.
    RangesOverlap {
        /// First block of the range that lies before the end of its predecessor.
        first: u32,
    },
    /// All ranges together are longer than a reference may be, or for a copy not as long as the frame.
    ReferenceLength(u64),
    /// The reserved byte is not zero.
    Reserved(u8),
}

impl std::fmt::Display for FrameFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Codec(codec) => write!(f, "codec {codec} is not known here; 0 to 4 are, in a full pack 0 to 2"),
            Self::StoredLength(length) => write!(f, "its codec does not allow a stored length of {length}"),
            Self::RangeCount(count) => write!(f, "its codec or the index does not allow {count} ranges"),
            Self::RangeOutsideBase { first, count } => {
                write!(f, "blocks {first} and the {count} from there on are not inside the base")
            }
            Self::RangesOverlap { first } => {
                write!(f, "the range at block {first} starts before the one ahead of it ends")
            }
            Self::ReferenceLength(length) => write!(f, "its ranges have {length} bytes together"),
            Self::Reserved(value) => write!(f, "its reserved byte is {value}, accepted is 0"),
        }
    }
}

impl IndexError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::UnknownFormat { .. } => "format-unknown",
            _ => "pack-index-invalid",
        }
    }
}

/// Why the index of a pack could not be read, or is not the one the manifest means.
#[derive(Debug, thiserror::Error)]
pub enum ReadIndexError {
    /// The source failed.
    #[error("reading the index of pack {path} failed")]
    Source {
        /// The pack.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The source ended early: the pack is truncated.
    #[error("pack {path} is truncated: its index ends after {found} of {expected} bytes")]
    Truncated {
        /// The pack.
        path: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The bytes are not the ones the manifest signs.
    #[error("the index of pack {path} has {found}, the manifest says {expected}")]
    Digest {
        /// The pack.
        path: String,
        /// Digest of what came.
        found: Digest,
        /// Digest in the manifest.
        expected: Digest,
    },
    /// The signed bytes are no index.
    #[error("the index of pack {path} is not acceptable")]
    Index {
        /// The pack.
        path: String,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// The index is fine but is not the one of this image, or of this base.
    #[error("the index of pack {path} has another {field} than the manifest")]
    OtherThanManifest {
        /// The pack.
        path: String,
        /// What differs.
        field: &'static str,
    },
    /// The manifest has no such base for it.
    #[error("pack {path} needs the image with root hash {needed} as its base")]
    BaseMissing {
        /// The pack.
        path: String,
        /// Root hash of the base.
        needed: RootHash,
    },
}

impl ReadIndexError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Source { .. } => "pack-unreadable",
            Self::Truncated { .. } => "pack-truncated",
            Self::Digest { .. } => "pack-index-digest",
            Self::Index { source, .. } => source.category(),
            Self::OtherThanManifest { .. } => "pack-index-invalid",
            Self::BaseMissing { .. } => "base-missing",
        }
    }
}
