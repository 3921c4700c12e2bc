//! The Network Block Device protocol, as much as QEMU asks for: fixed newstyle negotiation with `NBD_OPT_GO`, simple
//! replies, reads, writes, flushes and forced unit access (NBD protocol, doc/proto.md of the nbd project).

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use super::{Answer, Disk};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no padding after the old export option.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// Has flags, sends flush, sends forced unit access.
const TRANSMISSION_FLAGS: u16 = 0b1101;

const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACKNOWLEDGE: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) | 1;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const FLAG_FORCE_UNIT_ACCESS: u16 = 1;
const ERROR_IO: u32 = 5;
const ERROR_INVALID: u32 = 22;

/// Longest request in bytes; QEMU asks for at most 32 MiB.
const MAX_REQUEST: u32 = 64 << 20;
/// Longest option in bytes.
const MAX_OPTION: u32 = 4096;

/// Serves one disk to one QEMU.
#[derive(Debug)]
pub struct Server {
    /// Ends when QEMU closes its side.
    _thread: JoinHandle<()>,
}

impl Server {
    /// Listens at `socket` for the one connection that QEMU makes. Returns once a connection can be made.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn start(disk: Disk, socket: &Path) -> io::Result<Self> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)?;
        let thread = thread::Builder::new().name("disk".to_owned()).spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                // An error here is QEMU's end, or the harness's own kill of it.
                let _ = serve(&disk, stream);
            }
        })?;
        Ok(Self { _thread: thread })
    }
}

fn serve(disk: &Disk, mut stream: UnixStream) -> io::Result<()> {
    if !negotiate(disk, &mut stream)? {
        return Ok(());
    }
    let mut buffer = Vec::new();
    loop {
        if read_u32(&mut stream)? != REQUEST_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let flags = read_u16(&mut stream)?;
        let command = read_u16(&mut stream)?;
        let cookie = read_u64(&mut stream)?;
        let offset = read_u64(&mut stream)?;
        let length = read_u32(&mut stream)?;
        if length > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buffer.clear();
        let answer = match command {
            COMMAND_READ => {
                buffer.resize(length as usize, 0);
                disk.serve_read(offset, &mut buffer)
            }
            COMMAND_WRITE => {
                buffer.resize(length as usize, 0);
                stream.read_exact(&mut buffer)?;
                let done = disk.serve_write(offset, &buffer, flags & FLAG_FORCE_UNIT_ACCESS != 0);
                buffer.clear();
                done
            }
            COMMAND_FLUSH => disk.serve_flush(),
            COMMAND_DISCONNECT => return Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        let error = match answer {
            Ok(Answer::Done) => 0,
            Ok(Answer::Silence) => continue,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => ERROR_INVALID,
            Err(_) => ERROR_IO,
        };
        stream.write_all(&REPLY_MAGIC.to_be_bytes())?;
        stream.write_all(&error.to_be_bytes())?;
        stream.write_all(&cookie.to_be_bytes())?;
        if error == 0 {
            stream.write_all(&buffer)?;
        }
    }
}

/// Returns whether requests follow.
fn negotiate(disk: &Disk, stream: &mut UnixStream) -> io::Result<bool> {
    stream.write_all(&MAGIC.to_be_bytes())?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    read_u32(stream)?;
    loop {
        if read_u64(stream)? != OPTION_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let option = read_u32(stream)?;
        let length = read_u32(stream)?;
        if length > MAX_OPTION {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // There is one export; whatever name is asked for is that one.
        io::copy(&mut Read::by_ref(stream).take(u64::from(length)), &mut io::sink())?;
        match option {
            OPTION_GO | OPTION_INFO => {
                let mut info = vec![0, 0];
                info.extend_from_slice(&disk.state().length.to_be_bytes());
                info.extend_from_slice(&TRANSMISSION_FLAGS.to_be_bytes());
                reply(stream, option, REPLY_INFO, &info)?;
                reply(stream, option, REPLY_ACKNOWLEDGE, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                reply(stream, option, REPLY_ACKNOWLEDGE, &[])?;
                return Ok(false);
            }
            _ => reply(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn reply(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    stream.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
    stream.write_all(&option.to_be_bytes())?;
    stream.write_all(&kind.to_be_bytes())?;
    stream.write_all(&(data.len() as u32).to_be_bytes())?;
    stream.write_all(data)
}

fn read_u16(stream: &mut UnixStream) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
