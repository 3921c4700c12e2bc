//! Secure Boot: a machine whose firmware starts only what the vendor signed. The vendor's keys are enrolled by systemd-boot in the
//! first boot, as on new hardware; from then on a release that the firmware would refuse must be refused by the agent, before
//! anybody is disturbed, and a signed one must pass. Its disk is an NVMe drive with sectors of 4096 bytes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_api::{NodeError, NodeUpdateStatus, conditions};
use bascule_image::boot_loader::in_fallback;
use bascule_names::Architecture;
use bascule_sim::layout::Slot;

use super::{BOOT, STAGE, Stage, TRIAL, committed};
use crate::install::Boot;
use crate::lab::Setup;
use crate::machine::{Drive, Machine};
use crate::offline;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NODE: &str = "secure-boot";
/// Owner of the enrolled keys, which the firmware shows to people.
const OWNER: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
/// Whether the firmware checks (UEFI specification, 3.3).
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Bytes of a sector of its disk (Linux, Documentation/ABI/stable/sysfs-block).
const LOGICAL_SECTOR: &str = "/sys/class/block/nvme0n1/queue/logical_block_size";

/// The releases of this scenario. Versions ascend in this order.
#[derive(Debug, Clone, Copy)]
pub struct Releases<'a> {
    /// Installed.
    pub old: &'a Release,
    /// Never signed.
    pub unsigned: &'a Release,
    /// Signed, then revoked.
    pub revoked: &'a Release,
    /// Signed.
    pub new: &'a Release,
}

/// Boots the node with keys enrolled, offers it what it must refuse, then what it must take.
///
/// # Errors
/// When something else is refused or taken, or the node is disturbed for what it refuses.
pub async fn run(stage: Stage<'_>, releases: Releases<'_>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("making a folder for keys")?;
    let folder = folder.path();
    make_key(folder)?;
    let old = signed(releases.old, folder)?;
    let revoked = signed(releases.revoked, folder)?;
    let new = signed(releases.new, folder)?;
    let mut files = enrolment(folder, &revoked.uki)?;
    files.push(("loader/loader.conf".to_owned(), b"timeout 0\nsecure-boot-enroll force\n".to_vec()));
    let boot = Boot { files, ..Boot::default() };
    let setup = Setup { boot, secure_boot: true, drive: Drive::Nvme, ..Setup::default() };
    let (mut machine, _) = stage.node_of(NODE, &old, NODE, &setup).await?;
    let state = machine.run(&format!("od -An -tu1 {SECURE_BOOT}"), BOOT).await?;
    ensure!(state.trim().ends_with('1'), "Secure Boot is off, its variable is {state}");
    let sector = machine.run(&format!("cat {LOGICAL_SECTOR}"), BOOT).await?;
    ensure!(sector.trim() == Drive::Nvme.sector().to_string(), "the disk has sectors of {sector} bytes");

    let from = machine.console().now();
    for (release, words) in [(releases.unsigned, "it is not signed"), (&revoked, "dbx revokes its hash")] {
        stage.vendor.publish(NODE, release, &[&old]).await?;
        let refused = |status: &NodeUpdateStatus| {
            let error = status.last_error.as_ref();
            error.is_some_and(|error| {
                error.category == NodeError::SecureBoot && error.message.contains(&release.version)
            })
        };
        let what = format!("{} is refused", release.version);
        let status = stage.until(&machine, &what, STAGE, refused).await?;
        let message = status.last_error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        crate::say(&format!("{NODE}: {message}"));
        ensure!(message.contains(words), "{} is refused for another reason: {message}", release.version);
        ensure!(status.staged.is_none(), "it is staged all the same: {status:?}");
        let closed = stage.cluster.kubectl(&["get", "node", NODE, "-o", "jsonpath={.spec.unschedulable}"]).await?;
        ensure!(closed.is_empty(), "the node was cordoned for {}", release.version);
    }
    let boots = machine.boots(from);
    ensure!(boots == 0, "the node was restarted {boots} times for releases that its firmware would refuse");

    stage.vendor.publish(NODE, &new, &[&old]).await?;
    stage.until(&machine, "the signed release is committed", STAGE + TRIAL, |status| committed(status, &new)).await?;
    refuses_boot_loader(stage, &mut machine, &old, &new).await.context("with a boot loader that nobody signed")?;
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, &old), (Slot::B, &new)])?;
    machine.discard();
    Ok(())
}

