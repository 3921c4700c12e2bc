//! The way from tough to our HTTP client: whole small files under hard limits.
//!
//! Two of tough's habits are corrected here. It takes *any* failure to open `N+1.root.json` as "there is no newer root",
//! so that an attacker who breaks that one connection could keep a revoked key in use; we report such a failure inside
//! the stream, which tough treats as an error, and only a 404 as absence. And it trusts the lengths that a snapshot
//! states; ours are capped for each kind of file, signed or not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream};
use url::Url;

use crate::http::{FetchError, HttpClient};
use crate::limits;

/// Where a repository's files come from.
#[derive(Debug, Clone)]
pub enum Fetcher {
    /// A static https server.
    Http(HttpClient),
    /// `file:` URLs: what a publisher has not uploaded yet, or a copy without a network. TUF verifies it
    /// all the same.
    Directory,
}

impl Fetcher {
    /// Fetches a whole file of at most `limit` bytes.
    pub(crate) async fn get_small(&self, url: &Url, limit: u64) -> Result<Bytes, FetchError> {
        match self {
            Self::Http(client) => client.get_small(url, limit, client.settings().metadata_deadline).await,
            Self::Directory => read_local(url, limit).await,
        }
    }
}

/// The path of a `file:` URL.
pub(crate) fn local_path(url: &Url) -> Result<PathBuf, FetchError> {
    url.to_file_path().map_err(|()| FetchError::Insecure { url: url.to_string() })
}

async fn read_local(url: &Url, limit: u64) -> Result<Bytes, FetchError> {
    use tokio::io::AsyncReadExt as _;
    let path = local_path(url)?;
    let refuse = |source: std::io::Error| FetchError::Local { path: path.clone(), source: source.into() };
    let file = tokio::fs::File::open(&path).await.map_err(refuse)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).await.map_err(refuse)?;
    if bytes.len() as u64 > limit {
        return Err(FetchError::TooLarge { url: url.to_string(), limit });
    }
    Ok(bytes.into())
}

/// What tough fetches metadata with. It keeps the new root files that pass through, because the datastore wants the
/// whole chain and tough keeps only its end.
#[derive(Debug, Clone)]
pub(crate) struct MetadataTransport {
    fetcher: Fetcher,
    roots: Arc<Mutex<BTreeMap<u64, Bytes>>>,
}

impl MetadataTransport {
    pub(crate) fn new(fetcher: Fetcher) -> Self {
        Self { fetcher, roots: Arc::default() }
    }

    /// The `N.root.json` files fetched so far, not verified here.
    pub(crate) fn fetched_roots(&self) -> BTreeMap<u64, Bytes> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn get(&self, url: &Url) -> Result<Bytes, TransportError> {
        let name = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
        let bytes = self.fetcher.get_small(url, limit_for(name)).await.map_err(|error| {
            let kind = if error.is_not_found() { TransportErrorKind::FileNotFound } else { TransportErrorKind::Other };
            TransportError::new_with_cause(kind, url, error)
        })?;
        if let Some(version) = root_version(name) {
            self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(version, bytes.clone());
        }
        Ok(bytes)
    }
}

#[async_trait]
impl Transport for MetadataTransport {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        match self.get(&url).await {
            Ok(bytes) => Ok(Box::pin(stream::iter([Ok(bytes)]))),
            Err(error) if error.kind() == TransportErrorKind::FileNotFound => Err(error),
            // See the module's text: an error in the stream can't be mistaken for "no newer root".
            Err(error) => Ok(Box::pin(stream::iter([Err(error)]))),
        }
    }
}

fn limit_for(name: &str) -> u64 {
    if name == "timestamp.json" {
        limits::MAX_TIMESTAMP
    } else if name.ends_with("root.json") {
        limits::MAX_ROOT
    } else if name.ends_with("snapshot.json") {
        limits::MAX_SNAPSHOT
    } else {
        limits::MAX_TARGETS
    }
}

fn root_version(name: &str) -> Option<u64> {
    name.strip_suffix(".root.json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_has_its_limit() {
        assert_eq!(limit_for("timestamp.json"), limits::MAX_TIMESTAMP);
        assert_eq!(limit_for("12.root.json"), limits::MAX_ROOT);
        assert_eq!(limit_for("7.snapshot.json"), limits::MAX_SNAPSHOT);
        assert_eq!(limit_for("7.targets.json"), limits::MAX_TARGETS);
        assert_eq!(limit_for("7.edge.json"), limits::MAX_TARGETS);
        assert_eq!(root_version("12.root.json"), Some(12));
        assert_eq!(root_version("root.json"), None);
    }
}
