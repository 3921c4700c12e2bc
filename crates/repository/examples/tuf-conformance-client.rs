//! The shipped reader behind the command line that the TUF conformance suite drives
//! (<https://github.com/theupdateframework/tuf-conformance>, `CLIENT-CLI.md`): `init`, `refresh`, `download`. What the suite
//! measures is said in docs/tuf.md.
//!
//! The suite serves plain http on loopback, which the production client refuses; so this brings a transport of its own. Everything
//! else is `Repository` with its datastore, as the agent uses it.
#![allow(clippy::print_stderr, reason = "the suite shows what a client says there")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bascule_repository::clock::system_now;
use bascule_repository::time::Now;
use bascule_repository::tuf::quote;
use bascule_repository::{DatastoreLocation, FetchError, Fetcher, OpenOptions, Repository, Transport, remembered};
use bytes::{Bytes, BytesMut};
use url::Url;

type Failure = Box<dyn std::error::Error>;

/// The trust root of `init`. No `.json`, because the suite takes those for trusted metadata.
const TRUST_ROOT: &str = ".trust-root";
const DATASTORE: &str = ".datastore";
/// Longest artifact of the suite.
const MAX_ARTIFACT: u64 = 16 << 20;

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut options: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut words = Vec::new();
    while let Some(word) = arguments.next() {
        match word.strip_prefix("--") {
            Some(name) => options.entry(name.to_owned()).or_default().extend(arguments.next()),
            None => words.push(word),
        }
    }
    let one = |name: &str| -> Result<&String, Failure> {
        Ok(options.get(name).and_then(|values| values.first()).ok_or_else(|| format!("--{name} is missing"))?)
    };
    let metadata_dir = PathBuf::from(one("metadata-dir")?);
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["init", root] => {
            std::fs::copy(root, metadata_dir.join(TRUST_ROOT))?;
            std::fs::copy(root, metadata_dir.join("root.json"))?;
            Ok(())
        }
        ["refresh"] => open(&metadata_dir, one("metadata-url")?).await.map(drop),
        ["download"] => {
            let (metadata_url, targets_url) = (folder(one("metadata-url")?)?, folder(one("target-base-url")?)?);
            if metadata_url.join("../targets/")? != targets_url {
                return Err("metadata and targets must be neighbours, as in a repository of Bascule".into());
            }
            let (repository, transport) = open(&metadata_dir, one("metadata-url")?).await?;
            let target_dir = PathBuf::from(one("target-dir")?);
            let names = options.get("target-name").cloned().unwrap_or_default();
            let downloaded = download(&repository, &names, &target_dir).await;
            for role in repository.delegated_roles() {
                let name = format!("{}.json", quote(&role.role));
                let came = transport.came.lock().unwrap_or_else(PoisonError::into_inner);
                let versioned = came.get(&format!("{}.{name}", role.version)).or_else(|| came.get(&name));
                if let Some(bytes) = versioned {
                    std::fs::write(metadata_dir.join(name), bytes)?;
                }
            }
            downloaded
        }
        _ => Err("expected init <TRUSTED_ROOT>, refresh or download".into()),
    }
}

fn folder(url: &str) -> Result<Url, Failure> {
    Ok(Url::parse(&format!("{}/", url.trim_end_matches('/')))?)
}

/// Updates, and shows the suite what is remembered afterwards, whether that went well or not.
async fn open(metadata_dir: &Path, metadata_url: &str) -> Result<(Repository, Arc<PlainHttp>), Failure> {
    let trust_root = std::fs::read(metadata_dir.join(TRUST_ROOT))?;
    let datastore = DatastoreLocation::Persistent(metadata_dir.join(DATASTORE));
    let transport = Arc::new(PlainHttp { client: reqwest::Client::new(), came: Mutex::default() });
    let opened = Repository::open(OpenOptions {
        trust_root: trust_root.clone(),
        base: folder(metadata_url)?.join("../")?,
        datastore: datastore.clone(),
        fetcher: Fetcher::Custom(Arc::clone(&transport) as Arc<dyn Transport>),
        now: Now::at(system_now()),
    })
    .await;
    let memory = remembered(&datastore)?;
    let newest = memory.roots.into_values().next_back().map_or(trust_root, String::into_bytes);
    std::fs::write(metadata_dir.join("root.json"), newest)?;
    for (name, content) in [("timestamp", memory.timestamp), ("snapshot", memory.snapshot), ("targets", memory.targets)]
    {
        let path = metadata_dir.join(format!("{name}.json"));
        match content {
            Some(content) => std::fs::write(path, content)?,
            None if path.exists() => std::fs::remove_file(path)?,
            None => {}
        }
    }
    Ok((opened?, transport))
}

async fn download(repository: &Repository, names: &[String], target_dir: &Path) -> Result<(), Failure> {
    for name in names {
        let file = repository.find(name).await?;
        let path = target_dir.join(quote(name));
        if std::fs::read(&path).is_ok_and(|bytes| file.is(&bytes)) {
            continue;
        }
        let bytes = repository.fetch(&file, MAX_ARTIFACT).await?;
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// Plain http, and what came by it.
#[derive(Debug)]
struct PlainHttp {
    client: reqwest::Client,
    came: Mutex<BTreeMap<String, Bytes>>,
}

#[async_trait]
impl Transport for PlainHttp {
    async fn get(&self, url: &Url, limit: u64, within: Duration) -> Result<Bytes, FetchError> {
        let failed = |source: reqwest::Error| FetchError::Request { url: url.to_string(), source: source.into() };
        let mut response = self.client.get(url.clone()).timeout(within).send().await.map_err(failed)?;
        let status = response.status();
        match status.as_u16() {
            _ if status.is_success() => {}
            status @ (403 | 404 | 410) => return Err(FetchError::NotFound { url: url.to_string(), status }),
            status => return Err(FetchError::Status { url: url.to_string(), status }),
        }
        let mut collected = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            collected.extend_from_slice(&piece);
            if collected.len() as u64 > limit {
                return Err(FetchError::TooLarge { url: url.to_string(), limit });
            }
        }
        let bytes = collected.freeze();
        let name = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
        self.came.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }
}
