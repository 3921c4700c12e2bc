//! A serial line of a machine: everything it ever said, waiting for what it says next, and typing into it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// How many of the last lines are shown when something expected was not said.
const SHOWN_LINES: usize = 25;

/// One serial line. It stays when the machine is switched off and on again.
#[derive(Debug, Clone)]
pub struct Console {
    said: watch::Sender<String>,
    writer: Arc<Mutex<Option<OwnedWriteHalf>>>,
}

/// Listens for one QEMU's end of a serial line.
#[derive(Debug)]
pub struct Line {
    task: JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Console {
    fn default() -> Self {
        Self { said: watch::Sender::new(String::new()), writer: Arc::default() }
    }
}

impl Console {
    /// Listens at `socket`; what comes is appended to this console and to the file `log`.
    ///
    /// # Errors
    /// When the socket or the log can't be made.
    pub fn listen(&self, socket: &Path, log: &Path) -> io::Result<Line> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut file = tokio::fs::File::from_std(file);
        let console = self.clone();
        let task = tokio::spawn(async move {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (mut reader, writer) = stream.into_split();
            *console.writer.lock().await = Some(writer);
            let mut buffer = [0; 4096];
            while let Ok(length) = reader.read(&mut buffer).await {
                let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return };
                // A log that can't be written is a loss for the reader of a failure, not for the test.
                let _ = file.write_all(bytes).await;
                let text = String::from_utf8_lossy(bytes).replace('\r', "");
                console.said.send_modify(|said| said.push_str(&text));
            }
        });
        Ok(Line { task })
    }

    /// A place in what was said, to look only at what comes after.
    #[must_use]
    pub fn now(&self) -> usize {
        self.said.borrow().len()
    }

    /// Everything said since `from`.
    #[must_use]
    pub fn since(&self, from: usize) -> String {
        self.said.borrow().get(from..).unwrap_or_default().to_owned()
    }

    /// How often `text` was said since `from`.
    #[must_use]
    pub fn count(&self, from: usize, text: &str) -> usize {
        self.said.borrow().get(from..).map_or(0, |said| said.matches(text).count())
    }

    /// Waits until one of `texts` is said after `from`. Returns which one and the place behind it.
    ///
    /// # Errors
    /// With the last lines when it is not said within `patience`.
    pub async fn wait_for_any(
        &self,
        from: usize,
        texts: &[&str],
        patience: Duration,
    ) -> anyhow::Result<(usize, usize)> {
        let find = |said: &str| {
            let after = said.get(from..)?;
            let places =
                texts.iter().enumerate().filter_map(|(index, text)| Some((after.find(text)?, index, text.len())));
            places.min().map(|(place, index, length)| (index, from + place + length))
        };
        let mut said = self.said.subscribe();
        let waited = tokio::time::timeout(patience, said.wait_for(|said| find(said).is_some())).await;
        match waited {
            Ok(Ok(said)) => find(&said).context("what was just found is gone"),
            _ => bail!(
                "the console did not say {} within {} s; it ended with:\n{}",
                texts.join(" or "),
                patience.as_secs(),
                self.tail()
            ),
        }
    }

    /// Waits until `text` is said after `from`. Returns the place behind it.
    ///
    /// # Errors
    /// With the last lines when it is not said within `patience`.
    pub async fn wait_for(&self, from: usize, text: &str, patience: Duration) -> anyhow::Result<usize> {
        self.wait_for_any(from, &[text], patience).await.map(|(_, place)| place)
    }

    /// Types `text` into the line.
    ///
    /// # Errors
    /// When the machine is off.
    pub async fn type_in(&self, text: &str) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        writer
            .as_mut()
            .context("the machine is off")?
            .write_all(text.as_bytes())
            .await
            .context("typing into a serial line")
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let said = self.said.borrow();
        let lines: Vec<&str> = said.lines().collect();
        lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_is_said_is_found_also_when_it_comes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::default();
        let socket = folder.path().join("line");
        let _line = console.listen(&socket, &folder.path().join("log")).unwrap();
        let mut machine = UnixStream::connect(&socket).await.unwrap();
        machine.write_all(b"one\r\ntw").await.unwrap();
        let place = console.wait_for(0, "one\n", Duration::from_secs(60)).await.unwrap();
        machine.write_all(b"o\r\n").await.unwrap();
        let (which, _) = console.wait_for_any(place, &["three", "two"], Duration::from_secs(60)).await.unwrap();
        assert_eq!(which, 1);
        assert_eq!(console.count(0, "o"), 2);
        console.type_in("hello").await.unwrap();
        let mut typed = [0; 5];
        machine.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"hello");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_last_lines() {
        let console = Console::default();
        console.said.send_modify(|said| said.push_str("a kernel panic"));
        let error = console.wait_for(0, "login", Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().contains("a kernel panic"), "{error}");
    }
}
