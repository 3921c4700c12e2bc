//! Release repositories as the agent sees them: one verified release at a time.

use std::io::Write;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bascule_api::{NodeError, PackFallback, RootHash, Version};
use bascule_image::Manifest;
use bascule_image::io::{ReadAt, Source};
use bascule_image::release::manifest::Pack;
use bascule_image::release::names::Severity;

use crate::core::ReleaseQuery;

/// Why a release, or something of it, can't be had. The message ends with what to do.
#[derive(Debug, thiserror::Error)]
#[error("release {version} from {repository}: {message}")]
pub struct FetchError {
    /// The version asked for.
    pub version: Version,
    /// The repository.
    pub repository: String,
    /// What happened.
    pub message: String,
    /// `Network`, `Trust`, `Unsuitable`, `Storage` or `Internal`.
    pub category: NodeError,
    /// Whether trying again may help without anybody's doing.
    pub transient: bool,
    /// The caller had asked to stop.
    pub cancelled: bool,
    /// Why.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How bytes are moved.
#[derive(Debug, Clone, Default)]
pub struct TransferOptions {
    /// Most bytes a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
}

/// Which pack is used, and which should have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackReport {
    /// The pack as the manifest describes it.
    pub pack: Pack,
    /// Cheaper packs that the server does not have, with the reason.
    pub passed_over: Vec<String>,
}

/// A pack that is there.
pub struct OpenPack {
    /// Which.
    pub report: PackReport,
    /// Its bytes.
    pub source: Box<dyn Source>,
    /// Bytes received so far.
    pub transferred: Arc<AtomicU64>,
}

impl std::fmt::Debug for OpenPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPack").field("report", &self.report).finish_non_exhaustive()
    }
}

/// The release repositories. Blocking; every call ends in bounded time.
pub trait Releases: Send + Sync {
    /// Reads and verifies metadata, channel and manifest against the trust root of the OS image.
    fn resolve(&self, query: &ReleaseQuery) -> Result<Arc<dyn ResolvedRelease>, FetchError>;
}

/// A release whose manifest is verified, and whose digest is the one asked for.
pub trait ResolvedRelease: Send + Sync {
    /// The manifest.
    fn manifest(&self) -> &Manifest;

    /// How much it matters, as the channel has signed it.
    fn severity(&self) -> Severity;

    /// Opens the cheapest pack that is there and that decodes from nothing or from one of `bases`.
    fn open_pack(
        &self,
        bases: &[RootHash],
        fallback: PackFallback,
        options: &TransferOptions,
    ) -> Result<OpenPack, FetchError>;

    /// Opens the UKI where it lies, to look at parts of it. Nothing vouches for what is read: it may only be a reason not to
    /// begin. Who uses the file takes it from [`ResolvedRelease::copy_uki`].
    fn open_uki(&self, options: &TransferOptions) -> Result<Box<dyn ReadAt>, FetchError>;

    /// Copies the UKI to `out`. What was written must not be used unless this returns `Ok`: the digest is known only at
    /// the end.
    fn copy_uki(&self, out: &mut dyn Write, options: &TransferOptions) -> Result<(), FetchError>;
}
