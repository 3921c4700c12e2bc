//! Installs a host: the first release in slot A, systemd-boot on the ESP, and a state partition with what the node is to
//! know about itself. From then on only the agent writes there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::layout::{self, Installed, STATE, Sizes, Table};
use bascule_sim::tiny::TinyRelease;
use uuid::Uuid;

use crate::release::Release;

/// Where UEFI looks on a disk that no boot variable names (UEFI specification, 3.5.1.1).
const REMOVABLE_MEDIA_FOLDER: &str = "EFI/BOOT";
/// Room for later releases to grow, beside the size of the first.
const GROWTH: u64 = 24 << 20;
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

/// How the boot partitions of a host differ from the usual ones.
#[derive(Debug, Clone, Default)]
pub struct Boot {
    /// The entries lie on an extended boot loader partition.
    pub xbootldr: bool,
    /// Files put onto the ESP, by path; they replace what is there.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Writes the disk of a new host to the sparse file `disk`, for a drive with sectors of `sector` bytes.
///
/// # Errors
/// When the disk can't be written.
pub fn install(release: &Release, state: &[StateFile], boot: &Boot, sector: u64, disk: &Path) -> anyhow::Result<()> {
    let uki = read(&release.uki)?;
    let image = fs::metadata(&release.data).with_context(|| format!("looking at {}", release.data.display()))?.len();
    let mut sizes = Sizes::for_image(image + GROWTH, uki.len() as u64);
    sizes.state = STATE_SIZE;
    sizes.sector = sector;
    if boot.xbootldr {
        sizes.xbootldr = sizes.esp;
    }
    let medium = Disk::create_file(disk, sizes.disk()).with_context(|| format!("making {}", disk.display()))?;
    let mut first = Installed {
        version: &release.version,
        root_hash: release.root_hash,
        data: &mut open(&release.data)?,
        verity: &mut open(&release.hashes)?,
        uki: &uki,
        entry: &release.entry(),
    };
    layout::provision(&medium, sizes, BootLoader::SystemdBoot, Uuid::new_v4(), &mut first)
        .with_context(|| format!("installing {} on {}", release.version, disk.display()))?;
    let table = Table::read(&medium).context("reading back the partition table")?;
    let esp = table.esp().context("reading back the ESP")?;
    esp.create_directory(REMOVABLE_MEDIA_FOLDER).context("making the boot loader's folder")?;
    esp.write(&format!("{REMOVABLE_MEDIA_FOLDER}/BOOTX64.EFI"), &read(&release.boot_loader)?)
        .context("writing the boot loader")?;
    for (path, content) in &boot.files {
        // One level after the other, as for each folder.
        for (end, _) in path.match_indices('/') {
            let folder = path.get(..end).unwrap_or_default();
            esp.create_directory(folder).with_context(|| format!("making {folder}"))?;
        }
        esp.write(path, content).with_context(|| format!("writing {path}"))?;
    }
    esp.sync().context("writing the boot loader")?;
    let part = table.part(STATE).context("finding the state partition")?;
    make_state(state, disk, part.offset(), part.length())
}

/// Writes the disk of another host of the same product to the sparse file `disk`: partitions of the same types with the same
/// labels, an ESP with a boot loader's folders, and a release of its own that is a few kilobytes long.
///
/// # Errors
/// When the disk can't be written.
pub fn foreign(product: &str, version: &str, disk: &Path) -> anyhow::Result<()> {
    let other = TinyRelease::new(product, version, 40_960, &[])?;
    let sizes = Sizes::for_image(1 << 20, 1 << 20);
    let medium = Disk::create_file(disk, sizes.disk()).with_context(|| format!("making {}", disk.display()))?;
    let mut first = Installed {
        version: &other.version,
        root_hash: other.root_hash,
        data: &mut other.data.as_slice(),
        verity: &mut other.verity.as_slice(),
        uki: &other.uki,
        entry: &format!("{product}_{version}.efi"),
    };
    layout::provision(&medium, sizes, BootLoader::SystemdBoot, Uuid::new_v4(), &mut first)
        .with_context(|| format!("installing {version} on {}", disk.display()))
}

/// Makes the file system of the state partition in place.
fn make_state(files: &[StateFile], disk: &Path, offset: u64, length: u64) -> anyhow::Result<()> {
    let tree = tempfile::tempdir().context("making a folder for the state")?;
    for file in files {
        let path = tree.path().join(&file.path);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&path, &file.content).with_context(|| format!("writing {}", path.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(file.mode);
        fs::set_permissions(&path, mode).with_context(|| format!("writing {}", path.display()))?;
    }
    let output = Command::new("mke2fs")
        // Blocks as large as the largest sectors: a file system with smaller ones can't be mounted.
        .args(["-q", "-t", "ext4", "-b", "4096", "-L", "state", "-m", "0", "-E"])
        .arg(format!("offset={offset},lazy_itable_init=1,nodiscard,root_owner=0:0"))
        .arg("-d")
        .arg(tree.path())
        .arg(disk)
        .arg(format!("{}k", length / 1024))
        .output()
        .context("starting mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
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
