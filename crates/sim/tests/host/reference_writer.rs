//! The power-cut test itself, put to the test: the order of writes that docs/release-format.md prescribes survives every
//! cut, and each wrong order is found out. The shipped agent is held to the same in `power_cuts`.

use std::time::Instant;

use crate::support::{Mistake, TRIES, Writer, installed, machine, release};
use bascule_image::digest::Sha256;
use bascule_sim::disk::{Disk, Loss, Recording, Snapshot};
use bascule_sim::firmware::BootLoader;
use bascule_sim::layout::Slot;
use bascule_sim::tiny::TinyRelease;

/// What a run writes, and where the boot entry appears in it.
struct Run {
    boot: BootLoader,
    old: TinyRelease,
    new: TinyRelease,
    recording: Recording,
    /// Index of the first operation of `arm`.
    armed: usize,
}

/// 1.0 runs from A; B held 0.9, is staged with 1.1 and armed.
fn stage_and_arm(boot: BootLoader, mistake: Option<Mistake>) -> Run {
    let [oldest, old, new] = ["0.9", "1.0", "1.1"].map(release);
    let disk = Disk::from_snapshot(installed(boot, &old));
    let writer = Writer { disk: &disk, boot, mistake: None };
    writer.stage(Slot::B, &oldest);
    if boot == BootLoader::SystemdBoot {
        writer.arm(Slot::B, &oldest);
        let mut hardware = machine(boot, disk.snapshot().unwrap());
        assert_eq!(hardware.power_on().system.unwrap().version, "1.0", "1.0 sorts before 0.9");
    }
    let writer = Writer { disk: &disk, boot, mistake };
    disk.start_recording();
    if mistake == Some(Mistake::ArmedFirst) {
        writer.arm(Slot::B, &new);
    }
    writer.stage(Slot::B, &new);
    let armed = disk.recorded();
    if mistake != Some(Mistake::ArmedFirst) {
        writer.arm(Slot::B, &new);
    }
    Run { boot, old, new, recording: disk.take_recording().unwrap(), armed }
}

impl Run {
    /// Cuts at every point, each with nothing lost, all lost, and `seeds` times torn. The first failure's story, or the
    /// number of cuts that were survived.
    fn cut_everywhere(&self, seeds: u64) -> Result<usize, String> {
        let mut cuts = 0;
        for at in self.recording.cut_points() {
            let torn = (0..seeds).map(|seed| Loss::Torn(seed ^ (at as u64) << 32));
            for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(torn) {
                self.survives(at, loss)?;
                cuts += 1;
            }
        }
        Ok(cuts)
    }

    fn survives(&self, at: usize, loss: Loss) -> Result<(), String> {
        let pages = self.recording.cut(at, loss);
        let story =
            |what: String| format!("{what}\nafter a cut at {at} with {loss:?}:\n{}", self.recording.story(at, 25));
        // The old release stays whole as long as the new one is not committed: count all tries of the new one away.
        let mut hardware = machine(self.boot, pages);
        for _ in 0..=TRIES {
            let started = hardware.power_on();
            let Some(system) = started.system else {
                return Err(story(format!("nothing boots: {:?}", started.log)));
            };
            if started.log.len() > 1 {
                return Err(story(format!("something not whole was tried: {:?}", started.log)));
            }
            let is = |release: &TinyRelease| {
                let image = system.boot_image.is_none_or(|digest| digest == Sha256::of(&release.uki));
                image && system.root_hash == release.root_hash
            };
            if is(&self.old) {
                return Ok(());
            }
            if !is(&self.new) || at <= self.armed || !system.trial {
                return Err(story(format!("a wrong system boots: {:?}", started.log)));
            }
        }
        Err(story("the new release boots for ever".into()))
    }
}

#[test]
fn the_prescribed_order_survives_every_cut_of_stage_and_arm() {
    for boot in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        let begun = Instant::now();
        let run = stage_and_arm(boot, None);
        let cuts = run.cut_everywhere(6).unwrap_or_else(|story| panic!("{boot:?}: {story}"));
        println!("{boot:?}: {cuts} cuts in {:?}", begun.elapsed());
    }
}

#[test]
fn every_wrong_order_is_found_out() {
    for (boot, mistake) in [
        (BootLoader::SystemdBoot, Mistake::SlotNotFlushed),
        (BootLoader::SystemdBoot, Mistake::ImageNotSynced),
        (BootLoader::SystemdBoot, Mistake::TableNotFlushed),
        (BootLoader::SystemdBoot, Mistake::TableCopiesTogether),
        (BootLoader::SystemdBoot, Mistake::ArmedFirst),
        (BootLoader::Gptprio, Mistake::SlotNotFlushed),
        (BootLoader::Gptprio, Mistake::TableCopiesTogether),
    ] {
        let story = stage_and_arm(boot, Some(mistake)).cut_everywhere(16);
        assert!(story.is_err(), "{boot:?}: {mistake:?} was not found in {story:?} cuts");
    }
}

/// Boots, then runs `then` on the running disk, and cuts everywhere: some release of the two must come up, whole.
fn settle_cut(boot: BootLoader, good: bool) -> usize {
    let run = stage_and_arm(boot, None);
    let mut hardware = machine(boot, run.recording.cut(usize::MAX, Loss::Nothing));
    let system = hardware.power_on().system.unwrap();
    assert_eq!((system.version.as_str(), system.trial), ("1.1", true));
    hardware.disk.start_recording();
    let writer = Writer { disk: &hardware.disk, boot, mistake: None };
    match good {
        true => writer.commit(Slot::B, &run.new),
        false => writer.revert(Slot::B, &run.new),
    }
    let recording = hardware.disk.take_recording().unwrap();
    let mut cuts = 0;
    for at in recording.cut_points() {
        let pending = recording.pending_versions(at);
        assert!(pending < 12, "short enough for every subset");
        for mask in 0..1u64 << pending {
            let started = boots(boot, recording.cut(at, Loss::Chosen(mask)));
            let ends = at == recording.operations().len();
            let expected = if good { "1.1" } else { "1.0" };
            assert!(started == "1.0" || started == "1.1", "{}", recording.story(at, 20));
            assert!(!ends || started == expected, "{started} {}", recording.story(at, 20));
            cuts += 1;
        }
    }
    cuts
}

fn boots(boot: BootLoader, snapshot: Snapshot) -> String {
    machine(boot, snapshot).power_on().system.map(|system| system.version).unwrap_or_default()
}

#[test]
fn commit_and_revert_survive_every_subset_of_unflushed_sectors() {
    for boot in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        for good in [true, false] {
            println!("{boot:?}, commit {good}: {} cuts", settle_cut(boot, good));
        }
    }
}
