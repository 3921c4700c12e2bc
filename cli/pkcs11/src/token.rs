//! A token, opened and logged in to, and the one key in it that was named.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use ring::digest::{SHA256, digest};

use crate::Kind;
use crate::uri::Uri;

/// OID of P-256 in DER (RFC 5480, 2.1.1.1), and the name of edwards25519 as tokens want it (PKCS#11 3.0, 2.3.5: a
/// PrintableString).
const P256: [u8; 10] = [0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
const EDWARDS25519: &[u8] = b"\x13\x0Cedwards25519";
/// DER of a public key on P-256 up to the point (RFC 5480, 2).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE,
    0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Longest PIN file that is read.
const MAX_PIN: u64 = 1024;

pub(crate) struct Token<'a> {
    session: Session,
    uri: &'a Uri,
}

impl<'a> Token<'a> {
    pub(crate) fn open(module: &Path, uri: &'a Uri) -> anyhow::Result<Self> {
        let library = Pkcs11::new(module).with_context(|| format!("can't load {}", module.display()))?;
        library
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .with_context(|| format!("{} can't be initialised", module.display()))?;
        let slot = find_slot(&library, uri)?;
        let session = library.open_rw_session(slot).context("the token opens no session")?;
        if let Some(path) = &uri.pin_source {
            let size = std::fs::metadata(path).with_context(|| format!("can't read {}", path.display()))?.len();
            ensure!(size <= MAX_PIN, "{} is no PIN", path.display());
            let pin = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
            session
                .login(UserType::User, Some(&AuthPin::new(pin.trim_end_matches(['\r', '\n']).into())))
                .context("the token refuses the PIN")?;
        }
        Ok(Self { session, uri })
    }

