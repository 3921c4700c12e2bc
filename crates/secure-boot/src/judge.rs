//! The verdict, in the firmware's own order (UEFI 2.10, section 32.5.3.3; EDK2, `DxeImageVerificationHandler`): what `dbx`
//! names is refused whatever else holds; of the rest one signature by a certificate of `db`, or the hash in `db`, is enough.

use bascule_image::io::ReadAt;
use ring::digest::{self, Algorithm};

use crate::certificate::Certificate;
use crate::image::{ImageError, SignedImage};
use crate::list::SignatureList;
use crate::signature::{Signature, SignatureError};

/// What a firmware judges by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Databases {
    /// `db`, and `MokListRT` where shim runs.
    pub allowed: SignatureList,
    /// `dbx`, and `MokListXRT` where shim runs.
    pub forbidden: SignatureList,
}

/// Why the firmware would start an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// A signature leads to this certificate of `db`: its subject.
    Certificate(String),
    /// `db` lists its hash.
    Hash,
}

/// Why the firmware would not start an image, or why that can't be told.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The image can't be read or is none.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no signature, and the hash is not listed.
    #[error(
        "it is not signed, and this machine's db does not list its hash: sign it with a key whose certificate is in db"
    )]
    Unsigned,
    /// `dbx` lists its hash.
    #[error("this machine's dbx revokes its hash: publish a release whose boot image is not revoked")]
    HashRevoked,
    /// A certificate on the way from the signer is in `dbx`.
    #[error("this machine's dbx revokes '{certificate}', which signed it: sign it with another key")]
    CertificateRevoked {
        /// The subject.
        certificate: String,
    },
    /// Well signed, by nobody that `db` knows.
    #[error(
        "it is signed by '{signers}', and no certificate in this machine's db vouches for that: sign it with another \
             key, or enrol this one"
    )]
    Unknown {
        /// The subjects of the signers.
        signers: String,
    },
    /// No signature holds.
    #[error("its signature does not hold")]
    Signature(#[source] SignatureError),
}

impl Refusal {
    /// Whether it was the reading that failed: then nothing is known about the image.
    pub const fn is_unreadable(&self) -> bool {
        matches!(self, Self::Image(ImageError::Unreadable { .. }))
    }
}

const HASHES: [&Algorithm; 3] = [&digest::SHA256, &digest::SHA384, &digest::SHA512];

/// Judges an image by a firmware's databases.
///
/// # Errors
/// [`Refusal`].
pub fn judge(file: &dyn ReadAt, databases: &Databases) -> Result<Acceptance, Refusal> {
    let image = SignedImage::open(file)?;
    let digest = image.digest(&digest::SHA256)?;
    // Other hashes of the whole image only where somebody asks for one.
    let listed = |list: &SignatureList| -> Result<bool, ImageError> {
        for algorithm in HASHES {
            let mut wanted = list.image_hashes.iter().filter(|hash| hash.len() == algorithm.output_len()).peekable();
            if wanted.peek().is_none() {
                continue;
            }
            let own = if algorithm == &digest::SHA256 { digest.clone() } else { image.digest(algorithm)? };
            if wanted.any(|hash| *hash == own) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if listed(&databases.forbidden)? {
        return Err(Refusal::HashRevoked);
    }
    let mut accepted = None;
    let mut unknown = Vec::new();
    let mut broken = None;
    for bytes in image.signatures() {
        let signature = match Signature::parse(bytes) {
            Ok(signature) => signature,
            Err(error) => {
                broken = Some(error);
                continue;
            }
        };
        let hash = signature.image_hash();
        let own = if hash == &digest::SHA256 { digest.clone() } else { image.digest(hash)? };
        if let Err(error) = signature.check(&own) {
            broken = Some(error);
            continue;
        }
        if let Some(certificate) = revoked(&signature, &databases.forbidden) {
            return Err(Refusal::CertificateRevoked { certificate });
        }
        match vouched(&signature, databases) {
            Some(Ok(anchor)) => accepted = accepted.or(Some(anchor)),
            Some(Err(certificate)) => return Err(Refusal::CertificateRevoked { certificate }),
            None => unknown.push(signature.signer.name()),
        }
    }
    if let Some(anchor) = accepted {
        return Ok(Acceptance::Certificate(anchor));
    }
    if listed(&databases.allowed)? {
        return Ok(Acceptance::Hash);
    }
    match (unknown.is_empty(), broken) {
        (false, _) => Err(Refusal::Unknown { signers: unknown.join("', '") }),
        (true, Some(error)) => Err(Refusal::Signature(error)),
        (true, None) => Err(Refusal::Unsigned),
    }
}

/// The certificate that `dbx` revokes, if any on the way from the signer is one: listed itself, by the hash of its signed
/// part, or issued by one that is listed.
fn revoked(signature: &Signature, forbidden: &SignatureList) -> Option<String> {
    for bytes in &forbidden.certificates {
        let Some(listed) = Certificate::parse(bytes) else { continue };
        if signature.signer.chain_to(&listed, &signature.certificates).is_some() {
            return Some(listed.name());
        }
    }
    // The whole way within the signature.
    let mut way = vec![&signature.signer];
    while let Some(next) = way
        .last()
        .and_then(|last| signature.certificates.iter().find(|other| !way.contains(other) && last.is_issued_by(other)))
    {
        way.push(next);
    }
    way.into_iter().find(|certificate| hash_listed(certificate, forbidden)).map(Certificate::name)
}

fn hash_listed(certificate: &Certificate, list: &SignatureList) -> bool {
    HASHES.iter().any(|algorithm| {
        let mut wanted = list.certificate_hashes.iter().filter(|hash| hash.len() == algorithm.output_len()).peekable();
        wanted.peek().is_some() && certificate.hash(algorithm).is_some_and(|own| wanted.any(|hash| *hash == own))
    })
}

/// The certificate of `db` that vouches for the signer, or, as an error, the one on that way that `dbx` lists by hash.
fn vouched(signature: &Signature, databases: &Databases) -> Option<Result<String, String>> {
    for bytes in &databases.allowed.certificates {
        let Some(anchor) = Certificate::parse(bytes) else { continue };
        let Some(chain) = signature.signer.chain_to(&anchor, &signature.certificates) else { continue };
        let revoked = chain.into_iter().find(|certificate| hash_listed(certificate, &databases.forbidden));
        return Some(match revoked {
            Some(certificate) => Err(certificate.name()),
            None => Ok(anchor.name()),
        });
    }
    None
}
