//! The certificates of one control plane: its own authority, made anew each time, so that nothing a test holds is
//! worth anything outside of that test.

use std::net::SocketAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::ControlPlaneError;

/// A certificate and its key in PEM.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Pair")
    }
}

/// The authority that signs the API server's certificate and every client's.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authority")
    }
}

impl Authority {
    pub(super) fn new() -> Result<Self, ControlPlaneError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bascule test control plane");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// The authority's own certificate in PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// For the API server, under the names it is reached by from this machine and from pods, and that of its URL.
    pub(super) fn server(&self, url: &str) -> Result<Pair, ControlPlaneError> {
        let names = ["127.0.0.1", "::1", super::SERVICE_ADDRESS, "localhost", "kubernetes", "kubernetes.default.svc"];
        let mut names = names.map(str::to_owned).to_vec();
        let address = url.trim_start_matches("https://").parse::<SocketAddr>().map(|address| address.ip().to_string());
        names.extend(address.ok().filter(|address| !names.contains(address)));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client: Kubernetes takes the common name as user and each organisation as a group.
    pub(super) fn client(&self, user: &str, groups: &[&str]) -> Result<Pair, ControlPlaneError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Pair, ControlPlaneError> {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// The key pair that signs service account tokens: (private, public) in PEM.
pub(super) fn service_account_keys() -> Result<(String, String), ControlPlaneError> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}
