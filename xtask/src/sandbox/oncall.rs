//! The on-call engineer of the story: the `bascule` program with her own rights, as she would type it. What she types and
//! reads is kept, and how long she waits for it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, PoisonError};
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
    /// Everything typed so far, with its answers.
    transcript: Mutex<String>,
}

impl OnCall {
    /// Gives her credentials.
    pub(crate) fn new(program: &Path, folder: &Path, credentials: &Credentials) -> anyhow::Result<Self> {
        let kubeconfig = folder.join("on-call.kubeconfig");
        credentials.write_to(&kubeconfig)?;
        Ok(Self { program: program.to_owned(), kubeconfig, transcript: Mutex::default() })
    }

    /// What a shell needs to be hers.
    pub(crate) fn shell(&self) -> String {
        let folder = self.program.parent().unwrap_or(Path::new("."));
        format!("export KUBECONFIG={} PATH={}:$PATH", self.kubeconfig.display(), folder.display())
    }

    /// Everything she typed and read.
    pub(crate) fn transcript(&self) -> String {
        self.transcript.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        let mut transcript = self.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        transcript.push_str(&format!("$ bascule {}\n{}\n\n", as_typed(arguments), read.trim()));
        drop(transcript);
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
        for arguments in commands {
            let mut took = Vec::new();
            let mut typed = as_typed(arguments);
            for _ in 0..TIMES {
                let (output, time) = self.run(arguments).await?;
                took.push(time);
                if !output.status.success() {
                    typed = format!("{} ({})", as_typed(arguments), output.status);
                }
            }
            took.sort();
            let at = |place: usize| took.get(place).copied().unwrap_or_default().as_millis();
            lines.push(format!("{typed} {} ({})", at(TIMES / 2), at(TIMES - 1)));
        }
        Ok(format!("milliseconds, median of {TIMES} (longest): {}", lines.join(", ")))
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<(Output, Duration)> {
        let since = Instant::now();
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1")
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
