//! The index of a pack as something that can't be wrong, and what it says about each frame.
//!
//! `bytes` reads and writes it, `check` decides what is accepted.

use std::io::Read;

use bascule_names::RootHash;

use super::BLOCK;
use super::index_error::ReadIndexError;
use crate::digest::Sha256;
use crate::io::Source;
use crate::release::manifest::{Manifest, Pack, PackKind};

/// How a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// All zeros; nothing is stored.
    Zero = 0,
    /// The raw bytes are stored.
    Raw = 1,
    /// One zstd frame (RFC 8878) without dictionary is stored.
    Zstd = 2,
    /// One zstd frame whose matches may reach back into the frame's ranges of the base, put together in order as a prefix.
    ZstdReference = 3,
    /// The frame's ranges of the base, put together in order; nothing is stored.
    Base = 4,
}

impl Codec {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::Zero, Self::Raw, Self::Zstd, Self::ZstdReference, Self::Base]
            .into_iter()
            .find(|codec| *codec as u8 == number)
    }

    /// Whether decoding reads the base.
    pub const fn needs_base(self) -> bool {
        matches!(self, Self::ZstdReference | Self::Base)
    }
}

/// Consecutive blocks of the base, 4096 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub first: u32,
    /// Blocks; at least one.
    pub count: u32,
}

impl BlockRange {
    /// Offset in the base in bytes.
    pub const fn offset(&self) -> u64 {
        self.first as u64 * BLOCK as u64
    }

    /// Length in bytes.
    pub const fn length(&self) -> u64 {
        self.count as u64 * BLOCK as u64
    }

    /// Block after the last one.
    pub const fn end(&self) -> u64 {
        self.first as u64 + self.count as u64
    }
}

/// What the index says about one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number, from 0.
    pub number: u32,
    /// Offset in the image in bytes.
    pub image_offset: u64,
    /// Length of the raw bytes.
    pub length: u32,
    /// Digest of the raw bytes.
    pub digest: Sha256,
    /// How it is stored.
    pub codec: Codec,
    /// Offset of the stored bytes in the pack.
    pub stored_offset: u64,
    /// Length of the stored bytes.
    pub stored_length: u32,
    /// Parts of the base it refers to.
    pub ranges: &'a [BlockRange],
}

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    pub(super) parts: IndexParts,
    pub(super) frames: Vec<Record>,
    pub(super) stored_length: u64,
}

/// What a builder puts together and a parser takes apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexParts {
    pub(crate) image_size: u64,
    pub(crate) frame_size: u32,
    pub(crate) root_hash: Sha256,
    /// Root hash and size of the base.
    pub(crate) base: Option<(Sha256, u64)>,
    pub(crate) ranges: Vec<BlockRange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) digest: Sha256,
    pub(super) codec: Codec,
    pub(super) stored_offset: u64,
    pub(super) stored_length: u32,
    pub(super) first_range: u32,
    pub(super) range_count: u16,
}

impl PackIndex {
    /// Reads the index of `pack` from its end, and checks it against the manifest that names it. Allocates at most the length
    /// in the manifest, which is capped.
    pub fn read(source: &dyn Source, manifest: &Manifest, pack: &Pack) -> Result<Self, ReadIndexError> {
        let path = || pack.path.to_string();
        let unreadable = |source| ReadIndexError::Source { path: path(), source };
        let expected = pack.index.length;
        let stream = source.read_range(pack.size - expected, expected).map_err(unreadable)?;
        let mut bytes = Vec::with_capacity(expected as usize);
        stream.take(expected).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 != expected {
            return Err(ReadIndexError::Truncated { path: path(), expected, found: bytes.len() as u64 });
        }
        let found = Sha256::of(&bytes);
        if found != Sha256::from(&pack.index.digest) {
            let expected = pack.index.digest.clone();
            return Err(ReadIndexError::Digest { path: path(), found: found.into(), expected });
        }
        let index = Self::parse(&bytes).map_err(|source| ReadIndexError::Index { path: path(), source })?;
        let base = match &pack.kind {
            PackKind::Full => None,
            PackKind::Delta { base } => Some(Sha256::from(base)),
        };
        let differs = [
            ("image size", index.parts.image_size != manifest.image.size),
            ("root hash", index.parts.root_hash != Sha256::from(&manifest.verity.root_hash)),
            ("base", index.parts.base.map(|(root_hash, _)| root_hash) != base),
            ("pack size", index.stored_length.checked_add(expected) != Some(pack.size)),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            Some((field, _)) => Err(ReadIndexError::OtherThanManifest { path: path(), field }),
            None => Ok(index),
        }
    }

    /// Size of the image in bytes.
    pub const fn image_size(&self) -> u64 {
        self.parts.image_size
    }

    /// Length of every frame but the last, in bytes.
    pub const fn frame_size(&self) -> u32 {
        self.parts.frame_size
    }

    /// Verity root hash of the image.
    pub const fn root_hash(&self) -> Sha256 {
        self.parts.root_hash
    }

    /// Verity root hash and size of the base image; none for a full pack.
    pub const fn base(&self) -> Option<(Sha256, u64)> {
        self.parts.base
    }

    /// Verity root hash of the base image as a name.
    pub fn base_root_hash(&self) -> Option<RootHash> {
        self.parts.base.map(|(root_hash, _)| root_hash.into())
    }

    /// Bytes of all frames in the pack, without the index.
    pub const fn stored_length(&self) -> u64 {
        self.stored_length
    }

    /// How many frames there are.
    pub const fn frame_count(&self) -> u32 {
        self.frames.len() as u32
    }

    /// One frame.
    pub fn frame(&self, number: u32) -> Option<Frame<'_>> {
        let record = self.frames.get(number as usize)?;
        let first = record.first_range as usize;
        Some(Frame {
            number,
            image_offset: u64::from(number) * u64::from(self.parts.frame_size),
            length: frame_length(self.parts.image_size, self.parts.frame_size, number),
            digest: record.digest,
            codec: record.codec,
            stored_offset: record.stored_offset,
            stored_length: record.stored_length,
            ranges: self.parts.ranges.get(first..first + usize::from(record.range_count)).unwrap_or_default(),
        })
    }

    /// All frames in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        (0..self.frame_count()).filter_map(|number| self.frame(number))
    }
}

pub(super) fn frame_length(image_size: u64, frame_size: u32, number: u32) -> u32 {
    let left = image_size.saturating_sub(u64::from(number) * u64::from(frame_size));
    left.min(u64::from(frame_size)) as u32
}
