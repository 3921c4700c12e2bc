//! Reading a repository: from the trust root to a verified channel, manifest, pack and UKI.

use std::collections::BTreeMap;

use bascule_image::release::channel::{Channel, Release};
use bascule_image::release::manifest::{File, Manifest, Pack, PackKind};
use bascule_image::release::names::TargetPath;
use bascule_image::{Sha256, release};
use bascule_names::{Architecture, ChannelName, Digest, RootHash};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use tough::{ExpirationEnforcement, Limits, RepositoryLoader, TargetName};
use url::Url;

use crate::datastore::{Datastore, DatastoreLocation, State, read_scratch};
use crate::error::Error;
use crate::http::FetchError;
use crate::limits;
use crate::remote::{ReadOptions, RemoteFile};
use crate::select::{self, MissingPack};
use crate::time::{self, Now};
use crate::transport::{Fetcher, MetadataTransport, local_path};
use crate::trust::{self, Found, RoleExpiry, RootChain};

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
    /// Root, timestamp, snapshot and targets, each with version and expiry; delegated roles after them.
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
        self.roles.iter().take(TOP_LEVEL_ROLES).min_by_key(|role| role.expires)
    }
}

const TOP_LEVEL_ROLES: usize = 4;
/// The member of `timestamp.json` in which our publisher says when it signed. Signed like everything else in there.
pub(crate) const SIGNED_AT: &str = "x-bascule-signed-at";

/// A manifest whose digest the channel file names.
#[derive(Debug, Clone)]
pub struct VerifiedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Digest of its bytes: the release's identity towards operator and slots.
    pub digest: Digest,
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
    inner: tough::Repository,
    fetcher: Fetcher,
    targets_base: Url,
    metadata: Metadata,
}

impl Repository {
    /// Fetches and verifies the metadata, and remembers what must never go back.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::category`] tells the kind. On any error nothing of the repository may be used.
    pub async fn open(options: OpenOptions) -> Result<Self, Error> {
        let OpenOptions { trust_root, base, datastore: location, fetcher, now } = options;
        let (metadata_base, targets_base) = split_base(&base, &fetcher)?;
        let mut chain = RootChain::start(&trust_root)?;
        let datastore = blocking(move || Datastore::open(&location)).await?;
        let time = time::effective(now, datastore.state.verified_at)?;
        let remembered: BTreeMap<u64, String> = datastore.state.roots.clone();
        if chain.follow(|version| remembered.get(&version).map(String::as_bytes)) {
            tracing::warn!("a remembered root is not signed by the one before it and is left out");
        }
        let transport = MetadataTransport::new(fetcher.clone());
        let (datastore, scratch) = blocking(move || datastore.scratch().map(|scratch| (datastore, scratch))).await?;

        // tough's own expiry check trusts the system clock alone and lets one expired delegated role block all others;
        // `trust::refuse_expired` below does the same work with the guarded time, for the roles that matter.
        let loaded = RepositoryLoader::new(&chain.newest, metadata_base, targets_base.clone())
            .transport(transport.clone())
            .datastore(scratch.path())
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .limits(Limits {
                max_root_size: limits::MAX_ROOT,
                max_targets_size: limits::MAX_TARGETS,
                max_timestamp_size: limits::MAX_TIMESTAMP,
                max_snapshot_size: limits::MAX_SNAPSHOT,
                max_root_updates: limits::MAX_ROOT_UPDATES,
            })
            .load()
            .await
            .map_err(trust::sort_tough_error);

        // Also a failed update leaves verified knowledge behind (a new root that revokes a key, say), and an attacker who
        // blocks the rest must not be able to make us forget it.
        let fetched = transport.fetched_roots();
        chain.follow(|version| fetched.get(&version).map(Bytes::as_ref));
        let mut outcome = loaded.and_then(|inner| {
            if trust::count_roles(&inner.targets().signed) > limits::MAX_ROLES {
                return Err(Error::Invalid {
                    what: "the targets metadata".to_owned(),
                    reason: format!("it delegates to more than {} roles", limits::MAX_ROLES),
                });
            }
            let roles = roles_of(&inner);
            trust::refuse_expired(roles.get(..TOP_LEVEL_ROLES).unwrap_or_default(), time)?;
            Ok((inner, roles))
        });
        let verified_at = if outcome.is_ok() { Some(time) } else { datastore.state.verified_at };
        let was_reset = datastore.was_reset;
        let links = chain.links.clone();
        let saved = blocking(move || {
            let mut datastore = datastore;
            let mut state = State::default();
            state.verified_at = verified_at;
            state.roots = links;
            state.timestamp = read_scratch(scratch.path(), "timestamp.json");
            state.snapshot = read_scratch(scratch.path(), "snapshot.json");
            datastore.save(state)
        })
        .await;
        if let Err(error) = saved {
            // Going on without memory would open the door that the datastore closes.
            outcome = outcome.and(Err(error));
        }
        let (inner, roles) = outcome?;
        let signed_at = inner
            .timestamp()
            .signed
            ._extra
            .get(SIGNED_AT)
            .and_then(|value| DateTime::parse_from_rfc3339(value.as_str()?).ok())
            .map(|time| time.to_utc());
        let metadata =
            Metadata { roles, verified_at: time, signed_at, datastore_was_reset: was_reset, root: chain.newest };
        Ok(Self { inner, fetcher, targets_base, metadata })
    }

