//! The disk of a machine under test, as a drive with a write cache that is lost when the power goes.
//!
//! QEMU talks NBD to it ([`nbd`]). A write is acknowledged once it is in the cache and durable only after a flush, as
//! the guest was told. That makes three things possible which a file behind QEMU can't do: power fails exactly between
//! two requests, counted and not timed; what was not flushed is lost, whole or sector by sector as a seed decides; and
//! bits flip underneath a running machine.

mod nbd;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;

pub use bascule_sim::disk::Loss;
pub use nbd::Server;

/// What a drive writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// Granularity of the cache, in bytes.
const PAGE: u64 = 4096;

/// The kind of request that a cut waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads, which measure how far a boot has come.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
}

/// When the power goes: instead of answering the request that comes after `after` others of this kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Which requests are counted.
    pub access: Access,
    /// Only those that touch these bytes of the disk; flushes have none and always count.
    pub bytes: Range<u64>,
    /// How many pass first.
    pub after: u64,
}

/// How many requests a disk has answered since its machine was switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// A handle to one disk; clones share it.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    shared: Arc<Mutex<State>>,
    /// Turns true when a cut has happened.
    dead: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    file: File,
    length: u64,
    cache: BTreeMap<u64, Page>,
    cut: Option<Cut>,
    powered: bool,
    served: Served,
}

/// A page of the cache; only its dirty sectors count.
#[derive(Debug)]
struct Page {
    bytes: Box<[u8; PAGE as usize]>,
    dirty: u8,
}

/// What the drive answers.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    /// The power is gone: nothing is answered any more.
    Silence,
}

