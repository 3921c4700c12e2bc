//! The cache of images: one folder per recipe, made whole or not at all, with one builder at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fs2::FileExt;
use ring::digest;
use rustix::mount::UnmountFlags;
use serde::Serialize;

pub use crate::tree::Package;
use crate::tree::{self, Tree};
use crate::{Archive, Distribution, Error, Kernel, Recipe, archive, cache, erofs, initrd, shipped, tool};

/// What installs packages, beside the recipe.
const TREE_BUILDER: [&str; 7] = [
    "examples/debian/install-packages",
    "examples/debian/remove",
    "examples/debian/strip-root",
    "examples/debian/stripped",
    "tests/os-image/src/archive.rs",
    "tests/os-image/src/tool.rs",
    "tests/os-image/src/tree.rs",
];
/// What makes an image of an installed tree, beside the recipe: what goes into the initrd included.
const IMAGE_BUILDER: [&str; 7] = [
    "examples/debian/init/src",
    "examples/debian/initrd-modules",
    "tests/os-image/src/cpio.rs",
    "tests/os-image/src/erofs.rs",
    "tests/os-image/src/initrd.rs",
    "tests/os-image/src/recipe.rs",
    "tests/os-image/src/store.rs",
];
/// What makes a release of an image, beside what the caller gives to it.
const RELEASE_BUILDER: [&str; 6] = [
    "crates/image/src/build",
    "crates/image/src/pack",
    "crates/image/src/release",
    "crates/image/src/uki",
    "crates/image/src/verity",
    "crates/release/src",
];
/// A base tree, its copy while a recipe's files go in, and the image: more than any one build needs.
const NEEDED_MIB: u64 = 3 * 1024;
/// Images that are kept, each of some 120 to 800 MB: those of the boot tests, of the sandbox, and some of the version before. One run
/// may have all editions of the boot tests, and installs machines from each until it ends: with fewer it would lose its own.
pub const KEPT_IMAGES: usize = 24;
/// Trees of packages that are kept, each of some 180 to 800 MB: five of the boot tests, three of the sandbox.
const KEPT_TREES: usize = 8;

/// An image that was built, as files.
#[derive(Debug, Clone)]
pub struct OsImage {
    /// `IMAGE_VERSION`.
    pub version: String,
    /// The text of os-release, for the `.osrel` section of the unified kernel image.
    pub os_release: String,
    folder: PathBuf,
}

impl OsImage {
    /// The root file system: EROFS, uncompressed, a whole number of 4 KiB blocks.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.erofs")
    }

    /// The kernel (a bzImage with an EFI stub of its own).
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initrd, compressed with zstd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.img")
    }

    /// systemd's EFI stub, the frame of a unified kernel image.
    #[must_use]
    pub fn stub(&self) -> PathBuf {
        self.folder.join("linuxx64.efi.stub")
    }

    /// systemd-boot itself, for the ESP.
    #[must_use]
    pub fn boot_loader(&self) -> PathBuf {
        self.folder.join("systemd-bootx64.efi")
    }

    /// Every package in the image, sorted by name.
    ///
    /// # Errors
    /// [`Error::Io`] when the list can't be read.
    pub fn packages(&self) -> Result<Vec<Package>, Error> {
        let path = self.folder.join("packages.json");
        let text = fs::read(&path).map_err(Error::io(&path))?;
        serde_json::from_slice(&text).map_err(|error| Error::io(path)(error.into()))
    }
}

/// What decides a base tree: recipes that differ in nothing of it share one.
#[derive(Serialize)]
struct Base<'a> {
    builder: String,
    distribution: Distribution,
    archive: Archive,
    kernel: Kernel,
    packages: &'a [String],
    sources: String,
}

/// A folder of images, usually `target/os-images`.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    workspace: PathBuf,
}

impl Store {
    /// The store below the build folder of the workspace at `workspace` (where the top `Cargo.toml` is).
    #[must_use]
    pub fn new(workspace: &Path) -> Self {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        Self { folder: target.join("os-images"), workspace: workspace.to_owned() }
    }

    /// The folder of the store.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where packages are kept that were fetched.
    #[must_use]
    pub fn downloads(&self) -> PathBuf {
        self.folder.join("packages")
    }

    /// Builds the image of `recipe`, or finds it. `say` is told each step as it begins, one line each; nothing is
    /// said when the image is there already. Waits while another process builds in the same store.
    ///
    /// # Errors
    /// Missing tools, a full disk, packages that can't be fetched: see [`Error`].
    pub fn build(&self, recipe: &Recipe, say: &dyn Fn(&str)) -> Result<OsImage, Error> {
        let builder = cache::digest_of_sources(&self.workspace, &IMAGE_BUILDER)?;
        let base_key = self.base_key(recipe)?;
        let folder = self.folder.join(key(&(&base_key, recipe, &builder))?);
        let image =
            OsImage { version: recipe.version.clone(), os_release: recipe.os_release(), folder: folder.clone() };
        if folder.join("packages.json").exists() {
            cache::used(&folder)?;
            return Ok(image);
        }
        let _lock = self.lock()?;
        if folder.join("packages.json").exists() {
            return Ok(image);
        }
        self.check_host()?;
        let began = Instant::now();
        let tree = self.tree(recipe, &base_key, say)?;
        let init = self.init(say)?;

        say(&format!("{} {}: writing the root file system", recipe.product, recipe.version));
        let partial = self.partial(&folder)?;
        let root = partial.join("root");
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(tree.root()).arg(&root);
        tool::run("copying the tree of packages", &mut copy)?;
        initrd::write(&root, &init, &image.os_release, &partial.join("initrd.img"))?;
        tree::finish(recipe, &root)?;
        erofs::write(&root, &partial.join("root.erofs"))?;
        fs::remove_dir_all(&root).map_err(Error::io(&root))?;
        for name in ["vmlinuz", "linuxx64.efi.stub", "systemd-bootx64.efi"] {
            let from = tree.boot_file(name);
            fs::copy(&from, partial.join(name)).map_err(Error::io(from))?;
        }
        // The last one: it says that the folder is whole.
        let packages = tree.packages();
        fs::copy(&packages, partial.join("packages.json")).map_err(Error::io(packages))?;
        fs::rename(&partial, &folder).map_err(Error::io(&folder))?;
        cache::used(&folder)?;
        cache::keep(&self.folder, KEPT_IMAGES)?;
        let size = fs::metadata(image.root()).map_err(Error::io(image.root()))?.len();
        say(&format!(
            "{} {}: root of {} MB after {} s",
            recipe.product,
            recipe.version,
            size / 1_000_000,
            began.elapsed().as_secs()
        ));
        Ok(image)
    }

