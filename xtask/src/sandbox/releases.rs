//! Building the story's releases the way a vendor does: an OS image from Debian packages, its verity tree, a boot image
//! that carries the root hash, a full pack and a delta from the release before. Kept under `target/sandbox-releases/` by
//! the hash of everything that went in.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_api::Digest;
use bascule_image::Manifest;
use bascule_image::build::Options;
use bascule_image::digest::Sha256;
use bascule_image::release::manifest::PackKind;
use bascule_image::work::Watch;
use bascule_names::{Architecture, Version};
use bascule_os_image::{Fault as ImageFault, OsImage, Recipe, Store, cache, sandbox};
use bascule_release::{Base, BootParts, BuildFolder, Hashed, Identity, Pcr, Release};
use bascule_sim::firmware::boot_image::Fault;

/// The channel that every release of the story is published to.
pub(crate) const CHANNEL: &str = "stable";
/// Releases that are kept: those of the story, of the version before, and of one beside them.
const KEPT: usize = 12;

/// A release as a folder that can be published.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// Its version.
    pub(crate) version: String,
    /// Holds `releases/<version>/<architecture>/…`.
    pub(crate) folder: PathBuf,
    /// The root file system, whole.
    pub(crate) root: PathBuf,
    /// Superblock and hash tree.
    pub(crate) verity: PathBuf,
    /// The boot image.
    pub(crate) uki: PathBuf,
    /// dm-verity root hash.
    pub(crate) root_hash: Sha256,
    /// Size of full pack and boot image: what a node without a base moves.
    pub(crate) full_bytes: u64,
    /// The product.
    pub(crate) product: String,
}

impl Built {
    /// The digest of its manifest: how an order names it.
    ///
    /// # Errors
    /// The manifest can't be read.
    pub(crate) fn digest(&self) -> anyhow::Result<Digest> {
        let file = self.folder.join(format!("releases/{}/x86-64/release.json", self.version));
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Sha256::of(&bytes).into())
    }
}

/// Builds the first releases of the story, or finds them; two of them are a release and an update of it.
///
/// # Errors
/// As [`build_these`].
pub(crate) fn build_first(count: usize, say: &dyn Fn(&str)) -> anyhow::Result<Vec<Built>> {
    const ALL: [&str; 4] = ["1.0", "1.1", "1.2", "1.3"];
    build_these(ALL.get(..count).unwrap_or(&ALL), say)
}

/// Builds those of the releases 1.0 to 1.3 that are wanted, or finds them. Blocks, for minutes the first time. A release is
/// wanted together with the one that its delta is made from.
///
/// # Errors
/// A tool is missing, packages can't be fetched, the disk is full.
pub(crate) fn build_these(wanted: &[&str], say: &dyn Fn(&str)) -> anyhow::Result<Vec<Built>> {
    let store = Store::new(&crate::workspace_root());
    let folder = store.folder().with_file_name("sandbox-releases");
    let builder = store.release_builder()?;
    let _only_builder = only_builder(&folder)?;
    let mut built: Vec<Built> = Vec::new();
    for recipe in sandbox().into_iter().filter(|recipe| wanted.contains(&recipe.version.as_str())) {
        let image = store.build(&recipe, say)?;
        // 1.2 and 1.3 are both made for nodes that run 1.1.
        let base = match recipe.version.as_str() {
            "1.0" => None,
            "1.1" => built.iter().find(|built| built.version == "1.0"),
            _ => built.iter().find(|built| built.version == "1.1"),
        };
        let release = build(&folder, &builder, &recipe, &image, base, say);
        built.push(release.with_context(|| format!("release {}", recipe.version))?);
    }
    Ok(built)
}

/// Sandboxes of other folders, the tests among them, use the same cache: whoever comes second waits, and finds what the
/// first one built.
fn only_builder(cache: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let path = cache.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(lock)
}

