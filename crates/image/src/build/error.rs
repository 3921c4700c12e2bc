//! Why a pack could not be built.

use std::io;

use crate::pack::IndexError;
use crate::work::Cancelled;

/// Why a pack could not be built. What was written to the output until then is worthless.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The image or base has a size no release can have.
    #[error("the {what} has {found} bytes, accepted are multiples of 4096 up to 16 GiB")]
    Size {
        /// Image or base.
        what: &'static str,
        /// Its size.
        found: u64,
    },
    /// The caller asked for a frame size that no reader accepts.
    #[error("a frame size of {found} bytes is not accepted, powers of two from 64 KiB to 4 MiB are")]
    FrameSize {
        /// Size asked for.
        found: u32,
    },
    /// Reading the image or the base failed.
    #[error("reading the {what} at offset {offset} failed")]
    Read {
        /// Image or base.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing the pack failed.
    #[error("writing the pack failed")]
    Write(#[source] io::Error),
    /// zstd failed.
    #[error("compressing frame {frame} failed: {reason}")]
    Zstd {
        /// Number of the frame.
        frame: u32,
        /// zstd's name of the error.
        reason: &'static str,
    },
    /// The result would be refused by a reader.
    #[error("the pack can't be described by an index")]
    Index(#[from] IndexError),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A worker thread ended without a result, which only a defect of a reader can cause.
    #[error("a worker thread died")]
    Worker,
}

impl BuildError {
    /// Stable label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Size { .. } => "image-size",
            Self::FrameSize { .. } => "frame-size",
            Self::Read { .. } => "image-unreadable",
            Self::Write(_) => "pack-unwritable",
            Self::Zstd { .. } | Self::Worker => "internal",
            Self::Index(_) => "pack-index-invalid",
            Self::Cancelled(_) => "cancelled",
        }
    }
}
