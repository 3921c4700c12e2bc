//! The vendor of the reference OS: packs and manifest of each release, a signed repository, and the server that nodes and
//! operator fetch from.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_image::Sha256;
use bascule_image::build::{Effort, Options};
use bascule_image::work::Watch;
use bascule_names::{Architecture, Version};
use bascule_os_image::cache;
use bascule_release::{Base, BuildFolder, Extras, Release as Built};
use bascule_repository::publish::{
    Lifetimes, Notes, Outcome, Publisher, RoleSetup, Roles, Signing, SigningKey, generate, init,
};
use bascule_tests::clock;
use bascule_tests::https::HttpsServer;

use crate::example_os::PRODUCT;
use crate::release::{Release, identity};

/// Name of the file with the authority of the repository's certificate.
pub const CA_FILE: &str = "repository-ca.pem";
/// Releases whose packs are kept.
const KEPT: usize = 8;

/// One at a time, whichever repository it is for: they share the folder in which packs are kept.
static PACKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A repository, as whoever fetches from it has to know it.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it is.
    pub url: String,
    /// The authority of its server's certificate, as PEM.
    pub authority: String,
    /// The first root of trust.
    pub trust_root: String,
}

/// Keys, repository and server of one scenario.
#[derive(Debug)]
pub struct ReferenceVendor {
    folder: PathBuf,
    packed: PathBuf,
    keys: Vec<SigningKey>,
    server: HttpsServer,
}

impl ReferenceVendor {
    /// A repository of the vendor below `folder`, empty, served on loopback. Keys and the first root of trust are made once
    /// in `home` and kept, since every image of the vendor holds that root; packs are kept in `packed`.
    ///
    /// # Errors
    /// When a file can't be written or no port is free.
    pub async fn open(home: &Path, folder: &Path, packed: &Path) -> anyhow::Result<Self> {
        let keys = establish(home)?;
        let repository = folder.join("repository");
        fs::create_dir_all(packed).with_context(|| format!("making {}", packed.display()))?;
        let copied = Command::new("cp").arg("-r").arg(home.join("repository")).arg(&repository).status()?;
        ensure!(copied.success(), "copying the empty repository failed");
        let signing = Signing { keys: &keys, lifetimes: Lifetimes::default(), now: clock::now() };
        published(Publisher::open(&repository)?.refresh(signing)?.outcome)?;
        let server = HttpsServer::start(&repository).await.context("serving the repository")?;
        Ok(Self { folder: repository, packed: packed.to_owned(), keys, server })
    }

    /// Where nodes and operator fetch from.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The same repository at an address of its own for one node, so that what is sent to it can be counted.
    ///
    /// # Errors
    /// When the link that makes it so can't be made.
    pub fn url_for(&self, node: &str) -> anyhow::Result<String> {
        let link = self.folder.join(node);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(".", &link).with_context(|| format!("making {}", link.display()))?;
        }
        Ok(format!("{}{node}/", self.url()))
    }

    /// Bytes of packs and boot images sent to a node, and to the operator for it, so far.
    #[must_use]
    pub fn packs_sent_to(&self, node: &str) -> u64 {
        let begin = format!("/{node}/");
        let heavy = |path: &String| path.starts_with(&begin) && (path.ends_with(".pack") || path.ends_with(".efi"));
        let paths: BTreeSet<String> =
            self.server.requests().into_iter().map(|request| request.path).filter(heavy).collect();
        paths.iter().map(|path| self.server.bytes_sent_for(path)).sum()
    }

    /// The authority of the server's certificate.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.server.ca_pem()
    }

    /// The first root of trust, for the operator's own reading.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn trust_root(&self) -> anyhow::Result<String> {
        read_trust_root(&self.folder)
    }

    /// What whoever fetches from it has to know.
    ///
    /// # Errors
    /// When the root of trust can't be read.
    pub fn source(&self) -> anyhow::Result<Source> {
        Ok(Source { url: self.url(), authority: self.authority().to_owned(), trust_root: self.trust_root()? })
    }

    /// Publishes a release to a channel, with a delta from each of `bases`. Versions are unique over all channels.
    ///
    /// # Errors
    /// When it can't be packed or signed.
    pub async fn publish(&self, channel: &str, release: &Release, bases: &[&Release]) -> anyhow::Result<()> {
        let _one_at_a_time = PACKING.lock().await;
        let built = self.pack(release, bases).await?;
        let mut publisher = Publisher::open(&self.folder)?;
        let signing = Signing { keys: &self.keys, lifetimes: Lifetimes::default(), now: clock::now() };
        published(publisher.add_release(&channel.parse()?, &built, &Notes::default(), signing)?)
    }

    /// Packs a release that is published later.
    ///
    /// # Errors
    /// When it can't be packed.
    pub async fn pack_ahead(&self, release: &Release, bases: &[&Release]) -> anyhow::Result<()> {
        let _one_at_a_time = PACKING.lock().await;
        self.pack(release, bases).await.map(drop)
    }

    /// Leaves in `to`, which is not there yet, what `bascule release build` leaves of a release.
    ///
    /// # Errors
    /// When it can't be packed or copied.
    pub async fn build_folder(&self, release: &Release, to: &Path) -> anyhow::Result<()> {
        let _one_at_a_time = PACKING.lock().await;
        let packed = self.pack(release, &[]).await?;
        let copied = Command::new("cp").arg("-r").arg(&packed).arg(to).status()?;
        ensure!(copied.success(), "copying {} failed", packed.display());
        let (folder, _) = BuildFolder::open(to, Architecture::X86_64)?;
        let image = folder.image_path();
        fs::copy(&release.data, &image).with_context(|| format!("writing {}", image.display())).map(drop)
    }

    async fn pack(&self, release: &Release, bases: &[&Release]) -> anyhow::Result<PathBuf> {
        let (cache, release) = (self.packed.clone(), release.clone());
        let bases: Vec<Release> = bases.iter().map(|base| (*base).clone()).collect();
        // In a thread of its own: the scenarios on other machines go on.
        let built = tokio::task::spawn_blocking(move || {
            pack(&cache, &release, &bases).with_context(|| format!("packing {}", release.version))
        });
        built.await?
    }
}

