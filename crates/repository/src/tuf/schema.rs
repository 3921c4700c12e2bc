//! The metadata of TUF 1.0, section 4, as far as a reader needs it. Unknown members are passed over here and counted in
//! the signature all the same, because that is over the received text (`canonical`).

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::canonical::canonical_signed;
use super::packed::{AtMost, Sorted, Texts};
use crate::error::Error;
use crate::limits;

/// The four names that no delegated role may have.
pub(crate) const TOP_LEVEL: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

type Signatures = AtMost<Signature, { limits::MAX_SIGNATURES }>;
/// The keys of all roles that a file names.
type Keys = Sorted<Key, { limits::MAX_KEYS }>;
type KeyIds = AtMost<Box<str>, { limits::MAX_ROLE_KEYS }>;

/// A role's content, in the form that its signatures are over.
pub trait Role: DeserializeOwned {
    /// The value of `_type`.
    const TYPE: &'static str;
    /// Version of this metadata.
    fn version(&self) -> u64;
    /// The time from which it is no longer to be trusted.
    fn expires(&self) -> DateTime<Utc>;
    /// What serde can't say of it.
    ///
    /// # Errors
    /// Why it can't be used.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A metadata file that was parsed. Its signatures are not judged yet.
#[derive(Debug, Clone)]
pub struct Signed<T> {
    /// What is signed.
    pub role: T,
    /// The signatures as they were received.
    pub signatures: Signatures,
    /// What the signatures are over.
    pub message: Vec<u8>,
}

/// One signature. `sig` may be no signature at all; that is found when it is counted.
#[derive(Debug, Clone, Deserialize)]
pub struct Signature {
    /// Which key is said to have made it.
    pub keyid: Box<str>,
    /// Hex digits.
    pub sig: Box<str>,
}

#[derive(Deserialize)]
struct Envelope<T> {
    signed: T,
    signatures: Signatures,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "_type")]
    kind: String,
    spec_version: String,
}

/// Parses the metadata of a role. `what` names it in errors.
///
/// # Errors
/// [`Error::SpecVersion`] for another specification, [`Error::Invalid`] for another type or against a rule of section 4,
/// [`Error::Format`] for no such JSON.
pub fn parse<T: Role>(what: &str, bytes: &[u8]) -> Result<Signed<T>, Error> {
    let named = || format!("the {what} metadata");
    let format = |source: serde_json::Error| Error::Format { what: named(), source: source.into() };
    let header = serde_json::from_slice::<Envelope<Header>>(bytes).map_err(format)?.signed;
    if header.kind != T::TYPE {
        let kind: String = header.kind.chars().take(40).collect();
        return Err(Error::Invalid { what: named(), reason: format!("its type is {kind:?}, not {:?}", T::TYPE) });
    }
    if !understood(&header.spec_version) {
        let found = header.spec_version.chars().take(40).collect();
        return Err(Error::SpecVersion { role: what.to_owned(), found });
    }
    let message = canonical_signed(bytes).map_err(format)?;
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(format)?;
    envelope.signed.check().map_err(|reason| Error::Invalid { what: named(), reason })?;
    Ok(Signed { role: envelope.signed, signatures: envelope.signatures, message })
}

/// 4.3: which `spec_version` counts as a match is left to the reader. Here: the major version 1, with or without the
/// parts after it (Sigstore's repository says `1.0`).
fn understood(version: &str) -> bool {
    let mut parts = version.split('.');
    let number = |part: &str| !part.is_empty() && part.len() < 10 && part.bytes().all(|byte| byte.is_ascii_digit());
    parts.next() == Some("1") && parts.clone().all(number) && parts.count() < 3
}

/// 4.2.2: `YYYY-MM-DDTHH:MM:SSZ`.
fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = (text.len() == 20).then(|| NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%SZ").ok()).flatten();
    parsed.map(|time| time.and_utc()).ok_or_else(|| D::Error::custom("a time is not of the form YYYY-MM-DDTHH:MM:SSZ"))
}

macro_rules! role {
    ($name:ident, $kind:literal $(, $check:item)?) => {
        impl Role for $name {
            const TYPE: &'static str = $kind;

            fn version(&self) -> u64 {
                self.version.get()
            }

            fn expires(&self) -> DateTime<Utc> {
                self.expires
            }

            $($check)?
        }
    };
}

