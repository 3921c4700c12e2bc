//! systemd's side of the shipped unit: its environment, and the socket on which the agent says that it lives.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::UnixDatagram;

use crate::workspace_root;

/// Where the agent finds the socket in its root.
const SOCKET: &str = "run/notify";

/// What the agent said so far.
#[derive(Debug, Default)]
struct Heard {
    ready: bool,
    /// When the watchdog was fed last.
    fed: Option<Instant>,
    longest: Duration,
    times: u32,
}

/// The unit of the agent.
#[derive(Debug)]
pub(super) struct Unit {
    /// After how long without food its watchdog bites.
    pub(super) patience: Duration,
    environment: Vec<(String, String)>,
    heard: Arc<Mutex<Heard>>,
}

impl Unit {
    /// Reads the unit and listens in the agent's root.
    pub(super) fn listen(root: &Path) -> anyhow::Result<Self> {
        let path = workspace_root().join("node-agent/units/bascule-agent.service");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let values = |key: &'static str| text.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='));
        let minutes: u64 = values("WatchdogSec")
            .find_map(|time| time.strip_suffix("min")?.parse().ok())
            .context("the unit has no WatchdogSec in minutes")?;
        let patience = Duration::from_secs(60 * minutes);
        // The variables decide how much memory is kept.
        let pairs = values("Environment").flat_map(str::split_whitespace).map(|variable| variable.split_once('='));
        let mut environment = pairs
            .map(|pair| pair.map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect::<Option<Vec<_>>>()
            .context("a variable of the unit has no value")?;
        environment.push(("NOTIFY_SOCKET".to_owned(), format!("/{SOCKET}")));
        environment.push(("WATCHDOG_USEC".to_owned(), patience.as_micros().to_string()));
        let socket = UnixDatagram::bind(root.join(SOCKET)).context("listening as systemd does")?;
        let heard = Arc::<Mutex<Heard>>::default();
        tokio::spawn(hear(socket, Arc::clone(&heard)));
        Ok(Self { patience, environment, heard })
    }

    /// What the agent is started with.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    /// For the table.
    pub(super) fn watchdog_told(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = if heard.ready { "READY was said" } else { "READY was never said" };
        let times = heard.times;
        format!("{} s, fed {times} times since the start; {ready}", heard.longest.as_secs())
    }
}

async fn hear(socket: UnixDatagram, heard: Arc<Mutex<Heard>>) {
    let mut buffer = [0_u8; 4096];
    while let Ok(length) = socket.recv(&mut buffer).await {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        let (mut heard, now) = (heard.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        for line in text.lines() {
            match line {
                "READY=1" => heard.ready = true,
                "WATCHDOG=1" => {
                    let waited = heard.fed.map(|fed| now - fed).unwrap_or_default();
                    heard.longest = heard.longest.max(waited);
                    heard.fed = Some(now);
                    heard.times += 1;
                }
                _ => {}
            }
        }
    }
}
