//! `bascule release build` and `delta`: from a root tree or an image to what `publish` takes.

mod boot;
pub(crate) mod check;
mod loader;
mod packages;
mod packs;
mod pcr;
mod state;
mod tree;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_image::io::ReadAt as _;
use bascule_image::release::manifest::{self, Kubernetes, Manifest, PackKind, PackageList, PackageListFormat};
use bascule_image::uki::Uki;
use bascule_image::verity;
use bascule_names::{Architecture, KubernetesVersion, Product, RootHash, Version};
use bascule_release::{BuildFolder, Extras, Hashed, Identity, Pcr, Release, read_bounded};
use clap::Args;

use self::boot::BootArguments;
use self::check::{CheckArguments, Space, Subject};
use self::loader::LoaderArguments;
use self::packs::PackArguments;
use self::pcr::PcrArguments;
use crate::exit::Exit;
use crate::output;
use crate::release::progress::Bar;
use crate::release::secure_boot::SecureBootArguments;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("content").required(true))]
pub(crate) struct BuildArguments {
    /// Folder for the result; new or empty.
    #[arg(value_name = "FOLDER")]
    out: PathBuf,

    /// Product that the image is for.
    #[arg(long)]
    product: Product,

    /// Version of the release.
    #[arg(long = "release", value_name = "VERSION")]
    version: Version,

    /// Architecture of the image.
    #[arg(long, default_value = "x86-64")]
    architecture: Architecture,

    /// Root tree to make an EROFS image of (needs mkfs.erofs; run it as the owner of the files, usually root).
    #[arg(long, value_name = "FOLDER", group = "content")]
    root: Option<PathBuf>,

    /// Ready file system image. It should not be compressed: deltas find nothing in compressed data.
    #[arg(long, value_name = "FILE", group = "content")]
    image: Option<PathBuf>,

    /// Time stamp of all files in the image, in seconds since 1970.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, env = "SOURCE_DATE_EPOCH")]
    timestamp: u64,

    /// Package list (CycloneDX or SPDX JSON). Default: made from dpkg's status in --root.
    #[arg(long, value_name = "FILE")]
    packages: Option<PathBuf>,

    /// Version of the kubelet in the image. Default: that of the package kubelet, k3s or rke2 in the package list.
    #[arg(long, value_name = "VERSION")]
    kubelet: Option<KubernetesVersion>,

    /// State version of the image, where there is no tree to read BASCULE_STATE_VERSION of os-release from.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    state_version: Option<u32>,

    /// Only print the image's root hash, to make a UKI with other tools.
    #[arg(long)]
    only_root_hash: bool,

    #[command(flatten)]
    boot: BootArguments,

    #[command(flatten)]
    secure_boot: SecureBootArguments,

    #[command(flatten)]
    pcr: PcrArguments,

    #[command(flatten)]
    loader: LoaderArguments,

    #[command(flatten)]
    packs: PackArguments,

    /// Size of a slot's data partition on the disks that it is for, e.g. `2GiB`: what does not fit is refused.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Checks")]
    slot_size: Option<u64>,

    /// Size of a slot's verity partition.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Checks")]
    verity_size: Option<u64>,

    /// Size of the boot partition.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Checks")]
    esp_size: Option<u64>,

    #[command(flatten)]
    checks: CheckArguments,
}

/// Bytes, or a number with KiB, MiB or GiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let refuse = || format!("{text} is no size; write bytes, or a number with KiB, MiB or GiB");
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1_u64 << 30)];
    let unit = units.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let number: u64 = number.trim().parse().map_err(|_| refuse())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(refuse)
}

