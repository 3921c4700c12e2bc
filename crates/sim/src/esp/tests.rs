//! The file system behaves as Linux' does towards callers, and leaves on the disk what Linux would leave.

use super::*;
use crate::disk::{Cache, Disk, Loss, Snapshot};
use crate::firmware::BootLoader;
use crate::layout::{Sizes, Table};
use crate::tiny::TinyRelease;

const LENGTH: u64 = 512 << 10;

fn esp_on(disk: &Disk) -> Esp {
    Esp::new(Part::new(disk.clone(), Cache(1), 0, disk.length()))
}

fn fresh() -> (Disk, Esp) {
    let disk = Disk::in_memory(LENGTH);
    let esp = Esp::format(Part::new(disk.clone(), Cache(1), 0, LENGTH), 512).unwrap();
    (disk, esp)
}

fn names(left: Snapshot) -> Vec<String> {
    esp_on(&Disk::from_snapshot(left)).list("EFI/Linux").unwrap().into_iter().map(|file| file.name).collect()
}

#[test]
fn files_come_and_go() {
    let (_, esp) = fresh();
    let free = esp.free().unwrap();
    esp.write("EFI/Linux/acme-1.0+3-0.efi", &[7; 5000]).unwrap();
    assert_eq!(esp.read("EFI/Linux/acme-1.0+3-0.efi", 5000).unwrap(), vec![7; 5000]);
    assert!(esp.read("EFI/Linux/acme-1.0+3-0.efi", 4999).is_err());
    assert_eq!(free - esp.free().unwrap(), 5120);
    esp.rename("EFI/Linux/acme-1.0+3-0.efi", "EFI/Linux/acme-1.0.efi").unwrap();
    assert_eq!(esp.list("EFI/Linux").unwrap(), [EspFile { name: "acme-1.0.efi".into(), size: 5000 }]);
    assert_eq!(esp.read("EFI/Linux/acme-1.0.efi", 5000).unwrap(), vec![7; 5000]);
    esp.write("EFI/Linux/other.efi", b"other").unwrap();
    let refused = esp.rename("EFI/Linux/other.efi", "EFI/Linux/acme-1.0.efi").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(EEXIST));
    esp.remove("EFI/Linux/acme-1.0.efi").unwrap();
    esp.remove("EFI/Linux/other.efi").unwrap();
    assert_eq!(esp.free().unwrap(), free);
    assert_eq!(esp.remove("EFI/Linux/other.efi").unwrap_err().kind(), io::ErrorKind::NotFound);
    let full = esp.write("EFI/Linux/big.efi", &vec![1; LENGTH as usize]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(ENOSPC));
}

#[test]
fn a_cut_rename_leaves_the_old_name_both_names_or_the_new_one_with_the_content() {
    let (disk, esp) = fresh();
    esp.write("EFI/Linux/acme-1.0+2-1.efi", &[9; 3000]).unwrap();
    esp.sync().unwrap();
    disk.start_recording();
    esp.rename("EFI/Linux/acme-1.0+2-1.efi", "EFI/Linux/acme-1.0.efi").unwrap();
    esp.sync().unwrap();
    let recording = disk.take_recording().unwrap();
    let mut met = std::collections::BTreeSet::new();
    for at in recording.cut_points() {
        for mask in 0..1 << recording.pending_versions(at) {
            let pages = recording.cut(at, Loss::Chosen(mask));
            let seen = names(pages.clone());
            for name in &seen {
                let content =
                    esp_on(&Disk::from_snapshot(pages.clone())).read(&format!("EFI/Linux/{name}"), 4000).unwrap();
                assert_eq!(content, vec![9; 3000], "{name} keeps its content");
            }
            met.insert(seen);
        }
    }
    let expected = [vec!["acme-1.0+2-1.efi"], vec!["acme-1.0+2-1.efi", "acme-1.0.efi"], vec!["acme-1.0.efi"]];
    assert_eq!(met, expected.map(|names| names.into_iter().map(String::from).collect()).into());
}

/// vfat's new name has no clusters before the file is written back. A folder that is made durable before that has neither name with
/// the content, whatever the disk made of its cache.
#[test]
fn a_folder_that_is_written_back_before_the_file_has_the_content_under_no_name() {
    let (disk, esp) = fresh();
    let (old, new) = ("EFI/Linux/acme-1.0+2-1.efi", "EFI/Linux/acme-1.0.efi");
    esp.write(old, &[9; 3000]).unwrap();
    esp.sync().unwrap();
    disk.start_recording();
    esp.rename_late(old, new).unwrap().folder_first().unwrap();
    esp.sync().unwrap();
    let recording = disk.take_recording().unwrap();
    let lost = |at: &usize| {
        let left = esp_on(&Disk::from_snapshot(recording.cut(*at, Loss::Everything)));
        let empty = left.list("EFI/Linux").unwrap() == [EspFile { name: "acme-1.0.efi".into(), size: 0 }];
        empty && left.check().unwrap().is_empty()
    };
    assert!(recording.cut_points().iter().any(lost), "{}", recording.story(usize::MAX, 20));
    assert_eq!(esp.read(new, 3000).unwrap(), vec![9; 3000], "at the end it is there");
    assert_eq!(esp.check().unwrap(), Vec::<String>::new());
}

