//! Who a test or a process is to the API server: a kubeconfig and the client that follows from it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::ControlPlaneError;
use super::pki::Pair;

/// One identity at one API server.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    text: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn with_certificate(server: &str, authority: &str, user: &str, pair: &Pair) -> Self {
        let identity = json!({
            "client-certificate-data": STANDARD.encode(&pair.certificate),
            "client-key-data": STANDARD.encode(&pair.key),
        });
        Self::new(server, authority, user, &identity)
    }

    pub(super) fn with_token(server: &str, authority: &str, user: &str, token: &str) -> Self {
        Self::new(server, authority, user, &json!({ "token": token }))
    }

    fn new(server: &str, authority: &str, user: &str, identity: &serde_json::Value) -> Self {
        // JSON is YAML, and every reader of a kubeconfig takes it.
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "bascule",
                "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(authority) },
            }],
            "users": [{ "name": user, "user": identity }],
            "contexts": [{ "name": "bascule", "context": { "cluster": "bascule", "user": user } }],
            "current-context": "bascule",
        });
        Self { user: user.to_owned(), text: format!("{text:#}\n") }
    }

    /// The user name as the API server and its audit log know it.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The kubeconfig's text. It holds a secret.
    #[must_use]
    pub fn kubeconfig(&self) -> &str {
        &self.text
    }

    /// Writes the kubeconfig, readable by its owner only.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_to(&self, path: &Path) -> Result<(), ControlPlaneError> {
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(self.text.as_bytes())
        };
        write().map_err(|source| ControlPlaneError::Folder { path: path.to_owned(), source })
    }

    /// The client library's settings for this identity, for callers that change a timeout.
    ///
    /// # Errors
    /// When the client library refuses the kubeconfig.
    pub async fn config(&self) -> Result<Config, ControlPlaneError> {
        let parsed = Kubeconfig::from_yaml(&self.text)?;
        Ok(Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?)
    }

    /// A client with this identity.
    ///
    /// # Errors
    /// When the client library refuses the kubeconfig.
    pub async fn client(&self) -> Result<Client, ControlPlaneError> {
        crate::install_tls_provider();
        Ok(Client::try_from(self.config().await?)?)
    }
}
