//! Which repository a command reads, and with what trust.

use std::path::PathBuf;

use anyhow::Context as _;
use bascule_names::ChannelName;
use bascule_repository::publish::View;
use bascule_repository::time::Now;
use bascule_repository::{
    DatastoreLocation, Fetcher, HttpClient, HttpSettings, OpenOptions, ProxySetting, Repository, VerifiedChannel,
};
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

/// Where a repository is.
enum Place {
    Address(Url),
    Folder(PathBuf),
}

impl SourceArguments {
    fn place(&self) -> anyhow::Result<Place> {
        if self.repository.contains("://") {
            let url = self.repository.parse().with_context(|| format!("{} is no URL", self.repository))?;
            return Ok(Place::Address(url));
        }
        let folder =
            std::path::absolute(&self.repository).with_context(|| format!("{} is no folder", self.repository))?;
        anyhow::ensure!(folder.is_dir(), "{} is no folder; write an https address or a folder", folder.display());
        Ok(Place::Folder(folder))
    }

    fn trust_root(&self, place: &Place) -> anyhow::Result<Vec<u8>> {
        let default = match place {
            Place::Folder(folder) => Some(folder.join("metadata").join("1.root.json")),
            Place::Address(_) => None,
        };
        match self.trust_root.clone().or(default) {
            Some(path) => std::fs::read(&path).with_context(|| format!("can't read the trust root {}", path.display())),
            None => anyhow::bail!(
                "say with --trust-root which root.json you trust; it must not come from the server itself"
            ),
        }
    }

    /// Opens and verifies, as a node does.
    pub(crate) async fn open(&self) -> anyhow::Result<Repository> {
        let datastore = match &self.datastore {
            Some(path) => DatastoreLocation::Persistent(path.clone()),
            None => DatastoreLocation::Ephemeral,
        };
        let place = self.place()?;
        let trust_root = self.trust_root(&place)?;
        let (base, fetcher) = match place {
            Place::Address(base) => (base, Fetcher::Http(self.client()?)),
            Place::Folder(folder) => {
                let base = Url::from_directory_path(&folder)
                    .map_err(|()| anyhow::anyhow!("{} can't be written as a URL", folder.display()))?;
                (base, Fetcher::Directory)
            }
        };
        let options = OpenOptions { trust_root, base, datastore, fetcher, now: Now::at(clock::now()) };
        Ok(Repository::open(options).await?)
    }

    /// Looks at it as its keepers do: verified, whatever its age.
    pub(crate) async fn view(&self) -> anyhow::Result<View> {
        let place = self.place()?;
        let trust_root = self.trust_root(&place)?;
        if self.datastore.is_some() {
            match self.open().await {
                Ok(_) => {}
                // Shown, and not judged.
                Err(error) if matches!(error.downcast_ref(), Some(bascule_repository::Error::Expired { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(match place {
            Place::Address(base) => View::of_address(self.client()?, &base, trust_root).await?,
            Place::Folder(folder) => View::of_folder(&folder, Some(trust_root))?,
        })
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

/// Reads a channel; one that is not there is answered with those that are.
pub(crate) async fn channel(repository: &Repository, name: &ChannelName) -> anyhow::Result<VerifiedChannel> {
    let known = repository.channel_names();
    if !known.iter().any(|known| known == name.as_str()) {
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        anyhow::bail!("there is no channel {name}; there are: {known}");
    }
    Ok(repository.channel(name).await?)
}
