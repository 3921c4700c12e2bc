//! The disk's own promises: what a cut keeps, what it may lose, and how each fault looks to the one who writes.

use super::*;

const ESP: Cache = Cache(1);

fn read(snapshot: &Snapshot, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    snapshot.pages.read(offset, &mut buffer);
    buffer
}

fn recorded(run: impl FnOnce(&Disk)) -> Recording {
    let disk = Disk::in_memory(1 << 20);
    disk.write_all(ESP, 0, &[1; 2048]).unwrap();
    disk.start_recording();
    run(&disk);
    disk.take_recording().unwrap()
}

#[test]
fn a_cut_keeps_what_was_flushed_and_only_a_flush_of_the_same_cache_counts() {
    let recording = recorded(|disk| {
        disk.write_all(ESP, 0, &[2; 512]).unwrap();
        disk.write_all(Cache::WHOLE, 512, &[3; 512]).unwrap();
        disk.flush(Cache::WHOLE).unwrap();
    });
    let cut = recording.cut(3, Loss::Everything);
    assert_eq!(read(&cut, 0, 1), [1], "another device's flush does not write back the ESP's pages");
    assert_eq!(read(&cut, 512, 1), [3]);
    assert_eq!(read(&recording.cut(3, Loss::Nothing), 0, 1), [2]);
    assert_eq!(read(&recording.cut(0, Loss::Nothing), 0, 1024), vec![1; 1024]);
}

#[test]
fn torn_sectors_hold_some_version_whole_and_every_version_is_met() {
    let recording = recorded(|disk| {
        disk.write_all(ESP, 0, &[2; 1024]).unwrap();
        disk.write_all(ESP, 0, &[3; 1024]).unwrap();
    });
    let mut met = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let cut = recording.cut(2, Loss::Torn(seed));
        let (first, second) = (read(&cut, 0, 512), read(&cut, 512, 512));
        assert!(first.iter().all(|byte| *byte == first[0]), "a sector never tears within itself");
        met.insert((first[0], second[0]));
    }
    assert_eq!(met.len(), 9, "each sector: lost, first or second version, independently: {met:?}");
}

#[test]
fn chosen_loss_is_exhaustive_over_the_pending_sectors() {
    let recording = recorded(|disk| disk.write_all(ESP, 0, &[2; 1536]).unwrap());
    assert_eq!(recording.pending_versions(1), 3);
    let met: std::collections::BTreeSet<_> =
        (0..8).map(|mask| read(&recording.cut(1, Loss::Chosen(mask)), 0, 1536)).collect();
    assert_eq!(met.len(), 8);
}

#[test]
fn a_failed_flush_loses_the_writes_although_the_next_one_succeeds() {
    let disk = Disk::in_memory(1 << 20);
    disk.inject(FaultRule::once(Access::Flush, Some(ESP), 0, Effect::Eio));
    disk.write_all(ESP, 0, &[7; 512]).unwrap();
    assert_eq!(disk.flush(ESP).unwrap_err().raw_os_error(), Some(5));
    disk.flush(ESP).unwrap();
    let mut seen = [0u8; 4];
    disk.read(ESP, 0, &mut seen).unwrap();
    assert_eq!(seen, [7; 4], "the page cache still has them");
    disk.read_direct(ESP, 0, &mut seen).unwrap();
    assert_eq!(seen, [0; 4], "the medium never had them");
}

#[test]
fn a_lie_shows_only_past_the_cache() {
    let disk = Disk::in_memory(1 << 20);
    disk.inject(FaultRule::once(Access::Write, None, 1, Effect::FlipBit(3)));
    disk.write_all(ESP, 0, &[0; 512]).unwrap();
    disk.write_all(ESP, 512, &[0; 512]).unwrap();
    let (mut cached, mut direct) = ([9u8; 1024], [9u8; 1024]);
    disk.read(ESP, 0, &mut cached).unwrap();
    disk.read_direct(ESP, 0, &mut direct).unwrap();
    assert_eq!(cached, [0; 1024]);
    assert_eq!(direct[512], 8);
}

#[test]
fn short_writes_and_errors_count_their_accesses() {
    let disk = Disk::in_memory(1 << 20);
    disk.inject(FaultRule::once(Access::Write, None, 0, Effect::Short(100)));
    disk.inject(FaultRule::once(Access::Read, Some(ESP), 1, Effect::Eio));
    assert_eq!(disk.write(ESP, 0, &[1; 512]).unwrap(), 100);
    assert_eq!(disk.write(ESP, 100, &[1; 412]).unwrap(), 412);
    let mut buffer = [0; 512];
    disk.read(ESP, 0, &mut buffer).unwrap();
    assert!(disk.read(ESP, 0, &mut buffer).is_err());
    disk.read(ESP, 0, &mut buffer).unwrap();
    assert_eq!(buffer, [1; 512]);
    assert_eq!(disk.write(ESP, (1 << 20) - 10, &[0; 11]).unwrap_err().raw_os_error(), Some(22));
}

#[test]
fn a_state_file_is_old_or_new_at_each_cut_and_keeps_its_place_among_the_writes() {
    let state = Cache(6);
    let recording = recorded(|disk| {
        disk.set_file(state, "journal", Some(b"one")).unwrap();
        disk.write_all(ESP, 0, &[2; 512]).unwrap();
        disk.set_file(state, "journal", Some(b"two")).unwrap();
        disk.set_file(state, "journal", None).unwrap();
    });
    let journal = |at| recording.cut(at, Loss::Everything).files.get("journal").map(|content| content.to_vec());
    assert_eq!(journal(0), None);
    assert_eq!(journal(2), Some(b"one".to_vec()));
    assert_eq!(journal(3), Some(b"two".to_vec()));
    assert_eq!(journal(4), None);
    assert_eq!(read(&recording.cut(4, Loss::Everything), 0, 1), [1], "a state file's fsync is no flush of the ESP");
    let full = Disk::in_memory(1 << 20);
    full.inject(FaultRule::once(Access::Write, Some(state), 0, Effect::NoSpace));
    assert_eq!(full.set_file(state, "journal", Some(b"x")).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(full.file(state, "journal").unwrap(), None);
}
