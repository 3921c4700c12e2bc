//! Which repository a command reads, and with what trust.

use std::path::PathBuf;

use anyhow::Context as _;
use bascule_repository::time::Now;
use bascule_repository::{DatastoreLocation, Fetcher, HttpClient, HttpSettings, OpenOptions, ProxySetting, Repository};
use clap::Args;
use url::Url;

use crate::clock;

/// Options of every command that reads a repository.
#[derive(Debug, Args)]
pub(crate) struct SourceArguments {
    /// Repository: an https address, or a folder on this machine.
    #[arg(value_name = "REPOSITORY")]
    repository: String,

    /// The root.json that is trusted. Default for a folder: its own first root.
    #[arg(long, value_name = "FILE", env = "BASCULE_TRUST_ROOT")]
    trust_root: Option<PathBuf>,

    /// Remember what was seen in this folder, and refuse anything older next time, as a node does.
    #[arg(long, value_name = "FOLDER")]
    datastore: Option<PathBuf>,

    /// PEM file of certificate authorities to trust beside the system's. May be repeated.
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,

    /// Trust only the authorities of --ca.
    #[arg(long, requires = "ca")]
    only_ca: bool,

    /// Proxy for all requests. Default: HTTPS_PROXY and NO_PROXY of the environment.
    #[arg(long, value_name = "URL")]
    proxy: Option<Url>,
}

impl SourceArguments {
    /// Opens and verifies.
    pub(crate) async fn open(&self) -> anyhow::Result<Repository> {
        let datastore = match &self.datastore {
            Some(path) => DatastoreLocation::Persistent(path.clone()),
            None => DatastoreLocation::Ephemeral,
        };
        let (base, fetcher, default_root) = if self.repository.contains("://") {
            let base: Url = self.repository.parse().with_context(|| format!("{} is no URL", self.repository))?;
            (base, Fetcher::Http(self.client()?), None)
        } else {
            let folder =
                std::path::absolute(&self.repository).with_context(|| format!("{} is no folder", self.repository))?;
            anyhow::ensure!(folder.is_dir(), "{} is no folder; write an https address or a folder", folder.display());
            let base = Url::from_directory_path(&folder)
                .map_err(|()| anyhow::anyhow!("{} can't be written as a URL", folder.display()))?;
            (base, Fetcher::Directory, Some(folder.join("metadata").join("1.root.json")))
        };
        let trust_root = match self.trust_root.clone().or(default_root) {
            Some(path) => {
                std::fs::read(&path).with_context(|| format!("can't read the trust root {}", path.display()))?
            }
            None => anyhow::bail!(
                "say with --trust-root which root.json you trust; it must not come from the server itself"
            ),
        };
        let options = OpenOptions { trust_root, base, datastore, fetcher, now: Now::at(clock::now()) };
        Ok(Repository::open(options).await?)
    }

    fn client(&self) -> anyhow::Result<HttpClient> {
        let mut settings = HttpSettings { only_extra_ca: self.only_ca, ..HttpSettings::default() };
        for path in &self.ca {
            settings.extra_ca_pem.push(std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?);
        }
        if let Some(proxy) = &self.proxy {
            settings.proxy = ProxySetting::Url(proxy.clone());
        }
        Ok(HttpClient::new(settings).map_err(bascule_repository::Error::Fetch)?)
    }
}
