//! The host's view of release repositories over `bascule-repository`: the same on a real machine and in the sandbox.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_api::{NodeError, PackFallback, RootHash};
use bascule_image::Manifest;
use bascule_image::io::{ReadAt, Source};
use bascule_image::release::names::Severity;
use bascule_repository::select::{self, Choice, Held, MissingPack, Wanted};
use bascule_repository::time::Now;
use bascule_repository::{
    DatastoreLocation, Error, Fetcher, HttpClient, HttpSettings, OpenOptions, ReadOptions, Repository, VerifiedManifest,
};
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::engine::{category_of, in_one_line};
use crate::host::{Clock, FetchError, OpenPack, PackReport, ReleaseQuery, Releases, ResolvedRelease, TransferOptions};

/// Largest trust root in bytes.
const MAX_TRUST_ROOT: u64 = 64 << 10;
/// How much of a remote file is asked for at once, at the least.
const READ_AHEAD: u64 = 1 << 20;
/// How soon a stopped transfer is noticed.
const LOOK_FOR_STOP: Duration = Duration::from_millis(200);
/// Longest time for metadata, channel and manifest together; each file has a deadline of its own.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(900);

/// Where and how to read repositories.
#[derive(Debug, Clone)]
pub struct RepositoryOptions {
    /// The first `root.json`, part of the OS image.
    pub trust_root: PathBuf,
    /// Folder for what must never go back.
    pub datastore: PathBuf,
    /// How to fetch.
    pub http: HttpSettings,
    /// Whether `file:` addresses are accepted.
    pub allow_local: bool,
    /// A time that is certainly over: when the OS image was built.
    pub not_before: Option<DateTime<Utc>>,
}

/// Release repositories over HTTPS, or in folders where that is allowed.
pub struct RepositoryReleases {
    options: RepositoryOptions,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

impl std::fmt::Debug for RepositoryReleases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepositoryReleases").field("options", &self.options).finish_non_exhaustive()
    }
}

impl RepositoryReleases {
    /// Repositories that are read on `runtime`. Calls come from other threads than the runtime's own.
    pub fn new(options: RepositoryOptions, clock: Arc<dyn Clock>, runtime: Handle) -> Self {
        Self { options, clock, runtime }
    }

    fn open_options(&self, query: &ReleaseQuery) -> Result<OpenOptions, FetchError> {
        let fail = |category, message: String, source: Option<Box<dyn std::error::Error + Send + Sync>>| FetchError {
            version: query.version.clone(),
            repository: query.repository.clone(),
            message,
            category,
            transient: false,
            cancelled: false,
            source,
        };
        let trust_root = read_trust_root(&self.options.trust_root).map_err(|error| {
            let message = error.to_string();
            fail(NodeError::Settings, message, Some(error.source.into()))
        })?;
        let base = Url::parse(&query.repository)
            .map_err(|error| fail(NodeError::Unsuitable, "the address is no URL".to_owned(), Some(error.into())))?;
        let fetcher = match base.scheme() {
            "file" if self.options.allow_local => Fetcher::Directory,
            _ => {
                let client = HttpClient::new(self.options.http.clone()).map_err(|error| {
                    fail(NodeError::Settings, "no HTTP client with these settings".to_owned(), Some(error.into()))
                })?;
                Fetcher::Http(client)
            }
        };
        // One memory for all addresses: the address comes from the cluster, and whoever controls that must not be able to
        // make the node forget by spelling it differently. A trust root of another repository finds nothing in it that
        // its keys have signed, and starts afresh.
        let datastore = DatastoreLocation::Persistent(self.options.datastore.clone());
        let now = Now { clock: self.clock.now(), not_before: self.options.not_before };
        Ok(OpenOptions { trust_root, base, datastore, fetcher, now })
    }
}

