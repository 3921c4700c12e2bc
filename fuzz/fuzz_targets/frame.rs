//! Stored bytes never decode to anything but what the digest names; here no input can have the digest, so all must fail.
#![no_main]

use bascule_image::digest::Sha256;
use bascule_image::pack::{BlockRange, Codec, Frame, FrameDecoder};

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (codec, stored) = input;
    let codec = [Codec::Raw, Codec::Zstd, Codec::ZstdReference][usize::from(codec % 3)];
    let base = vec![b'b'; 8 * 4096];
    let ranges: &[BlockRange] = &[BlockRange { first: 1, count: 3 }];
    let frame = Frame {
        number: 0,
        image_offset: 0,
        length: 64 << 10,
        digest: Sha256::from_bytes([0; 32]),
        codec,
        stored_offset: 0,
        stored_length: stored.len() as u32,
        ranges,
    };
    let mut raw = vec![0; 64 << 10];
    assert!(FrameDecoder::new().decode(&frame, stored, Some(&base), &mut raw).is_err());
});
