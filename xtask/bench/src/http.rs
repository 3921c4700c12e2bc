//! HTTP on loopback, just enough to measure with: a file server with single ranges, and a source that asks it.
//!
//! The repository's own transport is measured elsewhere; here the figure is to be that of decoding and writing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use bascule_image::io::Source;

/// Serves the files of `folder` until killed; prints the port on the first line.
pub(crate) fn serve(folder: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        let (stream, folder) = (stream?, folder.to_owned());
        std::thread::spawn(move || {
            if let Err(error) = answer(stream, &folder) {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

fn answer(stream: TcpStream, folder: &Path) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().context("no request")??;
    let name = request.split(' ').nth(1).context("no path")?.trim_start_matches('/').to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            let (first, last) = bytes.split_once('-').context("no range")?;
            range = Some((first.parse::<u64>()?, last.parse::<u64>()?));
        }
    }
    let file = File::open(folder.join(Path::new(&name).file_name().context("no file")?))?;
    let size = file.metadata()?.len();
    let (status, first, length) = match range {
        Some((first, last)) => ("206 Partial Content", first, last + 1 - first),
        None => ("200 OK", 0, size),
    };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let mut buffer = vec![0; 256 << 10];
    let mut sent = 0;
    while sent < length {
        let part = buffer.get_mut(..(length - sent).min(256 << 10) as usize).unwrap_or_default();
        file.read_exact_at(part, first + sent)?;
        stream.write_all(part)?;
        sent += part.len() as u64;
    }
    Ok(())
}

/// A pack on the server above.
pub(crate) struct HttpSource {
    pub(crate) port: u16,
    pub(crate) name: String,
}

impl Source for HttpSource {
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let last = offset + length.saturating_sub(1);
        write!(stream, "GET /{} HTTP/1.1\r\nHost: localhost\r\nRange: bytes={offset}-{last}\r\n\r\n", self.name)?;
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if !line.contains(" 206 ") {
            return Err(io::Error::other(format!("the server answered {line:?}")));
        }
        while !line.trim().is_empty() {
            line.clear();
            reader.read_line(&mut line)?;
        }
        Ok(Box::new(reader))
    }
}
