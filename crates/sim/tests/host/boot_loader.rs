//! The boot loader is updated with a release: after the commit, one place after the other, and whatever happens meanwhile each place has
//! a boot loader that is whole. The firmware of these machines starts one of the two files, and nothing without.

use std::sync::Arc;
use std::time::Instant;

use bascule_image::digest::Sha256;
use bascule_secure_boot::{GLOBAL, IMAGE_SECURITY};
use bascule_sim::disk::{Access, Cache, Disk, Effect, FaultRule, Loss, Operation, Snapshot};
use bascule_sim::firmware::BootLoader::SystemdBoot;
use bascule_sim::firmware::Loaders;
use bascule_sim::host::SimReleases;
use bascule_sim::host::releases::reference;
use bascule_sim::layout::{ESP, Table};
use bascule_sim::tiny::{TinyRelease, systemd_boot};

use crate::faults::{db_with, ends_with};
use crate::operator::{Operator, Verdict};
use crate::power_cuts::{Story, record};
use crate::support::{installed, release};
use crate::world::OneNode;

const OLD: &str = "256.9";
const NEW: &str = "257.1~rc2-1";
/// An older one than what is in place.
const OLDER: &str = "255";
const PLACES: [&str; 2] = ["EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"];
/// So many short names behind the boot loader's, and what is laid down beside it has its name in another sector.
const NAMES_OF_A_SECTOR: usize = 6;

/// Of different lengths, so that what is mixed is seen.
fn loader(version: &str) -> Vec<u8> {
    systemd_boot(version, if version == NEW { 2300 } else { 1500 })
}

fn loaders() -> Loaders {
    let known = [OLD, NEW, OLDER].map(|version| (Sha256::of(&loader(version)), version.to_owned()));
    Loaders { places: PLACES.map(str::to_owned).to_vec(), known: known.into() }
}

fn put(disk: &Disk, places: &[&str], version: &str) {
    let esp = Table::read(disk).unwrap().esp().unwrap();
    for place in places {
        esp.write(place, &loader(version)).unwrap();
    }
    esp.sync().unwrap();
}

/// A host with 1.0 and the old boot loader in both places, with so many more files in their folders.
fn host(more: usize) -> Snapshot {
    let disk = Disk::from_snapshot(installed(SystemdBoot, &release("1.0")));
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    for place in PLACES {
        let (folder, _) = place.rsplit_once('/').unwrap();
        esp.create_directory(folder).unwrap();
        esp.write(place, &loader(OLD)).unwrap();
        for number in 0..more {
            esp.write(&format!("{folder}/OTHER{number}.TXT"), b"").unwrap();
        }
    }
    esp.sync().unwrap();
    disk.snapshot().unwrap()
}

fn bringing(loader: &[u8], version: &str) -> TinyRelease {
    TinyRelease::bringing("acme-os", "1.1", 48 << 10, loader, version).unwrap()
}

/// A machine that runs 1.0 and is to go to `new`.
fn updating(snapshot: Snapshot, new: TinyRelease, verdict: Verdict) -> OneNode {
    let known = Arc::new(vec![release("1.0"), new]);
    let repository = Arc::new(SimReleases::of(known.iter()));
    let operator = Operator::new(reference(&known[1]).unwrap(), verdict);
    let mut world = OneNode::new(SystemdBoot, snapshot, operator, known, repository);
    world.hardware.loaders = Some(loaders());
    world
}

/// The versions in both places, on the medium: `None` for what the firmware would not start.
fn versions(disk: &Disk) -> Vec<Option<String>> {
    let medium = Disk::from_snapshot(disk.snapshot().unwrap());
    loaders().versions(&Table::read(&medium).unwrap().esp().unwrap())
}

fn both(version: &str) -> Vec<Option<String>> {
    vec![Some(version.to_owned()); 2]
}

/// A machine that has committed the release that brings the new boot loader, and has the old one in both places.
fn about_to(more: usize) -> OneNode {
    let mut world = updating(host(more), bringing(&loader(NEW), NEW), Verdict::Commit);
    ends_with(&mut world, "1.1", "the update");
    assert_eq!(versions(&world.hardware.disk), both(NEW), "{}", world.told());
    put(&world.hardware.disk, &PLACES, OLD);
    world.story.clear();
    world
}

