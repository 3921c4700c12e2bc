//! The vendor of the story: a signed release repository in a folder, served over https on loopback, and the three
//! things that happen to it: a release is published, somebody tampers with it, it is left to expire.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bascule_repository::publish::{
    Lifetimes, Notes, Outcome, Publisher, RoleSetup, Roles, Signing, SigningKey, generate, init,
};
use bascule_tests::clock;
use bascule_tests::https::HttpsServer;
use chrono::TimeDelta;

use super::releases::{Built, CHANNEL};

/// The vendor's server and keys.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    keys: Vec<SigningKey>,
    server: HttpsServer,
    built: BTreeMap<String, Built>,
}

impl Repository {
    /// Makes keys and an empty repository below `place`, and serves it.
    ///
    /// # Errors
    /// The port is in use, or a file can't be written.
    pub(crate) async fn open(place: &Path, port: Option<u16>, built: Vec<Built>) -> anyhow::Result<Self> {
        let (folder, key_folder) = (place.join("repository"), place.join("keys"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::create_dir_all(&key_folder).with_context(|| format!("cannot make {}", key_folder.display()))?;
        // A key for each role, as a vendor keeps them apart.
        let mut keys = Vec::new();
        let mut role = |name: &str| -> anyhow::Result<RoleSetup> {
            let stem = key_folder.join(name);
            let public = generate(&stem)?;
            keys.push(SigningKey::read(&stem.with_extension("pem"))?);
            Ok(RoleSetup { keys: vec![public], threshold: 1 })
        };
        let roles = Roles {
            root: role("root")?,
            targets: role("targets")?,
            snapshot: role("snapshot")?,
            timestamp: role("timestamp")?,
        };
        let signing = Signing { keys: &keys, lifetimes: Lifetimes::default(), now: clock::now() };
        init(&folder, &roles, signing)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port.unwrap_or(0)));
        let server = HttpsServer::start_on(&folder, address).await.with_context(|| match port {
            Some(port) => format!("cannot serve the repository on port {port}: choose another --port"),
            None => "cannot serve the repository on loopback".to_owned(),
        })?;
        let built = built.into_iter().map(|built| (built.version.clone(), built)).collect();
        Ok(Self { folder, keys, server, built })
    }

    /// Where nodes and operator fetch from.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// The authority of the https server.
    pub(crate) fn ca_pem(&self) -> &str {
        self.server.ca_pem()
    }

    /// The first root of trust.
    pub(crate) fn trust_root(&self) -> anyhow::Result<String> {
        let path = self.folder.join("metadata/1.root.json");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A release that was built.
    pub(crate) fn built(&self, version: &str) -> anyhow::Result<&Built> {
        self.built.get(version).with_context(|| format!("release {version} was never built"))
    }

    /// Bytes that a node without any base would fetch for a release.
    pub(crate) fn whole(&self, version: &str) -> u64 {
        self.built.get(version).map_or(0, |built| built.full_bytes)
    }

    /// Everything the server sent so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.server.bytes_sent()
    }

    /// What it sent of one release: packs, boot image, manifest.
    pub(crate) fn sent(&self, version: &str) -> u64 {
        self.server.bytes_sent_for(&format!("/releases/{version}/"))
    }

    /// What it sent of packs and boot images of all releases.
    pub(crate) fn packs_sent(&self) -> u64 {
        [".pack", ".efi"].iter().map(|part| self.server.bytes_sent_for(part)).sum()
    }

    /// Publishes a release to the story's channel.
    ///
    /// # Errors
    /// A file of the release is not what its manifest says, or can't be written.
    pub(crate) async fn publish(&self, version: &str) -> anyhow::Result<()> {
        let folder = self.built(version)?.folder.clone();
        self.sign(clock::now(), Lifetimes::default(), move |publisher, signing| {
            let notes = Notes { downgrade: false, ..Notes::default() };
            publisher.add_release(&CHANNEL.parse()?, &folder, &notes, signing).map_err(anyhow::Error::from)
        })
        .with_context(|| format!("cannot publish {version}"))
    }

    /// Replaces the newest metadata by one that nobody signed: a timestamp that says it is newer.
    pub(crate) fn tamper(&self) -> anyhow::Result<()> {
        self.keep()?;
        let path = self.folder.join("metadata/timestamp.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut stamp: serde_json::Value = serde_json::from_str(&text).context("the timestamp is no JSON")?;
        let version = stamp.pointer_mut("/signed/version").context("the timestamp has no version")?;
        *version = serde_json::json!(version.as_u64().unwrap_or(0) + 1000);
        fs::write(&path, stamp.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Signs metadata as if it had been forgotten long ago: all in order but its age.
    pub(crate) fn let_expire(&self) -> anyhow::Result<()> {
        // Nothing is kept aside: readers remember the expired version, and only a newer one can take its place.
        let lifetimes = Lifetimes { timestamp: TimeDelta::days(1), ..Lifetimes::default() };
        self.sign(clock::now() - TimeDelta::days(3), lifetimes, |publisher, signing| {
            Ok(publisher.refresh(signing)?.outcome)
        })
        .context("cannot sign expired metadata")
    }

    /// Undoes [`Self::tamper`] or [`Self::let_expire`] as its vendor would: by signing anew.
    pub(crate) fn restore(&self) -> anyhow::Result<()> {
        let path = self.folder.join("metadata/timestamp.json");
        if self.kept().exists() {
            fs::rename(self.kept(), &path).with_context(|| format!("cannot restore {}", path.display()))?;
        }
        self.sign(clock::now(), Lifetimes::default(), |publisher, signing| Ok(publisher.refresh(signing)?.outcome))
            .context("cannot sign fresh metadata")
    }

    fn kept(&self) -> PathBuf {
        self.folder.join("metadata/timestamp.kept")
    }

    fn keep(&self) -> anyhow::Result<()> {
        let path = self.folder.join("metadata/timestamp.json");
        fs::copy(&path, self.kept()).with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(())
    }

    fn sign(
        &self,
        now: chrono::DateTime<chrono::Utc>,
        lifetimes: Lifetimes,
        change: impl FnOnce(&mut Publisher, Signing<'_>) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<()> {
        let mut publisher = Publisher::open(&self.folder)?;
        match change(&mut publisher, Signing { keys: &self.keys, lifetimes, now })? {
            Outcome::Published { .. } => Ok(()),
            Outcome::Waiting(missing) => bail!("signatures are missing: {missing:?}"),
        }
    }
}
