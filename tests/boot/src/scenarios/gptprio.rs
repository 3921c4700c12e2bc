//! Test 8: the other boot backend, judged by the tool of those who invented its bits: Debian's `cgpt`. Debian's GRUB has
//! no gptprio module (that is a patch of CoreOS and Flatcar), so no machine boots by these bits here.
//!
//! Three disks: one as our own installer lays it out, and two as `cgpt` lays them out after the tables of Flatcar and
//! Bottlerocket. On those the agent either does the right thing with the bits, or says why it can't and touches nothing.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bascule_agent::boot;
use bascule_agent::core::boot::{Attributes, BootChange};
use bascule_agent::core::{Facts, Journal, PerSlot};
use bascule_agent::observe::{self, LookSettings, ObserveError};
use bascule_agent::slots::{SlotLayout, SlotNumbers};
use bascule_api::{BootControlBackend, SlotName};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::{SimClock, SimDisk, SimHost, SimReleases};
use bascule_sim::layout::{Sizes, Slot, uuid_of_half};
use bascule_sim::machine::Hardware;
use bascule_sim::tiny::TinyRelease;
use uuid::Uuid;

use crate::offline::{self, StagedBytes};

/// What `cgpt` says of a partition: priority, tries, successful.
type Judged = [u8; 3];

/// All three disks.
///
/// # Errors
/// See [`own_disk`] and [`disks_of_others`].
pub fn run() -> anyhow::Result<()> {
    own_disk()?;
    disks_of_others()
}

/// Installs a release on a disk as its vendor would.
fn install(release: &TinyRelease, disk: &Disk, identity: Uuid) -> anyhow::Result<()> {
    release.provision(disk, Sizes::tiny(), BootLoader::Gptprio, identity)?;
    Ok(())
}

/// Lets the agent's backend arm, commit and give up a slot of a disk file, and asks `cgpt` after each step.
///
/// # Errors
/// When `cgpt` reads other bits than those the step means, or finds the table broken.
fn own_disk() -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let path = folder.path().join("gptprio.img");
    let old = TinyRelease::new("bascule-reference", "1.0", 40_960, &[])?;
    let new = TinyRelease::new("bascule-reference", "1.1", 40_960, &[])?;
    let medium =
        Disk::create_file(&path, Sizes::tiny().disk()).with_context(|| format!("making {}", path.display()))?;
    let identity = Uuid::from_u128(8);
    install(&old, &medium, identity)?;
    offline::write_bytes(
        &path,
        Slot::B,
        StagedBytes { version: &new.version, root_hash: new.root_hash, data: &new.data, hashes: &new.verity },
    )?;
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

/// Type of Flatcar's USR partitions.
const COREOS_USR: &str = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6";
/// Types of Bottlerocket's boot, root and hash partitions.
const BOTTLEROCKET: [&str; 3] = [
    "6b636168-7420-6568-2070-6c616e657421",
    "5526016a-1a97-4ea4-b39a-b7c8c6ca4502",
    "598f10af-c955-4456-6a99-7720068a6cea",
];
/// Length of each partition of these disks, and where the first one begins, in sectors.
const LENGTH: u32 = 256;

/// A partition as `cgpt add` makes it.
struct Made<'a> {
    number: u32,
    kind: &'a str,
    label: &'a str,
    uuid: Uuid,
    /// Priority, tries, successful.
    bits: Judged,
}

/// A machine that runs `old`, whose disk `cgpt` made.
struct Elsewhere {
    folder: tempfile::TempDir,
    sim: SimHost,
}