/// Each kind of FAT is a file system of its own to whoever reads its tables: the driver, and the check of these tests.
#[test]
fn a_rename_keeps_the_content_on_every_kind_of_fat() {
    for (length, kind) in [(1200 << 10, FatType::Fat12), (4 << 20, FatType::Fat16), (40 << 20, FatType::Fat32)] {
        let disk = Disk::in_memory(length);
        let esp = Esp::format(Part::new(disk.clone(), Cache(1), 0, length), 512).unwrap();
        assert_eq!(esp.kind().unwrap(), kind);
        let free = esp.free().unwrap();
        // Through a directory that grows, so that tables and entries change together, onto clusters that held something else.
        esp.write("EFI/Linux/other.efi", &[0xaa; 30_000]).unwrap();
        esp.remove("EFI/Linux/other.efi").unwrap();
        esp.write("EFI/Linux/0.efi", &[9; 3000]).unwrap();
        for number in 0..20 {
            let (from, to) = (format!("EFI/Linux/{number}.efi"), format!("EFI/Linux/{}.efi", number + 1));
            esp.write(&format!("EFI/Linux/a longer name of file {number}.txt"), b"").unwrap();
            esp.rename(&from, &to).unwrap();
            assert_eq!(esp.read(&to, 3000).unwrap(), vec![9; 3000], "{kind:?}: {to}");
        }
        esp.sync().unwrap();
        assert_eq!(esp.check().unwrap(), Vec::<String>::new(), "{kind:?}");
        assert!(esp.free().unwrap() < free, "{kind:?}");
    }
}

#[test]
fn nothing_is_durable_before_the_sync() {
    let (disk, esp) = fresh();
    disk.start_recording();
    esp.write("EFI/Linux/acme-1.1.efi", &[9; 3000]).unwrap();
    let unsynced = disk.recorded();
    esp.sync().unwrap();
    let recording = disk.take_recording().unwrap();
    assert_eq!(names(recording.cut(unsynced, Loss::Everything)), Vec::<String>::new());
    assert_eq!(names(recording.cut(unsynced + 1, Loss::Everything)), ["acme-1.1.efi"]);
}

#[test]
fn a_check_finds_the_files_that_a_cut_rename_leaves_on_one_chain() {
    let (disk, esp) = fresh();
    esp.write("EFI/Linux/acme-1.0+2-1.efi", &[9; 3000]).unwrap();
    esp.write("EFI/Linux/other.efi", &[8; 30_000]).unwrap();
    esp.remove("EFI/Linux/other.efi").unwrap();
    esp.sync().unwrap();
    assert_eq!(esp.check().unwrap(), Vec::<String>::new());
    disk.start_recording();
    esp.rename("EFI/Linux/acme-1.0+2-1.efi", "EFI/Linux/acme-1.0.efi").unwrap();
    let recording = disk.take_recording().unwrap();
    let halfway = esp_on(&Disk::from_snapshot(recording.cut(2, Loss::Nothing)));
    let found = halfway.check().unwrap();
    assert!(found.len() == 1 && found[0].contains("shares a cluster"), "{found:?}");
    // The naive way out makes it worse: the name that stays points to clusters that are free now.
    halfway.remove("EFI/Linux/acme-1.0+2-1.efi").unwrap();
    let found = halfway.check().unwrap();
    assert!(found.iter().any(|line| line.contains("a cluster that is free")), "{found:?}");
}

/// A disk that has no smaller sectors: table and file systems count in them.
#[test]
fn a_disk_with_sectors_of_4096_bytes_is_one_to_its_table_and_its_boot_partition() {
    let sizes = Sizes { esp: 8 << 20, sector: 4096, ..Sizes::tiny() };
    let disk = Disk::in_memory(sizes.disk());
    let release = TinyRelease::new("acme-os", "1.0", 48 << 10, &[]).unwrap();
    release.provision(&disk, sizes, BootLoader::SystemdBoot, uuid::Uuid::from_u128(7)).unwrap();
    let table = Table::read(&disk).unwrap();
    assert_eq!((table.sector(), table.copies_agree()), (4096, true));
    let esp = table.esp().unwrap();
    let entry = format!("EFI/Linux/{}", release.entry());
    assert_eq!(esp.read(&entry, 1 << 20).unwrap(), release.uki);
    esp.write("EFI/Linux/more.efi", &[7; 9000]).unwrap();
    esp.sync().unwrap();
    let mut bytes = [0; 512];
    esp.part().read(0, &mut bytes).unwrap();
    assert_eq!(u16::from_le_bytes([bytes[11], bytes[12]]), 4096, "bytes per sector (Microsoft FAT specification, BPB)");
}

