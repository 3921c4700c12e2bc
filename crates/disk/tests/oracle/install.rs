//! Installing over what a disk was used for: what it holds then, and what a fault at each access leaves. The disk is a file here;
//! what a device adds is tried on loop devices.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bascule_disk::{DiskError, STATE, SlotNumbers, StateFiles, Step, Wishes, install};
use bascule_gpt::{FileMedium, Geometry, Health, Medium, NewPartition, Partition, Table, kind};
use uuid::Uuid;

use super::{Bench, MIB, fat_file, find, run, text};

/// What the disk held before.
const OLD: u8 = 0xA5;
/// The smallest disk for the release of the tests.
pub(super) const SMALL: Wishes =
    Wishes { disk: Some(128 * MIB), esp: Some(48 * MIB), xbootldr: None, slot: Some(4 * MIB), state: None };

/// A release whose boot image is soon written.
pub(super) fn small() -> Bench {
    Bench { boot_image: vec![0xEF; 100_001], ..Bench::new() }
}

/// A disk in a file that is full of what was on it before.
fn used(bench: &Bench, name: &str) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(bench.path(name)).unwrap();
    let piece = vec![OLD; MIB as usize];
    (0..128).for_each(|number| file.write_all_at(&piece, number * MIB).unwrap());
    file
}

fn installed(
    bench: &Bench,
    medium: &dyn Medium,
    scratch: &Path,
    steps: &mut dyn FnMut(Step),
) -> Result<Vec<Partition>, DiskError> {
    bench.laid(SMALL, |plan, first| install(medium, plan, first, StateFiles::default(), scratch, steps))
}

fn fresh(bench: &Bench) -> tempfile::TempDir {
    tempfile::tempdir_in(bench.folder.path()).unwrap()
}

#[test]
fn a_used_disk_is_whole_to_the_tools_of_others_with_both_sizes_of_sectors() {
    let bench = small();
    for sector in [512, 4096] {
        let name = format!("disk-{sector}");
        let file = used(&bench, &name);
        let medium = FileMedium { file: &file, sector };
        let (mut written, mut read) = (0, (0, 0));
        let parts = installed(&bench, &medium, fresh(&bench).path(), &mut |step| match step {
            Step::Written(done) => written = done,
            Step::ReadBack { done, total } => read = (done, total),
        })
        .unwrap();
        assert_eq!(written, (bench.image.len() + bench.tree.to_bytes().len()) as u64);
        assert!(read.0 == read.1 && read.0 > written, "{read:?}");
        let table = Table::read(&medium).unwrap();
        assert_eq!(table.health(), Health::Good);
        let last = parts.last().unwrap();
        assert!(last.number == STATE && 128 * MIB - (last.start + last.length) < 2 * MIB, "{last:?}");
        if sector == 512 {
            assert!(run("sgdisk", &["-v", text(&bench.path(&name))]).contains("No problems found"));
        }
        let esp = bench.cut_out(&name, find(&parts, bascule_disk::ESP));
        run("fsck.vfat", &["-n", text(&esp)]);
        let head = fs::read(&esp).unwrap();
        assert_eq!(u64::from(u16::from_le_bytes([head[11], head[12]])), sector, "bytes of a sector of the ESP");
        assert_eq!(fat_file(&esp, "EFI/Linux/acme-os_1.0.efi"), bench.boot_image);
        let a = SlotNumbers::A;
        let [data, hashes] = [a.data, a.verity].map(|number| bench.cut_out(&name, find(&parts, number)));
        run("veritysetup", &["verify", text(&data), text(&hashes), &bench.tree.root_hash().to_string()]);
        let var = bench.cut_out(&name, last);
        run("e2fsck", &["-f", "-n", text(&var)]);
        // Nothing of what was there before is replayed.
        let journal = bench.path(&format!("journal-{sector}"));
        run("debugfs", &["-R", &format!("dump <8> {}", text(&journal)), text(&var)]);
        let journal = fs::read(journal).unwrap();
        assert_eq!(journal.len() as u64, 4 * MIB);
        assert!(journal[4096..].iter().all(|byte| *byte == 0), "behind its superblock the journal is empty");
        // No label of an earlier use at the edges of what nobody wrote to.
        let b = find(&parts, SlotNumbers::B.data);
        let mut edge = [OLD; 4096];
        for start in [b.start, b.start + b.length - 4096] {
            file.read_exact_at(&mut edge, start).unwrap();
            assert!(edge.iter().all(|byte| *byte == 0));
        }
    }
}

/// A disk of which one access fails, and all after it; or one write of which does nothing.
struct Faulty<'a> {
    medium: FileMedium<'a>,
    /// Writes and flushes up to the one that fails.
    fails_at: usize,
    /// The write that is lost.
    loses: Option<usize>,
    log: RefCell<Vec<Access>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write(u64),
    Flush,
}

impl<'a> Faulty<'a> {
    fn new(file: &'a File, fails_at: usize) -> Self {
        Self { medium: FileMedium { file, sector: 512 }, fails_at, loses: None, log: RefCell::default() }
    }

    /// Which access it is, from 0.
    fn note(&self, access: Access) -> io::Result<usize> {
        let mut log = self.log.borrow_mut();
        log.push(access);
        let number = log.len() - 1;
        if number >= self.fails_at { Err(io::Error::from_raw_os_error(5)) } else { Ok(number) }
    }
}

