//! Boot counting alone, with no agent in the way: a trial that never comes up gives way to the release before it, without
//! anybody's doing. Catches a boot loader that does not count, entries that sort wrongly, a kernel or initrd that stays
//! where it failed, and a root that is mounted without being verified.

use anyhow::{Context as _, ensure};
use bascule_sim::layout::Slot;

use super::BOOT;
use crate::lab::Lab;
use crate::offline;
use crate::reference::Edition;

/// How often a trial is booted before it counts as bad.
const TRIES: usize = 3;

/// What is wrong with the new release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Its kernel panics.
    Kernel,
    /// Its initrd hangs.
    Initrd,
    /// A bit of its root is not the one that was signed.
    Root,
}

/// Puts a broken release into slot B of a fresh host, armed as the agent would, and boots until the old one runs.
///
/// # Errors
/// When it does not come back, or not after exactly three tries.
pub async fn run(lab: &Lab, broken: Broken) -> anyhow::Result<()> {
    // The same releases as those of `faults`.
    let (name, edition) = match broken {
        Broken::Kernel => ("counting-kernel", Edition::PANICS),
        Broken::Initrd => ("counting-initrd", Edition::HANGS),
        Broken::Root => ("counting-root", Edition::DECAYS),
    };
    let old = lab.release(Edition::OLD)?;
    let new = lab.release(edition)?;
    let mut machine = lab.host(name, &old, &[], &[])?;
    offline::write_slot(machine.disk().path(), Slot::B, &new)?;
    if broken == Broken::Root {
        // The superblock of the file system: read by every mount.
        let start = offline::slot_offset(machine.disk().path(), Slot::B)?;
        machine.disk().flip_bit(start + 1024 + 20, 3)?;
    }
    offline::write_entry(machine.disk().path(), &counted(&new.entry(), "+3-0")?, &new)?;

    machine.power_on()?;
    machine.wait_until_up(0, BOOT * (TRIES as u32 + 1)).await?;
    let kernels = machine.boots(0);
    ensure!(kernels == TRIES + 1, "{kernels} kernels started, {} were expected", TRIES + 1);
    let listed =
        machine.run("cat /proc/cmdline; SYSTEMD_COLORS=0 bootctl list --no-pager; ls -1 /efi/EFI/Linux", BOOT).await?;
    ensure!(listed.contains(&format!("roothash={}", old.root_hash)), "the old release does not run:\n{listed}");
    ensure!(listed.contains(&counted(&new.entry(), "+0-3")?), "the bad entry is not counted down:\n{listed}");
    machine.shut_down(BOOT).await?;
    offline::judge(machine.disk().path(), &[(Slot::A, &old)])?;
    machine.discard();
    Ok(())
}

/// The name of an entry with a counter.
pub fn counted(entry: &str, counter: &str) -> anyhow::Result<String> {
    let stem = entry.strip_suffix(".efi").context("an entry without .efi")?;
    Ok(format!("{stem}{counter}.efi"))
}
