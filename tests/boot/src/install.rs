//! Installs a host as `bascule disk` does: the first release in slot A, systemd-boot on the ESP, and a state partition with what
//! the node is to know about itself. From then on only the agent writes there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use bascule_disk::{BootFiles, BootLoader, Installed, Needs, Plan, SectorSize, Wishes, least_for_entries};
use bascule_names::Architecture;
use bascule_sim::tiny::TinyRelease;
use uuid::Uuid;

use crate::release::Release;

const ARCHITECTURE: Architecture = Architecture::X86_64;
/// Room for later releases to grow, beside the size of the first: less than a vendor takes, since what is not on a disk need
/// not be read back.
const GROWTH: u64 = 24 << 20;
/// Smallest boot partition.
const LEAST_ESP: u64 = 64 << 20;
/// Container images that are pulled among it, with the room below which a kubelet throws pods out. The disk is sparse.
const STATE_SIZE: u64 = 512 << 20;

/// A file on the state partition.
#[derive(Debug, Clone)]
pub struct StateFile {
    /// Path below `/var`.
    pub path: String,
    /// What is in it.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// What the disk of a machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Drive {
    /// virtio, with sectors of 512 bytes.
    #[default]
    Virtio,
    /// NVMe, with sectors of 4096 bytes.
    Nvme,
}

impl Drive {
    const fn sector(self) -> SectorSize {
        match self {
            Self::Virtio => SectorSize::B512,
            Self::Nvme => SectorSize::B4096,
        }
    }
}

/// How the disk of a host differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Boot {
    /// What the disk is.
    pub drive: Drive,
    /// The entries lie on an extended boot loader partition.
    pub xbootldr: bool,
    /// Files put onto the ESP, by path; they replace what is there.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Writes the disk of a new host to the sparse file `disk`.
///
/// # Errors
/// When the disk can't be written.
pub fn install(release: &Release, state: &[StateFile], boot: &Boot, disk: &Path) -> anyhow::Result<()> {
    let uki = read(&release.uki)?;
    let image = fs::metadata(&release.data).with_context(|| format!("looking at {}", release.data.display()))?.len();
    let loader = read(&release.boot_loader)?;
    let loader = BootLoader::parse(&loader, ARCHITECTURE).context("looking at the boot loader")?;
    let (mut esp, mut xbootldr) = (BootFiles::of_esp(Some(loader)), BootFiles::default());
    for (path, content) in &boot.files {
        esp.add(path, content.clone()).with_context(|| format!("putting {path} onto the ESP"))?;
    }
    let needs = Needs { image, boot_image: uki.len() as u64, files: esp.size() };
    let entries = (least_for_entries(needs.boot_image) + needs.files).max(LEAST_ESP);
    let wishes = Wishes {
        disk: None,
        esp: Some(entries),
        xbootldr: boot.xbootldr.then_some(entries),
        slot: Some(image + GROWTH),
        state: Some(STATE_SIZE),
        sector: boot.drive.sector(),
    };
    let home = if boot.xbootldr { &mut xbootldr } else { &mut esp };
    home.add_entry(&release.entry(), uki).context("naming the boot entry")?;
    let plan = Plan { sizes: wishes.sizes(needs)?, identity: Uuid::new_v4(), esp: &esp, xbootldr: &xbootldr };
    let mut first = Installed {
        version: &release.version,
        architecture: ARCHITECTURE,
        root_hash: release.root_hash,
        data: &mut open(&release.data)?,
        verity: &mut open(&release.hashes)?,
    };
    let tree = state_tree(state)?;
    bascule_disk::make(disk, plan, &mut first, Some(tree.path()))
        .with_context(|| format!("installing {} on {}", release.version, disk.display()))?;
    Ok(())
}

/// Writes the disk of another host of the same product to the sparse file `disk`: partitions of the same types with the same
/// labels, an ESP with a boot loader's folders, and a release of its own that is a few kilobytes long.
///
/// # Errors
/// When the disk can't be written.
pub fn foreign(product: &str, version: &str, disk: &Path) -> anyhow::Result<()> {
    let other = TinyRelease::new(product, version, 40_960, &[])?;
    let mut esp = BootFiles::of_esp(None);
    esp.add_entry(&bascule_disk::entry_file(product, version), other.uki).context("naming the boot entry")?;
    let needs = Needs { image: other.data.len() as u64, boot_image: 1 << 20, files: 0 };
    let wishes = Wishes { esp: Some(LEAST_ESP), state: Some(LEAST_ESP), ..Wishes::default() };
    let xbootldr = BootFiles::default();
    let plan = Plan { sizes: wishes.sizes(needs)?, identity: Uuid::new_v4(), esp: &esp, xbootldr: &xbootldr };
    let mut first = Installed {
        version: &other.version,
        architecture: ARCHITECTURE,
        root_hash: other.root_hash,
        data: &mut other.data.as_slice(),
        verity: &mut other.verity.as_slice(),
    };
    bascule_disk::make(disk, plan, &mut first, None)
        .with_context(|| format!("installing {version} on {}", disk.display()))?;
    Ok(())
}

/// A folder with what the state partition is to hold.
fn state_tree(files: &[StateFile]) -> anyhow::Result<tempfile::TempDir> {
    let tree = tempfile::tempdir().context("making a folder for the state")?;
    for file in files {
        let path = tree.path().join(&file.path);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&path, &file.content).with_context(|| format!("writing {}", path.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(file.mode);
        fs::set_permissions(&path, mode).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(tree)
}

/// Copies an installed disk, keeping its holes.
///
/// # Errors
/// When it can't be copied.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).output();
    let output = output.context("starting cp")?;
    if !output.status.success() {
        bail!("copying a disk failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(to.to_owned())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}
