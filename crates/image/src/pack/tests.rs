//! Bad packs: whatever the bytes are, there is a typed error, no panic, and no allocation by a number found in them.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::index_error::FrameFault;
use super::*;
use crate::digest::Sha256;
use crate::testing::Lcg;

const HEADER: usize = 144;
const RECORD: usize = 40;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(41), failure_persistence: None, ..ProptestConfig::default() }
}

fn digest(byte: u8) -> Sha256 {
    Sha256::from_bytes([byte; 32])
}

/// Frames of 64 KiB with every codec, against a base of 100 blocks.
fn delta_index() -> PackIndex {
    let range = |first, count| BlockRange { first, count };
    let parts = IndexParts {
        image_size: 4 * (64 << 10) + 8192,
        frame_size: 64 << 10,
        root_hash: digest(1),
        base: Some((digest(2), 100 * 4096)),
        ranges: vec![range(0, 1), range(99, 1), range(90, 1), range(90, 1)],
    };
    let frames = [
        (digest(3), Codec::Zero, 0, 0),
        (digest(4), Codec::Raw, 64 << 10, 0),
        (digest(5), Codec::ZstdReference, 100, 2),
        (digest(6), Codec::Zstd, 70, 0),
        (digest(7), Codec::Base, 0, 2),
    ];
    PackIndex::assemble(parts, frames, (64 << 10) + 170).unwrap()
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

#[test]
fn an_index_round_trips() {
    let index = delta_index();
    let bytes = index.to_bytes();
    assert_eq!(bytes.len(), HEADER + 5 * RECORD + 4 * 8);
    assert_eq!(PackIndex::parse(&bytes).unwrap(), index);
    let offsets: Vec<u64> = index.frames().map(|frame| frame.stored_offset).collect();
    assert_eq!(offsets, [0, 0, 65536, 65636, 65706]);
    assert_eq!(index.frame(4).unwrap().length, 8192);
    assert_eq!(index.frame(5), None);
}

#[test]
fn every_cut_and_every_addition_is_a_wrong_length() {
    let bytes = delta_index().to_bytes();
    for length in 0..bytes.len() {
        assert!(matches!(PackIndex::parse(&bytes[..length]), Err(IndexError::Length { .. })), "{length}");
    }
    for extra in [1, 8, 40, 4096] {
        let mut long = bytes.clone();
        long.resize(bytes.len() + extra, 0);
        assert!(matches!(PackIndex::parse(&long), Err(IndexError::Length { .. })));
    }
    let huge = vec![0; crate::release::manifest::MAX_INDEX_LENGTH as usize + 1];
    assert!(matches!(PackIndex::parse(&huge), Err(IndexError::TooLong { .. })));
}

#[test]
fn a_flipped_bit_is_refused_or_is_another_index() {
    let good = delta_index();
    let bytes = good.to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(parsed) = PackIndex::parse(&bad) {
            assert_ne!(parsed, good, "bit {bit} has no meaning");
            assert_eq!(parsed.to_bytes(), bad, "bit {bit} is not kept");
        }
    }
}

#[test]
fn numbers_at_the_edges_are_refused_and_allocate_nothing() {
    let bytes = delta_index().to_bytes();
    let header = |offset: usize, value: u64, width: usize| {
        let mut bad = bytes.clone();
        put(&mut bad, offset, &value.to_le_bytes()[..width]);
        PackIndex::parse(&bad).unwrap_err()
    };
    let edges = [
        0,
        1,
        4095,
        u64::from(u32::MAX) - 1,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 63) - 1,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    for value in edges {
        for (offset, width, field) in
            [(16, 8, "image size"), (96, 8, "base size"), (104, 8, "stored length"), (24, 4, "frame size")]
        {
            if field == "base size" && value == 1 << 32 {
                continue; // A base of 4 GiB is fine.
            }
            match header(offset, value, width) {
                IndexError::Header { field: found, .. } => assert_eq!(found, field, "{value}"),
                // A size that is possible as such, but not with these frames.
                IndexError::Frame { .. } if ["base size", "image size"].contains(&field) => {}
                error => panic!("{field} {value}: {error}"),
            }
        }
        // Counts are compared with the length of the bytes before anything is taken for granted.
        for (offset, width) in [(28, 4), (112, 4)] {
            assert!(matches!(header(offset, value, width), IndexError::Length { .. }));
        }
    }
    assert!(matches!(header(8, 2, 4), IndexError::UnknownFormat { found: 2, accepted: 1 }));
    assert!(matches!(header(0, 0, 4), IndexError::Magic));
    assert!(matches!(header(12, 2, 4), IndexError::Header { field: "kind", .. }));
    assert!(matches!(header(130, 1, 1), IndexError::Header { field: "reserved space", .. }));
}

