//! What must hold for any bytes from outside, one function for each parser, and good bytes to begin with.
//!
//! Two drivers run these checks: libFuzzer (`fuzz/`, a workspace of its own because it needs a nightly compiler), and the test
//! `smoke`, which changes the seeds by chance with a fixed seed and runs with every `cargo test`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a check says by a panic that it does not hold, as fuzzers expect"
)]

mod host;
pub mod seeds;

pub use host::{gpt, image_signature, journal, settings, signature_list};

use bascule_image::digest::Sha256;
use bascule_image::pack::{BlockRange, Codec, Frame, FrameDecoder, PackIndex};
use bascule_image::uki::{self, Parts, Uki};
use bascule_image::verity::Superblock;
use bascule_image::{Channel, Manifest};

/// A parser: its name, what must hold for it, and good inputs.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name, also of the libFuzzer target.
    pub name: &'static str,
    /// Runs the check; true if the bytes were accepted. Panics if the check does not hold.
    pub check: fn(&[u8]) -> bool,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All parsers of bytes from outside.
pub const TARGETS: [Target; 10] = [
    Target { name: "index", check: index, seeds: seeds::index },
    Target { name: "manifest", check: manifest, seeds: seeds::manifest },
    Target { name: "frame", check: frame, seeds: seeds::frame },
    Target { name: "superblock", check: superblock, seeds: seeds::superblock },
    Target { name: "uki", check: uki, seeds: seeds::uki },
    Target { name: "gpt", check: gpt, seeds: host::seeds::gpt },
    Target { name: "journal", check: journal, seeds: host::seeds::journal },
    Target { name: "settings", check: settings, seeds: host::seeds::settings },
    Target { name: "signature_list", check: signature_list, seeds: host::seeds::signature_list },
    Target { name: "image_signature", check: image_signature, seeds: host::seeds::image_signature },
];

/// Whatever parses as an index prints as the same bytes, and its frames lie one behind the other.
pub fn index(bytes: &[u8]) -> bool {
    let Ok(index) = PackIndex::parse(bytes) else { return false };
    assert_eq!(index.to_bytes(), bytes);
    let (mut stored, mut raw) = (0, 0);
    for frame in index.frames() {
        assert_eq!((frame.stored_offset, frame.image_offset), (stored, raw));
        stored += u64::from(frame.stored_length);
        raw += u64::from(frame.length);
    }
    assert_eq!((stored, raw), (index.stored_length(), index.image_size()));
    true
}

/// Whatever parses as a manifest or a channel file prints as something that parses as the same.
pub fn manifest(bytes: &[u8]) -> bool {
    let manifest = Manifest::parse(bytes);
    if let Ok(manifest) = &manifest {
        let printed = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(&Manifest::parse(&printed).expect("what was written can be read"), manifest);
    }
    let channel = Channel::parse(bytes);
    if let Ok(channel) = &channel {
        let printed = channel.to_bytes().expect("what was read can be written");
        assert_eq!(&Channel::parse(&printed).expect("what was written can be read"), channel);
    }
    manifest.is_ok() || channel.is_ok()
}

/// Raw bytes of the frame in [`frame`].
pub(crate) const FRAME_LENGTH: usize = 64 << 10;

/// Stored bytes (after a first byte that chooses the codec) decode to what the digest names or to nothing: never to other bytes.
pub fn frame(input: &[u8]) -> bool {
    let Some((codec, stored)) = input.split_first() else { return false };
    let (codec, ranges): (_, &[BlockRange]) = match codec % 3 {
        0 => (Codec::Raw, &[]),
        1 => (Codec::Zstd, &[]),
        _ => (Codec::ZstdReference, &[BlockRange { first: 1, count: 3 }]),
    };
    let good = seeds::frame_content();
    let frame = Frame {
        number: 0,
        image_offset: 0,
        length: FRAME_LENGTH as u32,
        digest: Sha256::of(&good),
        codec,
        stored_offset: 0,
        stored_length: stored.len() as u32,
        ranges,
    };
    let mut raw = vec![0; FRAME_LENGTH];
    let decoded = FrameDecoder::new().decode(&frame, stored, Some(&seeds::base()), &mut raw).is_ok();
    assert!(!decoded || raw == good, "other bytes than the digest names");
    decoded
}

/// Whatever parses as a verity superblock prints as the same bytes.
pub fn superblock(bytes: &[u8]) -> bool {
    let Ok(superblock) = Superblock::parse(bytes) else { return false };
    assert!(bytes.starts_with(&superblock.to_bytes()));
    true
}

/// No bytes make the UKI reader or builder panic, and what was built can be read.
pub fn uki(bytes: &[u8]) -> bool {
    let file = bytes.to_vec();
    let parsed = Uki::open(&file);
    if let Ok(uki) = &parsed {
        let _ = (uki.command_line(), uki.os_release(), uki.root_hash(), uki.section(".linux", 1 << 20));
    }
    let parts = Parts {
        stub: bytes,
        kernel: bytes,
        initrd: b"initrd",
        command_line: "quiet",
        os_release: "ID=acme",
        kernel_release: None,
    };
    if let Ok(built) = uki::build(&parts) {
        let built = Uki::open(&built).expect("what was built can be read");
        assert_eq!(built.command_line().expect("it has a command line").as_str(), "quiet");
    }
    parsed.is_ok()
}
