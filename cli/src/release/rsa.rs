//! RSA keys of a vendor that no role of a repository has: in a file, or behind a program that keeps them. Signatures are PKCS#1 1.5
//! with SHA-256, whose same input gives the same bytes.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use bascule_release::read_bounded;
use ring::rand::SystemRandom;
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

/// Keys and certificates longer than this are something else.
pub(super) const MAX_PEM: u64 = 256 << 10;
/// Longest signature: RSA with 8,192 bits, in base64 with room.
const MAX_SIGNATURE: u64 = 4096;

/// A private key, or the way to one.
pub(super) enum RsaKey {
    /// Read from a file.
    File(Box<RsaKeyPair>),
    /// A program with its arguments.
    Program(String),
}

impl RsaKey {
    /// Reads a key file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = read_bounded(path, MAX_PEM)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| anyhow::anyhow!("{} is no PKCS#8 private key in PEM", path.display()))?;
        let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|error| anyhow::anyhow!("{} is no RSA key of 2048 to 4096 bits ({error})", path.display()))?;
        Ok(Self::File(Box::new(pair)))
    }

    /// Its public part as RSAPublicKey in DER, where it is known.
    pub(super) fn public(&self) -> Option<&[u8]> {
        match self {
            Self::File(pair) => Some(pair.public_key().as_ref()),
            Self::Program(_) => None,
        }
    }

    /// Signs, and sees that the signature is by that public key, which is called `name`.
    pub(super) fn sign(&self, message: &[u8], public: &[u8], name: &str) -> anyhow::Result<Vec<u8>> {
        let signature = match self {
            Self::File(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| anyhow::anyhow!("the key does not sign"))?;
                signature
            }
            Self::Program(program) => run(program, message)?,
        };
        ensure!(verifies(public, message, &signature), "what was signed does not verify with {name}");
        Ok(signature)
    }
}

/// Whether a signature is right.
pub(super) fn verifies(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public).verify(message, signature).is_ok()
}

fn run(program: &str, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut words = program.split_whitespace();
    let name = words.next().context("no program that signs is named")?;
    let mut child = Command::new(name)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {name}"))?;
    // A few hundred bytes: they fit a pipe whether they are read or not.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(message);
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_SIGNATURE).read_to_end(&mut output).with_context(|| format!("can't read from {name}"))?;
    }
    let status = child.wait().with_context(|| format!("can't wait for {name}"))?;
    ensure!(status.success(), "{name} gave no signature: {status}");
    use base64::Engine as _;
    let text = output.trim_ascii();
    let decoded = text.is_ascii().then(|| base64::engine::general_purpose::STANDARD.decode(text).ok()).flatten();
    Ok(decoded.unwrap_or(output))
}