/// `root.json`: which keys sign what.
#[derive(Debug, Clone, Deserialize)]
pub struct Root {
    version: NonZeroU64,
    #[serde(deserialize_with = "date")]
    expires: DateTime<Utc>,
    /// Whether file names carry versions and digests.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// Keys by their names.
    pub keys: Keys,
    roles: RootRoles,
}

role!(Root, "root");

/// 4.3: all four must be there; the optional `mirrors` is not used.
#[derive(Debug, Clone, Deserialize)]
struct RootRoles {
    root: RoleKeys,
    timestamp: RoleKeys,
    snapshot: RoleKeys,
    targets: RoleKeys,
}

impl Root {
    /// Who signs a top-level role.
    pub fn signers(&self, role: TopLevel) -> Signers<'_> {
        let keys = match role {
            TopLevel::Root => &self.roles.root,
            TopLevel::Timestamp => &self.roles.timestamp,
            TopLevel::Snapshot => &self.roles.snapshot,
            TopLevel::Targets => &self.roles.targets,
        };
        Signers { keys: &self.keys, keyids: &keys.keyids, threshold: keys.threshold }
    }
}

/// A role whose keys are in the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopLevel {
    /// Signs the keys.
    Root,
    /// Signs which snapshot is the newest.
    Timestamp,
    /// Signs which versions belong together.
    Snapshot,
    /// Signs which files there are.
    Targets,
}

/// The keys of a role and how many must sign.
#[derive(Debug, Clone, Copy)]
pub struct Signers<'a> {
    /// All keys of the delegating role.
    pub keys: &'a Keys,
    /// Which of them are this role's.
    pub keyids: &'a [Box<str>],
    /// How many of them must sign.
    pub threshold: NonZeroU64,
}

#[derive(Debug, Clone, Deserialize)]
struct RoleKeys {
    keyids: KeyIds,
    threshold: NonZeroU64,
}

/// A public key. Unknown types are kept, and sign nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Key {
    /// `ed25519`, `ecdsa`, `rsa`.
    pub keytype: Box<str>,
    /// How it signs.
    pub scheme: Box<str>,
    keyval: KeyValue,
}

impl Key {
    /// Hex digits or PEM, by the type; empty for a key of a form that this version does not know.
    pub fn public(&self) -> &str {
        self.keyval.public.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct KeyValue {
    #[serde(default, deserialize_with = "text_or_nothing")]
    public: Option<Box<str>>,
}

fn text_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<str>>, D::Error> {
    struct Any;
    impl<'de> Visitor<'de> for Any {
        type Value = Option<Box<str>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.into()))
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }
    deserializer.deserialize_any(Any)
}

/// `timestamp.json`: which snapshot is the newest.
#[derive(Debug, Clone, Deserialize)]
pub struct Timestamp {
    version: NonZeroU64,
    #[serde(deserialize_with = "date")]
    expires: DateTime<Utc>,
    meta: SnapshotOnly,
    /// When it was signed, where the publisher says so.
    #[serde(default, rename = "x-bascule-signed-at", deserialize_with = "text_or_nothing")]
    pub signed_at: Option<Box<str>>,
}

#[derive(Debug, Clone, Deserialize)]
struct SnapshotOnly {
    #[serde(rename = "snapshot.json")]
    snapshot: MetaFile,
}

role!(Timestamp, "timestamp");

impl Timestamp {
    /// What it says of the snapshot.
    pub fn snapshot(&self) -> &MetaFile {
        &self.meta.snapshot
    }
}

/// `snapshot.json`: which versions of the targets roles belong together.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    version: NonZeroU64,
    #[serde(deserialize_with = "date")]
    expires: DateTime<Utc>,
    /// By file name without version: `targets.json`, `<role>.json`.
    pub meta: Sorted<MetaFile>,
}

role!(Snapshot, "snapshot");

/// What one role says of another's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: NonZeroU64,
    /// Its length in bytes.
    #[serde(default)]
    pub length: Option<u64>,
    /// Its digests.
    #[serde(default)]
    pub hashes: Option<Hashes>,
}

