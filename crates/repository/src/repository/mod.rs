//! Reading a repository: from the trust root to a verified channel, manifest, pack and UKI.
//!
//! `open` verifies the top-level metadata, `files` finds and fetches what it names; here is what callers ask.

mod files;
mod open;

use std::ops::Deref;
use std::sync::Mutex;

use bascule_image::Sha256;
use bascule_image::release;
use bascule_image::release::channel::{Channel, Release};
use bascule_image::release::manifest::{File, Manifest, Pack, PackKind};
use bascule_image::release::names::TargetPath;
use bascule_names::{Architecture, ChannelName, Digest, RootHash};
use chrono::{DateTime, Utc};
use url::Url;

use crate::datastore::DatastoreLocation;
use crate::error::Error;
use crate::http::FetchError;
use crate::remote::{ReadOptions, RemoteFile};
use crate::select::{self, MissingPack};
use crate::time::Now;
use crate::transport::Fetcher;
use crate::tuf::{Reached, Trusted};

pub use files::{Origin, SignedFile};

/// What opening a repository needs.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The `root.json` that is trusted to begin with: from the OS image (agent) or the policy (operator).
    pub trust_root: Vec<u8>,
    /// Address of the repository: the folder that holds `metadata/` and `targets/`.
    pub base: Url,
    /// Where to remember what was seen.
    pub datastore: DatastoreLocation,
    /// How to fetch.
    pub fetcher: Fetcher,
    /// The caller's clock.
    pub now: Now,
}

/// What the verified metadata says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Root, timestamp, snapshot and targets, each with version and expiry.
    pub roles: Vec<RoleExpiry>,
    /// When it was verified, by the time that expiry is judged by.
    pub verified_at: DateTime<Utc>,
    /// When the timestamp was signed, where the publisher wrote it (Bascule does).
    pub signed_at: Option<DateTime<Utc>>,
    /// The datastore was damaged and began afresh: rollback protection starts again from the trust root.
    pub datastore_was_reset: bool,
    /// Bytes of the newest root, which a vendor puts into the next OS image.
    pub root: Vec<u8>,
}

impl Metadata {
    /// The first of the four top-level roles to expire.
    pub fn earliest_expiry(&self) -> Option<&RoleExpiry> {
        self.roles.iter().min_by_key(|role| role.expires)
    }
}

/// A role's name and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleExpiry {
    /// `root`, `timestamp`, `snapshot`, `targets`, or a delegated role's name.
    pub role: String,
    /// Version of the role's metadata.
    pub version: u64,
    /// When it expires.
    pub expires: DateTime<Utc>,
}

/// The member of `timestamp.json` in which our publisher says when it signed. Signed like everything else in there.
#[cfg(feature = "publish")]
pub(crate) const SIGNED_AT: &str = "x-bascule-signed-at";

/// A channel, and the roles through which it was found.
#[derive(Debug, Clone)]
pub struct VerifiedChannel {
    channel: Channel,
    origin: Origin,
}

impl VerifiedChannel {
    /// The channel alone.
    pub fn into_channel(self) -> Channel {
        self.channel
    }

    /// When the first of the delegated roles that speak for it expires; `None` where the top-level roles alone do.
    pub fn expires(&self) -> Option<DateTime<Utc>> {
        self.origin.expires
    }
}

impl Deref for VerifiedChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

/// A manifest whose digest the channel file names.
#[derive(Debug, Clone)]
pub struct VerifiedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Digest of its bytes: the release's identity towards operator and slots.
    pub digest: Digest,
    origin: Origin,
}

/// A pack that is there, and those that should have been.
#[derive(Debug)]
pub struct OpenPack {
    /// The pack as the manifest describes it.
    pub pack: Pack,
    /// Its bytes.
    pub file: RemoteFile,
    /// Cheaper packs that the server does not have, with the reason: to be reported.
    pub missing: Vec<(TargetPath, FetchError)>,
}

/// An opened, verified repository. What it answers is signed and was not expired when it was opened.
#[derive(Debug)]
pub struct Repository {
    trusted: Trusted,
    top: Reached,
    fetcher: Fetcher,
    metadata_base: Url,
    targets_base: Url,
    metadata: Metadata,
    /// Delegated roles that were verified, the last used one last.
    roles: Mutex<Vec<Reached>>,
}

impl Repository {
    /// What the metadata says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Reads a channel.
    ///
    /// # Errors
    /// [`Error::Absent`] when the repository has no such channel, [`Error::Role`] when a role that speaks for it can't be
    /// used; otherwise as [`Self::manifest`].
    pub async fn channel(&self, name: &ChannelName) -> Result<VerifiedChannel, Error> {
        let what = format!("channel {name}");
        let found = match self.find(&format!("{name}.json")).await {
            Err(Error::Absent { .. }) => {
                let names = self.channel_names().join(", ");
                let hint = if names.is_empty() { String::new() } else { format!("; it has: {names}") };
                return Err(Error::Absent { what, hint });
            }
            other => other?,
        };
        let bytes = self.fetch(&found, release::channel::MAX_LENGTH as u64).await?;
        let channel = Channel::parse(&bytes).map_err(|source| format_error(&what, source))?;
        if &channel.channel != name {
            let reason = format!("it calls itself {}", channel.channel);
            return Err(Error::Mismatch { what, reason });
        }
        Ok(VerifiedChannel { channel, origin: found.origin().clone() })
    }

