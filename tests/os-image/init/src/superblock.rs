//! The dm-verity superblock and the device-mapper table that follows from it
//! (cryptsetup wiki, "DMVerity on-disk format"; kernel documentation, device-mapper/verity).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::Error;
use crate::slot::Slot;

const SIZE: usize = 512;
/// Device-mapper counts in sectors of 512 bytes.
const SECTOR: u64 = 512;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    uuid: [u8; 16],
    data_block_size: u32,
    hash_block_size: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

pub(crate) fn read(path: &Path) -> Result<Superblock, Error> {
    let mut bytes = [0; SIZE];
    let step = || Error::system(format!("reading {}", path.display()));
    File::open(path).map_err(step())?.read_exact(&mut bytes).map_err(step())?;
    Superblock::parse(&bytes).map_err(|why| Error::Superblock { path: path.to_owned(), why })
}

impl Superblock {
    fn parse(bytes: &[u8; SIZE]) -> Result<Self, &'static str> {
        let u32_at = |offset: usize| le(bytes, offset, 4).and_then(|value| u32::try_from(value).ok());
        if bytes.get(..8) != Some(b"verity\0\0") {
            return Err("wrong signature");
        }
        if (u32_at(8), u32_at(12)) != (Some(1), Some(1)) {
            return Err("version or hash type is not 1");
        }
        if bytes.get(32..39) != Some(b"sha256\0") {
            return Err("the algorithm is not sha256");
        }
        let size = |offset| match u32_at(offset) {
            Some(size) if size.is_power_of_two() && (512..=65536).contains(&size) => Ok(size),
            _ => Err("a block size is out of range"),
        };
        let (data_block_size, hash_block_size) = (size(64)?, size(68)?);
        let data_blocks = le(bytes, 72, 8).ok_or("truncated")?;
        if data_blocks == 0 || data_blocks.checked_mul(u64::from(data_block_size)).is_none() {
            return Err("the number of blocks is out of range");
        }
        let salt_size = le(bytes, 80, 2).and_then(|size| usize::try_from(size).ok()).ok_or("truncated")?;
        if salt_size > 256 {
            return Err("the salt is too long");
        }
        let salt = bytes.get(88..88 + salt_size).ok_or("truncated")?.to_vec();
        let uuid = bytes.get(16..32).and_then(|uuid| uuid.try_into().ok()).ok_or("truncated")?;
        Ok(Self { uuid, data_block_size, hash_block_size, data_blocks, salt })
    }

    /// Size of the protected device.
    pub(crate) fn sectors(&self) -> u64 {
        self.data_blocks * u64::from(self.data_block_size) / SECTOR
    }

    /// The device's name for itself, in the form that cryptsetup and systemd give theirs.
    pub(crate) fn device_uuid(&self, name: &str) -> String {
        format!("CRYPT-VERITY-{}-{name}", hex::encode(self.uuid))
    }

    /// Parameters of the verity target. The tree begins in the block after the superblock.
    pub(crate) fn table(&self, slot: &Slot, root_hash: &[u8; 32], on_corruption: Option<&str>) -> String {
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex::encode(&self.salt) };
        let options = on_corruption.map(|option| format!(" 1 {option}")).unwrap_or_default();
        format!(
            "1 {} {} {} {} {} 1 sha256 {} {salt}{options}",
            slot.data.display(),
            slot.hashes.display(),
            self.data_block_size,
            self.hash_block_size,
            self.data_blocks,
            hex::encode(root_hash),
        )
    }
}

/// A little-endian number of up to eight bytes.
fn le(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let field = bytes.get(offset..offset + length)?;
    Some(field.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(b"verity\0\0");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[16..32].copy_from_slice(&[7; 16]);
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&300u64.to_le_bytes());
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xca, 0xfe]);
        bytes
    }

    #[test]
    fn a_superblock_becomes_a_table() {
        let superblock = Superblock::parse(&sample()).unwrap();
        assert_eq!(superblock.sectors(), 2400);
        let slot = Slot { data: "/dev/vda2".into(), hashes: "/dev/vda3".into() };
        assert_eq!(
            superblock.table(&slot, &[0xab; 32], Some("restart_on_corruption")),
            format!("1 /dev/vda2 /dev/vda3 4096 4096 300 1 sha256 {} cafe 1 restart_on_corruption", "ab".repeat(32))
        );
        assert_eq!(superblock.device_uuid("root"), format!("CRYPT-VERITY-{}-root", "07".repeat(16)));
    }

    #[test]
    fn whatever_is_out_of_range_is_refused() {
        for (offset, value) in [(0, 0), (8, 2), (12, 0), (32, 0), (64, 1), (66, 0xff), (79, 0xff), (81, 0xff)] {
            let mut bytes = sample();
            bytes[offset] = value;
            assert!(Superblock::parse(&bytes).is_err(), "byte {offset}");
        }
    }
}