/// Digests by algorithm. Unknown algorithms are passed over; where nothing else is named, nothing matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashes {
    /// SHA-256.
    pub sha256: Option<Box<[u8; 32]>>,
    /// SHA-512.
    pub sha512: Option<Box<[u8; 64]>>,
}

impl Hashes {
    /// Whether bytes have all the digests that are known here, and there is at least one.
    pub fn match_bytes(&self, bytes: &[u8]) -> bool {
        use ring::digest::{SHA256, SHA512, digest};
        let same256 = self.sha256.as_ref().map(|signed| digest(&SHA256, bytes).as_ref() == signed.as_slice());
        let same512 = self.sha512.as_ref().map(|signed| digest(&SHA512, bytes).as_ref() == signed.as_slice());
        match (same256, same512) {
            (None, None) => false,
            (one, other) => one.unwrap_or(true) && other.unwrap_or(true),
        }
    }

    /// The digest that stands in the file's name with consistent snapshots; section 6.2.1: any of them may.
    pub fn in_name(&self) -> Option<String> {
        let sha256 = self.sha256.as_ref().map(|digest| hex::encode(digest.as_slice()));
        sha256.or_else(|| self.sha512.as_ref().map(|digest| hex::encode(digest.as_slice())))
    }
}

impl<'de> Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digests;
        impl<'de> Visitor<'de> for Digests {
            type Value = Hashes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("digests by algorithm")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Hashes, A::Error> {
                let mut hashes = Hashes::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
                    match &*name {
                        "sha256" => hashes.sha256 = Some(Box::new(digest(&map.next_value::<String>()?)?)),
                        "sha512" => hashes.sha512 = Some(Box::new(digest(&map.next_value::<String>()?)?)),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(hashes)
            }
        }
        fn digest<const N: usize, E: serde::de::Error>(text: &str) -> Result<[u8; N], E> {
            let mut bytes = [0; N];
            hex::decode_to_slice(text, &mut bytes).map_err(E::custom)?;
            Ok(bytes)
        }
        deserializer.deserialize_map(Digests)
    }
}

/// `targets.json` and the files of delegated roles.
#[derive(Debug, Clone, Deserialize)]
pub struct Targets {
    version: NonZeroU64,
    #[serde(deserialize_with = "date")]
    expires: DateTime<Utc>,
    /// Files by path.
    pub targets: Sorted<Target>,
    #[serde(default)]
    delegations: Option<Delegations>,
}

role!(
    Targets,
    "targets",
    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for role in self.delegations() {
            if !names.insert(&role.name) {
                return Err(format!("it delegates to {:?} twice", role.name));
            }
            if role.paths.is_some() && role.path_hash_prefixes.is_some() {
                return Err(format!("the delegation to {:?} has both paths and path_hash_prefixes", role.name));
            }
        }
        Ok(())
    }
);

impl Targets {
    /// Roles that it delegates to, in order of priority.
    pub fn delegations(&self) -> &[Delegation] {
        self.delegations.as_ref().map(|delegations| &*delegations.roles).unwrap_or_default()
    }

    /// Who signs a role that it delegates to.
    pub fn signers<'a>(&'a self, delegation: &'a Delegation) -> Signers<'a> {
        static NONE: Keys = Sorted::new();
        let keys = self.delegations.as_ref().map_or(&NONE, |delegations| &delegations.keys);
        Signers { keys, keyids: &delegation.keyids, threshold: delegation.threshold }
    }
}

/// A file that a role names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Target {
    /// Its length in bytes.
    pub length: u64,
    /// Its digests.
    pub hashes: Hashes,
}

#[derive(Debug, Clone, Deserialize)]
struct Delegations {
    #[serde(default)]
    keys: Keys,
    #[serde(default)]
    roles: AtMost<Delegation, { limits::MAX_DELEGATIONS }>,
}

/// A delegated role's name: at most 128 bytes, because it is repeated along the ways of a search and becomes a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoleName(Box<str>);

impl std::ops::Deref for RoleName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for RoleName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Box::<str>::deserialize(deserializer)?;
        if name.len() > limits::MAX_ROLE_NAME {
            let most = limits::MAX_ROLE_NAME;
            return Err(D::Error::custom(format!("a role's name is longer than {most} bytes")));
        }
        Ok(Self(name))
    }
}