#[test]
fn a_boot_loader_comes_with_its_release_once_that_is_committed() {
    let mut world = updating(host(0), bringing(&loader(NEW), NEW), Verdict::Commit);
    ends_with(&mut world, "1.1", "the update");
    assert_eq!(versions(&world.hardware.disk), both(NEW), "{}", world.told());
    let at = |effect: &str| world.story.iter().position(|line| line == effect);
    let (committed, placed) = (at("agent: bless").unwrap(), at("agent: place-loader").unwrap());
    assert!(committed < placed, "{}", world.told());
    assert_eq!(world.story.iter().filter(|line| *line == "agent: place-loader").count(), 2, "{}", world.told());
    assert_eq!(world.said_of_loader.as_deref(), Some("True Observed: "));
    // It starts the machine, and is what the next look goes by.
    ends_with(&mut world, "1.1", "another start");
    assert_eq!(world.hardware.variables.string("LoaderInfo"), Some(format!("systemd-boot {NEW}")));
}

#[test]
fn a_trial_that_is_given_up_brings_no_boot_loader() {
    let mut world = updating(host(0), bringing(&loader(NEW), NEW), Verdict::Revert);
    ends_with(&mut world, "1.0", "the way back");
    assert_eq!(versions(&world.hardware.disk), both(OLD), "{}", world.told());
    assert_eq!(world.said_of_loader, None, "the release that runs brings none");
}

/// A cut, then all the way to rest.
fn ends_well(story: &Story, at: usize, loss: Loss) -> Result<bool, String> {
    let snapshot = story.recording.cut(at, loss);
    let disk = Disk::from_snapshot(snapshot.clone());
    let mut world = story.world.back_at(story.moment(at), snapshot);
    let esp = Table::read(&disk).and_then(|table| table.esp()).map_err(|error| error.to_string())?;
    let shares = esp.check().map_err(|error| error.to_string())?.iter().any(|line| line.contains("shares a cluster"));
    let run = |world: &mut OneNode| {
        let found = versions(&disk);
        if found.contains(&None) {
            return Err(format!("{PLACES:?} have {found:?}"));
        }
        let ended = world.settle();
        story.judge(ended, world)?;
        let found = versions(&world.hardware.disk);
        if found == both(NEW) { Ok(shares) } else { Err(format!("at the end {PLACES:?} have {found:?}")) }
    };
    run(&mut world).map_err(|wrong| story.tell(at, loss, &wrong, &world))
}

#[test]
fn every_cut_of_a_whole_update_leaves_a_boot_loader_that_starts_and_ends_with_the_new_one() {
    let begun = Instant::now();
    let world = updating(host(0), bringing(&loader(NEW), NEW), Verdict::Commit);
    let story = record(world, "1.0", "1.1");
    let mut cuts = 0;
    for at in story.recording.cut_points() {
        for loss in [Loss::Nothing, Loss::Everything, Loss::Torn(at as u64)] {
            ends_well(&story, at, loss).unwrap_or_else(|wrong| panic!("{wrong}"));
            cuts += 1;
        }
    }
    println!("{cuts} cuts in {:?}", begun.elapsed());
}

