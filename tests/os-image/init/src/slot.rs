//! Finds the slot to run: its data partition carries the first half of the root hash as its PARTUUID, its verity
//! partition the second (Discoverable Partitions Specification, "Verity").

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gptman::GPT;

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
    let (data, hashes) = root_hash.split_at(16);
    let (data, hashes) = (on_disk(data), on_disk(hashes));
    let events = DeviceEvents::subscribe()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        for disk in disks() {
            if let (Some(data), Some(hashes)) = partitions(&disk, &data, &hashes) {
                return Ok(Slot { data, hashes });
            }
        }
        if !events.wait_until(deadline) {
            return Err(Error::NoSlot { data: hex::encode(data), hashes: hex::encode(hashes) });
        }
    }
}

/// A UUID as GPT stores it: the first three fields little-endian (UEFI specification, appendix A).
fn on_disk(uuid: &[u8]) -> Vec<u8> {
    [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
        .iter()
        .filter_map(|index| uuid.get(*index).copied())
        .collect()
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

fn partitions(disk: &Path, data: &[u8], hashes: &[u8]) -> (Option<PathBuf>, Option<PathBuf>) {
    let Ok(mut file) = File::open(disk) else { return (None, None) };
    let Ok(table) = GPT::find_from(&mut file) else { return (None, None) };
    let find = |uuid: &[u8]| {
        let (number, _) = table.iter().find(|(_, entry)| entry.is_used() && entry.unique_partition_guid == uuid)?;
        Some(node(disk, number)).filter(|node| node.exists())
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
    fn uuids_are_stored_with_mixed_endianness() {
        let uuid: Vec<u8> = (0..16).collect();
        assert_eq!(on_disk(&uuid), [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        assert_eq!(node(Path::new("/dev/vda"), 2), Path::new("/dev/vda2"));
        assert_eq!(node(Path::new("/dev/nvme0n1"), 3), Path::new("/dev/nvme0n1p3"));
    }
}