impl Elsewhere {
    fn new(old: &TinyRelease, partitions: &[Made<'_>]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("making a folder")?;
        let own = Disk::in_memory(Sizes::tiny().disk());
        let identity = Uuid::from_u128(9);
        install(old, &own, identity)?;
        let mut hardware = Hardware::new(own, BootLoader::Gptprio, identity);
        let system = hardware.power_on().system.context("nothing boots")?;
        let clock = Arc::new(SimClock::starting_at(std::time::UNIX_EPOCH.into()));
        let mut sim = SimHost::new(&hardware, &system, clock, Arc::new(SimReleases::of([])))?;
        // The rest of the machine is as it was; the disk with the slots is another.
        let path = folder.path().join("disk.img");
        let last = partitions.iter().map(|made| made.number).max().unwrap_or(0);
        std::fs::File::create(&path)?.set_len(u64::from((last + 2) * LENGTH) * 512)?;
        tool(Command::new("cgpt").arg("create").arg(&path))?;
        for made in partitions {
            let [priority, tries, successful] = made.bits.map(|bits| bits.to_string());
            let (number, start) = (made.number.to_string(), (made.number * LENGTH).to_string());
            let (length, uuid) = (LENGTH.to_string(), made.uuid.to_string());
            let place = ["-i", &number, "-b", &start, "-s", &length, "-t", made.kind, "-l", made.label, "-u", &uuid];
            let bits = ["-P", &priority, "-T", &tries, "-S", &successful];
            tool(Command::new("cgpt").arg("add").args(place).args(bits).arg(&path))?;
        }
        sim.disk = Arc::new(SimDisk::new(Disk::open_file(&path)?, None));
        Ok(Self { folder, sim })
    }

    /// What `cgpt` says of a partition.
    fn judged(&self, number: u32) -> anyhow::Result<Judged> {
        judged(&self.folder.path().join("disk.img"), number)
    }

    fn look(&self, settings: &LookSettings) -> Result<Facts, ObserveError> {
        let mut facts = observe::observe(&self.sim.host(), settings, &boot::DigestCache::default())?;
        facts.judge(&Journal::default(), None);
        Ok(facts)
    }
}

/// The tables of two systems whose boot loaders read these bits. What the agent can't use it says, and leaves the disk as it is.
///
/// # Errors
/// When it does otherwise, or `cgpt` reads other bits than were meant.
fn disks_of_others() -> anyhow::Result<()> {
    let old = TinyRelease::new("bascule-reference", "1.0", 40_960, &[])?;
    let halves = (uuid_of_half(old.root_hash.first_half()), uuid_of_half(old.root_hash.second_half()));
    let free = |number: u128| Uuid::from_u128(0xF1A7_CA00 << 64 | number);
    let usr = |number, label, uuid, bits| Made { number, kind: COREOS_USR, label, uuid, bits };
    let numbers = |a: (u32, u32), b: (u32, u32)| {
        let slot = |(data, verity)| SlotNumbers { data, verity };
        let numbers = Some(PerSlot { a: slot(a), b: slot(b) });
        LookSettings {
            slots: SlotLayout { numbers, ..SlotLayout::default() },
            backend: Some(BootControlBackend::GptPrio),
            ..LookSettings::default()
        }
    };

    // Flatcar as it is: fixed PARTUUIDs by which its boot loader knows USR-A and USR-B, and the tree behind the file system.
    let flatcar = Elsewhere::new(&old, &[usr(3, "USR-A", free(3), [1, 0, 1]), usr(4, "USR-B", free(4), [0, 0, 0])])?;
    let refused = |disk: &Elsewhere, settings: &LookSettings, words: &str| -> anyhow::Result<()> {
        let said = disk.look(settings).err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains(words), "the agent says '{said}' and not that {words}");
        Ok(())
    };
    refused(&flatcar, &LookSettings::default(), "there are 0 data and 0 verity partitions")?;
    refused(&flatcar, &numbers((3, 3), (4, 4)), "partition 3 more than once")?;
    let seen = (flatcar.judged(3)?, flatcar.judged(4)?);
    ensure!(seen == ([1, 0, 1], [0, 0, 0]), "the bits of a disk that can't be used were changed: {seen:?}");

