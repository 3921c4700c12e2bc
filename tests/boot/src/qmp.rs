//! The little of QEMU's machine protocol (QMP) that the tests need: pulling the network cable and plugging it in, and the
//! power button.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    ///
    /// # Errors
    /// When QEMU does not answer as it should.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connecting to QEMU")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line().await?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Plugs the network cable in or pulls it.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn set_link(&mut self, up: bool) -> anyhow::Result<()> {
        self.execute("set_link", json!({ "name": crate::machine::NETWORK, "up": up })).await.map(drop)
    }

    /// Presses the power button: logind shuts the system down.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn press_power_button(&mut self) -> anyhow::Result<()> {
        self.execute("system_powerdown", json!({})).await.map(drop)
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{request}\n").as_bytes()).await.context("talking to QEMU")?;
        loop {
            let answer = self.line().await?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Events come in between.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    async fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.context("listening to QEMU")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
