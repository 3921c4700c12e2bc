//! Writing a slot and reading it back.

use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Mutex;

use bascule_api::{PackFallback, RootHash, SlotName};
use bascule_image::apply::{Apply, Base, Options};
use bascule_image::digest::Sha256;
use bascule_image::io::{ReadAt, Sink};
use bascule_image::pack::PackIndex;
use bascule_image::release::manifest::PackKind;
use bascule_image::verity::{self, Parameters, Superblock};
use bascule_image::work::Watch;

use super::pace::Pace;
use super::{EffectError, Engine, in_one_line};
use crate::core::{Event, Partition, ReleaseTarget};
use crate::host::TransferOptions;
use crate::observe::RunningSlots;

/// Size of the buffer a superblock is read into: one block of the verity partition.
const SUPERBLOCK: usize = 4096;

/// How a slot is filled.
#[derive(Debug, Clone, PartialEq)]
pub struct StageLimits {
    /// Most bytes a second from the repository.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Threads that decode and write; each takes a few MiB.
    pub workers: NonZeroUsize,
    /// When to rest.
    pub pressure: super::PressureLimits,
    /// Run with the lowest priority for CPU and, with it, for the disk.
    pub low_priority: bool,
}

impl Default for StageLimits {
    fn default() -> Self {
        Self {
            bytes_per_second: None,
            workers: NonZeroUsize::new(2).unwrap_or(NonZeroUsize::MIN),
            pressure: super::PressureLimits::default(),
            low_priority: true,
        }
    }
}

fn partition(doing: &'static str, partition: &Partition) -> impl FnOnce(std::io::Error) -> EffectError {
    let number = partition.number;
    move |source| EffectError::Partition { doing, number, source }
}

/// A data partition that is written through the page cache and read past it.
struct Slot {
    writer: Box<dyn Sink>,
    medium: Box<dyn ReadAt>,
}

impl ReadAt for Slot {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.medium.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.writer.size()
    }
}

