//! Storing one frame: trying the codecs that make sense and keeping the smallest.

use zstd::zstd_safe::{self, CParameter};

use super::error::BuildError;
use super::search::BaseIndex;
use super::{Effort, Image};
use crate::digest::Sha256;
use crate::pack::{BlockRange, Codec};

/// A frame as it goes into the pack.
pub(super) struct Encoded {
    pub(super) digest: Sha256,
    pub(super) codec: Codec,
    pub(super) stored: Vec<u8>,
    pub(super) ranges: Vec<BlockRange>,
}

/// What frames may refer to.
pub(super) struct Base<'a> {
    pub(super) image: Image<'a>,
    pub(super) index: BaseIndex,
}

impl Effort {
    const fn level(self) -> i32 {
        match self {
            Self::Fast => 9,
            Self::Good => 19,
        }
    }

    /// Most bytes of the base that one frame refers to.
    const fn reference(self) -> u64 {
        match self {
            Self::Fast => 2 << 20,
            Self::Good => 2 << 20,
        }
    }
}

pub(super) fn encode(number: u32, raw: &[u8], base: Option<&Base<'_>>, effort: Effort) -> Result<Encoded, BuildError> {
    let digest = Sha256::of(raw);
    let nothing_stored = |codec, ranges| Encoded { digest, codec, stored: Vec::new(), ranges };
    if raw.iter().all(|byte| *byte == 0) {
        return Ok(nothing_stored(Codec::Zero, Vec::new()));
    }
    let mut reference = Vec::new();
    let mut ranges = Vec::new();
    if let Some(base) = base {
        if let Some(copy) = base.index.find_copy(raw)
            && copy.len() <= usize::from(u16::MAX)
            && read(base, &copy)? == raw
        {
            return Ok(nothing_stored(Codec::Base, copy));
        }
        ranges = base.index.find_reference(raw, effort.reference());
        reference = read(base, &ranges)?;
    }
    let stored = compress(number, raw, &reference, effort)?;
    // The ranges cost room in the index too.
    Ok(if stored.len() >= raw.len() {
        Encoded { digest, codec: Codec::Raw, stored: raw.to_vec(), ranges: Vec::new() }
    } else if ranges.is_empty() {
        Encoded { digest, codec: Codec::Zstd, stored, ranges }
    } else {
        Encoded { digest, codec: Codec::ZstdReference, stored, ranges }
    })
}

fn read(base: &Base<'_>, ranges: &[BlockRange]) -> Result<Vec<u8>, BuildError> {
    let length: u64 = ranges.iter().map(BlockRange::length).sum();
    let mut bytes = vec![0; length as usize];
    let mut rest = bytes.as_mut_slice();
    for range in ranges {
        let (part, after) = rest.split_at_mut((range.length() as usize).min(rest.len()));
        let offset = range.offset();
        let read = base.image.bytes.read_at(part, offset);
        read.map_err(|source| BuildError::Read { what: "base", offset, source })?;
        rest = after;
    }
    Ok(bytes)
}

fn compress(number: u32, raw: &[u8], reference: &[u8], effort: Effort) -> Result<Vec<u8>, BuildError> {
    let refuse = |code| BuildError::Zstd { frame: number, reason: zstd_safe::get_error_name(code) };
    let no_memory = BuildError::Zstd { frame: number, reason: "no memory for a compressor" };
    let mut context = zstd_safe::CCtx::try_create().ok_or(no_memory)?;
    let reach = (raw.len() + reference.len()).next_power_of_two().trailing_zeros();
    context.set_parameter(CParameter::CompressionLevel(effort.level())).map_err(refuse)?;
    // Matches must reach from the end of the frame to the start of the reference.
    context.set_parameter(CParameter::WindowLog(reach.max(17))).map_err(refuse)?;
    context.set_parameter(CParameter::ChecksumFlag(false)).map_err(refuse)?;
    context.set_parameter(CParameter::DictIdFlag(false)).map_err(refuse)?;
    context.ref_prefix(reference).map_err(refuse)?;
    let mut stored = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
    context.compress2(&mut stored, raw).map_err(refuse)?;
    Ok(stored)
}
