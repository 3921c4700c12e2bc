//! Test 8: the other boot backend, judged by the tool of those who invented its bits: Debian's `cgpt`. Debian's GRUB has
//! no gptprio module (that is a patch of CoreOS and Flatcar), so no machine boots by these bits here.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bascule_agent::boot;
use bascule_agent::core::boot::{Attributes, BootChange};
use bascule_agent::observe::{self, LookSettings};
use bascule_api::{BootControlBackend, SlotName};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::{SimClock, SimHost, SimReleases};
use bascule_sim::layout::{Installed, Sizes, Slot, provision};
use bascule_sim::machine::Hardware;
use bascule_sim::tiny::TinyRelease;
use uuid::Uuid;

use crate::offline::{self, StagedBytes};

/// What `cgpt` says of a partition: priority, tries, successful.
type Judged = [u8; 3];

/// Lets the agent's backend arm, commit and give up a slot of a disk file, and asks `cgpt` after each step.
///
/// # Errors
/// When `cgpt` reads other bits than those the step means, or finds the table broken.
pub fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let path = folder.path().join("gptprio.img");
    let old = TinyRelease::new("bascule-reference", "1.0", 40_960, &[])?;
    let new = TinyRelease::new("bascule-reference", "1.1", 40_960, &[])?;
    let sizes = Sizes::tiny();
    let medium = Disk::create_file(&path, sizes.disk()).with_context(|| format!("making {}", path.display()))?;
    let mut first = Installed {
        version: &old.version,
        root_hash: old.root_hash,
        data: &mut old.data.as_slice(),
        verity: &mut old.verity.as_slice(),
        uki: &old.uki,
        entry: &old.entry(),
    };
    provision(&medium, sizes, BootLoader::Gptprio, Uuid::from_u128(8), &mut first)?;
    offline::write_bytes(
        &path,
        Slot::B,
        StagedBytes { version: &new.version, root_hash: new.root_hash, data: &new.data, hashes: &new.verity },
    )?;
    let identity = Uuid::from_u128(8);
    let mut hardware = Hardware::new(medium, BootLoader::Gptprio, identity);
    let system = hardware.power_on().system.context("nothing boots")?;
    let clock = Arc::new(SimClock::starting_at(std::time::UNIX_EPOCH.into()));
    let sim = SimHost::new(&hardware, &system, clock, Arc::new(SimReleases::of([&new])))?;
    let host = sim.host();
    // What the bits are now, and what the agent makes of them.
    let bits = |slot: SlotName| -> anyhow::Result<Attributes> {
        let (slots, ..) = observe::running_slots(&host, &LookSettings::default())?;
        Ok(Attributes::of(slots.partitions.get(slot).0.attributes))
    };
    let set = |changes: Vec<(SlotName, Attributes)>| -> anyhow::Result<()> {
        let (slots, ..) = observe::running_slots(&host, &LookSettings::default())?;
        Ok(boot::apply(&host, BootControlBackend::GptPrio, &slots, &[BootChange::Attributes(changes)])?)
    };
    let arm = || -> anyhow::Result<()> {
        let (kept, armed) = Attributes::armed_above(bits(SlotName::A)?, 3);
        set(vec![(SlotName::A, kept), (SlotName::B, armed)])
    };
    let expect = |step: &str, a: Judged, b: Judged| -> anyhow::Result<()> {
        let seen = (cgpt(&path, Slot::A)?, cgpt(&path, Slot::B)?);
        ensure!(seen == (a, b), "{step}: cgpt reads {seen:?} as priority, tries, successful; {:?} was meant", (a, b));
        Ok(())
    };

    expect("installed", [2, 0, 1], [0, 0, 0])?;
    arm()?;
    expect("armed", [2, 0, 1], [3, 3, 0])?;
    set(vec![(SlotName::B, Attributes::default())])?;
    expect("disarmed", [2, 0, 1], [0, 0, 0])?;
    arm()?;
    // What the boot loader does before it boots a slot, done by cgpt.
    tool(Command::new("cgpt").args(["add", "-i", "4", "-T", "2"]).arg(&path))?;
    set(vec![(SlotName::B, bits(SlotName::B)?.permanent())])?;
    expect("committed", [2, 0, 1], [3, 0, 1])?;
    set(vec![(SlotName::B, Attributes::default())])?;
    expect("given up", [2, 0, 1], [0, 0, 0])?;
    let said = tool(Command::new("cgpt").args(["show", "-v"]).arg(&path))?;
    ensure!(!said.contains("INVALID"), "cgpt finds the table broken:\n{said}");
    Ok(())
}

fn cgpt(disk: &Path, slot: Slot) -> anyhow::Result<Judged> {
    let mut judged = [0; 3];
    for (place, flag) in judged.iter_mut().zip(["-P", "-T", "-S"]) {
        let said = tool(Command::new("cgpt").args(["show", "-i", &slot.data().to_string(), flag]).arg(disk))?;
        *place = said.trim().parse().with_context(|| format!("cgpt show {flag} said {said:?}"))?;
    }
    Ok(judged)
}

fn tool(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("starting cgpt (package cgpt)")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("cgpt: {}", said.trim());
    }
    Ok(said)
}