impl Medium for Faulty<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        self.medium.geometry()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let number = self.note(Access::Write(offset))?;
        if self.loses == Some(number) { Ok(()) } else { self.medium.write(offset, bytes) }
    }

    fn flush(&self) -> io::Result<()> {
        self.note(Access::Flush).map(drop)
    }
}

/// A table of another system, with one partition.
fn other_system(file: &File) -> Vec<Partition> {
    let medium = FileMedium { file, sector: 512 };
    let part = NewPartition {
        number: 1,
        kind: kind::ROOT_X86_64,
        uuid: Uuid::from_u128(1),
        length: 100 * MIB,
        label: "other".to_owned(),
    };
    let table = Table::create(medium.geometry().unwrap(), Uuid::from_u128(2), MIB, &[part]).unwrap();
    table.install(&medium).unwrap();
    table.partitions()
}

#[test]
fn an_installation_that_breaks_off_anywhere_leaves_nothing_that_boots() {
    let bench = small();
    let file = used(&bench, "disk");
    let (mut without_table, mut whole) = (0, 0);
    for fails_at in 0..1_000 {
        let old = other_system(&file);
        // Of a disk that this went over before nothing may count as installed.
        let slot = 1 + 48;
        file.write_all_at(&vec![OLD; 4 * MIB as usize], slot * MIB).unwrap();
        let medium = Faulty::new(&file, fails_at);
        let outcome = installed(&bench, &medium, fresh(&bench).path(), &mut |_| {});
        let accesses = medium.log.borrow().len();
        let sound = FileMedium { file: &file, sector: 512 };
        match Table::read(&sound) {
            Err(error) => {
                without_table += 1;
                assert!(outcome.is_err(), "{fails_at}: {error}");
            }
            Ok(table) if table.partitions() == old => {
                assert!(fails_at <= 1, "{fails_at}: the old table is there when other things were written");
            }
            Ok(table) => {
                let mut found = table.partitions();
                found.sort_by_key(|part| part.start);
                let data = find(&found, SlotNumbers::A.data);
                assert_eq!(data.start, slot * MIB);
                let mut image = vec![0; bench.image.len()];
                file.read_exact_at(&mut image, data.start).unwrap();
                assert!(image == bench.image, "{fails_at}: a table without what it speaks of");
                whole += 1;
            }
        }
        if outcome.is_ok() {
            assert!(accesses <= fails_at);
            assert!(without_table > 20 && whole >= 2, "{without_table} {whole}");
            return;
        }
    }
    panic!("it never ends");
}

#[test]
fn the_table_is_written_when_all_else_is_on_the_medium() {
    let bench = small();
    let file = used(&bench, "disk");
    let medium = Faulty::new(&file, usize::MAX);
    installed(&bench, &medium, fresh(&bench).path(), &mut |_| {}).unwrap();
    let log = medium.log.into_inner();
    let of_table = |access: &Access| matches!(access, Access::Write(at) if *at < MIB || *at >= 127 * MIB);
    let of_content = |access: &Access| matches!(access, Access::Write(_)) && !of_table(access);
    let first = log.iter().position(of_content).unwrap();
    let last = log.iter().rposition(of_content).unwrap();
    let table = last + log[last..].iter().position(of_table).unwrap();
    assert!(log[..first].contains(&Access::Flush), "the old table is gone before anything else is written");
    assert!(log[last..table].contains(&Access::Flush), "all of the content is on the medium before the new one");
    assert!(log[first..last].iter().all(|access| !of_table(access)));
    assert_eq!(log.last(), Some(&Access::Flush));
}

#[test]
fn a_disk_that_loses_a_write_gets_no_table() {
    let bench = small();
    let file = used(&bench, "disk");
    let counted = Faulty::new(&file, usize::MAX);
    installed(&bench, &counted, fresh(&bench).path(), &mut |_| {}).unwrap();
    let log = counted.log.into_inner();
    let slot = (1 + 48) * MIB;
    // Behind the zeros of its edges come the image's own writes.
    let written = log.iter().rposition(|access| *access == Access::Write(slot)).unwrap();
    fs::remove_file(bench.path("disk")).unwrap();
    let file = used(&bench, "disk");
    let medium = Faulty { loses: Some(written), ..Faulty::new(&file, usize::MAX) };
    let error = installed(&bench, &medium, fresh(&bench).path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, DiskError::Lies { offset } if offset == slot), "{error:?}");
    assert!(Table::read(&FileMedium { file: &file, sector: 512 }).is_err());
}

#[test]
fn what_fails_before_the_disk_leaves_it_as_it_was() {
    let bench = small();
    let file = used(&bench, "disk");
    let old = other_system(&file);
    let medium = Faulty::new(&file, usize::MAX);
    let missing = bench.path("missing");
    let files = StateFiles { tree: Some(&missing), settings: None };
    let scratch = fresh(&bench);
    let outcome = bench.laid(SMALL, |plan, first| install(&medium, plan, first, files, scratch.path(), &mut |_| {}));
    assert!(matches!(outcome, Err(DiskError::State(_))), "{outcome:?}");
    // A disk that got smaller since its sizes were chosen.
    file.set_len(100 * MIB).unwrap();
    let outcome = installed(&bench, &medium, fresh(&bench).path(), &mut |_| {});
    assert!(matches!(outcome, Err(DiskError::Table(_))), "{outcome:?}");
    assert_eq!(medium.log.into_inner(), []);
    file.set_len(128 * MIB).unwrap();
    assert_eq!(Table::read(&FileMedium { file: &file, sector: 512 }).unwrap().partitions(), old);
}
