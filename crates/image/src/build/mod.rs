//! Building packs. Output depends on the input and the effort alone: not on the number of workers, on time or on chance.

mod choice;
mod encode;
mod error;
mod pack;
mod search;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

pub use error::BuildError;
pub use pack::{build_delta, build_deltas, build_full};

use crate::digest::Sha256;
use crate::io::ReadAt;
use crate::release::manifest::{self, IndexRef, PackKind};
use crate::release::names::TargetPath;

/// Frames of 1 MiB: small enough that resuming and a worker's memory cost little, large enough to compress well.
pub const DEFAULT_FRAME_SIZE: u32 = 1 << 20;

/// How hard to try. Each gives the same bytes for the same input, for ever within one version of the pack format and of zstd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effort {
    /// For trying things out: about a quarter larger, several times faster.
    Fast,
    /// For publishing.
    #[default]
    Good,
}

/// How to build a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How hard to try.
    pub effort: Effort,
    /// Threads that compress. Each holds one frame, one reference and zstd's tables (some 60 MiB at `Good`).
    pub workers: NonZeroUsize,
    /// Raw bytes of a frame, a power of two from 64 KiB to 4 MiB. Smaller frames compress worse, larger ones cost a node memory.
    pub frame_size: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            effort: Effort::Good,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            frame_size: DEFAULT_FRAME_SIZE,
        }
    }
}

/// An image to build packs of or against.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct Image<'a> {
    /// Its verity root hash, from [`crate::verity::build`] or its manifest. It is written into the index, not computed here.
    pub root_hash: Sha256,
    /// Its bytes. The size is a multiple of 4096.
    pub bytes: &'a dyn ReadAt,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltPack {
    /// Full, or delta against which base.
    pub kind: PackKind,
    /// Size of the pack in bytes.
    pub size: u64,
    /// The index at its end.
    pub index: IndexRef,
    /// Frames by codec, in the order zero, raw, zstd, zstd with reference, base.
    pub frames: [u32; 5],
}

impl BuiltPack {
    /// The manifest's entry for it.
    pub fn to_manifest_entry(&self, path: TargetPath) -> manifest::Pack {
        manifest::Pack {
            kind: self.kind.clone(),
            path,
            size: self.size,
            index: self.index.clone(),
            transfer_bytes: self.size,
        }
    }
}

/// Runs `work` on every worker thread and returns the first error.
fn on_workers(workers: NonZeroUsize, work: impl Fn() -> Result<(), BuildError> + Sync) -> Result<(), BuildError> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers.get()).map(|_| scope.spawn(&work)).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| handle.join().unwrap_or(Err(BuildError::Worker));
        handles.into_iter().map(join).fold(Ok(()), Result::and)
    })
}
