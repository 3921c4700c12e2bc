//! The three small traits at the edge of the crate: where packs come from, where the base is read, where a slot is written.
//!
//! All are blocking and shared between the worker threads. Errors are `std::io::Error`; an implementation that has a
//! richer error wraps it with `io::Error::other`, and the caller finds it again as the source of ours.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Where a pack lies: an HTTP server, a file, memory.
pub trait Source: Send + Sync {
    /// Opens a stream over `length` bytes from `offset`. The stream may be shorter (then the caller reports a truncated
    /// pack) but the caller never reads more than `length` bytes of it. Retries and resuming a broken connection are the
    /// implementation's work; an error is final for this range.
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>>;
}

/// Bytes that can be read at any place: a running slot, an image file.
pub trait ReadAt: Send + Sync {
    /// Fills the whole of `buffer` from `offset`, or fails (`UnexpectedEof` past the end).
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
}

/// A slot that is being written. It can be read, because resuming looks at what already lies there.
pub trait Sink: ReadAt {
    /// Writes the whole of `bytes` at `offset`. Never called with bytes that were not checked.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes `length` bytes from `offset` read as zeros. An implementation may punch a hole or discard.
    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        const CHUNK: u64 = 64 << 10;
        let zeros = [0; CHUNK as usize];
        let mut written = 0;
        while written < length {
            let step = (length - written).min(CHUNK);
            let chunk = zeros.get(..step as usize).unwrap_or(&zeros);
            self.write_at(chunk, offset + written)?;
            written += step;
        }
        Ok(())
    }

    /// Makes what was written durable (`fdatasync`).
    fn flush(&self) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        // Block devices report a length of 0 in their metadata; the end of a seek is right for both.
        let mut handle: &File = self;
        io::Seek::seek(&mut handle, io::SeekFrom::End(0))
    }
}

impl Sink for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// A pack in a local file (or a part of a file read through the kernel).
#[derive(Debug)]
pub struct FileSource(pub File);

impl Source for FileSource {
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(ReadAtStream { inner: &self.0, offset, left: length }))
    }
}

struct ReadAtStream<'a> {
    inner: &'a File,
    offset: u64,
    left: u64,
}

impl Read for ReadAtStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..wanted) else { return Ok(0) };
        let read = FileExt::read_at(self.inner, part, self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Source for Vec<u8> {
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(self.len());
        Ok(Box::new(self.get(start..end).unwrap_or_default()))
    }
}
