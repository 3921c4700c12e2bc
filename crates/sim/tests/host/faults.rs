//! Bad disks, full and broken file systems, and hands in the machine while the agent works. Whatever happens, a whole
//! release boots; what passes by itself ends well by itself; what does not is reported and never armed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bascule_agent::core::boot::Safeguard;
use bascule_api::NodeError;
use bascule_sim::disk::{Access, Cache, Effect, FaultRule, Part};
use bascule_sim::firmware::BootLoader::{self, Gptprio, SystemdBoot};
use bascule_sim::host::releases::reference;
use bascule_sim::host::{STATE_CACHE, SimReleases};
use bascule_sim::layout::{ESP, Slot, Table};
use bascule_sim::tiny::TinyRelease;

use bascule_secure_boot::{GLOBAL, IMAGE_SECURITY, SignedImage};
use uuid::Uuid;

use crate::operator::{Operator, Verdict};
use crate::power_cuts::{sound, world};
use crate::support::{installed, release};
use crate::world::OneNode;

const BACKENDS: [BootLoader; 2] = [SystemdBoot, Gptprio];

/// A host on which 1.0 runs and 1.1 is wanted.
fn updating(boot: BootLoader) -> OneNode {
    world(boot, installed(boot, &release("1.0")), "1.1", Verdict::Commit)
}

/// Runs to rest and expects `version` there, sound.
pub(crate) fn ends_with(world: &mut OneNode, version: &str, what: &str) {
    let ended = world.settle();
    let story = world.told();
    let system = ended.unwrap_or_else(|wrong| panic!("{what}: {wrong}\n  {story}"));
    assert_eq!(system.version, version, "{what}:\n  {story}");
    sound(world).unwrap_or_else(|wrong| panic!("{what}: {wrong}\n  {story}"));
}

/// As [`ends_with`] `1.0`, and the last error is of one of these kinds; then the fault is mended and all ends well.
fn refuses_until_mended(mut world: OneNode, kinds: &[NodeError], what: &str, mend: impl FnOnce(&OneNode)) {
    let ended = world.settle();
    let story = world.told();
    let system = ended.unwrap_or_else(|wrong| panic!("{what}: {wrong}\n  {story}"));
    assert_eq!(system.version, "1.0", "{what}:\n  {story}");
    let category = world.last_error.as_ref().map(|error| error.category);
    assert!(category.is_some_and(|category| kinds.contains(&category)), "{what}: {category:?}\n  {story}");
    world.faults.clear();
    world.hardware.disk.clear_faults();
    mend(&world);
    ends_with(&mut world, "1.1", &format!("{what}, mended"));
}

const SLOT_B: Cache = Cache(4);
const SLOT_B_VERITY: Cache = Cache(5);

#[test]
fn a_fault_that_strikes_once_is_overcome() {
    let places = [Cache::WHOLE, Cache(ESP), SLOT_B, SLOT_B_VERITY, STATE_CACHE];
    let mut struck = 0;
    for boot in BACKENDS {
        for cache in places {
            for (access, effect) in [
                (Access::Read, Effect::Eio),
                (Access::Write, Effect::Eio),
                (Access::Write, Effect::Short(700)),
                (Access::Write, Effect::NoSpace),
                (Access::Flush, Effect::Eio),
            ] {
                for skip in [0, 1, 2, 5, 11, 30] {
                    let mut world = updating(boot);
                    world.faults = vec![FaultRule::once(access, Some(cache), skip, effect)];
                    ends_with(&mut world, "1.1", &format!("{boot:?}: {effect:?} at {access:?} {skip} of {cache}"));
                    struck += 1;
                }
            }
        }
    }
    println!("{struck} faults");
}

#[test]
fn a_disk_that_lies_once_is_seen_through_and_written_again() {
    for boot in BACKENDS {
        for cache in [SLOT_B, SLOT_B_VERITY, Cache::WHOLE] {
            for effect in [Effect::FlipBit(12_345), Effect::Lose] {
                for skip in [0, 1, 3] {
                    let mut world = updating(boot);
                    world.faults = vec![FaultRule::once(Access::Write, Some(cache), skip, effect)];
                    ends_with(&mut world, "1.1", &format!("{boot:?}: {effect:?} at write {skip} of {cache}"));
                }
            }
        }
    }
}

