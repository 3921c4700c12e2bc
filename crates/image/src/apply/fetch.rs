//! Reading the stored bytes of frames out of a few long streams.

use std::io::{self, Read};

use super::error::ApplyError;
use super::plan::FetchRange;
use crate::io::Source;

/// Walks over the planned ranges in order. Frames are asked for in order too, so one stream is open at a time.
pub(super) struct Fetcher<'a> {
    source: &'a dyn Source,
    ranges: std::vec::IntoIter<FetchRange>,
    open: Option<Open<'a>>,
    pub(super) fetched_bytes: u64,
    pub(super) requests: u32,
}

struct Open<'a> {
    range: FetchRange,
    stream: Box<dyn Read + Send + 'a>,
    /// Bytes of the range that were read.
    position: u64,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(source: &'a dyn Source, ranges: Vec<FetchRange>) -> Self {
        Self { source, ranges: ranges.into_iter(), open: None, fetched_bytes: 0, requests: 0 }
    }

    /// Fills `buffer` with the bytes at `offset` of the pack, which lie inside one planned range and behind what was read
    /// before.
    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ApplyError> {
        let wanted = buffer.len() as u64;
        while !self.open.as_ref().is_some_and(|open| open.holds(offset, wanted)) {
            let missing = || ApplyError::Truncated { offset, length: wanted, found: 0 };
            let range = self.ranges.next().ok_or_else(missing)?;
            let stream = self.source.read_range(range.offset, range.length);
            let stream = stream.map_err(|source| range.failed(source))?;
            self.requests += 1;
            self.open = Some(Open { range, stream, position: 0 });
        }
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let gap = offset - open.range.offset - open.position;
        let skipped = io::copy(&mut open.stream.by_ref().take(gap), &mut io::sink());
        let skipped = skipped.map_err(|source| open.range.failed(source))?;
        open.position += skipped;
        if skipped < gap {
            return Err(open.truncated());
        }
        let mut rest = buffer;
        while !rest.is_empty() {
            match open.stream.read(rest) {
                Ok(0) => return Err(open.truncated()),
                Ok(read) => {
                    open.position += read as u64;
                    rest = rest.get_mut(read..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(open.range.failed(error)),
            }
        }
        self.fetched_bytes += gap + wanted;
        Ok(())
    }
}

impl Open<'_> {
    fn holds(&self, offset: u64, length: u64) -> bool {
        offset >= self.range.offset + self.position && offset + length <= self.range.offset + self.range.length
    }

    fn truncated(&self) -> ApplyError {
        ApplyError::Truncated { offset: self.range.offset, length: self.range.length, found: self.position }
    }
}

impl FetchRange {
    fn failed(&self, source: io::Error) -> ApplyError {
        ApplyError::Source { offset: self.offset, length: self.length, source }
    }
}
