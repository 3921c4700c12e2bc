//! Keys of the TUF roles: Ed25519 or ECDSA P-256. The public half is what TUF writes into the root; the private half is a
//! file (PKCS#8 PEM), or stays where it is and is reached through a program or a token.
//!
//! Whoever sets up or rotates a role needs only public halves; a private half stays with whoever holds the role.

mod file;
mod program;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
use serde_json::Value;
use tough::schema::Signature;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::{EcdsaKey, EcdsaScheme, Ed25519Key, Ed25519Scheme, Key};

pub use file::{Algorithm, generate, generate_with};

use super::error::PublishError;
use super::pending::NamedKey;

/// The member of root and targets in which our publisher says what people call their keys. Signed like everything else in
/// there; no reader decides anything by it.
const KEY_NAMES: &str = "x-bascule-key-names";
/// Longest name of a key in bytes; more is cut.
const MAX_NAME: usize = 64;

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    pub(super) id: Decoded<Hex>,
    pub(super) key: Key,
    /// What its owner calls it: the name of its file.
    name: Option<String>,
}

impl PublicKey {
    fn new(key: Key, name: Option<String>) -> Result<Self, String> {
        let id = key.key_id().map_err(|error| error.to_string())?;
        Ok(Self { id, key, name })
    }

    fn of_ed25519(public: &[u8], name: Option<String>) -> Result<Self, String> {
        let keyval = Ed25519Key { public: public.to_vec().into(), _extra: HashMap::new() };
        Self::new(Key::Ed25519 { keyval, scheme: Ed25519Scheme::Ed25519, _extra: HashMap::new() }, name)
    }

    /// `point`: uncompressed, 65 bytes (SEC 1, 2.3.3).
    fn of_p256(point: &[u8], name: Option<String>) -> Result<Self, String> {
        let keyval = EcdsaKey { public: point.to_vec().into(), _extra: HashMap::new() };
        Self::new(Key::Ecdsa { keyval, scheme: EcdsaScheme::EcdsaSha2Nistp256, _extra: HashMap::new() }, name)
    }

    pub(super) fn named(named: &NamedKey) -> Result<Self, PublishError> {
        Self::new(named.key.clone(), named.name.clone()).map_err(|reason| PublishError::broken("key", reason))
    }

    pub(super) fn to_named(&self) -> NamedKey {
        NamedKey { name: self.name.clone(), key: self.key.clone() }
    }

    /// The key id as TUF computes it, in hex.
    pub fn id(&self) -> String {
        hex::encode(&self.id[..])
    }

    /// What its owner calls it: the name of the file that it was read from.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Reads a public half from a `.pub.json` file or a PEM of a public key, or takes it from a private half.
    ///
    /// # Errors
    /// [`PublishError::Key`] or [`PublishError::File`]
    pub fn read(path: &Path) -> Result<Self, PublishError> {
        let bytes = file::read(path)?;
        let refuse = |reason: String| PublishError::Key { path: path.to_owned(), reason };
        if bytes.trim_ascii_start().starts_with(b"{") {
            let key = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
            let known = matches!(key, Key::Ed25519 { .. } | Key::Ecdsa { .. });
            if !known {
                return Err(refuse("only Ed25519 and ECDSA P-256 are supported".to_owned()));
            }
            return Self::new(key, name_of(path)).map_err(refuse);
        }
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN PUBLIC KEY") {
            return file::public_pem(&bytes, name_of(path)).map_err(refuse);
        }
        Ok(SigningKey::read(path)?.public)
    }

    /// The public half as TUF writes it: what a `.pub.json` file holds.
    ///
    /// # Errors
    /// [`PublishError::Broken`], never for a key that was read.
    pub fn to_json(&self) -> Result<String, PublishError> {
        let text = serde_json::to_string_pretty(&self.key).map_err(|error| PublishError::broken("key", error))?;
        Ok(text + "\n")
    }

    /// Whether this key made that signature.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::Ed25519 { keyval, .. } => {
                UnparsedPublicKey::new(&ED25519, &keyval.public[..]).verify(message, signature).is_ok()
            }
            Key::Ecdsa { keyval, .. } => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &keyval.public[..]).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// What makes signatures. It is asked once for each document, before anything is published.
