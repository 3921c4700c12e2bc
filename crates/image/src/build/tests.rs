use std::num::NonZeroUsize;
use std::sync::Mutex;

use super::*;
use crate::pack::{Codec, PackIndex};
use crate::testing::{Lcg, image_with_files, next_release};
use crate::work::{Progress, Watch};

fn options(workers: usize) -> Options {
    Options { effort: Effort::Fast, workers: NonZeroUsize::new(workers).unwrap(), ..Options::default() }
}

fn image(bytes: &Vec<u8>) -> Image<'_> {
    Image { root_hash: Sha256::of(bytes), bytes }
}

fn parse(pack: &[u8], built: &BuiltPack) -> PackIndex {
    assert_eq!(built.size, pack.len() as u64);
    let index = &pack[pack.len() - built.index.length as usize..];
    assert_eq!(built.index.digest, Sha256::of(index).into());
    PackIndex::parse(index).unwrap()
}

#[test]
fn the_number_of_workers_does_not_change_a_byte() {
    let base = image_with_files(1, 6 << 20);
    let next = next_release(&base, 2);
    let build = |workers| {
        let (mut full, mut delta) = (Vec::new(), Vec::new());
        build_full(image(&next), &mut full, &options(workers), &Watch::none()).unwrap();
        build_delta(image(&next), image(&base), &mut delta, &options(workers), &Watch::none()).unwrap();
        (full, delta)
    };
    let one = build(1);
    assert!(one == build(3));
    assert!(one == build(2));
}

#[test]
fn shifted_content_is_found_and_costs_next_to_nothing() {
    let base = image_with_files(3, 6 << 20);
    let mut shifted = Lcg::new(4).bytes(5 * 4096);
    shifted.extend_from_slice(&base[..base.len() - 5 * 4096]);
    let mut pack = Vec::new();
    let built = build_delta(image(&shifted), image(&base), &mut pack, &options(2), &Watch::none()).unwrap();
    let index = parse(&pack, &built);
    let codecs: Vec<Codec> = index.frames().map(|frame| frame.codec).collect();
    // All but the frame with the new bytes are pieces of the base.
    assert_eq!(codecs[0], Codec::ZstdReference);
    assert!(codecs[1..].iter().all(|codec| *codec == Codec::Base), "{codecs:?}");
    assert!(index.frame(0).unwrap().stored_length < 6 * 4096);
}

#[test]
fn zeros_and_noise_are_stored_as_what_they_are() {
    let mut bytes = vec![0; 1 << 20];
    bytes.extend(Lcg::new(5).bytes(1 << 20));
    bytes.extend(vec![b'x'; 4096]);
    let mut pack = Vec::new();
    let built = build_full(image(&bytes), &mut pack, &options(2), &Watch::none()).unwrap();
    let index = parse(&pack, &built);
    let codecs: Vec<Codec> = index.frames().map(|frame| frame.codec).collect();
    assert_eq!(codecs, [Codec::Zero, Codec::Raw, Codec::Zstd]);
    assert_eq!(built.frames, [1, 1, 1, 0, 0]);
    assert_eq!(index.frame(2).unwrap().length, 4096);
}

#[test]
fn several_bases_give_the_packs_that_each_gives_alone() {
    let old = image_with_files(6, 3 << 20);
    let middle = next_release(&old, 7);
    let new = next_release(&middle, 8);
    let (mut from_old, mut from_middle, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    let mut jobs: [(Image<'_>, &mut dyn std::io::Write); 2] =
        [(image(&old), &mut from_old), (image(&middle), &mut from_middle)];
    let built = build_deltas(image(&new), &mut jobs, &options(2), &Watch::none()).unwrap();
    assert_eq!(built[1].kind, PackKind::Delta { base: Sha256::of(&middle).into() });
    build_delta(image(&new), image(&old), &mut alone, &options(2), &Watch::none()).unwrap();
    assert!(from_old == alone);
    assert!(from_middle.len() < from_old.len(), "the nearer release is the better base");
}

#[test]
fn progress_counts_every_byte_and_cancelling_stops() {
    let base = image_with_files(9, 3 << 20);
    let last = Mutex::new(Progress { done: 0, total: 0 });
    let note = |progress: Progress| {
        let mut last = last.lock().unwrap();
        last.done = last.done.max(progress.done);
        last.total = progress.total;
    };
    let watch = Watch::new(base.len() as u64, Some(&note), None);
    build_full(image(&base), &mut Vec::new(), &options(2), &watch).unwrap();
    assert_eq!(*last.lock().unwrap(), Progress { done: base.len() as u64, total: base.len() as u64 });

    let cancel = std::sync::atomic::AtomicBool::new(true);
    let watch = Watch::new(0, None, Some(&cancel));
    let error = build_delta(image(&base), image(&base), &mut Vec::new(), &options(2), &watch).unwrap_err();
    assert_eq!(error.category(), "cancelled");
}

#[test]
fn sizes_no_release_can_have_are_refused() {
    for size in [0, 1, 4095, 4097] {
        let bytes = vec![0; size];
        let error = build_full(image(&bytes), &mut Vec::new(), &options(1), &Watch::none()).unwrap_err();
        assert!(matches!(error, BuildError::Size { found, .. } if found == size as u64), "{error}");
    }
}

#[test]
fn an_output_that_fails_ends_the_build() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bytes = image_with_files(10, 8 << 20);
    let error = build_full(image(&bytes), &mut Full, &options(2), &Watch::none()).unwrap_err();
    assert_eq!(error.category(), "pack-unwritable");
}

/// 16 bytes to a line, as in docs/release-format.md.
fn hex_dump(bytes: &[u8]) -> String {
    let line = |(at, line): (usize, &[u8])| {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", at * 16, digits.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[test]
fn worked_example() {
    let base: Vec<u8> = (0..8).flat_map(|block| [block; 4096]).collect();
    let new = [vec![0; 64 << 10], vec![b'a'; 64 << 10], vec![7; 4096]].concat();
    let parameters = crate::verity::Parameters { salt: vec![0x00, 0xFF], uuid: [0; 16] };
    let root_hash = |bytes: &Vec<u8>| {
        let tree = crate::verity::build(bytes, bytes.len() as u64, &parameters, NonZeroUsize::MIN, &Watch::none());
        tree.unwrap().root_hash()
    };
    let new = Image { root_hash: root_hash(&new), bytes: &new };
    let base = Image { root_hash: root_hash(&base), bytes: &base };
    let options = Options { frame_size: 64 << 10, ..Options::default() };
    let mut pack = Vec::new();
    let built = build_delta(new, base, &mut pack, &options, &Watch::none()).unwrap();
    assert_eq!(built.frames, [1, 0, 1, 0, 1]);
    let document = include_str!("../../../../docs/release-format.md");
    let example =
        document.split("<!-- example:begin -->").nth(1).unwrap().split("<!-- example:end -->").next().unwrap();
    let wanted = format!("\n```\n{}```\n", hex_dump(&pack));
    assert_eq!(example, wanted, "the page should show:\n{wanted}");
}

#[test]
fn frame_sizes_no_reader_accepts_are_refused() {
    let bytes = vec![1; 4096];
    for frame_size in [0, 4096, 100_000, 8 << 20, u32::MAX] {
        let options = Options { frame_size, ..options(1) };
        let error = build_full(image(&bytes), &mut Vec::new(), &options, &Watch::none()).unwrap_err();
        assert_eq!(error.category(), "frame-size");
    }
}
