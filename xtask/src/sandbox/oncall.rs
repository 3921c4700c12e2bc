//! The on-call engineer of the story: the `bascule` program with her own rights, as she would type it. What she types and
//! reads is kept, and how long she waits for it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bascule_tests::control_plane::Credentials;

/// How often a command is typed to see how long it takes.
const TIMES: usize = 5;

/// Somebody with a terminal.
#[derive(Debug)]
pub(crate) struct OnCall {
    program: PathBuf,
    kubeconfig: PathBuf,
    typed: Mutex<Typed>,
}

/// What she typed and read.
#[derive(Debug, Default)]
struct Typed {
    /// Everything so far.
    all: String,
    /// What docs/on-call.md shows of it, and how long she waits for what she reads.
    shown: String,
    waits: String,
}

impl OnCall {
    /// Gives her credentials.
    pub(crate) fn new(program: &Path, folder: &Path, credentials: &Credentials) -> anyhow::Result<Self> {
        let kubeconfig = folder.join("on-call.kubeconfig");
        credentials.write_to(&kubeconfig)?;
        Ok(Self { program: program.to_owned(), kubeconfig, typed: Mutex::default() })
    }

    /// What a shell needs to be hers.
    pub(crate) fn shell(&self) -> String {
        let folder = self.program.parent().unwrap_or(Path::new("."));
        format!("export KUBECONFIG={} PATH={}:$PATH", self.kubeconfig.display(), folder.display())
    }

    /// Everything she typed and read.
    pub(crate) fn transcript(&self) -> String {
        self.typed().all.clone()
    }

    /// The part of docs/on-call.md that is made here (`cargo xtask generate --on-call`), where all of it was typed: `place` says
    /// where.
    pub(crate) fn page(&self, place: &str) -> Option<String> {
        let typed = self.typed();
        let whole = !typed.shown.is_empty() && !typed.waits.is_empty();
        whole.then(|| format!("{place}\n\n```\n{}\n```\n\n{}\n", typed.shown.trim(), typed.waits))
    }

    /// Gives her a file; its path as a program takes it.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.kubeconfig.with_file_name(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    fn typed(&self) -> MutexGuard<'_, Typed> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same as [`Self::types`], for the docs too.
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn shows(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let said = self.types(arguments).await?;
        self.typed().shown.push_str(&format!("$ bascule {}\n{said}\n\n", as_typed(arguments)));
        Ok(said)
    }

    /// Types a command; gives what it printed.
    ///
    /// # Errors
    /// The command ends with another code than 0; the message has what it said.
    pub(crate) async fn types(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (output, _) = self.run(arguments).await?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let read =
            if output.status.success() { said.clone() } else { format!("{said}\n{complaint}\n{}", output.status) };
        self.typed().all.push_str(&format!("$ bascule {}\n{}\n\n", as_typed(arguments), read.trim()));
        if !output.status.success() {
            bail!("`bascule {}` failed: {said} {complaint}", arguments.join(" "));
        }
        Ok(said)
    }

    /// Types commands that only read, each some times over, and gives a line about how long they took, and how they ended where
    /// not with code 0. Nothing of it goes into the transcript.
    ///
    /// # Errors
    /// The program does not start.
    pub(crate) async fn times(&self, commands: &[&[&str]]) -> anyhow::Result<String> {
        let mut lines = Vec::new();
        // Her files are where she is.
        let here = self.kubeconfig.parent().map_or_else(String::new, |folder| format!("{}/", folder.display()));
        for arguments in commands {
            let mut took = Vec::new();
            let command = as_typed(arguments).replace(&here, "");
            let mut typed = command.clone();
            for _ in 0..TIMES {
                let (output, time) = self.run(arguments).await?;
                took.push(time);
                if !output.status.success() {
                    typed = format!("{command} ({})", output.status);
                }
            }
            took.sort();
            let at = |place: usize| took.get(place).copied().unwrap_or_default().as_millis();
            lines.push(format!("{typed} {} ({})", at(TIMES / 2), at(TIMES - 1)));
        }
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().map_or_else(String::new, |load| format!(" under a load of {load}"));
        let waits = format!(
            "`bascule` against the idle cluster{load}, milliseconds, median of {TIMES} (longest): {}",
            lines.join(", ")
        );
        self.typed().waits.clone_from(&waits);
        Ok(waits)
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<(Output, Duration)> {
        let since = Instant::now();
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1")
            // As on a terminal.
            .env("BASCULE_UNICODE", "1")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok((output, since.elapsed()))
    }
}

/// As a shell takes it.
fn as_typed(arguments: &[&str]) -> String {
    let quoted = |argument: &&str| {
        if argument.contains(' ') { format!("\"{argument}\"") } else { (*argument).to_owned() }
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_space_is_typed_in_quotes() {
        assert_eq!(as_typed(&["freeze", "--reason", "checkout incident"]), "freeze --reason \"checkout incident\"");
    }
}
