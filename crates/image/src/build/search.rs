//! Finding the parts of a base that resemble a frame, by content and not by position: one inserted file shifts everything
//! behind it.
//!
//! A rolling hash over 32 bytes samples about every 64th position of the base by its content, so the same bytes are sampled
//! wherever they lie. Each sample votes for the 4096-byte block it lies in; a sample that is rare in the base weighs more. For
//! a frame, blocks are taken greedily by the votes that no block taken before has, up to a budget.
//!
//! Memory: 8 bytes for every 64 of the base (90 MiB for 750 MB), and 12 for each of its blocks.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::choice::choose;
use super::error::BuildError;
use super::on_workers;
use crate::digest::Sha256;
use crate::io::ReadAt;
use crate::pack::{BLOCK, BlockRange};
use crate::work::Watch;

/// Bytes that decide one hash value: a 64-bit state shifted by two bits for each byte.
const WINDOW: usize = 32;
/// Bytes of the base that one worker takes at a time.
const CHUNK: u64 = 1 << 20;
/// Buckets of the sample table, by the highest bits of the fingerprint.
const BUCKETS: usize = 1 << 12;
/// Most samples that are kept; a larger base is sampled more thinly. 512 MiB of memory.
const MAX_SAMPLES: u64 = 64 << 20;
/// A sample that occurs in more blocks than this says nothing about where a frame comes from.
const MAX_OCCURRENCES: usize = 24;
/// Votes are whole numbers, so that sums do not depend on their order.
pub(super) const WEIGHT_OF_UNIQUE: u32 = 5040;

/// Where which content lies in a base.
pub(super) struct BaseIndex {
    /// For each bucket `fingerprint << 32 | block`, sorted.
    samples: Vec<Vec<u64>>,
    /// First block with a given content, by the first 64 bits of its digest.
    blocks: HashMap<u64, u32>,
    /// The same for every block in order, to go on at the next one.
    contents: Vec<u64>,
    sampling: Sampling,
}

#[derive(Clone, Copy)]
struct Sampling {
    /// A position is sampled when the hash is below this.
    threshold: u64,
}

impl Sampling {
    fn of_base(size: u64) -> Self {
        let mut every = 64;
        while size / every > MAX_SAMPLES {
            every *= 2;
        }
        Self { threshold: u64::MAX / every }
    }

