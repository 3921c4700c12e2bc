//! Test 8: the other boot backend, judged by the tool of those who invented its bits: Debian's `cgpt`. Debian's GRUB has
//! no gptprio module (that is a patch of CoreOS and Flatcar), so no machine boots by these bits here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use bascule_agent::boot::{BootBackend, GptPrio, Machine};
use bascule_agent::core::{PerSlot, ReleaseTarget};
use bascule_agent::gpt::Table;
use bascule_agent::slots::{self, SlotLayout};
use bascule_api::{Architecture, SlotName};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::{SimDisk, SimEsp};
use bascule_sim::layout::{Installed, Sizes, Slot, provision};
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
    let (disk, esp) = (SimDisk::new(medium.clone(), None), SimEsp::mount(&medium, None)?);
    let backend = GptPrio { disk: &disk, esp: &esp };
    let target = ReleaseTarget {
        slot: SlotName::B,
        version: new.version.parse()?,
        root_hash: new.root_hash.into(),
        digest: None,
        uki: None,
    };
    let expect = |step: &str, a: Judged, b: Judged| -> anyhow::Result<()> {
        let seen = (cgpt(&path, Slot::A)?, cgpt(&path, Slot::B)?);
        ensure!(seen == (a, b), "{step}: cgpt reads {seen:?} as priority, tries, successful; {:?} was meant", (a, b));
        Ok(())
    };

    expect("installed", [2, 0, 1], [0, 0, 0])?;
    backend.arm(&look(&disk, &old, SlotName::A)?, &target, 3, false)?;
    expect("armed", [2, 0, 1], [3, 3, 0])?;
    backend.disarm(&look(&disk, &old, SlotName::A)?, &target)?;
    expect("disarmed", [2, 0, 1], [0, 0, 0])?;
    backend.arm(&look(&disk, &old, SlotName::A)?, &target, 3, false)?;
    // What the boot loader does before it boots a slot, done by cgpt.
    tool(Command::new("cgpt").args(["add", "-i", "4", "-T", "2"]).arg(&path))?;
    backend.bless(&look(&disk, &new, SlotName::B)?, SlotName::B)?;
    expect("committed", [2, 0, 1], [3, 0, 1])?;
    backend.mark_bad(&look(&disk, &new, SlotName::B)?, SlotName::B)?;
    expect("given up", [2, 0, 1], [0, 0, 0])?;
    let said = tool(Command::new("cgpt").args(["show", "-v"]).arg(&path))?;
    ensure!(!said.contains("INVALID"), "cgpt finds the table broken:\n{said}");
    Ok(())
}

/// The machine as the backend sees it while `running` runs from `booted`.
fn look(disk: &SimDisk, running: &TinyRelease, booted: SlotName) -> anyhow::Result<Machine> {
    let found = slots::find(&Table::read(disk)?.partitions(), SlotLayout::default(), Architecture::X86_64)?;
    let content = |(data, verity): &(_, _)| slots::content(data, verity);
    Ok(Machine {
        product: running.product.parse()?,
        version: running.version.parse()?,
        root_hash: running.root_hash.into(),
        booted,
        contents: PerSlot { a: content(&found.a), b: content(&found.b) },
        partitions: found,
    })
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
