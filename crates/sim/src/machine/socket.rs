//! The machine's Unix socket: its state as lines of JSON to whoever connects, commands as lines of JSON from them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::view::{Command, MachineView};

/// A command is far shorter.
const MAX_LINE: u64 = 4096;
/// A machine's whole state is shorter than this, boot log included.
const MAX_VIEW: u64 = 1 << 20;

/// Serves until the machine ends. An old socket at the same place is removed first.
pub async fn serve(
    path: &Path,
    view: watch::Receiver<MachineView>,
    commands: mpsc::Sender<Command>,
) -> anyhow::Result<()> {
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (view, commands) = (view.clone(), commands.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(stream, view, commands).await {
                warn!("a client of the machine's socket went wrong: {error:#}");
            }
        });
    }
}

async fn talk(
    mut stream: UnixStream,
    mut view: watch::Receiver<MachineView>,
    commands: mpsc::Sender<Command>,
) -> anyhow::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    // Who only sends a command goes at once; what it sent is still to be read after nobody listens any more.
    let mut listens = true;
    view.mark_changed();
    loop {
        tokio::select! {
            changed = view.changed(), if listens => {
                if changed.is_err() {
                    return Ok(());
                }
                let mut text = serde_json::to_vec(&*view.borrow_and_update())?;
                text.push(b'\n');
                listens = write.write_all(&text).await.is_ok();
            }
            // What was read of a line stays in `line` when the other branch wins.
            got = async { (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await } => {
                if got? == 0 {
                    return Ok(());
                }
                if line.ends_with(b"\n") {
                    commands.send(serde_json::from_slice(&line).context("no command")?).await?;
                    line.clear();
                } else if line.len() as u64 >= MAX_LINE {
                    anyhow::bail!("a command is longer than {MAX_LINE} bytes");
                }
            }
        }
    }
}

/// The other end of the socket: what the kubelet stand-in, the sandbox and the simulated host use.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Client {
    /// Connects to a machine's socket.
    pub async fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("cannot reach the machine at {}", path.display()))?;
        Ok(Self { stream: BufReader::new(stream), line: Vec::new() })
    }

    /// The next state; the first call gives the present one. `None`: the machine ended. Cancel safe.
    pub async fn next(&mut self) -> anyhow::Result<Option<MachineView>> {
        while !self.line.ends_with(b"\n") {
            if (&mut self.stream).take(MAX_VIEW).read_until(b'\n', &mut self.line).await? == 0 {
                return Ok(None);
            }
            anyhow::ensure!((self.line.len() as u64) < MAX_VIEW, "the machine's state has no end");
        }
        let view = serde_json::from_slice(&self.line).context("the machine's state can't be read")?;
        self.line.clear();
        Ok(Some(view))
    }

    /// Waits until the machine is as wanted.
    pub async fn wait_for(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(&MachineView) -> bool,
    ) -> anyhow::Result<MachineView> {
        let mut last = None;
        let found = tokio::time::timeout(within, async {
            while let Some(view) = self.next().await? {
                if wanted(&view) {
                    return Ok(view);
                }
                last = Some(view);
            }
            anyhow::bail!("the machine ended")
        })
        .await;
        match found {
            Ok(view) => view,
            Err(_) => anyhow::bail!("not within {within:?}; the machine was last seen as {last:?}"),
        }
    }

    /// Sends a command; the change shows in the state.
    pub async fn send(&mut self, command: Command) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&command)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.context("the machine takes no command")
    }
}
