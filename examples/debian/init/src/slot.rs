//! Finds the slot to run: its data partition carries the first half of the root hash as its PARTUUID, its verity
//! partition the second (Discoverable Partitions Specification, "Verity").

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bascule_gpt::{FileMedium, Table};
use uuid::Uuid;

use crate::Error;
use crate::system::DeviceEvents;

/// How long disks may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// The two partitions of a slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) data: PathBuf,
    pub(crate) hashes: PathBuf,
}

pub(crate) fn find(root_hash: &[u8; 32]) -> Result<Slot, Error> {
    let (data, hashes) = halves(root_hash);
    let events = DeviceEvents::subscribe()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        for disk in disks() {
            if let (Some(data), Some(hashes)) = partitions(&disk, data, hashes) {
                return Ok(Slot { data, hashes });
            }
        }
        if !events.wait_until(deadline) {
            return Err(Error::NoSlot { data, hashes });
        }
    }
}

/// The PARTUUIDs that a root hash spells.
fn halves(root_hash: &[u8; 32]) -> (Uuid, Uuid) {
    let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let (data, hashes) = root_hash.split_at(16);
    (Uuid::from_u128(number(data)), Uuid::from_u128(number(hashes)))
}

fn disks() -> Vec<PathBuf> {
    let mut disks: Vec<PathBuf> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(Path::new("/dev").join(entry.ok()?.file_name())))
        .collect();
    disks.sort();
    disks
}

fn partitions(disk: &Path, data: Uuid, hashes: Uuid) -> (Option<PathBuf>, Option<PathBuf>) {
    let Ok(file) = File::open(disk) else { return (None, None) };
    // The table itself tells what the sectors are: its header is in the second one.
    let read = |sector| Table::read(&FileMedium { file: &file, sector }).ok();
    let Some(table) = read(512).or_else(|| read(4096)) else { return (None, None) };
    let find = |uuid: Uuid| {
        let partition = table.partitions().into_iter().find(|partition| partition.uuid == uuid)?;
        Some(node(disk, partition.number)).filter(|node| node.exists())
    };
    (find(data), find(hashes))
}

/// The kernel puts a "p" between a disk's name and the number when the name ends in a digit.
fn node(disk: &Path, number: u32) -> PathBuf {
    let name = disk.to_string_lossy();
    let separator = if name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    PathBuf::from(format!("{name}{separator}{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_hash_spells_two_partuuids() {
        let mut hash = [0; 32];
        hash.iter_mut().zip(0..).for_each(|(byte, at)| *byte = at);
        let (data, hashes) = halves(&hash);
        assert_eq!(data.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(hashes.to_string(), "10111213-1415-1617-1819-1a1b1c1d1e1f");
    }

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        assert_eq!(node(Path::new("/dev/vda"), 2), Path::new("/dev/vda2"));
        assert_eq!(node(Path::new("/dev/nvme0n1"), 3), Path::new("/dev/nvme0n1p3"));
    }
}
