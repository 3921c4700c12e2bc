//! The shipped agent under power cuts: whole stories (stage, arm, boot, commit or revert) are recorded once, then cut at
//! every point, with what was not flushed kept, lost or torn. A known release must come up whole at the first start, and
//! the agent that starts on what is left must bring the story to the same end.

use std::sync::Arc;
use std::time::Instant;

use bascule_sim::disk::{Access, Cache, Disk, Effect, FaultRule, Loss, Recording, Snapshot};
use bascule_sim::esp::FatType;
use bascule_sim::firmware::BootLoader::{self, Gptprio, SystemdBoot};
use bascule_sim::firmware::entries;
use bascule_sim::host::SimReleases;
use bascule_sim::host::releases::reference;
use bascule_sim::layout::{ESP, Sizes, Table};
use bascule_sim::tiny::TinyRelease;

use crate::operator::{Operator, Verdict};
use crate::support::{installed, installed_on, machine, release};
use crate::world::{Moment, OneNode, Wrong};

const BACKENDS: [BootLoader; 2] = [SystemdBoot, Gptprio];

/// A recorded story.
pub(crate) struct Story {
    pub(crate) world: OneNode,
    pub(crate) recording: Recording,
    /// What runs when it begins, and when it ends well.
    before: &'static str,
    after: &'static str,
}

fn releases() -> Arc<Vec<TinyRelease>> {
    Arc::new(["1.0", "1.1", "1.2"].map(release).to_vec())
}

fn target(known: &[TinyRelease], version: &str) -> bascule_api::ReleaseRef {
    reference(known.iter().find(|release| release.version == version).unwrap()).unwrap()
}

/// A world on which `from` runs and whose operator wants `to`.
pub(crate) fn world(boot: BootLoader, snapshot: Snapshot, to: &str, verdict: Verdict) -> OneNode {
    let known = releases();
    let repository = Arc::new(SimReleases::of(known.iter()));
    OneNode::new(boot, snapshot, Operator::new(target(&known, to), verdict), known, repository)
}

/// The first update of a new host: slot B is empty.
fn first_update(boot: BootLoader, verdict: Verdict) -> Story {
    let snapshot = installed(boot, &release("1.0"));
    record(world(boot, snapshot, "1.1", verdict), "1.0", if verdict == Verdict::Commit { "1.1" } else { "1.0" })
}

/// The second update: slot A holds 1.0, which was left behind, and is overwritten by 1.2 while 1.1 runs from B.
fn second_update(boot: BootLoader, verdict: Verdict) -> Story {
    let mut first = world(boot, installed(boot, &release("1.0")), "1.1", Verdict::Commit);
    let system = first.settle().unwrap_or_else(|wrong| panic!("{boot:?}: {wrong}\n{}", first.told()));
    assert_eq!(system.version, "1.1", "{}", first.told());
    let snapshot = first.hardware.disk.snapshot().unwrap();
    record(world(boot, snapshot, "1.2", verdict), "1.1", if verdict == Verdict::Commit { "1.2" } else { "1.1" })
}

pub(crate) fn record(mut world: OneNode, before: &'static str, after: &'static str) -> Story {
    world.hardware.disk.start_recording();
    let ended = world.settle();
    let recording = world.hardware.disk.take_recording().unwrap();
    let story = world.told();
    let system = ended.unwrap_or_else(|wrong| panic!("{wrong}\n{story}"));
    assert_eq!(system.version, after, "the story without a cut:\n{story}");
    sound(&world).unwrap_or_else(|wrong| panic!("{wrong}\n{story}"));
    Story { world, recording, before, after }
}

