//! What a power cut and a check of the boot partition leave of a staged boot image, and what is done about it.

use std::time::Duration;

use bascule_api::{
    Architecture, BootControlBackend, ChannelName, Digest, Goal, PackFallback, Product, ReleaseRef, RootHash, SlotName,
    Version,
};
use uuid::Uuid;

use super::stage::stage;
use super::*;
use crate::boot::{
    Attributes, BootChange, BootFile, BootInventory, BootPartition, FileContent, ImageFacts, PartitionFacts, plan,
    unfinished_name, waiting_name,
};
use crate::housekeeping::conclude;
use crate::{
    Armed, BootFacts, Config, Desired, During, Entry, Event, Extent, Journal, Now, Partition, PerSlot, SlotContent,
    SlotFacts, Space, TableHealth, step,
};

const BACKENDS: [BootControlBackend; 2] = [BootControlBackend::SystemdBoot, BootControlBackend::GptPrio];
const SIZE: u64 = 9000;

fn root(byte: u8) -> RootHash {
    RootHash::from_bytes(&[byte; 32])
}

fn uki() -> Digest {
    Digest::from_sha256(&[7; 32])
}

/// An image that boots a root hash.
fn image(name: &str, byte: u8) -> BootFile {
    let content = FileContent::Image(ImageFacts { root_hash: Some(root(byte)), ..ImageFacts::default() });
    let (partition, name, digest) = (BootPartition::Esp, name.to_owned(), Some(Digest::from_sha256(&[byte; 32])));
    BootFile { partition, name, size: SIZE, content, digest, start: None }
}

/// What is no image.
fn broken(name: &str, size: u64) -> BootFile {
    BootFile { size, content: FileContent::NotAnImage, digest: None, ..image(name, 0) }
}

fn known() -> KnownRelease {
    KnownRelease {
        root_hash: root(2),
        version: Version::parse("1.1").unwrap(),
        digest: Digest::from_sha256(&[9; 32]),
        uki_digest: uki(),
        uki_size: SIZE,
        verified_at: Some(chrono::DateTime::UNIX_EPOCH),
    }
}

/// 1.0 runs from slot A, slot B holds 1.1, which was read back whole, and these files lie beside the running one's.
fn machine(backend: BootControlBackend, files: Vec<BootFile>, bits: u64) -> (State, Facts) {
    let slot = |byte: u8, version: &str, attributes| {
        let extent = Extent { start: 0, length: 1 << 20 };
        let data = Partition { number: 1, extent, uuid: Uuid::nil(), label: String::new(), attributes };
        let content = SlotContent::Release { version: Version::parse(version).unwrap(), root_hash: root(byte) };
        SlotFacts { data: data.clone(), verity: data, content, entry: Entry::Unseen, entry_doubled: false }
    };
    let running = match backend {
        BootControlBackend::SystemdBoot => "acme-os_1.0.efi",
        BootControlBackend::GptPrio => "slot-a.efi",
    };
    let space = Space { free: 8 << 20, total: 16 << 20 };
    let esp = PartitionFacts { partition: BootPartition::Esp, uuid: Some(Uuid::nil()), space, read_only: false };
    let files = std::iter::once(image(running, 1)).chain(files).collect();
    let good = Attributes { priority: 2, tries: 0, successful: true };
    let mut facts = Facts {
        boot_id: "boot".to_owned(),
        product: Product::parse("acme-os").unwrap(),
        architecture: Architecture::X86_64,
        version: Version::parse("1.0").unwrap(),
        state_version: None,
        root_hash: root(1),
        booted: SlotName::A,
        slots: PerSlot { a: slot(1, "1.0", good.bits()), b: slot(2, "1.1", bits) },
        boot: BootFacts::read(backend, BootInventory { partitions: vec![esp], files, ..BootInventory::default() }),
        table: TableHealth::Good,
        guard: None,
        guard_unread: None,
        failing_units: Vec::new(),
    };
    let journal = Journal { known: vec![known()], ..Journal::default() };
    facts.judge(&journal, None);
    (State { journal: Some(journal), ..State::new(Config::default()) }, facts)
}

