//! `sgdisk` says what a table is; ours must be one to it, before and after each change.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;

use bascule_gpt::{Change, Copy, FileMedium, Geometry, Health, Medium as _, NewPartition, Table};
use uuid::Uuid;

const LENGTH: u64 = 8 << 20;

fn partition(number: u32, length: u64, label: &str) -> NewPartition {
    let kind = Uuid::from_u128(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
    NewPartition { number, kind, uuid: Uuid::from_u128(u128::from(number)), length, label: label.to_owned() }
}

fn disk(folder: &Path) -> File {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = open(&folder.join("disk")).unwrap();
    file.set_len(LENGTH).unwrap();
    file
}

fn judge(folder: &Path, argument: &str) -> String {
    let output = Command::new("sgdisk").arg(argument).arg(folder.join("disk")).output().expect("install gdisk");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_new_table_and_each_change_of_it_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk(folder.path());
    let medium = FileMedium { file: &file, sector: 512 };
    let partitions = [partition(1, 1 << 20, "ESP"), partition(3, (64 << 10) + 1, "1.0")];
    let table = Table::create(medium.geometry().unwrap(), Uuid::from_u128(7), 4096, &partitions).unwrap();
    table.install(&medium).unwrap();
    assert!(judge(folder.path(), "-v").contains("No problems found"));
    assert!(judge(folder.path(), "-i3").contains("Partition name: '1.0'"));

    let mut read = Table::read(&medium).unwrap();
    assert_eq!(read.health(), Health::Good);
    let third = read.partition(3).unwrap();
    assert_eq!((third.length, third.start % 4096), (68 << 10, 0));
    assert_eq!(read.partitions().iter().map(|found| found.number).collect::<Vec<_>>(), [1, 3]);
    read.change(3, &Change { label: Some("1.1".to_owned()), set: 1 << 60, ..Change::default() }).unwrap();
    // Between its two copies a change is a broken backup, or none: the primary says the old until it says the new.
    read.write_copy(&medium, Copy::Backup).unwrap();
    let between = Table::read(&medium).unwrap();
    assert_eq!((between.health(), between.partition(3).unwrap().label), (Health::BackupBroken, "1.0".to_owned()));
    read.write(&medium).unwrap();
    assert!(judge(folder.path(), "-v").contains("No problems found"));
    assert!(judge(folder.path(), "-i3").contains("Partition name: '1.1'"));
    assert!(read.change(2, &Change::default()).is_err(), "there is no such partition");
}

#[test]
fn what_does_not_fit_is_refused() {
    let geometry = Geometry { length: LENGTH, sector: 512 };
    let create = |partitions: &[NewPartition]| Table::create(geometry, Uuid::from_u128(7), 4096, partitions);
    assert!(create(&[partition(1, LENGTH, "too long")]).is_err());
    assert!(create(&[partition(4000, 4096, "no such number")]).is_err());
    let folder = tempfile::tempdir().unwrap();
    let file = disk(folder.path());
    assert!(Table::read(&FileMedium { file: &file, sector: 512 }).is_err(), "zeros are no table");
}