    /// What the metadata says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether the metadata is still not expired; for a caller that holds the repository open for long.
    ///
    /// # Errors
    /// [`Error::Expired`] or [`Error::ClockBehind`].
    pub fn check_still_valid(&self, now: Now) -> Result<(), Error> {
        let time = time::effective(now, Some(self.metadata.verified_at))?;
        trust::refuse_expired(self.metadata.roles.get(..TOP_LEVEL_ROLES).unwrap_or_default(), time)
    }

    /// Reads a channel.
    ///
    /// # Errors
    /// [`Error::Absent`] when the repository has no such channel; otherwise as [`Self::manifest`].
    pub async fn channel(&self, name: &ChannelName) -> Result<Channel, Error> {
        let what = format!("channel {name}");
        let found = match self.find(&format!("{name}.json"), &what) {
            Err(Error::Absent { what, .. }) => {
                let names = self.channel_names().join(", ");
                let hint = if names.is_empty() { String::new() } else { format!("; it has: {names}") };
                return Err(Error::Absent { what, hint });
            }
            other => other?,
        };
        let bytes = self.get(&found, release::channel::MAX_LENGTH as u64, &what).await?;
        let channel = Channel::parse(&bytes).map_err(|source| format_error(&what, source))?;
        if &channel.channel != name {
            let reason = format!("it calls itself {}", channel.channel);
            return Err(Error::Mismatch { what, reason });
        }
        Ok(channel)
    }

