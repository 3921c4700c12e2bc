//! `bascule install`: a machine that runs a live system (here the reference OS) has an empty second disk, and gets a release onto it. Then
//! a machine that has that disk and no other starts from it and is a node. Catches what the command's own tests can't see: firmware that
//! does not start what it wrote, an OS that does not find its slots or its state there, settings that the agent does not read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_api::NodeUpdateStatus;
use bascule_sim::layout::Slot;

use super::{BOOT, STAGE, Stage, runs};
use crate::cluster::SETTINGS;
use crate::install::StateFile;
use crate::lab::{SecondDisk, Setup};
use crate::offline;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NODE: &str = "bare-metal";
/// The machine's disk: an ESP of 512 MiB, two slots of twice the image, and the state on the rest. The file is sparse.
const DISK_SIZE: u64 = 3 << 30;
/// What a file system takes beside its files.
const SPARE: u64 = 64 << 20;
/// Where the live system has what it installs.
const TOOLS: &str = "/run/tools";

/// Installs `release` from a machine that runs `live`, and boots it.
///
/// # Errors
/// When it is not installed, or does not boot as it was installed.
pub async fn run(stage: Stage<'_>, live: &Release, release: &Release) -> anyhow::Result<()> {
    let tools = tools(stage, release).await.context("making the disk with the release")?;
    let second_disk = SecondDisk::Empty(DISK_SIZE);
    let setup = Setup { second_disk, read_only_disk: Some(tools), ..Setup::default() };
    let mut machine = stage.lab.host_of("live", live, &[], &[], &setup)?;
    let shell = machine.now();
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT).await?;
    // As a script does it: without a terminal, so that nothing is asked.
    let install = format!(
        "mkdir -p {TOOLS} /var/tmp && mount -o ro /dev/vdc {TOOLS} && export TMPDIR=/var/tmp && \
         {{ {TOOLS}/bascule install {TOOLS}/build --disk /dev/vdb --boot-loader {TOOLS}/systemd-bootx64.efi \
         --state {TOOLS}/state --settings {TOOLS}/machine.toml --yes < /dev/null > /run/install.log 2>&1 || \
         {{ cat /run/install.log; exit 1; }}; }}; cat /run/install.log"
    );
    let said = machine.run(&install, STAGE).await?;
    crate::say(&format!("{NODE}: bascule install:\n{}", said.trim()));
    machine.shut_down(BOOT).await?;
    let disk = stage.lab.folder().join(format!("{NODE}.img"));
    let written = machine.second_disk().context("a machine without a second disk")?;
    fs::rename(written, &disk).with_context(|| format!("moving {}", written.display()))?;
    machine.discard();

    let mut machine = stage.lab.host_on(NODE, disk, stage.cluster.ports())?;
    stage.cluster.keep_patched(NODE, &stage.vendor.url_for(NODE)?, NODE).await?;
    machine.power_on()?;
    let settled = |status: &NodeUpdateStatus| runs(status, release) && status.trial.is_none();
    stage.until(&machine, "the installed release runs", BOOT, settled).await?;
    let look = format!("cat /proc/cmdline; stat -c '%a %U' /var/{SETTINGS}/agent.toml; ls /sys/block");
    let said = machine.run(&look, BOOT).await?;
    ensure!(said.contains(&format!("roothash={}", release.root_hash)), "another root runs:\n{said}");
    ensure!(said.lines().any(|line| line.trim() == "600 root"), "its settings are not for root alone:\n{said}");
    ensure!(!said.contains("vdb"), "it has another disk:\n{said}");
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, release)])?;
    machine.discard();
    Ok(())
}

/// A disk with the command line tool, what `bascule release build` left, the boot loader, and what the new machine is to know.
async fn tools(stage: Stage<'_>, release: &Release) -> anyhow::Result<PathBuf> {
    let tree = tempfile::tempdir().context("making a folder")?;
    let at = |name: &str| tree.path().join(name);
    copy(stage.cluster.cli(), &at("bascule"))?;
    copy(&release.boot_loader, &at("systemd-bootx64.efi"))?;
    stage.vendor.build_folder(release, &at("build")).await?;
    let settings = format!("{SETTINGS}/agent.toml");
    for StateFile { path, content, mode } in stage.cluster.state_of(NODE)? {
        let path = if path == settings { at("machine.toml") } else { at("state").join(path) };
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&path, mode).with_context(|| format!("writing {}", path.display()))?;
    }
    let length = size(tree.path())? + SPARE;
    let medium = stage.lab.folder().join(format!("{NODE}-tools.img"));
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d"]);
    command.arg(tree.path()).arg(&medium).arg(format!("{}k", length / 1024));
    let output = command.output().context("starting mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(medium)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display())).map(drop)
}

/// Bytes of all files below a folder, each in whole blocks.
fn size(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let found = entry.metadata().with_context(|| format!("looking at {}", entry.path().display()))?;
        sum += if found.is_dir() { size(&entry.path())? } else { found.len().next_multiple_of(4096) };
    }
    Ok(sum)
}
