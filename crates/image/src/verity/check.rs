//! Computing the tree of an image that lies somewhere, and checking a written slot against a root hash.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{BLOCK_SIZE, BlockHasher, IncompleteTree, Parameters, Superblock, SuperblockError, Tree, TreeBuilder};
use crate::digest::Sha256;
use crate::io::ReadAt;
use crate::work::{AlignedBuffer, Cancelled, Watch};

/// Bytes one worker reads at a time.
const CHUNK: u64 = 1 << 20;

/// Why a slot is not what it should be, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Reading failed.
    #[error("reading the {what} at offset {offset} failed")]
    Read {
        /// Data or hash device.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data does not hash to the expected root.
    #[error("the data has verity root hash {found}, expected was {expected}")]
    RootHash {
        /// Root of what lies there.
        found: Sha256,
        /// Root that was expected.
        expected: Sha256,
    },
    /// The hash device holds no acceptable superblock.
    #[error("the hash device's superblock is not acceptable")]
    Superblock(#[source] SuperblockError),
    /// The superblock is fine but has other parameters than expected.
    #[error("the hash device's superblock has another {field} than expected")]
    OtherParameters {
        /// Which one.
        field: &'static str,
    },
    /// The hash device differs from the tree of the data.
    #[error("the hash device differs from the tree of its data in the block at offset {offset}")]
    Tree {
        /// Offset of the first different block in bytes.
        offset: u64,
    },
    /// The image is empty or was not read whole.
    #[error(transparent)]
    Incomplete(#[from] IncompleteTree),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl CheckError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Read { .. } => "slot-unreadable",
            Self::RootHash { .. } => "root-hash-mismatch",
            Self::Superblock(_) | Self::OtherParameters { .. } | Self::Tree { .. } => "hash-tree-mismatch",
            Self::Incomplete(_) => "image-incomplete",
            Self::Cancelled(_) => "cancelled",
        }
    }
}

/// Computes the tree of the first `size` bytes of `data` with `workers` threads. Memory: the tree and 1 MiB for each worker.
pub fn build(
    data: &dyn ReadAt,
    size: u64,
    parameters: &Parameters,
    workers: NonZeroUsize,
    watch: &Watch<'_>,
) -> Result<Tree, CheckError> {
    let builder = TreeBuilder::new(parameters, size);
    let next = AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let results: Vec<Result<(), CheckError>> = std::thread::scope(|scope| {
        let work = || {
            let result = hash_chunks(data, size, &BlockHasher::new(parameters), &builder, &next, &stopped, watch);
            if result.is_err() {
                stopped.store(true, Ordering::Relaxed);
            }
            result
        };
        let handles: Vec<_> = (0..workers.get()).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or(Err(Cancelled.into()))).collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(builder.finish()?)
}

fn hash_chunks(
    data: &dyn ReadAt,
    size: u64,
    hasher: &BlockHasher,
    builder: &TreeBuilder,
    next: &AtomicU64,
    stopped: &AtomicBool,
    watch: &Watch<'_>,
) -> Result<(), CheckError> {
    let mut buffer = AlignedBuffer::new(CHUNK as usize);
    loop {
        let offset = next.fetch_add(CHUNK, Ordering::Relaxed);
        if offset >= size || stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        watch.check()?;
        let chunk = buffer.prefix((size - offset).min(CHUNK) as usize);
        data.read_at(chunk, offset).map_err(|source| CheckError::Read { what: "data", offset, source })?;
        builder.put(offset / BLOCK_SIZE as u64, &hasher.blocks(chunk));
        watch.advance(chunk.len() as u64);
    }
}

/// Reads the whole data and hash devices and checks that the data has the root hash `expected`, that the superblock has
/// exactly `parameters`, and that the tree is the data's. For the read-back of a slot the caller gives readers that go past
/// the page cache; reads are whole multiples of 4096 bytes at such offsets, into buffers aligned to 4096.
pub fn verify(
    data: &dyn ReadAt,
    hash: &dyn ReadAt,
    size: u64,
    parameters: &Parameters,
    expected: Sha256,
    workers: NonZeroUsize,
    watch: &Watch<'_>,
) -> Result<Tree, CheckError> {
    let mut buffer = AlignedBuffer::new(BLOCK_SIZE);
    let read_error = |offset| move |source| CheckError::Read { what: "hash device", offset, source };
    hash.read_at(buffer.prefix(BLOCK_SIZE), 0).map_err(read_error(0))?;
    let superblock = Superblock::parse(buffer.prefix(BLOCK_SIZE)).map_err(CheckError::Superblock)?;
    if superblock.parameters.salt != parameters.salt {
        return Err(CheckError::OtherParameters { field: "salt" });
    }
    if superblock.parameters.uuid != parameters.uuid {
        return Err(CheckError::OtherParameters { field: "UUID" });
    }
    if superblock.data_blocks != size.div_ceil(BLOCK_SIZE as u64) {
        return Err(CheckError::OtherParameters { field: "number of data blocks" });
    }
    let tree = build(data, size, parameters, workers, watch)?;
    if tree.root_hash() != expected {
        return Err(CheckError::RootHash { found: tree.root_hash(), expected });
    }
    let mut buffer = AlignedBuffer::new(CHUNK as usize);
    for (part_offset, part) in tree.parts() {
        let mut offset = part_offset;
        for wanted in part.chunks(CHUNK as usize) {
            watch.check()?;
            let found = buffer.prefix(wanted.len());
            hash.read_at(found, offset).map_err(read_error(offset))?;
            if let Some(block) = found.chunks(BLOCK_SIZE).zip(wanted.chunks(BLOCK_SIZE)).position(|(a, b)| a != b) {
                return Err(CheckError::Tree { offset: offset + (block * BLOCK_SIZE) as u64 });
            }
            offset += wanted.len() as u64;
        }
    }
    Ok(tree)
}
