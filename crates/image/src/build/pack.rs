//! From an image to the bytes of a pack: frames in parallel, written in order, the index last.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use super::encode::{Base, Encoded, encode};
use super::error::BuildError;
use super::search::BaseIndex;
use super::{BuiltPack, Image, Options};
use crate::digest::Sha256;
use crate::pack::{BLOCK, IndexParts, MAX_FRAME_SIZE, MIN_FRAME_SIZE, PackIndex};
use crate::release::manifest::{IndexRef, MAX_IMAGE_SIZE, PackKind};
use crate::work::Watch;

/// Writes a pack of the whole image to `output`. Progress counts bytes of the image.
pub fn build_full(
    image: Image<'_>,
    output: &mut dyn Write,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<BuiltPack, BuildError> {
    build(image, None, output, options, watch)
}

/// Writes a pack that makes the image from `base` to `output`. Progress counts bytes of the image.
pub fn build_delta(
    image: Image<'_>,
    base: Image<'_>,
    output: &mut dyn Write,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<BuiltPack, BuildError> {
    let size = checked_size("base", base)?;
    let index = BaseIndex::build(base.bytes, size, options.workers, watch)?;
    build(image, Some((Base { image: base, index }, size)), output, options, watch)
}

/// Writes one delta pack for each base to the output beside it. They are built one after the other: each uses all workers,
/// and only one base's samples are in memory. Progress counts bytes of the image once for each base.
pub fn build_deltas(
    image: Image<'_>,
    bases: &mut [(Image<'_>, &mut dyn Write)],
    options: &Options,
    watch: &Watch<'_>,
) -> Result<Vec<BuiltPack>, BuildError> {
    bases.iter_mut().map(|(base, output)| build_delta(image, *base, *output, options, watch)).collect()
}

fn checked_size(what: &'static str, image: Image<'_>) -> Result<u64, BuildError> {
    let found = image.bytes.size().map_err(|source| BuildError::Read { what, offset: 0, source })?;
    if found == 0 || found > MAX_IMAGE_SIZE || !found.is_multiple_of(BLOCK as u64) {
        return Err(BuildError::Size { what, found });
    }
    Ok(found)
}

fn build(
    image: Image<'_>,
    base: Option<(Base<'_>, u64)>,
    output: &mut dyn Write,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<BuiltPack, BuildError> {
    let image_size = checked_size("image", image)?;
    let frame_size = options.frame_size;
    if !frame_size.is_power_of_two() || !(MIN_FRAME_SIZE..=MAX_FRAME_SIZE).contains(&frame_size) {
        return Err(BuildError::FrameSize { found: frame_size });
    }
    let frame_count = image_size.div_ceil(u64::from(frame_size)) as u32;
    let next = AtomicU32::new(0);
    let stopped = AtomicBool::new(false);
    // Workers may be a little ahead of the writer.
    let (finished, in_any_order) = mpsc::sync_channel(options.workers.get() * 2);
    let work = |finished: mpsc::SyncSender<(u32, Encoded)>| -> Result<(), BuildError> {
        let mut buffer = vec![0; frame_size as usize];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= frame_count || stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            watch.check()?;
            let offset = u64::from(number) * u64::from(frame_size);
            let length = (image_size - offset).min(u64::from(frame_size)) as usize;
            let raw = buffer.get_mut(..length).unwrap_or_default();
            let read = image.bytes.read_at(raw, offset);
            read.map_err(|source| BuildError::Read { what: "image", offset, source })?;
            let encoded = encode(number, raw, base.as_ref().map(|(base, _)| base), options.effort)?;
            watch.advance(length as u64);
            if finished.send((number, encoded)).is_err() {
                return Ok(());
            }
        }
    };
    let mut writer = Writer { output, records: Vec::new(), ranges: Vec::new(), stored_length: 0, frames: [0; 5] };
    std::thread::scope(|scope| {
        let spawn = |_| {
            let finished = finished.clone();
            let work = &work;
            let stopped = &stopped;
            scope.spawn(move || work(finished).inspect_err(|_| stopped.store(true, Ordering::Relaxed)))
        };
        let handles: Vec<_> = (0..options.workers.get()).map(spawn).collect();
        drop(finished);
        let written = writer.write_in_order(in_any_order);
        stopped.store(true, Ordering::Relaxed);
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| handle.join().unwrap_or(Err(BuildError::Worker));
        handles.into_iter().map(join).fold(Ok(()), Result::and).and(written)
    })?;
    let parts = IndexParts {
        image_size,
        frame_size,
        root_hash: image.root_hash,
        base: base.as_ref().map(|(base, size)| (base.image.root_hash, *size)),
        ranges: writer.ranges,
    };
    let index = PackIndex::assemble(parts, writer.records, writer.stored_length)?;
    let bytes = index.to_bytes();
    writer.output.write_all(&bytes).and_then(|()| writer.output.flush()).map_err(BuildError::Write)?;
    Ok(BuiltPack {
        kind: match index.base_root_hash() {
            Some(base) => PackKind::Delta { base },
            None => PackKind::Full,
        },
        size: writer.stored_length + bytes.len() as u64,
        index: IndexRef { length: bytes.len() as u64, digest: Sha256::of(&bytes).into() },
        frames: writer.frames,
    })
}

struct Writer<'a> {
    output: &'a mut dyn Write,
    records: Vec<(Sha256, crate::pack::Codec, u32, u16)>,
    ranges: Vec<crate::pack::BlockRange>,
    stored_length: u64,
    frames: [u32; 5],
}

impl Writer<'_> {
    /// Takes frames as they are finished and writes them in the order of their numbers. Drops the receiver at the end or on an
    /// error, which the workers notice.
    fn write_in_order(&mut self, frames: mpsc::Receiver<(u32, Encoded)>) -> Result<(), BuildError> {
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (number, encoded) in frames {
            early.insert(number, encoded);
            while let Some(encoded) = early.remove(&next) {
                self.write(encoded)?;
                next += 1;
            }
        }
        Ok(())
    }

    fn write(&mut self, frame: Encoded) -> Result<(), BuildError> {
        self.output.write_all(&frame.stored).map_err(BuildError::Write)?;
        // The codec and a u16 bound both: a frame has at most 4 MiB and a reference at most 2048 blocks.
        self.records.push((frame.digest, frame.codec, frame.stored.len() as u32, frame.ranges.len() as u16));
        self.ranges.extend_from_slice(&frame.ranges);
        self.stored_length += frame.stored.len() as u64;
        if let Some(counter) = self.frames.get_mut(frame.codec as usize) {
            *counter += 1;
        }
        Ok(())
    }
}
