//! `bascule disk`: from a built release to the disk that a host first runs from.

mod content;
mod format;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_disk::{BootFiles, GROWING, Installed, Needs, Plan, SectorSize, Wishes, entry_file, identity_of, make};
use bascule_names::Architecture;
use clap::Args;
use uuid::Uuid;

use crate::exit::Exit;
use crate::output;
use crate::release::blocking;
use crate::release::build::check::CheckArguments;
use crate::release::build::size;
use crate::release::secure_boot::SecureBootArguments;
use content::Release;
use format::Format;

/// Name of systemd-repart's definition in a root tree.
const DEFINITION: &str = "usr/lib/repart.d/60-state.conf";

/// Make the disk that a host first runs from: a bootable image with a built release in slot A.
///
/// GPT with an ESP (systemd-boot and the first boot entry), slot A with the release, slot B empty, and a state partition that grows to
/// the end of the real disk. The same build gives the same bytes. Needs mke2fs and debugfs (e2fsprogs), and qemu-img for qcow2.
#[derive(Debug, Args)]
pub(crate) struct Disk {
    /// Build folder of the release, as `bascule release build` or `fetch` left it.
    #[arg(value_name = "BUILD", required_unless_present = "definitions")]
    build: Option<PathBuf>,

    /// The disk image: a new file.
    #[arg(value_name = "OUT", required_unless_present = "definitions")]
    out: Option<PathBuf>,

    /// Architecture of the release. Default: the one that the build is for.
    #[arg(long)]
    architecture: Option<Architecture>,

    /// What kind of file. Default: by the name's ending, else raw.
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Write systemd-repart's definition, with which the state partition grows to the end of the real disk, into this root tree
    /// before a release is built of it; make no disk.
    #[arg(long, value_name = "TREE", exclusive = true)]
    definitions: Option<PathBuf>,

    /// Size of the whole disk, e.g. `20GiB`: what the other parts leave is the state partition's.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    size: Option<u64>,

    /// Size of the boot partition. Default: room for two boot images and a third that is being written, at least 512MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    esp_size: Option<u64>,

    /// Put the boot entries onto an extended boot loader partition of this size. Default: there is none.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    xbootldr_size: Option<u64>,

    /// Size of each slot's data partition. Default: twice the image.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    slot_size: Option<u64>,

    /// Size of the state partition in the image. Default: 1GiB, or what --size leaves.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    state_size: Option<u64>,

    /// systemd-boot's program. Default: /usr/lib/systemd/boot/efi/systemd-boot(x64|aa64).efi.
    #[arg(long, value_name = "FILE", help_heading = "Content")]
    boot_loader: Option<PathBuf>,

    /// Folder with more files for the ESP, e.g. `loader/keys/auto/*.auth` or another `loader/loader.conf`.
    #[arg(long, value_name = "FOLDER", help_heading = "Content")]
    esp: Option<PathBuf>,

    /// Folder with the first files of the state partition, which is mounted at /var. Everything belongs to root there.
    #[arg(long, value_name = "FOLDER", help_heading = "Content")]
    state: Option<PathBuf>,

    /// The disk's UUID, from which the other partitions' follow. Default: follows from the release.
    #[arg(long, value_name = "UUID", help_heading = "Content")]
    identity: Option<Uuid>,

    /// Bytes of the drive's logical sectors: 512, or 4096 for drives that are "4K native" or formatted so, which boot from no other
    /// disk.
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = sector_size, help_heading = "Sizes")]
    sector_size: SectorSize,

    #[command(flatten)]
    secure_boot: SecureBootArguments,

    #[command(flatten)]
    checks: CheckArguments,
}

impl Disk {
    pub(crate) async fn run(self: Box<Self>) -> anyhow::Result<Exit> {
        blocking(move || self.work()).await
    }