/// The names of a step's changes.
fn told(changes: &[BootChange]) -> Vec<String> {
    let told = |change: &BootChange| match change {
        BootChange::Copy { from, to, .. } => format!("copy {from} to {to}"),
        BootChange::Rename { from, to, .. } | BootChange::PutInPlace { from, to, .. } => format!("{from} to {to}"),
        BootChange::Remove { file, .. } => format!("no {file}"),
        BootChange::Attributes(_) => "attributes".to_owned(),
    };
    changes.iter().map(told).collect()
}

/// Whatever the operator's word is by now: what is not staged is brought, and only the boot image of it is.
#[test]
fn a_boot_image_that_waited_and_is_not_whole_any_more_is_brought_anew() {
    let (waits, part) = (waiting_name(&uki()), unfinished_name(&uki()));
    for backend in BACKENDS {
        let whole = || image(&waits, 2);
        let (state, facts) = machine(backend, vec![whole()], 0);
        assert_eq!(ready(&state, &facts), Some(&known()), "{backend:?}");
        // What another download left says nothing of it.
        let (state, facts) = machine(backend, vec![whole(), broken("bascule-other.part", SIZE / 2)], 0);
        assert_eq!(ready(&state, &facts), Some(&known()), "{backend:?}");
        for (files, removed) in [
            (Vec::new(), 0),
            (vec![broken(&waits, 0)], 1),
            (vec![broken(&waits, 512)], 1),
            (vec![BootFile { content: FileContent::Placeholder, ..whole() }], 1),
            (vec![whole(), broken(&part, SIZE)], 2),
            (vec![whole(), broken("BASCUL~1.TMP", SIZE)], 2),
        ] {
            let (state, facts) = machine(backend, files.clone(), 0);
            assert_eq!(ready(&state, &facts), None, "{backend:?}: {files:?}");
            let effects = stage(&state, &facts, &known(), PackFallback::Allow).unwrap();
            let mut cleared = Vec::new();
            let mut others = Vec::new();
            for effect in &effects {
                match effect {
                    Effect::Boot(step) => cleared.extend(told(&step.changes)),
                    other => others.push(other.name()),
                }
            }
            assert_eq!(cleared.len(), removed, "{backend:?}: {files:?}: {cleared:?}");
            assert!(cleared.iter().all(|change| change.starts_with("no bascule-") || change.starts_with("no BASCUL~")));
            assert_eq!(others, ["stage-uki", "read-back"], "{backend:?}: {files:?}");
        }
    }
}

/// It holds nothing, so that it can be nobody's and no clusters go with it.
#[test]
fn an_emptied_boot_image_of_a_slot_is_none_and_stands_in_nobodys_way() {
    let waits = waiting_name(&uki());
    let (state, facts) = machine(BootControlBackend::GptPrio, vec![broken("slot-b.efi", 0), image(&waits, 2)], 0);
    assert_eq!((facts.inactive_slot().entry, ready(&state, &facts)), (Entry::None, Some(&known())));
    let target = ReleaseTarget::known(SlotName::B, &known());
    let arming = plan::arm(&facts, &target, 3).unwrap();
    let expected = ["no slot-b.efi".to_owned(), format!("{waits} to slot-b.efi"), "attributes".to_owned()];
    assert_eq!(told(&arming.step.changes), expected);
    let (state, facts) = machine(BootControlBackend::GptPrio, vec![broken("slot-b.efi", 0)], 0);
    assert_eq!((facts.inactive_slot().entry, ready(&state, &facts)), (Entry::None, None));
    assert!(plan::arm(&facts, &target, 3).is_err());
    // What somebody put there is not touched, however broken it is.
    let (_, facts) = machine(BootControlBackend::GptPrio, vec![broken("slot-b.efi", 600), image(&waits, 2)], 0);
    assert!(plan::arm(&facts, &target, 3).is_err());
}