/// What must hold at rest: the next start brings the same release and counts nothing, both copies of the table are the
/// same, and the ESP is whole.
pub(crate) fn sound(world: &OneNode) -> Result<(), Wrong> {
    let (runs, next) = (world.running().ok_or("nothing runs")?, world.next_start()?);
    if (&next.version, next.trial) != (&runs.version, false) {
        return Err(format!("{} runs, and {} boots next (trial: {})", runs.version, next.version, next.trial));
    }
    let disk = world.hardware.disk.clone();
    let table = Table::read(&disk).map_err(|error| error.to_string())?;
    if !table.copies_agree() {
        return Err("the copies of the partition table differ".into());
    }
    if world.hardware.boot == SystemdBoot {
        let esp = table.esp().map_err(|error| error.to_string())?;
        let damage = esp.check().map_err(|error| error.to_string())?;
        if !damage.is_empty() {
            return Err(format!("the ESP is damaged at rest: {damage:?}"));
        }
        let entries = entries::load(&esp).map_err(|error| error.to_string())?;
        let files: Vec<_> = entries.iter().map(|entry| entry.file.clone()).collect();
        if entries.len() > 2 || entries.first().is_none_or(|entry| entry.tries.is_some()) {
            return Err(format!("unexpected boot entries at rest: {files:?}"));
        }
    }
    Ok(())
}

impl Story {
    pub(crate) fn moment(&self, at: usize) -> &Moment {
        let next = self.world.moments.partition_point(|moment| moment.recorded <= at);
        &self.world.moments[next.saturating_sub(1)]
    }

    /// Only what the firmware makes of it: quick.
    fn boots(&self, at: usize, loss: Loss) -> Result<(), String> {
        let moment = self.moment(at);
        let mut world = self.world.back_at(moment, self.recording.cut(at, loss));
        let booted = world.power_on().and_then(|system| match moment.armed || system.version == self.before {
            true => Ok(()),
            false => Err(format!("{} runs although nothing was armed", system.version)),
        });
        booted.map_err(|wrong| self.tell(at, loss, &wrong, &world))
    }

    /// All the way to rest.
    fn ends_well(&self, at: usize, loss: Loss) -> Result<(), String> {
        let mut world = self.world.back_at(self.moment(at), self.recording.cut(at, loss));
        let ended = world.settle();
        self.judge(ended, &world).map_err(|wrong| self.tell(at, loss, &wrong, &world))
    }

    /// Not a power cut but the end of the agent: the system goes on, and so does its page cache.
    fn survives_a_kill(&self, at: usize) -> Result<(), String> {
        let mut world = self.world.back_at(self.moment(at), self.recording.cut(at, Loss::Nothing));
        let ended = world.resume();
        self.judge(ended, &world).map_err(|wrong| self.tell(at, Loss::Nothing, &wrong, &world))
    }

    pub(crate) fn judge(
        &self,
        ended: Result<bascule_sim::machine::System, Wrong>,
        world: &OneNode,
    ) -> Result<(), Wrong> {
        let system = ended?;
        if system.version != self.after {
            return Err(format!("{} runs at the end, not {}", system.version, self.after));
        }
        sound(world)
    }

    pub(crate) fn tell(&self, at: usize, loss: Loss, wrong: &str, world: &OneNode) -> String {
        format!(
            "{:?}, {} to {}: {wrong}\nbefore the cut at {at} of {} with {loss:?}:\n{}after it:\n  {}",
            self.world.hardware.boot,
            self.before,
            self.after,
            self.recording.operations().len(),
            self.recording.story(at, 40),
            world.told(),
        )
    }
}

/// A disk that ignores one kind of flush does to the right order of writes what a wrong order would do: the cuts above
/// must find it, or they prove nothing.
#[test]
fn a_flush_that_is_left_out_is_found_out() {
    for boot in BACKENDS {
        let mut left_out = vec![Cache::WHOLE, Cache(4), Cache(5)];
        if boot == SystemdBoot {
            left_out.push(Cache(ESP));
        }
        for cache in left_out {
            let mut world = world(boot, installed(boot, &release("1.0")), "1.1", Verdict::Commit);
            world.faults = vec![FaultRule::always(Access::Flush, Some(cache), Effect::Lose)];
            let story = record(world, "1.0", "1.1");
            let mut cuts = story.recording.cut_points().into_iter().flat_map(|at| (0..60).map(move |seed| (at, seed)));
            let found = cuts.find(|(at, seed)| story.boots(*at, Loss::Torn(seed ^ (*at as u64) << 16)).is_err());
            assert!(found.is_some(), "{boot:?}: nothing noticed that {cache} was never flushed");
        }
    }
}