fn build(
    cache_folder: &Path,
    builder: &str,
    recipe: &Recipe,
    image: &OsImage,
    base: Option<&Built>,
    say: &dyn Fn(&str),
) -> anyhow::Result<Built> {
    let fault = recipe.fault.map(|fault| format!(" {}", simulated(fault).argument())).unwrap_or_default();
    let command_line = format!("roothash={{roothash}} ro systemd.volatile=state quiet{fault}");
    let from = base.map(|base| base.root_hash.to_string()).unwrap_or_default();
    // The image's folder is named by the hash of all that is in it.
    let key = format!("{builder} {} {command_line} {from}", image.root().display());
    let folder = cache_folder.join(Sha256::of(key.as_bytes()).to_string());
    let place = folder.join("build");
    if let Ok((_, manifest)) = BuildFolder::open(&place, Architecture::X86_64) {
        cache::used(&folder)?;
        return Ok(finished(recipe, image, &folder, &manifest));
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (product, version) = (recipe.product.parse()?, recipe.version.parse()?);
    let identity = Identity { product: &product, version: &version, architecture: Architecture::X86_64 };
    let data = open(&image.root())?;
    say(&format!("{}: hashing the image for dm-verity", recipe.version));
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let (hashed, tree) = Hashed::of(&data, identity.parameters(), workers, &Watch::none())?;
    let verity = folder.join("verity");
    fs::write(&verity, tree.to_bytes()).with_context(|| format!("cannot write {}", verity.display()))?;
    let uki = boot_image(image, &command_line, hashed.root_hash)?;

    let known: Option<(Version, File)> =
        base.map(|base| anyhow::Ok((base.version.parse()?, open(&base.root)?))).transpose()?;
    let bases: Vec<Base<'_>> = base
        .iter()
        .zip(&known)
        .map(|(base, (version, image))| Base { version, root_hash: base.root_hash, image })
        .collect();
    let beside = base.map(|base| format!(", and what differs from {}", base.version)).unwrap_or_default();
    say(&format!("{}: packing {}{beside}", recipe.version, super::report::size(hashed.size)));
    let place = BuildFolder::create(&place)?;
    let release = Release { folder: &place, identity, image: &data, hashed: &hashed };
    let manifest = release.build(&uki, &bases, &Options::default())?;
    cache::keep(cache_folder, KEPT)?;
    Ok(finished(recipe, image, &folder, &manifest))
}

fn finished(recipe: &Recipe, image: &OsImage, folder: &Path, manifest: &Manifest) -> Built {
    let full = manifest.packs.iter().find(|pack| matches!(pack.kind, PackKind::Full));
    let place = folder.join("build");
    Built {
        version: recipe.version.clone(),
        root: image.root(),
        verity: folder.join("verity"),
        uki: place.join(manifest.uki.path.as_str()),
        folder: place,
        root_hash: Sha256::from(&manifest.verity.root_hash),
        full_bytes: full.map_or(0, |pack| pack.transfer_bytes) + manifest.uki.size,
        product: recipe.product.clone(),
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// The fault a release carries, in the words of the simulated machine.
fn simulated(fault: ImageFault) -> Fault {
    match fault {
        ImageFault::KubeletNeverReady => Fault::NeverReady,
        ImageFault::KubeletCrashLoop => Fault::KubeletFails,
        ImageFault::HangBeforeAgent | ImageFault::AgentCrashLoop => Fault::HangBeforeAgent,
        ImageFault::KernelPanic => Fault::Panic,
        ImageFault::InitrdHang => Fault::Hang,
    }
}

/// The unified kernel image that carries the root hash.
fn boot_image(image: &OsImage, command_line: &str, root_hash: Sha256) -> anyhow::Result<Vec<u8>> {
    let (stub, kernel, initrd) = (image.stub(), image.kernel(), image.initrd());
    let parts = BootParts {
        stub: &stub,
        kernel: &kernel,
        initrd: &[&initrd],
        command_line,
        kernel_release: None,
        pcr: Pcr::Nothing,
    };
    Ok(parts.build(&root_hash.into(), &image.os_release)?)
}
