//! A release repository in memory: what it gives out counts as verified, as after a real one's metadata was checked.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bascule_agent::host::{FetchError, OpenPack, PackReport, ReleaseQuery, Releases, ResolvedRelease, TransferOptions};
use bascule_api::{ChannelName, NodeError, PackFallback, ReleaseRef};
use bascule_image::Manifest;
use bascule_image::digest::Sha256;
use bascule_image::io::ReadAt;
use bascule_image::release::names::Severity;
use bascule_names::{Digest, NameError, RootHash};

use crate::tiny::TinyRelease;

/// Where the releases claim to come from.
pub const REPOSITORY: &str = "https://releases.invalid/acme-os";

/// Called at each download, in the thread that makes it.
type OnDownload = Arc<dyn Fn(&TransferOptions) + Send + Sync>;

/// Whether a download breaks off.
type Fails = Arc<dyn Fn() -> bool + Send + Sync>;

/// The releases by the digest of their manifest.
#[derive(Default)]
pub struct SimReleases {
    known: BTreeMap<Digest, Arc<Published>>,
    on_download: Option<OnDownload>,
    fails: Option<Fails>,
}

impl std::fmt::Debug for SimReleases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimReleases").field("known", &self.known).finish_non_exhaustive()
    }
}

/// A release with what its manifest promises.
#[derive(Debug)]
struct Published {
    release: TinyRelease,
    manifest: Manifest,
}

/// A published release as it is given out.
struct Offered {
    published: Arc<Published>,
    on_download: Option<OnDownload>,
    fails: Option<Fails>,
}

impl SimReleases {
    /// Publishes these.
    pub fn of<'a>(releases: impl IntoIterator<Item = &'a TinyRelease>) -> Self {
        let known = releases.into_iter().map(|release| {
            let published = Published { manifest: release.manifest.clone(), release: release.clone() };
            (digest_of(release), Arc::new(published))
        });
        Self { known: known.collect(), on_download: None, fails: None }
    }

    /// Boot images can't be downloaded while `fails` says so.
    #[must_use]
    pub fn failing(self, fails: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { fails: Some(Arc::new(fails)), ..self }
    }

    /// Calls `note` at each download, in the thread that makes it.
    #[must_use]
    pub fn noting(self, note: impl Fn(&TransferOptions) + Send + Sync + 'static) -> Self {
        Self { on_download: Some(Arc::new(note)), ..self }
    }
}

/// The digest of a release's manifest.
pub fn digest_of(release: &TinyRelease) -> Digest {
    Sha256::of(&release.manifest_bytes).into()
}

/// A release as the operator names it.
pub fn reference(release: &TinyRelease) -> Result<ReleaseRef, NameError> {
    Ok(ReleaseRef {
        version: release.manifest.version.clone(),
        digest: digest_of(release),
        repository: REPOSITORY.to_owned(),
        channel: ChannelName::parse("stable")?,
    })
}

impl Releases for SimReleases {
    fn resolve(&self, query: &ReleaseQuery) -> Result<Arc<dyn ResolvedRelease>, FetchError> {
        match self.known.get(&query.digest) {
            Some(published) => {
                let (on_download, fails) = (self.on_download.clone(), self.fails.clone());
                Ok(Arc::new(Offered { published: published.clone(), on_download, fails }))
            }
            None => Err(FetchError {
                version: query.version.clone(),
                repository: query.repository.clone(),
                message: "the repository does not list it; publish it".to_owned(),
                category: NodeError::Trust,
                transient: false,
                cancelled: false,
                source: None,
            }),
        }
    }
}

impl ResolvedRelease for Offered {
    fn manifest(&self) -> &Manifest {
        &self.published.manifest
    }

    fn severity(&self) -> Severity {
        Severity::None
    }

    fn open_pack(
        &self,
        bases: &[RootHash],
        _fallback: PackFallback,
        options: &TransferOptions,
    ) -> Result<OpenPack, FetchError> {
        self.note(options);
        let release = &self.published.release;
        let delta = release.delta.as_ref().filter(|(base, _)| bases.iter().any(|held| Sha256::from(held) == *base));
        let (entry, bytes) = match delta {
            Some((_, delta)) => (self.manifest().packs.last(), delta),
            None => (self.manifest().packs.first(), &release.pack),
        };
        let pack = entry.cloned().ok_or_else(|| self.broken("the manifest has no pack"))?;
        Ok(OpenPack {
            report: PackReport { pack, passed_over: Vec::new() },
            source: Box::new(bytes.clone()),
            transferred: Arc::new(AtomicU64::new(0)),
        })
    }

    fn open_uki(&self, _: &TransferOptions) -> Result<Box<dyn ReadAt>, FetchError> {
        Ok(Box::new(self.published.release.uki.clone()))
    }

    fn copy_uki(&self, out: &mut dyn Write, options: &TransferOptions) -> Result<(), FetchError> {
        self.note(options);
        if self.fails.as_ref().is_some_and(|fails| fails()) {
            return Err(FetchError {
                category: NodeError::Network,
                transient: true,
                ..self.broken("the connection broke off")
            });
        }
        out.write_all(&self.published.release.uki).map_err(|source| FetchError {
            source: Some(Box::new(source)),
            category: NodeError::Storage,
            ..self.broken("the boot image can't be written")
        })
    }
}

impl Offered {
    fn note(&self, options: &TransferOptions) {
        if let Some(note) = &self.on_download {
            note(options);
        }
    }

    fn broken(&self, message: &str) -> FetchError {
        FetchError {
            version: self.manifest().version.clone(),
            repository: REPOSITORY.to_owned(),
            message: message.to_owned(),
            category: NodeError::Internal,
            transient: false,
            cancelled: false,
            source: None,
        }
    }
}