fn stories(boot: BootLoader) -> Vec<Story> {
    vec![
        first_update(boot, Verdict::Commit),
        first_update(boot, Verdict::Revert),
        second_update(boot, Verdict::Commit),
        second_update(boot, Verdict::Revert),
    ]
}

#[test]
fn every_cut_with_all_or_nothing_lost_ends_well() {
    for boot in BACKENDS {
        let begun = Instant::now();
        let mut cuts = 0;
        for story in stories(boot) {
            for at in story.recording.cut_points() {
                for loss in [Loss::Nothing, Loss::Everything] {
                    story.ends_well(at, loss).unwrap_or_else(|wrong| panic!("{wrong}"));
                    cuts += 1;
                }
            }
        }
        println!("{boot:?}: {cuts} cuts in {:?}", begun.elapsed());
    }
}

#[test]
fn torn_cuts_end_well() {
    for boot in BACKENDS {
        let begun = Instant::now();
        let mut cuts = 0;
        for (number, story) in stories(boot).iter().enumerate() {
            for at in story.recording.cut_points() {
                if story.recording.pending_versions(at) == 0 {
                    continue;
                }
                for seed in 0..3 {
                    let seed = (number as u64) << 48 | (at as u64) << 16 | seed;
                    story.ends_well(at, Loss::Torn(seed)).unwrap_or_else(|wrong| panic!("{wrong}"));
                    cuts += 1;
                }
            }
        }
        println!("{boot:?}: {cuts} torn cuts in {:?}", begun.elapsed());
    }
}

/// Boot loader, kind of FAT, bytes of a sector, bytes of the boot partition. The other cuts have the smallest disk: FAT12, 512.
const KINDS: [(BootLoader, FatType, u64, u64); 6] = [
    (SystemdBoot, FatType::Fat16, 512, 4 << 20),
    (SystemdBoot, FatType::Fat32, 512, 40 << 20),
    (SystemdBoot, FatType::Fat12, 4096, 8 << 20),
    (SystemdBoot, FatType::Fat16, 4096, 24 << 20),
    (SystemdBoot, FatType::Fat32, 4096, 272 << 20),
    (Gptprio, FatType::Fat12, 4096, 8 << 20),
];

/// Tables and entries lie elsewhere with each kind, other sectors hold them together, and FAT32 keeps count of what is free. Where a
/// sector has 4096 bytes the disk tears at 512 all the same, as one does that only says it had no smaller ones.
#[test]
fn every_kind_of_fat_and_either_size_of_sectors_ends_well_after_a_cut() {
    for (boot, kind, sector, esp) in KINDS {
        let begun = Instant::now();
        let snapshot = installed_on(Sizes { esp, sector, ..Sizes::tiny() }, boot, &release("1.0"));
        let table = Table::read(&Disk::from_snapshot(snapshot.clone())).unwrap();
        assert_eq!((table.esp().unwrap().kind().unwrap(), table.sector()), (kind, sector));
        let mut cuts = 0;
        for (verdict, after) in [(Verdict::Commit, "1.1"), (Verdict::Revert, "1.0")] {
            let story = record(world(boot, snapshot.clone(), "1.1", verdict), "1.0", after);
            for (number, at) in story.recording.cut_points().into_iter().enumerate() {
                let losses = [Loss::Torn((at as u64) << 16 | esp), Loss::Everything, Loss::Nothing];
                // All of them start something; of three one goes all the way, in turn: a disk of this size takes its time.
                for (turn, loss) in losses.into_iter().enumerate() {
                    let outcome = if turn == number % 3 { story.ends_well(at, loss) } else { story.boots(at, loss) };
                    outcome.unwrap_or_else(|wrong| panic!("{kind:?}, sectors of {sector}: {wrong}"));
                    cuts += 1;
                }
            }
        }
        println!("{boot:?}, {kind:?}, sectors of {sector}: {cuts} cuts in {:?}", begun.elapsed());
    }
}

