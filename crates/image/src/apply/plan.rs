//! Which bytes of the pack to fetch: pure, from the frames that are wanted to the ranges that are asked for.

use crate::pack::PackIndex;

/// What is done for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is right in the slot already.
    Keep,
    /// It is made without the pack: zeros, or copied from the base by the index or at the same place.
    Local,
    /// It lies at the same place in the base although the pack holds it too.
    CopyFromBase,
    /// Its stored bytes are needed.
    Fetch,
}

/// One range of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FetchRange {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The ranges that hold the stored bytes of all frames with [`Step::Fetch`], ascending. Two are merged when at most `max_gap`
/// bytes lie between them.
pub(super) fn ranges(index: &PackIndex, steps: &[Step], max_gap: u64) -> Vec<FetchRange> {
    let mut ranges: Vec<FetchRange> = Vec::new();
    let wanted = index.frames().zip(steps).filter(|(_, step)| **step == Step::Fetch).map(|(frame, _)| frame);
    for frame in wanted {
        let (start, end) = (frame.stored_offset, frame.stored_offset + u64::from(frame.stored_length));
        match ranges.last_mut() {
            Some(last) if start - (last.offset + last.length) <= max_gap => last.length = end - last.offset,
            _ => ranges.push(FetchRange { offset: start, length: end - start }),
        }
    }
    ranges
}
