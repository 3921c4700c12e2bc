//! A rename as Linux and EDK2 put it on the disk. fatfs removes the old name first and reuses its place, which hides
//! the states that a power cut really leaves, so its parts are put together here: the new name is created by fatfs,
//! gets the old one's clusters and length, and what fatfs' removal of the old name does to the directory comes last.
//!
//! EDK2 writes the new name with the clusters at once. Linux' vfat writes it without any: they follow when the file itself is
//! written back (fs/fat/namei_vfat.c, `vfat_rename`, and fs/fat/inode.c, `__fat_write_inode`).

use std::io;
use std::ops::Range;

use super::check::{Geometry, number};
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

    // The removal also frees the clusters, which the new name goes on using: only the directory's slots count.
    let Removal { slots: removed, entry: old_entry, .. } = removal(&mut with_new, from)?;

    // The new short entry is the one slot of the new name that is no part of a long name. Everything but the short
    // name (bytes 0 to 10) comes from the old one. No directory lies before the root's: where one grows, the tables change too.
    let directories = Geometry::read(&Esp::new(part.clone()))?.root / SECTOR as u64;
    let mut new_entry = None;
    for (sector, after) in with_new.changes()?.into_iter().filter(|(sector, _)| *sector >= directories) {
        let mut before = [0; SECTOR];
        part.read(sector * SECTOR as u64, &mut before)?;
        let mut patched = after;
        let slots = before.chunks(SLOT).zip(patched.chunks_mut(SLOT)).enumerate();
        for (slot, (_, is)) in slots.filter(|(_, (was, is))| was != is) {
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

/// The sector writes by which a file takes the place of another: the slots of both names, of which power loss may leave any part; then
/// the table without the clusters of what was there.
pub(super) fn over(part: &Part, from: &str, to: &str) -> io::Result<[Changes; 2]> {
    let mut before = Overlay::new(part.clone());
    let source = removal(&mut before, from)?;
    let target = removal(&mut before, to)?;
    let mut names = before;
    let (sector, slot) = target.place;
    let mut bytes = names.sector(sector)?;
    // Everything but the short name comes from the file that moves.
    let place = bytes.get_mut(slot * SLOT + ATTRIBUTES..(slot + 1) * SLOT);
    if let (Some(place), Some(content)) = (place, source.entry.get(ATTRIBUTES..)) {
        place.copy_from_slice(content);
    }
    names.set_sector(sector, bytes);
    for (sector, slot) in source.slots {
        let mut bytes = names.sector(sector)?;
        if let Some(mark) = bytes.get_mut(slot * SLOT) {
            *mark = FREE;
        }
        names.set_sector(sector, bytes);
    }
    let folders: Vec<u64> = target.slots.iter().map(|(sector, _)| *sector).collect();
    let clusters = target.changes.into_iter().filter(|(sector, _)| !folders.contains(sector)).collect();
    Ok([names.changes()?, clusters])
}

/// The first cluster of a file by its entry, 0 where it has none.
pub(super) fn first_cluster(part: &Part, path: &str) -> io::Result<u32> {
    let entry = removal(&mut Overlay::new(part.clone()), path)?.entry;
    Ok((number(&entry, 20, 2) << 16 | number(&entry, 26, 2)) as u32)
}

/// What fatfs' removal of a name does.
struct Removal {
    /// Sector and slot of each part of the name.
    slots: Vec<(u64, usize)>,
    /// The short entry as it was, and where it is.
    entry: Vec<u8>,
    place: (u64, usize),
    /// All sectors that change, those with its clusters among them.
    changes: Changes,
}

fn removal(base: &mut Overlay, path: &str) -> io::Result<Removal> {
    let mut without = base.clone();
    with_fat(&mut without, |fat| fat.root_dir().remove(path))?;
    let changes = without.changes()?;
    let (mut slots, mut found) = (Vec::new(), None);
    for (sector, after) in &changes {
        let before = base.sector(*sector)?;
        for (slot, (was, is)) in before.chunks(SLOT).zip(after.chunks(SLOT)).enumerate() {
            if was.first() != Some(&FREE) && is.first() == Some(&FREE) && was.get(1..) == is.get(1..) {
                slots.push((*sector, slot));
                if was.get(ATTRIBUTES) != Some(&LONG_NAME) {
                    found = Some((was.to_vec(), (*sector, slot)));
                }
            }
        }
    }
    let (entry, place) = found.ok_or_else(|| io::Error::other(format!("{path} has no directory entry")))?;
    Ok(Removal { slots, entry, place, changes })
}

/// Whether the tail of a slot (from the attributes on) says: no clusters, no length.
fn is_empty_file(tail: &[u8]) -> bool {
    let zero = |range: std::ops::Range<usize>| tail.get(range).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    // High half of the first cluster at 20, low half at 26, length at 28.
    zero(9..11) && zero(15..21)
}
