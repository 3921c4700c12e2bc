//! Where a repository's files come from: whole small files under a limit of bytes and of time, whatever the way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use url::Url;

use crate::http::{FetchError, HttpClient};

/// Where a repository's files come from.
#[derive(Debug, Clone)]
pub enum Fetcher {
    /// A static https server.
    Http(HttpClient),
    /// `file:` URLs: what a publisher has not uploaded yet, or a copy without a network. TUF verifies it
    /// all the same.
    Directory,
    /// The caller's own way, for whole files only: metadata, channels and manifests, no packs.
    Custom(Arc<dyn Transport>),
}

/// A way to fetch whole files that is not ours. TUF verifies what comes; how long to listen is the transport's own affair.
#[async_trait]
pub trait Transport: std::fmt::Debug + Send + Sync {
    /// Fetches a file of at most `limit` bytes within this time.
    ///
    /// # Errors
    /// [`FetchError::NotFound`] where there is no such file (that ends the chain of roots), [`FetchError::TooLarge`] for a longer
    /// one, others as they fit.
    async fn get(&self, url: &Url, limit: u64, within: Duration) -> Result<Bytes, FetchError>;
}

impl Fetcher {
    /// Fetches a whole file of at most `limit` bytes. `name`: percent-encoded segments below the folder.
    pub(crate) async fn get_small(
        &self,
        folder: &Url,
        name: &str,
        limit: u64,
        within: Duration,
    ) -> Result<Bytes, FetchError> {
        match self {
            Self::Http(client) => {
                let within = within.min(client.settings().metadata_deadline);
                client.get_small(&below(folder, name)?, limit, within).await
            }
            Self::Directory => read_local(local_path(folder, name)?, limit).await,
            Self::Custom(transport) => transport.get(&below(folder, name)?, limit, within).await,
        }
    }
}

/// The URL of a file in a folder.
pub(crate) fn below(folder: &Url, name: &str) -> Result<Url, FetchError> {
    folder.join(name).map_err(|_| FetchError::Insecure { url: folder.to_string() })
}

/// The path of a file in a `file:` folder. The name is taken as it is: an encoded `/` in it stays one name.
pub(crate) fn local_path(folder: &Url, name: &str) -> Result<PathBuf, FetchError> {
    let folder = folder.to_file_path().map_err(|()| FetchError::Insecure { url: folder.to_string() })?;
    Ok(folder.join(name))
}

async fn read_local(path: PathBuf, limit: u64) -> Result<Bytes, FetchError> {
    use tokio::io::AsyncReadExt as _;
    let refuse = |source: std::io::Error| FetchError::Local { path: path.clone(), source: source.into() };
    let file = tokio::fs::File::open(&path).await.map_err(refuse)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).await.map_err(refuse)?;
    if bytes.len() as u64 > limit {
        return Err(FetchError::TooLarge { url: path.display().to_string(), limit });
    }
    Ok(bytes.into())
}