#[test]
fn records_that_contradict_their_codec_are_refused() {
    let bytes = delta_index().to_bytes();
    let fault = |changes: &[(usize, &[u8])]| {
        let mut bad = bytes.clone();
        changes.iter().for_each(|(offset, value)| put(&mut bad, *offset, value));
        match PackIndex::parse(&bad).unwrap_err() {
            IndexError::Frame { frame, fault } => (frame, fault),
            error => panic!("{error}"),
        }
    };
    let record = |frame: usize| HEADER + frame * RECORD + 32;
    let range = |at: usize| HEADER + 5 * RECORD + at * 8;
    assert_eq!(fault(&[(record(0) + 4, &[9])]), (0, FrameFault::Codec(9)));
    assert_eq!(fault(&[(record(0) + 5, &[1])]), (0, FrameFault::Reserved(1)));
    assert_eq!(fault(&[(record(0), &[1, 0, 0, 0])]), (0, FrameFault::StoredLength(1)));
    assert_eq!(fault(&[(record(1), &[0, 0, 0, 0])]), (1, FrameFault::StoredLength(0)));
    assert_eq!(fault(&[(record(2), &[0xFF; 4])]), (2, FrameFault::StoredLength(u32::MAX)));
    assert_eq!(fault(&[(record(2) + 6, &[0, 0])]), (2, FrameFault::RangeCount(0)));
    assert_eq!(fault(&[(record(4) + 6, &[0xFF, 0xFF])]), (4, FrameFault::RangeCount(u16::MAX)));
    // A reference outside the base, an empty one, one that wraps around, one that overlaps, one that is too long.
    assert_eq!(fault(&[(range(1), &[100, 0, 0, 0])]), (2, FrameFault::RangeOutsideBase { first: 100, count: 1 }));
    assert_eq!(fault(&[(range(1) + 4, &[0; 4])]), (2, FrameFault::RangeOutsideBase { first: 99, count: 0 }));
    assert_eq!(fault(&[(range(1) + 4, &[0xFF; 4])]), (2, FrameFault::RangeOutsideBase { first: 99, count: u32::MAX }));
    assert_eq!(fault(&[(range(0) + 4, &[100, 0, 0, 0])]), (2, FrameFault::RangesOverlap { first: 99 }));
    let large_base = (1_u64 << 30).to_le_bytes();
    let length = 2049_u32.to_le_bytes();
    let too_long = FrameFault::ReferenceLength(2050 * 4096);
    assert_eq!(fault(&[(96, &large_base), (range(1), &[99, 0, 0, 0]), (range(1) + 4, &length)]), (2, too_long));
    assert_eq!(fault(&[(range(2) + 4, &[2])]), (4, FrameFault::ReferenceLength(3 * 4096)));
}

#[test]
fn a_full_pack_can_not_refer_to_anything() {
    let mut bytes = delta_index().to_bytes();
    put(&mut bytes, 12, &[0]);
    assert!(matches!(PackIndex::parse(&bytes), Err(IndexError::Header { field: "base size", .. })));
    put(&mut bytes, 96, &[0; 8]);
    assert!(matches!(PackIndex::parse(&bytes), Err(IndexError::Header { field: "base root hash", .. })));
    put(&mut bytes, 64, &[0; 32]);
    let error = PackIndex::parse(&bytes).unwrap_err();
    assert_eq!(error, IndexError::Frame { frame: 2, fault: FrameFault::Codec(3) });
}

const FRAME: usize = 64 << 10;

fn compress(raw: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(raw, 3).unwrap()
}

fn decode(codec: Codec, stored: &[u8], raw: &[u8], base: Option<&Vec<u8>>) -> Result<Vec<u8>, FrameError> {
    let ranges: &[BlockRange] = if codec.needs_base() { &[BlockRange { first: 1, count: 16 }] } else { &[] };
    let frame = Frame {
        number: 7,
        image_offset: 7 * FRAME as u64,
        length: raw.len() as u32,
        digest: Sha256::of(raw),
        codec,
        stored_offset: 0,
        stored_length: stored.len() as u32,
        ranges,
    };
    let mut out = vec![0x55; raw.len()];
    FrameDecoder::new().decode(&frame, stored, base.map(|base| base as &dyn crate::io::ReadAt), &mut out)?;
    Ok(out)
}

fn text() -> Vec<u8> {
    let mut random = Lcg::new(1);
    (0..FRAME / 8).flat_map(|_| format!("{:07} ", random.next() % 100_000).into_bytes()).collect()
}

