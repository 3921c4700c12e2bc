//! The record of what was written and flushed, and the disk as a power cut at any point of it leaves it.
//!
//! The agent runs once; afterwards every point of its run can be cut without running it again. What was flushed is
//! on the medium. Each sector with unflushed writes holds, independently of all others, one of the versions it had
//! since its last flush: that covers writes that were lost, came in another order, or tore between two sectors (a
//! sector itself is atomic, as disks promise).

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Cache, Pages, SECTOR};

/// Versions of sectors in the order in which they were written: offset in bytes, content.
type Versions<'a> = Vec<(u64, &'a [u8])>;

/// One thing that happened to the disk.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Bytes on their way to the medium.
    Write {
        /// Whose flush makes them durable.
        cache: Cache,
        /// Offset on the disk in bytes, at the start of a sector; the data are whole sectors.
        offset: u64,
        /// What the medium would hold (after a silent corruption, if one was injected).
        data: Arc<[u8]>,
    },
    /// All writes of this cache are durable from here.
    Flush(Cache),
    /// A flush failed: the unflushed writes of this cache never reach the medium.
    FlushFailed(Cache),
    /// A file of the state partition was replaced (or removed: `None`), durably.
    File {
        /// Its name.
        name: String,
        /// Its new content.
        content: Option<Arc<[u8]>>,
    },
    /// Not an access: a line for the story that a failing test prints.
    Note(String),
}

/// What happens to the writes that were not flushed when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of them made it.
    Nothing,
    /// None of them made it.
    Everything,
    /// Every sector keeps a version picked with this seed: lost, reordered, torn.
    Torn(u64),
    /// Of the pending sector versions exactly those whose bit is set made it, in order (for exhaustive runs over few
    /// of them; versions past the 64th are lost).
    Chosen(u64),
}

/// The small files of the state partition, by name.
pub type Files = BTreeMap<String, Arc<[u8]>>;

/// All that a disk in memory holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The sectors.
    pub pages: Pages,
    /// The state partition's file system. It is not simulated by sectors: it journals, and the agent replaces files in
    /// it whole and durably; what is tried is a cut between any two of those.
    pub files: Files,
}

/// A disk before, and everything that was done to it.
#[derive(Clone, Debug)]
pub struct Recording {
    base: Snapshot,
    operations: Vec<Operation>,
    /// The medium and the index of the operation that follows, each time something became durable.
    checkpoints: Vec<Checkpoint>,
}

#[derive(Clone, Debug)]
struct Checkpoint {
    /// Operations before this index are accounted for in `medium` and `pending`.
    next: usize,
    medium: Pages,
    files: Files,
    /// Indices of writes that are not durable yet.
    pending: Vec<usize>,
}

