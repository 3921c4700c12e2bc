//! Who a test or a process is to the API server: a kubeconfig and the client that follows from it.

#![allow(clippy::indexing_slicing, reason = "a missing key of a JSON value reads as null")]

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

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

    fn new(server: &str, authority: &str, user: &str, identity: &Value) -> Self {
        let cluster = json!({ "server": server, "certificate-authority-data": STANDARD.encode(authority) });
        Self { user: user.to_owned(), text: document(&cluster, user, identity) }
    }

    /// The current context of a kubeconfig that exists already.
    ///
    /// # Errors
    /// When the text is no kubeconfig, or its current context names nothing.
    pub fn from_kubeconfig(text: &str) -> Result<Self, ControlPlaneError> {
        let problem =
            |problem: &str| ControlPlaneError::Manifest { name: "kubeconfig".to_owned(), problem: problem.to_owned() };
        let value: Value = serde_saphyr::from_str(text).map_err(|error| problem(&error.to_string()))?;
        let wanted = value["current-context"].as_str().ok_or_else(|| problem("it has no current-context"))?;
        let context = named(&value["contexts"], wanted).ok_or_else(|| problem("its current-context is not there"))?;
        let name = |key: &str| context["context"][key].as_str().unwrap_or_default().to_owned();
        let cluster = named(&value["clusters"], &name("cluster")).ok_or_else(|| problem("it has no such cluster"))?;
        let user = named(&value["users"], &name("user")).ok_or_else(|| problem("it has no such user"))?;
        Ok(Self { user: name("user"), text: document(&cluster["cluster"], &name("user"), &user["user"]) })
    }

    /// The same credentials acting for somebody else, where they may impersonate (cluster admins may).
    ///
    /// # Errors
    /// Never for credentials made here; the text is read again.
    pub fn acting_as(&self, user: &str, groups: &[&str]) -> Result<Self, ControlPlaneError> {
        let (cluster, mut identity) = self.parts()?;
        identity["as"] = json!(user);
        identity["as-groups"] = json!(groups);
        Ok(Self { user: user.to_owned(), text: document(&cluster, user, &identity) })
    }

    /// A token for the same cluster.
    ///
    /// # Errors
    /// Never for credentials made here; the text is read again.
    pub fn with_other_token(&self, user: &str, token: &str) -> Result<Self, ControlPlaneError> {
        let (cluster, _) = self.parts()?;
        Ok(Self { user: user.to_owned(), text: document(&cluster, user, &json!({ "token": token })) })
    }

    fn parts(&self) -> Result<(Value, Value), ControlPlaneError> {
        let problem = |problem: String| ControlPlaneError::Manifest { name: "kubeconfig".to_owned(), problem };
        let value: Value = serde_json::from_str(&self.text).map_err(|error| problem(error.to_string()))?;
        Ok((value["clusters"][0]["cluster"].clone(), value["users"][0]["user"].clone()))
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

/// A kubeconfig with one of each. JSON is YAML, and every reader of a kubeconfig takes it.
fn document(cluster: &Value, user: &str, identity: &Value) -> String {
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "bascule", "cluster": cluster }],
        "users": [{ "name": user, "user": identity }],
        "contexts": [{ "name": "bascule", "context": { "cluster": "bascule", "user": user } }],
        "current-context": "bascule",
    });
    format!("{text:#}\n")
}

/// The entry of a kubeconfig's list with this name.
fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry["name"] == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_kubeconfig_is_cut_to_its_current_context() {
        let text = "
current-context: two
clusters:
- {name: c1, cluster: {server: https://one}}
- {name: c2, cluster: {server: https://two}}
users: [{name: u2, user: {token: secret}}]
contexts: [{name: two, context: {cluster: c2, user: u2}}]
";
        let credentials = Credentials::from_kubeconfig(text).unwrap();
        assert_eq!(credentials.user(), "u2");
        assert!(credentials.kubeconfig().contains("https://two") && !credentials.kubeconfig().contains("https://one"));
        let node = credentials.acting_as("system:node:n1", &["system:nodes"]).unwrap();
        assert!(node.kubeconfig().contains("\"as\": \"system:node:n1\"") && node.kubeconfig().contains("secret"));
        let pod = node.with_other_token("agent", "t").unwrap();
        assert!(!pod.kubeconfig().contains("secret") && pod.kubeconfig().contains("https://two"));
        assert!(Credentials::from_kubeconfig("current-context: none").is_err());
    }
}
