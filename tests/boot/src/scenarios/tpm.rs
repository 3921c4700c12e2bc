//! Measured boot: a volume that the machine's TPM opens while what boots is a release that the vendor signed. It opens before and
//! after an update and after the way back, and not with another command line, wherever that comes from. Catches a release whose
//! signatures are for other values than a machine measures, and values in the manifest that no machine comes to.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bascule_image::uki::Uki;

use super::{BOOT, STAGE, Stage, TRIAL, committed};
use crate::lab::{SecondDisk, Setup};
use crate::machine::Machine;
use crate::offline;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NODE: &str = "tpm";
/// Room for the header of LUKS, which is 16 MiB, and a file system.
const VOLUME_SIZE: u64 = 96 << 20;
/// Written at the first start, and read after each other one.
const WORD: &str = "kept-by-the-tpm";
/// What of the release's command line is exchanged by something of the same length, and by what.
const OPTION: (&str, &str) = ("loglevel=6", "loglevel=5");
/// The phases that the reference OS enters, whose initrd enters none.
const PHASES: &str = "sysinit:ready";
/// What PCR 11 holds (Linux, Documentation/ABI/stable/sysfs-class-tpm).
const REGISTER: &str = "/sys/class/tpm/tpm0/pcr-sha256/11";

/// Boots the node, updates it, takes it back, and starts it in two ways that nobody signed.
///
/// # Errors
/// When the volume does not open where it should, or opens where it should not.
pub async fn run(stage: Stage<'_>, old: &Release, new: &Release) -> anyhow::Result<()> {
    let setup = Setup { second_disk: SecondDisk::Empty(VOLUME_SIZE), tpm: true, ..Setup::default() };
    let (mut machine, _) = stage.node_of(NODE, old, NODE, &setup).await?;
    machine.run(&format!("findmnt /var/lib/sealed && echo {WORD} > /var/lib/sealed/word && sync"), BOOT).await?;
    is_open(&machine, old).await.context("at the first start")?;

    stage.vendor.publish(NODE, new, &[old]).await?;
    stage.until(&machine, "the new release is committed", STAGE + TRIAL, |status| committed(status, new)).await?;
    is_open(&machine, new).await.context("after the update")?;
    stage.cluster.on_call(&["rollback", NODE, "--reason", "boot test", "--yes"]).await?;
    stage.until(&machine, "the old release runs for good", TRIAL * 2, |status| committed(status, old)).await?;
    is_open(&machine, old).await.context("after the way back")?;
    machine.shut_down(BOOT).await?;

    // Another boot image with the same root and the same signatures.
    let entries = offline::entries(machine.disk().path())?;
    ensure!(entries.contains(&old.entry()), "what runs has no entry of its own: {entries:?}");
    let changed = Release { uki: changed(old, stage.lab.folder())?, ..old.clone() };
    offline::write_entry(machine.disk().path(), &old.entry(), &changed)?;
    stays_closed(&mut machine, OPTION.1).await.context("with another boot image")?;
    offline::write_entry(machine.disk().path(), &old.entry(), old)?;

    // What is signed, with an option that whoever starts the machine adds.
    machine.add_kernel_options(Some("bascule.added=1"));
    stays_closed(&mut machine, "bascule.added=1").await.context("with an option more")?;
    machine.add_kernel_options(None);

    // It was for that, and for nothing else, that it stayed closed.
    let shell = machine.now();
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT).await?;
    is_open(&machine, old).await.context("as it was before")?;
    machine.shut_down(BOOT).await?;
    machine.discard();
    Ok(())
}

/// The volume is open and holds what was written, and the machine was measured as the release's manifest says.
async fn is_open(machine: &Machine, release: &Release) -> anyhow::Result<()> {
    // The phase that is measured last.
    let look = format!(
        "systemctl start systemd-pcrphase.service; cat /var/lib/sealed/word /proc/cmdline; \
         findmnt --noheadings --output SOURCE /var/lib/sealed; cat {REGISTER}"
    );
    let said = machine.run(&look, BOOT).await?;
    ensure!(said.contains(&format!("roothash={}", release.root_hash)), "another root runs:\n{said}");
    ensure!(said.contains(WORD) && said.contains("/dev/mapper/sealed"), "the volume is not what it was:\n{said}");
    let uki = std::fs::read(&release.uki).with_context(|| format!("reading {}", release.uki.display()))?;
    let expected = Uki::open(&uki)?.pcr11()?.after(&PHASES.parse()?).to_string();
    let holds = said.lines().last().unwrap_or_default().trim();
    ensure!(holds.eq_ignore_ascii_case(&expected), "PCR 11 holds {holds}, expected was {expected}");
    crate::say(&format!("{NODE}: {} opened its volume, and PCR 11 holds {expected}", release.version));
    Ok(())
}

/// Starts the machine, which is off, sees that it runs with this option and without the volume, and shuts it down.
async fn stays_closed(machine: &mut Machine, option: &str) -> anyhow::Result<()> {
    let shell = machine.now();
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT).await?;
    let words = machine.run("cat /proc/cmdline", BOOT).await?;
    ensure!(words.split_whitespace().any(|word| word == option), "the machine runs without {option}: {words}");
    // What opens it comes before the basic system, or never.
    let basic = "until systemctl is-active --quiet basic.target; do sleep 1; done";
    machine.run(basic, BOOT).await?;
    let closed = "systemctl is-failed systemd-cryptsetup@sealed.service && ! test -e /dev/mapper/sealed && \
                  ! findmnt /var/lib/sealed && ! systemctl is-active --quiet bascule-agent.service";
    machine.run(closed, BOOT).await?;
    let why = "journalctl --boot --no-pager --quiet --output cat --lines 8 --unit systemd-cryptsetup@sealed.service";
    crate::say(&format!("{NODE}: with {option} it stays closed:\n{}", machine.run(why, BOOT).await?.trim()));
    machine.shut_down(BOOT).await
}

/// A copy of a release's boot image whose command line says something else at one place.
fn changed(release: &Release, folder: &Path) -> anyhow::Result<PathBuf> {
    let (from, to) = OPTION;
    let mut uki = std::fs::read(&release.uki).with_context(|| format!("reading {}", release.uki.display()))?;
    let places: Vec<usize> = uki
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from.as_bytes())
        .map(|(at, _)| at)
        .collect();
    let &[place] = places.as_slice() else {
        anyhow::bail!("{from} stands at {} places of the boot image", places.len())
    };
    uki.iter_mut().skip(place).zip(to.bytes()).for_each(|(old, new)| *old = new);
    let line = Uki::open(&uki)?.command_line()?;
    ensure!(line.words().any(|word| word == to), "the command line was not changed: {}", line.as_str());
    let path = folder.join("changed.efi");
    std::fs::write(&path, uki).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