/// What every cut of a change makes of a file: `None` where it can't be read whole.
fn after_each_cut(change: impl Fn(&Esp), path: &str, lengths: [usize; 2]) -> std::collections::BTreeSet<Option<u8>> {
    let (disk, esp) = fresh();
    // The new name lies in another sector than the old one.
    for number in 0..12 {
        esp.write(&format!("EFI/Linux/OTHER{number}.TXT"), b"").unwrap();
    }
    esp.write(path, &vec![1; lengths[0]]).unwrap();
    for number in 12..24 {
        esp.write(&format!("EFI/Linux/OTHER{number}.TXT"), b"").unwrap();
    }
    esp.write("EFI/Linux/BASCULE.NEW", &vec![2; lengths[1]]).unwrap();
    esp.sync().unwrap();
    disk.start_recording();
    change(&esp);
    esp.sync().unwrap();
    let recording = disk.take_recording().unwrap();
    let mut met = std::collections::BTreeSet::new();
    for at in recording.cut_points() {
        for mask in 0..1 << recording.pending_versions(at).min(10) {
            let left = esp_on(&Disk::from_snapshot(recording.cut(at, Loss::Chosen(mask))));
            let found = left.read(path, 1 << 20).ok();
            let whole = found.filter(|found| {
                [(1, lengths[0]), (2, lengths[1])].iter().any(|(byte, length)| *found == vec![*byte; *length])
            });
            met.insert(whole.and_then(|found| found.first().copied()));
        }
    }
    met
}

#[test]
fn a_cut_replacement_leaves_what_was_there_or_what_replaces_it() {
    let path = "EFI/Linux/acme-1.0.efi";
    for lengths in [[3000, 5000], [5000, 3000], [4000, 4000]] {
        let met = after_each_cut(|esp| esp.replace("EFI/Linux/BASCULE.NEW", path).unwrap(), path, lengths);
        assert_eq!(met, [Some(1), Some(2)].into(), "{lengths:?}");
        // What is made of parts that are there leaves nothing at some cut: this test would see it.
        let naive = |esp: &Esp| {
            esp.remove(path).unwrap();
            esp.rename("EFI/Linux/BASCULE.NEW", path).unwrap();
        };
        assert!(after_each_cut(naive, path, lengths).contains(&None), "{lengths:?}");
    }
}

#[test]
fn a_replacement_frees_what_was_there_and_nothing_else() {
    let (_, esp) = fresh();
    let free = esp.free().unwrap();
    for (name, length) in [("acme-1.0.efi", 3000), ("BASCULE.NEW", 5000), ("other.efi", 700)] {
        esp.write(&format!("EFI/Linux/{name}"), &vec![length as u8; length]).unwrap();
    }
    esp.replace("EFI/Linux/BASCULE.NEW", "EFI/Linux/acme-1.0.efi").unwrap();
    assert_eq!(esp.read("EFI/Linux/acme-1.0.efi", 5000).unwrap(), vec![5000_usize as u8; 5000]);
    assert_eq!(esp.read("EFI/Linux/other.efi", 700).unwrap(), vec![700_usize as u8; 700]);
    let names: Vec<_> = esp.list("EFI/Linux").unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["acme-1.0.efi", "other.efi"]);
    assert_eq!(esp.check().unwrap(), Vec::<String>::new());
    assert_eq!(free - esp.free().unwrap(), 5120 + 1024);
    let missing = [("EFI/Linux/none.efi", "EFI/Linux/other.efi"), ("EFI/Linux/other.efi", "EFI/Linux/none.efi")];
    for (from, to) in missing {
        assert_eq!(esp.replace(from, to).unwrap_err().kind(), io::ErrorKind::NotFound, "{from} {to}");
    }
}

/// The first half of a rename alone: two names, one chain of clusters.
#[test]
fn of_two_names_on_one_chain_the_second_to_go_has_clusters_that_are_free() {
    let (_, esp) = fresh();
    esp.write("EFI/Linux/acme-1.0.efi", &[1; 3000]).unwrap();
    esp.write("EFI/Linux/empty.efi", b"").unwrap();
    let rename = rename::prepare(&esp.part, "EFI/Linux/acme-1.0.efi", "EFI/Linux/acme-1.1.efi").unwrap();
    write_back(&esp.part, &rename.whole()[0]).unwrap();
    let damaged = |name: &str| esp.has_free_clusters(&format!("EFI/Linux/{name}")).unwrap();
    for name in ["acme-1.0.efi", "acme-1.1.efi", "empty.efi"] {
        assert!(!damaged(name), "{name}");
    }
    esp.remove("EFI/Linux/acme-1.0.efi").unwrap();
    assert!(damaged("acme-1.1.efi") && !damaged("empty.efi"));
    let missing = esp.has_free_clusters("EFI/Linux/acme-1.0.efi").unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}
