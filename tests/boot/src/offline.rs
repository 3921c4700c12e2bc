//! The disk of a machine that is switched off: changed behind everybody's back, and judged by tools that know nothing of
//! Bascule.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_gpt::{Change, FileMedium};
use bascule_image::Sha256;
use bascule_sim::disk::Disk;
use bascule_sim::esp::Esp;
use bascule_sim::layout::{ESP, Slot, Table, XBOOTLDR, XBOOTLDR_TYPE, uuid_of_half};

use crate::release::Release;

/// Where boot entries lie on the ESP.
pub const ENTRIES: &str = "EFI/Linux";

/// Where a slot's data begins on the disk, in bytes.
///
/// # Errors
/// When the table can't be read.
pub fn slot_offset(disk: &Path, slot: Slot) -> anyhow::Result<u64> {
    Ok(table(disk)?.part(slot.data())?.offset())
}

/// The names in `EFI/Linux`, sorted.
///
/// # Errors
/// When the ESP can't be read.
pub fn entries(disk: &Path) -> anyhow::Result<Vec<String>> {
    files(disk, ENTRIES)
}

/// The names of the files in a folder of the ESP, sorted.
///
/// # Errors
/// When the ESP can't be read.
pub fn files(disk: &Path, folder: &str) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = table(disk)?.esp()?.list(folder)?.into_iter().map(|file| file.name).collect();
    names.sort();
    Ok(names)
}

/// What is in a file on the ESP, of at most 4 MiB.
///
/// # Errors
/// When the ESP can't be read, or the file is not there.
pub fn read_file(disk: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    table(disk)?.esp()?.read(path, 4 << 20).with_context(|| format!("reading {path}"))
}

/// Writes a file to the ESP.
///
/// # Errors
/// When the ESP can't be written.
pub fn write_entry(disk: &Path, name: &str, release: &Release) -> anyhow::Result<()> {
    let content = fs::read(&release.uki).with_context(|| format!("reading {}", release.uki.display()))?;
    let esp = table(disk)?.esp()?;
    esp.write(&format!("{ENTRIES}/{name}"), &content)?;
    Ok(esp.sync()?)
}

/// Writes files to a boot partition.
///
/// # Errors
/// When it can't be written.
pub fn write_files(disk: &Path, partition: u32, files: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    let file_system = Esp::new(table(disk)?.part(partition)?);
    for (path, content) in files {
        for (end, _) in path.match_indices('/') {
            file_system
                .create_directory(path.get(..end).unwrap_or_default())
                .with_context(|| format!("writing {path}"))?;
        }
        file_system.write(path, content).with_context(|| format!("writing {path}"))?;
    }
    Ok(file_system.sync()?)
}

/// Writes a whole release into a slot, as the agent would leave it.
///
/// # Errors
/// When the disk can't be written.
pub fn write_slot(disk: &Path, slot: Slot, release: &Release) -> anyhow::Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (data, hashes) = (read(&release.data)?, read(&release.hashes)?);
    let bytes = StagedBytes { version: &release.version, root_hash: release.root_hash, data: &data, hashes: &hashes };
    write_bytes(disk, slot, bytes)
}

/// What a slot is to hold.
#[derive(Debug, Clone, Copy)]
pub struct StagedBytes<'a> {
    /// The release's version.
    pub version: &'a str,
    /// Its root hash.
    pub root_hash: Sha256,
    /// Its image.
    pub data: &'a [u8],
    /// Superblock and tree.
    pub hashes: &'a [u8],
}

/// Writes bytes into a slot, with the table's words about them.
///
/// # Errors
/// When the disk can't be written.
pub fn write_bytes(disk: &Path, slot: Slot, staged: StagedBytes<'_>) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(disk).context("opening the disk")?;
    let image = file.try_clone().context("opening the disk again")?;
    let medium = FileMedium { file: &image, sector: 512 };
    let mut table = bascule_gpt::Table::read(&medium).context("reading the partition table")?;
    let halves = [
        (slot.data(), staged.root_hash.first_half(), staged.data),
        (slot.verity(), staged.root_hash.second_half(), staged.hashes),
    ];
    for (number, half, content) in halves {
        let label = Some(staged.version.to_owned());
        table.change(number, &Change { label, uuid: Some(uuid_of_half(half)), ..Change::default() })?;
        let start = table.partition(number).context("no such partition")?.start;
        file.seek(SeekFrom::Start(start))?;
        file.write_all(content)?;
    }
    table.write(&medium).context("writing the partition table")
}

/// What independent tools say about the disk: `sgdisk` about the table, `fsck.vfat` about the ESP, and `veritysetup`
/// about the slots that hold a release.
///
/// # Errors
/// With the tool's words when one of them objects.
pub fn judge(disk: &Path, held: &[(Slot, &Release)]) -> anyhow::Result<()> {
    let table = table(disk)?;
    let said = sgdisk(disk, table.sector())?;
    ensure!(said.contains("No problems found"), "sgdisk -v: {said}");
    let folder = tempfile::tempdir().context("making a folder")?;
    let extract = |number: u32, name: &str| -> anyhow::Result<_> {
        let part = table.part(number)?;
        let path = folder.path().join(name);
        let mut file = fs::File::open(disk)?;
        file.seek(SeekFrom::Start(part.offset()))?;
        std::io::copy(&mut file.take(part.length()), &mut fs::File::create(&path)?)?;
        Ok(path)
    };
    tool(Command::new("fsck.vfat").args(["-n", "-v"]).arg(extract(ESP, "esp")?))?;
    if table.of_type(XBOOTLDR_TYPE) == Some(XBOOTLDR) {
        tool(Command::new("fsck.vfat").args(["-n", "-v"]).arg(extract(XBOOTLDR, "xbootldr")?))?;
    }
    for (slot, release) in held {
        let (data, hashes) = (extract(slot.data(), "data")?, extract(slot.verity(), "verity")?);
        tool(Command::new("veritysetup").arg("verify").arg(data).arg(hashes).arg(release.root_hash.to_string()))
            .with_context(|| format!("slot {slot} should hold {}", release.version))?;
    }
    Ok(())
}

/// What sgdisk says of the table. It takes a file's sectors for 512 bytes long; others need a loop device that has them.
fn sgdisk(disk: &Path, sector: u64) -> anyhow::Result<String> {
    let judge = |device: &Path| tool(Command::new("sgdisk").arg("-v").arg(device));
    if sector == 512 {
        return judge(disk);
    }
    let sector = sector.to_string();
    let made =
        tool(Command::new("losetup").args(["--find", "--show", "--read-only", "--sector-size", &sector]).arg(disk))?;
    let device = Path::new(made.trim());
    let said = judge(device);
    tool(Command::new("losetup").arg("--detach").arg(device))?;
    said
}

fn table(disk: &Path) -> anyhow::Result<Table> {
    let medium = Disk::open_file(disk).with_context(|| format!("opening {}", disk.display()))?;
    Table::read(&medium).context("reading the partition table")
}

fn tool(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{name}: {}", said.trim());
    }
    Ok(said)
}