impl Recording {
    pub(super) fn new(base: Snapshot, operations: Vec<Operation>) -> Self {
        let Snapshot { pages: mut medium, mut files } = base.clone();
        let first = Checkpoint { next: 0, medium: medium.clone(), files: files.clone(), pending: Vec::new() };
        let mut checkpoints = vec![first];
        let mut pending: Vec<usize> = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            match operation {
                Operation::Note(_) => continue,
                Operation::Write { .. } => {
                    pending.push(index);
                    continue;
                }
                Operation::File { name, content: Some(content) } => {
                    files.insert(name.clone(), content.clone());
                }
                Operation::File { name, content: None } => {
                    files.remove(name);
                }
                Operation::Flush(cache) => {
                    for write in pending.extract_if(.., |write| of_cache(&operations, *write, *cache)) {
                        if let Some(Operation::Write { offset, data, .. }) = operations.get(write) {
                            medium.write(*offset, data);
                        }
                    }
                }
                Operation::FlushFailed(cache) => pending.retain(|write| !of_cache(&operations, *write, *cache)),
            }
            checkpoints.push(Checkpoint {
                next: index + 1,
                medium: medium.clone(),
                files: files.clone(),
                pending: pending.clone(),
            });
        }
        Self { base, operations, checkpoints }
    }

    /// The disk before the first operation.
    pub fn base(&self) -> &Snapshot {
        &self.base
    }

    /// What happened, in order.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The points at which a cut can make a difference: before the first operation and after each one but notes.
    pub fn cut_points(&self) -> Vec<usize> {
        let after = self.operations.iter().enumerate();
        std::iter::once(0)
            .chain(after.filter(|(_, done)| !matches!(done, Operation::Note(_))).map(|(index, _)| index + 1))
            .collect()
    }

    /// Number of sector versions that are not durable after the first `at` operations: with `n` of them
    /// [`Loss::Chosen`] has 2^n different outcomes.
    pub fn pending_versions(&self, at: usize) -> usize {
        self.pending(at).map_or(0, |(_, sectors)| sectors.len())
    }

    /// The disk after the first `at` operations and a power cut.
    pub fn cut(&self, at: usize, loss: Loss) -> Snapshot {
        let Some((checkpoint, pending)) = self.pending(at) else { return self.base.clone() };
        let mut medium = checkpoint.medium.clone();
        match loss {
            Loss::Everything => {}
            Loss::Nothing => {
                for (offset, data) in pending {
                    medium.write(offset, data);
                }
            }
            Loss::Chosen(mask) => {
                for (bit, (offset, data)) in pending.into_iter().enumerate() {
                    if bit < 64 && mask >> bit & 1 == 1 {
                        medium.write(offset, data);
                    }
                }
            }
            Loss::Torn(seed) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                let mut versions: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
                for (offset, data) in pending {
                    versions.entry(offset).or_default().push(data);
                }
                // One bias for the whole cut: nearly all made it, about half did, nearly none did.
                let kept = [0.1, 0.5, 0.9].get((random.next_u32() % 3) as usize).copied().unwrap_or(0.5);
                for (offset, of_sector) in versions {
                    if random.random_bool(kept) {
                        let pick = random.random_range(0..of_sector.len());
                        if let Some(data) = of_sector.get(pick) {
                            medium.write(offset, data);
                        }
                    }
                }
            }
        }
        Snapshot { pages: medium, files: checkpoint.files.clone() }
    }

    /// What is durable after the first `at` operations and, sector by sector, the writes that are not.
    fn pending(&self, at: usize) -> Option<(&Checkpoint, Versions<'_>)> {
        let index = self.checkpoints.partition_point(|checkpoint| checkpoint.next <= at).checked_sub(1)?;
        let checkpoint = self.checkpoints.get(index)?;
        let later = (checkpoint.next..at.min(self.operations.len())).collect::<Vec<_>>();
        let mut sectors = Vec::new();
        for write in checkpoint.pending.iter().chain(&later) {
            let Some(Operation::Write { offset, data, .. }) = self.operations.get(*write) else { continue };
            let mut at = 0usize;
            while at < data.len() {
                let position = offset + at as u64;
                let within = SECTOR - (position % SECTOR as u64) as usize;
                let end = (at + within).min(data.len());
                if let Some(part) = data.get(at..end) {
                    sectors.push((position, part));
                }
                at = end;
            }
        }
        Some((checkpoint, sectors))
    }

    /// The story up to a cut, for the message of a failing test: the last `lines` things before it.
    pub fn story(&self, at: usize, lines: usize) -> String {
        let upto = self.operations.get(..at.min(self.operations.len())).unwrap_or(&[]);
        let mut text = String::new();
        let skipped = upto.len().saturating_sub(lines);
        if skipped > 0 {
            text.push_str(&format!("  … {skipped} operations before\n"));
        }
        for (index, operation) in upto.iter().enumerate().skip(skipped) {
            let line = match operation {
                Operation::Write { cache, offset, data } => {
                    format!("write {} bytes at sector {} through {cache}", data.len(), offset / SECTOR as u64)
                }
                Operation::Flush(cache) => format!("flush {cache}"),
                Operation::FlushFailed(cache) => format!("flush {cache} fails, its writes are lost"),
                Operation::File { name, content: Some(content) } => {
                    format!("state file {name} is replaced ({} bytes)", content.len())
                }
                Operation::File { name, content: None } => format!("state file {name} is removed"),
                Operation::Note(note) => format!("— {note}"),
            };
            text.push_str(&format!("  {index:>4} {line}\n"));
        }
        text.push_str(&format!("  {at:>4} power cut\n"));
        text
    }
}

fn of_cache(operations: &[Operation], index: usize, wanted: Cache) -> bool {
    matches!(operations.get(index), Some(Operation::Write { cache, .. }) if *cache == wanted)
}
