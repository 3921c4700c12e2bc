//! What a signature over a PE file covers, and where it goes ("Windows Authenticode Portable Executable Signature Format").

use anyhow::{Context as _, ensure};
use ring::digest::{Context, Digest, SHA256};

/// Offsets in the optional header of a 64-bit PE file ("PE Format"): size of the headers, checksum, number of directories, and
/// the entry of the certificate table.
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const DIRECTORIES: usize = 108;
const CERTIFICATES: usize = 112 + 4 * 8;
/// WIN_CERTIFICATE: length, WIN_CERT_REVISION_2_0, WIN_CERT_TYPE_PKCS_SIGNED_DATA.
const CERTIFICATE_HEADER: usize = 8;

/// A PE file without a signature, padded as the one that will follow wants it.
pub(super) struct Unsigned {
    bytes: Vec<u8>,
    optional: usize,
    /// Where headers end, and each section's bytes, in the order in the file.
    parts: Vec<std::ops::Range<usize>>,
}

impl Unsigned {
    /// Reads a file; a signature that it has already is taken off.
    pub(super) fn read(mut bytes: Vec<u8>) -> anyhow::Result<Self> {
        let optional = number(&bytes, 0x3C, 4)? + 24;
        ensure!(
            bytes.starts_with(b"MZ") && bytes.get(optional - 24..optional - 20) == Some(b"PE\0\0"),
            "it is no PE file"
        );
        ensure!(number(&bytes, optional, 2)? == 0x20B, "it is no 64-bit PE file");
        ensure!(number(&bytes, optional + DIRECTORIES, 4)? > 4, "it has no room for a signature");
        let table = optional + number(&bytes, optional - 4, 2)?;
        let mut parts = Vec::new();
        let mut end = number(&bytes, optional + SIZE_OF_HEADERS, 4)?;
        for section in 0..number(&bytes, optional - 18, 2)? {
            let (size, at) =
                (number(&bytes, table + section * 40 + 16, 4)?, number(&bytes, table + section * 40 + 20, 4)?);
            if size > 0 {
                parts.push(at..at.checked_add(size).context("a section is too long")?);
            }
        }
        parts.sort_by_key(|part| part.start);
        parts.insert(0, 0..end);
        for part in parts.iter().skip(1) {
            // Firmware hashes sections one after the other: what lies between them would not be covered.
            ensure!(part.start == end, "there is a gap or an overlap between its sections");
            end = part.end;
        }
        let (at, size) = (number(&bytes, optional + CERTIFICATES, 4)?, number(&bytes, optional + CERTIFICATES + 4, 4)?);
        if size > 0 {
            ensure!(at >= end && at.checked_add(size) == Some(bytes.len()), "its signature is not at its end");
            bytes.truncate(at);
        }
        ensure!(end <= bytes.len(), "it is truncated");
        for (offset, length) in [(CHECKSUM, 4), (CERTIFICATES, 8)] {
            bytes.iter_mut().skip(optional + offset).take(length).for_each(|byte| *byte = 0);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if let Some(last) = parts.last_mut().filter(|last| last.end == end) {
            // What follows the last section is hashed too.
            last.end = bytes.len();
        }
        Ok(Self { bytes, optional, parts })
    }

    /// The digest that is signed: all bytes but the checksum and the certificate table's entry.
    pub(super) fn digest(&self) -> Digest {
        let skipped = [
            self.optional + CHECKSUM..self.optional + CHECKSUM + 4,
            self.optional + CERTIFICATES..self.optional + CERTIFICATES + 8,
        ];
        let mut hash = Context::new(&SHA256);
        for part in &self.parts {
            let mut at = part.start;
            for skip in skipped.iter().filter(|skip| part.contains(&skip.start)) {
                hash.update(self.bytes.get(at..skip.start).unwrap_or_default());
                at = skip.end;
            }
            hash.update(self.bytes.get(at..part.end).unwrap_or_default());
        }
        hash.finish()
    }

    /// The file with a signature at its end.
    pub(super) fn with_signature(self, signature: &[u8]) -> anyhow::Result<Vec<u8>> {
        let Self { mut bytes, optional, .. } = self;
        let at = u32::try_from(bytes.len()).context("it is too long for a signature")?;
        let length = u32::try_from(CERTIFICATE_HEADER + signature.len()).context("the signature is too long")?;
        bytes.extend(length.to_le_bytes());
        bytes.extend([0x00, 0x02, 0x02, 0x00]);
        bytes.extend(signature);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let size = u32::try_from(bytes.len()).context("it is too long")? - at;
        let entry = [at.to_le_bytes(), size.to_le_bytes()].concat();
        bytes.iter_mut().skip(optional + CERTIFICATES).zip(entry).for_each(|(to, from)| *to = from);
        let sum = checksum(&bytes).to_le_bytes();
        bytes.iter_mut().skip(optional + CHECKSUM).zip(sum).for_each(|(to, from)| *to = from);
        Ok(bytes)
    }
}

/// The checksum of a PE file whose checksum field is zero: a sum of 16-bit words with carry, and the length.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        let low = u32::from(word.first().copied().unwrap_or_default());
        let high = u32::from(word.get(1).copied().unwrap_or_default());
        sum += low | high << 8;
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum.wrapping_add(bytes.len() as u32)
}

fn number(bytes: &[u8], at: usize, size: usize) -> anyhow::Result<usize> {
    let found = at.checked_add(size).and_then(|end| bytes.get(at..end)).context("it is no whole PE file")?;
    Ok(found.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}
