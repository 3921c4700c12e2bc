//! The threads: the caller's thread fetches in order, workers decode, check, write and hash.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::error::ApplyError;
use super::fetch::Fetcher;
use super::plan::{self, Step};
use super::{Applied, Apply, Report};
use crate::digest::Sha256;
use crate::pack::{Codec, Frame, FrameDecoder, FrameError};
use crate::verity::{BLOCK_SIZE, BlockHasher, TreeBuilder};
use crate::work::{AlignedBuffer, Watch};

/// Writes the image of a pack to the data slot and returns its verity tree.
///
/// Frames are fetched only if needed, checked before they are written, and flushed from time to time. The result exists only
/// if the whole tree has the root hash of the index (which [`crate::pack::PackIndex::read`] compared with the manifest); the tree
/// is not written here. After an error the slot holds whole, checked frames and whatever lay there before.
pub fn apply(job: &Apply<'_>, watch: &Watch<'_>) -> Result<Applied, ApplyError> {
    preflight(job)?;
    let run = Run {
        job,
        watch,
        hasher: BlockHasher::new(job.parameters),
        tree: TreeBuilder::new(job.parameters, job.index.image_size()),
        stopped: AtomicBool::new(false),
        written: AtomicU64::new(0),
    };
    let steps = run.scan()?;
    let ranges = plan::ranges(job.index, &steps, job.options.max_gap);
    let mut fetcher = Fetcher::new(job.source, ranges);
    run.write(&steps, &mut fetcher)?;
    let flushed = job.sink.flush();
    flushed.map_err(|source| ApplyError::Sink { action: "flushing", offset: 0, source })?;
    let mut report = Report {
        fetched_bytes: fetcher.fetched_bytes,
        requests: fetcher.requests,
        written_bytes: run.written.load(Ordering::Relaxed),
        ..Report::default()
    };
    for (frame, step) in job.index.frames().zip(&steps) {
        let counter = match (step, frame.codec) {
            (Step::Keep, _) => &mut report.kept_frames,
            (Step::Fetch, _) => &mut report.fetched_frames,
            (Step::Local, Codec::Zero) => &mut report.zero_frames,
            (Step::Local | Step::CopyFromBase, _) => &mut report.base_frames,
        };
        *counter += 1;
    }
    let tree = run.tree.finish()?;
    if tree.root_hash() != job.index.root_hash() {
        return Err(ApplyError::RootHash { expected: job.index.root_hash(), found: tree.root_hash() });
    }
    Ok(Applied { tree, report })
}

fn preflight(job: &Apply<'_>) -> Result<(), ApplyError> {
    if let Some((needed, expected)) = job.index.base() {
        let found = job.base.map(|base| base.root_hash);
        let base = job.base.filter(|base| base.root_hash == needed).ok_or(ApplyError::WrongBase { needed, found })?;
        let found = base.image.size().map_err(ApplyError::Base)?;
        // A slot may be larger than the image in it.
        if found < expected {
            return Err(ApplyError::BaseSize { expected, found });
        }
    }
    let needed = job.index.image_size();
    let size = job.sink.size().map_err(|source| ApplyError::Sink { action: "measuring", offset: 0, source })?;
    if size < needed { Err(ApplyError::SlotTooSmall { needed, found: size }) } else { Ok(()) }
}

struct Run<'a> {
    job: &'a Apply<'a>,
    watch: &'a Watch<'a>,
    hasher: BlockHasher,
    tree: TreeBuilder,
    stopped: AtomicBool,
    written: AtomicU64,
}

/// A frame on its way to a worker.
struct Task {
    number: u32,
    step: Step,
    stored: Vec<u8>,
}

