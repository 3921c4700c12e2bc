//! The simulated implementations: with a fault at each single access to the medium.

use std::io::ErrorKind;

use bascule_agent::host::{Disk as _, Esp as _};
use bascule_sim::disk::{Access, Cache, Disk, Effect, FaultRule, Snapshot};
use bascule_sim::firmware::{BootLoader, Variables};
use bascule_sim::host::{SimDisk, SimEsp, SimFirmware};
use bascule_sim::layout::{ESP, Installed, Sizes, Table, provision};
use bascule_sim::tiny::TinyRelease;

use crate::walk::{self, OLD, SLOT, Steps, content};

/// What each fault may be reported as.
const EFFECTS: [(Access, Effect, &[ErrorKind]); 8] = [
    (Access::Read, Effect::Eio, &[ErrorKind::Other]),
    (Access::Read, Effect::NoMemory, &[ErrorKind::OutOfMemory]),
    (Access::Read, Effect::Short(100), &[ErrorKind::UnexpectedEof]),
    (Access::Write, Effect::Eio, &[ErrorKind::Other]),
    (Access::Write, Effect::NoSpace, &[ErrorKind::StorageFull]),
    (Access::Write, Effect::ReadOnly, &[ErrorKind::ReadOnlyFilesystem]),
    (Access::Flush, Effect::Eio, &[ErrorKind::Other]),
    (Access::Flush, Effect::NoSpace, &[ErrorKind::StorageFull]),
];

/// EIO has no kind with a stable name: it is whatever the number gives.
fn kinds(effect: Effect, kinds: &[ErrorKind]) -> Vec<ErrorKind> {
    match effect {
        Effect::Eio => vec![std::io::Error::from_raw_os_error(5).kind()],
        _ => kinds.to_vec(),
    }
}

/// Accesses of `run` fail, one at a time and in every way: each of a short sequence. Returns how many failures were seen.
fn exhaust(start: &Snapshot, cache: Option<Cache>, good: &Steps, run: impl Fn(&Disk) -> Steps) -> usize {
    let mut seen = 0;
    for (access, effect, expected) in EFFECTS {
        let mut skip = 0;
        loop {
            assert!(skip < 10_000, "no end of accesses");
            let disk = Disk::from_snapshot(start.clone());
            disk.inject(FaultRule::once(access, cache, skip, effect));
            let found = run(&disk);
            let struck = disk.suspend_faults().iter().all(|rule| rule.times == 0);
            let what = format!("{effect:?} at {access:?} {skip}");
            let failed = walk::hold(&what, good, &found, &kinds(effect, expected));
            // The FAT driver below the simulated boot partition passes over reads of its own bookkeeping when it lets a file
            // go; the answers are the same then. What is written or flushed is the agent's, and never passed over.
            let passed_over = access == Access::Read && struck && !failed;
            assert!(failed == struck || passed_over, "{what}: a fault is reported, and nothing else is\n{found:#?}");
            if !struck {
                break;
            }
            seen += usize::from(failed);
            // The boot partition is read in thousands of sectors: the first ones all, then one of many.
            skip += if skip < 60 { 1 } else { 97 };
        }
    }
    seen
}

fn provisioned() -> Snapshot {
    let disk = Disk::in_memory(Sizes::tiny().disk());
    let release = TinyRelease::new("acme-os", "1.0", 48 << 10, &[]).unwrap();
    let mut installed = Installed {
        version: &release.version,
        root_hash: release.root_hash,
        data: &mut release.data.as_slice(),
        verity: &mut release.verity.as_slice(),
        uki: &release.uki,
        entry: &release.entry(),
    };
    provision(&disk, Sizes::tiny(), BootLoader::SystemdBoot, uuid::Uuid::from_u128(7), &mut installed).unwrap();
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    esp.remove(&format!("EFI/Linux/{}", release.entry())).unwrap();
    esp.write(OLD, &content(1, 2000)).unwrap();
    esp.sync().unwrap();
    disk.snapshot().unwrap()
}

#[test]
fn the_simulated_boot_partition_reports_each_fault() {
    let start = provisioned();
    let run = |disk: &Disk| {
        // Mounting reads the partition table; the contract is about what follows.
        let faults = disk.suspend_faults();
        let esp = SimEsp::mount(disk, None).unwrap();
        disk.resume_faults(faults);
        walk::esp(&esp)
    };
    let good = run(&Disk::from_snapshot(start.clone()));
    assert!(good.iter().all(|(_, answer)| answer.is_ok()), "{good:#?}");
    let seen = exhaust(&start, Some(Cache(ESP)), &good, run);
    assert!(seen > 100, "{seen}");
    let esp = SimEsp::mount(&Disk::from_snapshot(start), None).unwrap();
    crate::devices::esp_rules(&esp);
}

#[test]
fn the_simulated_disk_reports_each_fault() {
    let start = Disk::in_memory(4 << 20).snapshot().unwrap();
    let run = |disk: &Disk| walk::disk(&SimDisk::new(disk.clone(), None));
    let good = run(&Disk::from_snapshot(start.clone()));
    assert!(good.iter().all(|(_, answer)| answer.is_ok()), "{good:#?}");
    assert!(exhaust(&start, None, &good, run) > 10);
    crate::devices::disk_rules(&SimDisk::new(Disk::from_snapshot(start), None));
}

#[test]
fn the_simulated_disk_gives_the_answers_of_the_real_one() {
    let simulated = SimDisk::new(Disk::in_memory(4 << 20), None);
    let folder = tempfile::tempdir().unwrap();
    let real = crate::child::real_disk(folder.path());
    assert_eq!(walk::disk(&simulated), walk::disk(&real));
    let (number, extent) = SLOT;
    assert_eq!(simulated.partition(number, extent).unwrap().size().unwrap(), extent.length);
}

#[test]
fn the_simulated_boot_partition_gives_the_answers_of_the_real_one() {
    let simulated = SimEsp::mount(&Disk::from_snapshot(provisioned()), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let real = crate::child::real_esp(folder.path());
    assert_eq!(walk::esp(&simulated), walk::esp(&real));
    assert!(simulated.space().unwrap().free > 0 && real.space().unwrap().free > 0);
}

#[test]
fn the_simulated_firmware_gives_the_answers_of_the_real_one() {
    let mut variables = Variables::default();
    variables.set_bytes("LoaderInfo", b"x".to_vec());
    variables.set_bytes_of(bascule_secure_boot::GLOBAL, "SecureBoot", vec![1]);
    let folder = tempfile::tempdir().unwrap();
    let real = crate::child::real_firmware(folder.path());
    let answers = walk::firmware(&real);
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:#?}");
    assert_eq!(walk::firmware(&SimFirmware(variables)), answers);
}
