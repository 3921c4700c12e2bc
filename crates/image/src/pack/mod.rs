//! Packs: the image cut into frames that decode independently, followed by an index that says how.
//!
//! A pack file is the stored bytes of all frames in image order without gaps, then the index. Offsets are therefore sums and
//! can't overlap. The manifest names length and digest of the index, so a node reads the index with one range request and
//! then exactly the frames it lacks.

mod bytes;
mod check;
mod frame;
mod index;
mod index_error;

pub use frame::{FrameDecoder, FrameError};
pub(crate) use index::IndexParts;
pub use index::{BlockRange, Codec, Frame, PackIndex};
pub use index_error::{FrameFault, IndexError, ReadIndexError};

/// The pack format this version reads and writes.
pub const FORMAT: u32 = 1;
/// First bytes of an index.
pub const MAGIC: [u8; 8] = *b"BascPack";
/// Unit of references into the base in bytes: the block that dm-verity reads and checks as one.
pub const BLOCK: usize = crate::verity::BLOCK_SIZE;
/// Smallest frame size in bytes.
pub const MIN_FRAME_SIZE: u32 = 64 << 10;
/// Largest frame size in bytes. With [`MAX_REFERENCE`] it bounds what a worker holds.
pub const MAX_FRAME_SIZE: u32 = 4 << 20;
/// Largest reference of one frame in bytes (all its ranges together).
pub const MAX_REFERENCE: u64 = 8 << 20;

#[cfg(test)]
mod tests;