#[test]
fn by_gpt_attributes_two_names_of_one_image_become_one_before_its_slot_can_be_booted() {
    let waits = waiting_name(&uki());
    let files = || vec![image("slot-b.efi", 2), image(&waits, 2)];
    let (_, facts) = machine(BootControlBackend::GptPrio, files(), 0);
    assert!(facts.inactive_slot().entry_doubled);
    let step = plan::untangle(&facts, SlotName::B).unwrap();
    let expected = [
        "copy slot-b.efi to bascule-copy1.part".to_owned(),
        "slot-b.efi to bascule-copy2.part".to_owned(),
        "bascule-copy1.part to slot-b.efi".to_owned(),
        format!("no {waits}"),
        "no bascule-copy2.part".to_owned(),
    ];
    assert_eq!(told(&step.changes), expected);
    // Power lost within a rename, or before the last removal: again, by other names.
    let (_, facts) =
        machine(BootControlBackend::GptPrio, vec![image("slot-b.efi", 2), image("bascule-copy1.part", 2)], 0);
    let step = plan::untangle(&facts, SlotName::B).unwrap();
    assert_eq!(told(&step.changes).first().unwrap(), "copy slot-b.efi to bascule-copy2.part");
    // What may be booted is never gone, not for a moment.
    for bits in [
        Attributes { priority: 3, tries: 3, successful: false },
        Attributes { priority: 1, tries: 0, successful: true },
        Attributes { priority: 1, tries: 0, successful: false },
    ] {
        let (_, facts) = machine(BootControlBackend::GptPrio, files(), bits.bits());
        assert!(facts.inactive_slot().entry_doubled);
        assert_eq!(plan::untangle(&facts, SlotName::B), None, "{bits:?}");
    }
    let running = vec![image(&waits, 1)];
    let (_, facts) = machine(BootControlBackend::GptPrio, running, 0);
    assert!(facts.booted_slot().entry_doubled);
    assert_eq!(plan::untangle(&facts, SlotName::A), None);
    assert_eq!(plan::clear_away(&facts), None);
}

/// 1.0 runs as a trial that was armed in another boot, and these files are all that lies there.
fn trial(files: Vec<BootFile>) -> (State, Facts) {
    let (mut state, mut facts) = machine(BootControlBackend::SystemdBoot, Vec::new(), 0);
    let armed = Armed {
        slot: SlotName::A,
        version: facts.version.clone(),
        root_hash: root(1),
        digest: None,
        boot_id: "earlier".to_owned(),
        generation: 1,
        tries: 3,
        at: chrono::DateTime::UNIX_EPOCH,
        given_up: None,
        committing: false,
    };
    facts.boot.inventory.files = files;
    let mut journal = Journal { armed: Some(armed), ..Journal::default() };
    facts.judge(&journal, None);
    journal.placed.clone_from(&facts.boot.view.records);
    facts.judge(&journal, None);
    state.journal = Some(journal);
    (state, facts)
}

fn at(minutes: u64) -> Now {
    let since_boot = Duration::from_secs(60 * minutes);
    Now { wall: chrono::DateTime::UNIX_EPOCH + since_boot, since_boot }
}

/// A trial's boot image is gone, so that its commit can't be carried out. That is said, and not anew at each look.
#[test]
fn a_commit_that_is_refused_again_keeps_its_time() {
    let (state, facts) = trial(Vec::new());
    assert!(state.is_trial(&facts));
    let release = ReleaseRef {
        version: facts.version.clone(),
        digest: Digest::from_sha256(&[8; 32]),
        repository: "https://releases.example".to_owned(),
        channel: ChannelName::parse("stable").unwrap(),
    };
    let desired = Desired {
        uid: "uid".to_owned(),
        generation: 3,
        goal: Goal::Committed,
        release: Some(release),
        grant: None,
        disruption_begun: true,
        pack_fallback: PackFallback::Allow,
        retry: None,
    };
    let state = State { facts: Some(facts), desired: Some(desired), heard: true, ..state };
    let (state, _) = step(state, Event::Tick, at(1));
    let first = state.problem.clone().unwrap();
    assert_eq!((first.during, first.at), (During::Goal, at(1).wall), "{first:?}");
    let (state, _) = step(state, Event::Tick, at(2));
    assert_eq!(state.problem.unwrap(), first);
}

/// The boot loader can't count where a file has the name that the entry was to get; without one it did not.
#[test]
fn a_name_that_was_taken_says_nothing_of_the_boot_loader() {
    let entry = || image("acme-os_1.0+3-0.efi", 1);
    for (files, judged) in [
        (vec![entry(), broken("acme-os_1.0+2-1.efi", 0)], false),
        (vec![entry(), broken("acme-os_1.0+1-2.efi", 0)], true),
        (vec![entry()], true),
    ] {
        let (mut state, facts) = trial(files.clone());
        assert_eq!(facts.booted_slot().entry, Entry::Trying { left: 3, done: Some(0) });
        let concluded = conclude(&mut state, &facts, at(1));
        assert_eq!(concluded.is_some(), judged, "{files:?}: {concluded:?}");
    }
}