impl Run<'_> {
    /// Decides for every frame what to do. Reads the slot only when resuming, and the base only for a full pack.
    fn scan(&self) -> Result<Vec<Step>, ApplyError> {
        let index = self.job.index;
        let planned = |frame: Frame<'_>| match frame.codec {
            Codec::Zero | Codec::Base => Step::Local,
            Codec::Raw | Codec::Zstd | Codec::ZstdReference => Step::Fetch,
        };
        let mut steps: Vec<Step> = index.frames().map(planned).collect();
        let same_place = self.job.base.filter(|_| index.base().is_none());
        if !self.job.options.resume && same_place.is_none() {
            return Ok(steps);
        }
        let next = AtomicU32::new(0);
        let found = Mutex::new(Vec::new());
        self.on_workers(|| {
            let mut buffer = AlignedBuffer::new(index.frame_size() as usize);
            while let Some(frame) = index.frame(next.fetch_add(1, Ordering::Relaxed)) {
                self.watch.check()?;
                if self.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let raw = buffer.prefix(frame.length as usize);
                let step = if self.job.options.resume && self.slot_holds(&frame, raw)? {
                    self.tree.put(frame.image_offset / BLOCK_SIZE as u64, &self.hasher.blocks(raw));
                    self.watch.advance(u64::from(frame.length));
                    Step::Keep
                } else if planned(frame) == Step::Fetch
                    && let Some(base) = same_place
                    && base.image.read_at(raw, frame.image_offset).is_ok()
                    && Sha256::of(raw) == frame.digest
                {
                    Step::CopyFromBase
                } else {
                    continue;
                };
                found.lock().unwrap_or_else(PoisonError::into_inner).push((frame.number, step));
            }
            Ok(())
        })?;
        for (number, step) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if let Some(slot) = steps.get_mut(number as usize) {
                *slot = step;
            }
        }
        Ok(steps)
    }

    fn slot_holds(&self, frame: &Frame<'_>, raw: &mut [u8]) -> Result<bool, ApplyError> {
        let offset = frame.image_offset;
        let read = self.job.sink.read_at(raw, offset);
        read.map_err(|source| ApplyError::Sink { action: "reading", offset, source })?;
        Ok(Sha256::of(raw) == frame.digest)
    }

    /// Runs `work` on every worker thread; the first error stops the others and is returned.
    fn on_workers(&self, work: impl Fn() -> Result<(), ApplyError> + Sync) -> Result<(), ApplyError> {
        let guarded = || work().inspect_err(|_| self.stopped.store(true, Ordering::Relaxed));
        thread::scope(|scope| {
            let handles: Vec<_> = (0..self.job.options.workers.get()).map(|_| scope.spawn(guarded)).collect();
            let join = |handle: thread::ScopedJoinHandle<'_, _>| handle.join().unwrap_or(Err(ApplyError::Worker));
            handles.into_iter().map(join).fold(Ok(()), Result::and)
        })
    }

    /// Fetches on this thread and writes on the workers.
    fn write(&self, steps: &[Step], fetcher: &mut Fetcher<'_>) -> Result<(), ApplyError> {
        // One stored frame may wait: enough that a worker never waits for this thread to wake up.
        let (tasks, queue) = mpsc::sync_channel(1);
        let (spent, buffers) = mpsc::channel();
        let queue = Mutex::new(queue);
        thread::scope(|scope| {
            let queue = &queue;
            let worker = |spent: Sender<Vec<u8>>| move || self.work(queue, &spent);
            let workers = self.job.options.workers.get();
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(worker(spent.clone()))).collect();
            let fed = self.feed(steps, fetcher, &tasks, &buffers);
            // The workers end when the queue is closed and empty.
            drop(tasks);
            let join = |handle: thread::ScopedJoinHandle<'_, _>| handle.join().unwrap_or(Err(ApplyError::Worker));
            let worked = handles.into_iter().map(join).fold(Ok(()), Result::and);
            // A worker's error is the cause, what the feeder saw of it is not.
            worked.and(fed)
        })
    }

    fn feed(
        &self,
        steps: &[Step],
        fetcher: &mut Fetcher<'_>,
        tasks: &SyncSender<Task>,
        buffers: &Receiver<Vec<u8>>,
    ) -> Result<(), ApplyError> {
        for (frame, step) in self.job.index.frames().zip(steps) {
            self.watch.check().inspect_err(|_| self.stopped.store(true, Ordering::Relaxed))?;
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            if *step == Step::Keep {
                continue;
            }
            let mut stored = Vec::new();
            if *step == Step::Fetch {
                stored = buffers.try_recv().unwrap_or_default();
                stored.resize(frame.stored_length as usize, 0);
                let fetched = fetcher.read(frame.stored_offset, &mut stored);
                fetched.inspect_err(|_| self.stopped.store(true, Ordering::Relaxed))?;
            }
            if tasks.send(Task { number: frame.number, step: *step, stored }).is_err() {
                return Err(ApplyError::Worker);
            }
        }
        Ok(())
    }

    /// Takes tasks until the queue is closed. After an error it goes on taking, so that the feeder never waits for ever.
    fn work(&self, queue: &Mutex<Receiver<Task>>, spent: &Sender<Vec<u8>>) -> Result<(), ApplyError> {
        let mut decoder = FrameDecoder::new();
        let mut buffer = AlignedBuffer::new(self.job.index.frame_size() as usize);
        let mut result = Ok(());
        loop {
            let task = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(task) = task else { return result };
            if !self.stopped.load(Ordering::Relaxed) {
                let done = self.finish_frame(&task, &mut decoder, &mut buffer);
                result = done.inspect_err(|_| self.stopped.store(true, Ordering::Relaxed));
            }
            if !task.stored.is_empty() {
                // Nobody takes it back once the feeder is done; then it is simply dropped.
                let _ = spent.send(task.stored);
            }
        }
    }

    fn finish_frame(
        &self,
        task: &Task,
        decoder: &mut FrameDecoder,
        buffer: &mut AlignedBuffer,
    ) -> Result<(), ApplyError> {
        let Some(frame) = self.job.index.frame(task.number) else { return Ok(()) };
        let raw = buffer.prefix(frame.length as usize);
        let base = self.job.base.map(|base| base.image);
        match (task.step, base) {
            (Step::CopyFromBase, Some(base)) => {
                let offset = frame.image_offset;
                let read = base.read_at(raw, offset);
                let failed = |source| ApplyError::BaseFrame(FrameError::Base { frame: frame.number, offset, source });
                read.map_err(failed)?;
                // It was right when it was looked for; a base that changes meanwhile is caught here.
                let found = Sha256::of(raw);
                if found != frame.digest {
                    let differs = FrameError::Digest { frame: frame.number, expected: frame.digest, found };
                    return Err(ApplyError::BaseFrame(differs));
                }
            }
            _ => decoder.decode(&frame, &task.stored, base, raw).map_err(|error| {
                if frame.codec.needs_base() { ApplyError::BaseFrame(error) } else { ApplyError::Frame(error) }
            })?,
        }
        let offset = frame.image_offset;
        let written = match frame.codec {
            Codec::Zero => self.job.sink.write_zeros(offset, u64::from(frame.length)),
            _ => self.job.sink.write_at(raw, offset),
        };
        written.map_err(|source| ApplyError::Sink { action: "writing", offset, source })?;
        self.tree.put(offset / BLOCK_SIZE as u64, &self.hasher.blocks(raw));
        self.flush_sometimes(u64::from(frame.length), offset)?;
        self.watch.advance(u64::from(frame.length));
        Ok(())
    }

    fn flush_sometimes(&self, length: u64, offset: u64) -> Result<(), ApplyError> {
        let every = self.job.options.flush_every.max(1);
        let before = self.written.fetch_add(length, Ordering::Relaxed);
        if before / every == (before + length) / every {
            return Ok(());
        }
        self.job.sink.flush().map_err(|source| ApplyError::Sink { action: "flushing", offset, source })
    }
}