    /// The channels of the repository, sorted: those that the top-level role names or delegates. Whether the role of a delegated
    /// one can be used is seen by [`Self::channel`].
    pub fn channel_names(&self) -> Vec<String> {
        let targets = &self.trusted.targets;
        let own = targets.targets.iter().map(|(path, _)| path);
        let delegated = targets.delegations().iter().flat_map(|delegation| delegation.literal_paths());
        let names = own.chain(delegated).filter_map(|path| path.strip_suffix(".json"));
        let mut names: Vec<String> =
            names.filter(|name| name.parse::<ChannelName>().is_ok()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Reads the manifest of a release for an architecture, and checks that it is what the channel entry says.
    ///
    /// # Errors
    /// [`Error::Absent`] when there is none for the architecture, [`Error::Mismatch`] when channel, TUF metadata and
    /// manifest don't agree, [`Error::Format`], or the download's error.
    pub async fn manifest(
        &self,
        channel: &VerifiedChannel,
        release: &Release,
        architecture: Architecture,
    ) -> Result<VerifiedManifest, Error> {
        let what = format!("manifest of {} {} for {architecture}", channel.product, release.version);
        let Some(file) = release.manifests.get(&architecture) else {
            let offered: Vec<&str> = release.manifests.keys().map(|architecture| architecture.as_str()).collect();
            return Err(Error::Absent { what, hint: format!("; it exists for: {}", offered.join(", ")) });
        };
        let found = self.find_described(&channel.origin, file).await?;
        let bytes = self.fetch(&found, release::manifest::MAX_LENGTH as u64).await?;
        let digest = Digest::from(Sha256::of(&bytes));
        if digest != file.digest {
            let reason = format!("the channel names {}, what came has {digest}", file.digest);
            return Err(Error::Mismatch { what, reason });
        }
        let manifest = Manifest::parse(&bytes).map_err(|source| format_error(&what, source))?;
        let agrees = manifest.product == channel.product
            && manifest.version == release.version
            && manifest.architecture == architecture;
        if !agrees {
            let reason = format!("it is for {} {} on {}", manifest.product, manifest.version, manifest.architecture);
            return Err(Error::Mismatch { what, reason });
        }
        Ok(VerifiedManifest { manifest, digest, origin: channel.origin.clone() })
    }

    /// Opens the cheapest pack that is there. A pack that is missing on the server (404) is passed over if the policy
    /// allows; any other failure is reported as it is, since it may pass.
    ///
    /// # Errors
    /// The first missing pack's error when falling back is refused or the full pack is missing too.
    pub async fn open_pack(
        &self,
        release: &VerifiedManifest,
        bases: &[RootHash],
        missing_pack: MissingPack,
        options: &ReadOptions,
    ) -> Result<OpenPack, Error> {
        let mut missing = Vec::new();
        for pack in select::candidates(&release.manifest, bases, missing_pack) {
            let opened = match self.open_pack_file(&release.origin, pack, options.clone()).await {
                Ok(file) => match file.probe().await {
                    Ok(()) => Ok(file),
                    Err(error) => Err(Error::Fetch(error)),
                },
                Err(error) => Err(error),
            };
            match opened {
                Ok(file) => return Ok(OpenPack { pack: pack.clone(), file, missing }),
                Err(Error::Fetch(error)) if error.is_not_found() => {
                    let kind = match pack.kind {
                        PackKind::Full => "full",
                        PackKind::Delta { .. } => "delta",
                    };
                    tracing::warn!(pack = %pack.path, kind, %error, "the pack is missing on the server");
                    missing.push((pack.path.clone(), error));
                }
                Err(error) => return Err(error),
            }
        }
        match missing.into_iter().next() {
            Some((_, error)) => Err(Error::Fetch(error)),
            None => Err(Error::Absent { what: "pack for this node".to_owned(), hint: String::new() }),
        }
    }

    /// Opens a file that a manifest names (the UKI, the package list) for blocking reads. The TUF metadata must name the
    /// same length and, unless it names a SHA-512 alone, the same digest. The file itself is not asked for yet:
    /// its bytes are for the reader to compare ([`RemoteFile::copy_verified`]).
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Role`], [`Error::Mismatch`], or a local file's error.
    pub async fn open_file(
        &self,
        release: &VerifiedManifest,
        file: &File,
        options: ReadOptions,
    ) -> Result<RemoteFile, Error> {
        let found = self.find_described(&release.origin, file).await?;
        self.open_found(&found, options)
    }
}

fn format_error(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Format { what: what.to_owned(), source: Box::new(source) }
}