    // The same with a tree on a partition of its own and PARTUUIDs that are free: bits where Flatcar keeps them.
    let tree = |number, label, uuid| Made { number, kind: COREOS_USR, label, uuid, bits: [0, 0, 0] };
    let own_tree = Elsewhere::new(
        &old,
        &[
            usr(3, "1.0", halves.0, [1, 0, 1]),
            usr(4, "_empty", free(4), [0, 0, 0]),
            tree(10, "1.0", halves.1),
            tree(11, "_empty", free(11)),
        ],
    )?;
    let settings = numbers((3, 10), (4, 11));
    let facts = own_tree.look(&settings)?;
    ensure!(facts.boot.obstacle.is_none(), "{:?}", facts.boot.obstacle);
    let set = |changes: Vec<(SlotName, Attributes)>| -> anyhow::Result<()> {
        let host = own_tree.sim.host();
        let (slots, ..) = observe::running_slots(&host, &settings)?;
        Ok(boot::apply(&host, BootControlBackend::GptPrio, &slots, &[BootChange::Attributes(changes)])?)
    };
    let (kept, armed) = Attributes::armed_above(Attributes::of(facts.slots.get(SlotName::A).data.attributes), 3);
    set(vec![(SlotName::A, kept), (SlotName::B, armed)])?;
    let seen = (own_tree.judged(3)?, own_tree.judged(4)?, own_tree.judged(10)?, own_tree.judged(11)?);
    let meant = ([1, 0, 1], [2, 3, 0], [0, 0, 0], [0, 0, 0]);
    ensure!(seen == meant, "armed on a Flatcar-like disk: cgpt reads {seen:?}; {meant:?} was meant");
    set(vec![(SlotName::B, armed.permanent())])?;
    ensure!(own_tree.judged(4)? == [2, 0, 1], "committed: cgpt reads {:?}", own_tree.judged(4)?);

    // Bottlerocket: the bits are on the BOOT partitions, and ROOT and HASH have none.
    let [boot_type, root_type, hash_type] = BOTTLEROCKET;
    let set_of = |first: u32, labels: [&'static str; 3], halves: (Uuid, Uuid), bits| {
        [
            Made { number: first, kind: boot_type, label: labels[0], uuid: free(first.into()), bits },
            Made { number: first + 1, kind: root_type, label: labels[1], uuid: halves.0, bits: [0, 0, 0] },
            Made { number: first + 2, kind: hash_type, label: labels[2], uuid: halves.1, bits: [0, 0, 0] },
        ]
    };
    let mut partitions: Vec<_> = set_of(3, ["BOTTLEROCKET-BOOT-A", "1.0", "1.0"], halves, [1, 0, 1]).into();
    partitions.extend(set_of(8, ["BOTTLEROCKET-BOOT-B", "_empty", "_empty"], (free(90), free(91)), [0, 0, 0]));
    let bottlerocket = Elsewhere::new(&old, &partitions)?;
    let settings = numbers((4, 5), (9, 10));
    refused(&bottlerocket, &LookSettings { backend: None, ..settings.clone() }, "no gptprio bits")?;
    refused(&bottlerocket, &settings, "goes by the attributes of partition 3")?;
    let seen = (bottlerocket.judged(3)?, bottlerocket.judged(8)?);
    ensure!(seen == ([1, 0, 1], [0, 0, 0]), "the bits of a disk that can't be used were changed: {seen:?}");
    Ok(())
}

fn cgpt(disk: &Path, slot: Slot) -> anyhow::Result<Judged> {
    judged(disk, slot.data())
}

fn judged(disk: &Path, number: u32) -> anyhow::Result<Judged> {
    let mut judged = [0; 3];
    for (place, flag) in judged.iter_mut().zip(["-P", "-T", "-S"]) {
        let said = tool(Command::new("cgpt").args(["show", "-i", &number.to_string(), flag]).arg(disk))?;
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