/// Nothing that the agent reads back shows a directory that the disk spoilt; but whatever boots is whole.
#[test]
fn an_esp_that_lies_never_boots_anything_that_is_not_whole() {
    for effect in [Effect::FlipBit(12_345), Effect::Lose] {
        for skip in 0..12 {
            let mut world = updating(SystemdBoot);
            world.faults = vec![FaultRule::once(Access::Write, Some(Cache(ESP)), skip, effect)];
            let ended = world.settle().and_then(|_| world.next_start());
            ended.unwrap_or_else(|wrong| panic!("{effect:?} at write {skip}: {wrong}\n  {}", world.told()));
        }
    }
}

#[test]
fn a_disk_that_always_lies_is_never_armed() {
    for boot in BACKENDS {
        for cache in [SLOT_B, SLOT_B_VERITY] {
            let mut world = updating(boot);
            world.faults = vec![FaultRule::always(Access::Write, Some(cache), Effect::FlipBit(99))];
            let kinds = [NodeError::Storage, NodeError::Trust];
            refuses_until_mended(world, &kinds, &format!("{boot:?}: {cache} lies"), |_| {});
        }
    }
}

#[test]
fn a_disk_that_always_fails_is_reported_and_never_armed() {
    for boot in BACKENDS {
        for (cache, access, effect, kind) in [
            (SLOT_B, Access::Write, Effect::Eio, NodeError::Storage),
            (SLOT_B, Access::Read, Effect::Eio, NodeError::Storage),
            (SLOT_B, Access::Flush, Effect::Eio, NodeError::Storage),
            (Cache::WHOLE, Access::Write, Effect::Eio, NodeError::Storage),
            (Cache(ESP), Access::Write, Effect::ReadOnly, NodeError::Storage),
            (Cache(ESP), Access::Flush, Effect::Eio, NodeError::Storage),
        ] {
            if boot == Gptprio && cache == Cache(ESP) {
                continue;
            }
            let mut world = updating(boot);
            world.faults = vec![FaultRule::always(access, Some(cache), effect)];
            refuses_until_mended(world, &[kind], &format!("{boot:?}: {effect:?} at {access:?} of {cache}"), |_| {});
        }
    }
}

#[test]
fn a_full_state_partition_stops_the_update_before_anything_is_armed() {
    for boot in BACKENDS {
        let mut world = updating(boot);
        world.faults = vec![FaultRule::always(Access::Write, Some(STATE_CACHE), Effect::NoSpace)];
        refuses_until_mended(world, &[NodeError::Storage, NodeError::Space], &format!("{boot:?}: state full"), |_| {});
    }
}

#[test]
fn a_full_esp_is_reported_before_the_first_write() {
    let world = updating(SystemdBoot);
    let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
    esp.write("EFI/filler.bin", &vec![1; esp.free().unwrap() as usize - 2048]).unwrap();
    esp.sync().unwrap();
    world.hardware.disk.start_recording();
    let disk = world.hardware.disk.clone();
    refuses_until_mended(world, &[NodeError::Space], "full ESP", |_| {
        let recording = disk.take_recording().unwrap();
        let written = recording.operations().iter().any(
            |operation| matches!(operation, bascule_sim::disk::Operation::Write { cache, .. } if *cache == SLOT_B),
        );
        assert!(!written, "the slot was written although the boot image would not fit");
        esp.remove("EFI/filler.bin").unwrap();
        esp.sync().unwrap();
    });
}

