//! Signed policies for a TPM: what the vendor's key says of the values that PCR 11 may have, in the form in which systemd's stub hands
//! it to the system (`.pcrsig`; systemd-measure(1), `sign`). A secret that is bound to the key opens under each release that the
//! key signed, and under nothing else.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use bascule_image::Sha256;
use bascule_image::uki::{Pcr11, PhasePath};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The bank of which something is said, as systemd names it.
pub const BANK: &str = "sha256";
/// The register in which systemd's stub measures the parts of a boot image.
pub const REGISTER: u32 = 11;

/// What signs: gets bytes, gives an RSA PKCS#1 1.5 signature with SHA-256 over them.
pub type Sign<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> + 'a;

/// How the policies of a boot image are signed.
#[derive(Clone, Copy)]
pub struct PcrPolicy<'a> {
    /// The public key in PEM, as it goes into `.pcrpkey`.
    pub public_key_pem: &'a [u8],
    /// The same key as RSAPublicKey in DER (RFC 8017, A.1.1).
    pub public_key: &'a [u8],
    /// After which phases of the boot a secret opens.
    pub phases: &'a [PhasePath],
    /// What signs.
    pub sign: &'a Sign<'a>,
}

impl fmt::Debug for PcrPolicy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcrPolicy").field("phases", &self.phases).finish_non_exhaustive()
    }
}

impl PcrPolicy<'_> {
    /// What goes into `.pcrsig`.
    ///
    /// # Errors
    /// What signs gives no signature.
    pub fn signed(&self, pcr11: &Pcr11) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
        let pkfp = fingerprint(self.public_key);
        let mut entries: Vec<SignedPolicy> = Vec::new();
        for path in self.phases {
            let policy = pcr11.policy(path);
            let pol = policy.to_string();
            if entries.iter().any(|entry| entry.pol == pol) {
                continue;
            }
            let sig = STANDARD.encode((self.sign)(policy.as_bytes())?);
            entries.push(SignedPolicy { pcrs: vec![REGISTER], pkfp: pkfp.clone(), pol, sig });
        }
        Ok(serde_json::to_vec(&SignedPolicies(BTreeMap::from([(BANK.to_owned(), entries)])))?)
    }
}

/// How a key is named beside what it signed: SHA-256 of its RSAPublicKey in DER, in hex.
#[must_use]
pub fn fingerprint(public_key: &[u8]) -> String {
    Sha256::of(public_key).to_string()
}

/// What `.pcrsig` holds: lists of signed policies, by bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedPolicies(pub BTreeMap<String, Vec<SignedPolicy>>);

/// One signed policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    /// The registers that it is about.
    pub pcrs: Vec<u32>,
    /// Which key signed: see [`fingerprint`].
    pub pkfp: String,
    /// The policy's digest, in hex.
    pub pol: String,
    /// The signature over the digest's bytes, in base64.
    pub sig: String,
}

impl SignedPolicy {
    /// The bytes that are signed, and the signature over them; `None` where one is not written as it should be.
    #[must_use]
    pub fn bytes(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((hex::decode(&self.pol).ok()?, STANDARD.decode(&self.sig).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_image::uki::{Parts, Uki, build};

    /// A public key of RSA with 2,048 bits as RSAPublicKey in DER, and how systemd-measure 257.13 names it.
    const KEY: &str = "3082010a0282010100a894869c3b1076c14dd2be5f6cdd970d75a5e9773be26a62506b6654a2201ded344653b92b485145\
        c1e3e60e0c57cdce5744b770295ef837d39c331c1310ed3734157fabd1babaff611fc05d91ed0b4dd8a139929cc7204944f0b87297c9db1b2e\
        dab404c7ec1fbecba87eb7964dc714d3e165ac27e29158562ab0823975c3a9219e7ddd4b6c85b9aca41353fbbc499941cd08aa8b1cf6268358\
        b325af309cef44d7d76c590a0730b031ba8d2ff9758fdfd7e9f21dba4970f311ac29cf1da428a63b8398bac1dc626abb5fbc4603a64300ad18\
        a608d3810d4417f982d0725c7ff24ed604cce6526a688e88d84a734dd13888649f3f98fd96187c53bc97392c2d0203010001";
    const NAME: &str = "b0df3077694d9d09905b2be34e868f455a0dfa3c45e89a9464dac3b8b8e6fd7f";

    #[test]
    fn a_key_has_the_name_that_systemd_gives_it() {
        assert_eq!(fingerprint(&hex::decode(KEY).unwrap()), NAME);
    }

    #[test]
    fn each_policy_is_signed_once_and_read_back() {
        // Debian package systemd-boot-efi, saying that it is of a version whose measurements are known.
        let mut stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("install systemd-boot-efi");
        let start = b"#### LoaderInfo: systemd-stub ";
        let at = stub.windows(start.len()).position(|text| text == start).unwrap() + start.len();
        stub[at..at + 3].copy_from_slice(b"257");
        let parts = Parts {
            stub: &stub,
            kernel: b"the kernel",
            initrd: &[],
            command_line: "quiet",
            os_release: "ID=x\n",
            kernel_release: None,
            pcr_public_key: b"key",
            pcr_signature: &[],
        };
        let uki = build(&parts).unwrap();
        let pcr11 = Uki::open(&uki).unwrap().pcr11().unwrap();
        let phases: [PhasePath; 3] = ["", "sysinit", ""].map(|path| path.parse().unwrap());
        let key = hex::decode(KEY).unwrap();
        let sign = |message: &[u8]| -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> { Ok(message.repeat(2)) };
        let policy = PcrPolicy { public_key_pem: b"key", public_key: &key, phases: &phases, sign: &sign };
        let text = policy.signed(&pcr11).unwrap();
        let read: SignedPolicies = serde_json::from_slice(&text).unwrap();
        let entries = &read.0[BANK];
        assert_eq!((read.0.len(), entries.len()), (1, 2));
        for (entry, path) in entries.iter().zip(&phases) {
            let digest = pcr11.policy(path);
            assert_eq!((entry.pcrs.as_slice(), entry.pkfp.as_str()), (&[REGISTER][..], NAME));
            assert_eq!(entry.bytes().unwrap(), (digest.as_bytes().to_vec(), digest.as_bytes().repeat(2)));
        }
        let refuse = |_: &[u8]| -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> { Err("no token".into()) };
        let refused = PcrPolicy { sign: &refuse, ..policy }.signed(&pcr11).unwrap_err();
        assert_eq!(refused.to_string(), "no token");
    }
}