#[test]
fn cuts_while_it_is_put_in_place_tear_it_in_every_way_and_it_is_whole() {
    let begun = Instant::now();
    let (mut cuts, mut on_one_chain) = (0, 0);
    for more in [0, NAMES_OF_A_SECTOR - 1, NAMES_OF_A_SECTOR] {
        let story = record(about_to(more), "1.1", "1.1");
        let begins =
            |operation: &Operation| matches!(operation, Operation::Note(text) if text == "agent: place-loader");
        let first = story.recording.operations().iter().position(begins).expect("it is put in place");
        for at in story.recording.cut_points().into_iter().filter(|at| *at >= first) {
            let pending = story.recording.pending_versions(at);
            let torn = (0..4).map(|seed| Loss::Torn((more as u64) << 48 | (at as u64) << 16 | seed));
            let chosen = (1..=4).contains(&pending).then(|| (0..1_u64 << pending).map(Loss::Chosen));
            let all = [Loss::Nothing, Loss::Everything].into_iter().chain(torn).chain(chosen.into_iter().flatten());
            for loss in all {
                let shares = ends_well(&story, at, loss).unwrap_or_else(|wrong| panic!("{more} more files: {wrong}"));
                on_one_chain += usize::from(shares);
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts, {on_one_chain} with two names on one chain, in {:?}", begun.elapsed());
    assert!(on_one_chain > 0, "no cut left two names on one file: the way out of that was not tried");
}

/// A disk that ignores flushes of the ESP does to the right order what a wrong one would do: the cuts have to find it.
#[test]
fn a_flush_that_is_left_out_is_found_out() {
    let mut world = about_to(NAMES_OF_A_SECTOR);
    world.faults = vec![FaultRule::always(Access::Flush, Some(Cache(ESP)), Effect::Lose)];
    let story = record(world, "1.1", "1.1");
    let mut cuts = story.recording.cut_points().into_iter().flat_map(|at| (0..60).map(move |seed| (at, seed)));
    let found = cuts.find(|(at, seed)| {
        let snapshot = story.recording.cut(*at, Loss::Torn(seed ^ (*at as u64) << 16));
        versions(&Disk::from_snapshot(snapshot)).contains(&None)
    });
    assert!(found.is_some(), "nothing noticed that the ESP was never flushed");
}

#[test]
fn an_agent_killed_while_it_is_put_in_place_goes_on_where_it_was() {
    for more in [0, NAMES_OF_A_SECTOR] {
        let story = record(about_to(more), "1.1", "1.1");
        for at in story.recording.cut_points() {
            let mut world = story.world.back_at(story.moment(at), story.recording.cut(at, Loss::Nothing));
            let ended = world.resume();
            story
                .judge(ended, &world)
                .unwrap_or_else(|wrong| panic!("{}", story.tell(at, Loss::Nothing, &wrong, &world)));
            assert_eq!(versions(&world.hardware.disk), both(NEW), "killed at {at}: {}", world.told());
        }
    }
}

#[test]
fn a_fault_that_strikes_once_costs_no_boot_loader() {
    let mut struck = 0;
    let about = about_to(NAMES_OF_A_SECTOR);
    let before = about.hardware.disk.snapshot().unwrap();
    for (access, effect) in [
        (Access::Read, Effect::Eio),
        (Access::Write, Effect::Eio),
        (Access::Write, Effect::Short(700)),
        (Access::Write, Effect::NoSpace),
        (Access::Flush, Effect::Eio),
    ] {
        for skip in 0..24 {
            let moment = about.moments.last().expect("it has run");
            let mut world = about.back_at(moment, before.clone());
            world.faults = vec![FaultRule::once(access, Some(Cache(ESP)), skip, effect)];
            let what = format!("{effect:?} at {access:?} {skip}");
            ends_with(&mut world, "1.1", &what);
            assert!(!versions(&world.hardware.disk).contains(&None), "{what}: {}", world.told());
            // What a failed flush has lost the page cache has all the same: that place is done again, and not with the next start.
            if access == Access::Flush {
                assert_eq!(versions(&world.hardware.disk), both(NEW), "{what}: {}", world.told());
            }
            ends_with(&mut world, "1.1", &what);
            assert_eq!(versions(&world.hardware.disk), both(NEW), "{what}: {}", world.told());
            struck += 1;
        }
    }
    println!("{struck} faults");
}

#[test]
fn an_esp_that_always_fails_keeps_what_it_has_and_says_so() {
    for (access, effect, says) in [
        (Access::Write, Effect::ReadOnly, "False Storage: "),
        (Access::Write, Effect::NoSpace, "False Space: "),
        (Access::Flush, Effect::Eio, "False Storage: "),
    ] {
        let mut world = about_to(0);
        world.faults = vec![FaultRule::always(access, Some(Cache(ESP)), effect)];
        ends_with(&mut world, "1.1", &format!("{effect:?}"));
        assert_eq!(versions(&world.hardware.disk), both(OLD), "{effect:?}: {}", world.told());
        let said = world.said_of_loader.clone().unwrap_or_default();
        assert!(said.starts_with(says), "{effect:?}: {said}");
        // Nothing else waits for it.
        assert_eq!(world.last_error, None, "{effect:?}: {}", world.told());
        world.faults.clear();
        world.hardware.disk.clear_faults();
        ends_with(&mut world, "1.1", "mended");
        assert_eq!(versions(&world.hardware.disk), both(NEW), "{effect:?}, mended: {}", world.told());
    }
}

/// The release is taken; its boot loader is not, and the machine keeps both of its own. What is said, and how often it was tried.
fn refused(new: TinyRelease) -> (String, usize) {
    let mut world = updating(host(0), new, Verdict::Commit);
    ends_with(&mut world, "1.1", "the update");
    assert_eq!(versions(&world.hardware.disk), both(OLD), "{}", world.told());
    assert_eq!(world.last_error, None, "{}", world.told());
    let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
    for place in PLACES {
        let (folder, _) = place.rsplit_once('/').unwrap();
        assert_eq!(esp.list(folder).unwrap().len(), 1, "nothing is left beside");
    }
    let tried = world.story.iter().filter(|line| *line == "agent: place-loader").count();
    (world.said_of_loader.clone().unwrap_or_default(), tried)
}

#[test]
fn what_is_not_what_was_signed_or_not_for_this_machine_is_refused_before_anything_is_written() {
    let good = loader(NEW);
    let mut arm = good.clone();
    arm[68..70].copy_from_slice(&0xAA64_u16.to_le_bytes());
    let mut changed = bringing(&good, NEW);
    if let Some(brought) = &mut changed.manifest.boot_loader {
        brought.digest = Sha256::of(b"another").into();
    }
    changed.manifest_bytes = changed.manifest.to_bytes().unwrap();
    for (new, says) in [
        (bringing(b"#!/bin/sh\n", NEW), "False Unsuitable: "),
        (bringing(&arm, NEW), "False Unsuitable: "),
        (bringing(&good, "300"), "False Unsuitable: "),
        (changed, "False Trust: "),
    ] {
        let (said, tried) = refused(new);
        assert!(said.starts_with(says) && tried > 0, "{tried}: {said}");
    }
}

#[test]
fn an_older_one_is_not_even_tried_unless_the_release_says_so() {
    let older = bringing(&loader(OLDER), OLDER);
    let (said, tried) = refused(older.clone());
    assert!(said.starts_with("False Older: ") && said.contains(OLDER) && said.contains(OLD), "{said}");
    assert_eq!(tried, 0);
    let mut down = older;
    if let Some(brought) = &mut down.manifest.boot_loader {
        brought.downgrade = true;
    }
    down.manifest_bytes = down.manifest.to_bytes().unwrap();
    let mut world = updating(host(0), down, Verdict::Commit);
    ends_with(&mut world, "1.1", "the update");
    assert_eq!(versions(&world.hardware.disk), both(OLDER), "{}", world.told());
}

#[test]
fn a_boot_loader_that_the_firmware_would_refuse_is_never_written() {
    let mut world = about_to(0);
    world.hardware.variables.set_bytes_of(GLOBAL, "SecureBoot", vec![1]);
    let images = db_with(&bringing(&loader(NEW), NEW).uki);
    world.hardware.variables.set_bytes_of(IMAGE_SECURITY, "db", images.clone());
    world.hardware.disk.start_recording();
    ends_with(&mut world, "1.1", "not in db");
    let said = world.said_of_loader.clone().unwrap_or_default();
    assert!(said.starts_with("False SecureBoot: ") && said.contains("not signed"), "{said}");
    let recording = world.hardware.disk.take_recording().unwrap();
    let written = |operation: &Operation| matches!(operation, Operation::Write { cache, .. } if *cache == Cache(ESP));
    assert!(!recording.operations().iter().any(written), "{}", world.told());
    world.hardware.variables.set_bytes_of(IMAGE_SECURITY, "db", [images, db_with(&loader(NEW))].concat());
    ends_with(&mut world, "1.1", "in db");
    assert_eq!(versions(&world.hardware.disk), both(NEW), "{}", world.told());
}

#[test]
fn where_there_is_no_room_nothing_is_begun() {
    let mut world = about_to(0);
    let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
    esp.write("EFI/filler.bin", &vec![1; usize::try_from(esp.free().unwrap()).unwrap() - (200 << 10)]).unwrap();
    esp.sync().unwrap();
    ends_with(&mut world, "1.1", "full");
    let said = world.said_of_loader.clone().unwrap_or_default();
    assert!(said.starts_with("False Space: ") && said.contains("remove what does not belong there"), "{said}");
    assert!(!world.story.iter().any(|line| line == "agent: place-loader"), "{}", world.told());
    esp.remove("EFI/filler.bin").unwrap();
    esp.sync().unwrap();
    ends_with(&mut world, "1.1", "room again");
    assert_eq!(versions(&world.hardware.disk), both(NEW), "{}", world.told());
}

#[test]
fn shim_in_the_fallback_place_stays_what_it_is() {
    let mut world = about_to(0);
    let [first, fallback] = PLACES;
    let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
    esp.write(fallback, b"MZ shim").unwrap();
    esp.sync().unwrap();
    ends_with(&mut world, "1.1", "shim");
    assert_eq!(esp.read(fallback, 100).unwrap(), b"MZ shim");
    assert_eq!(esp.read(first, 1 << 20).unwrap(), loader(NEW));
    let said = world.said_of_loader.clone().unwrap_or_default();
    assert!(said.starts_with("True Observed: ") && said.contains("left alone"), "{said}");
}

/// What `fsck.vfat -a` leaves of the second of two names on one chain.
#[test]
fn a_copy_that_a_check_of_the_file_system_emptied_is_put_back() {
    for place in PLACES {
        let mut world = about_to(0);
        let esp = Table::read(&world.hardware.disk).unwrap().esp().unwrap();
        esp.write(place, b"").unwrap();
        esp.sync().unwrap();
        ends_with(&mut world, "1.1", place);
        assert_eq!(versions(&world.hardware.disk), both(NEW), "{place}: {}", world.told());
    }
}
