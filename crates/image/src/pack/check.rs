//! What an index must be to be accepted: every number in its bounds, nothing overlaps, nothing is left over.

use super::bytes::{Header, KIND_DELTA};
use super::index::{BlockRange, Codec, IndexParts, PackIndex, Record, frame_length};
use super::index_error::{FrameFault, IndexError};
use super::{BLOCK, FORMAT, MAX_FRAME_SIZE, MAX_REFERENCE, MIN_FRAME_SIZE};
use crate::digest::Sha256;
use crate::release::manifest::MAX_IMAGE_SIZE;

impl PackIndex {
    pub(super) fn check(
        parts: IndexParts,
        raw: impl Iterator<Item = RawRecord>,
        stored_length: u64,
    ) -> Result<Self, IndexError> {
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

fn header_field(
    field: &'static str,
    found: u64,
    accepted: &'static str,
    accept: impl Fn(u64) -> bool,
) -> Result<(), IndexError> {
    if accept(found) { Ok(()) } else { Err(IndexError::Header { field, found, accepted }) }
}

impl Header {
    pub(super) fn check(&self) -> Result<(), IndexError> {
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

/// A frame's record as it was read.
pub(super) struct RawRecord {
    pub(super) digest: Sha256,
    pub(super) stored_length: u32,
    pub(super) codec: u8,
    pub(super) reserved: u8,
    pub(super) range_count: u16,
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
