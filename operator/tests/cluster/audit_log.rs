//! What the operators of these tests write into the audit part of their log, read back as a person would: as text.

use std::io::Write;
use std::sync::{Mutex, Once};
use tracing_subscriber::EnvFilter;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what is audited from now on, in this and every other test.
pub fn keep() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let audit = EnvFilter::new("off,audit=info");
        tracing_subscriber::fmt().with_env_filter(audit).with_writer(|| Log).with_ansi(false).init();
    });
}

/// The lines about an object, e.g. `Pod default/web-1`. Names are told apart by what Kubernetes puts behind them.
pub fn about(object: &str) -> Vec<String> {
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let object = format!("object=\"{object}\"");
    log.lines().filter(|line| line.contains(&object)).map(str::to_owned).collect()
}