/// The vendor's first root of trust, which goes into every image; made with the vendor's keys if there are none yet.
///
/// # Errors
/// When a file can't be read or written.
pub fn trust_root(home: &Path) -> anyhow::Result<String> {
    establish(home)?;
    read_trust_root(&home.join("repository"))
}

fn read_trust_root(repository: &Path) -> anyhow::Result<String> {
    let path = repository.join("metadata/1.root.json");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Makes keys and an empty repository in `home`, or reads the keys that are there.
fn establish(home: &Path) -> anyhow::Result<Vec<SigningKey>> {
    const ROLES: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];
    let read = |home: &Path| -> anyhow::Result<Vec<SigningKey>> {
        ROLES.iter().map(|role| Ok(SigningKey::read(&home.join(role).with_extension("pem"))?)).collect()
    };
    if home.exists() {
        return read(home);
    }
    let partial = home.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let repository = partial.join("repository");
    fs::create_dir_all(&repository).with_context(|| format!("making {}", repository.display()))?;
    let role = |name: &str| -> anyhow::Result<RoleSetup> {
        Ok(RoleSetup { keys: vec![generate(&partial.join(name))?], threshold: 1 })
    };
    let [root, targets, snapshot, timestamp] = ROLES;
    let roles =
        Roles { root: role(root)?, targets: role(targets)?, snapshot: role(snapshot)?, timestamp: role(timestamp)? };
    let keys = read(&partial)?;
    published(init(&repository, &roles, Signing { keys: &keys, lifetimes: Lifetimes::default(), now: clock::now() })?)?;
    fs::rename(&partial, home).with_context(|| format!("making {}", home.display()))?;
    Ok(keys)
}

fn published(outcome: Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Published { .. } => Ok(()),
        Outcome::Waiting(missing) => bail!("signatures are missing: {missing:?}"),
    }
}

/// Makes the folder that a publisher takes a release from, or finds it.
fn pack(cache_folder: &Path, release: &Release, bases: &[Release]) -> anyhow::Result<PathBuf> {
    let uki = fs::read(&release.uki).with_context(|| format!("reading {}", release.uki.display()))?;
    let from: Vec<String> = bases.iter().map(|base| base.root_hash.to_string()).collect();
    let mut key = format!("{} {} {} {}", release.builder, release.root_hash, Sha256::of(&uki), from.join(" "));
    if let Some(loader) = &release.brings {
        key.push_str(&format!(" {}", loader.digest));
    }
    let root = cache_folder.join(Sha256::of(key.as_bytes()).to_string());
    if BuildFolder::open(&root, Architecture::X86_64).is_ok() {
        cache::used(&root)?;
        return Ok(root);
    }
    let folder = BuildFolder::create(&root)?;
    let (image, hashed) = (open(&release.data)?, release.hashed()?);
    let (product, version) = (PRODUCT.parse()?, release.version.parse()?);
    let known: Vec<(Version, File)> =
        bases.iter().map(|base| Ok((base.version.parse()?, open(&base.data)?))).collect::<anyhow::Result<_>>()?;
    let from: Vec<Base<'_>> = bases
        .iter()
        .zip(&known)
        .map(|(base, (version, image))| Base { version, root_hash: base.root_hash, image })
        .collect();
    crate::say(&format!("{}: packing {} MB", release.version, hashed.size / 1_000_000));
    // Tests move a pack once: a quarter more to move costs less than packing it well.
    let options = Options { effort: Effort::Fast, ..Options::default() };
    let identity = identity(&product, &version);
    let built = Built { folder: &folder, identity, image: &image, hashed: &hashed };
    // Part by part, as the vendor's command does it, which says more in the manifest than what is built.
    let uki = built.boot_image(&uki)?;
    let mut packs = vec![built.full(&options, &Watch::none())?];
    for base in &from {
        packs.push(built.delta(*base, &options, &Watch::none())?);
    }
    built.finish(uki, packs, Extras { boot_loader: release.brings.clone(), ..Extras::default() })?;
    cache::keep(cache_folder, KEPT)?;
    Ok(root)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}
