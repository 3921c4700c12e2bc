//! What every long operation of this crate shares: reporting progress, being cancelled, and buffers that suit O_DIRECT.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The caller asked to stop; what was written so far is whole frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Bytes done of bytes in all. What is counted (image bytes) is the same from start to end of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Image bytes that are done.
    pub done: u64,
    /// Image bytes in all.
    pub total: u64,
}

/// How a caller follows and stops an operation. The callback runs on worker threads, often: it must be quick.
pub struct Watch<'a> {
    total: u64,
    done: AtomicU64,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    cancel: Option<&'a AtomicBool>,
}

impl<'a> Watch<'a> {
    /// Follows an operation over `total` bytes.
    pub const fn new(
        total: u64,
        progress: Option<&'a (dyn Fn(Progress) + Sync)>,
        cancel: Option<&'a AtomicBool>,
    ) -> Self {
        Self { total, done: AtomicU64::new(0), progress, cancel }
    }

    /// Nobody looks and nobody cancels.
    pub const fn none() -> Self {
        Self::new(0, None, None)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = self.progress {
            progress(Progress { done, total: self.total });
        }
    }

    pub(crate) fn check(&self) -> Result<(), Cancelled> {
        match self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Cancelled),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("total", &self.total).field("done", &self.done).finish_non_exhaustive()
    }
}

/// A buffer whose start is aligned to 4096 bytes, so that a reader may use O_DIRECT without copying.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT).min(Self::ALIGNMENT);
        Self { bytes, start }
    }

    /// The first `length` bytes; all of the buffer when it is shorter.
    pub(crate) fn prefix(&mut self, length: usize) -> &mut [u8] {
        let end = self.start.saturating_add(length).min(self.bytes.len());
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }
}