/// The release that was committed brings a boot loader that this firmware would not start: it is refused, what was there stays, and the
/// machine starts by it.
async fn refuses_boot_loader(
    stage: Stage<'_>,
    machine: &mut Machine,
    old: &Release,
    new: &Release,
) -> anyhow::Result<()> {
    ensure!(new.brings.is_some(), "{} brings no boot loader", new.version);
    let refused = |status: &NodeUpdateStatus| {
        let found = conditions::get(&status.conditions, conditions::BOOT_LOADER_CURRENT);
        found.is_some_and(|found| found.status == "False" && found.reason == NodeError::SecureBoot.as_str())
    };
    let status = stage.until_now(machine, "the boot loader is refused", STAGE, refused).await?;
    let said = conditions::get(&status.conditions, conditions::BOOT_LOADER_CURRENT);
    let message = said.map(|said| said.message.clone()).unwrap_or_default();
    crate::say(&format!("{NODE}: {message}"));
    ensure!(message.contains("it is not signed"), "it is refused for another reason: {message}");
    // Nothing waits for it: what the operator judges by does not know of it.
    let error = status.last_error.map(|error| error.message).unwrap_or_default();
    ensure!(!error.contains("systemd-boot"), "it is an error of the node: {error}");
    machine.shut_down(BOOT).await?;
    let (folder, name) = in_fallback(Architecture::X86_64);
    let found = offline::read_file(machine.disk().path(), &format!("{folder}/{name}"))?;
    let signed = std::fs::read(&old.boot_loader).with_context(|| format!("reading {}", old.boot_loader.display()))?;
    ensure!(found == signed, "{folder}/{name} is not what it was");
    let (shell, from) = (machine.now(), machine.console().now());
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT).await?;
    let boots = machine.boots(from);
    ensure!(boots == 1, "{boots} kernels were started before one came up");
    stage
        .until_now(machine, "the node goes on", STAGE, |status| committed(status, new) && refused(status))
        .await
        .map(drop)
}

/// One key for everything: it owns the platform, may change the databases, and signs images.
fn make_key(folder: &Path) -> anyhow::Result<()> {
    tool("openssl", folder, |command| {
        command.args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650"]);
        command.args(["-subj", "/O=Bascule boot tests/CN=Secure Boot", "-keyout", "key.pem", "-out", "cert.pem"]);
    })
}

/// A release whose boot image and boot loader are signed.
fn signed(release: &Release, folder: &Path) -> anyhow::Result<Release> {
    let sign = |from: &Path, name: &str| {
        let to = folder.join(format!("{}-{name}", release.version));
        tool("sbsign", folder, |command| {
            command.args(["--key", "key.pem", "--cert", "cert.pem", "--output"]).arg(&to).arg(from);
        })?;
        anyhow::Ok(to)
    };
    let (uki, boot_loader) = (sign(&release.uki, "release.efi")?, sign(&release.boot_loader, "boot.efi")?);
    Ok(Release { uki, boot_loader, ..release.clone() })
}

/// What systemd-boot enrols from (systemd-boot(7), "Secure Boot keys"): the certificate for everything, and the hash of the
/// revoked image in `dbx`.
fn enrolment(folder: &Path, revoked: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    tool("cert-to-efi-sig-list", folder, |command| {
        command.args(["-g", OWNER, "cert.pem", "cert.esl"]);
    })?;
    tool("hash-to-efi-sig-list", folder, |command| {
        command.arg(revoked).arg("dbx.esl");
    })?;
    let mut files = Vec::new();
    for (variable, list) in [("PK", "cert.esl"), ("KEK", "cert.esl"), ("db", "cert.esl"), ("dbx", "dbx.esl")] {
        let signed = format!("{variable}.auth");
        tool("sign-efi-sig-list", folder, |command| {
            command.args(["-g", OWNER, "-k", "key.pem", "-c", "cert.pem", variable, list, &signed]);
        })?;
        let bytes = std::fs::read(folder.join(&signed)).with_context(|| format!("reading {signed}"))?;
        files.push((format!("loader/keys/auto/{signed}"), bytes));
    }
    Ok(files)
}

fn tool(name: &str, folder: &Path, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
    let mut command = Command::new(name);
    arguments(command.current_dir(folder));
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
