//! A release repository in memory: what it gives out counts as verified, as after a real one's metadata was checked.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bascule_agent::host::{FetchError, OpenPack, PackReport, ReleaseQuery, Releases, ResolvedRelease, TransferOptions};
use bascule_api::{ChannelName, NodeError, PackFallback, ReleaseRef};
use bascule_image::Manifest;
use bascule_image::digest::Sha256;
use bascule_names::{Digest, NameError, RootHash};

use crate::tiny::TinyRelease;

/// Where the releases claim to come from.
pub const REPOSITORY: &str = "https://releases.invalid/acme-os";

/// The releases by the digest of their manifest.
#[derive(Debug, Default)]
pub struct SimReleases {
    known: BTreeMap<Digest, Arc<Published>>,
}

/// A release with what its manifest promises.
#[derive(Debug)]
struct Published {
    release: TinyRelease,
    manifest: Manifest,
}

impl SimReleases {
    /// Publishes these.
    pub fn of<'a>(releases: impl IntoIterator<Item = &'a TinyRelease>) -> Self {
        let known = releases.into_iter().map(|release| {
            let published = Published { manifest: release.manifest.clone(), release: release.clone() };
            (digest_of(release), Arc::new(published))
        });
        Self { known: known.collect() }
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
            Some(published) => Ok(published.clone()),
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

impl ResolvedRelease for Published {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn open_pack(
        &self,
        _bases: &[RootHash],
        _fallback: PackFallback,
        _options: &TransferOptions,
    ) -> Result<OpenPack, FetchError> {
        let pack = self.manifest.packs.first().cloned().ok_or_else(|| self.broken("the manifest has no pack"))?;
        Ok(OpenPack {
            report: PackReport { pack, passed_over: Vec::new() },
            source: Box::new(self.release.pack.clone()),
            transferred: Arc::new(AtomicU64::new(0)),
        })
    }

    fn copy_uki(&self, out: &mut dyn Write, _options: &TransferOptions) -> Result<(), FetchError> {
        out.write_all(&self.release.uki).map_err(|source| FetchError {
            source: Some(Box::new(source)),
            category: NodeError::Storage,
            ..self.broken("the boot image can't be written")
        })
    }
}

impl Published {
    fn broken(&self, message: &str) -> FetchError {
        FetchError {
            version: self.manifest.version.clone(),
            repository: REPOSITORY.to_owned(),
            message: message.to_owned(),
            category: NodeError::Internal,
            transient: false,
            cancelled: false,
            source: None,
        }
    }
}
