//! The simulated implementations: with a fault at each single access to the medium.

use std::io::ErrorKind;
use std::sync::Arc;

use bascule_agent::host::{Disk as _, Esp as _, Firmware};
use bascule_sim::disk::{Access, Cache, Disk, Effect, FaultRule, Loss, Recording, Snapshot};
use bascule_sim::firmware::{BootLoader, Variables};
use bascule_sim::host::{Failing, SimDisk, SimEsp, SimFirmware, Unreadable, UnreadableFirmware};
use bascule_sim::layout::{ESP, Sizes, Table};
use bascule_sim::tiny::TinyRelease;

use crate::child::{ARMED, FLUSHED};
use crate::walk::{self, ESP_STEPS, FOLDER, NEW, OLD, PART, SLOT, Steps, content};

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

/// What a fault led to.
enum Outcome {
    /// There is no such access.
    NoAccess,
    /// It was reported.
    Reported,
    /// The answers are as without it.
    PassedOver,
}

/// One access of `run` fails.
fn with_fault(
    disk: &Disk,
    rule: FaultRule,
    good: &Steps,
    kinds: &[ErrorKind],
    run: impl Fn(&Disk) -> Steps,
) -> Outcome {
    disk.inject(rule);
    let found = run(disk);
    let struck = disk.suspend_faults().iter().all(|rule| rule.times == 0);
    let failed = walk::hold(&format!("{rule:?}"), good, &found, kinds);
    assert!(struck || !failed, "{rule:?}: an error without a fault\n{found:#?}");
    match (struck, failed) {
        (false, _) => Outcome::NoAccess,
        (true, true) => Outcome::Reported,
        (true, false) => Outcome::PassedOver,
    }
}

fn provisioned() -> Snapshot {
    let disk = Disk::in_memory(Sizes::tiny().disk());
    let release = TinyRelease::new("acme-os", "1.0", 48 << 10, &[]).unwrap();
    release.provision(&disk, Sizes::tiny(), BootLoader::SystemdBoot, uuid::Uuid::from_u128(7)).unwrap();
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    esp.remove(&format!("EFI/Linux/{}", release.entry())).unwrap();
    esp.write(OLD, &content(1, 2000)).unwrap();
    esp.sync().unwrap();
    disk.snapshot().unwrap()
}

#[test]
fn the_simulated_disk_reports_each_fault() {
    let start = Disk::in_memory(4 << 20).snapshot().unwrap();
    let run = |disk: &Disk| walk::disk(&SimDisk::new(disk.clone(), None));
    let good = run(&Disk::from_snapshot(start.clone()));
    assert!(good.iter().all(|(_, answer)| answer.is_ok()), "{good:#?}");
    let mut reported = 0;
    for (access, effect, expected) in EFFECTS {
        for skip in 0.. {
            let disk = Disk::from_snapshot(start.clone());
            let rule = FaultRule::once(access, None, skip, effect);
            match with_fault(&disk, rule, &good, &kinds(effect, expected), run) {
                Outcome::NoAccess => break,
                Outcome::Reported => reported += 1,
                Outcome::PassedOver => panic!("{rule:?}: nobody was told"),
            }
        }
    }
    assert!(reported > 10, "{reported}");
    crate::devices::disk_rules(&SimDisk::new(Disk::from_snapshot(start), None));
}

/// Each step on its own, with a fault at every one of its accesses; what the step is not about stays what it was.
#[test]
fn the_simulated_boot_partition_reports_each_fault() {
    let (mut disk, mut reported) = (Disk::from_snapshot(provisioned()), 0);
    for (name, step) in ESP_STEPS {
        let before = disk.snapshot().unwrap();
        let run = |disk: &Disk| {
            let answer = SimEsp::mount(disk, None).and_then(|esp| step(&esp));
            vec![(name.to_owned(), answer.map_err(|error| error.kind()))]
        };
        let good = run(&disk);
        assert!(good.iter().all(|(_, answer)| answer.is_ok()), "{good:#?}");
        let old = |disk: &Disk| SimEsp::mount(disk, None).and_then(|esp| esp.read(OLD, 1 << 20)).ok();
        let untouched = old(&Disk::from_snapshot(before.clone())).filter(|_| !name.contains("remove"));
        for (access, effect, expected) in EFFECTS {
            for skip in 0.. {
                let disk = Disk::from_snapshot(before.clone());
                let rule = FaultRule::once(access, Some(Cache(ESP)), skip, effect);
                // To a file system, a medium that ends too early is broken.
                let mut allowed = kinds(effect, expected);
                allowed.extend(kinds(Effect::Eio, &[]));
                match with_fault(&disk, rule, &good, &allowed, run) {
                    Outcome::NoAccess => break,
                    Outcome::Reported => reported += 1,
                    Outcome::PassedOver => panic!("{name}: {rule:?}: nobody was told"),
                }
                disk.forget_cache();
                assert_eq!(untouched.is_some().then(|| old(&disk)), untouched.clone().map(Some), "{name}: {rule:?}");
            }
        }
        disk = Disk::from_snapshot(disk.snapshot().unwrap());
    }
    println!("{reported} faults reported");
    assert!(reported > 200, "{reported}");
}

