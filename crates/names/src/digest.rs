//! SHA-256 digests and dm-verity root hashes, always lower-case hex.

use crate::{NameError, name_type};

fn bytes_of_hex(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0_u8; 32];
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

fn hex_of_bytes(bytes: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A SHA-256 digest of some bytes, written `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:<64 lower-case hex digits>`.
    ///
    /// # Errors
    /// [`NameError::Shape`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        text.strip_prefix("sha256:")
            .and_then(bytes_of_hex)
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| NameError::shape("digest", text, "write sha256: and 64 lower-case hex digits"))
    }

    /// The digest of 32 raw SHA-256 bytes.
    #[must_use]
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex_of_bytes(bytes)))
    }

    /// The raw 32 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.strip_prefix("sha256:").and_then(bytes_of_hex).unwrap_or_default()
    }

    /// The digest as text, `sha256:` first.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A dm-verity root hash (SHA-256), 64 lower-case hex digits as in `roothash=` on the kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootHash(String);

impl RootHash {
    /// Parses 64 lower-case hex digits.
    ///
    /// # Errors
    /// [`NameError::Shape`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        bytes_of_hex(text)
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| NameError::shape("root hash", text, "write 64 lower-case hex digits"))
    }

    /// The root hash of 32 raw bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(hex_of_bytes(bytes))
    }

    /// The raw 32 bytes. The first 16 are the PARTUUID of the data partition, the last 16 that of the verity
    /// partition (Discoverable Partitions Specification, "root verity").
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        bytes_of_hex(&self.0).unwrap_or_default()
    }

    /// The root hash as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

name_type!(Digest, r"^sha256:[0-9a-f]{64}$", 71, "A SHA-256 digest, like sha256:9f86d0….");
name_type!(RootHash, r"^[0-9a-f]{64}$", 64, "A dm-verity root hash: 64 lower-case hex digits.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let bytes = std::array::from_fn(|i| u8::try_from(i * 7 % 256).unwrap());
        assert_eq!(Digest::from_sha256(&bytes).to_bytes(), bytes);
        assert_eq!(RootHash::parse(RootHash::from_bytes(&bytes).as_str()).unwrap().to_bytes(), bytes);
    }

    #[test]
    fn refuses_other_shapes() {
        let hex = "AB".repeat(32);
        for text in ["", "sha256:", "sha512:00", hex.as_str(), &format!("sha256:{hex}")] {
            assert!(Digest::parse(text).is_err(), "{text}");
            assert!(RootHash::parse(text).is_err(), "{text}");
        }
    }
}
