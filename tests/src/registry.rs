//! A registry of container images as clusters have one: Debian's docker-registry, with TLS and an authority of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::control_plane::{SERVICE_ADDRESS, free_port};
use crate::supervise::Supervised;

/// An image, or an index of several (OCI Image Format Specification 1.1, "Media Types").
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
/// Far longer than it takes to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who may use a registry that wants a user.
pub const USER: &str = "publisher";
/// Their password.
pub const PASSWORD: &str = "a rusted anchor";
/// bcrypt of it, which is all that this registry takes.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuhAHNN9kMz7.TtNCAyh2Ja/9zNL1mjv6";
/// Its port can only be polled.
const POLL: Duration = Duration::from_millis(50);

/// A running registry. It ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    authority: PathBuf,
    /// It knows one, and lets nobody else in.
    wants_user: bool,
    _process: Supervised,
}

impl Registry {
    /// Starts one that keeps everything in `folder`, for everybody.
    ///
    /// # Errors
    /// When it is not installed (package docker-registry), or does not answer within a minute.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_for(folder, false).await
    }

    /// The same for [`USER`] alone.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_for_its_user(folder: &Path) -> anyhow::Result<Self> {
        Self::start_for(folder, true).await
    }

    async fn start_for(folder: &Path, wants_user: bool) -> anyhow::Result<Self> {
        crate::install_tls_provider();
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "Bascule test registry CA");
        let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let pem = authority.self_signed(&authority_key)?.pem();
        let names = ["127.0.0.1", SERVICE_ADDRESS].map(str::to_owned).to_vec();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let file = |name: &str| folder.join(format!("registry.{name}"));
        std::fs::write(file("ca.pem"), pem)?;
        std::fs::write(file("pem"), certificate.pem())?;
        std::fs::write(file("key"), key.serialize_pem())?;
        let port = free_port()?;
        let auth = if wants_user {
            std::fs::write(file("users"), format!("{USER}:{HASH}\n"))?;
            json!({"htpasswd": {"realm": "registry", "path": file("users")}})
        } else {
            json!({})
        };
        let settings = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": file("storage")}},
            "http": {"addr": format!("127.0.0.1:{port}"), "tls": {"certificate": file("pem"), "key": file("key")}},
            "auth": auth,
        });
        std::fs::write(file("yml"), settings.to_string())?;
        let arguments = [OsStr::new("serve").to_owned(), file("yml").into_os_string()];
        let process = Supervised::start(Path::new("docker-registry"), arguments, &[], &file("log"))?;
        let registry = Self { port, authority: file("ca.pem"), wants_user, _process: process };
        let up = async {
            while registry.get("").await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        let log = || std::fs::read_to_string(file("log")).unwrap_or_default();
        tokio::time::timeout(PATIENCE, up).await.map_err(|_| anyhow::anyhow!("no registry: {}", log()))?;
        Ok(registry)
    }

    /// Its port of the loopback interface.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where this machine puts images.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A PEM file with the authority of its certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Asks it for a path below `/v2/` (OCI Distribution Specification 1.1), as its user where it wants one.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let authority = reqwest::Certificate::from_pem(&std::fs::read(&self.authority)?)?;
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build()?;
        let mut request = client.get(format!("https://{}/v2/{path}", self.address()));
        if self.wants_user {
            request = request.basic_auth(USER, Some(PASSWORD));
        }
        Ok(request.header("accept", MANIFESTS).send().await?)
    }
}
