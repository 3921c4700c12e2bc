//! Which machines get another boot loader, in which steps, and which are left alone.

use bascule_api::{Product, SlotName, Version};
use uuid::Uuid;

use super::super::{BootInventory, PartitionFacts};
use super::*;
use crate::{
    Armed, BootFacts, Committed, Config, Extent, Journal, Partition, PerSlot, SlotContent, SlotFacts, Space,
    TableHealth,
};

const ESP: Uuid = Uuid::from_u128(7);

fn digest(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn loader(version: &str, byte: u8) -> BootLoader {
    BootLoader { version: version.to_owned(), size: 1000, digest: digest(byte), downgrade: false }
}

/// A copy whose content follows from its version's digest.
fn copy(place: LoaderPlace, version: &str, byte: u8) -> LoaderCopy {
    let (folder, name) = place.file(Architecture::X86_64);
    let content = LoaderContent::SystemdBoot(version.to_owned());
    LoaderCopy { place, path: format!("{folder}/{name}"), size: 1000, content, digest: Some(digest(byte)) }
}

fn both(version: &str, byte: u8) -> Vec<LoaderCopy> {
    LoaderPlace::ALL.map(|place| copy(place, version, byte)).to_vec()
}

fn beside(place: LoaderPlace, name: &str, size: u64, byte: u8) -> LoaderCopy {
    let (folder, _) = place.file(Architecture::X86_64);
    let (content, digest) = (LoaderContent::Other, Some(digest(byte)));
    LoaderCopy { place, path: format!("{folder}/{name}"), size, content, digest }
}

fn slot(content: SlotContent, entry: Entry) -> SlotFacts {
    let extent = Extent { start: 0, length: 1 << 20 };
    let partition = Partition { number: 1, extent, uuid: Uuid::nil(), label: String::new(), attributes: 0 };
    SlotFacts { data: partition.clone(), verity: partition, content, entry, entry_doubled: false }
}

/// A machine that runs 1.1, committed, started by systemd-boot 256 from its own ESP.
fn machine(brought: BootLoader, copies: Vec<LoaderCopy>) -> (State, Facts) {
    let root_hash = RootHash::from_bytes(&[1; 32]);
    let facts = LoaderFacts {
        info: Some("systemd-boot 256".to_owned()),
        device: Some(ESP),
        image: Some("\\EFI\\systemd\\systemd-bootx64.efi".to_owned()),
        copies,
        ..LoaderFacts::default()
    };
    let space = Space { free: 8 << 20, total: 16 << 20 };
    let partitions = vec![PartitionFacts { partition: BootPartition::Esp, uuid: Some(ESP), space, read_only: false }];
    let inventory = BootInventory { partitions, loader: facts, ..BootInventory::default() };
    let facts = Facts {
        boot_id: "boot".to_owned(),
        product: Product::parse("acme-os").unwrap(),
        architecture: Architecture::X86_64,
        version: Version::parse("1.1").unwrap(),
        state_version: None,
        root_hash: root_hash.clone(),
        booted: SlotName::A,
        slots: PerSlot { a: slot(SlotContent::Foreign, Entry::Good), b: slot(SlotContent::Empty, Entry::None) },
        boot: BootFacts::read(BootControlBackend::SystemdBoot, inventory),
        table: TableHealth::Good,
        guard: None,
        guard_unread: None,
        failing_units: Vec::new(),
    };
    let mut journal = Journal::default();
    journal.boot_loaders.note(&root_hash, Some(&brought), &root_hash);
    journal.committed = Some(Committed { root_hash, at: chrono::DateTime::UNIX_EPOCH });
    (State { journal: Some(journal), ..State::new(Config::default()) }, facts)
}

/// What is done: the paths that are replaced and removed, in order.
fn done((state, facts): &(State, Facts)) -> Vec<String> {
    let Some(Verdict::Replace(step)) = judge(state, facts) else { return Vec::new() };
    let told = |change: &LoaderChange| match change {
        LoaderChange::Replace { path, beside, .. } => format!("{path} by {beside}"),
        LoaderChange::Remove { path, .. } => format!("no {path}"),
    };
    step.changes.iter().map(told).collect()
}

fn left((state, facts): &(State, Facts)) -> Option<LeftBecause> {
    match judge(state, facts) {
        Some(Verdict::Left(because, why)) => {
            assert!(why.len() > 20, "{why}");
            Some(because)
        }
        _ => None,
    }
}

const FIRST: &str = "EFI/systemd/systemd-bootx64.efi by EFI/systemd/BASCULE.NEW";
const SECOND: &str = "EFI/BOOT/BOOTX64.EFI by EFI/BOOT/BASCULE.NEW";

#[test]
fn one_place_is_done_before_the_other_is_touched() {
    assert_eq!(done(&machine(loader("257", 2), both("256", 1))), [FIRST]);
    let half = vec![copy(LoaderPlace::Systemd, "257", 2), copy(LoaderPlace::Fallback, "256", 1)];
    assert_eq!(done(&machine(loader("257", 2), half)), [SECOND]);
    let (state, facts) = machine(loader("257", 2), both("257", 2));
    assert_eq!(judge(&state, &facts), Some(Verdict::Current(None)));
    // Of one version with another signature.
    assert_eq!(done(&machine(loader("256", 3), both("256", 1))), [FIRST]);
    // What is not there is not made.
    assert_eq!(done(&machine(loader("257", 2), vec![copy(LoaderPlace::Fallback, "256", 1)])), [SECOND]);
}

#[test]
fn a_release_that_brings_none_says_nothing() {
    let (mut state, facts) = machine(loader("257", 2), both("256", 1));
    state.journal = Some(Journal { boot_loaders: LoaderMemory::default(), ..Journal::default() });
    assert_eq!(judge(&state, &facts), None);
    assert_eq!(judge(&State::new(Config::default()), &facts), None, "nor before the journal was read");
}

#[test]
fn it_never_goes_back_unless_the_release_says_so() {
    let older = |downgrade| machine(BootLoader { downgrade, ..loader("255.9", 2) }, both("256", 1));
    assert_eq!(left(&older(false)), Some(LeftBecause::Older));
    assert_eq!(done(&older(true)), [FIRST]);
    // A pre-release is older than the release, and one of two copies counts, and what started the machine.
    assert_eq!(left(&machine(loader("256~rc1", 2), both("256", 1))), Some(LeftBecause::Older));
    let mixed = vec![copy(LoaderPlace::Systemd, "255", 1), copy(LoaderPlace::Fallback, "258", 3)];
    assert_eq!(left(&machine(loader("257", 2), mixed)), Some(LeftBecause::Older));
    assert_eq!(left(&machine(loader("255.9", 2), both("255", 1))), Some(LeftBecause::Older));
}

#[test]
fn what_is_somebody_elses_is_left_alone() {
    let shim = LoaderCopy { content: LoaderContent::Other, ..copy(LoaderPlace::Fallback, "", 9) };
    let with_shim = |first: LoaderCopy| machine(loader("257", 2), vec![first, shim.clone()]);
    assert_eq!(done(&with_shim(copy(LoaderPlace::Systemd, "256", 1))), [FIRST]);
    let (state, facts) = with_shim(copy(LoaderPlace::Systemd, "257", 2));
    let Some(Verdict::Current(Some(words))) = judge(&state, &facts) else { panic!("{:?}", judge(&state, &facts)) };
    assert!(words.contains("EFI/BOOT/BOOTX64.EFI"), "{words}");
    assert_eq!(left(&machine(loader("257", 2), vec![shim.clone()])), Some(LeftBecause::Foreign));
    assert_eq!(left(&machine(loader("257", 2), Vec::new())), Some(LeftBecause::Foreign));
    let mut grub = machine(loader("257", 2), both("256", 1));
    grub.1.boot.inventory.loader.info = Some("GRUB 2.12".to_owned());
    assert_eq!(left(&grub), Some(LeftBecause::Foreign));
    let mut bits = machine(loader("257", 2), both("256", 1));
    bits.1.boot.backend = BootControlBackend::GptPrio;
    assert_eq!(left(&bits), Some(LeftBecause::Foreign));
}

#[test]
fn a_machine_that_was_started_from_elsewhere_is_left_alone() {
    let with = |change: fn(&mut LoaderFacts)| {
        let mut machine = machine(loader("257", 2), both("256", 1));
        change(&mut machine.1.boot.inventory.loader);
        machine
    };
    assert_eq!(left(&with(|loader| loader.device = Some(Uuid::from_u128(8)))), Some(LeftBecause::StartedElsewhere));
    for image in ["\\EFI\\BOOT\\grubx64.efi", "\\EFI\\debian\\systemd-bootx64.efi", ""] {
        let mut machine = machine(loader("257", 2), both("256", 1));
        machine.1.boot.inventory.loader.image = Some(image.to_owned());
        assert_eq!(left(&machine), Some(LeftBecause::StartedElsewhere), "{image}");
    }
    for image in ["\\EFI\\BOOT\\BOOTX64.EFI", "/\\efi\\SYSTEMD\\systemd-bootx64.efi"] {
        let mut machine = machine(loader("257", 2), both("256", 1));
        machine.1.boot.inventory.loader.image = Some(image.to_owned());
        assert_eq!(done(&machine), [FIRST], "{image}");
    }
    // Firmware that does not say is gone by the files.
    assert_eq!(done(&with(|loader| loader.image = None)), [FIRST]);
}

#[test]
fn what_could_not_be_read_changes_nothing() {
    let unread = || LoaderContent::Unread("EIO".to_owned());
    let changes: [fn(&mut LoaderFacts); 3] = [
        |loader| loader.info = None,
        |loader| loader.device = None,
        |loader| loader.image_unread = Some("EIO".to_owned()),
    ];
    for change in changes {
        let mut machine = machine(loader("257", 2), both("256", 1));
        change(&mut machine.1.boot.inventory.loader);
        assert_eq!(left(&machine), Some(LeftBecause::Unread));
    }
    for place in LoaderPlace::ALL {
        let mut copies = both("256", 1);
        copies.iter_mut().filter(|copy| copy.place == place).for_each(|copy| copy.content = unread());
        assert_eq!(left(&machine(loader("257", 2), copies)), Some(LeftBecause::Unread), "{place:?}");
        let mut machine = machine(loader("257", 2), both("256", 1));
        let hidden = LoaderCopy { content: unread(), digest: None, ..beside(place, "BASCULE.NEW", 1000, 2) };
        machine.1.boot.inventory.loader.beside.push(hidden);
        assert_eq!(left(&machine), Some(LeftBecause::Unread), "{place:?}");
    }
}

#[test]
fn it_waits_for_the_commit_and_for_what_is_armed() {
    let fresh = || machine(loader("257", 2), both("256", 1));
    let journal = |machine: &mut (State, Facts), change: fn(&mut Journal)| {
        if let Some(journal) = &mut machine.0.journal {
            change(journal);
        }
    };
    let mut uncommitted = fresh();
    journal(&mut uncommitted, |journal| journal.committed = None);
    let mut on_trial = fresh();
    on_trial.1.slots.a.entry = Entry::Trying { left: 2, done: Some(1) };
    let mut armed_by_hand = fresh();
    armed_by_hand.1.slots.b.entry = Entry::Trying { left: 3, done: Some(0) };
    let mut armed = fresh();
    journal(&mut armed, |journal| {
        journal.armed = Some(Armed {
            slot: SlotName::B,
            version: Version::parse("1.2").unwrap(),
            root_hash: RootHash::from_bytes(&[2; 32]),
            digest: None,
            boot_id: "boot".to_owned(),
            generation: 1,
            tries: 3,
            at: chrono::DateTime::UNIX_EPOCH,
            given_up: None,
            committing: false,
        });
    });
    for machine in [uncommitted, on_trial, armed_by_hand, armed] {
        assert_eq!(left(&machine), Some(LeftBecause::NotCommitted));
    }
}

#[test]
fn room_is_looked_for_first() {
    let mut full = machine(loader("257", 2), both("256", 1));
    full.1.boot.inventory.partitions[0].space.free = BOOT_MARGIN / 4 + 999;
    assert_eq!(left(&full), Some(LeftBecause::NoRoom));
    // Half of an earlier try is on it as well, and goes first.
    let half = beside(LoaderPlace::Systemd, "BASCULE.NEW", 1, 5);
    full.1.boot.inventory.loader.beside.push(half.clone());
    assert_eq!(done(&full), [format!("no {}", half.path), FIRST.to_owned()]);
    full.1.boot.inventory.loader.beside.clear();
    full.1.boot.inventory.partitions[0].space.free += 1;
    assert_eq!(done(&full), [FIRST]);
    // To remove what was left takes no room.
    let mut only_left = machine(loader("257", 2), both("257", 2));
    only_left.1.boot.inventory.partitions[0].space.free = 0;
    only_left.1.boot.inventory.loader.beside.push(half.clone());
    assert_eq!(done(&only_left), [format!("no {}", half.path)]);
    full.1.boot.inventory.partitions[0].read_only = true;
    assert_eq!(left(&full), Some(LeftBecause::NoRoom));
}

#[test]
fn what_a_check_of_the_file_system_emptied_is_put_back() {
    let mut copies = both("257", 2);
    (copies[1].content, copies[1].size, copies[1].digest) = (LoaderContent::Empty, 0, Some(digest(0)));
    assert_eq!(done(&machine(loader("257", 2), copies)), [SECOND]);
}

#[test]
fn what_an_earlier_try_left_goes_and_never_with_the_clusters_of_what_is_in_place() {
    let with = |copies: Vec<LoaderCopy>, left: LoaderCopy| {
        let mut machine = machine(loader("257", 2), copies);
        machine.1.boot.inventory.loader.beside.push(left);
        done(&machine)
    };
    let place = LoaderPlace::Systemd;
    // Half of it, or all of it and not in place yet.
    for left in [beside(place, "BASCULE.NEW", 300, 5), beside(place, "bascule.new", 1000, 2)] {
        let path = left.path.clone();
        assert_eq!(with(both("256", 1), left), [format!("no {path}"), FIRST.to_owned()]);
    }
    // Alike: perhaps two names of one file. What is in place gets clusters of its own before the other name goes.
    assert_eq!(
        with(both("257", 2), beside(place, "BASCULE.NEW", 1000, 2)),
        ["EFI/systemd/systemd-bootx64.efi by EFI/systemd/BASCULE.NE2", "no EFI/systemd/BASCULE.NEW"]
    );
    assert_eq!(
        with(both("256", 1), beside(place, "BASCULE.NEW", 1000, 1)),
        ["EFI/systemd/systemd-bootx64.efi by EFI/systemd/BASCULE.NE2", "no EFI/systemd/BASCULE.NEW"]
    );
    // All is in place: only the rest goes.
    assert_eq!(with(both("257", 2), beside(place, "BASCULE.NEW", 0, 0)), ["no EFI/systemd/BASCULE.NEW"]);
    assert!(is_beside("Bascule.New") && is_beside("BASCULE.NE2") && !is_beside("BASCULE.TXT"));
}

/// Power lost in the way out of two names on one file, once more and once more: which of them are one file nobody can tell.
#[test]
fn names_that_may_be_one_file_never_end_as_current() {
    let with = |copies: Vec<LoaderCopy>, names: &[&str], byte: u8| {
        let mut machine = machine(loader("257", 2), copies);
        let left = names.iter().map(|name| beside(LoaderPlace::Systemd, name, 1000, byte));
        machine.1.boot.inventory.loader.beside.extend(left);
        machine
    };
    assert_eq!(
        done(&with(both("257", 2), &BESIDE[..2], 2)),
        [
            "EFI/systemd/systemd-bootx64.efi by EFI/systemd/BASCULE.NE3",
            "no EFI/systemd/BASCULE.NEW",
            "no EFI/systemd/BASCULE.NE2"
        ]
    );
    assert_eq!(left(&with(both("257", 2), &BESIDE, 2)), Some(LeftBecause::NoRoom));
    assert_eq!(left(&with(both("256", 1), &BESIDE, 1)), Some(LeftBecause::NoRoom));
}

#[test]
fn a_place_in_doubt_is_done_again_before_the_other_is_touched() {
    let in_doubt = |copies: Vec<LoaderCopy>, path: &str| {
        let mut machine = machine(loader("257", 2), copies);
        machine.0.loader_in_doubt = Some(path.to_owned());
        done(&machine)
    };
    let half = || vec![copy(LoaderPlace::Systemd, "257", 2), copy(LoaderPlace::Fallback, "256", 1)];
    assert_eq!(in_doubt(half(), "EFI/systemd/systemd-bootx64.efi"), [FIRST]);
    assert_eq!(in_doubt(both("257", 2), "EFI/BOOT/BOOTX64.EFI"), [SECOND]);
    assert_eq!(in_doubt(half(), "EFI/other/systemd-bootx64.efi"), [SECOND]);
}

/// Carries a step out on the facts.
fn carry_out(facts: &mut Facts, step: &LoaderStep) {
    let loader = &mut facts.boot.inventory.loader;
    for change in &step.changes {
        match change {
            LoaderChange::Replace { path, .. } => {
                for copy in loader.copies.iter_mut().filter(|copy| copy.path == *path) {
                    copy.content = LoaderContent::SystemdBoot(step.loader.version.clone());
                    (copy.size, copy.digest) = (step.loader.size, Some(step.loader.digest.clone()));
                }
            }
            LoaderChange::Remove { path, .. } => loader.beside.retain(|found| found.path != *path),
        }
    }
}

/// Every state that two places and what lies beside them can be in, up to the end.
#[test]
fn whatever_lies_there_ends_whole_one_place_at_a_time_and_never_older() {
    let kinds = |place: LoaderPlace| {
        let with = |content, size, digest| Some(LoaderCopy { content, size, digest, ..copy(place, "", 0) });
        [
            None,
            Some(copy(place, "255", 5)),
            Some(copy(place, "257", 2)),
            Some(copy(place, "257", 3)),
            Some(copy(place, "258", 8)),
            with(LoaderContent::Empty, 0, Some(digest(0))),
            with(LoaderContent::Other, 77, Some(digest(9))),
        ]
    };
    let leftovers = |place: LoaderPlace| {
        let left = |name, size, byte| Some(beside(place, name, size, byte));
        [None, left("BASCULE.NEW", 1000, 2), left("BASCULE.NEW", 1000, 5), left("BASCULE.NE2", 300, 2)]
    };
    let mut met = 0;
    let places = kinds(LoaderPlace::Systemd)
        .into_iter()
        .flat_map(|first| kinds(LoaderPlace::Fallback).map(|second| [first.clone(), second]).into_iter());
    for places in places {
        for left in leftovers(LoaderPlace::Systemd).into_iter().chain(leftovers(LoaderPlace::Fallback)) {
            for downgrade in [false, true] {
                let copies: Vec<LoaderCopy> = places.iter().flatten().cloned().collect();
                let (state, mut facts) = machine(BootLoader { downgrade, ..loader("257", 2) }, copies.clone());
                facts.boot.inventory.loader.info = Some("systemd-boot 255".to_owned());
                facts.boot.inventory.loader.beside.extend(left.clone());
                let what = format!("{copies:?} and {left:?}, downgrade: {downgrade}");
                let mut steps = 0;
                while let Some(Verdict::Replace(step)) = judge(&state, &facts) {
                    let folder = |change: &LoaderChange| match change {
                        LoaderChange::Replace { path, .. } | LoaderChange::Remove { path, .. } => {
                            path.rsplit_once('/').map(|(folder, _)| folder.to_owned())
                        }
                    };
                    let folders: Vec<_> = step.changes.iter().map(folder).collect();
                    assert!(folders.iter().all(|folder| Some(folder) == folders.first()), "{what}: {step:?}");
                    carry_out(&mut facts, &step);
                    steps += 1;
                    assert!(steps <= 2, "{what}: it never ends");
                }
                met += steps;
                for (before, after) in copies.iter().zip(&facts.boot.inventory.loader.copies) {
                    let foreign = before.content == LoaderContent::Other;
                    let newer = before.content == LoaderContent::SystemdBoot("258".to_owned()) && !downgrade;
                    assert!(!(foreign || newer) || before == after, "{what}");
                }
                if let Some(Verdict::Current(_)) = judge(&state, &facts) {
                    let ours = facts.boot.inventory.loader.copies.iter();
                    let mut ours = ours.filter(|copy| copy.content != LoaderContent::Other);
                    assert!(ours.all(|copy| copy.digest == Some(digest(2))), "{what}");
                }
            }
        }
    }
    assert!(met > 100, "{met}");
}

#[test]
fn memory_is_bounded_survives_the_journal_and_keeps_what_runs() {
    let root = |byte: u8| RootHash::from_bytes(&[byte; 32]);
    let mut journal = Journal::default();
    for byte in 1..9 {
        journal.boot_loaders.note(&root(byte), Some(&loader("257", byte)), &root(1));
    }
    let read = Journal::parse(&journal.to_bytes().unwrap()).unwrap();
    assert_eq!(read.boot_loaders, journal.boot_loaders);
    assert_eq!(read.boot_loaders.0.len(), MAX_RELEASES);
    assert!(read.boot_loaders.of(&root(1)).is_some() && read.boot_loaders.of(&root(2)).is_none());
    journal.boot_loaders.note(&root(1), None, &root(1));
    assert_eq!(journal.boot_loaders.of(&root(1)), None, "published anew without one");
    let plain = Journal::default().to_bytes().unwrap();
    assert!(!String::from_utf8(plain).unwrap().contains("bootLoaders"), "an older agent reads what it wrote");
}
