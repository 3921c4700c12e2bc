//! The files that the metadata names: found by the roles that may name them, fetched, and compared with what is signed.

use bascule_image::release::manifest::{File, Pack};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::open::left;
use super::{Repository, RoleExpiry};
use crate::error::Error;
use crate::http::FetchError;
use crate::limits;
use crate::remote::{ReadOptions, RemoteFile};
use crate::transport::{Fetcher, below, local_path};
use crate::tuf::{Budget, Reached, Role as _, Search, Step, Target, quote};

/// The delegations through which something was found: what belongs to it is looked for through the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Names of the roles from below the top-level one down; empty for the top-level role.
    pub(super) chain: Vec<String>,
    /// The first of them to expire.
    pub(super) expires: Option<DateTime<Utc>>,
}

impl Origin {
    fn of(way: &[Reached]) -> Self {
        let delegated = way.iter().filter(|role| !role.chain.is_empty());
        Self {
            chain: way.last().map(|role| role.chain.clone()).unwrap_or_default(),
            expires: delegated.map(|role| role.targets.expires()).min(),
        }
    }
}

/// A file that a verified role names.
#[derive(Debug, Clone)]
pub struct SignedFile {
    path: String,
    target: Target,
    origin: Origin,
}

impl SignedFile {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.target.length
    }

    /// Names of the delegated roles through which it was found, the one that names it last; empty for the top-level role.
    pub fn roles(&self) -> &[String] {
        &self.origin.chain
    }

    /// Whether bytes are this file's.
    pub fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.target.length && self.target.hashes.match_bytes(bytes)
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Length and digest in words, for messages.
    fn shown(&self) -> String {
        let hashes = &self.target.hashes;
        let algorithm = if hashes.sha256.is_some() { "SHA-256" } else { "SHA-512" };
        match hashes.in_name() {
            Some(digest) => format!("{} bytes with {algorithm} {digest}", self.target.length),
            None => format!("{} bytes without a digest of a known algorithm", self.target.length),
        }
    }

    /// TUF 1.0, 5.7.3 and 6.2.1: with consistent snapshots a file lies under `<folder>/<digest>.<name>`.
    fn place(&self, consistent: bool) -> Result<String, Error> {
        let refuse =
            |reason: &str| Error::Invalid { what: format!("the file name {:?}", self.path), reason: reason.to_owned() };
        let mut segments: Vec<String> = Vec::new();
        for segment in self.path.split('/') {
            // Nothing that climbs, is no name of its own, or would be read as an address.
            if matches!(segment, "" | "." | "..") {
                return Err(refuse("it has an empty segment or one of dots"));
            }
            segments.push(quote(segment));
        }
        if consistent && let Some(name) = segments.last_mut() {
            let digest = self.target.hashes.in_name().ok_or_else(|| refuse("it has no digest of a known algorithm"))?;
            *name = format!("{digest}.{name}");
        }
        Ok(segments.join("/"))
    }
}

impl Repository {
    /// Finds a file by its path (5.6.7), fetching the delegated roles on the way that are not known yet.
    ///
    /// # Errors
    /// [`Error::Absent`] when no role names it, [`Error::Role`] when one that has to be asked can't be used.
    pub async fn find(&self, path: &str) -> Result<SignedFile, Error> {
        self.find_from(path, &Origin::default()).await
    }

    /// Fetches a whole small file and compares it with what is signed.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is signed with more than `limit` bytes, [`Error::Mismatch`], or the download's error.
    pub async fn fetch(&self, file: &SignedFile, limit: u64) -> Result<Bytes, Error> {
        let length = file.target.length;
        if length > limit {
            let reason = format!("it is signed with {length} bytes, accepted are at most {limit}");
            return Err(Error::Invalid { what: file.path.clone(), reason });
        }
        let place = file.place(self.trusted.root.consistent_snapshot)?;
        let bytes = self.fetcher.get_small(&self.targets_base, &place, length, limits::SEARCH.time).await?;
        if !file.is(&bytes) {
            let reason = format!("{} other bytes came, {} are signed", bytes.len(), file.shown());
            return Err(Error::Mismatch { what: file.path.clone(), reason });
        }
        Ok(bytes)
    }

    /// The delegated roles that were used lately, the last one last, each with version and expiry. Of large ones only the last is
    /// kept, and told of here.
    pub fn delegated_roles(&self) -> Vec<RoleExpiry> {
        let kept = self.kept();
        kept.iter().filter_map(|role| Some(super::open::expiry_of(role.chain.last()?, &*role.targets))).collect()
    }

