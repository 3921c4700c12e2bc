//! A system bus with a logind that notes when it is asked to reboot.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use tokio::sync::mpsc;
use zbus::OwnedFd;

/// The bus; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Bus {
    daemon: Child,
    /// Held: the service ends with it.
    _connection: zbus::Connection,
    /// When a reboot was asked for.
    pub(super) reboots: mpsc::UnboundedReceiver<Instant>,
}

impl Bus {
    /// Starts a bus that listens on `socket`, with its configuration beside it.
    pub(super) async fn start(socket: &Path) -> anyhow::Result<Self> {
        let config = socket.with_extension("conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>custom</type>\
             <listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" \
             eavesdrop=\"true\"/><allow own=\"*\"/><allow eavesdrop=\"true\"/></policy></busconfig>\n",
            socket.display()
        );
        std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dbus-daemon")?;
        // The address is printed once the bus listens.
        let mut address = String::new();
        let output = daemon.stdout.take().context("dbus-daemon has no output")?;
        BufReader::new(output).read_line(&mut address).context("dbus-daemon said nothing")?;
        let (sender, reboots) = mpsc::unbounded_channel();
        let connection = zbus::connection::Builder::address(address.trim())
            .name("org.freedesktop.login1")
            .serve_at("/org/freedesktop/login1", Logind { reboots: sender })
            .build()
            .await
            .context("serving logind on the bus")?;
        Ok(Self { daemon, _connection: connection, reboots })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

struct Logind {
    reboots: mpsc::UnboundedSender<Instant>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    async fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        Vec::new()
    }

    async fn inhibit(&self, _what: String, _who: String, _why: String, _mode: String) -> zbus::fdo::Result<OwnedFd> {
        let (_, writer) = std::io::pipe().map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
        Ok(OwnedFd::from(std::os::fd::OwnedFd::from(writer)))
    }

    async fn set_wall_message(&self, _message: String, _enable: bool) {}

    async fn reboot(&self, _interactive: bool) {
        // Nobody waits any more once the measurement is over.
        let _ = self.reboots.send(Instant::now());
    }
}
