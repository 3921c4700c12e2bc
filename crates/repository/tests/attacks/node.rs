//! A node for tests: the way an agent goes, with a file in place of a slot. Open, channel, decide, manifest, pack, apply,
//! UKI; nothing is left out.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bascule_image::Sha256;
use bascule_image::apply::{Apply, Base, Options, Report};
use bascule_image::pack::PackIndex;
use bascule_image::work::Watch;
use bascule_names::{Architecture, Version};
use bascule_repository::select::{self, Choice, Held, Host, MissingPack, Wanted};
use bascule_repository::time::Now;
use bascule_repository::{
    DatastoreLocation, Fetcher, HttpClient, HttpSettings, OpenOptions, ProxySetting, ReadOptions, Repository,
    download_error,
};
use bascule_tests::https::HttpsServer;
use chrono::{DateTime, Utc};
use tempfile::TempDir;
use url::Url;

use bascule_tests::vendor::{CHANNEL, Vendor, image, root_hash, start};

pub type Failure = Box<dyn Error + Send + Sync>;

pub struct Node {
    state: TempDir,
    trust_root: Vec<u8>,
    pub clock: DateTime<Utc>,
    pub running: Option<String>,
    pub missing_pack: MissingPack,
    pub product: String,
    pub architecture: Architecture,
    pub change_settings: fn(&mut HttpSettings),
    pub proxy: Option<Url>,
}

/// What an update did.
#[derive(Debug)]
pub struct Updated {
    pub version: Version,
    pub pack: String,
    pub missing: Vec<String>,
    pub report: Report,
}

impl Node {
    /// A node that runs release 1.0 and whose OS image holds the vendor's first root.
    pub fn of(vendor: &Vendor) -> Self {
        Self::trusting(vendor.trust_root())
    }

