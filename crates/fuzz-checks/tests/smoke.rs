//! The fuzz targets over seeds changed by chance, with a fixed seed and without a fuzzer: what every `cargo test` can afford.
//! `fuzz/` runs the same checks with libFuzzer for as long as one likes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use bascule_fuzz_checks::{TARGETS, Target};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Changed inputs for each target.
const ROUNDS: u32 = 20_000;

/// A place among so many, or 0 where there is none.
fn below(chance: &mut ChaCha8Rng, limit: usize) -> usize {
    chance.random_range(0..limit.max(1))
}

/// Numbers that parsers trip over.
const NUMBERS: [u64; 10] =
    [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF];

/// One change, as truncation, damage and malice make them.
fn change(bytes: &mut Vec<u8>, other: &[u8], chance: &mut ChaCha8Rng) {
    let at = below(chance, bytes.len());
    match below(chance, 8) {
        0 => bytes.truncate(at),
        1 => bytes.extend_from_slice(&other[below(chance, other.len())..]),
        2 if !bytes.is_empty() => bytes[at] ^= 1 << below(chance, 8),
        3 if !bytes.is_empty() => bytes[at] = chance.random(),
        4 => {
            let number = NUMBERS[below(chance, NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][below(chance, 4)];
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        5 => {
            let end = at + below(chance, bytes.len() - at);
            bytes.drain(at..end);
        }
        6 => {
            let end = at + below(chance, (bytes.len() - at).min(256));
            let copy = bytes[at..end].to_vec();
            let to = below(chance, bytes.len());
            bytes.splice(to..to, copy);
        }
        _ => {
            let digits = NUMBERS[below(chance, NUMBERS.len())].to_string().into_bytes();
            bytes.splice(at..at, digits);
        }
    }
}

fn run(target: Target) {
    run_rounds(target, ROUNDS);
}

fn run_rounds(target: Target, rounds: u32) {
    let seeds = (target.seeds)();
    for seed in &seeds {
        // A stub is no UKI yet; all other seeds are good.
        assert!((target.check)(seed) || target.name == "uki", "{}: a seed is refused", target.name);
    }
    let seed = target.name.bytes().fold(41, |sum, byte| sum * 31 + u64::from(byte));
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut refused = 0;
    for _ in 0..rounds {
        let mut bytes = seeds[below(&mut chance, seeds.len())].clone();
        for _ in 0..=below(&mut chance, 4) {
            change(&mut bytes, &seeds[below(&mut chance, seeds.len())], &mut chance);
        }
        refused += u32::from(!(target.check)(&bytes));
    }
    // A checker that accepts nearly everything, or nothing that differs from the seeds, would not be looking.
    assert!(refused > rounds / 20, "{}: only {refused} of {rounds} were refused", target.name);
}

#[test]
fn index() {
    run(TARGETS[0]);
}

#[test]
fn manifest() {
    run(TARGETS[1]);
}

#[test]
fn frame() {
    run(TARGETS[2]);
}

#[test]
fn superblock() {
    run(TARGETS[3]);
}

#[test]
fn uki() {
    run(TARGETS[4]);
}

#[test]
fn gpt() {
    // Each is a whole disk.
    run_rounds(TARGETS[5], 1_500);
}

#[test]
fn journal() {
    run(TARGETS[6]);
}

#[test]
fn settings() {
    // Each is a file.
    run_rounds(TARGETS[7], 4_000);
}

#[test]
fn signature_list() {
    run_rounds(TARGETS[8], 4_000);
}

#[test]
fn image_signature() {
    run_rounds(TARGETS[9], 4_000);
}