impl Sink for Slot {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writer.write_at(bytes, offset)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        self.writer.write_zeros(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Engine {
    fn writable(&self, part: &Partition) -> Result<Box<dyn Sink>, EffectError> {
        self.host.disk.partition(part.number, part.extent).map_err(partition("opening", part))
    }

    fn direct(&self, part: &Partition) -> Result<Box<dyn ReadAt>, EffectError> {
        self.host.disk.partition_direct(part.number, part.extent).map_err(partition("opening", part))
    }

    /// Options of a transfer that stops when the engine is stopped.
    pub(super) fn transfer_options(&self) -> TransferOptions {
        TransferOptions { bytes_per_second: self.limits.bytes_per_second, cancel: self.stop.flag() }
    }

    /// Writes data and verity partition of a slot. Where the running slot may be made from but turns out not to be what it
    /// was, or can't be read, the full pack is applied without it; what was written until then is kept.
    pub(super) fn write_slot(
        &self,
        slots: &RunningSlots,
        target: &ReleaseTarget,
        fallback: PackFallback,
        from_running: bool,
        tell: &(dyn Fn(Event) + Sync),
    ) -> Result<(), EffectError> {
        if from_running {
            let running = &slots.partitions.get(slots.booted).0;
            let opened = self.host.disk.partition_read(running.number, running.extent);
            let written = opened.map_err(partition("opening", running)).and_then(|image| {
                let base = Base { root_hash: Sha256::from(&slots.root_hash), image: &*image };
                self.write_slot_from(Some((base, &slots.root_hash)), slots, target, fallback, tell)
            });
            match written {
                Err(EffectError::Apply(error)) if error.blames_base() => {
                    let error = in_one_line(&error);
                    tracing::error!(slot = %slots.booted, error, "the running slot is damaged: the full pack is taken");
                }
                Err(EffectError::Partition { number, source, .. }) if number == running.number => {
                    tracing::error!(slot = %slots.booted, %source, "the running slot can't be read: the full pack is taken");
                }
                written => return written,
            }
        }
        // The damage is this node's own: packs that are missing for the whole fleet are another matter.
        self.write_slot_from(None, slots, target, PackFallback::Allow, tell)
    }

    fn write_slot_from(
        &self,
        base: Option<(Base<'_>, &RootHash)>,
        slots: &RunningSlots,
        target: &ReleaseTarget,
        fallback: PackFallback,
        tell: &(dyn Fn(Event) + Sync),
    ) -> Result<(), EffectError> {
        let release = self.resolved_for(target)?;
        let manifest = release.manifest();
        let options = self.transfer_options();
        let bases = base.map_or(&[][..], |(_, root_hash)| std::slice::from_ref(root_hash));
        let opened = release.open_pack(bases, fallback, &options)?;
        for missing in &opened.report.passed_over {
            tracing::warn!(version = %target.version, missing, "a cheaper pack is missing on the server");
        }
        let pack = &opened.report.pack;
        let index = PackIndex::read(&*opened.source, manifest, pack).map_err(EffectError::Index)?;
        let (data, tree_part) = slots.partitions.get(target.slot);
        // What lies there from an earlier attempt is judged by the medium, not by the page cache: after a failed flush, or
        // on a disk that lied, the cache still holds what was never written.
        let sink = Slot { writer: self.writable(data)?, medium: self.direct(data)? };
        let pace = Pace {
            version: target.version.clone(),
            base: match &pack.kind {
                PackKind::Delta { base } => Some(base.clone()),
                PackKind::Full => None,
            },
            bytes_total: pack.transfer_bytes,
            transferred: opened.transferred.clone(),
            limits: self.limits.pressure,
            severity: release.severity(),
            clock: &*self.host.clock,
            system: &*self.host.system,
            stop: &self.stop,
            wait: &|time| self.stop.rest(time),
            tell,
            last: Mutex::new(None),
            rests: Mutex::default(),
        };
        let parameters = manifest.verity.parameters();
        let advance = |progress| pace.advance(progress);
        let cancel = self.stop.flag();
        let watch = Watch::new(manifest.image.size, Some(&advance), Some(&cancel));
        let job = Apply {
            index: &index,
            parameters: &parameters,
            source: &*opened.source,
            base: base.map(|(base, _)| base),
            sink: &sink,
            options: Options { workers: self.limits.workers, ..Options::default() },
        };
        let applied = job.run(&watch)?;
        let tree_sink = self.writable(tree_part)?;
        applied.tree.write_to(&*tree_sink).map_err(partition("writing the verity tree to", tree_part))?;
        tree_sink.flush().map_err(partition("flushing", tree_part))?;
        sink.flush().map_err(partition("flushing", data))?;
        tracing::info!(
            version = %target.version,
            slot = %target.slot,
            fetched = applied.report.fetched_bytes,
            written = applied.report.written_bytes,
            kept_frames = applied.report.kept_frames,
            requests = applied.report.requests,
            "the slot is written"
        );
        Ok(())
    }

    /// Reads a slot back past the page cache and compares its root hash.
    pub(super) fn read_back(
        &self,
        slots: &RunningSlots,
        target: &ReleaseTarget,
        tell: &dyn Fn(Event),
    ) -> Result<(), EffectError> {
        let (data_part, tree_part) = slots.partitions.get(target.slot);
        let data = self.direct(data_part)?;
        let tree = self.direct(tree_part)?;
        let (parameters, size) = match self.resolved_for(target) {
            Ok(release) => (release.manifest().verity.parameters(), release.manifest().image.size),
            // The root hash vouches for the salt: another one gives another root.
            Err(_) => self.superblock(tree_part, &*tree)?,
        };
        let cancel = self.stop.flag();
        let watch = Watch::new(size, None, Some(&cancel));
        let expected = Sha256::from(&target.root_hash);
        verity::verify(&*data, &*tree, size, &parameters, expected, self.limits.workers, &watch)
            .map_err(EffectError::ReadBack)?;
        tell(Event::Verified { slot: target.slot, root_hash: target.root_hash.clone() });
        Ok(())
    }

    fn superblock(&self, part: &Partition, tree: &dyn ReadAt) -> Result<(Parameters, u64), EffectError> {
        // Twice the block, so that there is a place in it that suits O_DIRECT.
        let mut bytes = vec![0; 2 * SUPERBLOCK];
        let start = bytes.as_ptr().align_offset(SUPERBLOCK).min(SUPERBLOCK);
        let block = bytes.get_mut(start..start + SUPERBLOCK).unwrap_or_default();
        tree.read_at(block, 0).map_err(partition("reading", part))?;
        let superblock = Superblock::parse(block).map_err(EffectError::Superblock)?;
        let size = superblock.data_blocks.saturating_mul(verity::BLOCK_SIZE as u64);
        if size > part.extent.length.saturating_mul(256) {
            let too_large = std::io::Error::from(std::io::ErrorKind::InvalidData);
            return Err(partition("believing the superblock of", part)(too_large));
        }
        Ok((superblock.parameters, size))
    }

    /// Refuses what must never be written to.
    pub(super) fn not_running(slots: &RunningSlots, slot: SlotName) -> Result<(), EffectError> {
        if slot == slots.booted {
            return Err(EffectError::Order("the running slot is never written"));
        }
        Ok(())
    }
}