impl Disk {
    /// The disk whose medium is this file.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let state =
            State { file, length, cache: BTreeMap::new(), cut: None, powered: false, served: Served::default() };
        Ok(Self { path: path.to_owned(), shared: Arc::new(Mutex::new(state)), dead: watch::Sender::new(false) })
    }

    /// The medium.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Switches the drive on; counting begins anew.
    pub fn power_on(&self) {
        let mut state = self.state();
        state.powered = true;
        state.served = Served::default();
        self.dead.send_replace(false);
    }

    /// Switches the drive off: the cache is lost as `loss` says. Requests after this are never answered.
    ///
    /// # Errors
    /// When the medium can't be written.
    pub fn power_off(&self, loss: Loss) -> io::Result<()> {
        let mut state = self.state();
        state.powered = false;
        state.cut = None;
        match loss {
            Loss::Nothing => state.flush()?,
            Loss::Everything => {}
            // Of a sector that was written more than once the newest version is all that this cache holds.
            Loss::Torn(seed) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                for page in state.cache.values_mut() {
                    page.dirty &= random.random::<u8>();
                }
                state.flush()?;
            }
            Loss::Chosen(mask) => {
                let mut number = 0_u32;
                for page in state.cache.values_mut() {
                    for sector in (0..u8::BITS).map(|bit| 1_u8 << bit) {
                        if page.dirty & sector != 0 {
                            if mask.checked_shr(number).is_none_or(|rest| rest & 1 == 0) {
                                page.dirty &= !sector;
                            }
                            number = number.saturating_add(1);
                        }
                    }
                }
                state.flush()?;
            }
        }
        state.cache.clear();
        Ok(())
    }

    /// Arms a cut, instead of one that was armed before. Counting begins now.
    pub fn cut_at(&self, cut: Cut) {
        self.state().cut = Some(cut);
    }

    /// Takes back a cut that did not happen. Returns how many more requests it would have waited for.
    pub fn take_back(&self) -> Option<u64> {
        self.state().cut.take().map(|cut| cut.after)
    }

    /// Returns once the armed cut has happened. The machine is to be killed then.
    pub async fn cut(&self) {
        let mut dead = self.dead.subscribe();
        // The sender lives as long as this handle.
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// Whether a cut has happened since the drive was switched on.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        *self.dead.borrow()
    }

    /// What was asked since the drive was switched on.
    #[must_use]
    pub fn served(&self) -> Served {
        self.state().served
    }

    /// Reads what the machine would read.
    ///
    /// # Errors
    /// When the range is outside the disk or the medium can't be read.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.state().read(offset, buffer)
    }

    /// Flips one bit of the medium, below the cache and without the machine's knowledge.
    ///
    /// # Errors
    /// When the medium can't be read or written.
    pub fn flip_bit(&self, offset: u64, bit: u8) -> io::Result<()> {
        let state = self.state();
        let mut byte = [0];
        state.file.read_exact_at(&mut byte, offset)?;
        state.file.write_all_at(&byte.map(|byte| byte ^ (1 << (bit % 8))), offset)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as it was between two requests.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Answer> {
        let mut state = self.state();
        if self.power_fails(&mut state, Access::Read, offset, buffer.len() as u64) {
            return Ok(Answer::Silence);
        }
        state.served.reads += 1;
        state.read(offset, buffer).map(|()| Answer::Done)
    }

    fn serve_write(&self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<Answer> {
        let mut state = self.state();
        if self.power_fails(&mut state, Access::Write, offset, bytes.len() as u64) {
            return Ok(Answer::Silence);
        }
        state.served.writes += 1;
        state.write(offset, bytes)?;
        if durable {
            state.flush()?;
        }
        Ok(Answer::Done)
    }

    fn serve_flush(&self) -> io::Result<Answer> {
        let mut state = self.state();
        if self.power_fails(&mut state, Access::Flush, 0, 0) {
            return Ok(Answer::Silence);
        }
        state.served.flushes += 1;
        state.flush().map(|()| Answer::Done)
    }

    fn power_fails(&self, state: &mut State, access: Access, offset: u64, length: u64) -> bool {
        if !state.powered {
            return true;
        }
        let Some(cut) = &mut state.cut else { return false };
        let touches = access == Access::Flush || (offset < cut.bytes.end && cut.bytes.start < offset + length);
        if cut.access != access || !touches {
            return false;
        }
        if cut.after > 0 {
            cut.after -= 1;
            return false;
        }
        state.cut = None;
        state.powered = false;
        self.dead.send_replace(true);
        true
    }
}

impl State {
    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length && offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR) => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{length} bytes at {offset}"))),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = buffer.len() as u64;
        self.check(offset, length)?;
        self.file.read_exact_at(buffer, offset)?;
        for (number, page) in self.cache.range(offset / PAGE..(offset + length).div_ceil(PAGE)) {
            for sector in page.dirty_sectors() {
                let at = number * PAGE + sector * SECTOR;
                let Some(place) = at.checked_sub(offset).map(|place| place as usize) else { continue };
                if let (Some(to), Some(from)) = (buffer.get_mut(place..place + SECTOR as usize), page.sector(sector)) {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        for (index, content) in bytes.chunks_exact(SECTOR as usize).enumerate() {
            let at = offset + index as u64 * SECTOR;
            let page =
                self.cache.entry(at / PAGE).or_insert_with(|| Page { bytes: Box::new([0; PAGE as usize]), dirty: 0 });
            let sector = at % PAGE / SECTOR;
            let place = (sector * SECTOR) as usize;
            if let Some(to) = page.bytes.get_mut(place..place + SECTOR as usize) {
                to.copy_from_slice(content);
                page.dirty |= 1 << sector;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (number, page) in std::mem::take(&mut self.cache) {
            if page.dirty == u8::MAX {
                self.file.write_all_at(page.bytes.as_slice(), number * PAGE)?;
                continue;
            }
            for sector in page.dirty_sectors() {
                if let Some(content) = page.sector(sector) {
                    self.file.write_all_at(content, number * PAGE + sector * SECTOR)?;
                }
            }
        }
        Ok(())
    }
}

impl Page {
    fn dirty_sectors(&self) -> impl Iterator<Item = u64> {
        let dirty = self.dirty;
        (0..PAGE / SECTOR).filter(move |sector| dirty & (1 << sector) != 0)
    }

    fn sector(&self, sector: u64) -> Option<&[u8]> {
        let place = (sector * SECTOR) as usize;
        self.bytes.get(place..place + SECTOR as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::NamedTempFile, Disk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::open(file.path()).unwrap();
        disk.power_on();
        (file, disk)
    }

    fn first_byte(disk: &Disk, sector: u64) -> u8 {
        let mut bytes = [0; SECTOR as usize];
        disk.read(sector * SECTOR, &mut bytes).unwrap();
        bytes[0]
    }

    #[test]
    fn only_what_was_flushed_survives_a_power_cut_that_loses_everything() {
        let (_file, disk) = disk();
        disk.serve_write(0, &[1; 512], false).unwrap();
        disk.serve_flush().unwrap();
        disk.serve_write(0, &[2; 512], false).unwrap();
        disk.serve_write(512, &[3; 512], true).unwrap();
        disk.serve_write(1024, &[4; 512], false).unwrap();
        assert_eq!(first_byte(&disk, 2), 4, "the machine sees its own writes");
        disk.power_off(Loss::Everything).unwrap();
        assert_eq!([0, 1, 2].map(|sector| first_byte(&disk, sector)), [2, 3, 0]);
    }

    #[test]
    fn a_seed_repeats_which_sectors_are_lost_and_tears_within_a_page() {
        let lost = |seed| {
            let (_file, disk) = disk();
            disk.serve_write(0, &[9; 64 * 512], false).unwrap();
            disk.power_off(Loss::Torn(seed)).unwrap();
            (0..64).map(|sector| first_byte(&disk, sector)).collect::<Vec<_>>()
        };
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
        assert!(lost(1).contains(&0) && lost(1).contains(&9));
    }

    #[test]
    fn of_chosen_sectors_those_whose_bit_is_set_are_kept() {
        let (_file, disk) = disk();
        // Two of one page, and one of another.
        disk.serve_write(512, &[7; 2 * 512], false).unwrap();
        disk.serve_write(8192, &[7; 512], false).unwrap();
        disk.power_off(Loss::Chosen(0b101)).unwrap();
        assert_eq!([1, 2, 16].map(|sector| first_byte(&disk, sector)), [7, 0, 7]);
    }

    #[test]
    fn a_cut_counts_only_the_requests_it_names_and_silences_all_after() {
        let (_file, disk) = disk();
        disk.cut_at(Cut { access: Access::Write, bytes: 4096..8192, after: 1 });
        assert_eq!(disk.serve_write(0, &[1; 512], false).unwrap(), Answer::Done);
        assert_eq!(disk.serve_write(4096, &[1; 512], false).unwrap(), Answer::Done);
        assert_eq!(disk.serve_write(8192, &[1; 512], false).unwrap(), Answer::Done);
        assert!(!disk.is_cut());
        assert_eq!(disk.take_back(), Some(0));
        disk.cut_at(Cut { access: Access::Write, bytes: 4096..8192, after: 0 });
        assert_eq!(disk.serve_write(4096, &[2; 8192], false).unwrap(), Answer::Silence);
        assert!(disk.is_cut());
        assert_eq!(disk.serve_flush().unwrap(), Answer::Silence);
        disk.power_off(Loss::Nothing).unwrap();
        assert_eq!(first_byte(&disk, 8), 1);
    }

    #[test]
    fn requests_outside_the_disk_are_refused() {
        let (_file, disk) = disk();
        assert!(disk.serve_write(1 << 20, &[0; 512], false).is_err());
        assert!(disk.serve_read(u64::MAX - 511, &mut [0; 512]).is_err());
        assert!(disk.serve_write(100, &[0; 512], false).is_err());
    }
}