/// There is no root of trust to read repositories by.
#[derive(Debug, thiserror::Error)]
#[error("the trust root {} can't be read: it must be in the OS image", path.display())]
pub struct TrustRootError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads the first `root.json`.
///
/// # Errors
/// It is not there, can't be read, or is longer than any.
pub fn read_trust_root(path: &std::path::Path) -> Result<Vec<u8>, TrustRootError> {
    read_limited(path, MAX_TRUST_ROOT).map_err(|source| TrustRootError { path: path.to_owned(), source })
}

fn read_limited(path: &std::path::Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

impl Releases for RepositoryReleases {
    fn resolve(&self, query: &ReleaseQuery) -> Result<Arc<dyn ResolvedRelease>, FetchError> {
        let failed = |error: Error| fetch_error(query, error);
        let options = self.open_options(query)?;
        let resolved =
            self.runtime.block_on(async { tokio::time::timeout(RESOLVE_DEADLINE, resolve(query, options)).await });
        let (repository, release, severity) = match resolved {
            Ok(outcome) => outcome.map_err(|error| match error {
                ResolveError::Repository(error) => failed(error),
                ResolveError::Refused(message, category) => refusal(query, message, category),
            })?,
            Err(_) => {
                let message = format!("metadata and manifest did not come within {} s", RESOLVE_DEADLINE.as_secs());
                return Err(FetchError { transient: true, ..refusal(query, message, NodeError::Network) });
            }
        };
        Ok(Arc::new(Resolved { query: query.clone(), repository, release, severity, runtime: self.runtime.clone() }))
    }
}

enum ResolveError {
    Repository(Error),
    Refused(String, NodeError),
}

impl From<Error> for ResolveError {
    fn from(error: Error) -> Self {
        Self::Repository(error)
    }
}

async fn resolve(
    query: &ReleaseQuery,
    options: OpenOptions,
) -> Result<(Repository, VerifiedManifest, Severity), ResolveError> {
    let repository = Repository::open(options).await?;
    if repository.metadata().datastore_was_reset {
        tracing::warn!("what was remembered of the repository was damaged; rollback protection begins anew");
    }
    let channel = repository.channel(&query.channel).await?;
    let held = |pair: &Option<(bascule_api::Version, RootHash)>| {
        pair.clone().map(|(version, root_hash)| Held { version, root_hash })
    };
    let host = select::Host {
        product: query.product.clone(),
        architecture: query.architecture,
        booted: held(&query.booted),
        other: held(&query.other),
    };
    let choice = select::decide(&channel, &Wanted::Version(query.version.clone()), &host)
        .map_err(|refusal| ResolveError::Refused(refusal.to_string(), NodeError::Unsuitable))?;
    let release = match choice {
        Choice::StepThrough { step, target } => {
            let message = format!("{} must be installed before {}", step.version, target.version);
            return Err(ResolveError::Refused(message, NodeError::Unsuitable));
        }
        other => other
            .release()
            .ok_or_else(|| ResolveError::Refused("the channel offers nothing".to_owned(), NodeError::Unsuitable))?,
    };
    let verified = repository.manifest(&channel, release, query.architecture).await?;
    if verified.digest != query.digest {
        let message = format!("the repository's manifest is {}, asked was {}", verified.digest, query.digest);
        return Err(ResolveError::Refused(message, NodeError::Trust));
    }
    let severity = release.severity;
    Ok((repository, verified, severity))
}

fn refusal(query: &ReleaseQuery, message: String, category: NodeError) -> FetchError {
    FetchError {
        version: query.version.clone(),
        repository: query.repository.clone(),
        message,
        category,
        transient: false,
        cancelled: false,
        source: None,
    }
}

fn fetch_error(query: &ReleaseQuery, error: Error) -> FetchError {
    FetchError {
        category: category_of(&error),
        transient: error.is_transient(),
        cancelled: matches!(error, Error::Cancelled),
        message: in_one_line(&error),
        ..refusal(query, String::new(), NodeError::Internal)
    }
}

/// A verified release of an open repository.
struct Resolved {
    query: ReleaseQuery,
    repository: Repository,
    release: VerifiedManifest,
    severity: Severity,
    runtime: Handle,
}

impl Resolved {
    /// Turns the engine's flag into the token that the download listens to.
    fn options(&self, options: &TransferOptions) -> ReadOptions {
        let token = CancellationToken::new();
        let flag = Arc::downgrade(&options.cancel);
        let watched = token.clone();
        self.runtime.spawn(async move {
            // Ends with the transfer: nobody holds the token any more, or it is cancelled here.
            loop {
                tokio::time::sleep(LOOK_FOR_STOP).await;
                match flag.upgrade() {
                    Some(flag) if flag.load(std::sync::atomic::Ordering::SeqCst) => return watched.cancel(),
                    Some(_) if !watched.is_cancelled() => {}
                    _ => return,
                }
            }
        });
        ReadOptions { cancel: token, bytes_per_second: options.bytes_per_second }
    }
}

impl ResolvedRelease for Resolved {
    fn manifest(&self) -> &Manifest {
        &self.release.manifest
    }

    fn severity(&self) -> Severity {
        self.severity
    }

    fn open_pack(
        &self,
        bases: &[RootHash],
        fallback: PackFallback,
        options: &TransferOptions,
    ) -> Result<OpenPack, FetchError> {
        let missing = match fallback {
            PackFallback::Allow => MissingPack::FallBack,
            PackFallback::Forbid => MissingPack::Refuse,
        };
        let read = self.options(options);
        let stop = StopWatching(read.cancel.clone());
        let opened = self
            .runtime
            .block_on(self.repository.open_pack(&self.release, bases, missing, &read))
            .map_err(|error| fetch_error(&self.query, error))?;
        let transferred = opened.file.transferred();
        let passed_over =
            opened.missing.iter().map(|(path, error)| format!("{path}: {}", in_one_line(error))).collect();
        Ok(OpenPack {
            report: PackReport { pack: opened.pack, passed_over },
            source: Box::new(Watched { file: opened.file, _stop: stop }),
            transferred,
        })
    }

    fn open_uki(&self, options: &TransferOptions) -> Result<Box<dyn ReadAt>, FetchError> {
        let read = self.options(options);
        let stop = StopWatching(read.cancel.clone());
        let uki = &self.release.manifest.uki;
        let opened = self.runtime.block_on(self.repository.open_file(&self.release, uki, read));
        let file = opened.map_err(|error| fetch_error(&self.query, error))?;
        let length = file.length();
        let (source, query) = (Watched { file, _stop: stop }, self.query.clone());
        Ok(Box::new(Ahead { source, length, query, window: Mutex::default() }))
    }

    fn copy_uki(&self, out: &mut dyn Write, options: &TransferOptions) -> Result<(), FetchError> {
        let failed = |error| fetch_error(&self.query, error);
        let read = self.options(options);
        let _stop = StopWatching(read.cancel.clone());
        let uki = &self.release.manifest.uki;
        let file = self.runtime.block_on(self.repository.open_file(&self.release, uki, read)).map_err(failed)?;
        file.copy_verified(&uki.digest, "the boot image", out).map_err(failed)
    }
}

/// Ends the task that looks for a stop.
struct StopWatching(CancellationToken);

impl Drop for StopWatching {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A remote file whose watching task ends with it.
struct Watched {
    file: bascule_repository::RemoteFile,
    _stop: StopWatching,
}

/// A remote file that is read here and there: more is asked for at once than is wanted, since each request costs a way to the
/// server and back.
struct Ahead<S> {
    source: S,
    length: u64,
    query: ReleaseQuery,
    /// The last piece that came, and where it begins.
    window: Mutex<(u64, Vec<u8>)>,
}

impl<S: Source> Ahead<S> {
    /// What came ended before what was asked for did. The file has the length that was signed, so nothing is known of the rest:
    /// that is the way to the server, not this machine's storage.
    fn ended_early(&self, offset: u64, wanted: u64, came: usize) -> io::Error {
        let message = format!("the range of {wanted} bytes at offset {offset} of the boot image ended after {came}");
        io::Error::other(FetchError { transient: true, ..refusal(&self.query, message, NodeError::Network) })
    }
}

impl<S: Source> ReadAt for Ahead<S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < window.0 || end > window.0 + window.1.len() as u64 {
            let wanted = (buffer.len() as u64).max(READ_AHEAD).min(self.length - offset);
            let mut piece = Vec::new();
            self.source.read_range(offset, wanted)?.take(wanted).read_to_end(&mut piece)?;
            if (piece.len() as u64) < wanted {
                return Err(self.ended_early(offset, wanted, piece.len()));
            }
            *window = (offset, piece);
        }
        let start = usize::try_from(offset - window.0).unwrap_or(usize::MAX);
        let found = window.1.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

impl Source for Watched {
    fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.file.read_range(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bascule_api::{Architecture, ChannelName, Digest, Product, Version};

    use super::*;
    use crate::engine::EffectError;
    use crate::fitness::Unfit;

    /// A server that counts what it is asked for, and breaks off where it is told to.
    struct Server {
        file: Vec<u8>,
        ends: usize,
        asked: AtomicUsize,
    }

    impl Source for &Server {
        fn read_range(&self, offset: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let bytes = self.file.get(..self.ends).unwrap();
            let start = usize::try_from(offset).unwrap().min(bytes.len());
            let end = start.saturating_add(usize::try_from(length).unwrap()).min(bytes.len());
            Ok(Box::new(&bytes[start..end]))
        }
    }

    fn query() -> ReleaseQuery {
        ReleaseQuery {
            repository: "https://releases.invalid/".to_owned(),
            channel: ChannelName::parse("stable").unwrap(),
            version: Version::parse("1.1").unwrap(),
            digest: Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap(),
            product: Product::parse("acme-os").unwrap(),
            architecture: Architecture::X86_64,
            booted: None,
            other: None,
        }
    }

    fn served(length: usize, ends: usize) -> Server {
        let file = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        Server { file, ends, asked: AtomicUsize::new(0) }
    }

    fn ahead(server: &Server) -> Ahead<&Server> {
        Ahead { source: server, length: server.file.len() as u64, query: query(), window: Mutex::default() }
    }

    #[test]
    fn what_is_read_here_and_there_is_asked_for_by_the_mebibyte() {
        let server = served(3 << 20, 3 << 20);
        let file = ahead(&server);
        let last = (3 << 20) - 100;
        // In order, back, over the end of what was asked for, more than that at once, and the last bytes.
        for (offset, length, asked) in
            [(0, 64, 1), (4096, 5000, 1), (1, 1, 1), ((1 << 20) - 8, 16, 2), (0, 2 << 20, 3), (last, 100, 4), (0, 9, 5)]
        {
            let mut found = vec![0; length];
            file.read_at(&mut found, offset).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert_eq!(found, server.file[from..from + length], "{offset} {length}");
            assert_eq!(server.asked.load(Ordering::SeqCst), asked, "{offset} {length}");
        }
        assert_eq!(file.read_at(&mut [0; 2], (3 << 20) - 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.read_at(&mut [0; 2], u64::MAX).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(server.asked.load(Ordering::SeqCst), 5, "what lies outside of the file is not asked for");
    }

    #[test]
    fn a_range_that_ends_early_is_the_networks_and_passes() {
        let server = served(1 << 20, 5000);
        let image = ahead(&server);
        let error = bascule_image::uki::Uki::open(&image).map(|_| ()).unwrap_err();
        let error = EffectError::Unfit(Unfit::Uki(error));
        assert_eq!((error.category(), error.is_transient(), error.is_cancelled()), (NodeError::Network, true, false));
        let told = in_one_line(&error);
        assert!(told.contains("ended after 5000"), "{told}");
        // What came before is no answer to the next question either.
        assert!(image.read_at(&mut [0; 8], 0).is_err());
    }
}
