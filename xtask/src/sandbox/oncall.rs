//! The on-call engineer of the story: the `bascule` program with her own rights, as she would type it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bascule_tests::control_plane::Credentials;

/// Somebody with a terminal.
#[derive(Debug)]
pub(crate) struct OnCall {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl OnCall {
    /// Gives her credentials.
    pub(crate) fn new(program: &Path, folder: &Path, credentials: &Credentials) -> anyhow::Result<Self> {
        let kubeconfig = folder.join("on-call.kubeconfig");
        credentials.write_to(&kubeconfig)?;
        Ok(Self { program: program.to_owned(), kubeconfig })
    }

    /// Types a command; gives what it printed.
    ///
    /// # Errors
    /// The command ends with another code than 0; the message has what it said.
    pub(crate) async fn types(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("`bascule {}` failed: {said} {complaint}", arguments.join(" "));
        }
        Ok(said)
    }
}
