//! A new folder as Linux and mkfs.fat make it. The driver gives `.` and `..` long names, and has `..` name the root's own cluster;
//! `fsck.vfat -a` corrects the first by moving entries, and writes over the clusters behind the folder when it finds no room for that.

use std::io;

use super::Esp;
use super::check::Geometry;
use crate::disk::{Overlay, SECTOR};

/// Bytes of a directory entry (Microsoft FAT specification, section 6).
const SLOT: usize = 32;
/// Slots of the folder itself and of its parent, as they are called there.
const ITSELF: &[u8] = b".          ";
const PARENT: &[u8] = b"..         ";

/// Whether a folder begins as the specification wants it (section 6.5): with itself and its parent, without long names.
pub(super) fn begins_well(folder: &[u8]) -> bool {
    let mut slots = folder.chunks_exact(SLOT);
    slots.next().is_some_and(|slot| slot.starts_with(ITSELF))
        && slots.next().is_some_and(|slot| slot.starts_with(PARENT))
}

/// Corrects a folder that the driver made in these sectors, and nothing else of them.
pub(super) fn mend(esp: &Esp, overlay: &mut Overlay) -> io::Result<()> {
    let changes = overlay.changes()?;
    // It was there already.
    if changes.is_empty() {
        return Ok(());
    }
    let root = Geometry::read(esp)?.root_cluster;
    for (sector, mut bytes) in changes {
        if mend_sector(&mut bytes, root) {
            overlay.set_sector(sector, bytes);
        }
    }
    Ok(())
}

fn mend_sector(bytes: &mut [u8; SECTOR], root: Option<u32>) -> bool {
    let (slots, _) = bytes.as_chunks_mut::<SLOT>();
    let [first, second, third, fourth, ..] = slots else { return false };
    if !(second.starts_with(ITSELF) && fourth.starts_with(PARENT)) {
        return false;
    }
    let mut parent = *fourth;
    let cluster = u32::from_le_bytes([parent[26], parent[27], parent[20], parent[21]]);
    if root == Some(cluster) {
        (parent[20], parent[21], parent[26], parent[27]) = (0, 0, 0, 0);
    }
    *first = *second;
    *second = parent;
    // Nothing else is there yet: the folder ends behind them.
    *third = [0; SLOT];
    *fourth = [0; SLOT];
    true
}