#[test]
fn the_simulated_firmware_reports_each_fault() {
    let mut variables = Variables::default();
    variables.set_bytes("LoaderInfo", b"x".to_vec());
    variables.set_bytes_of(bascule_secure_boot::GLOBAL, "SecureBoot", vec![1]);
    let inner: Arc<dyn Firmware> = Arc::new(SimFirmware(variables));
    let good = walk::firmware(&*inner);
    let mut reported = 0;
    for error in [5, 12] {
        for name in ["LoaderInfo", "SecureBoot", "LoaderEntryDefault"] {
            for skip in 0.. {
                let unreadable = Unreadable::default();
                unreadable.fail(name, Failing { skip, times: 1, error });
                let firmware = UnreadableFirmware { inner: inner.clone(), unreadable };
                let found = walk::firmware(&firmware);
                let kinds = [std::io::Error::from_raw_os_error(error).kind()];
                if !walk::hold(&format!("{name}: {error} after {skip}"), &good, &found, &kinds) {
                    break;
                }
                reported += 1;
            }
        }
    }
    assert_eq!(reported, 8, "LoaderInfo is read twice, the others once");
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

/// What is written over the start of the boot image.
const START: &[u8] = b"another start";

/// Plays system calls over a FAT whose renames are as late as vfat's. The recording, and how much of it was there before the rename.
fn play(calls: &[&str]) -> (Recording, usize) {
    let disk = Disk::from_snapshot(provisioned());
    let fat = Table::read(&disk).unwrap().esp().unwrap();
    disk.start_recording();
    let (mut renamed, mut before) = (None, 0);
    for call in calls {
        let words: Vec<&str> = call.split(' ').collect();
        match words[..] {
            ["write", path] => fat.write(path, &content(7, 3000)).unwrap(),
            ["renameat2", from, to] => {
                before = disk.recorded();
                renamed = Some(fat.rename_late(from, to).unwrap());
            }
            ["pwrite64", path] => fat.write_start(path, START).unwrap(),
            ["unlink", path] => fat.remove(path).unwrap(),
            ["fsync", NEW] => {
                if let Some(renamed) = renamed.take() {
                    renamed.write_back().unwrap();
                }
            }
            ["fsync", FOLDER] => {
                if let Some(renamed) = renamed.take() {
                    renamed.folder_first().unwrap();
                }
                fat.sync().unwrap();
            }
            ["syncfs", "."] => fat.sync().unwrap(),
            // Of other files less becomes durable here than Linux promises.
            ["fsync", _] => {}
            _ => panic!("{call} is not played"),
        }
    }
    (disk.take_recording().unwrap(), before)
}

/// From the rename on, the image is found whole under one of its names wherever power is lost, and under the one that the boot loader
/// looks at there is never anything else.
fn image_outlives_every_cut((recording, before): &(Recording, usize)) -> Result<usize, String> {
    let image = content(7, 3000);
    let started: Vec<u8> = START.iter().chain(image.iter().skip(START.len())).copied().collect();
    let whole = |found: &Vec<u8>| *found == image || *found == started;
    let mut cuts = 0;
    for at in recording.cut_points().into_iter().filter(|at| at >= before) {
        let pending = recording.pending_versions(at);
        let chosen = (0..1u64 << pending.min(6)).map(Loss::Chosen);
        let torn = (0..60).map(|seed| Loss::Torn(seed ^ (at as u64) << 16));
        let losses: Vec<Loss> = if pending <= 6 { chosen.collect() } else { torn.collect() };
        for loss in losses {
            let esp = Table::read(&Disk::from_snapshot(recording.cut(at, loss))).unwrap().esp().unwrap();
            let [part, new] = [PART, NEW].map(|path| esp.read(path, 1 << 20).ok());
            let kept = part.iter().chain(&new).any(whole);
            if !kept || new.as_ref().is_some_and(|new| !whole(new)) {
                let lengths = [part, new].map(|found| found.map(|bytes| bytes.len()));
                return Err(format!("{lengths:?} with {loss:?} after\n{}", recording.story(at, 20)));
            }
            cuts += 1;
        }
    }
    Ok(cuts)
}

/// The system calls that `node-agent/src/linux/esp.rs` is held to (`child::the_real_boot_partition_flushes_…`) are enough where a rename
/// is late, and the flush of the file after its rename, which nothing else makes up for, is one of them.
#[test]
fn a_renamed_boot_image_outlives_every_cut_and_not_without_the_flush_of_the_file() {
    let flushed = &FLUSHED[..ARMED];
    let cuts = image_outlives_every_cut(&play(flushed)).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{cuts} cuts");
    let renamed = flushed.iter().position(|call| call.starts_with("renameat2")).unwrap();
    let mut left_out = flushed.to_vec();
    assert_eq!(left_out.remove(renamed + 1), format!("fsync {NEW}"));
    let found = image_outlives_every_cut(&play(&left_out));
    assert!(found.is_err(), "nothing noticed that the file was not flushed after its rename in {found:?} cuts");
    // The other one: a name before its content.
    let unflushed: Vec<&str> = flushed[..1].iter().chain(&flushed[renamed..]).copied().collect();
    let found = image_outlives_every_cut(&play(&unflushed));
    assert!(found.is_err(), "nothing noticed that the file was not flushed before its rename in {found:?} cuts");
}

/// The same of the simulated boot partition, which the agent's own power cuts rest on.
#[test]
fn the_simulated_boot_partition_writes_a_renamed_file_back_before_its_folder() {
    for forgets in [false, true] {
        let disk = Disk::from_snapshot(provisioned());
        let esp = SimEsp::mount(&disk, None).unwrap();
        if forgets {
            esp.forget_to_write_back();
        }
        esp.write(PART, &mut content(7, 3000).as_slice()).unwrap();
        esp.sync().unwrap();
        disk.start_recording();
        esp.rename(PART, NEW).unwrap();
        esp.sync().unwrap();
        let found = image_outlives_every_cut(&(disk.take_recording().unwrap(), 0));
        assert_eq!(found.is_err(), forgets, "{found:?}");
    }
}
