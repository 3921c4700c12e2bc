//! The index of a pack: reading it into something that can't be wrong, and writing it.
//!
//! Little endian. Header, 144 bytes: magic[8], u32 format, u32 kind (0 full, 1 delta), u64 image size, u32 frame size, u32
//! frames, root hash[32] of the image, root hash[32] of the base, u64 base size, u64 stored bytes of all frames, u32 ranges,
//! reserved[28]. Then for each frame 40 bytes: digest[32], u32 stored length, u8 codec, u8 reserved, u16 ranges. Then for each
//! range 8 bytes: u32 first block, u32 blocks, of 4096 bytes each.

use std::io::Read;

use bascule_names::RootHash;

use super::index_error::{FrameFault, IndexError, ReadIndexError};
use super::{BLOCK, FORMAT, MAGIC, MAX_FRAME_SIZE, MAX_REFERENCE, MIN_FRAME_SIZE};
use crate::digest::Sha256;
use crate::io::Source;
use crate::release::manifest::{MAX_IMAGE_SIZE, MAX_INDEX_LENGTH, Manifest, Pack, PackKind};

const HEADER_LENGTH: usize = 144;
const RECORD_LENGTH: usize = 40;
const RANGE_LENGTH: usize = 8;
const KIND_FULL: u32 = 0;
const KIND_DELTA: u32 = 1;

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
    fn from_number(number: u8) -> Option<Self> {
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
    parts: IndexParts,
    frames: Vec<Record>,
    stored_length: u64,
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
struct Record {
    digest: Sha256,
    codec: Codec,
    stored_offset: u64,
    stored_length: u32,
    first_range: u32,
    range_count: u16,
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

    /// Reads an index. Allocates in proportion to `bytes`, never by a number found in them.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let found = bytes.len() as u64;
        if found > MAX_INDEX_LENGTH {
            return Err(IndexError::TooLong { found, max: MAX_INDEX_LENGTH });
        }
        let short = IndexError::Length { expected: HEADER_LENGTH as u64, found };
        let (header, body) = bytes.split_at_checked(HEADER_LENGTH).ok_or_else(|| short.clone())?;
        let mut fields = Fields(header);
        if fields.array() != Some(MAGIC) {
            return Err(IndexError::Magic);
        }
        let mut header = || -> Option<Header> {
            Some(Header {
                format: fields.u32()?,
                kind: fields.u32()?,
                image_size: fields.u64()?,
                frame_size: fields.u32()?,
                frames: fields.u32()?,
                root_hash: Sha256::from_bytes(fields.array()?),
                base_root_hash: Sha256::from_bytes(fields.array()?),
                base_size: fields.u64()?,
                stored_length: fields.u64()?,
                ranges: fields.u32()?,
                reserved: fields.array()?,
            })
        };
        let header = header().ok_or(short)?;
        header.check()?;
        let records_length = u64::from(header.frames) * RECORD_LENGTH as u64;
        let expected = HEADER_LENGTH as u64 + records_length + u64::from(header.ranges) * RANGE_LENGTH as u64;
        let wrong_length = IndexError::Length { expected, found };
        if found != expected {
            return Err(wrong_length);
        }
        let (records, ranges) = body.split_at_checked(records_length as usize).ok_or(wrong_length)?;
        let ranges: Vec<BlockRange> = ranges
            .chunks_exact(RANGE_LENGTH)
            .filter_map(|range| {
                let mut fields = Fields(range);
                Some(BlockRange { first: fields.u32()?, count: fields.u32()? })
            })
            .collect();
        let records = records.chunks_exact(RECORD_LENGTH).filter_map(|record| {
            let mut fields = Fields(record);
            Some(RawRecord {
                digest: Sha256::from_bytes(fields.array()?),
                stored_length: fields.u32()?,
                codec: fields.array::<1>()?[0],
                reserved: fields.array::<1>()?[0],
                range_count: u16::from_le_bytes(fields.array()?),
            })
        });
        let base = (header.kind == KIND_DELTA).then_some((header.base_root_hash, header.base_size));
        let parts = IndexParts {
            image_size: header.image_size,
            frame_size: header.frame_size,
            root_hash: header.root_hash,
            base,
            ranges,
        };
        Self::check(parts, records, header.stored_length)
    }

    /// Puts an index together; refuses what [`Self::parse`] would refuse, so that a builder can't publish nonsense.
    pub(crate) fn assemble(
        parts: IndexParts,
        frames: impl IntoIterator<Item = (Sha256, Codec, u32, u16)>,
        stored_length: u64,
    ) -> Result<Self, IndexError> {
        let records = frames.into_iter().map(|(digest, codec, stored_length, range_count)| RawRecord {
            digest,
            stored_length,
            codec: codec as u8,
            reserved: 0,
            range_count,
        });
        Self::check(parts, records, stored_length)
    }

    /// The bytes as they stand at the end of a pack.
    pub fn to_bytes(&self) -> Vec<u8> {
        let parts = &self.parts;
        let (kind, base_root_hash, base_size) = match parts.base {
            Some((root_hash, size)) => (KIND_DELTA, *root_hash.as_bytes(), size),
            None => (KIND_FULL, [0; 32], 0),
        };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&parts.image_size.to_le_bytes());
        bytes.extend_from_slice(&parts.frame_size.to_le_bytes());
        bytes.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        bytes.extend_from_slice(parts.root_hash.as_bytes());
        bytes.extend_from_slice(&base_root_hash);
        bytes.extend_from_slice(&base_size.to_le_bytes());
        bytes.extend_from_slice(&self.stored_length.to_le_bytes());
        bytes.extend_from_slice(&(parts.ranges.len() as u32).to_le_bytes());
        bytes.resize(HEADER_LENGTH, 0);
        for record in &self.frames {
            bytes.extend_from_slice(record.digest.as_bytes());
            bytes.extend_from_slice(&record.stored_length.to_le_bytes());
            bytes.extend_from_slice(&[record.codec as u8, 0]);
            bytes.extend_from_slice(&record.range_count.to_le_bytes());
        }
        for range in &parts.ranges {
            bytes.extend_from_slice(&range.first.to_le_bytes());
            bytes.extend_from_slice(&range.count.to_le_bytes());
        }
        bytes
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

    fn check(parts: IndexParts, raw: impl Iterator<Item = RawRecord>, stored_length: u64) -> Result<Self, IndexError> {
        let mut frames = Vec::with_capacity(raw.size_hint().0);
        let (mut stored_offset, mut first_range) = (0_u64, 0_u32);
        for (number, raw) in (0_u32..).zip(raw) {
            let at = first_range as usize;
            let fault = |fault| IndexError::Frame { frame: number, fault };
            let ranges = parts.ranges.get(at..at + usize::from(raw.range_count));
            let ranges = ranges.ok_or_else(|| fault(FrameFault::RangeCount(raw.range_count)))?;
            let length = frame_length(parts.image_size, parts.frame_size, number);
            let codec = raw.check(length, ranges, parts.base.map(|(_, size)| size)).map_err(fault)?;
            frames.push(Record {
                digest: raw.digest,
                codec,
                stored_offset,
                stored_length: raw.stored_length,
                first_range,
                range_count: raw.range_count,
            });
            // Can't overflow: each is at most a frame, and there are as many as 2^32.
            stored_offset += u64::from(raw.stored_length);
            first_range += u32::from(raw.range_count);
        }
        let expected = parts.image_size.div_ceil(u64::from(parts.frame_size));
        let accepted = "it must be the image size divided by the frame size, rounded up";
        header_field("number of frames", frames.len() as u64, accepted, |found| found == expected)?;
        let used = parts.ranges.len() as u64 == u64::from(first_range);
        let accepted = "it must be the sum over all frames";
        header_field("number of ranges", parts.ranges.len() as u64, accepted, |_| used)?;
        header_field("stored length", stored_length, accepted, |found| found == stored_offset)?;
        Ok(Self { parts, frames, stored_length })
    }
}

