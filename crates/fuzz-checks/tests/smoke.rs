//! The fuzz targets over seeds changed by chance, with a fixed seed and without a fuzzer: what every `cargo test` can afford.
//! `fuzz/` runs the same checks with libFuzzer for as long as one likes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::path::Path;

use bascule_fuzz_checks::{TARGETS, Target, corpus};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Changed inputs for a target.
const ROUNDS: u32 = 20_000;
/// For one whose inputs are large, or files.
const FEW: u32 = 3_000;

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

fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).unwrap()
}

/// `refused_of`: at least one of so many must be refused.
fn run(name: &str, rounds: u32, refused_of: u32) {
    let target = target(name);
    let seeds = (target.seeds)();
    let good = seeds.iter().filter(|seed| (target.check)(seed)).count();
    // A stub is no UKI yet; all other seeds are good.
    let wanted = if target.name == "uki" { 1 } else { seeds.len() };
    assert!(good >= wanted, "{}: {good} of {} seeds are accepted", target.name, seeds.len());
    let seed = target.name.bytes().fold(41_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let (mut refused, mut other) = (0, 0);
    for _ in 0..rounds {
        let mut bytes = seeds[below(&mut chance, seeds.len())].clone();
        for _ in 0..=below(&mut chance, 4) {
            change(&mut bytes, &seeds[below(&mut chance, seeds.len())], &mut chance);
        }
        let accepted = (target.check)(&bytes);
        refused += u32::from(!accepted);
        other += u32::from(accepted && !seeds.contains(&bytes));
    }
    // A checker that accepts nearly everything, or nothing that differs from the seeds, would not be looking.
    assert!(refused > rounds / refused_of, "{}: only {refused} of {rounds} were refused", target.name);
    // A signature holds for nothing but what was signed.
    assert!(other > 0 || target.name == "image_signature", "{}: nothing but the seeds is accepted", target.name);
}

/// What libFuzzer runs is what runs here.
#[test]
fn every_check_is_a_target_of_the_fuzzer_and_nothing_else_is() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        let file = format!("fuzz_targets/{name}.rs");
        let text = std::fs::read_to_string(fuzz.join(&file)).unwrap();
        assert!(text.contains(&format!("bascule_fuzz_checks::{name}(bytes)")), "{file} runs another check");
        assert!(
            manifest.contains(&format!("name = \"{name}\"\npath = \"{file}\"")),
            "fuzz/Cargo.toml does not build {file}"
        );
    }
    assert_eq!(std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count(), TARGETS.len());
}

#[test]
fn index() {
    run("index", ROUNDS, 20);
}

#[test]
fn manifest() {
    run("manifest", ROUNDS, 20);
}

#[test]
fn frame() {
    run("frame", ROUNDS, 20);
}

#[test]
fn superblock() {
    run("superblock", ROUNDS, 20);
}

#[test]
fn uki() {
    run("uki", ROUNDS, 20);
}

#[test]
fn metadata() {
    run("metadata", ROUNDS, 20);
}

#[test]
fn memory() {
    run("memory", FEW, 20);
}

#[test]
fn gpt() {
    // Most of a disk is no table, and of two copies one is enough.
    run("gpt", FEW, 200);
}

#[test]
fn journal() {
    run("journal", ROUNDS, 20);
}

#[test]
fn settings() {
    run("settings", FEW, 20);
}

#[test]
fn signature_list() {
    run("signature_list", FEW, 20);
}

#[test]
fn image_signature() {
    run("image_signature", FEW, 20);
}

/// Targets whose corpus nobody has kept yet.
const WITHOUT_CORPUS: [&str; 3] = ["index", "manifest", "frame"];

/// What libFuzzer found, again: the inputs that reach the most code, and each that once failed.
#[test]
fn what_fuzzing_kept_still_holds() {
    let mut inputs = 0;
    for target in TARGETS.iter().filter(|target| !WITHOUT_CORPUS.contains(&target.name)) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name).with_extension("zst");
        let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for input in corpus::unpack(&packed).unwrap() {
            (target.check)(&input);
            inputs += 1;
        }
    }
    assert!(inputs > 500, "only {inputs} inputs are kept");
}

/// A check that libFuzzer can't be told to run is run by nobody for long.
#[test]
fn each_check_is_a_target_of_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        let source = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("bascule_fuzz_checks::{name}(bytes)")), "{name}: {source}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no {name}");
    }
}
