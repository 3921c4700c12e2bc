//! A block device that remembers what was written and what was flushed, and that can go wrong in every way a disk can.
//!
//! It lives in memory (for power cuts by the ten thousand) or in a sparse file (for the machines of the sandbox).
//! Reads through the page cache see every write; reads past it see what the medium holds, which differs once the disk
//! lied or a flush failed. Each partition, and the disk as a whole, is written through a cache of its own, because
//! `fsync` of one block device node leaves the dirty pages of another where they are.

mod fault;
mod overlay;
mod pages;
mod part;
mod record;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use fault::{Access, Effect, FaultRule};
pub(crate) use overlay::{Overlay, write_back};
pub use pages::Pages;
pub use part::Part;
pub(crate) use part::seek;
pub use record::{Files, Loss, Operation, Recording, Snapshot};

/// Bytes in a sector: the unit that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Through which cache an access goes: 0 is the whole disk, n is partition n (from 1, as in the GPT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cache(pub u32);

impl Cache {
    /// The device node of the whole disk, through which partition tables are written.
    pub const WHOLE: Cache = Cache(0);
}

impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("the disk"),
            number => write!(f, "partition {number}"),
        }
    }
}

/// A handle to one disk; clones share it, [`Disk::snapshot`] copies it.
#[derive(Clone, Debug)]
pub struct Disk {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    medium: Medium,
    /// What reads through the page cache see, once that differs from the medium.
    cached: Option<Pages>,
    /// The state partition's files (disks in memory only).
    files: Files,
    /// Since [`Disk::start_recording`].
    recording: Option<(Snapshot, Vec<Operation>)>,
    /// Writes that are not durable, kept only so that a failing flush can take them back (offset, bytes before).
    undo: Vec<(Cache, u64, Vec<u8>)>,
    faults: Vec<FaultRule>,
}

#[derive(Debug)]
enum Medium {
    Memory(Pages),
    File { file: File, length: u64 },
}

impl Medium {
    fn length(&self) -> u64 {
        match self {
            Medium::Memory(pages) => pages.length(),
            Medium::File { length, .. } => *length,
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Medium::Memory(pages) => pages.read(offset, buffer),
            Medium::File { file, .. } => file.read_exact_at(buffer, offset)?,
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Medium::Memory(pages) => pages.write(offset, data),
            Medium::File { file, .. } => file.write_all_at(data, offset)?,
        }
        Ok(())
    }
}

impl Disk {
    /// An empty disk of `length` bytes in memory.
    pub fn in_memory(length: u64) -> Self {
        Self::from_snapshot(Snapshot { pages: Pages::new(length), files: Files::new() })
    }

    /// A disk in memory with this content, for example what a power cut left.
    pub fn from_snapshot(snapshot: Snapshot) -> Self {
        Self::with(Medium::Memory(snapshot.pages), snapshot.files)
    }

    /// Creates a sparse file of `length` bytes as a disk; an existing file is emptied first.
    pub fn create_file(path: &Path, length: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(length)?;
        Ok(Self::with(Medium::File { file, length }, Files::new()))
    }

