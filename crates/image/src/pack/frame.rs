//! Decoding one frame: from stored bytes and ranges of the base to raw bytes that were checked.
//!
//! Memory: a decoder holds one reference (at most [`super::MAX_REFERENCE`]) and zstd's decoding state (about 160 KiB; the
//! output is decoded in one piece, so no window is allocated, whatever the zstd frame asks for).

use std::io;

use zstd::zstd_safe;

use super::index::{Codec, Frame};
use crate::digest::Sha256;
use crate::io::ReadAt;

/// Why a frame could not be decoded. Nothing of such a frame is ever written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame needs the base and the caller gave none.
    #[error("frame {frame} refers to the base image, and there is none")]
    NoBase {
        /// Number of the frame.
        frame: u32,
    },
    /// Reading the base failed.
    #[error("reading the base image at offset {offset} for frame {frame} failed")]
    Base {
        /// Number of the frame.
        frame: u32,
        /// Offset in the base in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stored bytes or the output buffer have another length than the index says.
    #[error("frame {frame} has {found} stored bytes, the index says {expected}")]
    StoredLength {
        /// Number of the frame.
        frame: u32,
        /// Length by the index.
        expected: u64,
        /// Length of what was given.
        found: u64,
    },
    /// zstd refused the stored bytes, or they decompress to more than the frame.
    #[error("frame {frame} does not decompress: {reason}")]
    Zstd {
        /// Number of the frame.
        frame: u32,
        /// zstd's name of the error.
        reason: &'static str,
    },
    /// The stored bytes are not exactly one zstd frame, or decompress to less than the frame.
    #[error("frame {frame} is not one zstd frame of {expected} bytes, it gives {found}")]
    RawLength {
        /// Number of the frame.
        frame: u32,
        /// Length by the index.
        expected: u64,
        /// Length of what came out.
        found: u64,
    },
    /// The raw bytes are not the ones the index names.
    #[error("frame {frame} decodes to bytes with digest {found}, the index says {expected}")]
    Digest {
        /// Number of the frame.
        frame: u32,
        /// Digest by the index.
        expected: Sha256,
        /// Digest of what came out.
        found: Sha256,
    },
}

impl FrameError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NoBase { .. } => "base-missing",
            Self::Base { .. } => "base-unreadable",
            Self::Digest { .. } => "frame-digest",
            Self::StoredLength { .. } | Self::Zstd { .. } | Self::RawLength { .. } => "frame-invalid",
        }
    }
}

/// Decodes frames one after the other, reusing its reference buffer.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    reference: Vec<u8>,
}

impl FrameDecoder {
    /// With no buffer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes `frame` from its `stored` bytes into `raw`, which has exactly the frame's length, and checks the digest. On an
    /// error `raw` holds rubbish.
    pub fn decode(
        &mut self,
        frame: &Frame<'_>,
        stored: &[u8],
        base: Option<&dyn ReadAt>,
        raw: &mut [u8],
    ) -> Result<(), FrameError> {
        let number = frame.number;
        for (expected, found) in [(frame.stored_length, stored.len()), (frame.length, raw.len())] {
            if u64::from(expected) != found as u64 {
                let (expected, found) = (expected.into(), found as u64);
                return Err(FrameError::StoredLength { frame: number, expected, found });
            }
        }
        match frame.codec {
            Codec::Zero => raw.fill(0),
            Codec::Raw if stored.len() == raw.len() => raw.copy_from_slice(stored),
            Codec::Raw => {
                let (expected, found) = (frame.length.into(), stored.len() as u64);
                return Err(FrameError::RawLength { frame: number, expected, found });
            }
            Codec::Base => read_ranges(frame, base, raw)?,
            Codec::Zstd => decompress(number, stored, &[], raw)?,
            Codec::ZstdReference => {
                let length: u64 = frame.ranges.iter().map(super::BlockRange::length).sum();
                self.reference.resize(length as usize, 0);
                read_ranges(frame, base, &mut self.reference)?;
                decompress(number, stored, &self.reference, raw)?;
            }
        }
        let found = Sha256::of(raw);
        if found == frame.digest {
            Ok(())
        } else {
            Err(FrameError::Digest { frame: number, expected: frame.digest, found })
        }
    }
}

/// Reads the frame's ranges of the base one after the other into `to`.
fn read_ranges(frame: &Frame<'_>, base: Option<&dyn ReadAt>, to: &mut [u8]) -> Result<(), FrameError> {
    let base = base.ok_or(FrameError::NoBase { frame: frame.number })?;
    let mut rest = to;
    for range in frame.ranges {
        let length = (range.length() as usize).min(rest.len());
        let (part, after) = rest.split_at_mut(length);
        let offset = range.offset();
        base.read_at(part, offset).map_err(|source| FrameError::Base { frame: frame.number, offset, source })?;
        rest = after;
    }
    Ok(())
}

fn decompress(frame: u32, stored: &[u8], reference: &[u8], raw: &mut [u8]) -> Result<(), FrameError> {
    let refuse = |code| FrameError::Zstd { frame, reason: zstd_safe::get_error_name(code) };
    let expected = raw.len() as u64;
    // Without this, several zstd frames in a row or a skippable frame with any bytes would be accepted too.
    let one_frame = zstd_safe::find_frame_compressed_size(stored).map_err(refuse)?;
    if one_frame != stored.len() {
        return Err(FrameError::RawLength { frame, expected, found: 0 });
    }
    let mut context =
        zstd_safe::DCtx::try_create().ok_or(FrameError::Zstd { frame, reason: "no memory for a decoder" })?;
    // A prefix is raw content whatever its first bytes are; a "dictionary" would be parsed when it starts with the magic.
    context.ref_prefix(reference).map_err(refuse)?;
    let found = context.decompress(raw, stored).map_err(refuse)? as u64;
    if found == expected { Ok(()) } else { Err(FrameError::RawLength { frame, expected, found }) }
}