    pub(super) async fn find_from(&self, path: &str, origin: &Origin) -> Result<SignedFile, Error> {
        let begun = Instant::now();
        let budget = Budget::new(limits::SEARCH);
        let mut search = Search::begin(&self.trusted, self.top.clone(), path, &origin.chain, budget);
        loop {
            match search.step()? {
                Step::Found(target, way) => {
                    return Ok(SignedFile { path: path.to_owned(), target, origin: Origin::of(&way) });
                }
                Step::Absent => return Err(Error::Absent { what: path.to_owned(), hint: String::new() }),
                Step::Role(chain) => drop(self.reach(&mut search, &chain, begun).await?),
            }
        }
    }

    /// Gets the role that a search wants: from those that are kept, or from the server.
    async fn reach(&self, search: &mut Search<'_>, chain: &[String], begun: Instant) -> Result<Reached, Error> {
        let kept = self.kept().iter().find(|role| role.chain == chain).cloned();
        if let Some(role) = kept {
            search.known(role.clone())?;
            self.keep(role.clone());
            return Ok(role);
        }
        let missing = || Error::Absent { what: "delegated role".to_owned(), hint: String::new() };
        let request = search.fetch(begun.elapsed())?.ok_or_else(missing)?;
        let within = left(limits::SEARCH.time, begun);
        let came = self.fetcher.get_small(&self.metadata_base, &request.name, request.limit, within).await;
        let bytes = came.map_err(|error| search.trouble(&search.wanted(), error.into()))?;
        let role = search.came(&bytes)?.ok_or_else(missing)?;
        self.keep(role.clone());
        Ok(role)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Reached>> {
        self.roles.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps a role for later searches; the longest unused go when they are too long together.
    fn keep(&self, role: Reached) {
        let mut kept = self.kept();
        kept.retain(|known| known.chain != role.chain);
        kept.push(role);
        while kept.len() > 1 && kept.iter().map(|role| role.length).sum::<usize>() > limits::MAX_KEPT_ROLES {
            kept.remove(0);
        }
    }

    /// Opens a pack. Its bytes are judged frame by frame against its index, whose digest the manifest names; of the file
    /// as a whole only the length must agree.
    pub(super) async fn open_pack_file(
        &self,
        origin: &Origin,
        pack: &Pack,
        options: ReadOptions,
    ) -> Result<RemoteFile, Error> {
        let found = self.find_from(pack.path.as_str(), origin).await?;
        if found.target.length != pack.size {
            let reason = format!("the TUF metadata names {}, the release names {} bytes", found.shown(), pack.size);
            return Err(Error::Mismatch { what: pack.path.to_string(), reason });
        }
        self.open_found(&found, options)
    }

    pub(super) fn open_found(&self, found: &SignedFile, options: ReadOptions) -> Result<RemoteFile, Error> {
        let place = found.place(self.trusted.root.consistent_snapshot)?;
        let length = found.target.length;
        let runtime = Handle::current();
        match &self.fetcher {
            Fetcher::Http(client) => {
                let url = below(&self.targets_base, &place)?;
                Ok(RemoteFile::http(client.clone(), url, length, options, runtime))
            }
            Fetcher::Directory => {
                let path = local_path(&self.targets_base, &place)?;
                let opened = std::fs::File::open(&path)
                    .map_err(|source| FetchError::Local { path: path.clone(), source: source.into() })?;
                Ok(RemoteFile::local(opened, length, options, runtime))
            }
            Fetcher::Custom(_) => {
                let reason = "this transport fetches whole files only, no ranges".to_owned();
                Err(Error::Invalid { what: found.path.clone(), reason })
            }
        }
    }

    /// Finds a file that a signed object describes, where the TUF metadata must name the same length and digest. Where it names a
    /// SHA-512 alone, there is nothing to compare yet: the bytes have to be compared with the digest of the description, as in any case.
    pub(super) async fn find_described(&self, origin: &Origin, file: &File) -> Result<SignedFile, Error> {
        let found = self.find_from(file.path.as_str(), origin).await?;
        let digest = file.digest.to_bytes();
        let hashes = &found.target.hashes;
        let same = match &hashes.sha256 {
            Some(signed) => signed[..] == digest[..],
            None => hashes.sha512.is_some(),
        };
        if !same || found.target.length != file.size {
            let reason = format!(
                "the TUF metadata names {}, the release names {} bytes with {}",
                found.shown(),
                file.size,
                file.digest
            );
            return Err(Error::Mismatch { what: file.path.to_string(), reason });
        }
        Ok(found)
    }
}