    /// The same, with this root.
    pub fn trusting(trust_root: Vec<u8>) -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            trust_root,
            clock: start(),
            running: Some("1.0".to_owned()),
            missing_pack: MissingPack::FallBack,
            product: "acme-os".to_owned(),
            architecture: Architecture::X86_64,
            change_settings: |_| {},
            proxy: None,
        }
    }

    pub fn datastore(&self) -> PathBuf {
        self.state.path().join("datastore")
    }

    pub fn slot(&self) -> PathBuf {
        self.state.path().join("slot")
    }

    pub fn client(&self, ca_pem: &str) -> HttpClient {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut settings = HttpSettings {
            connect_timeout: Duration::from_secs(20),
            retries: 2,
            backoff: Duration::from_millis(5),
            proxy: self.proxy.clone().map_or(ProxySetting::Direct, ProxySetting::Url),
            extra_ca_pem: vec![ca_pem.as_bytes().to_vec()],
            only_extra_ca: true,
            ..HttpSettings::default()
        };
        (self.change_settings)(&mut settings);
        HttpClient::new(settings).unwrap()
    }

    pub async fn open(&self, server: &HttpsServer) -> Result<Repository, bascule_repository::Error> {
        self.open_with_ca_of(server, server).await
    }

    pub async fn open_with_ca_of(
        &self,
        server: &HttpsServer,
        trusted: &HttpsServer,
    ) -> Result<Repository, bascule_repository::Error> {
        self.open_at(&server.url(), trusted.ca_pem()).await
    }

    pub async fn open_at(&self, url: &str, ca_pem: &str) -> Result<Repository, bascule_repository::Error> {
        let options = OpenOptions {
            trust_root: self.trust_root.clone(),
            base: url.parse().unwrap(),
            datastore: DatastoreLocation::Persistent(self.datastore()),
            fetcher: Fetcher::Http(self.client(ca_pem)),
            now: Now::at(self.clock),
        };
        Repository::open(options).await
    }

    /// Goes the whole way to what is wanted.
    pub async fn update_to(&self, server: &HttpsServer, wanted: Wanted) -> Result<Updated, Failure> {
        self.update_from(self.open(server).await?, wanted).await
    }

    /// The same, from an opened repository on.
    pub async fn update_from(&self, repository: Repository, wanted: Wanted) -> Result<Updated, Failure> {
        let channel = repository.channel(&CHANNEL.parse().unwrap()).await?;
        let held = |version: &String| Held { version: version.parse().unwrap(), root_hash: root_hash(version) };
        let host = Host {
            product: self.product.parse().unwrap(),
            architecture: self.architecture,
            booted: self.running.as_ref().map(held),
            other: None,
        };
        let release = match select::decide(&channel, &wanted, &host)? {
            Choice::Install(release) | Choice::StepThrough { step: release, .. } => release,
            other => return Err(format!("nothing to install: {other:?}").into()),
        };
        let verified = repository.manifest(&channel, release, self.architecture).await?;
        let options = ReadOptions::default();
        let open = repository.open_pack(&verified, &host.bases(), self.missing_pack, &options).await?;
        let uki = repository.open_file(&verified, &verified.manifest.uki, options).await?;
        let manifest = verified.manifest;
        let running = self.running.clone();
        let slot = self.slot();
        let missing = open.missing.iter().map(|(path, _)| path.to_string()).collect();
        let (version, pack) = (manifest.version.clone(), open.pack.path.to_string());
        let report = tokio::task::spawn_blocking(move || -> Result<Report, Failure> {
            let index = PackIndex::read(&open.file, &manifest, &open.pack)?;
            let sink = File::options().read(true).write(true).create(true).truncate(false).open(&slot)?;
            sink.set_len(manifest.image.size)?;
            let base_image = running.as_deref().map(image);
            let base = base_image.as_ref().zip(running.as_deref());
            let base = base
                .map(|(image, version)| Base { root_hash: Sha256::from(&root_hash(version)), image: image.as_ref() });
            let parameters = manifest.verity.parameters();
            let job = Apply {
                index: &index,
                parameters: &parameters,
                source: &open.file,
                base,
                sink: &sink,
                options: Options::default(),
            };
            let applied = job.run(&Watch::none())?;
            let mut boot_file = Vec::new();
            uki.copy_verified(&manifest.uki.digest, "the UKI", &mut boot_file)?;
            assert_eq!(Sha256::of(&boot_file).to_string(), Sha256::from(&manifest.uki.digest).to_string());
            Ok(applied.report)
        })
        .await??;
        Ok(Updated { version, pack, missing, report })
    }

    pub async fn update(&self, server: &HttpsServer) -> Result<Updated, Failure> {
        self.update_to(server, Wanted::Newest).await
    }

    /// Whether the slot holds exactly this release.
    pub fn slot_holds(&self, version: &str) -> bool {
        std::fs::read(self.slot()).is_ok_and(|slot| slot == *image(version))
    }

    /// Every frame-sized piece of the slot is either untouched or a piece of this release: nothing unchecked was written.
    pub fn slot_holds_nothing_but(&self, version: &str) -> bool {
        let Ok(slot) = std::fs::read(self.slot()) else { return true };
        let image = image(version);
        let piece = 1 << 20;
        slot.chunks(piece)
            .zip(image.chunks(piece))
            .all(|(slot, image)| slot == image || slot.iter().all(|byte| *byte == 0))
    }
}

/// The category of whatever stopped a node.
pub fn category(failure: &Failure) -> String {
    let error: &(dyn Error + 'static) = failure.as_ref();
    if let Some(own) = download_error(error) {
        return own.category().to_owned();
    }
    if let Some(refusal) = error.downcast_ref::<bascule_image::release::channel::Refusal>() {
        return refusal.category().to_owned();
    }
    if let Some(error) = error.downcast_ref::<bascule_image::apply::ApplyError>() {
        return format!("apply:{}", error.category());
    }
    if let Some(error) = error.downcast_ref::<bascule_image::pack::ReadIndexError>() {
        return format!("index:{}", error.category());
    }
    format!("other: {failure}")
}
