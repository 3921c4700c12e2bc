//! What every control plane stands on, be it one or several: the programs, an authority of its own, keys that all of its
//! parts share, a folder, and the one address at which clients reach the API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pki::{Authority, service_account_keys};
use super::{Binaries, ControlPlaneError, Credentials, audit};
use crate::supervise::Scratch;

/// Programs, authority, keys and folder of a cluster. Dropping it removes the folder.
#[derive(Debug)]
pub struct Foundation {
    binaries: Binaries,
    pub(super) authority: Authority,
    pub(super) server: String,
    admin: Credentials,
    folder: Scratch,
}

impl Foundation {
    /// Makes authority and keys for an API that clients reach at `server`, and writes them into a new folder.
    pub(super) fn lay(binaries: Binaries, server: &str) -> Result<Self, ControlPlaneError> {
        let folder = Scratch::new("bascule-control-plane")?;
        let authority = Authority::new()?;
        let pair = authority.client("bascule-admin", &["system:masters"])?;
        let admin = Credentials::with_certificate(server, authority.certificate(), "bascule-admin", &pair);
        let (place, server_pair) = (folder.path(), authority.server(server)?);
        let (signing_key, verifying_key) = service_account_keys()?;
        let files = [
            ("ca.crt", authority.certificate()),
            ("server.crt", &server_pair.certificate),
            ("server.key", &server_pair.key),
            ("service-accounts.key", &signing_key),
            ("service-accounts.pub", &verifying_key),
            ("audit-policy.json", audit::POLICY),
        ];
        for (name, content) in files {
            let path = place.join(name);
            fs::write(&path, content).map_err(|source| ControlPlaneError::Folder { path, source })?;
        }
        admin.write_to(&place.join("admin.kubeconfig"))?;
        Ok(Self { binaries, authority, server: server.to_owned(), admin, folder })
    }

    /// Writes the kubeconfigs of controllers and scheduler, who talk to the API server at `server`, into `place`, and makes
    /// room for that server's audit log.
    pub(super) fn equip(&self, place: &Path, server: &str) -> Result<(), ControlPlaneError> {
        let path = place.join("audit");
        fs::create_dir_all(&path).map_err(|source| ControlPlaneError::Folder { path, source })?;
        for (part, user) in
            [("controller-manager", "system:kube-controller-manager"), ("scheduler", "system:kube-scheduler")]
        {
            let pair = self.authority.client(user, &[])?;
            let credentials = Credentials::with_certificate(server, self.authority.certificate(), user, &pair);
            credentials.write_to(&place.join(format!("{part}.kubeconfig")))?;
        }
        Ok(())
    }

    pub(super) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Where clients reach the API.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The authority's certificate in PEM, for clients that are configured by hand.
    #[must_use]
    pub fn authority_certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// A member of `system:masters`.
    #[must_use]
    pub fn admin(&self) -> &Credentials {
        &self.admin
    }

    /// A client of the admin.
    ///
    /// # Errors
    /// When the client library refuses the kubeconfig.
    pub async fn client(&self) -> Result<kube::Client, ControlPlaneError> {
        self.admin.client().await
    }

    /// The folder of this control plane: logs, keys, the admin's kubeconfig. Goes with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The admin's kubeconfig as a file.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder().join("admin.kubeconfig")
    }

    /// `kubectl` as the admin.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.binaries.path("kubectl"));
        command.env("KUBECONFIG", self.admin_kubeconfig());
        command
    }
}
