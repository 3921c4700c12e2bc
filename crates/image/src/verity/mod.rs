//! dm-verity in user space: the superblock, the hash tree, building it while frames finish out of order, and checking a
//! written slot. Byte for byte what `veritysetup format` writes for the same salt and UUID.
//!
//! Facts are from the kernel's Documentation/admin-guide/device-mapper/verity.rst and cryptsetup's on-disk format
//! description: hash type 1 (salt before the block), SHA-256, 128 digests in a block of 4096 bytes, unused digests zero,
//! the superblock in the first hash block, then the levels from the root down to the leaves.

mod check;
mod superblock;
mod tree;

pub use check::{CheckError, build, verify};
pub use superblock::{Superblock, SuperblockError};
pub use tree::{BlockHasher, IncompleteTree, Tree, TreeBuilder};

use crate::digest::SHA256_LENGTH;

/// Data and hash block size in bytes: the page size of every supported architecture, so that the kernel accepts it.
pub const BLOCK_SIZE: usize = 4096;
/// Longest salt in bytes (the field in the superblock).
pub const MAX_SALT_LENGTH: usize = 256;
/// Digests in one hash block.
const DIGESTS_PER_BLOCK: u64 = (BLOCK_SIZE / SHA256_LENGTH) as u64;

/// What besides the data decides the tree and its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Prepended to every block that is hashed; at most [`MAX_SALT_LENGTH`] bytes count.
    pub salt: Vec<u8>,
    /// UUID in the superblock, in the byte order of its text form. It does not change the root hash.
    pub uuid: [u8; 16],
}

/// Where the parts of a hash device lie for an image of a given size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    data_blocks: u64,
    /// Hash blocks of each level, leaves first, the level with one block last.
    level_blocks: Vec<u64>,
}

impl Geometry {
    /// For an image of `size` bytes; a last block that is not whole counts as whole.
    pub fn of_image(size: u64) -> Self {
        let data_blocks = size.div_ceil(BLOCK_SIZE as u64);
        let mut level_blocks = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(DIGESTS_PER_BLOCK);
            level_blocks.push(below);
        }
        Self { data_blocks, level_blocks }
    }

    /// Blocks of the image.
    pub const fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Levels of the tree; none for an image of one block.
    pub const fn levels(&self) -> usize {
        self.level_blocks.len()
    }

    /// Bytes of superblock and tree.
    pub fn hash_size(&self) -> u64 {
        (1 + self.level_blocks.iter().sum::<u64>()) * BLOCK_SIZE as u64
    }

    /// Offset of a level in the hash device; level 0 are the leaves.
    pub fn level_offset(&self, level: usize) -> u64 {
        let above: u64 = self.level_blocks.iter().skip(level + 1).sum();
        (1 + above) * BLOCK_SIZE as u64
    }

    fn level_sizes(&self) -> impl Iterator<Item = u64> {
        self.level_blocks.iter().copied()
    }
}

#[cfg(test)]
mod tests;