    /// Makes a pair under the name of the URI, and gives its public half.
    pub(crate) fn generate(&self, kind: Kind) -> anyhow::Result<String> {
        ensure!(self.find(ObjectClass::PRIVATE_KEY)?.is_empty(), "the token has such a key already");
        let (mechanism, curve) = match kind {
            Kind::EcdsaP256 => (Mechanism::EccKeyPairGen, P256.to_vec()),
            Kind::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, EDWARDS25519.to_vec()),
        };
        let mut public = vec![
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(curve),
        ];
        let mut private = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        public.extend(self.name());
        private.extend(self.name());
        self.session.generate_key_pair(&mechanism, &public, &private).context("the token makes no such key")?;
        self.public()
    }

    /// The public half as TUF writes it.
    pub(crate) fn public(&self) -> anyhow::Result<String> {
        let key = self.one(ObjectClass::PUBLIC_KEY)?;
        let point = self.attribute(key, AttributeType::EcPoint)?;
        let json = match (self.kind(key)?, point.as_slice()) {
            // Tokens write the point as an OCTET STRING, some leave that out.
            (Kind::EcdsaP256, [0x04, 65, point @ ..] | point) if point.len() == 65 => {
                let der = [&P256_PREFIX[..], point].concat();
                let body = base64::engine::general_purpose::STANDARD.encode(der);
                let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
                let mut rest = body.as_str();
                while !rest.is_empty() {
                    // RFC 7468, 2: lines of 64 characters. Base64 is ASCII.
                    let (line, more) = rest.split_at(rest.len().min(64));
                    pem.push_str(line);
                    pem.push('\n');
                    rest = more;
                }
                pem.push_str("-----END PUBLIC KEY-----");
                serde_json::json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": pem}})
            }
            (Kind::Ed25519, [0x04, 32, point @ ..] | point) if point.len() == 32 => {
                let hex: String = point.iter().map(|byte| format!("{byte:02x}")).collect();
                serde_json::json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": hex}})
            }
            _ => bail!("the token's public key has a form that is not known"),
        };
        Ok(serde_json::to_string_pretty(&json).context("can't make JSON of the key")? + "\n")
    }

    pub(crate) fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let key = self.one(ObjectClass::PRIVATE_KEY)?;
        match self.kind(key)? {
            Kind::EcdsaP256 => {
                let hash = digest(&SHA256, message);
                let raw =
                    self.session.sign(&Mechanism::Ecdsa, key, hash.as_ref()).context("the token does not sign")?;
                der(&raw).context("the token's signature has a form that is not known")
            }
            Kind::Ed25519 => {
                let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
                self.session.sign(&mechanism, key, message).context("the token does not sign")
            }
        }
    }

    fn kind(&self, key: ObjectHandle) -> anyhow::Result<Kind> {
        for attribute in
            self.session.get_attributes(key, &[AttributeType::KeyType]).context("can't read the key's kind")?
        {
            match attribute {
                Attribute::KeyType(KeyType::EC_EDWARDS) => return Ok(Kind::Ed25519),
                Attribute::KeyType(KeyType::EC) if self.attribute(key, AttributeType::EcParams)? == P256 => {
                    return Ok(Kind::EcdsaP256);
                }
                _ => {}
            }
        }
        bail!("the key is neither ECDSA P-256 nor Ed25519")
    }

    fn attribute(&self, key: ObjectHandle, kind: AttributeType) -> anyhow::Result<Vec<u8>> {
        let found = self.session.get_attributes(key, &[kind]).context("can't read the key's attributes")?;
        match found.into_iter().next() {
            Some(Attribute::EcPoint(bytes) | Attribute::EcParams(bytes)) => Ok(bytes),
            _ => bail!("the key has no {kind}"),
        }
    }

    fn name(&self) -> Vec<Attribute> {
        let label = self.uri.object.iter().map(|label| Attribute::Label(label.clone().into_bytes()));
        label.chain(self.uri.id.iter().map(|id| Attribute::Id(id.clone()))).collect()
    }

    fn find(&self, class: ObjectClass) -> anyhow::Result<Vec<ObjectHandle>> {
        let mut template = self.name();
        template.push(Attribute::Class(class));
        self.session.find_objects(&template).context("can't look for the key in the token")
    }

    fn one(&self, class: ObjectClass) -> anyhow::Result<ObjectHandle> {
        match self.find(class)?.as_slice() {
            [key] => Ok(*key),
            [] => bail!("the token has no such key (a private one is only seen with its PIN: pin-source)"),
            several => bail!("{} keys of the token are called so; name one by its id too", several.len()),
        }
    }
}

fn find_slot(library: &Pkcs11, uri: &Uri) -> anyhow::Result<Slot> {
    let mut found = Vec::new();
    for slot in library.get_slots_with_initialized_token().context("the module lists no tokens")? {
        let info = library.get_token_info(slot).context("a token can't be asked")?;
        let label = uri.token.as_ref().is_none_or(|label| label == info.label().trim_end());
        let serial = uri.serial.as_ref().is_none_or(|serial| serial == info.serial_number().trim_end());
        if label && serial {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => bail!("there is no such token"),
        several => bail!("{} tokens are called so; name one by its serial", several.len()),
    }
}

/// From two numbers of 32 bytes (PKCS#11, 2.3.1) to DER (RFC 3279, 2.2.3).
fn der(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.len() != 64 {
        return None;
    }
    let mut body = Vec::new();
    for number in raw.chunks(32) {
        let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len() - 1);
        let mut digits = number.get(first..)?.to_vec();
        if digits.first()? & 0x80 != 0 {
            digits.insert(0, 0);
        }
        body.extend([0x02, u8::try_from(digits.len()).ok()?]);
        body.extend(digits);
    }
    let mut whole = vec![0x30, u8::try_from(body.len()).ok()?];
    whole.extend(body);
    Some(whole)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_der_wants_them() {
        let mut raw = [0; 64];
        raw[31] = 1;
        raw[32] = 0x80;
        let mut expected = vec![0x30, 38, 2, 1, 1, 2, 33, 0, 0x80];
        expected.extend([0; 31]);
        assert_eq!(der(&raw), Some(expected));
        assert_eq!(der(&[0; 64]).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        assert_eq!(der(&[0; 63]), None);
    }
}
