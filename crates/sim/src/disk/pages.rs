//! Sparse, copy-on-write contents of a disk.
//!
//! Tens of thousands of power cuts are tried in one test run, each on its own copy of the disk, so a copy must cost
//! about as much as a map of pointers: pages are shared until one copy writes to them, and what was never written
//! takes no room.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit of sharing, in bytes. Unrelated to the sector size, which is the unit of tearing.
const PAGE: usize = 4096;

/// The bytes of one disk: zero where nothing was written.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    length: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Pages {
    /// An empty (all zero) disk of `length` bytes.
    pub fn new(length: u64) -> Self {
        Self { length, pages: BTreeMap::new() }
    }

    /// Length of the disk in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from `offset`; what lies past the end reads as zero (callers check bounds first).
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (page, within, part) in spans(offset, buffer.len()) {
            let Some(target) = buffer.get_mut(part) else { continue };
            match self.pages.get(&page).and_then(|bytes| bytes.get(within)) {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
        }
    }

    /// Stores `data` at `offset`. Pages that end up all zero where none was before stay sparse.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, within, part) in spans(offset, data.len()) {
            let Some(source) = data.get(part) else { continue };
            if !self.pages.contains_key(&page) && source.iter().all(|byte| *byte == 0) {
                continue;
            }
            let bytes = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            if let Some(target) = Arc::make_mut(bytes).get_mut(within) {
                target.copy_from_slice(source);
            }
        }
    }

    /// Number of bytes that really take room.
    pub fn resident(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// The pages that hold something, as (offset in bytes, bytes): how a disk in memory becomes a sparse file.
    pub fn used(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, bytes)| (page * PAGE as u64, bytes.as_slice()))
    }
}

/// Splits a byte range at page borders: (page number, range within the page, range within the caller's buffer).
fn spans(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let count = (PAGE - start).min(length - done);
        let item = (at / PAGE as u64, start..start + count, done..done + count);
        done += count;
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_writes_and_zero_stays_sparse() {
        let mut first = Pages::new(1 << 40);
        first.write(4090, b"across a page border");
        let copy = first.clone();
        first.write(4090, b"something else here!");
        let mut seen = [0u8; 20];
        copy.read(4090, &mut seen);
        assert_eq!(&seen, b"across a page border");
        first.write(1 << 39, &[0; 8192]);
        assert_eq!(first.resident(), 2 * PAGE as u64);
    }
}
