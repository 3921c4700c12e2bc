//! SHA-256 digests as 32 bytes, for what is computed and compared often. In the signed files they are the checked texts
//! of `bascule-names`: `Digest` and `RootHash`.

use std::fmt;

use bascule_names::{Digest, RootHash};

/// Length of a SHA-256 digest in bytes (FIPS 180-4).
pub const SHA256_LENGTH: usize = 32;

/// A SHA-256 digest. Text form: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; SHA256_LENGTH]);

impl Sha256 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_ring(&ring::digest::digest(&ring::digest::SHA256, bytes))
    }

    /// Takes 32 bytes that are already a digest.
    pub const fn from_bytes(bytes: [u8; SHA256_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; SHA256_LENGTH] {
        &self.0
    }

    /// The first 128 bits, which the Discoverable Partitions Specification makes the PARTUUID of the data partition
    /// when this is a verity root hash.
    pub fn first_half(&self) -> [u8; 16] {
        let mut half = [0; 16];
        half.copy_from_slice(self.0.split_at(16).0);
        half
    }

    /// The last 128 bits, which the Discoverable Partitions Specification makes the PARTUUID of the verity partition
    /// when this is a verity root hash.
    pub fn second_half(&self) -> [u8; 16] {
        let mut half = [0; 16];
        half.copy_from_slice(self.0.split_at(16).1);
        half
    }

    pub(crate) fn from_ring(digest: &ring::digest::Digest) -> Self {
        let mut bytes = [0; SHA256_LENGTH];
        // ring's SHA-256 output is always 32 bytes; zip keeps that a fact instead of a panic.
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

/// A running SHA-256, for input that does not lie in one piece.
#[derive(Clone)]
pub struct Sha256Stream(ring::digest::Context);

impl Sha256Stream {
    /// Starts with no input.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Adds `bytes` to the input.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all input.
    pub fn finish(self) -> Sha256 {
        Sha256::from_ring(&self.0.finish())
    }
}

impl Default for Sha256Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Sha256Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Stream")
    }
}

impl From<Sha256> for Digest {
    fn from(digest: Sha256) -> Self {
        Self::from_sha256(&digest.0)
    }
}

impl From<&Digest> for Sha256 {
    fn from(digest: &Digest) -> Self {
        Self(digest.to_bytes())
    }
}

impl From<Sha256> for RootHash {
    fn from(digest: Sha256) -> Self {
        Self::from_bytes(&digest.0)
    }
}

impl From<&RootHash> for Sha256 {
    fn from(hash: &RootHash) -> Self {
        Self(hash.to_bytes())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_agree_with_the_standard_and_with_their_texts() {
        // FIPS 180-4 example: SHA-256("abc").
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Sha256::of(b"abc");
        assert_eq!(digest.to_string(), text);
        assert_eq!(RootHash::from(digest).as_str(), text);
        assert_eq!(Sha256::from(&Digest::from(digest)), digest);
        let mut stream = Sha256Stream::new();
        stream.update(b"a");
        stream.update(b"bc");
        assert_eq!(stream.finish(), digest);
    }

    #[test]
    fn halves_are_the_partition_uuids() {
        let digest = Sha256::of(b"abc");
        assert_eq!([digest.first_half(), digest.second_half()].concat(), digest.as_bytes());
    }
}