pub(crate) fn build(arguments: &BuildArguments) -> anyhow::Result<Exit> {
    let identity =
        Identity { product: &arguments.product, version: &arguments.version, architecture: arguments.architecture };
    if !arguments.only_root_hash {
        arguments.boot.check()?;
    }
    let subject =
        Subject { product: &arguments.product, version: &arguments.version, architecture: arguments.architecture };
    let secure_boot = arguments.secure_boot.read()?;
    let pcr = arguments.pcr.read()?;
    let mut findings = Vec::new();
    let mut kernel_release = None;
    if !arguments.only_root_hash {
        (findings, kernel_release) = arguments.boot.look(arguments.architecture)?;
    }
    let mut loader = None;
    if !arguments.only_root_hash {
        let found = arguments.loader.look(arguments.root.as_deref(), arguments.architecture, secure_boot.as_ref())?;
        findings.extend(found.1);
        loader = found.0;
    }
    let os_release = os_release(arguments)?;
    let state_of_tree = os_release.as_deref().map(|text| state::declared("the tree's os-release", text)).transpose()?;
    if let Some(root) = &arguments.root {
        ensure!(root.is_dir(), "{} is no folder; --root takes the root tree of the OS", root.display());
        findings.extend(check::tree(root, os_release.as_deref(), kernel_release.as_deref(), subject)?);
    }
    // Before an hour of packing.
    arguments.checks.judge(&findings)?;
    let folder = BuildFolder::create(&arguments.out)?;
    make_image(arguments, &identity, &folder)?;
    let mut findings = check::image(&folder.image_path())?;
    let image = folder.image()?;
    let bar = Bar::new("verity tree", image.size().context("can't measure the image")?);
    let (hashed, tree) =
        bar.during(|watch| Hashed::of(&image, identity.parameters(), arguments.packs.workers(), watch))?;
    let root_hash = RootHash::from(hashed.root_hash);
    if arguments.only_root_hash {
        output::print(&format!("{root_hash}\n"))?;
        return Ok(Exit::Success);
    }

    let os_release = os_release.unwrap_or_else(|| minimal_os_release(&subject));
    let boot = |pcr: Pcr<'_>| arguments.boot.uki(&root_hash, &os_release, pcr);
    let mut uki = match &pcr {
        Some(key) => key.put(boot)?,
        None => boot(Pcr::Nothing)?,
    };
    if let Some(secure_boot) = &secure_boot {
        uki = secure_boot.sign(uki).context("can't sign the UKI for Secure Boot")?;
    }
    findings.extend(check::uki(&uki, &root_hash, subject).context("the UKI is not usable")?);
    findings.extend(check::policy(&uki, arguments.pcr.phases()).context("the UKI is not usable")?);
    // With a key of its own it was judged by that.
    if let Some(loader) = loader.as_ref().filter(|_| secure_boot.is_none()) {
        findings.extend(loader.beside(&uki).context("can't read the signatures of UKI and boot loader")?);
    }
    let layout = Space { slot: arguments.slot_size, verity: arguments.verity_size, esp: arguments.esp_size };
    findings.extend(check::space(layout, hashed.size, tree.hash_size(), uki.len() as u64));
    for base in &arguments.packs.base {
        let (_, base) = BuildFolder::open(base, arguments.architecture)?;
        findings.extend(check::growth(&base.version, base.image.size, hashed.size));
    }
    arguments.checks.judge(&findings)?;
    let state_version = match state_of_tree {
        Some(state_of_tree) => state::of_tree(state_of_tree, arguments.state_version)?,
        None => state::of_image(&uki, arguments.state_version)?,
    };
    let measured = match Uki::open(&uki)?.pcr11() {
        Ok(pcr11) => Some(pcr11.measured(arguments.pcr.phases())),
        Err(error) => {
            output::say(&format!("what a TPM will hold (PCR 11) is not in the manifest: {error}"));
            None
        }
    };
    let release = Release { folder: &folder, identity, image: &image, hashed: &hashed };
    let uki = release.boot_image(&uki)?;
    let (packages, listed) = package_list(arguments, &identity, &folder)?.unzip();
    let kubernetes = match (arguments.kubelet, listed.flatten()) {
        (Some(kubelet), listed) => {
            Some(Kubernetes { kubelet, api_server: listed.is_some_and(|listed| listed.api_server) })
        }
        (None, listed) => listed,
    };
    let mut packs = vec![packs::full(&release, &arguments.packs)?];
    for base in &arguments.packs.base {
        packs.push(packs::delta(&release, base, &arguments.packs)?);
    }
    let boot_loader = loader.map(|loader| loader.entry());
    let extras = Extras { packages, kubernetes, state_version, measured, boot_loader };
    let (manifest, written) = release.finish(uki, packs, extras)?;
    output::print(&summary(&manifest, &written))?;
    Ok(Exit::Success)
}

#[derive(Debug, Args)]
pub(crate) struct DeltaArguments {
    /// Build folder of the release that the delta leads to. It must not be published yet.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// Architecture of the image.
    #[arg(long, default_value = "x86-64")]
    architecture: Architecture,

    #[command(flatten)]
    packs: PackArguments,
}

