//! The vendor's key for a TPM's policies. It stays with openssl: a release gets its signatures as from any program that keeps a key.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use bascule_release::policy::fingerprint;

/// A key, and what is public of it.
#[derive(Debug, Clone)]
pub struct PolicyKey {
    private: PathBuf,
    pem: Vec<u8>,
    der: Vec<u8>,
}

impl PolicyKey {
    /// The key in `home`, made if there is none.
    ///
    /// # Errors
    /// When openssl fails, or a file can't be written.
    pub fn of(home: &Path) -> anyhow::Result<Self> {
        let private = home.join("tpm-policy.pem");
        // Editions are built at the same time. Whoever finds no key makes one, and an image that was signed with a key that another
        // one took the place of opens nothing.
        let lock = home.join("tpm-policy.lock");
        let held = File::create(&lock).with_context(|| format!("writing {}", lock.display()))?;
        held.lock().with_context(|| format!("locking {}", lock.display()))?;
        if !private.exists() {
            let made = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], &[])?;
            let partial = private.with_extension("partial");
            fs::write(&partial, made).with_context(|| format!("writing {}", partial.display()))?;
            fs::rename(&partial, &private).with_context(|| format!("writing {}", private.display()))?;
        }
        drop(held);
        let path = private.display().to_string();
        let pem = openssl(&["pkey", "-in", &path, "-pubout"], &[])?;
        let der = openssl(&["rsa", "-in", &path, "-RSAPublicKey_out", "-outform", "DER"], &[])?;
        Ok(Self { private, pem, der })
    }

    /// The public key as the boot image has it.
    #[must_use]
    pub fn public_key_pem(&self) -> &[u8] {
        &self.pem
    }

    /// The same as RSAPublicKey in DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.der
    }

    /// Which key it is.
    #[must_use]
    pub fn name(&self) -> String {
        fingerprint(&self.der)
    }

    /// Signs.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        openssl(&["dgst", "-sha256", "-sign", &self.private.display().to_string()], message)
    }
}

fn openssl(arguments: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting openssl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A few bytes, which fit a pipe whether they are read or not.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().context("waiting for openssl")?;
    if !output.status.success() {
        bail!("openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn whoever_asks_at_the_same_time_gets_the_same_key() {
        let home = tempfile::tempdir().unwrap();
        let names: BTreeSet<String> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| PolicyKey::of(home.path()).unwrap().name())).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(PolicyKey::of(home.path()).unwrap().name(), *names.first().unwrap());
    }
}
