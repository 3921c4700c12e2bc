//! What the tests share: images that look like file systems, made without a random source, and slots in memory.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::{ReadAt, Sink};

/// Knuth's linear congruential generator: the same numbers for the same seed, everywhere.
pub(crate) struct Lcg(u64);

impl Lcg {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// An image of blocks: text-like files of some blocks each, here and there zeros or noise. No two files are alike.
pub(crate) fn image_with_files(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Lcg::new(seed);
    let mut image = Vec::with_capacity(size);
    while image.len() < size {
        let length = (1 + random.next() as usize % 24) * 4096;
        match random.next() % 16 {
            0 => image.extend(vec![0; length]),
            1 => image.extend(random.bytes(length)),
            _ => {
                image.extend((0..length / 8).flat_map(|_| format!("{:07x} ", random.next() & 0xFFF_FFFF).into_bytes()))
            }
        }
    }
    image.truncate(size / 4096 * 4096);
    image
}

/// A release later: some blocks inserted, some bytes changed everywhere, some blocks dropped. Same size.
pub(crate) fn next_release(image: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Lcg::new(seed);
    let mut next = Vec::with_capacity(image.len() + (64 << 10));
    for block in image.chunks(4096) {
        match random.next() % 64 {
            0 => next.extend(random.bytes(4096)),
            1 => continue,
            2..8 => {
                let at = next.len();
                next.extend_from_slice(block);
                next[at + random.next() as usize % 4096] ^= 0x55;
                continue;
            }
            _ => {}
        }
        next.extend_from_slice(block);
    }
    next.resize(image.len(), 7);
    next
}

/// A slot in memory that counts what is done to it.
pub(crate) struct Slot {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) written: AtomicU64,
    pub(crate) flushes: AtomicU64,
    /// Writing fails from this many written bytes on.
    pub(crate) full_after: u64,
}

impl Slot {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let bytes = Mutex::new(bytes);
        Self { bytes, written: AtomicU64::new(0), flushes: AtomicU64::new(0), full_after: u64::MAX }
    }
}

impl ReadAt for Slot {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
}

impl Sink for Slot {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.written.fetch_add(bytes.len() as u64, Ordering::SeqCst) >= self.full_after {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut slot = self.bytes.lock().unwrap();
        let start = offset as usize;
        let to = slot.get_mut(start..start + bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
