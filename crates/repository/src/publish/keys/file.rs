//! Keys in files.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use tempfile::NamedTempFile;

use super::{PublicKey, Signer, SigningKey, name_of};
use crate::publish::error::PublishError;

/// Key files larger than this are something else.
const MAX_KEY_FILE: u64 = 64 << 10;
/// DER before the key itself: RFC 8410, 4 (Ed25519), and RFC 5480, 2 (an uncompressed point on P-256).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE,
    0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The algorithms of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Ed25519 (RFC 8032): the same message always gives the same signature.
    #[default]
    Ed25519,
    /// ECDSA over P-256 with SHA-256: what tokens and key services have where they have no Ed25519.
    EcdsaP256,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair, SystemRandom),
}

impl Signer for Pair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PublishError> {
        match self {
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::P256(pair, random) => match pair.sign(random, message) {
                Ok(signature) => Ok(signature.as_ref().to_vec()),
                Err(_) => {
                    let reason = "the system gives no random numbers".to_owned();
                    Err(PublishError::Signer { signer: "the key file".to_owned(), reason })
                }
            },
        }
    }
}

impl Pair {
    fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        let refused = match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            Ok(pair) => return Ok(Self::Ed25519(pair)),
            Err(refused) => refused,
        };
        let random = SystemRandom::new();
        match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random) {
            Ok(pair) => Ok(Self::P256(pair, random)),
            Err(other) => Err(format!("it is neither an Ed25519 key ({refused}) nor one of ECDSA P-256 ({other})")),
        }
    }

    fn public(&self, name: Option<String>) -> Result<PublicKey, String> {
        match self {
            Self::Ed25519(pair) => PublicKey::of_ed25519(pair.public_key().as_ref(), name),
            Self::P256(pair, _) => PublicKey::of_p256(pair.public_key().as_ref(), name),
        }
    }
}

pub(super) fn read_private(path: &Path) -> Result<SigningKey, PublishError> {
    let refuse = |reason: String| PublishError::Key { path: path.to_owned(), reason };
    let pem = read(path)?;
    if pem.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    if pem.starts_with(b"-----BEGIN PUBLIC KEY") || pem.trim_ascii_start().starts_with(b"{") {
        return Err(refuse("it is a public half; signing needs the private one (.pem)".to_owned()));
    }
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
        .map_err(|_| refuse("it is no PKCS#8 private key in PEM".to_owned()))?;
    let pair = Pair::from_pkcs8(der.secret_pkcs8_der()).map_err(refuse)?;
    let public = pair.public(name_of(path)).map_err(refuse)?;
    Ok(SigningKey::new(public, path.display().to_string(), Box::new(pair)))
}

/// A public key in PEM, as key services and `openssl pkey -pubout` give it.
pub(super) fn public_pem(pem: &[u8], name: Option<String>) -> Result<PublicKey, String> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "it is no public key in PEM".to_owned())?;
    public_der(&der, name)
}

pub(super) fn public_der(der: &[u8], name: Option<String>) -> Result<PublicKey, String> {
    match (der.strip_prefix(&ED25519_PREFIX), der.strip_prefix(&P256_PREFIX)) {
        (Some(key), _) if key.len() == 32 => PublicKey::of_ed25519(key, name),
        (_, Some(point)) if point.len() == 65 => PublicKey::of_p256(point, name),
        _ => Err("it is no public key of Ed25519 or ECDSA P-256".to_owned()),
    }
}

/// Makes an Ed25519 key pair: `<stem>.pem`, readable by its owner only, and `<stem>.pub.json`. Existing files are kept.
///
/// # Errors
/// As [`generate_with`].
pub fn generate(stem: &Path) -> Result<PublicKey, PublishError> {
    generate_with(Algorithm::Ed25519, stem)
}

/// Makes a key pair of an algorithm, as [`generate`] does. Whatever goes wrong, no half of a pair is left behind.
///
/// # Errors
/// [`PublishError::File`], also when one of the files is there already.
pub fn generate_with(algorithm: Algorithm, stem: &Path) -> Result<PublicKey, PublishError> {
    let random = SystemRandom::new();
    let with = |extension: &str| PathBuf::from(format!("{}.{extension}", stem.display()));
    let (private_path, public_path) = (with("pem"), with("pub.json"));
    let refuse = |reason: String| PublishError::Key { path: private_path.clone(), reason };
    let document = match algorithm {
        Algorithm::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        Algorithm::EcdsaP256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
    };
    let document = document.map_err(|_| refuse("the system gives no random numbers".to_owned()))?;
    let pair = Pair::from_pkcs8(document.as_ref()).map_err(refuse)?;
    let public = pair.public(name_of(&private_path)).map_err(refuse)?;
    // Both halves are whole on the disk before either has its name.
    let private_file = prepare(&private_path, 0o600, pem(document.as_ref()).as_bytes())?;
    let public_file = prepare(&public_path, 0o644, public.to_json()?.as_bytes())?;
    put(private_file, &private_path)?;
    if let Err(error) = put(public_file, &public_path) {
        // Ours, and of no use alone: it would only be in the way of the next attempt.
        let _ = std::fs::remove_file(&private_path);
        return Err(error);
    }
    Ok(public)
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

/// A whole file that has no name of its own yet, and goes away if it never gets one.
fn prepare(path: &Path, mode: u32, bytes: &[u8]) -> Result<NamedTempFile, PublishError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        // A temporary file is for its owner only until it has its mode.
        let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(PublishError::file("write", path))
}

fn put(file: NamedTempFile, path: &Path) -> Result<(), PublishError> {
    let put = || -> io::Result<()> {
        file.persist_noclobber(path).map_err(|error| error.error)?;
        Ok(())
    };
    put().map_err(PublishError::file("write", path))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, PublishError> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_KEY_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(PublishError::file("read", path))
}
