//! A key whose private half another program keeps.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;

use super::{PublicKey, Signer, SigningKey};
use crate::publish::error::PublishError;

/// How long a program may take: somebody may have to touch a token, or to approve far away.
const LONGEST: Duration = Duration::from_secs(300);
/// Longest output that is read; a signature in base64 has about a hundred bytes.
const MAX_OUTPUT: u64 = 4096;

struct Program {
    command: Vec<String>,
    key_id: String,
}

pub(super) fn open(public: PublicKey, command: &str) -> Result<SigningKey, PublishError> {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let Some(name) = words.first().cloned() else {
        let reason = "no program is named; write PUBLIC=PROGRAM".to_owned();
        return Err(PublishError::Signer { signer: "the signing program".to_owned(), reason });
    };
    let key_id = public.id();
    Ok(SigningKey::new(public, name, Box::new(Program { command: words, key_id })))
}

impl Signer for Program {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PublishError> {
        let (name, arguments) = self.command.split_first().map_or(("", &[][..]), |(name, rest)| (name.as_str(), rest));
        let refuse = |reason: String| PublishError::Signer { signer: name.to_owned(), reason };
        let mut child = Command::new(name)
            .args(arguments)
            // One program may serve several keys.
            .env("BASCULE_KEY_ID", &self.key_id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| refuse(format!("it can't be started: {error}")))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let message = message.to_vec();
        // In threads of their own: a program that neither reads nor writes must not hold us.
        std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&message)));
        let output = within(LONGEST, move || {
            let mut bytes = Vec::new();
            let read = stdout.map(|stdout| stdout.take(MAX_OUTPUT).read_to_end(&mut bytes));
            read.transpose().map(|_| bytes)
        });
        let Some(output) = output else {
            // It is ended: nothing may sign later what was given up.
            let _ = child.kill();
            let _ = child.wait();
            return Err(refuse(format!("it did not end within {} seconds", LONGEST.as_secs())));
        };
        // What has closed its output can't sign any more, whether it ends or not.
        let status = within(LONGEST, move || child.wait()).ok_or_else(|| refuse("it does not end".to_owned()))?;
        let status = status.map_err(|error| refuse(error.to_string()))?;
        if !status.success() {
            return Err(refuse(format!("it ended with {status}")));
        }
        let output = output.map_err(|error| refuse(error.to_string()))?;
        if output.is_empty() {
            return Err(refuse("it wrote nothing to its standard output".to_owned()));
        }
        let text = output.trim_ascii();
        let decoded = text.is_ascii().then(|| base64::engine::general_purpose::STANDARD.decode(text).ok()).flatten();
        Ok(decoded.unwrap_or(output))
    }
}

/// What `work` gives, unless it takes longer.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).ok()
}