#[test]
fn short_gaps_between_flushes_are_cut_in_every_way() {
    for boot in BACKENDS {
        let begun = Instant::now();
        let mut cuts = 0;
        for story in stories(boot) {
            for at in story.recording.cut_points() {
                let pending = story.recording.pending_versions(at);
                if (1..=6).contains(&pending) {
                    for mask in 1..(1u64 << pending) - 1 {
                        story.ends_well(at, Loss::Chosen(mask)).unwrap_or_else(|wrong| panic!("{wrong}"));
                        cuts += 1;
                    }
                }
            }
        }
        println!("{boot:?}: {cuts} chosen cuts in {:?}", begun.elapsed());
    }
}

#[test]
fn twenty_thousand_seeded_cuts_boot_a_whole_release() {
    const CUTS: u64 = 20_000;
    let begun = Instant::now();
    let stories: Vec<Story> = BACKENDS.into_iter().flat_map(stories).collect();
    let recorded = begun.elapsed();
    for seed in 0..CUTS {
        let story = &stories[(seed % stories.len() as u64) as usize];
        let points = story.recording.cut_points();
        // A different point each time round, spread over the whole story by a step that shares no factor with most lengths.
        let at = points[(seed / stories.len() as u64 * 7919 % points.len() as u64) as usize];
        story.boots(at, Loss::Torn(seed)).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    println!("{CUTS} cuts in {:?}, after {recorded:?} of recording", begun.elapsed());
}

/// Directory entries of 32 bytes in a sector of 512.
const PLACES: usize = 16;

/// A long name on FAT is several directory entries, and where those lie in two sectors, power loss can leave the short name
/// alone, which has no counter. So many files stand before the entries of this story, and move its names through every place
/// of a sector.
fn update_with_names_moved_by(place: usize) -> Story {
    let disk = Disk::from_snapshot(installed(SystemdBoot, &release("1.0")));
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    for number in 0..place {
        esp.write(&format!("EFI/Linux/OTHER{number}.TXT"), b"").unwrap();
    }
    esp.sync().unwrap();
    let world = world(SystemdBoot, disk.snapshot().unwrap(), "1.1", Verdict::Commit);
    record(world, "1.0", "1.1")
}

/// Where the boot loader's own counting down tore a name, the release is a trial all the same.
#[test]
fn an_entry_whose_name_was_torn_is_still_a_trial() {
    let begun = Instant::now();
    let (mut cuts, mut lost) = (0, 0);
    for place in 0..PLACES {
        let story = update_with_names_moved_by(place);
        for at in story.recording.cut_points() {
            let moment = story.moment(at);
            if !moment.armed || moment.blessed || story.recording.pending_versions(at) == 0 {
                continue;
            }
            for seed in 0..8 {
                let loss = Loss::Torn((place as u64) << 48 | (at as u64) << 16 | seed);
                let mut world = story.world.back_at(moment, story.recording.cut(at, loss));
                world.torn_names = true;
                let ended = world.settle();
                story.judge(ended, &world).unwrap_or_else(|wrong| panic!("{}", story.tell(at, loss, &wrong, &world)));
                lost += world.lost_counters;
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts, {lost} lost counters, in {:?}", begun.elapsed());
    assert!(lost > 0, "no cut tore a name: this proves nothing");
}

/// Many systems check the boot partition in each boot, once the boot loader is done with it. Of two names that a cut left on one chain of
/// clusters the check empties the second, and it cuts what has clusters that are free.
#[test]
fn a_check_of_the_boot_partition_after_a_cut_costs_no_update_its_end() {
    let begun = Instant::now();
    let mut cuts = 0;
    for place in 0..PLACES {
        let story = update_with_names_moved_by(place);
        for at in story.recording.cut_points() {
            let moment = story.moment(at);
            if !moment.armed || story.recording.pending_versions(at) == 0 {
                continue;
            }
            for seed in 0..4 {
                let loss = Loss::Torn((place as u64) << 48 | (at as u64) << 16 | seed);
                let snapshot = story.recording.cut(at, loss);
                let esp = Table::read(&Disk::from_snapshot(snapshot.clone())).unwrap().esp().unwrap();
                if esp.check().unwrap().is_empty() {
                    continue;
                }
                let mut world = story.world.back_at(moment, snapshot);
                world.torn_names = true;
                world.checked = true;
                let ended = world.settle();
                story.judge(ended, &world).unwrap_or_else(|wrong| panic!("{}", story.tell(at, loss, &wrong, &world)));
                // An emptied name kept the boot loader from counting, which says nothing of it.
                let blamed = world.story.iter().any(|line| line.contains("was seen not to count"));
                assert!(!blamed, "{}", story.tell(at, loss, "the boot loader is blamed", &world));
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts that a check had something to say of, in {:?}", begun.elapsed());
    assert!(cuts > 0, "no cut left anything to be corrected: this proves nothing");
}

/// While the agent arms, a torn name is not even started: not before the name is whole is the image a program. What lies
/// there is cleared away, and the update ends as ever.
#[test]
fn a_name_torn_while_arming_starts_nothing() {
    let begun = Instant::now();
    let (mut cuts, mut torn) = (0, 0);
    let new = release("1.1");
    for place in 0..PLACES {
        let story = update_with_names_moved_by(place);
        for at in story.recording.cut_points() {
            let moment = story.moment(at);
            let arming = moment.armed && moment.system.as_ref().is_some_and(|system| system.version == story.before);
            if !arming || story.recording.pending_versions(at) == 0 {
                continue;
            }
            for seed in 0..16 {
                let loss = Loss::Torn((place as u64) << 48 | (at as u64) << 16 | seed);
                let snapshot = story.recording.cut(at, loss);
                let mut world = story.world.back_at(moment, snapshot.clone());
                // A release that was armed and boots without its counter is an error here.
                let ended = world.settle();
                story.judge(ended, &world).unwrap_or_else(|wrong| panic!("{}", story.tell(at, loss, &wrong, &world)));
                cuts += 1;
                torn += usize::from(would_be_started_without_its_placeholder(snapshot, &new));
            }
        }
    }
    println!("{cuts} cuts, {torn} torn names, in {:?}", begun.elapsed());
    assert!(torn > 0, "no cut tore a name: this proves nothing");
}

/// Whether a cut left the short name of `new` alone, and the boot loader would start it uncounted if it were a program: what
/// an agent that only renames would have left.
fn would_be_started_without_its_placeholder(snapshot: Snapshot, new: &TinyRelease) -> bool {
    let disk = Disk::from_snapshot(snapshot);
    let esp = Table::read(&disk).unwrap().esp().unwrap();
    let short = |name: &str| name.contains('~') && name.ends_with(".EFI");
    let Some(alone) = esp.list("EFI/Linux").unwrap().into_iter().find(|file| short(&file.name)) else { return false };
    esp.write_start(&format!("EFI/Linux/{}", alone.name), &new.uki[..512]).unwrap();
    esp.sync().unwrap();
    let started = machine(SystemdBoot, disk.snapshot().unwrap()).power_on();
    started.system.is_some_and(|system| system.version == "1.1" && !system.trial)
}

#[test]
fn an_agent_killed_between_any_two_effects_ends_in_the_same_state() {
    for boot in BACKENDS {
        let begun = Instant::now();
        let mut kills = 0;
        for story in stories(boot) {
            for at in story.recording.cut_points() {
                story.survives_a_kill(at).unwrap_or_else(|wrong| panic!("{wrong}"));
                kills += 1;
            }
        }
        println!("{boot:?}: {kills} kills in {:?}", begun.elapsed());
    }
}