trait Signer: Send + Sync {
    /// Signs a message; the caller checks the result.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PublishError>;
}

/// A private key: a file, or a way to whoever keeps it.
pub struct SigningKey {
    public: PublicKey,
    /// How the one who gave it calls it, for messages.
    origin: String,
    signer: Box<dyn Signer>,
    used: AtomicBool,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.public.id())
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    fn new(public: PublicKey, origin: String, signer: Box<dyn Signer>) -> Self {
        Self { public, origin, signer, used: AtomicBool::new(false) }
    }

    /// Reads a PKCS#8 PEM file, as [`generate`] or `openssl genpkey` (Ed25519, or EC with P-256) writes it.
    ///
    /// # Errors
    /// [`PublishError::Key`] or [`PublishError::File`]
    pub fn read(path: &Path) -> Result<Self, PublishError> {
        file::read_private(path)
    }

    /// A key whose private half another program keeps: a cloud's key service, a hardware token, a person far away. Each
    /// time the program is started with the bytes to sign on its standard input and writes the signature to its standard
    /// output, raw or in base64 (Ed25519: 64 bytes; ECDSA: DER).
    ///
    /// # Errors
    /// [`PublishError::Key`] when the command is empty.
    pub fn program(public: PublicKey, command: &str) -> Result<Self, PublishError> {
        program::open(public, command)
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// How the one who gave it calls it.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether it has signed anything yet.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Signature, PublishError> {
        let signature = self.signer.sign(message)?;
        if !self.public.verifies(message, &signature) {
            let reason = format!("what it gave is no signature of key {}", self.public.id());
            return Err(PublishError::Signer { signer: self.origin.clone(), reason });
        }
        self.used.store(true, Ordering::Relaxed);
        Ok(Signature { keyid: self.public.id.clone(), sig: signature.into() })
    }
}

/// `keys/root-1.pub.json` and `keys/root-1.pem` are both called `root-1`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = [".pub.json", ".pem", ".json"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let plain: String = stem.chars().filter(|letter| !letter.is_control()).take(MAX_NAME).collect();
    (!plain.is_empty()).then_some(plain)
}

/// What people call the keys of a signed role, by key id.
pub(super) fn names_in(extra: &HashMap<String, Value>) -> BTreeMap<String, String> {
    let names = extra.get(KEY_NAMES).and_then(Value::as_object);
    let name = |(id, name): (&String, &Value)| {
        let plain: String = name.as_str()?.chars().filter(|letter| !letter.is_control()).take(MAX_NAME).collect();
        Some((id.clone(), plain))
    };
    names.into_iter().flatten().filter_map(name).collect()
}

/// Notes the names of keys in a role, and forgets those of keys that are in use no more.
pub(super) fn note_names<'a>(
    extra: &mut HashMap<String, Value>,
    keys: impl Iterator<Item = &'a PublicKey>,
    used: &[Decoded<Hex>],
) {
    let mut names = names_in(extra);
    names.extend(keys.filter_map(|key| Some((key.id(), key.name.clone()?))));
    names.retain(|id, _| used.iter().any(|used| hex::encode(&used[..]) == *id));
    extra.remove(KEY_NAMES);
    if !names.is_empty() {
        let names = names.into_iter().map(|(id, name)| (id, Value::String(name))).collect();
        extra.insert(KEY_NAMES.to_owned(), Value::Object(names));
    }
}

/// A key as people see it: its name, where it has one, and the beginning of its id.
pub(super) fn shown(id: &[u8], names: &BTreeMap<String, String>) -> String {
    let id = hex::encode(id);
    let short = id.get(..8).unwrap_or(&id);
    match names.get(&id) {
        Some(name) => format!("{name} ({short})"),
        None => short.to_owned(),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
