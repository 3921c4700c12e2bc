//! A FAT file system in memory: what its driver wrote, piece by piece, so that it goes to the disk once and in order.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use crate::boot::BootFiles;

/// Bytes that are kept together.
const PIECE: u64 = 64 << 10;
/// From this length on clusters have 4 KiB. Smaller ones on a smaller partition: tests by the ten thousand have small disks.
const LARGE: u64 = 64 << 20;

/// All files have the same time, so that the same release gives the same bytes.
#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 2026, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

static FIXED_TIME: FixedTime = FixedTime;

/// Bytes of a partition of which only those are kept that were written.
#[derive(Debug)]
pub(crate) struct Pieces {
    length: u64,
    position: u64,
    written: BTreeMap<u64, Vec<u8>>,
}

impl Pieces {
    /// What was written, by offset in ascending order. The last one may end at the partition's end.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.written.iter().map(|(number, bytes)| {
            let offset = number * PIECE;
            let end = usize::try_from(self.length.saturating_sub(offset).min(PIECE)).unwrap_or(0);
            (offset, bytes.get(..end).unwrap_or(bytes))
        })
    }

    /// The first cluster of the root directory, as the boot sector of a FAT32 has it. Without meaning for others, whose root lies
    /// in no cluster: there it is one that no folder has.
    fn root_cluster(&self) -> [u8; 4] {
        let boot = self.written.get(&0).map_or(&[][..], Vec::as_slice);
        let sectors = boot.get(22..24).unwrap_or_default();
        let root = boot.get(44..48).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        if sectors == [0, 0] { root } else { [0xFF; 4] }
    }

    /// The piece of the current position, where in it that is, and how many of `wanted` bytes lie in it.
    fn place(&self, wanted: usize) -> (u64, usize, usize) {
        let within = self.position % PIECE;
        let left = (PIECE - within).min(self.length.saturating_sub(self.position));
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
        (self.position / PIECE, usize::try_from(within).unwrap_or(0), count)
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (number, within, count) = self.place(buffer.len());
        let target = buffer.get_mut(..count).unwrap_or_default();
        match self.written.get(&number).and_then(|piece| piece.get(within..within + count)) {
            Some(bytes) => target.copy_from_slice(bytes),
            None => target.fill(0),
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (number, within, count) = self.place(bytes.len());
        let piece = self.written.entry(number).or_insert_with(|| vec![0; PIECE as usize]);
        if let (Some(to), Some(from)) = (piece.get_mut(within..within + count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Pieces {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        let target = target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        self.position = target;
        Ok(target)
    }
}

/// Makes a FAT file system of `length` bytes with these files, labelled `label` (11 characters at most), in sectors of `sector` bytes:
/// Linux mounts none with smaller sectors than the disk's. What is not in a piece is never read.
///
/// # Errors
/// There is not enough room, or a name can't be written.
pub(crate) fn file_system(length: u64, sector: u64, label: &str, serial: u32, files: &BootFiles) -> io::Result<Pieces> {
    let mut pieces = Pieces { length, position: 0, written: BTreeMap::new() };
    let mut name = [b' '; 11];
    name.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
    let sector = u16::try_from(sector).map_err(io::Error::other)?;
    let usual: u32 = if length < LARGE { 512 } else { 4096 };
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(sector)
        .bytes_per_cluster(usual.max(u32::from(sector)))
        .volume_label(name)
        .volume_id(serial);
    fatfs::format_volume(&mut pieces, options)?;
    let fat = mount(&mut pieces)?;
    for folder in files.folders() {
        fat.root_dir().create_dir(&folder)?;
    }
    fat.unmount()?;
    // Before any file is there: all that is found now are folders.
    mend_folders(&mut pieces);
    let fat = mount(&mut pieces)?;
    for (path, content) in files.iter() {
        fat.root_dir().create_file(path)?.write_all(content)?;
    }
    // Counts what is free, which is then remembered in the file system.
    fat.stats()?;
    fat.unmount()?;
    Ok(pieces)
}

fn mount(pieces: &mut Pieces) -> io::Result<FileSystem<&mut Pieces>> {
    pieces.rewind()?;
    FileSystem::new(pieces, FsOptions::new().update_accessed_date(false).time_provider(&FIXED_TIME))
}

/// Bytes of an entry of a folder (Microsoft FAT specification, section 6).
const SLOT: usize = 32;
/// A slot that is free, with others behind it.
const FREE: [u8; SLOT] = {
    let mut slot = [0; SLOT];
    slot[0] = 0xE5;
    slot
};

/// The specification wants `.` and `..` as the first two entries of a folder, without long names, and `..` to name cluster 0 where
/// the parent is the root (section 6.5). fatfs gives both long names, and the root's own cluster, and a file system check objects.
fn mend_folders(pieces: &mut Pieces) {
    let root = pieces.root_cluster();
    for sector in pieces.written.values_mut().flat_map(|piece| piece.chunks_exact_mut(512)) {
        let (slots, _) = sector.as_chunks_mut::<SLOT>();
        let [first, second, third, fourth, ..] = slots else { continue };
        let is_long = |slot: &[u8; SLOT]| slot[11] == 0x0F;
        let dots = second.starts_with(b".          ") && fourth.starts_with(b"..         ");
        if !(dots && is_long(first) && is_long(third)) {
            continue;
        }
        let mut parent = *fourth;
        if root == [parent[26], parent[27], parent[20], parent[21]] {
            (parent[20], parent[21], parent[26], parent[27]) = (0, 0, 0, 0);
        }
        *first = *second;
        *second = parent;
        *third = FREE;
        *fourth = FREE;
    }
}