    fn work(&self) -> anyhow::Result<Exit> {
        if let Some(tree) = &self.definitions {
            return definitions(tree);
        }
        let (Some(build), Some(out)) = (&self.build, &self.out) else { bail!("say which build, and where to") };
        ensure!(
            fs::symlink_metadata(out).is_err(),
            "{} is there already; a disk is made in a new file, which is then copied to where it runs",
            out.display()
        );
        let format = Format::of(self.format, out);
        format.check()?;
        let release = Release::open(build, self.architecture)?;
        let loader = content::boot_loader(self.boot_loader.as_deref(), release.architecture())?;
        let loader = match self.secure_boot.read()? {
            Some(secure_boot) => secure_boot.sign(loader).context("can't sign the boot loader for Secure Boot")?,
            None => loader,
        };
        let boot_image = release.boot_image()?;
        self.checks.judge(&content::both_signed(&loader, &boot_image)?)?;
        let mut esp = BootFiles::of_esp(Some(bascule_disk::BootLoader::parse(&loader, release.architecture())?));
        if let Some(folder) = &self.esp {
            content::add_folder(&mut esp, folder)?;
        }
        let manifest = release.manifest();
        let needs = Needs { image: manifest.image.size, boot_image: boot_image.len() as u64, files: esp.size() };
        let wishes = Wishes {
            disk: self.size,
            esp: self.esp_size,
            xbootldr: self.xbootldr_size,
            slot: self.slot_size,
            state: self.state_size,
            sector: self.sector_size,
        };
        let sizes = wishes.sizes(needs)?;
        let mut xbootldr = BootFiles::default();
        let entry = entry_file(manifest.product.as_str(), manifest.version.as_str());
        let home = if sizes.xbootldr > 0 { &mut xbootldr } else { &mut esp };
        home.add_entry(&entry, boot_image)?;
        let (root_hash, tree) = release.verified()?;
        let identity = self
            .identity
            .unwrap_or_else(|| identity_of(manifest.product.as_str(), manifest.version.as_str(), root_hash));
        let plan = Plan { sizes, identity, esp: &esp, xbootldr: &xbootldr };
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Beside its place: only a whole disk gets the name.
        let work = tempfile::Builder::new().prefix(".disk-").tempdir_in(folder);
        let work = work.with_context(|| format!("can't write to {}", folder.display()))?;
        let raw = work.path().join("raw");
        let mut first = Installed {
            version: manifest.version.as_str(),
            architecture: manifest.architecture,
            root_hash,
            data: &mut release.image()?,
            verity: &mut tree.as_slice(),
        };
        let parts = make(&raw, plan, &mut first, self.state.as_deref())
            .with_context(|| format!("can't make the disk {}", out.display()))?;
        let done = format.convert(&raw, work.path())?;
        // Not over a file that came meanwhile.
        let done = tempfile::TempPath::try_from_path(done).context("can't find what was made")?;
        done.persist_noclobber(out).with_context(|| format!("can't write {}", out.display()))?;
        File::open(folder).and_then(|folder| folder.sync_all()).context("can't flush the folder")?;
        output::print(&summary(&release, &parts, &entry, sizes.disk()))?;
        Ok(Exit::Success)
    }
}

fn sector_size(text: &str) -> Result<SectorSize, String> {
    let known = [SectorSize::B512, SectorSize::B4096].into_iter().find(|known| known.bytes().to_string() == text);
    known.ok_or_else(|| "drives have sectors of 512 or of 4096 bytes (`lsblk -o NAME,LOG-SEC` says which)".to_owned())
}

/// Writes systemd-repart's definition into a root tree.
fn definitions(tree: &Path) -> anyhow::Result<Exit> {
    ensure!(tree.is_dir(), "{} is no folder; --definitions takes the root tree of the OS", tree.display());
    let path = tree.join(DEFINITION);
    let folder = path.parent().unwrap_or(tree);
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    fs::write(&path, GROWING).with_context(|| format!("can't write {}", path.display()))?;
    output::print(&format!("written: {}\n", path.display()))?;
    Ok(Exit::Success)
}

fn summary(release: &Release, parts: &[bascule_gpt::Partition], entry: &str, length: u64) -> String {
    let mut rows = vec![["PARTITION", "SIZE", "LABEL", "HOLDS"].map(str::to_owned).to_vec()];
    let (a, b) = (bascule_disk::SlotNumbers::A, bascule_disk::SlotNumbers::B);
    for part in parts {
        let entries = parts.iter().any(|other| other.number == bascule_disk::XBOOTLDR);
        let holds = match part.number {
            bascule_disk::ESP if entries => "boot loader".to_owned(),
            bascule_disk::ESP => format!("boot loader, {entry}"),
            bascule_disk::XBOOTLDR => entry.to_owned(),
            number if number == a.data => "slot A: the release".to_owned(),
            number if number == a.verity => "slot A: its hash tree".to_owned(),
            number if number == b.data || number == b.verity => "slot B: empty".to_owned(),
            _ => "state; grows with the disk".to_owned(),
        };
        let size = format!("{} MiB", part.length >> 20);
        rows.push(vec![part.number.to_string(), size, part.label.clone(), holds]);
    }
    let manifest = release.manifest();
    format!(
        "{} {} for {}: a disk of {} MiB\n{}",
        manifest.product,
        manifest.version,
        manifest.architecture,
        length >> 20,
        output::columns(&rows)
    )
}
