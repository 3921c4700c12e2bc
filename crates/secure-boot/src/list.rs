//! EFI signature lists: the content of `db`, `dbx` and `MokListRT` (UEFI 2.10, section 32.4.1, `EFI_SIGNATURE_LIST`).

use uuid::{Uuid, uuid};

const SHA256: Uuid = uuid!("c1c41626-504c-4092-aca9-41f936934328");
const SHA384: Uuid = uuid!("ff3e5307-9fd0-48c9-85f1-8ad56c701e01");
const SHA512: Uuid = uuid!("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a");
const X509: Uuid = uuid!("a5c059a1-94e4-4aa7-87b5-ab155c2bf072");
const X509_SHA256: Uuid = uuid!("3bd2a492-96c0-4079-b420-fcf98ef103ed");
const X509_SHA384: Uuid = uuid!("7076876e-80c2-4ee6-aad2-28b349a6865b");
const X509_SHA512: Uuid = uuid!("446dbf63-2502-4cda-bcfa-2465d2b0fe9d");

/// Header of a list: type, length of the list, of its own header, of one signature.
const LIST_HEADER: usize = 28;
/// Owner in front of each signature.
const OWNER: usize = 16;
/// Entries of one variable; today's largest `dbx` has some hundreds.
const MAX_ENTRIES: usize = 65_536;

/// The entries of a variable, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignatureList {
    /// Authenticode hashes of images: SHA-256, SHA-384 or SHA-512, by their length.
    pub image_hashes: Vec<Vec<u8>>,
    /// Certificates, DER.
    pub certificates: Vec<Vec<u8>>,
    /// Hashes of the to-be-signed part of certificates, by their length.
    pub certificate_hashes: Vec<Vec<u8>>,
    /// Entries of kinds that no firmware uses for images any more (SHA-1, SHA-224, bare RSA keys, time stamps).
    pub others: usize,
}

impl SignatureList {
    /// Takes in the entries of another.
    pub(crate) fn extend(&mut self, more: Self) {
        self.image_hashes.extend(more.image_hashes);
        self.certificates.extend(more.certificates);
        self.certificate_hashes.extend(more.certificate_hashes);
        self.others += more.others;
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a variable is no sequence of signature lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A list or a signature ends after the variable.
    #[error("the signature list at offset {offset} is cut off")]
    Truncated {
        /// Where the list begins, in bytes.
        offset: usize,
    },
    /// Lengths that do not fit each other.
    #[error("the signature list at offset {offset} has lengths that do not fit each other")]
    Lengths {
        /// Where the list begins, in bytes.
        offset: usize,
    },
    /// More than is taken.
    #[error("there are more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// Parses the value of a variable without its attributes.
///
/// # Errors
/// [`ListError`]; what could be read until then is not given: half a `dbx` would be no answer.
pub fn parse_lists(bytes: &[u8]) -> Result<SignatureList, ListError> {
    let mut found = SignatureList::default();
    let (mut offset, mut count) = (0, 0);
    while offset < bytes.len() {
        let truncated = ListError::Truncated { offset };
        let rest = bytes.get(offset..).ok_or(truncated)?;
        let header = rest.first_chunk::<LIST_HEADER>().ok_or(truncated)?;
        let (kind, lengths) = header.split_at(16);
        let kind = Uuid::from_slice_le(kind).map_err(|_| truncated)?;
        let mut numbers =
            lengths.chunks_exact(4).map(|four| four.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)));
        let mut number = || numbers.next().unwrap_or_default();
        let (list, own, entry) = (number(), number(), number());
        let body = LIST_HEADER.checked_add(own).ok_or(truncated)?;
        if list > rest.len() {
            return Err(truncated);
        }
        let entries = rest.get(body..list).ok_or(ListError::Lengths { offset })?;
        if entry <= OWNER || entries.len() % entry != 0 {
            return Err(ListError::Lengths { offset });
        }
        for signature in entries.chunks_exact(entry) {
            count += 1;
            if count > MAX_ENTRIES {
                return Err(ListError::TooMany);
            }
            let data = signature.get(OWNER..).unwrap_or_default();
            // Behind the hash of a certificate follows the time from which on it is revoked.
            let hash = |length: usize| data.get(..length).map(<[u8]>::to_vec);
            let (list, value) = match kind {
                SHA256 => (&mut found.image_hashes, hash(32)),
                SHA384 => (&mut found.image_hashes, hash(48)),
                SHA512 => (&mut found.image_hashes, hash(64)),
                X509 => (&mut found.certificates, Some(data.to_vec())),
                X509_SHA256 => (&mut found.certificate_hashes, hash(32)),
                X509_SHA384 => (&mut found.certificate_hashes, hash(48)),
                X509_SHA512 => (&mut found.certificate_hashes, hash(64)),
                _ => {
                    found.others += 1;
                    continue;
                }
            };
            list.push(value.ok_or(ListError::Lengths { offset })?);
        }
        offset += list;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(kind: Uuid, own: usize, entries: &[&[u8]]) -> Vec<u8> {
        let size = OWNER + entries.first().map_or(0, |entry| entry.len());
        let mut bytes = kind.to_bytes_le().to_vec();
        for number in [LIST_HEADER + own + size * entries.len(), own, size] {
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend(vec![0; own]);
        for entry in entries {
            bytes.extend([0xEE; OWNER]);
            bytes.extend(*entry);
        }
        bytes
    }

    #[test]
    fn lists_of_all_kinds_are_read() {
        let bytes = [
            list(SHA256, 0, &[&[1; 32], &[2; 32]]),
            list(X509, 0, &[b"der"]),
            list(X509_SHA256, 0, &[&[[3_u8; 32].as_slice(), &[0; 16]].concat()]),
            list(Uuid::nil(), 5, &[b"else"]),
            list(SHA512, 0, &[&[4; 64]]),
        ];
        let found = parse_lists(&bytes.concat()).unwrap();
        assert_eq!(found.image_hashes, [vec![1; 32], vec![2; 32], vec![4; 64]]);
        assert_eq!((found.certificates, found.others), (vec![b"der".to_vec()], 1));
        assert_eq!(found.certificate_hashes, [vec![3; 32]]);
        assert!(parse_lists(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_cut_or_does_not_fit_is_refused() {
        let whole = list(SHA256, 0, &[&[1; 32], &[2; 32]]);
        for length in 1..whole.len() {
            assert!(parse_lists(&whole[..length]).is_err(), "cut at {length}");
        }
        for bad in [list(SHA256, 0, &[&[1; 31]]), list(SHA256, 0, &[b""]), list(X509_SHA384, 0, &[&[1; 40]])] {
            assert_eq!(parse_lists(&bad), Err(ListError::Lengths { offset: 0 }));
        }
        let mut huge = list(SHA256, 0, &[&[1; 32]]);
        huge[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse_lists(&huge).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_lists(&bytes);
        }
    }
}
