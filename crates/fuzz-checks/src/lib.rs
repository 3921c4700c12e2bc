//! What must hold for any bytes from outside, one function for each parser, and good bytes to begin with.
//!
//! Two drivers run these checks: libFuzzer (`fuzz/`, a workspace of its own because it needs a nightly compiler), and the test
//! `smoke`, which changes the seeds by chance with a fixed seed and runs with every `cargo test`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a check says by a panic that it does not hold, as fuzzers expect"
)]

pub mod corpus;
mod host;
pub mod seeds;

pub use host::{gpt, image_signature, journal, memory, settings, signature_list, text_entry};

use bascule_image::digest::Sha256;
use bascule_image::pack::{BlockRange, Codec, Frame, FrameDecoder, PackIndex};
use bascule_image::uki::{self, OsRelease, Parts, ReadUkiError, ShownEntry, Uki};
use bascule_image::verity::Superblock;
use bascule_image::{Channel, Manifest};
use bascule_repository::tuf::{self, Limits, Memory, Refresh, Targets};
use std::sync::LazyLock;
use std::time::Duration;

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
pub const TARGETS: [Target; 13] = [
    Target { name: "index", check: index, seeds: seeds::index },
    Target { name: "manifest", check: manifest, seeds: seeds::manifest },
    Target { name: "frame", check: frame, seeds: seeds::frame },
    Target { name: "superblock", check: superblock, seeds: seeds::superblock },
    Target { name: "uki", check: uki, seeds: seeds::uki },
    Target { name: "metadata", check: metadata, seeds: seeds::metadata },
    Target { name: "memory", check: memory, seeds: host::seeds::memory },
    Target { name: "gpt", check: gpt, seeds: host::seeds::gpt },
    Target { name: "journal", check: journal, seeds: host::seeds::journal },
    Target { name: "settings", check: settings, seeds: host::seeds::settings },
    Target { name: "text_entry", check: text_entry, seeds: host::seeds::text_entry },
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
    // As the node reads it: bytes in memory can always be read, so there is an answer, but for what is beyond the reader's limits.
    if let Err(why) = bascule_agent::uki::read(&file) {
        let beyond = is_beyond_the_limits(&parsed) || is_shown_beyond_the_limits(uki::shown(&file));
        assert!(beyond, "a file that was read counts as one that could not be: {why}");
    }
    let parts = Parts {
        stub: bytes,
        kernel: bytes,
        initrd: b"initrd",
        command_line: "quiet",
        os_release: "ID=acme",
        kernel_release: None,
        pcr_public_key: &[],
        pcr_signature: &[],
    };
    if let Ok(built) = uki::build(&parts) {
        let built = Uki::open(&built).expect("what was built can be read");
        assert_eq!(built.command_line().expect("it has a command line").as_str(), "quiet");
    }
    parsed.is_ok()
}

/// Whether a file has something that the reader gives up and a boot loader may not, or is sorted by what is no text.
fn is_beyond_the_limits(parsed: &Result<Uki<'_>, ReadUkiError>) -> bool {
    fn gave_up<T>(read: Result<T, &ReadUkiError>) -> bool {
        read.is_err_and(|error| matches!(error, ReadUkiError::NotUki(error) if error.is_own_limit()))
    }
    let Ok(uki) = parsed else { return gave_up(parsed.as_ref()) };
    let release = uki.shown_os_release();
    gave_up(release.as_ref()) || gave_up(uki.root_hash().as_ref()) || release.is_ok_and(|release| !is_text(&release))
}

/// The same of what a boot loader shows of it, beside or without a whole first profile.
fn is_shown_beyond_the_limits(shown: Result<Vec<ShownEntry>, ReadUkiError>) -> bool {
    match shown {
        Ok(shown) => !shown.iter().all(|entry| is_text(&entry.os_release)),
        Err(ReadUkiError::NotUki(error)) => error.is_own_limit(),
        Err(ReadUkiError::Unreadable { .. }) => false,
    }
}

fn is_text(release: &OsRelease) -> bool {
    let mut sorted_by = [release.sort_key(), release.version()].into_iter().flatten();
    sorted_by.all(|value| !value.contains('\u{fffd}'))
}

const METADATA_LIMITS: Limits =
    Limits { requests: 8, bytes: 1 << 20, roles: 4, depth: 4, time: Duration::from_secs(1) };

/// An update of the good repository as it stands after each of its requests.
fn good_updates() -> &'static [Refresh] {
    static UPDATES: LazyLock<Vec<Refresh>> = LazyLock::new(|| {
        let root = seeds::metadata().swap_remove(0);
        let begun = Refresh::begin(&root, Memory::default(), seeds::metadata_time(), METADATA_LIMITS);
        let mut refresh = begun.expect("the good repository is read");
        let mut states = Vec::new();
        for answer in seeds::metadata_answers() {
            assert!(refresh.step(Duration::ZERO).expect("the good repository is read").is_some());
            states.push(refresh.clone());
            refresh.came(answer.as_deref()).expect("the good repository is read");
        }
        states
    });
    &UPDATES
}

/// Whatever has a canonical form is that form's form; and no bytes make the metadata reader panic, whichever role they are taken
/// for, nor does what they say of patterns and signatures.
pub fn metadata(bytes: &[u8]) -> bool {
    if let Ok(form) = tuf::canonical(bytes) {
        // Line breaks stay as they are in the form, where JSON would escape them.
        let plain = form.iter().all(|byte| *byte >= b' ');
        assert!(!plain || tuf::canonical(&form).is_ok_and(|again| again == form), "the form of a form is another");
    }
    let begin = |root: &[u8], memory| Refresh::begin(root, memory, seeds::metadata_time(), METADATA_LIMITS);
    let mut accepted = begin(bytes, Memory::default()).is_ok();
    // As the answer to each request of an update, all before being the good ones.
    for refresh in good_updates() {
        accepted |= refresh.clone().came(Some(bytes)).is_ok();
    }
    // As what is remembered, where it could be any metadata at all.
    if let (Ok(text), Ok(_)) = (std::str::from_utf8(bytes), tuf::canonical_signed(bytes)) {
        let text = text.to_owned();
        let memory = Memory {
            roots: [(2, text.clone())].into(),
            timestamp: Some(text.clone()),
            snapshot: Some(text.clone()),
            targets: Some(text),
            ..Memory::default()
        };
        let root = seeds::metadata().swap_remove(0);
        let mut refresh = begin(&root, memory).expect("the trust root is good");
        let _ = (refresh.step(Duration::ZERO), refresh.came(None), refresh.step(Duration::ZERO));
    }
    if let Ok(signed) = tuf::parse::<Targets>("targets", bytes) {
        for delegation in signed.role.delegations() {
            let _ = (delegation.covers("releases/1.0/x86-64/full.pack"), delegation.literal_paths().count());
        }
    }
    accepted
}
