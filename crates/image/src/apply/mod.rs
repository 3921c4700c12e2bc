//! Writing a release into a slot: find out what is there already, fetch only what is not, check each frame before it is
//! written, and compute the verity tree on the way.
//!
//! Memory is bounded by construction, for frames of F bytes (1 MiB) and w workers: each worker holds one raw frame, one
//! stored frame and one reference (at most 8 MiB, none in a full pack); at most w + 1 further stored frames wait between the
//! network and the workers; the verity leaves take 1/128 of the image. With 2 workers, a full pack of a 750 MB image: 7 MiB of
//! frames and 6 MiB of leaves.

mod error;
mod fetch;
mod plan;
mod run;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

pub use error::ApplyError;
pub use run::apply;

use crate::digest::Sha256;
use crate::io::{ReadAt, Sink, Source};
use crate::pack::PackIndex;
use crate::verity::{Parameters, Tree};
use crate::work::Watch;

/// Everything that takes part in one application of a pack.
#[allow(missing_debug_implementations, reason = "it holds the caller's readers and writers, which need not have it")]
pub struct Apply<'a> {
    /// The index of the pack, from [`PackIndex::read`].
    pub index: &'a PackIndex,
    /// Salt and UUID of the verity tree, from the same manifest.
    pub parameters: &'a Parameters,
    /// Where the pack lies.
    pub source: &'a dyn Source,
    /// An image that is already there, with its root hash. A delta pack needs the one it names; with a full pack, frames that
    /// lie at the same place in it are copied instead of fetched.
    pub base: Option<Base<'a>>,
    /// The data slot.
    pub sink: &'a dyn Sink,
    /// How to go about it.
    pub options: Options,
}

/// An image that is already there, for example in the running slot.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct Base<'a> {
    /// Its verity root hash.
    pub root_hash: Sha256,
    /// Its bytes. Every frame made from them is checked by digest, so they need not be trusted.
    pub image: &'a dyn ReadAt,
}

/// How to go about applying a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads that decode, check and write.
    pub workers: NonZeroUsize,
    /// Whether the slot may hold frames of this release from an earlier attempt. Then all of it is read and hashed first, and
    /// frames that are right are neither fetched nor written.
    pub resume: bool,
    /// Most bytes between two wanted frames that are fetched and thrown away rather than asking a second time.
    pub max_gap: u64,
    /// After how many written bytes the sink is flushed, so that a power cut costs at most that much of the work.
    pub flush_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: NonZeroUsize::new(2).unwrap_or(NonZeroUsize::MIN),
            resume: true,
            // About what a round trip of 10 ms is worth at 10 MB/s.
            max_gap: 128 << 10,
            flush_every: 64 << 20,
        }
    }
}

/// A pack that was applied whole: every frame is in the sink, and the tree's root is the one of the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The verity tree, to be written to the verity slot with [`Tree::write_to`].
    pub tree: Tree,
    /// What it took.
    pub report: Report,
}

/// What applying a pack took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that were right in the slot already.
    pub kept_frames: u32,
    /// Frames of zeros.
    pub zero_frames: u32,
    /// Frames copied whole from the base.
    pub base_frames: u32,
    /// Frames whose stored bytes were fetched.
    pub fetched_frames: u32,
    /// Bytes fetched from the source, gaps included, index not.
    pub fetched_bytes: u64,
    /// Ranges asked for.
    pub requests: u32,
    /// Bytes written to the sink.
    pub written_bytes: u64,
}

impl Apply<'_> {
    /// Applies the pack; see [`apply`].
    pub fn run(&self, watch: &Watch<'_>) -> Result<Applied, ApplyError> {
        apply(self, watch)
    }
}
