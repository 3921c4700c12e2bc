//! Public keys, and counting signatures towards a threshold. ring verifies; the agent has no other cryptography.

use std::collections::BTreeSet;

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

use super::schema::{Key, Signed, Signers};
use crate::error::Error;

/// A key in the form that ring takes. Two keys with the same material are one key, whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Material {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    RsaPss(Vec<u8>),
}

/// A `SubjectPublicKeyInfo` of a P-256 key up to its point (RFC 5480, 2.1.1 and 2.2).
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE,
    0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The algorithm `rsaEncryption` with its NULL parameter (RFC 3279, 2.3.1).
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0D, 0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01, 0x05, 0x00];

impl Material {
    /// The material of a key of one of the three types of TUF 1.0, 4.2.1; `None` for anything else, which signs nothing.
    /// `ecdsa-sha2-nistp256` as a type is what the reference implementation wrote before 2022.
    fn of(key: &Key) -> Option<Self> {
        match (&*key.keytype, &*key.scheme) {
            ("ed25519", "ed25519") => {
                let bytes = hex::decode(key.public()).ok()?;
                (bytes.len() == 32).then_some(Self::Ed25519(bytes))
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                let der = SubjectPublicKeyInfoDer::from_pem_slice(key.public().as_bytes()).ok()?;
                let point = der.as_ref().strip_prefix(&P256_HEAD)?;
                (point.len() == 65).then(|| Self::P256(point.to_vec()))
            }
            ("rsa", "rsassa-pss-sha256") => {
                let der = SubjectPublicKeyInfoDer::from_pem_slice(key.public().as_bytes()).ok()?;
                let (outer, rest) = element(0x30, der.as_ref())?;
                let bits = outer.strip_prefix(&RSA_ALGORITHM)?;
                let (bits, after) = element(0x03, bits)?;
                let key = bits.strip_prefix(&[0])?;
                (rest.is_empty() && after.is_empty()).then(|| Self::RsaPss(key.to_vec()))
            }
            _ => None,
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            Self::P256(key) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(message, signature),
            Self::RsaPss(key) => UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key).verify(message, signature),
        };
        verified.is_ok()
    }
}

/// The content of a DER element with this tag and what comes after it (X.690, 8.1; definite lengths up to 64 KiB).
fn element(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes.strip_prefix(&[tag])? {
        [short @ 0..=0x7F, rest @ ..] => (usize::from(*short), rest),
        [0x81, one, rest @ ..] => (usize::from(*one), rest),
        [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Counts the keys that have signed: 5.3.4, 5.4.2, 5.5.3 and 5.6.3. Each key counts once, also under several names.
///
/// # Errors
/// [`Error::Signature`] when they are fewer than the threshold, or a key id occurs twice among the signatures (4.2.1).
pub(super) fn verify<T>(role: &str, signed: &Signed<T>, signers: Signers<'_>) -> Result<(), Error> {
    let refuse = |detail: String| Error::Signature { role: role.to_owned(), detail };
    let own: BTreeSet<&str> = signers.keyids.iter().map(|keyid| &**keyid).collect();
    let mut seen = BTreeSet::new();
    let mut counted = BTreeSet::new();
    for signature in signed.signatures.iter() {
        if !seen.insert(&*signature.keyid) {
            let keyid: String = signature.keyid.chars().take(64).collect();
            return Err(refuse(format!(" (the key {keyid} occurs twice among the signatures)")));
        }
        if !own.contains(&*signature.keyid) {
            continue;
        }
        let Some(material) = signers.keys.get(&signature.keyid).and_then(Material::of) else { continue };
        let Ok(bytes) = hex::decode(&*signature.sig) else { continue };
        let needed = (counted.len() as u64) < signers.threshold.get() && !counted.contains(&material);
        if needed && material.verifies(&signed.message, &bytes) {
            counted.insert(material);
        }
    }
    let have = counted.len() as u64;
    if have < signers.threshold.get() {
        return Err(refuse(format!(" ({have} of at least {} have signed)", signers.threshold)));
    }
    Ok(())
}

/// A digest of who signs a role: the same for the same keys and threshold. 5.3.11 asks whether they were replaced.
pub(super) fn fingerprint(roles: &[Signers<'_>]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut number = |number: u64| context.update(&number.to_be_bytes());
    let mut text = Vec::new();
    for signers in roles {
        number(signers.threshold.get());
        let known = signers.keyids.iter().map(|keyid| match signers.keys.get(keyid) {
            Some(key) => [&*key.keytype, &*key.scheme, key.public()],
            None => ["", "", &**keyid],
        });
        let keys: BTreeSet<[&str; 3]> = known.collect();
        number(keys.len() as u64);
        for part in keys.into_iter().flatten() {
            number(part.len() as u64);
            text.extend_from_slice(part.as_bytes());
        }
    }
    // The numbers say where each text ends, so that no two sets of keys are written alike.
    context.update(&text);
    hex::encode(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(keytype: &str, scheme: &str, public: &str) -> Option<Material> {
        let key = serde_json::json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}});
        Material::of(&serde_json::from_value(key).unwrap())
    }

    const P256: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEWRiGr5+j+3J5SsH+Ztr5nE2H2wO7\n\
        BV+nO3s93gLca18qTOzHY1oWyAGDykMSsGTUBSt9D+An0KfKsD2mfSM42Q==\n-----END PUBLIC KEY-----\n";

    #[test]
    fn keys_of_the_three_types_are_read_and_others_sign_nothing() {
        assert!(matches!(material("ed25519", "ed25519", &"0f".repeat(32)), Some(Material::Ed25519(_))));
        assert!(matches!(material("ecdsa", "ecdsa-sha2-nistp256", P256), Some(Material::P256(_))));
        assert_eq!(material("ed25519", "ed25519", "0f"), None);
        assert_eq!(material("ed25519", "ed25519", P256), None);
        assert_eq!(material("rsa", "rsassa-pss-sha256", P256), None, "a point is no RSA key");
        assert_eq!(material("sphincs", "shake", "x"), None);
        let odd =
            serde_json::json!({"keytype": "new", "scheme": "new", "keyval": {"public": {"x": [1, 2]}}, "more": 1});
        assert_eq!(Material::of(&serde_json::from_value(odd).unwrap()), None);
    }

    #[test]
    fn der_elements_end_where_they_say() {
        assert_eq!(element(0x30, &[0x30, 1, 7, 8]), Some((&[7][..], &[8][..])));
        assert_eq!(element(0x30, &[0x30, 0x81, 1, 7]), Some((&[7][..], &[][..])));
        assert_eq!(element(0x30, &[0x30, 0x82, 0, 1, 7]), Some((&[7][..], &[][..])));
        for bad in [&[0x30][..], &[0x30, 2, 7], &[0x31, 1, 7], &[0x30, 0x83, 0, 0, 1, 7], &[0x30, 0x80, 0, 0]] {
            assert_eq!(element(0x30, bad), None);
        }
    }
}