#[test]
fn decompression_bombs_stop_at_the_length_of_the_frame() {
    let raw = text();
    let bomb = compress(&vec![0; 64 << 20]);
    assert!(bomb.len() < 10_000);
    let error = decode(Codec::Zstd, &bomb, &raw, None).unwrap_err();
    assert!(matches!(error, FrameError::Zstd { frame: 7, .. }), "{error}");
    // Many small zstd frames in a row, and a frame that says it is small and is not.
    let many = compress(&raw[..FRAME / 2]).repeat(2);
    assert!(matches!(decode(Codec::Zstd, &many, &raw, None), Err(FrameError::RawLength { .. })));
    let mut skippable = vec![0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    skippable.extend(compress(&raw));
    assert!(matches!(decode(Codec::Zstd, &skippable, &raw, None), Err(FrameError::RawLength { .. })));
    let short = compress(&raw[..100]);
    assert!(matches!(decode(Codec::Zstd, &short, &raw, None), Err(FrameError::RawLength { found: 100, .. })));
}

#[test]
fn a_window_larger_than_any_memory_allocates_nothing() {
    // A zstd frame header may ask for a window of terabytes (RFC 8878, 3.1.1.1.2); decoding in one piece needs none.
    let raw = vec![b'a'; 100];
    let mut stored = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xFF];
    // One last raw-less RLE block of 100 times 'a'.
    stored.extend([((100 << 3) | 0b011) as u8, (100 >> 5) as u8, 0, b'a']);
    match decode(Codec::Zstd, &stored, &raw, None) {
        Ok(out) => assert_eq!(out, raw),
        Err(error) => assert!(matches!(error, FrameError::Zstd { .. }), "{error}"),
    }
}

#[test]
fn a_missing_short_or_other_base_has_its_error() {
    let base: Vec<u8> = Lcg::new(2).bytes(20 * 4096);
    let raw = base[4096..17 * 4096].to_vec();
    assert_eq!(decode(Codec::Base, &[], &raw, Some(&base)).unwrap(), raw);
    assert_eq!(decode(Codec::Base, &[], &raw, None).unwrap_err().category(), "base-missing");
    let short = base[..16 * 4096].to_vec();
    assert_eq!(decode(Codec::Base, &[], &raw, Some(&short)).unwrap_err().category(), "base-unreadable");
    let mut other = base.clone();
    other[5000] ^= 1;
    assert_eq!(decode(Codec::Base, &[], &raw, Some(&other)).unwrap_err().category(), "frame-digest");
}

#[test]
fn a_reference_is_raw_content_whatever_it_starts_with() {
    // The first bytes of the reference are zstd's dictionary magic; it must not be parsed as a dictionary.
    let mut base: Vec<u8> = Lcg::new(3).bytes(20 * 4096);
    put(&mut base, 4096, &[0x37, 0xA4, 0x30, 0xEC]);
    let mut raw = base[4096..17 * 4096].to_vec();
    raw[40_000] ^= 0xFF;
    let mut context = zstd::zstd_safe::CCtx::create();
    context.ref_prefix(&base[4096..17 * 4096]).unwrap();
    let mut stored = Vec::with_capacity(FRAME * 2);
    context.compress2(&mut stored, &raw).unwrap();
    assert!(stored.len() < 100, "{}", stored.len());
    assert_eq!(decode(Codec::ZstdReference, &stored, &raw, Some(&base)).unwrap(), raw);
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn no_bytes_make_the_index_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = PackIndex::parse(&bytes);
    }

    #[test]
    fn no_body_behind_a_good_header_makes_the_index_parser_panic(
        body in proptest::collection::vec(any::<u8>(), 5 * RECORD + 4 * 8),
    ) {
        let mut bytes = delta_index().to_bytes();
        bytes[HEADER..].copy_from_slice(&body);
        if let Ok(index) = PackIndex::parse(&bytes) {
            prop_assert_eq!(index.to_bytes(), bytes);
        }
    }

    #[test]
    fn a_damaged_frame_is_an_error_and_never_other_bytes(at in 0_usize..1 << 16, bit in 0_u8..8, cut in 0_usize..1 << 16) {
        let raw = text();
        let stored = compress(&raw);
        let mut flipped = stored.clone();
        flipped[at % stored.len()] ^= 1 << bit;
        if let Ok(out) = decode(Codec::Zstd, &flipped, &raw, None) {
            prop_assert_eq!(&out, &raw);
        }
        prop_assert!(decode(Codec::Zstd, &stored[..cut % stored.len()], &raw, None).is_err());
    }

    #[test]
    fn no_stored_bytes_make_the_decoder_panic(stored in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let base: Vec<u8> = vec![1; 20 * 4096];
        let raw = text();
        for codec in [Codec::Raw, Codec::Zstd, Codec::ZstdReference] {
            prop_assert!(decode(codec, &stored, &raw, Some(&base)).is_err());
        }
        let mut with_magic = vec![0x28, 0xB5, 0x2F, 0xFD];
        with_magic.extend(stored);
        prop_assert!(decode(Codec::ZstdReference, &with_magic, &raw, Some(&base)).is_err());
    }
}