    /// Installs the packages of `recipe`, or finds them: what costs most of an image, and needs none of the recipe's files.
    ///
    /// # Errors
    /// As for [`Store::build`].
    pub fn install_packages(&self, recipe: &Recipe, say: &dyn Fn(&str)) -> Result<(), Error> {
        let base_key = self.base_key(recipe)?;
        let _lock = self.lock()?;
        self.check_host()?;
        self.tree(recipe, &base_key, say).map(drop)
    }

    /// Names the tree of packages that a recipe begins with.
    fn base_key(&self, recipe: &Recipe) -> Result<String, Error> {
        key(&Base {
            builder: cache::digest_of_sources(&self.workspace, &TREE_BUILDER)?,
            distribution: recipe.distribution,
            archive: recipe.archive,
            kernel: recipe.kernel,
            packages: &recipe.packages,
            sources: archive::sources(Path::new("/etc"), recipe.distribution, recipe.archive)?,
        })
    }

    fn tree(&self, recipe: &Recipe, base_key: &str, say: &dyn Fn(&str)) -> Result<Tree, Error> {
        let trees = self.folder.join("trees");
        let folder = trees.join(base_key);
        if !folder.exists() {
            say(&format!(
                "{} {}: installing {} packages and what they need",
                recipe.product,
                recipe.version,
                recipe.packages.len()
            ));
            let partial = self.partial(&folder)?;
            tree::install(recipe, &Tree::at(partial.clone()), &self.workspace, &self.downloads())?;
            fs::rename(&partial, &folder).map_err(Error::io(&folder))?;
        }
        cache::used(&folder)?;
        cache::keep(&trees, KEPT_TREES)?;
        Ok(Tree::at(folder))
    }

    /// Digest of the sources that make a release of an image: part of the name under which one is kept.
    ///
    /// # Errors
    /// [`Error::Io`] when they can't be read.
    pub fn release_builder(&self) -> Result<String, Error> {
        cache::digest_of_sources(&self.workspace, &RELEASE_BUILDER)
    }

    /// Builds the initrd's program: static, since nothing else is in the initrd.
    fn init(&self, say: &dyn Fn(&str)) -> Result<PathBuf, Error> {
        let key = cache::digest_of_sources(&self.workspace, &["examples/debian/init/src"])?;
        let kept = self.folder.join("init").join(&key);
        if kept.exists() {
            return Ok(kept);
        }
        say("building the initrd's program");
        let built = shipped::build(&self.workspace, &["bascule-init"])?.join("bascule-init");
        let folder = self.folder.join("init");
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let partial = folder.join(format!("{key}.partial"));
        fs::copy(&built, &partial).map_err(Error::io(&built))?;
        fs::rename(&partial, &kept).map_err(Error::io(&kept))?;
        Ok(kept)
    }

    fn lock(&self) -> Result<File, Error> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let path = self.folder.join("lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock_exclusive().map_err(Error::io(path))?;
        Ok(file)
    }

    fn check_host(&self) -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let free_mib = fs2::available_space(&self.folder).map_err(Error::io(&self.folder))? / (1024 * 1024);
        if free_mib < NEEDED_MIB {
            return Err(Error::NoSpace { path: self.folder.clone(), free_mib, needed_mib: NEEDED_MIB });
        }
        Ok(())
    }

    /// An empty folder beside `folder`, for what is not whole yet. What an earlier build left there goes.
    fn partial(&self, folder: &Path) -> Result<PathBuf, Error> {
        let partial = folder.with_extension("partial");
        if partial.exists() {
            unmount_below(&partial)?;
            fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
        }
        fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        Ok(partial)
    }
}

/// Takes away what a build that was killed left mounted below a folder, in its root: who removes the folder would remove the host's
/// own /sys and /dev with the rest.
///
/// # Errors
/// [`Error::Io`] when mounts can't be read or taken away.
pub fn unmount_below(folder: &Path) -> Result<(), Error> {
    let mounts = Path::new("/proc/self/mounts");
    let text = fs::read_to_string(mounts).map_err(Error::io(mounts))?;
    let places = text.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let mut below: Vec<&Path> = places.filter(|place| place.starts_with(folder)).collect();
    // What was mounted last goes first.
    below.reverse();
    for place in below {
        rustix::mount::unmount(place, UnmountFlags::DETACH).map_err(|error| Error::io(place)(error.into()))?;
    }
    Ok(())
}

/// 128 bits of SHA-256 over the value's JSON.
fn key(value: &impl Serialize) -> Result<String, Error> {
    let json = serde_json::to_vec(value).map_err(|error| Error::io("recipe")(error.into()))?;
    let hash = hex::encode(digest::digest(&digest::SHA256, &json));
    Ok(hash.get(..32).unwrap_or(&hash).to_owned())
}
