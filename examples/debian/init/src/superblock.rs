//! The device-mapper table that follows from a dm-verity superblock (kernel documentation, device-mapper/verity).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bascule_image::verity::{BLOCK_SIZE, Superblock};

use crate::Error;
use crate::slot::Slot;

/// A superblock's length in bytes.
const SIZE: usize = 512;
/// Device-mapper counts in sectors of 512 bytes.
const SECTOR: u64 = 512;

/// What dm-verity is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verity(Superblock);

pub(crate) fn read(path: &Path) -> Result<Verity, Error> {
    let mut bytes = [0; SIZE];
    let step = || Error::system(format!("reading {}", path.display()));
    File::open(path).map_err(step())?.read_exact(&mut bytes).map_err(step())?;
    let superblock = Superblock::parse(&bytes);
    superblock.map(Verity).map_err(|why| Error::Superblock { path: path.to_owned(), why })
}

impl Verity {
    /// Size of the protected device.
    pub(crate) fn sectors(&self) -> u64 {
        self.0.data_blocks.saturating_mul(BLOCK_SIZE as u64 / SECTOR)
    }

    /// The device's name for itself, in the form that cryptsetup and systemd give theirs.
    pub(crate) fn device_uuid(&self, name: &str) -> String {
        format!("CRYPT-VERITY-{}-{name}", hex::encode(self.0.parameters.uuid))
    }

    /// Parameters of the verity target. The tree begins in the block after the superblock.
    pub(crate) fn table(&self, slot: &Slot, root_hash: &[u8; 32], on_corruption: Option<&str>) -> String {
        let salt = &self.0.parameters.salt;
        let salt = if salt.is_empty() { "-".to_owned() } else { hex::encode(salt) };
        let options = on_corruption.map(|option| format!(" 1 {option}")).unwrap_or_default();
        format!(
            "1 {} {} {BLOCK_SIZE} {BLOCK_SIZE} {} 1 sha256 {} {salt}{options}",
            slot.data.display(),
            slot.hashes.display(),
            self.0.data_blocks,
            hex::encode(root_hash),
        )
    }
}

#[cfg(test)]
mod tests {
    use bascule_image::verity::Parameters;

    use super::*;

    #[test]
    fn a_superblock_becomes_a_table() {
        let parameters = Parameters { salt: vec![0xca, 0xfe], uuid: [7; 16] };
        let verity = Verity(Superblock { parameters, data_blocks: 300 });
        assert_eq!(verity.sectors(), 2400);
        let slot = Slot { data: "/dev/vda2".into(), hashes: "/dev/vda3".into() };
        assert_eq!(
            verity.table(&slot, &[0xab; 32], Some("restart_on_corruption")),
            format!("1 /dev/vda2 /dev/vda3 4096 4096 300 1 sha256 {} cafe 1 restart_on_corruption", "ab".repeat(32))
        );
        assert_eq!(verity.device_uuid("root"), format!("CRYPT-VERITY-{}-root", "07".repeat(16)));
    }
}