    /// Opens a disk image file. Several processes may hold it at once; they see each other's writes at once.
    pub fn open_file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::with(Medium::File { file, length }, Files::new()))
    }

    fn with(medium: Medium, files: Files) -> Self {
        let state = State { medium, cached: None, files, recording: None, undo: Vec::new(), faults: Vec::new() };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another thread leaves plain bytes behind; there is no invariant that it could have broken.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.state().medium.length()
    }

    /// What the medium holds, as a disk in memory of its own. `None` for a disk in a file.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.state().snapshot()
    }

    /// Adds a rule of what goes wrong from now on. The first rule that strikes decides.
    pub fn inject(&self, rule: FaultRule) {
        self.state().faults.push(rule);
    }

    /// The disk is well again.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// A restart of the machine: the page cache is gone, and with it every lie that it covered up.
    pub fn forget_cache(&self) {
        let mut state = self.state();
        state.cached = None;
        state.undo.clear();
    }

    /// Takes the rules away for a while, with what they have counted.
    pub fn suspend_faults(&self) -> Vec<FaultRule> {
        std::mem::take(&mut self.state().faults)
    }

    /// Puts rules back that were suspended.
    pub fn resume_faults(&self, rules: Vec<FaultRule>) {
        self.state().faults.extend(rules);
    }

    /// Begins to record. A disk in a file is not recorded: power is cut only in memory.
    pub fn start_recording(&self) {
        let mut state = self.state();
        if let Some(base) = state.snapshot() {
            state.recording = Some((base, Vec::new()));
        }
    }

    /// Ends the recording that [`Disk::start_recording`] began and hands it out; `None` where none was begun.
    pub fn take_recording(&self) -> Option<Recording> {
        let (base, operations) = self.state().recording.take()?;
        Some(Recording::new(base, operations))
    }

    /// Number of operations recorded so far (0 when nothing is recorded): a place to come back to in the recording.
    pub fn recorded(&self) -> usize {
        self.state().recording.as_ref().map_or(0, |(_, operations)| operations.len())
    }

    /// Adds a line to the story that the recording tells.
    pub fn note(&self, line: impl Into<String>) {
        if let Some((_, operations)) = &mut self.state().recording {
            operations.push(Operation::Note(line.into()));
        }
    }

    /// Reads through the page cache. Errors: EIO as injected, EINVAL past the end.
    pub fn read(&self, cache: Cache, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check(Access::Read, cache, offset, buffer.len())?;
        match &state.cached {
            Some(pages) => pages.read(offset, buffer),
            None => state.medium.read(offset, buffer)?,
        }
        Ok(())
    }

    /// Reads past the page cache (O_DIRECT): what the medium really holds.
    pub fn read_direct(&self, cache: Cache, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check(Access::Read, cache, offset, buffer.len())?;
        state.medium.read(offset, buffer)
    }

    fn peek(&self, offset: u64, cached: &mut [u8], medium: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        state.medium.read(offset, medium)?;
        match &state.cached {
            Some(pages) => pages.read(offset, cached),
            None => cached.copy_from_slice(medium),
        }
        Ok(())
    }

    /// Writes through the cache and says how many bytes were taken: fewer than given only if a fault says so.
    pub fn write(&self, cache: Cache, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.state().write(cache, offset, data)
    }

    /// Writes all of `data`, calling [`Disk::write`] as often as it takes.
    pub fn write_all(&self, cache: Cache, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0usize;
        while done < data.len() {
            done += self.write(cache, offset + done as u64, data.get(done..).unwrap_or(&[]))?;
        }
        Ok(())
    }

    /// A file of the state partition. `cache` is the state partition's: faults of reading it apply.
    pub fn file(&self, cache: Cache, name: &str) -> io::Result<Option<Arc<[u8]>>> {
        let mut state = self.state();
        state.check(Access::Read, cache, 0, 0)?;
        Ok(state.files.get(name).cloned())
    }

    /// Replaces (or removes) a file of the state partition, durably. Faults of writing and flushing that partition apply.
    pub fn set_file(&self, cache: Cache, name: &str, content: Option<&[u8]>) -> io::Result<()> {
        let mut state = self.state();
        state.check(Access::Write, cache, 0, 0)?;
        state.check(Access::Flush, cache, 0, 0)?;
        let content: Option<Arc<[u8]>> = content.map(Arc::from);
        match &content {
            Some(content) => state.files.insert(name.to_owned(), content.clone()),
            None => state.files.remove(name),
        };
        if let Some((_, operations)) = &mut state.recording {
            operations.push(Operation::File { name: name.to_owned(), content });
        }
        Ok(())
    }

    /// Makes the writes of `cache` durable.
    pub fn flush(&self, cache: Cache) -> io::Result<()> {
        self.state().flush(cache)
    }
}

