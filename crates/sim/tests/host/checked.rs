//! What `fsck.vfat -a`, which runs at each boot, makes of a removal that power loss broke off: a beginning of the file, or an empty one
//! (docs/decisions/0053-what-a-check-cuts-is-known-by-its-beginning.md).

use std::collections::BTreeSet;
use std::ops::Range;
use std::process::Command;

use bascule_sim::disk::{Cache, Disk, Part};
use bascule_sim::esp::Esp;

const PATH: &str = "EFI/Linux/acme-os_1.0.efi";
/// From this length on clusters have 4 KiB. It is a FAT16 then.
const LENGTH: u64 = 64 << 20;
const CLUSTER: usize = 4096;
const CLUSTERS: usize = 25;

fn part(disk: Disk) -> Part {
    Part::new(disk, Cache(1), 0, LENGTH)
}

/// Frees clusters of the longest chain in both tables; the name of the file stays (Microsoft FAT specification, sections 3 and 4).
fn free(image: &mut [u8], freed: Range<usize>) {
    let number = |image: &[u8], at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let (reserved, tables, sectors) = (number(image, 14), usize::from(image[16]), number(image, 22));
    let tables: Vec<usize> = (0..tables).map(|copy| (reserved + copy * sectors) * 512).collect();
    let next: Vec<usize> = (0..sectors * 256).map(|cluster| number(image, tables[0] + 2 * cluster)).collect();
    let pointed_at: BTreeSet<usize> = next.iter().copied().collect();
    let follow = |cluster: &usize| Some(next[*cluster]).filter(|next| (2..0xfff0).contains(next));
    let chain = |first: usize| std::iter::successors(Some(first), follow).collect::<Vec<_>>();
    let firsts = (2..next.len()).filter(|cluster| next[*cluster] != 0 && !pointed_at.contains(cluster));
    let longest = firsts.map(chain).max_by_key(Vec::len).unwrap();
    assert_eq!(longest.len(), CLUSTERS, "this is not the file's chain");
    for (cluster, table) in longest[freed].iter().flat_map(|cluster| tables.iter().map(move |table| (cluster, table))) {
        image[table + 2 * cluster..][..2].fill(0);
    }
}

/// What `fsck.vfat -a` makes of a file system.
pub(crate) fn by_fsck(before: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp");
    std::fs::write(&image, before).unwrap();
    let checked = Command::new("fsck.vfat").arg("-a").arg(&image).output();
    let checked = checked.unwrap_or_else(|error| panic!("install dosfstools: {error}"));
    // Nothing was wrong, or it was corrected (fsck.fat(8), "Exit status").
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{:?}: {said}", checked.status);
    std::fs::read(&image).unwrap()
}

/// Folders included: of one that is not as it should be the tool writes over what lies behind it, which no power cut did.
#[test]
fn a_check_has_nothing_to_say_of_a_new_boot_partition() {
    for length in [1200 << 10, 4 << 20, 40 << 20] {
        let disk = Disk::in_memory(length);
        let new = Part::new(disk, Cache(1), 0, length);
        let esp = Esp::format(new.clone(), 512).unwrap();
        esp.create_directory("EFI/bascule").unwrap();
        esp.write("EFI/bascule/a name of several entries.part", &[7; 3000]).unwrap();
        assert_eq!(esp.check().unwrap(), Vec::<String>::new(), "{length}");
        let mut before = vec![0; usize::try_from(length).unwrap()];
        new.read(0, &mut before).unwrap();
        assert!(by_fsck(&before) == before, "{length}: the check corrected something");
    }
}

#[test]
fn a_check_of_the_file_system_leaves_a_beginning_of_what_was_being_removed() {
    let content: Vec<u8> = (0..CLUSTERS * CLUSTER).map(|at| (at / 7 % 251) as u8).collect();
    for (freed, left) in [(0..CLUSTERS, 0), (12..CLUSTERS, 12), (24..CLUSTERS, 24), (0..12, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("esp");
        let esp = Esp::format(part(Disk::create_file(&image, LENGTH).unwrap()), 512).unwrap();
        esp.write(PATH, &content).unwrap();
        esp.sync().unwrap();
        drop(esp);
        let mut bytes = std::fs::read(&image).unwrap();
        free(&mut bytes, freed.clone());
        std::fs::write(&image, bytes).unwrap();
        let checked = Command::new("fsck.vfat").arg("-a").arg(&image).output().expect("install dosfstools");
        // It found something, and corrected it (fsck.fat(8), "Exit status").
        assert_eq!(checked.status.code(), Some(1), "{freed:?}: {}", String::from_utf8_lossy(&checked.stdout));
        let found = Esp::new(part(Disk::open_file(&image).unwrap())).read(PATH, 1 << 20).unwrap();
        assert!(found == content[..left * CLUSTER], "{freed:?}: {} bytes are left", found.len());
    }
}
