//! One Authenticode signature: PKCS#7 SignedData around the digest of the image (Microsoft, "Windows Authenticode Portable
//! Executable Signature Format"; RFC 5652).

use cms::cert::CertificateChoices;
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Any, Decode as _, Encode as _, Sequence};
use ring::digest::{self, Algorithm};
use x509_cert::ext::pkix::SubjectKeyIdentifier;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::certificate::{Certificate, hash, verify};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const SPC_INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");

/// Why a signature is none that firmware would take, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is no Authenticode signature.
    #[error("it is no Authenticode signature: {0}")]
    Form(String),
    /// Hashes or keys of a kind that firmware does not have in common.
    #[error("it uses {0}, which is not SHA-256, SHA-384 or SHA-512 with RSA")]
    Algorithm(String),
    /// The certificate of its signer is not in it.
    #[error("the certificate of its signer is missing")]
    NoSigner,
    /// The signature does not match its own content.
    #[error("it does not match its own content")]
    Wrong,
    /// It signs other bytes: the image was changed after it was signed.
    #[error("it signs another image: this one was changed after it was signed")]
    OtherImage,
}

#[derive(Sequence)]
struct SpcIndirectData {
    #[allow(dead_code, reason = "it says that the image is a PE file, which is known")]
    data: Any,
    message_digest: DigestInfo,
}

#[derive(Sequence)]
struct DigestInfo {
    algorithm: AlgorithmIdentifierOwned,
    digest: OctetString,
}

/// A signature whose parts were found.
pub(crate) struct Signature {
    info: SignerInfo,
    /// Content octets of SpcIndirectData, which is what is hashed.
    content: Vec<u8>,
    image_digest: Vec<u8>,
    image_hash: &'static Algorithm,
    pub(crate) signer: Certificate,
    pub(crate) certificates: Vec<Certificate>,
}

impl Signature {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let form = |error: der::Error| SignatureError::Form(error.to_string());
        let other = |what: &str| SignatureError::Form(what.to_owned());
        // Padding follows.
        let mut reader = der::SliceReader::new(bytes).map_err(form)?;
        let outer = ContentInfo::decode(&mut reader).map_err(form)?;
        if outer.content_type != SIGNED_DATA {
            return Err(other("it is no SignedData"));
        }
        let signed: SignedData = outer.content.decode_as().map_err(form)?;
        if signed.encap_content_info.econtent_type != SPC_INDIRECT_DATA {
            return Err(other("it signs no image"));
        }
        let content = signed.encap_content_info.econtent.ok_or_else(|| other("it is empty"))?;
        let indirect: SpcIndirectData = content.decode_as().map_err(form)?;
        let algorithm = &indirect.message_digest.algorithm;
        let image_hash = hash(algorithm).ok_or_else(|| SignatureError::Algorithm(algorithm.oid.to_string()))?;
        let certificates = signed.certificates.map(|set| set.0.into_vec()).unwrap_or_default();
        let certificates: Vec<Certificate> = certificates
            .into_iter()
            .filter_map(|choice| match choice {
                CertificateChoices::Certificate(certificate) => Some(certificate.into()),
                CertificateChoices::Other(_) => None,
            })
            .collect();
        let mut infos = signed.signer_infos.0.into_vec().into_iter();
        let (Some(info), None) = (infos.next(), infos.next()) else {
            return Err(other("it has not exactly one signer"));
        };
        let signer = certificates.iter().find(|certificate| is_of(certificate, &info.sid)).cloned();
        Ok(Self {
            info,
            content: content.value().to_vec(),
            image_digest: indirect.message_digest.digest.as_bytes().to_vec(),
            image_hash,
            signer: signer.ok_or(SignatureError::NoSigner)?,
            certificates,
        })
    }

    /// Which hash of the image it signs.
    pub(crate) fn image_hash(&self) -> &'static Algorithm {
        self.image_hash
    }

    /// Whether the signer signed an image with this digest. Says nothing about whether the signer is to be trusted.
    pub(crate) fn check(&self, image_digest: &[u8]) -> Result<(), SignatureError> {
        let unknown = || SignatureError::Algorithm(self.info.digest_alg.oid.to_string());
        let hash = hash(&self.info.digest_alg).ok_or_else(unknown)?;
        let message = match &self.info.signed_attrs {
            Some(attributes) => {
                let stated = attributes.iter().find(|attribute| attribute.oid == MESSAGE_DIGEST);
                let stated = stated.and_then(|attribute| attribute.values.get(0));
                let stated =
                    stated.and_then(|value| value.decode_as::<OctetString>().ok()).ok_or(SignatureError::Wrong)?;
                if stated.as_bytes() != digest::digest(hash, &self.content).as_ref() {
                    return Err(SignatureError::Wrong);
                }
                // RFC 5652, 5.4: as a SET, not with the tag that stands in the message.
                attributes.to_der().map_err(|error| SignatureError::Form(error.to_string()))?
            }
            None => self.content.clone(),
        };
        if !verify(self.signer.key(), hash, &message, self.info.signature.as_bytes()) {
            return Err(SignatureError::Wrong);
        }
        if self.image_digest == image_digest { Ok(()) } else { Err(SignatureError::OtherImage) }
    }
}

fn is_of(certificate: &Certificate, signer: &SignerIdentifier) -> bool {
    let signed = &certificate.x509().tbs_certificate;
    match signer {
        SignerIdentifier::IssuerAndSerialNumber(named) => {
            signed.issuer == named.issuer && signed.serial_number == named.serial_number
        }
        SignerIdentifier::SubjectKeyIdentifier(named) => {
            matches!(signed.get::<SubjectKeyIdentifier>(), Ok(Some((_, own))) if own == *named)
        }
    }
}