impl State {
    fn snapshot(&self) -> Option<Snapshot> {
        match &self.medium {
            Medium::Memory(pages) => Some(Snapshot { pages: pages.clone(), files: self.files.clone() }),
            Medium::File { .. } => None,
        }
    }

    /// Bounds, and the faults that are plain errors; returns the effect of a fault that is not.
    fn check(&mut self, access: Access, cache: Cache, offset: u64, length: usize) -> io::Result<Option<Effect>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.medium.length()) {
            // EINVAL, as pread and pwrite of a block device past its end.
            return Err(io::Error::from_raw_os_error(22));
        }
        let effect = self.faults.iter_mut().find_map(|rule| rule.strikes(access, cache).then_some(rule.effect));
        match (effect.and_then(Effect::error), effect, access) {
            (Some(error), ..) => Err(error),
            (None, Some(Effect::Short(_)), Access::Read) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(effect),
        }
    }

    fn write(&mut self, cache: Cache, offset: u64, data: &[u8]) -> io::Result<usize> {
        let effect = self.check(Access::Write, cache, offset, data.len())?;
        let taken = match effect {
            Some(Effect::Short(limit)) => data.get(..limit.clamp(1, data.len().max(1))).unwrap_or(data),
            _ => data,
        };
        let reaches: Option<Vec<u8>> = match effect {
            Some(Effect::Lose) => None,
            Some(Effect::FlipBit(which)) => {
                let mut wrong = taken.to_vec();
                let bit = which % (wrong.len().max(1) as u64 * 8);
                if let Some(byte) = wrong.get_mut((bit / 8) as usize) {
                    *byte ^= 1 << (bit % 8);
                }
                Some(wrong)
            }
            _ => Some(taken.to_vec()),
        };
        if reaches.as_deref() != Some(taken) {
            self.diverge();
        }
        if let Some(cached) = &mut self.cached {
            cached.write(offset, taken);
        }
        if let Some(bytes) = reaches {
            if self.faults.iter().any(|rule| rule.access == Access::Flush) {
                let mut before = vec![0; bytes.len()];
                self.medium.read(offset, &mut before)?;
                self.undo.push((cache, offset, before));
            }
            self.medium.write(offset, &bytes)?;
            if self.recording.is_some() {
                // A cache writes whole sectors back, whatever the length of the call was.
                let start = offset - offset % SECTOR as u64;
                let end = (offset + bytes.len() as u64).next_multiple_of(SECTOR as u64).min(self.medium.length());
                let mut whole = vec![0; (end - start) as usize];
                self.medium.read(start, &mut whole)?;
                if let Some((_, operations)) = &mut self.recording {
                    operations.push(Operation::Write { cache, offset: start, data: whole.into() });
                }
            }
        }
        Ok(taken.len())
    }

    fn flush(&mut self, cache: Cache) -> io::Result<()> {
        let outcome = self.check(Access::Flush, cache, 0, 0);
        if matches!(outcome, Ok(Some(Effect::Lose))) {
            // The disk says that it did, and did not.
            return Ok(());
        }
        if outcome.is_err() {
            self.diverge();
            let lost: Vec<_> = self.undo.extract_if(.., |(of, ..)| *of == cache).collect();
            for (_, offset, before) in lost.into_iter().rev() {
                self.medium.write(offset, &before)?;
            }
        } else {
            self.undo.retain(|(of, ..)| *of != cache);
        }
        if let Some((_, operations)) = &mut self.recording {
            operations.push(match outcome {
                Ok(_) => Operation::Flush(cache),
                Err(_) => Operation::FlushFailed(cache),
            });
        }
        outcome.map(|_| ())
    }

    /// From here the cache and the medium hold different things. Only disks in memory lie.
    fn diverge(&mut self) {
        if let (None, Medium::Memory(pages)) = (&self.cached, &self.medium) {
            self.cached = Some(pages.clone());
        }
    }
}

#[cfg(test)]
mod tests;