pub(crate) fn delta(arguments: &DeltaArguments) -> anyhow::Result<Exit> {
    ensure!(!arguments.packs.base.is_empty(), "say with --base from which earlier build the delta leads");
    let (folder, mut manifest) = BuildFolder::open(&arguments.folder, arguments.architecture)?;
    let (image, hashed) = (folder.image()?, Hashed::from(&manifest));
    for base in &arguments.packs.base {
        let Manifest { product, version, architecture, .. } = &manifest;
        let identity = Identity { product, version, architecture: *architecture };
        let release = Release { folder: &folder, identity, image: &image, hashed: &hashed };
        let pack = packs::delta(&release, base, &arguments.packs)?;
        manifest.packs.retain(|known| known.kind != pack.kind);
        manifest.packs.push(pack);
    }
    let written = folder.finish(&manifest)?;
    output::print(&summary(&manifest, &written))?;
    Ok(Exit::Success)
}

fn make_image(arguments: &BuildArguments, identity: &Identity<'_>, folder: &BuildFolder) -> anyhow::Result<()> {
    let image = folder.image_path();
    match (&arguments.root, &arguments.image) {
        (Some(root), _) => tree::make_erofs(root, &image, identity.uuid("erofs"), arguments.timestamp)?,
        (None, Some(from)) => {
            fs::copy(from, &image).with_context(|| format!("can't copy {}", from.display()))?;
        }
        (None, None) => bail!("give --root or --image"),
    }
    let file = File::options().write(true).open(&image).with_context(|| format!("can't write {}", image.display()))?;
    let size = file.size().context("can't measure the image")?;
    ensure!(size > 0, "the image is empty");
    // dm-verity checks whole blocks.
    file.set_len(size.next_multiple_of(verity::BLOCK_SIZE as u64)).context("can't round up the image's size")
}

/// os-release of the root tree.
fn os_release(arguments: &BuildArguments) -> anyhow::Result<Option<String>> {
    let Some(root) = &arguments.root else { return Ok(None) };
    for path in ["usr/lib/os-release", "etc/os-release"] {
        let path = root.join(path);
        // A symbolic link would lead out of the tree, to the build host's own file.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            let bytes = read_bounded(&path, bascule_image::uki::MAX_OS_RELEASE as u64)?;
            let text = String::from_utf8(bytes).with_context(|| format!("{} is no text", path.display()))?;
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Where there is no tree to take it from: boot menus show name and version from it.
fn minimal_os_release(subject: &Subject<'_>) -> String {
    let (product, version) = (subject.product, subject.version);
    format!(
        "ID={product}\nNAME=\"{product}\"\nVERSION_ID={version}\nPRETTY_NAME=\"{product} {version}\"\nIMAGE_ID={product}\n\
         IMAGE_VERSION={version}\n"
    )
}

fn package_list(
    arguments: &BuildArguments,
    identity: &Identity<'_>,
    folder: &BuildFolder,
) -> anyhow::Result<Option<(PackageList, Option<Kubernetes>)>> {
    let (format, bytes) = match (&arguments.packages, &arguments.root) {
        (Some(path), _) => {
            let bytes = read_bounded(path, manifest::MAX_PACKAGE_LIST_SIZE)?;
            let list: serde_json::Value =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))?;
            let format = match (list.get("bomFormat"), list.get("spdxVersion")) {
                (Some(_), _) => PackageListFormat::CycloneDx,
                (_, Some(_)) => PackageListFormat::Spdx,
                _ => bail!("{} is neither CycloneDX nor SPDX in JSON", path.display()),
            };
            (format, bytes)
        }
        (None, Some(root)) => match packages::of_tree(root, identity)? {
            Some(bytes) => (PackageListFormat::CycloneDx, bytes),
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let name = match format {
        PackageListFormat::CycloneDx => "packages.cdx.json",
        PackageListFormat::Spdx => "packages.spdx.json",
    };
    let kubernetes = packages::kubernetes(&bytes)?;
    Ok(Some((PackageList { format, file: folder.write(&identity.path(name), &bytes)? }, kubernetes)))
}

fn summary(manifest: &Manifest, written: &Path) -> String {
    let mut rows = vec![["PACK", "TO MOVE", "OF IMAGE"].map(str::to_owned).to_vec()];
    for pack in &manifest.packs {
        let name = match &pack.kind {
            PackKind::Full => "full".to_owned(),
            PackKind::Delta { base } => format!("from {base}"),
        };
        let share = 100.0 * pack.transfer_bytes as f64 / manifest.image.size.max(1) as f64;
        rows.push(vec![name, output::bytes(pack.transfer_bytes), format!("{share:.1} %")]);
    }
    format!(
        "{} {} for {}: image {}, root hash {}\n{}manifest: {}\n",
        manifest.product,
        manifest.version,
        manifest.architecture,
        output::bytes(manifest.image.size),
        manifest.verity.root_hash,
        output::columns(&rows),
        written.display()
    )
}