    /// Calls `sampled` with position and fingerprint of every sampled window that ends in `bytes[WINDOW - 1..]`.
    fn scan(self, bytes: &[u8], mut sampled: impl FnMut(usize, u32)) {
        let mut state = 0_u64;
        for (at, byte) in bytes.iter().enumerate() {
            state = (state << 2).wrapping_add(scramble(*byte));
            if state < self.threshold && at + 1 >= WINDOW {
                sampled(at + 1 - WINDOW, (state.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32);
            }
        }
    }
}

/// One random-looking number for each byte value (the SplitMix64 sequence from 0).
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, and a byte is always inside a table of 256")]
const fn scramble(byte: u8) -> u64 {
    const TABLE: [u64; 256] = {
        let mut table = [0; 256];
        let (mut at, mut state) = (0, 0_u64);
        while at < 256 {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut value = state;
            value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            table[at] = value ^ (value >> 31);
            at += 1;
        }
        table
    };
    TABLE[byte as usize]
}

fn content_key(block: &[u8]) -> u64 {
    let digest = Sha256::of(block);
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

fn bucket_of(fingerprint: u32) -> usize {
    fingerprint as usize >> (32 - BUCKETS.trailing_zeros())
}

impl BaseIndex {
    /// Reads the whole base once.
    pub(super) fn build(
        base: &dyn ReadAt,
        size: u64,
        workers: NonZeroUsize,
        watch: &Watch<'_>,
    ) -> Result<Self, BuildError> {
        let sampling = Sampling::of_base(size);
        let buckets: Vec<Mutex<Vec<u64>>> = (0..BUCKETS).map(|_| Mutex::new(Vec::new())).collect();
        let contents = Mutex::new(vec![0; (size / BLOCK as u64) as usize]);
        let next = AtomicU64::new(0);
        on_workers(workers, || {
            let mut buffer = vec![0; CHUNK as usize + WINDOW - 1];
            let mut found: Vec<Vec<u64>> = vec![Vec::new(); BUCKETS];
            loop {
                let offset = next.fetch_add(CHUNK, Ordering::Relaxed);
                if offset >= size {
                    break;
                }
                watch.check()?;
                // A window belongs to the chunk it starts in, so a chunk reads a little of the next.
                let length = (size - offset).min(CHUNK + WINDOW as u64 - 1) as usize;
                let bytes = buffer.get_mut(..length).unwrap_or_default();
                base.read_at(bytes, offset).map_err(|source| BuildError::Read { what: "base", offset, source })?;
                let first_block = offset / BLOCK as u64;
                let mut last = 0;
                sampling.scan(bytes, |at, fingerprint| {
                    let entry = u64::from(fingerprint) << 32 | (first_block + (at / BLOCK) as u64);
                    if entry != last
                        && let Some(bucket) = found.get_mut(bucket_of(fingerprint))
                    {
                        bucket.push(entry);
                        last = entry;
                    }
                });
                let whole = length.min(CHUNK as usize);
                let keys: Vec<u64> = bytes.get(..whole).unwrap_or_default().chunks(BLOCK).map(content_key).collect();
                let mut contents = contents.lock().unwrap_or_else(PoisonError::into_inner);
                contents.iter_mut().skip(first_block as usize).zip(keys).for_each(|(to, key)| *to = key);
            }
            for (bucket, found) in buckets.iter().zip(&found) {
                bucket.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(found);
            }
            Ok(())
        })?;
        let next = AtomicU64::new(0);
        on_workers(workers, || {
            while let Some(bucket) = buckets.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.sort_unstable();
                bucket.dedup();
                bucket.shrink_to_fit();
            }
            Ok(())
        })?;
        let samples = buckets.into_iter().map(|bucket| bucket.into_inner().unwrap_or_else(PoisonError::into_inner));
        let contents = contents.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = HashMap::with_capacity(contents.len());
        for (block, key) in (0..).zip(&contents) {
            blocks.entry(*key).or_insert(block);
        }
        Ok(Self { samples: samples.collect(), blocks, contents, sampling })
    }

    /// Ranges of the base that put together probably are the frame, where every block of it occurs there. The caller compares.
    pub(super) fn find_copy(&self, raw: &[u8]) -> Option<Vec<BlockRange>> {
        let mut ranges: Vec<BlockRange> = Vec::new();
        for block in raw.chunks(BLOCK) {
            let key = content_key(block);
            match ranges.last_mut() {
                Some(last) if self.contents.get(last.end() as usize) == Some(&key) => last.count += 1,
                _ => ranges.push(BlockRange { first: *self.blocks.get(&key)?, count: 1 }),
            }
        }
        Some(ranges)
    }

    /// The blocks that sampled content lies in, if it is rare enough to mean something.
    fn occurrences(&self, fingerprint: u32) -> impl Iterator<Item = u32> {
        let bucket = self.samples.get(bucket_of(fingerprint)).map(Vec::as_slice).unwrap_or_default();
        let first = bucket.partition_point(|entry| ((entry >> 32) as u32) < fingerprint);
        let rest = bucket.get(first..).unwrap_or_default();
        let count =
            rest.iter().take(MAX_OCCURRENCES + 1).take_while(|entry| (**entry >> 32) as u32 == fingerprint).count();
        let count = if count > MAX_OCCURRENCES { 0 } else { count };
        rest.get(..count).unwrap_or_default().iter().map(|entry| *entry as u32)
    }

    /// The ranges that resemble the frame most, ascending and apart, together at most `budget` bytes. Empty if nothing does.
    pub(super) fn find_reference(&self, raw: &[u8], budget: u64) -> Vec<BlockRange> {
        let mut fingerprints = Vec::new();
        self.sampling.scan(raw, |_, fingerprint| fingerprints.push(fingerprint));
        fingerprints.sort_unstable();
        fingerprints.dedup();

        // (block, sample), sorted: the votes of each block lie together.
        let mut votes: Vec<(u32, u32)> = Vec::new();
        let mut weights = vec![0; fingerprints.len()];
        for (sample, fingerprint) in (0_u32..).zip(&fingerprints) {
            let before = votes.len();
            votes.extend(self.occurrences(*fingerprint).map(|block| (block, sample)));
            let occurrences = (votes.len() - before) as u32;
            if let (Some(weight), 1..) = (weights.get_mut(sample as usize), occurrences) {
                *weight = WEIGHT_OF_UNIQUE / occurrences;
            }
        }
        votes.sort_unstable();

        choose(&votes, weights, self.contents.len() as u64, budget / BLOCK as u64)
    }
}
