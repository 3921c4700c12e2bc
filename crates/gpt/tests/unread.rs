//! A copy of the table that could not be read is not one that is broken: the failing access is the lowest, each in its turn.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::cell::{Cell, RefCell};
use std::io;

use bascule_gpt::{Change, Copy, Geometry, Health, Medium, NewPartition, Table, TableError};
use uuid::Uuid;

const SECTOR: u64 = 512;
const LENGTH: u64 = 1 << 20;
const EIO: i32 = 5;

/// A disk in memory on which some reads fail.
struct Disk {
    bytes: RefCell<Vec<u8>>,
    reads: Cell<usize>,
    fails: Box<dyn Fn(usize, u64) -> bool>,
}

impl Medium for Disk {
    fn geometry(&self) -> io::Result<Geometry> {
        Ok(Geometry { length: LENGTH, sector: SECTOR })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        if (self.fails)(self.reads.get(), offset) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let start = usize::try_from(offset).unwrap();
        let bytes = self.bytes.borrow();
        buffer.copy_from_slice(bytes.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let mut disk = self.bytes.borrow_mut();
        disk.get_mut(start..start + bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk {
    fn failing(&self, fails: impl Fn(usize, u64) -> bool + 'static) -> Self {
        Self { bytes: self.bytes.clone(), reads: Cell::new(0), fails: Box::new(fails) }
    }
}

/// Two partitions. The backup says something older than the primary, as after another tool's change, or one that broke off.
fn stale_backup() -> Disk {
    let kind = Uuid::from_u128(9);
    let partition = |number: u32| NewPartition {
        number,
        kind,
        uuid: Uuid::from_u128(number.into()),
        length: 64 << 10,
        label: "1.0".to_owned(),
    };
    let geometry = Geometry { length: LENGTH, sector: SECTOR };
    let mut table = Table::create(geometry, Uuid::from_u128(7), 4096, &[partition(1), partition(2)]).unwrap();
    let bytes = RefCell::new(vec![0; usize::try_from(LENGTH).unwrap()]);
    let disk = Disk { bytes, reads: Cell::new(0), fails: Box::new(|_, _| false) };
    table.install(&disk).unwrap();
    table.change(2, &Change { label: Some("PRT#1.1".to_owned()), ..Change::default() }).unwrap();
    table.write_copy(&disk, Copy::Primary).unwrap();
    disk
}

#[test]
fn whichever_read_fails_nothing_older_is_written_over_what_could_not_be_read() {
    let disk = stale_backup();
    let good = Table::read(&disk).unwrap();
    assert_eq!((good.health(), good.partition(2).unwrap().label.as_str()), (Health::BackupBroken, "PRT#1.1"));
    let reads = disk.failing(|_, _| false);
    Table::read(&reads).unwrap();
    for nth in 1..=reads.reads.get() {
        let failing = disk.failing(move |read, _| read == nth);
        let mut table = Table::read(&failing).unwrap();
        // It is written by whoever mends it; the fault is over by then.
        let _ = table.write(&failing);
        let now = Table::read(&failing).unwrap();
        assert_eq!(now.partition(2).unwrap().label, "PRT#1.1", "after a failing read {nth}");
    }
}

#[test]
fn a_primary_that_can_not_be_read_is_looked_at_through_the_backup_and_left_alone() {
    let disk = stale_backup();
    let failing = disk.failing(|_, offset| offset < 34 * SECTOR);
    let before = failing.bytes.borrow().clone();
    let mut table = Table::read(&failing).unwrap();
    assert_eq!((table.health(), table.partitions().len()), (Health::PrimaryUnread, 2));
    let refused = table.write(&failing).unwrap_err();
    assert!(matches!(refused, TableError::Unread { .. }), "{refused}");
    assert_eq!(*failing.bytes.borrow(), before);
}

#[test]
fn a_disk_that_can_not_be_read_is_not_said_to_have_no_table() {
    let disk = stale_backup();
    let error = Table::read(&disk.failing(|_, _| true)).unwrap_err();
    assert!(matches!(error, TableError::Disk { .. }), "{error}");
    // One is broken and the other can't be read: the same.
    disk.bytes.borrow_mut()[600] ^= 1;
    let error = Table::read(&disk.failing(|_, offset| offset > LENGTH / 2)).unwrap_err();
    assert!(matches!(error, TableError::Disk { .. }), "{error}");
    let error = Table::read(&disk.failing(|_, offset| offset < LENGTH / 2));
    assert_eq!(error.unwrap().health(), Health::PrimaryUnread);
}

#[test]
fn no_change_gives_two_partitions_one_partuuid() {
    let disk = stale_backup();
    let mut table = Table::read(&disk).unwrap();
    let change = |uuid| Change { uuid: Some(Uuid::from_u128(uuid)), ..Change::default() };
    let refused = table.change(2, &change(1)).unwrap_err();
    assert!(matches!(refused, TableError::Taken { number: 2, other: 1, .. }), "{refused}");
    table.change(2, &change(2)).unwrap();
    table.change(2, &change(3)).unwrap();
    table.change(1, &change(2)).unwrap();
}