    /// The channels of the repository, sorted.
    pub fn channel_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .inner
            .all_targets()
            .filter_map(|(name, _)| name.raw().strip_suffix(".json"))
            .filter(|name| name.parse::<ChannelName>().is_ok())
            .map(str::to_owned)
            .collect();
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
        channel: &Channel,
        release: &Release,
        architecture: Architecture,
    ) -> Result<VerifiedManifest, Error> {
        let what = format!("manifest of {} {} for {architecture}", channel.product, release.version);
        let Some(file) = release.manifests.get(&architecture) else {
            let offered: Vec<&str> = release.manifests.keys().map(|architecture| architecture.as_str()).collect();
            return Err(Error::Absent { what, hint: format!("; it exists for: {}", offered.join(", ")) });
        };
        let bytes = self.get_file(file, release::manifest::MAX_LENGTH as u64, &what).await?;
        let manifest = Manifest::parse(&bytes).map_err(|source| format_error(&what, source))?;
        let agrees = manifest.product == channel.product
            && manifest.version == release.version
            && manifest.architecture == architecture;
        if !agrees {
            let reason = format!("it is for {} {} on {}", manifest.product, manifest.version, manifest.architecture);
            return Err(Error::Mismatch { what, reason });
        }
        Ok(VerifiedManifest { manifest, digest: file.digest.clone() })
    }

    /// Opens the cheapest pack that is there. A pack that is missing on the server (404) is passed over if the policy
    /// allows; any other failure is reported as it is, since it may pass.
    ///
    /// # Errors
    /// The first missing pack's error when falling back is refused or the full pack is missing too.
    pub async fn open_pack(
        &self,
        manifest: &Manifest,
        bases: &[RootHash],
        missing_pack: MissingPack,
        options: &ReadOptions,
    ) -> Result<OpenPack, Error> {
        let mut missing = Vec::new();
        for pack in select::candidates(manifest, bases, missing_pack) {
            let opened = match self.open_pack_file(pack, options.clone()) {
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
    /// same length and digest.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Mismatch`], or a local file's error. A server is not asked yet.
    pub fn open_file(&self, file: &File, options: ReadOptions) -> Result<RemoteFile, Error> {
        let found = self.find_described(file)?;
        self.open_found(file.path.as_str(), &found, options)
    }

    /// Opens a pack. Its bytes are judged frame by frame against its index, whose digest the manifest names; of the file
    /// as a whole only the length must agree.
    fn open_pack_file(&self, pack: &Pack, options: ReadOptions) -> Result<RemoteFile, Error> {
        let path = pack.path.as_str();
        let (_, found) = self.find(path, path)?;
        if found.target.length != pack.size {
            let reason =
                format!("the TUF metadata names {} bytes, the release names {}", found.target.length, pack.size);
            return Err(Error::Mismatch { what: path.to_owned(), reason });
        }
        self.open_found(path, &found, options)
    }

    fn open_found(&self, path: &str, found: &Found<'_>, options: ReadOptions) -> Result<RemoteFile, Error> {
        let url = self.url_of(path, found)?;
        let length = found.target.length;
        let runtime = Handle::current();
        match &self.fetcher {
            Fetcher::Http(client) => Ok(RemoteFile::http(client.clone(), url, length, options, runtime)),
            Fetcher::Directory => {
                let path = local_path(&url)?;
                let opened = std::fs::File::open(&path)
                    .map_err(|source| FetchError::Local { path: path.clone(), source: source.into() })?;
                Ok(RemoteFile::local(opened, length, options, runtime))
            }
        }
    }

    /// Fetches a whole small file that a signed object describes.
    async fn get_file(&self, file: &File, limit: u64, what: &str) -> Result<Bytes, Error> {
        let found = self.find_described(file)?;
        self.get(&(file.path.as_str().to_owned(), found), limit, what).await
    }

    async fn get(&self, (path, found): &(String, Found<'_>), limit: u64, what: &str) -> Result<Bytes, Error> {
        let length = found.target.length;
        if length > limit {
            let reason = format!("it is signed with {length} bytes, accepted are at most {limit}");
            return Err(Error::Invalid { what: what.to_owned(), reason });
        }
        let bytes = self.fetcher.get_small(&self.url_of(path, found)?, length).await?;
        let digest = Sha256::of(&bytes);
        if bytes.len() as u64 != length || digest.as_bytes()[..] != found.target.hashes.sha256[..] {
            let signed = hex::encode(&found.target.hashes.sha256[..]);
            let reason =
                format!("{} bytes with SHA-256 {digest} came, {length} bytes with {signed} are signed", bytes.len());
            return Err(Error::Mismatch { what: what.to_owned(), reason });
        }
        Ok(bytes)
    }

    fn find(&self, path: &str, what: &str) -> Result<(String, Found<'_>), Error> {
        let name = TargetName::new(path)
            .map_err(|error| Error::Invalid { what: what.to_owned(), reason: error.to_string() })?;
        let Some(found) = trust::find(&self.inner.targets().signed, &name) else {
            return Err(Error::Absent { what: what.to_owned(), hint: String::new() });
        };
        trust::refuse_expired(&found.through, self.metadata.verified_at)?;
        Ok((path.to_owned(), found))
    }

    fn find_described(&self, file: &File) -> Result<Found<'_>, Error> {
        let (_, found) = self.find(file.path.as_str(), file.path.as_str())?;
        let same = found.target.length == file.size && found.target.hashes.sha256[..] == file.digest.to_bytes();
        if !same {
            let reason = format!(
                "the TUF metadata names {} bytes with SHA-256 {}, the release names {} with {}",
                found.target.length,
                hex::encode(&found.target.hashes.sha256[..]),
                file.size,
                file.digest
            );
            return Err(Error::Mismatch { what: file.path.to_string(), reason });
        }
        Ok(found)
    }

    /// TUF 1.0, 6.2: with consistent snapshots a file lies under `<folder>/<digest>.<name>`.
    fn url_of(&self, path: &str, found: &Found<'_>) -> Result<Url, Error> {
        // A validated path can't climb or change the host; anything else a delegated role may have signed is refused.
        let path: TargetPath = path.parse().map_err(|error| format_error("a file name in the metadata", error))?;
        let path = path.as_str();
        let placed = if self.inner.root().signed.consistent_snapshot {
            let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
            let slash = if folder.is_empty() { "" } else { "/" };
            format!("{folder}{slash}{}.{name}", hex::encode(&found.target.hashes.sha256[..]))
        } else {
            path.to_owned()
        };
        self.targets_base.join(&placed).map_err(|error| format_error("a file name in the metadata", error))
    }
}

fn format_error(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Format { what: what.to_owned(), source: Box::new(source) }
}

/// The two folders of a repository. Only https, or a local folder where the caller asked for one.
fn split_base(base: &Url, fetcher: &Fetcher) -> Result<(Url, Url), Error> {
    let scheme = match fetcher {
        Fetcher::Http(_) => "https",
        Fetcher::Directory => "file",
    };
    if base.scheme() != scheme {
        return Err(FetchError::Insecure { url: crate::http::shown(base) }.into());
    }
    let mut base = base.clone();
    base.set_query(None);
    base.set_fragment(None);
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    let join = |folder| base.join(folder).map_err(|error| format_error("the repository's address", error));
    Ok((join("metadata/")?, join("targets/")?))
}

fn roles_of(repository: &tough::Repository) -> Vec<RoleExpiry> {
    let mut roles = vec![
        trust::expiry_of("root", &repository.root().signed),
        trust::expiry_of("timestamp", &repository.timestamp().signed),
        trust::expiry_of("snapshot", &repository.snapshot().signed),
        trust::expiry_of("targets", &repository.targets().signed),
    ];
    for name in repository.targets().signed.role_names() {
        if let Ok(signed) = repository.targets().signed.delegated_targets(name) {
            roles.push(trust::expiry_of(name, &signed.signed));
        }
    }
    roles
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only when the runtime shuts down, or the work panicked.
        Err(_) => Err(Error::Cancelled),
    }
}
