//! The files that the metadata names: found by the roles that may name them, fetched, and compared with what is signed.

use bascule_image::Sha256;
use bascule_image::release::manifest::{File, Pack};
use bascule_image::release::names::TargetPath;
use bytes::Bytes;
use tokio::runtime::Handle;
use tough::TargetName;
use url::Url;

use super::{Repository, format_error};
use crate::error::Error;
use crate::http::FetchError;
use crate::remote::{ReadOptions, RemoteFile};
use crate::transport::{Fetcher, local_path};
use crate::trust::{self, Found};

impl Repository {
    /// Opens a pack. Its bytes are judged frame by frame against its index, whose digest the manifest names; of the file
    /// as a whole only the length must agree.
    pub(super) fn open_pack_file(&self, pack: &Pack, options: ReadOptions) -> Result<RemoteFile, Error> {
        let path = pack.path.as_str();
        let (_, found) = self.find(path, path)?;
        if found.target.length != pack.size {
            let reason =
                format!("the TUF metadata names {} bytes, the release names {}", found.target.length, pack.size);
            return Err(Error::Mismatch { what: path.to_owned(), reason });
        }
        self.open_found(path, &found, options)
    }

    pub(super) fn open_found(&self, path: &str, found: &Found<'_>, options: ReadOptions) -> Result<RemoteFile, Error> {
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
    pub(super) async fn get_file(&self, file: &File, limit: u64, what: &str) -> Result<Bytes, Error> {
        let found = self.find_described(file)?;
        self.get(&(file.path.as_str().to_owned(), found), limit, what).await
    }

    pub(super) async fn get(
        &self,
        (path, found): &(String, Found<'_>),
        limit: u64,
        what: &str,
    ) -> Result<Bytes, Error> {
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

    pub(super) fn find(&self, path: &str, what: &str) -> Result<(String, Found<'_>), Error> {
        let name = TargetName::new(path)
            .map_err(|error| Error::Invalid { what: what.to_owned(), reason: error.to_string() })?;
        let Some(found) = trust::find(&self.inner.targets().signed, &name) else {
            return Err(Error::Absent { what: what.to_owned(), hint: String::new() });
        };
        trust::refuse_expired(&found.through, self.metadata.verified_at)?;
        Ok((path.to_owned(), found))
    }

    pub(super) fn find_described(&self, file: &File) -> Result<Found<'_>, Error> {
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