/// Room is measured before the first write, and may be gone when it is needed.
#[test]
fn room_that_goes_while_a_release_is_staged_is_reported_and_costs_nothing() {
    for left in [0, 512, 2048] {
        let mut world = updating(SystemdBoot);
        let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
        let filling = esp.clone();
        world.on_effect("stage-uki", move || {
            let free = usize::try_from(filling.free().unwrap()).unwrap();
            filling.write("EFI/filler.bin", &vec![1; free - left]).unwrap();
        });
        refuses_until_mended(world, &[NodeError::Space], &format!("{left} bytes are left"), |world| {
            assert!(world.story.iter().any(|line| line.contains("stage-uki failed")), "{}", world.told());
            esp.remove("EFI/filler.bin").unwrap();
            esp.sync().unwrap();
        });
    }
}

#[test]
fn a_broken_copy_of_the_table_is_repaired() {
    for boot in BACKENDS {
        let length = updating(boot).hardware.disk.length();
        for offset in [512, 1024, length - 512, length - 33 * 512] {
            let mut world = updating(boot);
            Part::whole(&world.hardware.disk).write_all(offset, &[0xaa; 512]).unwrap();
            ends_with(&mut world, "1.1", &format!("{boot:?}: garbage at {offset}"));
        }
    }
}

#[test]
fn an_esp_that_breaks_under_the_running_system_is_reported() {
    let mut world = updating(SystemdBoot);
    let whole = Table::read(&world.hardware.disk).unwrap().part(ESP).unwrap();
    let mut boot_sector = vec![0; 512];
    whole.read(0, &mut boot_sector).unwrap();
    let part = whole.clone();
    world.on_effect("retire-entry", move || part.write_all(0, &[0; 512]).unwrap());
    refuses_until_mended(world, &[NodeError::Storage, NodeError::BootControl], "broken ESP", |_| {
        whole.write_all(0, &boot_sector).unwrap();
    });
}

