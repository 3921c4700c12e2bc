//! Keys of tests, of the three types that the specification names.

use std::sync::Arc;

use bascule_repository::tuf::canonical;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PSS_SHA256, RsaKeyPair,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// For this test alone: `openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048`.
const RSA_KEY: &str = include_str!("rsa-test-key.pem");
const RSA_PUBLIC: &str = include_str!("rsa-test-key.pub.pem");

#[derive(Clone)]
pub struct TestKey {
    pair: Arc<Pair>,
    public: Value,
    id: String,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl TestKey {
    /// The key with this number, the same each time.
    pub fn ed25519(number: u32) -> Self {
        let seed = digest(&SHA256, &number.to_be_bytes());
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).unwrap();
        let public = hex::encode(pair.public_key().as_ref());
        Self::named(Pair::Ed25519(pair), key("ed25519", "ed25519", &public))
    }

    pub fn p256() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let head = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        let der = [&head, pair.public_key().as_ref()].concat();
        let public = pem(&der);
        Self::named(Pair::P256(pair), key("ecdsa", "ecdsa-sha2-nistp256", &public))
    }

    pub fn rsa() -> Self {
        let der = PrivatePkcs8KeyDer::from_pem_slice(RSA_KEY.as_bytes()).unwrap();
        let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
        Self::named(Pair::Rsa(pair), key("rsa", "rsassa-pss-sha256", RSA_PUBLIC))
    }

    fn named(pair: Pair, public: Value) -> Self {
        let id = hex::encode(digest(&SHA256, &canonical(public.to_string().as_bytes()).unwrap()));
        Self { pair: Arc::new(pair), public, id }
    }

    /// The same key under another id, with more members.
    pub fn renamed(&self, more: Value) -> Self {
        let mut public = self.public.clone();
        public.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = hex::encode(digest(&SHA256, &canonical(public.to_string().as_bytes()).unwrap()));
        Self { pair: Arc::clone(&self.pair), public, id }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn public(&self) -> Value {
        self.public.clone()
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &*self.pair {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }
}

fn key(keytype: &str, scheme: &str, public: &str) -> Value {
    json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}})
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}