fn frame_length(image_size: u64, frame_size: u32, number: u32) -> u32 {
    let left = image_size.saturating_sub(u64::from(number) * u64::from(frame_size));
    left.min(u64::from(frame_size)) as u32
}

fn header_field(
    field: &'static str,
    found: u64,
    accepted: &'static str,
    accept: impl Fn(u64) -> bool,
) -> Result<(), IndexError> {
    if accept(found) { Ok(()) } else { Err(IndexError::Header { field, found, accepted }) }
}

struct Header {
    format: u32,
    kind: u32,
    image_size: u64,
    frame_size: u32,
    frames: u32,
    root_hash: Sha256,
    base_root_hash: Sha256,
    base_size: u64,
    stored_length: u64,
    ranges: u32,
    reserved: [u8; 28],
}

impl Header {
    fn check(&self) -> Result<(), IndexError> {
        if self.format != FORMAT {
            return Err(IndexError::UnknownFormat { found: self.format, accepted: FORMAT });
        }
        header_field("kind", self.kind.into(), "0 is a full pack, 1 a delta pack", |kind| kind <= 1)?;
        let whole_blocks = |size| size > 0 && size <= MAX_IMAGE_SIZE && size % BLOCK as u64 == 0;
        let accepted = "it must be a multiple of 4096, more than 0 and at most 16 GiB";
        header_field("image size", self.image_size, accepted, whole_blocks)?;
        header_field("frame size", self.frame_size.into(), "it must be a power of two from 64 KiB to 4 MiB", |size| {
            size.is_power_of_two() && (u64::from(MIN_FRAME_SIZE)..=u64::from(MAX_FRAME_SIZE)).contains(&size)
        })?;
        let zeros = self.reserved.iter().all(|byte| *byte == 0);
        header_field("reserved space", u64::from(!zeros), "it must be zero", |_| zeros)?;
        if self.kind == KIND_DELTA {
            header_field("base size", self.base_size, accepted, whole_blocks)
        } else {
            header_field("base size", self.base_size, "a full pack has no base", |size| size == 0)?;
            let none = self.base_root_hash.as_bytes().iter().all(|byte| *byte == 0);
            header_field("base root hash", u64::from(!none), "a full pack has no base", |_| none)
        }
    }
}