/// A host on which 1.0 runs, and a 1.1 that has a delta from it; and how often a pack or boot image was opened.
fn updating_by_delta(boot: BootLoader) -> (OneNode, Arc<AtomicUsize>) {
    let first = release("1.0");
    let known = Arc::new(vec![first.clone(), TinyRelease::following(&first, "1.1").unwrap()]);
    let downloads = Arc::new(AtomicUsize::new(0));
    let counter = downloads.clone();
    let counted = SimReleases::of(known.iter()).noting(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let operator = Operator::new(reference(&known[1]).unwrap(), Verdict::Commit);
    (OneNode::new(boot, installed(boot, &first), operator, known, Arc::new(counted)), downloads)
}

#[test]
fn a_rotten_block_or_a_failing_sector_in_the_running_slot_heals_by_the_full_pack() {
    for boot in BACKENDS {
        // Without damage the delta is what is taken, and a boot image; else this test would show nothing.
        let (mut world, downloads) = updating_by_delta(boot);
        ends_with(&mut world, "1.1", &format!("{boot:?}: by delta"));
        assert_eq!(downloads.load(Ordering::SeqCst), 2, "{}", world.told());

        let (mut world, downloads) = updating_by_delta(boot);
        let disk = world.hardware.disk.clone();
        // Once the release runs: dm-verity would not start what is rotten already.
        world.on_effect("write-slot", move || {
            let part = Table::read(&disk).unwrap().part(Slot::A.data()).unwrap();
            part.write_all(20_000, b"rot").unwrap();
            part.flush().unwrap();
        });
        ends_with(&mut world, "1.1", &format!("{boot:?}: a rotten block in the running slot"));
        assert_eq!(downloads.load(Ordering::SeqCst), 3, "{}", world.told());

        let (mut world, downloads) = updating_by_delta(boot);
        world.faults = vec![FaultRule::always(Access::Read, Some(Cache(Slot::A.data())), Effect::Eio)];
        ends_with(&mut world, "1.1", &format!("{boot:?}: the running slot can't be read"));
        assert_eq!(downloads.load(Ordering::SeqCst), 3, "{}", world.told());
    }
}

#[test]
fn an_image_whose_digests_need_too_much_memory_is_refused_before_anything_is_written() {
    // 48 KiB of image have 384 bytes of digests, which may take half of the memory.
    for (limit, ends) in [(767, "1.0"), (768, "1.1")] {
        let mut world = updating(SystemdBoot);
        world.limit_memory(limit);
        let ended = world.settle().unwrap();
        assert_eq!(ended.version, ends, "{limit}: {}", world.told());
        if ends == "1.0" {
            let error = world.last_error.clone().expect("it says why");
            assert_eq!(error.category, NodeError::Unsuitable, "{}", error.message);
            assert!(error.message.contains("MemoryMax="), "{}", error.message);
            assert!(!world.story.iter().any(|line| line.contains("retire-entry")), "{}", world.told());
        }
    }
}

/// A signature list with the hash of an image: no signature tool is needed to make one that is accepted.
pub(crate) fn db_with(image: &[u8]) -> Vec<u8> {
    const LIST_HEADER: usize = 28;
    let digest = SignedImage::open(&image.to_vec()).unwrap().digest(&ring::digest::SHA256).unwrap();
    let mut list = Uuid::parse_str("c1c41626-504c-4092-aca9-41f936934328").unwrap().to_bytes_le().to_vec();
    for number in [LIST_HEADER + 48, 0, 48] {
        list.extend(u32::try_from(number).unwrap().to_le_bytes());
    }
    list.extend([0; 16]);
    list.extend(digest);
    list
}

#[test]
fn a_boot_image_that_is_refused_costs_the_other_slot_nothing() {
    for room in [true, false] {
        assert_eq!(refused_image(room, None), None, "room for a third image: {room}");
        let given_up = refused_image(room, Some(Safeguard::ImageBeforeSlot));
        assert!(given_up.is_some(), "room for a third image: {room}: nothing noticed that it was looked at too late");
    }
}

/// What a host with 1.1 gives up of its 1.0 for a 1.2 whose boot image is refused. If that is nothing, the image is enrolled,
/// and the update has to end well.
fn refused_image(room: bool, without: Option<Safeguard>) -> Option<String> {
    let mut world = updating(SystemdBoot);
    ends_with(&mut world, "1.1", "the first update");
    world.config.without = without;
    let (new, disk) = (release("1.2"), world.hardware.disk.clone());
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    let of_other = || esp.list("EFI/Linux").unwrap().into_iter().find(|file| file.name.starts_with("acme-os-1.0"));
    let other = of_other().unwrap();
    if !room {
        // There is room for the new boot image only where the other slot's is now.
        let needed = (1 << 20) + new.uki.len() as u64;
        let filler = esp.free().unwrap() + other.size / 2 - needed;
        esp.write("EFI/filler.bin", &vec![1; usize::try_from(filler).unwrap()]).unwrap();
        esp.sync().unwrap();
        assert!(esp.free().unwrap() < needed && esp.free().unwrap() + other.size > needed);
    }
    world.hardware.variables.set_bytes_of(GLOBAL, "SecureBoot", vec![1]);
    world.operator = Operator::new(reference(&new).unwrap(), Verdict::Commit);
    let before = world.story.len();
    assert_eq!(world.settle().unwrap().version, "1.1", "{}", world.told());
    let error = world.last_error.clone().unwrap();
    assert_eq!(error.category, NodeError::SecureBoot, "{}", error.message);
    let story = &world.story[before..];
    let given_up = |line: &&String| ["retire-entry", "mark-writing", "write-slot"].iter().any(|it| line.contains(it));
    if let Some(line) = story.iter().find(given_up) {
        return Some(line.clone());
    }
    let looked_by = if room { "stage-uki failed" } else { "preview-uki failed" };
    assert!(story.iter().any(|line| line.contains(looked_by)), "{}", world.told());
    assert_eq!(of_other(), Some(other), "the way back is what it was");
    assert_eq!(Table::read(&disk).unwrap().label(Slot::A.data()), "1.0");
    world.hardware.variables.set_bytes_of(IMAGE_SECURITY, "db", db_with(&new.uki));
    ends_with(&mut world, "1.2", "the hash is in db");
    None
}

#[test]
fn a_boot_image_that_the_firmware_would_refuse_is_never_armed() {
    let mut world = updating(SystemdBoot);
    world.hardware.variables.set_bytes_of(GLOBAL, "SecureBoot", vec![1]);
    let ended = world.settle().unwrap();
    assert_eq!(ended.version, "1.0", "{}", world.told());
    let error = world.last_error.clone().expect("it says why");
    assert_eq!(error.category, NodeError::SecureBoot, "{}", error.message);
    assert!(error.message.contains("not signed"), "{}", error.message);
    assert!(!world.story.iter().any(|line| line.contains("arm")), "{}", world.told());
    world.hardware.variables.set_bytes_of(IMAGE_SECURITY, "db", db_with(&release("1.1").uki));
    ends_with(&mut world, "1.1", "the hash is in db");
}

#[test]
fn a_slot_edited_behind_our_back_is_not_armed_but_written_again() {
    for boot in BACKENDS {
        for number in [Slot::B.data(), Slot::B.verity()] {
            let mut world = updating(boot);
            let disk = world.hardware.disk.clone();
            // After staging, when the grant came: the check before arming is what must see it.
            world.on_effect("verify", move || {
                let part = Table::read(&disk).unwrap().part(number).unwrap();
                part.write_all(100, b"edited").unwrap();
                part.flush().unwrap();
            });
            world.reverify();
            ends_with(&mut world, "1.1", &format!("{boot:?}: partition {number} edited"));
            assert!(world.story.iter().any(|line| line.contains("verify failed")), "{}", world.told());
        }
    }
}

#[test]
fn a_staged_boot_image_that_is_gone_or_edited_is_fetched_again() {
    for edited in [false, true] {
        let mut world = updating(SystemdBoot);
        let disk = world.hardware.disk.clone();
        world.on_effect("arm", move || {
            let esp = Table::read(&disk).unwrap().esp().unwrap();
            let waiting = |name: &str| name.starts_with("bascule-");
            let files = esp.list("EFI/Linux").unwrap();
            let file = files.iter().find(|file| waiting(&file.name)).expect("a boot image waits");
            let path = format!("EFI/Linux/{}", file.name);
            match edited {
                true => esp.write(&path, b"MZ but no boot image").unwrap(),
                false => esp.remove(&path).unwrap(),
            }
            esp.sync().unwrap();
        });
        ends_with(&mut world, "1.1", &format!("boot image edited: {edited}"));
    }
}

#[test]
fn an_armed_entry_whose_file_is_gone_boots_the_old_release_and_is_no_failure() {
    let mut world = updating(SystemdBoot);
    let disk = world.hardware.disk.clone();
    world.on_effect("reboot", move || {
        let esp = Table::read(&disk).unwrap().esp().unwrap();
        for file in esp.list("EFI/Linux").unwrap() {
            if file.name.contains('+') {
                esp.remove(&format!("EFI/Linux/{}", file.name)).unwrap();
            }
        }
        esp.sync().unwrap();
    });
    ends_with(&mut world, "1.1", "armed entry gone");
}

/// What a check of the file system makes of a rename that power loss cut, after which two names were on one chain of clusters: it empties
/// the second.
#[test]
fn an_empty_file_under_the_name_that_an_entry_is_to_get_keeps_no_trial_from_its_commit() {
    for effect in ["reboot", "bless"] {
        let mut world = updating(SystemdBoot);
        let disk = world.hardware.disk.clone();
        world.on_effect(effect, move || {
            let esp = Table::read(&disk).unwrap().esp().unwrap();
            esp.write("EFI/Linux/acme-os_1.1.efi", b"").unwrap();
            esp.sync().unwrap();
        });
        ends_with(&mut world, "1.1", &format!("an empty file since {effect}"));
    }
}

#[test]
fn clock_jumps_change_nothing() {
    for boot in BACKENDS {
        for days in [-4000, -1, 1, 4000] {
            for effect in ["write-slot", "arm", "bless"] {
                let mut world = updating(boot);
                let clock = Arc::clone(&world.clock);
                world.on_effect(effect, move || clock.jump(chrono::TimeDelta::days(days)));
                ends_with(&mut world, "1.1", &format!("{boot:?}: {days} days at {effect}"));
            }
        }
    }
}
