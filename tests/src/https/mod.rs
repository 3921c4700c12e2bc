//! A static https server on loopback with its own certificate authority: what a release repository is served by in
//! tests, benchmarks and the sandbox. It knows ranges and ETags as a good server does, counts what it sends, and can be
//! told to misbehave for single paths in every way that a hostile or broken server might.

mod fault;
pub(crate) mod serve;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use fault::Fault;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// A certificate could not be made.
    #[error("can't make a certificate for the test server")]
    Certificate(#[from] rcgen::Error),
    /// rustls refused the certificate.
    #[error("can't use the test server's certificate")]
    Tls(#[from] rustls::Error),
    /// No loopback port.
    #[error("can't listen on loopback")]
    Listen(#[from] io::Error),
}

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path with a leading slash.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Status of the answer.
    pub status: u16,
}

/// What server and owner share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    faults: Mutex<Vec<(String, Fault)>>,
    requests: Mutex<Vec<Request>>,
    sent: Mutex<std::collections::BTreeMap<String, u64>>,
}

/// Requests that are remembered at most; a sandbox runs for long.
const MAX_REMEMBERED: usize = 100_000;

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct HttpsServer {
    address: SocketAddr,
    ca_pem: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl HttpsServer {
    /// Serves a folder on a free port of 127.0.0.1, on the current tokio runtime.
    ///
    /// # Errors
    /// [`HttpsError`]
    pub async fn start(folder: impl AsRef<Path>) -> Result<Self, HttpsError> {
        Self::start_on(folder, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Serves a folder on a given address of this machine, of either family.
    ///
    /// # Errors
    /// [`HttpsError`]
    pub async fn start_on(folder: impl AsRef<Path>, address: SocketAddr) -> Result<Self, HttpsError> {
        let (acceptor, ca_pem) = tls("Bascule test repository CA", Some(address.ip()))?;
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            folder: folder.as_ref().to_owned(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            sent: Mutex::default(),
        });
        let asked = Arc::clone(&shared);
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            let shared = Arc::clone(&asked);
            async move { serve::answer(&shared, request.uri().path(), request.headers()).await }
        };
        let task = tokio::spawn(serve::accept(listener, acceptor, answer));
        Ok(Self { address, ca_pem, shared, task })
    }

    /// `https://localhost:<port>/`, or with the address where it is none of loopback.
    pub fn url(&self) -> String {
        if self.address.ip().is_loopback() {
            format!("https://localhost:{}/", self.address.port())
        } else {
            format!("https://{}/", self.address)
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The authority that clients must trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// From now on, paths that contain `part` are answered with `fault`. The newest matching fault wins.
    pub fn misbehave(&self, part: impl Into<String>, fault: Fault) {
        lock(&self.shared.faults).push((part.into(), fault));
    }

    /// Serves everything properly again.
    pub fn behave(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Requests answered so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Body bytes handed to the network, all paths together.
    pub fn bytes_sent(&self) -> u64 {
        lock(&self.shared.sent).values().sum()
    }

    /// Body bytes handed to the network for paths that contain `part`.
    pub fn bytes_sent_for(&self, part: &str) -> u64 {
        lock(&self.shared.sent).iter().filter(|(path, _)| path.contains(part)).map(|(_, bytes)| bytes).sum()
    }

    /// Forgets requests and byte counts.
    pub fn reset_counters(&self) {
        lock(&self.shared.requests).clear();
        lock(&self.shared.sent).clear();
    }
}

impl Drop for HttpsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fresh authority of a name, and a certificate of it for `localhost`, 127.0.0.1, ::1, the address at which machines of the
/// boot tests give it to their pods, and one more.
pub(crate) fn tls(authority: &str, address: Option<IpAddr>) -> Result<(TlsAcceptor, String), HttpsError> {
    let ca_key = KeyPair::generate()?;
    let mut ca_params = CertificateParams::new(Vec::new())?;
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca_params.distinguished_name.push(DnType::CommonName, authority);
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, ca_key);
    let key = KeyPair::generate()?;
    let mut names =
        ["localhost", "127.0.0.1", "::1", crate::control_plane::SERVICE_ADDRESS].map(str::to_owned).to_vec();
    names.extend(address.map(|address| address.to_string()).filter(|address| !names.contains(address)));
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), ca.pem()))
}
