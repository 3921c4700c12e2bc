//! The bytes of an index: reading and writing them.
//!
//! Little endian. Header, 144 bytes: magic[8], u32 format, u32 kind (0 full, 1 delta), u64 image size, u32 frame size, u32
//! frames, root hash[32] of the image, root hash[32] of the base, u64 base size, u64 stored bytes of all frames, u32 ranges,
//! reserved[28]. Then for each frame 40 bytes: digest[32], u32 stored length, u8 codec, u8 reserved, u16 ranges. Then for each
//! range 8 bytes: u32 first block, u32 blocks, of 4096 bytes each.

use super::check::RawRecord;
use super::index::{BlockRange, Codec, IndexParts, PackIndex};
use super::index_error::IndexError;
use super::{FORMAT, MAGIC};
use crate::digest::Sha256;
use crate::release::manifest::MAX_INDEX_LENGTH;

const HEADER_LENGTH: usize = 144;
const RECORD_LENGTH: usize = 40;
const RANGE_LENGTH: usize = 8;
const KIND_FULL: u32 = 0;
pub(super) const KIND_DELTA: u32 = 1;

/// The fields of the header behind the magic.
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) kind: u32,
    pub(super) image_size: u64,
    pub(super) frame_size: u32,
    pub(super) frames: u32,
    pub(super) root_hash: Sha256,
    pub(super) base_root_hash: Sha256,
    pub(super) base_size: u64,
    pub(super) stored_length: u64,
    pub(super) ranges: u32,
    pub(super) reserved: [u8; 28],
}

impl PackIndex {
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