struct RawRecord {
    digest: Sha256,
    stored_length: u32,
    codec: u8,
    reserved: u8,
    range_count: u16,
}

impl RawRecord {
    fn check(&self, length: u32, ranges: &[BlockRange], base_size: Option<u64>) -> Result<Codec, FrameFault> {
        let codec = Codec::from_number(self.codec).ok_or(FrameFault::Codec(self.codec))?;
        if self.reserved != 0 {
            return Err(FrameFault::Reserved(self.reserved));
        }
        let stored_fits = match codec {
            Codec::Zero | Codec::Base => self.stored_length == 0,
            Codec::Raw => self.stored_length == length,
            // A compressed frame that is not shorter would be stored raw.
            Codec::Zstd | Codec::ZstdReference => (1..length).contains(&self.stored_length),
        };
        if !stored_fits {
            return Err(FrameFault::StoredLength(self.stored_length));
        }
        if !codec.needs_base() {
            return if ranges.is_empty() { Ok(codec) } else { Err(FrameFault::RangeCount(self.range_count)) };
        }
        let base_blocks = base_size.ok_or(FrameFault::Codec(self.codec))? / BLOCK as u64;
        if ranges.is_empty() {
            return Err(FrameFault::RangeCount(self.range_count));
        }
        let mut end_of_last = 0;
        for range in ranges {
            if range.count == 0 || range.end() > base_blocks {
                return Err(FrameFault::RangeOutsideBase { first: range.first, count: range.count });
            }
            if codec != Codec::Base && u64::from(range.first) < end_of_last {
                return Err(FrameFault::RangesOverlap { first: range.first });
            }
            end_of_last = range.end();
        }
        // At most 2^16 ranges of less than 2^32 blocks: no overflow.
        let total: u64 = ranges.iter().map(BlockRange::length).sum();
        let total_fits = if codec == Codec::Base { total == u64::from(length) } else { total <= MAX_REFERENCE };
        if total_fits { Ok(codec) } else { Err(FrameFault::ReferenceLength(total)) }
    }
}

/// Takes fields from the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
