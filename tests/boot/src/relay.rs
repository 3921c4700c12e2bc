//! The one way out of a machine: QEMU starts this program for each connection that the machine makes to the relay's
//! address, with the connection as standard input and output; it leads to the same port of the host's loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;

/// Where the relay is, seen from the machine. The user-mode network (10.0.2.0/24) reaches nothing else.
pub const ADDRESS: &str = "10.0.2.100";

/// Joins standard input and output with `port` of the loopback until either side ends.
///
/// # Errors
/// When nothing listens there.
pub fn run(port: u16) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let mut to_server = server.try_clone()?;
    // Standard streams of the library are buffered by line; the connection itself is not.
    let mut from_machine = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut to_machine = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut from_server = server;
    thread::spawn(move || {
        pump(&mut from_machine, &mut to_server);
        // The server then ends its side, and with it the loop below.
        let _ = to_server.shutdown(Shutdown::Write);
    });
    pump(&mut from_server, &mut to_machine);
    Ok(())
}

fn pump(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return };
        if to.write_all(bytes).is_err() {
            return;
        }
    }
}
