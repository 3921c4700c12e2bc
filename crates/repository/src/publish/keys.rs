//! Keys of the TUF roles: Ed25519, private half as PKCS#8 PEM, public half as TUF writes it into the root.
//!
//! Whoever sets up or rotates a role needs only public halves; a private half stays with whoever holds the role.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use tough::schema::Signature;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::{Ed25519Key, Ed25519Scheme, Key};

use super::error::PublishError;

/// Key files larger than this are something else.
const MAX_KEY_FILE: u64 = 64 << 10;

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    pub(super) id: Decoded<Hex>,
    pub(super) key: Key,
}

impl PublicKey {
    fn new(key: Key) -> Result<Self, String> {
        let id = key.key_id().map_err(|error| error.to_string())?;
        Ok(Self { id, key })
    }

    fn of_ed25519(public: &[u8]) -> Result<Self, String> {
        let keyval = Ed25519Key { public: public.to_vec().into(), _extra: HashMap::new() };
        Self::new(Key::Ed25519 { keyval, scheme: Ed25519Scheme::Ed25519, _extra: HashMap::new() })
    }

    /// The key id as TUF computes it, in hex.
    pub fn id(&self) -> String {
        hex::encode(&self.id[..])
    }

    /// Reads a public half from a `.pub.json` file, or takes it from a private half.
    ///
    /// # Errors
    /// [`PublishError::Key`] or [`PublishError::File`]
    pub fn read(path: &Path) -> Result<Self, PublishError> {
        let bytes = read_key_file(path)?;
        if bytes.trim_ascii_start().starts_with(b"{") {
            let refuse = |reason: String| PublishError::Key { path: path.to_owned(), reason };
            let key = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
            return Self::new(key).map_err(refuse);
        }
        Ok(SigningKey::read(path)?.public)
    }
}

/// A private key.
pub struct SigningKey {
    public: PublicKey,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public.id()).finish()
    }
}

impl SigningKey {
    /// Reads a PKCS#8 PEM file, as [`generate`] or `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`PublishError::Key`] or [`PublishError::File`]
    pub fn read(path: &Path) -> Result<Self, PublishError> {
        let refuse = |reason: String| PublishError::Key { path: path.to_owned(), reason };
        let pem = read_key_file(path)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| refuse("it is no PKCS#8 private key in PEM".to_owned()))?;
        Self::from_pkcs8(der.secret_pkcs8_der()).map_err(refuse)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|error| format!("it is no Ed25519 key ({error})"))?;
        let public = PublicKey::of_ed25519(pair.public_key().as_ref())?;
        Ok(Self { public, pair })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Signature {
        Signature { keyid: self.public.id.clone(), sig: self.pair.sign(message).as_ref().to_vec().into() }
    }
}

/// Makes a key pair: `<stem>.pem`, readable by its owner only, and `<stem>.pub.json`. Existing files are kept.
///
/// # Errors
/// [`PublishError::File`], also when one of the files is there already.
pub fn generate(stem: &Path) -> Result<PublicKey, PublishError> {
    let random = SystemRandom::new();
    let with = |extension: &str| PathBuf::from(format!("{}.{extension}", stem.display()));
    let (private_path, public_path) = (with("pem"), with("pub.json"));
    let refuse = |reason: String| PublishError::Key { path: private_path.clone(), reason };
    let document =
        Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| refuse("the system gives no random numbers".to_owned()))?;
    let key = SigningKey::from_pkcs8(document.as_ref()).map_err(refuse)?;
    let public = serde_json::to_string_pretty(&key.public.key).map_err(|error| refuse(error.to_string()))?;
    write_new(&private_path, 0o600, pem(document.as_ref()).as_bytes())?;
    write_new(&public_path, 0o644, format!("{public}\n").as_bytes())?;
    Ok(key.public)
}

fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN PRIVATE KEY-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // RFC 7468, 2: lines of 64 characters. Base64 is ASCII, so any index is a character's border.
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), PublishError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(PublishError::file("write", path))
}

fn read_key_file(path: &Path) -> Result<Vec<u8>, PublishError> {
    use std::io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_KEY_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(PublishError::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_reads_back_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let stem = folder.path().join("root-1");
        let public = generate(&stem).unwrap();
        let private = folder.path().join("root-1.pem");
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*SigningKey::read(&private).unwrap().public(), public);
        assert_eq!(PublicKey::read(&folder.path().join("root-1.pub.json")).unwrap(), public);
        assert_eq!(PublicKey::read(&private).unwrap(), public);
        assert!(matches!(generate(&stem), Err(PublishError::File { .. })), "an existing key is never overwritten");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        for text in ["", "{}", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "{\"keytype\":\"x\"}"]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(PublicKey::read(&path), Err(PublishError::Key { .. })), "{text}");
        }
    }
}