/// A role that another one delegates to.
#[derive(Debug, Clone, Deserialize)]
pub struct Delegation {
    /// The role's name.
    pub name: RoleName,
    keyids: KeyIds,
    threshold: NonZeroU64,
    /// Whether nothing after it is asked for what it covers.
    #[serde(default)]
    pub terminating: bool,
    #[serde(default)]
    pub(super) paths: Option<Texts>,
    #[serde(default)]
    pub(super) path_hash_prefixes: Option<Texts>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_of_the_major_version_is_understood() {
        for good in ["1", "1.0", "1.0.0", "1.0.34"] {
            assert!(understood(good), "{good}");
        }
        for bad in ["", "2.0.0", "10.0", "1.", "1.0.0.0", "1.x", "v1.0", "0.9", "1.0.0-rc1"] {
            assert!(!understood(bad), "{bad}");
        }
    }

    #[test]
    fn either_digest_counts_and_none_is_no_match() {
        let of = |text: &str| serde_json::from_str::<Hashes>(text).unwrap();
        let digest = |algorithm| hex::encode(ring::digest::digest(algorithm, b"x"));
        let (short, long) = (digest(&ring::digest::SHA256), digest(&ring::digest::SHA512));
        let both = of(&format!(r#"{{"sha256":"{short}","sha512":"{}","md5":"1"}}"#, long.to_uppercase()));
        assert!(both.match_bytes(b"x") && !both.match_bytes(b"y"));
        assert!(of(&format!(r#"{{"sha512":"{long}"}}"#)).match_bytes(b"x"));
        assert!(!of(&format!(r#"{{"sha256":"{short}","sha512":"{}"}}"#, "0".repeat(128))).match_bytes(b"x"));
        assert!(!of(r#"{"unknown":"1"}"#).match_bytes(b"x"));
        assert!(serde_json::from_str::<Hashes>(r#"{"sha256":"00"}"#).is_err());
    }

    /// A lifetime of polls can be spent with comparing 240,000 key ids with 70,000 signatures.
    #[test]
    fn keys_signatures_delegations_and_names_are_bounded() {
        let targets = |keyids: usize, signatures: usize, roles: usize, keys: usize, name: usize| {
            let keyids: Vec<String> = (0..keyids).map(|number| number.to_string()).collect();
            let signatures: Vec<_> =
                (0..signatures).map(|number| serde_json::json!({"keyid": number.to_string(), "sig": ""})).collect();
            let keys: serde_json::Map<_, _> = (0..keys)
                .map(|number| {
                    let key = serde_json::json!({"keytype": "", "scheme": "", "keyval": {}});
                    (number.to_string(), key)
                })
                .collect();
            let roles: Vec<_> = (0..roles)
                .map(|number| {
                    let name = format!("{number:0>name$}");
                    let keyids = if number == 0 { keyids.as_slice() } else { &[] };
                    serde_json::json!({"name": name, "keyids": keyids, "threshold": 1})
                })
                .collect();
            let file = serde_json::json!({
                "signed": {
                    "_type": "targets", "spec_version": "1.0.0", "version": 1, "expires": "2030-01-01T00:00:00Z",
                    "targets": {}, "delegations": {"keys": keys, "roles": roles},
                },
                "signatures": signatures,
            });
            parse::<Targets>("x", file.to_string().as_bytes())
        };
        let parsed = targets(256, 256, 1024, 4096, 128).unwrap();
        assert_eq!((parsed.role.delegations().len(), parsed.signatures.len()), (1024, 256));
        for (keyids, signatures, roles, keys, name) in
            [(257, 1, 1, 1, 1), (1, 257, 1, 1, 1), (1, 1, 1025, 1, 1), (1, 1, 1, 4097, 1), (1, 1, 1, 1, 129)]
        {
            let refused = targets(keyids, signatures, roles, keys, name).unwrap_err();
            let reason = crate::error::in_one_line(&refused);
            assert!(reason.contains("more than") || reason.contains("longer than"), "{reason}");
        }
    }
}
