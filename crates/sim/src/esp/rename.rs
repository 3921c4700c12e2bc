//! A rename as Linux and EDK2 put it on the disk. fatfs removes the old name first and reuses its place, which hides
//! the states that a power cut really leaves, so its parts are put together here: the new name is created by fatfs,
//! gets the old one's clusters and length, and what fatfs' removal of the old name does to the directory comes last.
//!
//! EDK2 writes the new name with the clusters at once. Linux' vfat writes it without any: they follow when the file itself is
//! written back (fs/fat/namei_vfat.c, `vfat_rename`, and fs/fat/inode.c, `__fat_write_inode`).

use std::io;
use std::ops::Range;

use super::check::Geometry;
use super::{Esp, with_fat};
use crate::disk::{Overlay, Part, SECTOR};

/// Bytes of a directory entry (Microsoft FAT specification, section 6).
const SLOT: usize = 32;
/// First byte of a slot that is free.
const FREE: u8 = 0xe5;
/// Offset of the attributes in a slot, and their value in a part of a long name.
const ATTRIBUTES: usize = 11;
const LONG_NAME: u8 = 0x0f;

/// Where a short entry says which clusters the file has and how long it is: the high half of the first cluster; the low half and
/// the length.
const CONTENT: [Range<usize>; 2] = [20..22, 26..32];

type Changes = Vec<(u64, [u8; SECTOR])>;

/// A rename that was put together and not written.
#[derive(Clone, Debug)]
pub(super) struct Rename {
    /// The new name appears; the old one goes.
    steps: [Changes; 2],
    /// Sector and slot of the new short entry.
    entry: (u64, usize),
}

impl Rename {
    /// The sector writes where the new name has its content from the beginning.
    pub(super) fn whole(&self) -> &[Changes; 2] {
        &self.steps
    }

    /// The sector writes where the new name has no content yet.
    pub(super) fn hollow(&self) -> [Changes; 2] {
        let mut steps = self.steps.clone();
        let (sector, slot) = self.entry;
        for (_, bytes) in steps.iter_mut().flatten().filter(|(written, _)| *written == sector) {
            for place in CONTENT {
                if let Some(field) = bytes.get_mut(slot * SLOT + place.start..slot * SLOT + place.end) {
                    field.fill(0);
                }
            }
        }
        steps
    }

    /// The sector write that gives the new name its content, over what the partition holds now.
    pub(super) fn content(&self, part: &Part) -> io::Result<Changes> {
        let (sector, slot) = self.entry;
        let mut bytes = [0; SECTOR];
        part.read(sector * SECTOR as u64, &mut bytes)?;
        for (_, whole) in self.steps.iter().flatten().filter(|(written, _)| *written == sector) {
            for place in CONTENT {
                let place = slot * SLOT + place.start..slot * SLOT + place.end;
                if let (Some(target), Some(source)) = (bytes.get_mut(place.clone()), whole.get(place)) {
                    target.copy_from_slice(source);
                }
            }
        }
        Ok(vec![(sector, bytes)])
    }
}

/// Puts the sector writes of a rename together. Errors: there is no such file, or one of the new name, or the disk can't be read.
pub(super) fn prepare(part: &Part, from: &str, to: &str) -> io::Result<Rename> {
    let mut with_new = Overlay::new(part.clone());
    with_fat(&mut with_new, |fat| {
        let root = fat.root_dir();
        root.open_file(from)?;
        if root.open_file(to).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        root.create_file(to).map(|_| ())
    })?;

    let mut without_old = with_new.clone();
    with_fat(&mut without_old, |fat| fat.root_dir().remove(from))?;
    // The removal also frees the clusters, which the new name goes on using: only the directory's slots count.
    let mut removed = Vec::new();
    let mut old_entry = None;
    for (sector, after) in without_old.changes()? {
        let before = with_new.sector(sector)?;
        for (slot, (was, is)) in before.chunks(SLOT).zip(after.chunks(SLOT)).enumerate() {
            if was.first() != Some(&FREE) && is.first() == Some(&FREE) && was.get(1..) == is.get(1..) {
                removed.push((sector, slot));
                if was.get(ATTRIBUTES) != Some(&LONG_NAME) {
                    old_entry = Some(was.to_vec());
                }
            }
        }
    }
    let old_entry = old_entry.ok_or_else(|| io::Error::other(format!("{from} has no directory entry")))?;

    // The new short entry is the one slot of the new name that is no part of a long name. Everything but the short
    // name (bytes 0 to 10) comes from the old one. No directory lies before the root's: where one grows, the tables change too.
    let directories = Geometry::read(&Esp::new(part.clone()))?.root / SECTOR as u64;
    let mut new_entry = None;
    for (sector, after) in with_new.changes()?.into_iter().filter(|(sector, _)| *sector >= directories) {
        let mut before = [0; SECTOR];
        part.read(sector * SECTOR as u64, &mut before)?;
        let mut patched = after;
        let slots = before.chunks(SLOT).zip(patched.chunks_mut(SLOT)).enumerate();
        for (slot, (was, is)) in slots.filter(|(_, (was, is))| was != is) {
            let appeared = !matches!(is.first(), Some(&FREE) | Some(0));
            let short = is.get(ATTRIBUTES).is_some_and(|attributes| *attributes != LONG_NAME && attributes & 0x08 == 0);
            if appeared
                && short
                && let (Some(target), Some(source)) = (is.get_mut(ATTRIBUTES..), old_entry.get(ATTRIBUTES..))
                && is_empty_file(target)
            {
                target.copy_from_slice(source);
                new_entry = Some((sector, slot));
            }
        }
        with_new.set_sector(sector, patched);
    }
    let entry = new_entry.ok_or_else(|| io::Error::other(format!("{to} has no directory entry")))?;
    let first = with_new.changes()?;

    let mut last = with_new.clone();
    for (sector, slot) in removed {
        let mut bytes = last.sector(sector)?;
        if let Some(mark) = bytes.get_mut(slot * SLOT) {
            *mark = FREE;
        }
        last.set_sector(sector, bytes);
    }
    // The second step holds what differs from the first.
    let mut second = Vec::new();
    for (sector, bytes) in last.changes()? {
        if with_new.sector(sector)? != bytes {
            second.push((sector, bytes));
        }
    }
    Ok(Rename { steps: [first, second], entry })
}

/// Whether the tail of a slot (from the attributes on) says: no clusters, no length.
fn is_empty_file(tail: &[u8]) -> bool {
    let zero = |range: std::ops::Range<usize>| tail.get(range).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    // High half of the first cluster at 20, low half at 26, length at 28.
    zero(9..11) && zero(15..21)
}
