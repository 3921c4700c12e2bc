//! One signed metadata file: canonical bytes, signatures, and the description that the next role up writes of it.
//!
//! tough's editor signs all roles in one go with all keys at hand, and prints maps in random order. Keys are held by
//! different people here, a timestamp is refreshed without the others, and the same input gives the same bytes; so the
//! schema and its canonical form are tough's, and the signing is these few lines.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::schema::{Hashes, Metafile, Role, RoleKeys, Signature, Signed};

use super::error::PublishError;
use super::keys::SigningKey;

/// The TUF specification this writes.
pub(super) const SPEC_VERSION: &str = "1.0.0";

/// A signed role and its published bytes.
#[derive(Debug, Clone)]
pub(super) struct Document<T> {
    pub(super) signed: Signed<T>,
    pub(super) bytes: Vec<u8>,
}

#[derive(Serialize)]
struct SignaturesOnly<'a> {
    signatures: &'a [Signature],
}

impl<T: Role + Clone + DeserializeOwned> Document<T> {
    /// Signs with all the given keys that any of the key sets names. A role that changes its keys is signed for the old
    /// and the new set, so that readers of either root accept it.
    pub(super) fn sign(name: &str, role: T, key_sets: &[&RoleKeys], keys: &[SigningKey]) -> Result<Self, PublishError> {
        Self::with_signatures(name, role, &[], key_sets, keys)
    }

    /// As [`Self::sign`], keeping signatures that are there already.
    pub(super) fn with_signatures(
        name: &str,
        role: T,
        existing: &[Signature],
        key_sets: &[&RoleKeys],
        keys: &[SigningKey],
    ) -> Result<Self, PublishError> {
        let message = role.canonical_form().map_err(|error| PublishError::broken(name, error))?;
        // By key id, so that the same set of keys gives the same bytes whatever the order they are given in.
        let may_sign = |id| key_sets.iter().any(|set| set.keyids.contains(id));
        let kept = existing.iter().filter(|signature| may_sign(&signature.keyid));
        let mut signatures: BTreeMap<Vec<u8>, Signature> =
            kept.map(|signature| (signature.keyid.to_vec(), signature.clone())).collect();
        for key in keys {
            let id = &key.public().id;
            // One that has signed is not asked again: a person may have to touch a token for it.
            if may_sign(id) && !signatures.contains_key(&id[..]) {
                signatures.insert(id.to_vec(), key.sign(&message)?);
            }
        }
        let signatures: Vec<Signature> = signatures.into_values().collect();
        let tail = serde_json::to_vec(&SignaturesOnly { signatures: &signatures })
            .map_err(|error| PublishError::broken(name, error))?;
        let mut bytes = b"{\"signed\":".to_vec();
        bytes.extend(as_json(&message));
        bytes.push(b',');
        bytes.extend_from_slice(tail.strip_prefix(b"{").unwrap_or(&tail));
        bytes.push(b'\n');
        Self::parse(name, bytes)
    }

    /// Reads published bytes. Signatures are not judged here.
    pub(super) fn parse(name: &str, bytes: Vec<u8>) -> Result<Self, PublishError> {
        let signed = serde_json::from_slice(&bytes).map_err(|error| PublishError::broken(name, error))?;
        Ok(Self { signed, bytes })
    }

    /// What snapshot or timestamp say of it.
    pub(super) fn metafile(&self) -> Metafile {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.bytes);
        Metafile {
            length: Some(self.bytes.len() as u64),
            hashes: Some(Hashes { sha256: digest.as_ref().to_vec().into(), _extra: HashMap::new() }),
            version: self.signed.signed.version(),
            _extra: HashMap::new(),
        }
    }
}

impl<T> Document<T> {
    /// The keys of a set that have signed.
    pub(super) fn signers(&self, set: &RoleKeys) -> Vec<&[u8]> {
        let signatures = self.signed.signatures.iter();
        signatures.map(|signature| &signature.keyid).filter(|id| set.keyids.contains(id)).map(|id| &id[..]).collect()
    }
}

/// The canonical form as JSON. What is signed leaves control characters in texts as they are (the key in PEM has ends of lines),
/// which JSON does not allow; readers take the escapes away before they check the signature.
fn as_json(canonical: &[u8]) -> Vec<u8> {
    let mut json = Vec::with_capacity(canonical.len());
    for byte in canonical {
        match byte {
            b'\n' => json.extend(b"\\n"),
            control @ 0..0x20 => json.extend(format!("\\u{control:04x}").bytes()),
            other => json.push(*other),
        }
    }
    json
}

/// A time as tough's schema wants it (its time type is not named here, only built through its text form). TUF 1.0, 4.2:
/// whole seconds.
pub(super) fn timestamp<T: DeserializeOwned>(time: DateTime<Utc>) -> Result<T, PublishError> {
    let text = time.trunc_subsecs(0).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| PublishError::broken("time", error))
}
