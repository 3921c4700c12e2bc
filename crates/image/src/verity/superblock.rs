//! The first 512 bytes of a hash device.
//!
//! Layout (little endian): signature[8], u32 version, u32 hash type, uuid[16], algorithm[32], u32 data block size, u32 hash
//! block size, u64 data blocks, u16 salt size, pad[6], salt[256], pad[168].

use super::{BLOCK_SIZE, MAX_SALT_LENGTH, Parameters};

const LENGTH: usize = 512;
const SIGNATURE: [u8; 8] = *b"verity\0\0";
const VERSION: u32 = 1;
const HASH_TYPE: u32 = 1;
const ALGORITHM: [u8; 32] = *b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A superblock with the only parameters this crate writes and accepts: version 1, hash type 1, SHA-256, blocks of 4096.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Salt and UUID.
    pub parameters: Parameters,
    /// Blocks of the data device under the tree.
    pub data_blocks: u64,
}

/// Why bytes are no superblock we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Too short to hold one.
    #[error("a verity superblock has 512 bytes, here are {length}")]
    Truncated {
        /// Bytes that are there.
        length: usize,
    },
    /// The signature is missing: no superblock at all.
    #[error("there is no verity superblock: the signature is missing")]
    Signature,
    /// A field holds a value this version does not accept.
    #[error("the verity superblock's {field} is {found}, accepted is {accepted}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value that is accepted.
        accepted: u64,
    },
    /// Another hash algorithm, or padding that is not zero.
    #[error("the verity superblock's {field} is not accepted: {accepted}")]
    Bytes {
        /// Which field.
        field: &'static str,
        /// What is accepted.
        accepted: &'static str,
    },
}

impl Superblock {
    /// The 512 bytes.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let salt = self.parameters.salt.get(..MAX_SALT_LENGTH).unwrap_or(&self.parameters.salt);
        let mut salt_field = [0; MAX_SALT_LENGTH];
        salt_field.iter_mut().zip(salt).for_each(|(to, from)| *to = *from);
        let fields: [&[u8]; 11] = [
            &SIGNATURE,
            &VERSION.to_le_bytes(),
            &HASH_TYPE.to_le_bytes(),
            &self.parameters.uuid,
            &ALGORITHM,
            &(BLOCK_SIZE as u32).to_le_bytes(),
            &(BLOCK_SIZE as u32).to_le_bytes(),
            &self.data_blocks.to_le_bytes(),
            &(salt.len() as u16).to_le_bytes(),
            &[0; 6],
            &salt_field,
        ];
        let mut bytes = [0; LENGTH];
        bytes.iter_mut().zip(fields.iter().copied().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// Reads a superblock from the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let truncated = SuperblockError::Truncated { length: bytes.len() };
        let mut rest = bytes.get(..LENGTH).ok_or_else(|| truncated.clone())?;
        if take::<8>(&mut rest) != Some(SIGNATURE) {
            return Err(SuperblockError::Signature);
        }
        let mut number = |field, width: usize, accepted: u64| {
            let (bytes, after) = rest.split_at_checked(width).ok_or_else(|| truncated.clone())?;
            rest = after;
            let found = bytes.iter().rev().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
            if found == accepted { Ok(()) } else { Err(SuperblockError::Field { field, found, accepted }) }
        };
        number("version", 4, u64::from(VERSION))?;
        number("hash type", 4, u64::from(HASH_TYPE))?;
        let uuid = take::<16>(&mut rest).ok_or_else(|| truncated.clone())?;
        if take::<32>(&mut rest) != Some(ALGORITHM) {
            return Err(SuperblockError::Bytes { field: "algorithm", accepted: "sha256" });
        }
        let mut number = |field, accepted: u64| {
            let found = u64::from(u32::from_le_bytes(take::<4>(&mut rest).ok_or_else(|| truncated.clone())?));
            if found == accepted { Ok(()) } else { Err(SuperblockError::Field { field, found, accepted }) }
        };
        number("data block size", BLOCK_SIZE as u64)?;
        number("hash block size", BLOCK_SIZE as u64)?;
        let data_blocks = u64::from_le_bytes(take::<8>(&mut rest).ok_or_else(|| truncated.clone())?);
        let salt_length = usize::from(u16::from_le_bytes(take::<2>(&mut rest).ok_or_else(|| truncated.clone())?));
        if take::<6>(&mut rest) != Some([0; 6]) {
            return Err(SuperblockError::Bytes { field: "padding", accepted: "zeros" });
        }
        let (salt_field, padding) = rest.split_at_checked(MAX_SALT_LENGTH).ok_or(truncated)?;
        let accepted = MAX_SALT_LENGTH as u64;
        let too_long = SuperblockError::Field { field: "salt size", found: salt_length as u64, accepted };
        let (salt, unused) = salt_field.split_at_checked(salt_length).ok_or(too_long)?;
        if unused.iter().chain(padding).any(|byte| *byte != 0) {
            return Err(SuperblockError::Bytes { field: "padding", accepted: "zeros" });
        }
        Ok(Self { parameters: Parameters { salt: salt.to_vec(), uuid }, data_blocks })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
