//! Free loopback ports. The kernel gives one, but it is free again until the program that wants it has bound it; what
//! was given once is not given again by this process, and `start` tries anew when another process was faster.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rand::RngExt;

/// Below the range that Linux takes the ports of outgoing connections from (`ip_local_port_range`, from 32768 by default).
const LASTING: std::ops::Range<u16> = 20_000..32_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on 127.0.0.1 that nobody listens on now and that this process has not handed out before.
///
/// # Errors
/// When the system has no port left.
pub fn free_port() -> std::io::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Held until one is found, so that the kernel does not offer the same one again.
    let mut refused = Vec::new();
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        if given.insert(port) {
            return Ok(port);
        }
        refused.push(listener);
    }
}

/// As [`free_port`], for a server that goes away and comes back: a port that meanwhile becomes nobody's outgoing one. (On
/// loopback a client that keeps trying to reach a port that is closed can even end up connected to itself.)
///
/// # Errors
/// When no port of the range is free.
pub(super) fn lasting_port() -> std::io::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for _ in LASTING {
        let port = rand::rng().random_range(LASTING);
        if given.contains(&port) {
            continue;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => {
                given.insert(port);
                return Ok(port);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
