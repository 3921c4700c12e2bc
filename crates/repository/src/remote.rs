//! Big files of a release, read by blocking threads: packs by ranges, a UKI from front to end.
//!
//! `bascule-image` decodes on plain threads and asks for ranges through its blocking `Source`; the HTTP client is async.
//! A range is handed over piece by piece: at most [`READ_AHEAD`] pieces of an open range are in memory.

use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bascule_image::digest::Sha256Stream;
use bascule_image::io::{FileSource, Source};
use bascule_names::Digest;
use bytes::{Buf as _, Bytes};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::error::Error;
use crate::http::{FetchError, HttpClient, RangeReader, Validator};

/// How a big file is read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Stops every open and later read with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Most bytes a second, over all ranges of this file together.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// A file of the repository, open for reading by ranges. Shared between threads; never used from inside async code.
#[derive(Debug)]
pub struct RemoteFile {
    origin: Origin,
    length: u64,
    transferred: Arc<AtomicU64>,
    pace: Arc<Pace>,
    cancel: CancellationToken,
    runtime: Handle,
}

#[derive(Debug)]
enum Origin {
    Http { client: HttpClient, url: Url, validator: Validator, deadline: Instant },
    Local(FileSource),
}

impl RemoteFile {
    pub(crate) fn http(client: HttpClient, url: Url, length: u64, options: ReadOptions, runtime: Handle) -> Self {
        let deadline = Instant::now() + client.settings().download_deadline;
        let validator = Validator::new(length);
        Self::new(Origin::Http { client, url, validator, deadline }, length, options, runtime)
    }

    pub(crate) fn local(file: std::fs::File, length: u64, options: ReadOptions, runtime: Handle) -> Self {
        Self::new(Origin::Local(FileSource(file)), length, options, runtime)
    }

    fn new(origin: Origin, length: u64, options: ReadOptions, runtime: Handle) -> Self {
        let pace = Arc::new(Pace::new(options.bytes_per_second));
        Self { origin, length, transferred: Arc::default(), pace, cancel: options.cancel, runtime }
    }

    /// The signed length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes received so far, counting what had to be received twice. The counter may be kept beyond the file.
    pub fn transferred(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.transferred)
    }

    /// Asks for one byte, to learn whether the file is there before it is relied on.
    pub(crate) async fn probe(&self) -> Result<(), FetchError> {
        match &self.origin {
            Origin::Local(_) => Ok(()),
            Origin::Http { client, url, validator, deadline } => {
                let at = self.length.saturating_sub(1);
                RangeReader::new(client.clone(), url.clone(), validator.clone(), at, 1, *deadline).next().await?;
                Ok(())
            }
        }
    }

    /// Copies the whole file to `out` and compares its digest. Blocking.
    ///
    /// What was written must not be used unless this returns `Ok`: the digest is known only at the end.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for other bytes, the download's error, or the sink's own as [`Error::Format`].
    pub fn copy_verified(&self, expected: &Digest, name: &str, out: &mut dyn Write) -> Result<(), Error> {
        let mut stream = self.read_range(0, self.length).map_err(|error| reading(name, error))?;
        let mut digest = Sha256Stream::new();
        let mut buffer = vec![0; 64 << 10];
        let mut received = 0u64;
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading(name, error)),
            };
            let piece = buffer.get(..count).unwrap_or_default();
            received += count as u64;
            digest.update(piece);
            let failed =
                |source: io::Error| Error::Format { what: format!("the copy of {name}"), source: source.into() };
            out.write_all(piece).map_err(failed)?;
        }
        let found = Digest::from(digest.finish());
        if received != self.length || found != *expected {
            let reason = format!("signed are {} bytes with {expected}, received {received} with {found}", self.length);
            return Err(Error::Mismatch { what: name.to_owned(), reason });
        }
        Ok(())
    }
}

/// Takes our own error out of an `io::Error` that went through a blocking reader.
fn reading(name: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => Error::Format { what: name.to_owned(), source: error.into() },
    }
}

/// The error that stopped a pack, if it came from here: `bascule-image` passes `io::Error` through as a source.
pub fn download_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(own) = inner.downcast_ref::<Error>() {
            return Some(own);
        }
        // `io::Error::other` is transparent: its source skips the wrapped error itself.
        if let Some(wrapped) = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            cause = Some(wrapped);
            continue;
        }
        cause = inner.source();
    }
    None
}

impl Source for RemoteFile {
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let inner: Box<dyn Read + Send + '_> = match &self.origin {
            Origin::Local(file) => file.read_range(offset, length)?,
            Origin::Http { client, url, validator, deadline } => {
                let reader =
                    RangeReader::new(client.clone(), url.clone(), validator.clone(), offset, length, *deadline);
                Box::new(BlockingRange::start(reader, &self.runtime, self.cancel.clone()))
            }
        };
        Ok(Box::new(Counted { inner, file: self }))
    }
}

/// Pieces that may wait between the network and the reader, so that neither stands still while the other works. A piece
/// is at most what the HTTP library reads at once (TLS records of 16 KiB, HTTP/2 frames of the same size).
const READ_AHEAD: usize = 16;

/// Hands an async range to a blocking reader. Dropping it ends the download.
struct BlockingRange {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    piece: Bytes,
}

impl BlockingRange {
    fn start(mut reader: RangeReader, runtime: &Handle, cancel: CancellationToken) -> Self {
        let (sender, pieces) = mpsc::channel(READ_AHEAD);
        runtime.spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err(Error::Cancelled),
                    () = sender.closed() => return,
                    piece = reader.next() => piece.map_err(Error::Fetch),
                };
                let (message, last) = match next {
                    Ok(Some(piece)) => (Ok(piece), false),
                    Ok(None) => return,
                    Err(error) => (Err(error), true),
                };
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for BlockingRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..count) {
            self.piece.copy_to_slice(to);
        }
        Ok(count)
    }
}

/// Counts, slows down and stops.
struct Counted<'a> {
    inner: Box<dyn Read + Send + 'a>,
    file: &'a RemoteFile,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.file.cancel.is_cancelled() {
            return Err(io::Error::other(Error::Cancelled));
        }
        let count = self.inner.read(buffer)?;
        self.file.transferred.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(pause) = self.file.pace.owe(count as u64) {
            let cancel = &self.file.cancel;
            self.file.runtime.block_on(async {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            });
        }
        Ok(count)
    }
}

/// A rate limit over all readers of a file: each read moves the time at which the next byte is due.
#[derive(Debug)]
struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    due: std::sync::Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, due: std::sync::Mutex::new(Instant::now()) }
    }

    /// How long the reader of `bytes` has to wait before it reads again.
    fn owe(&self, bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_second?;
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *due = (*due).max(now) + cost;
        Some(*due - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_shared_and_does_not_save_up_idle_time() {
        let pace = Pace::new(NonZeroU64::new(1000));
        assert_eq!(pace.owe(500), Some(Duration::from_millis(500)));
        assert_eq!(pace.owe(500), Some(Duration::from_millis(1000)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(pace.owe(1000), Some(Duration::from_millis(1000)));
        assert_eq!(Pace::new(None).owe(1 << 30), None);
    }

    #[test]
    fn our_error_is_found_through_wrappers() {
        let wrapped = io::Error::other(io::Error::other(Error::Cancelled));
        assert!(matches!(download_error(&wrapped), Some(Error::Cancelled)));
        assert!(download_error(&io::Error::other("else")).is_none());
    }
}
