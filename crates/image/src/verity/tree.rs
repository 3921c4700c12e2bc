//! The hash tree in memory: leaves arrive in any order from several workers, the levels above follow at the end.
//!
//! Memory: 32 bytes for each 4096 bytes of the image and 1/128 of that for the levels above, 6 MiB for an image of 750 MB.

use std::io;
use std::sync::Mutex;

use super::{BLOCK_SIZE, DIGESTS_PER_BLOCK, Geometry, MAX_SALT_LENGTH, Parameters, Superblock};
use crate::digest::{SHA256_LENGTH, Sha256, Sha256Stream};
use crate::io::Sink;

/// Hashes blocks with one salt. The salt is absorbed once; cloning that state costs less than hashing it again.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    salted: Sha256Stream,
}

impl BlockHasher {
    /// For the salt of `parameters`.
    pub fn new(parameters: &Parameters) -> Self {
        let mut salted = Sha256Stream::new();
        salted.update(parameters.salt.get(..MAX_SALT_LENGTH).unwrap_or(&parameters.salt));
        Self { salted }
    }

    /// Digest of one block.
    pub fn block(&self, block: &[u8]) -> Sha256 {
        let mut stream = self.salted.clone();
        stream.update(block);
        stream.finish()
    }

    /// Digests of all blocks of `data`, one after the other. A last block that is not whole is hashed as if zeros followed.
    pub fn blocks(&self, data: &[u8]) -> Vec<u8> {
        let mut digests = Vec::with_capacity(data.len().div_ceil(BLOCK_SIZE) * SHA256_LENGTH);
        for block in data.chunks(BLOCK_SIZE) {
            let digest = match block.len() {
                BLOCK_SIZE => self.block(block),
                short => {
                    let mut stream = self.salted.clone();
                    stream.update(block);
                    stream.update(vec![0; BLOCK_SIZE - short].as_slice());
                    stream.finish()
                }
            };
            digests.extend_from_slice(digest.as_bytes());
        }
        digests
    }
}

/// Some leaves were never put in: the image was not read or written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the verity tree lacks the digests of {missing} of {blocks} blocks")]
pub struct IncompleteTree {
    /// Blocks without a digest.
    pub missing: u64,
    /// Blocks of the image.
    pub blocks: u64,
}

/// Collects leaves in any order, from several threads.
#[derive(Debug)]
pub struct TreeBuilder {
    parameters: Parameters,
    geometry: Geometry,
    leaves: Mutex<Leaves>,
}

#[derive(Debug)]
struct Leaves {
    digests: Vec<u8>,
    present: Vec<bool>,
}

impl TreeBuilder {
    /// For an image of `size` bytes. The caller has capped the size: the leaves are allocated here.
    pub fn new(parameters: &Parameters, size: u64) -> Self {
        let geometry = Geometry::of_image(size);
        let blocks = geometry.data_blocks() as usize;
        let leaves = Leaves { digests: vec![0; blocks * SHA256_LENGTH], present: vec![false; blocks] };
        Self { parameters: parameters.clone(), geometry, leaves: Mutex::new(leaves) }
    }

    /// Takes the digests of consecutive blocks from `first_block` on, as [`BlockHasher::blocks`] gives them. Digests past the
    /// end of the image are dropped.
    pub fn put(&self, first_block: u64, digests: &[u8]) {
        // A panicking worker can't leave half a digest that matters: a tree is only used if its root is the signed one.
        let mut leaves = self.leaves.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Leaves { digests: all, present } = &mut *leaves;
        let first = usize::try_from(first_block).unwrap_or(usize::MAX);
        let slots = all.chunks_exact_mut(SHA256_LENGTH).zip(present.iter_mut()).skip(first);
        for ((slot, present), digest) in slots.zip(digests.chunks_exact(SHA256_LENGTH)) {
            slot.copy_from_slice(digest);
            *present = true;
        }
    }

    /// Computes the levels above the leaves.
    pub fn finish(self) -> Result<Tree, IncompleteTree> {
        let Leaves { digests, present } = self.leaves.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing = present.iter().filter(|present| !**present).count() as u64;
        if missing > 0 || present.is_empty() {
            return Err(IncompleteTree { missing, blocks: present.len() as u64 });
        }
        let hasher = BlockHasher::new(&self.parameters);
        let mut below = digests;
        let mut levels = Vec::with_capacity(self.geometry.levels());
        for blocks in self.geometry.level_sizes() {
            below.resize((blocks * DIGESTS_PER_BLOCK) as usize * SHA256_LENGTH, 0);
            let above = hasher.blocks(&below);
            levels.push(below);
            below = above;
        }
        let mut root = [0; SHA256_LENGTH];
        root.iter_mut().zip(&below).for_each(|(to, from)| *to = *from);
        Ok(Tree { parameters: self.parameters, geometry: self.geometry, levels, root_hash: Sha256::from_bytes(root) })
    }
}

/// A whole hash tree with its superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    parameters: Parameters,
    geometry: Geometry,
    /// Leaves first; each level padded with zeros to whole blocks.
    levels: Vec<Vec<u8>>,
    root_hash: Sha256,
}

impl Tree {
    /// What the kernel is told to trust.
    pub const fn root_hash(&self) -> Sha256 {
        self.root_hash
    }

    /// Bytes of superblock and tree.
    pub fn hash_size(&self) -> u64 {
        self.geometry.hash_size()
    }

    /// The parts of the hash device with their offsets, from the start on: superblock (padded to a block), then the levels
    /// from the root down. Nothing lies between them.
    pub fn parts(&self) -> impl Iterator<Item = (u64, std::borrow::Cow<'_, [u8]>)> {
        let superblock =
            Superblock { parameters: self.parameters.clone(), data_blocks: self.geometry.data_blocks() }.to_bytes();
        let mut first = superblock.to_vec();
        first.resize(BLOCK_SIZE, 0);
        let levels = self.levels.iter().enumerate().rev();
        let levels = levels.map(|(at, level)| (self.geometry.level_offset(at), level.as_slice().into()));
        std::iter::once((0, first.into())).chain(levels)
    }

    /// Writes superblock and tree to a verity slot, from offset 0. Does not flush.
    pub fn write_to(&self, sink: &dyn Sink) -> io::Result<()> {
        self.parts().try_for_each(|(offset, bytes)| sink.write_at(&bytes, offset))
    }

    /// Superblock and tree in one piece, for files.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.parts().flat_map(|(_, bytes)| bytes.into_owned()).collect()
    }
}
