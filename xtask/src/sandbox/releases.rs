//! Building the story's releases the way a vendor does: an OS image from Debian packages, its verity tree, a boot image
//! that carries the root hash, a full pack and a delta from the release before. Kept under `target/sandbox-releases/` by
//! the hash of everything that went in.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_api::Digest;
use bascule_image::build::{BuiltPack, Image as PackImage, Options as PackOptions, build_delta, build_full};
use bascule_image::digest::Sha256;
use bascule_image::release::manifest::{self, File as Described, Image, Manifest, Pack, Verity};
use bascule_image::release::names::TargetPath;
use bascule_image::uki;
use bascule_image::verity::{self, Parameters};
use bascule_image::work::Watch;
use bascule_os_image::{Fault as ImageFault, OsImage, Recipe, Store, sandbox};
use bascule_sim::firmware::boot_image::Fault;
use uuid::Uuid;

/// The channel that every release of the story is published to.
pub(crate) const CHANNEL: &str = "stable";
/// Counted up when the way of building changes what comes out.
const FORMAT: &str = "2";

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
    let cache = store.folder().with_file_name("sandbox-releases");
    let _only_builder = only_builder(&cache)?;
    let mut built: Vec<Built> = Vec::new();
    for recipe in sandbox().into_iter().filter(|recipe| wanted.contains(&recipe.version.as_str())) {
        let image = store.build(&recipe, say)?;
        // 1.2 and 1.3 are both made for nodes that run 1.1.
        let base = match recipe.version.as_str() {
            "1.0" => None,
            "1.1" => built.iter().find(|built| built.version == "1.0"),
            _ => built.iter().find(|built| built.version == "1.1"),
        };
        let release =
            build(&cache, &recipe, &image, base, say).with_context(|| format!("release {}", recipe.version))?;
        built.push(release);
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
    cache: &Path,
    recipe: &Recipe,
    image: &OsImage,
    base: Option<&Built>,
    say: &dyn Fn(&str),
) -> anyhow::Result<Built> {
    let cmdline = |root_hash: &Sha256| {
        let fault = recipe.fault.map(|fault| format!(" {}", simulated(fault).argument())).unwrap_or_default();
        format!("roothash={root_hash} ro systemd.volatile=state quiet{fault}")
    };
    let data = File::open(image.root()).with_context(|| format!("cannot open {}", image.root().display()))?;
    let size = data.metadata().with_context(|| format!("cannot look at {}", image.root().display()))?.len();
    let key = Sha256::of(
        format!(
            "{FORMAT} {} {} {} {}",
            image.root().display(),
            size,
            cmdline(&Sha256::of(b"")),
            base.map(|base| base.root_hash.to_string()).unwrap_or_default()
        )
        .as_bytes(),
    )
    .to_string();
    let folder = cache.join(key.get(..16).unwrap_or(&key));
    let place = format!("releases/{}/x86-64", recipe.version);
    let done = folder.join("done.json");
    if done.is_file() {
        return finished(recipe, image, &folder, &place);
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(partial.join(&place)).with_context(|| format!("cannot make {}", partial.display()))?;

    say(&format!("{}: hashing {} for dm-verity", recipe.version, super::report::size(size)));
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let identity = Sha256::of(format!("{} {}", recipe.product, recipe.version).as_bytes());
    let parameters = Parameters { salt: identity.as_bytes().to_vec(), uuid: identity.second_half() };
    let tree = verity::build(&data, size, &parameters, workers, &Watch::none())?;
    write(&partial.join("verity"), &tree.to_bytes())?;
    let root_hash = tree.root_hash();

    let uki = boot_image(image, &cmdline(&root_hash))?;
    let path = |name: &str| -> anyhow::Result<TargetPath> { Ok(format!("{place}/{name}").parse()?) };
    write(&partial.join(&place).join("boot.efi"), &uki)?;

    let options = PackOptions::default();
    let whole = PackImage { root_hash, bytes: &data };
    say(&format!("{}: packing {} whole", recipe.version, super::report::size(size)));
    let mut packs = vec![write_pack(&partial, path("full.pack")?, |output| {
        build_full(whole, output, &options, &Watch::none()).map_err(anyhow::Error::from)
    })?];
    if let Some(base) = base {
        say(&format!("{}: packing the difference from {}", recipe.version, base.version));
        let bytes = File::open(&base.root).with_context(|| format!("cannot open {}", base.root.display()))?;
        let from = PackImage { root_hash: base.root_hash, bytes: &bytes };
        packs.push(write_pack(&partial, path(&format!("from-{}.pack", base.root_hash))?, |output| {
            build_delta(whole, from, output, &options, &Watch::none()).map_err(anyhow::Error::from)
        })?);
    }
    let manifest = Manifest {
        format: manifest::FORMAT,
        product: recipe.product.parse()?,
        version: recipe.version.parse()?,
        architecture: "x86-64".parse()?,
        image: Image { size },
        verity: Verity {
            algorithm: "sha256".to_owned(),
            block_size: 4096,
            salt: parameters.salt.clone(),
            uuid: Uuid::from_bytes(parameters.uuid),
            root_hash: root_hash.into(),
            hash_tree_size: tree.hash_size(),
        },
        uki: Described { path: path("boot.efi")?, size: uki.len() as u64, digest: Sha256::of(&uki).into() },
        packs,
        packages: None,
        kubernetes: None,
        state_version: None,
        measured: None,
    };
    write(&partial.join(&place).join("release.json"), &manifest.to_bytes()?)?;
    write(&partial.join("done.json"), b"{}")?;
    fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))?;
    finished(recipe, image, &folder, &place)
}

fn finished(recipe: &Recipe, image: &OsImage, folder: &Path, place: &str) -> anyhow::Result<Built> {
    let file = folder.join(place).join("release.json");
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = Manifest::parse(&bytes)?;
    let full = manifest.packs.iter().find(|pack| matches!(pack.kind, manifest::PackKind::Full));
    Ok(Built {
        version: recipe.version.clone(),
        folder: folder.to_owned(),
        root: image.root(),
        verity: folder.join("verity"),
        uki: folder.join(place).join("boot.efi"),
        root_hash: Sha256::from(&manifest.verity.root_hash),
        full_bytes: full.map_or(0, |pack| pack.transfer_bytes) + manifest.uki.size,
        product: recipe.product.clone(),
    })
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn write_pack(
    folder: &Path,
    path: TargetPath,
    build: impl FnOnce(&mut dyn Write) -> anyhow::Result<BuiltPack>,
) -> anyhow::Result<Pack> {
    let file = folder.join(path.as_str());
    let mut output = BufWriter::new(File::create(&file).with_context(|| format!("cannot make {}", file.display()))?);
    let built = build(&mut output)?;
    output.flush().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(built.to_manifest_entry(path))
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
fn boot_image(image: &OsImage, command_line: &str) -> anyhow::Result<Vec<u8>> {
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    let (stub, kernel, initrd) = (read(image.stub())?, read(image.kernel())?, read(image.initrd())?);
    let parts = uki::Parts {
        stub: &stub,
        kernel: &kernel,
        initrd: &initrd,
        command_line,
        os_release: &image.os_release,
        kernel_release: None,
    };
    Ok(uki::build(&parts)?)
}
