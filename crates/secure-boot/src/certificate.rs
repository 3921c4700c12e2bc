//! X.509 certificates as far as firmware looks at them: names, keys and signatures. No time, no purposes: a machine without
//! a clock must boot.

use der::asn1::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use ring::digest::{self, Algorithm};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_cert::Certificate as X509;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ID_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const ID_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const ID_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

/// The hash that an algorithm identifier names.
pub(crate) fn hash(algorithm: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    match algorithm.oid {
        ID_SHA256 | RSA_SHA256 => Some(&digest::SHA256),
        ID_SHA384 | RSA_SHA384 => Some(&digest::SHA384),
        ID_SHA512 | RSA_SHA512 => Some(&digest::SHA512),
        _ => None,
    }
}

/// Whether `signature` over `message` is right: RSA (PKCS#1 v1.5) from 2048 bits on, which is what firmware has in common.
pub(crate) fn verify(
    key: &SubjectPublicKeyInfoOwned,
    hash: &'static Algorithm,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let algorithm: &dyn VerificationAlgorithm = if hash == &digest::SHA256 {
        &signature::RSA_PKCS1_2048_8192_SHA256
    } else if hash == &digest::SHA384 {
        &signature::RSA_PKCS1_2048_8192_SHA384
    } else {
        &signature::RSA_PKCS1_2048_8192_SHA512
    };
    let Some(bits) = key.subject_public_key.as_bytes().filter(|_| key.algorithm.oid == RSA) else { return false };
    UnparsedPublicKey::new(algorithm, bits).verify(message, signature).is_ok()
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate(X509);

impl From<X509> for Certificate {
    fn from(certificate: X509) -> Self {
        Self(certificate)
    }
}

impl Certificate {
    /// `None` where it is no certificate; padding behind it is passed over, as firmware does.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let mut reader = der::SliceReader::new(der).ok()?;
        X509::decode(&mut reader).ok().map(Self)
    }

    pub(crate) fn x509(&self) -> &X509 {
        &self.0
    }

    /// Its subject, for messages.
    pub(crate) fn name(&self) -> String {
        self.0.tbs_certificate.subject.to_string().chars().take(160).collect()
    }

    pub(crate) fn key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.0.tbs_certificate.subject_public_key_info
    }

    /// Hash of the part that is signed: what `dbx` lists of a certificate.
    pub(crate) fn hash(&self, algorithm: &'static Algorithm) -> Option<Vec<u8>> {
        let signed = self.0.tbs_certificate.to_der().ok()?;
        Some(digest::digest(algorithm, &signed).as_ref().to_vec())
    }

    /// Whether `issuer` signed this one and may sign certificates.
    pub(crate) fn is_issued_by(&self, issuer: &Certificate) -> bool {
        let (mine, theirs) = (&self.0.tbs_certificate, &issuer.0.tbs_certificate);
        let Some(hash) = hash(&self.0.signature_algorithm) else { return false };
        let (Some(signature), Ok(signed)) = (self.0.signature.as_bytes(), mine.to_der()) else { return false };
        mine.issuer == theirs.subject && issuer.may_sign() && verify(issuer.key(), hash, &signed, signature)
    }

    /// RFC 5280, 4.2.1.9; a certificate of version 1 has no extensions to say it.
    fn may_sign(&self) -> bool {
        let signed = &self.0.tbs_certificate;
        if let Ok(Some((_, constraints))) = signed.get::<BasicConstraints>() {
            return constraints.ca;
        }
        match signed.get::<KeyUsage>() {
            Ok(Some((_, usage))) => usage.0.contains(KeyUsages::KeyCertSign),
            _ => signed.version == x509_cert::Version::V1,
        }
    }

    /// The way from this certificate over `others` to `anchor`, both included. Longer ways than eight are not looked for.
    pub(crate) fn chain_to<'a>(
        &'a self,
        anchor: &'a Certificate,
        others: &'a [Certificate],
    ) -> Option<Vec<&'a Certificate>> {
        let mut chain = vec![self];
        while chain.len() <= 8 {
            let last = *chain.last()?;
            if last == anchor {
                return Some(chain);
            }
            if last.is_issued_by(anchor) {
                chain.push(anchor);
                return Some(chain);
            }
            let next = others.iter().find(|other| !chain.contains(other) && last.is_issued_by(other))?;
            chain.push(next);
        }
        None
    }
}
