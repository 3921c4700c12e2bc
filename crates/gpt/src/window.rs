//! What the library reads and writes: a piece of a disk in memory.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// Header and entries of one copy lie within so many bytes.
const MAX_TABLE: usize = 1 << 20;

/// A piece of a disk in memory, addressed as on the disk. It grows where it is written.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) position: u64,
}

impl Window {
    /// The bytes at a place of the disk; zeros where nothing was written.
    pub(crate) fn piece(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(length).unwrap_or(0)];
        let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let there = self.bytes.get(from..).unwrap_or_default();
        out.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        out
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.position.checked_sub(self.start).and_then(|from| usize::try_from(from).ok());
        let there = from.and_then(|from| self.bytes.get(from..)).unwrap_or_default();
        let count = buffer.len().min(there.len());
        buffer.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.start = self.position;
        }
        if self.position < self.start {
            let gap = usize::try_from(self.start - self.position).ok().filter(|gap| *gap <= MAX_TABLE);
            let gap = gap.ok_or(io::ErrorKind::InvalidInput)?;
            self.bytes.splice(0..0, std::iter::repeat_n(0, gap));
            self.start = self.position;
        }
        let from = usize::try_from(self.position - self.start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = from.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        // A header and its entries lie next to each other; anything further apart is not a table of ours.
        if end > MAX_TABLE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(to) = self.bytes.get_mut(from..end) {
            to.copy_from_slice(bytes);
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(by) => self.position.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.position)
    }
}
