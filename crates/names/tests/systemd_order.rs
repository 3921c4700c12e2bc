//! The order of versions held against systemd's own word, `systemd-analyze compare-versions` (Debian package `systemd`), over
//! versions made by chance with a fixed seed and over those that people write.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::cmp::Ordering;
use std::process::Command;

use bascule_names::compare_versions;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// What systemd says. By its manual page the exit status is 0 for equal, 11 where the first is newer, 12 where the second is.
fn systemd(left: &str, right: &str) -> Ordering {
    let output = Command::new("systemd-analyze").args(["compare-versions", "--", left, right]).output().unwrap();
    match output.status.code() {
        Some(0) => Ordering::Equal,
        Some(11) => Ordering::Greater,
        Some(12) => Ordering::Less,
        other => panic!("systemd-analyze {left:?} {right:?}: {other:?} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn versions_order_as_systemd_orders_them() {
    let written = [
        "24.04",
        "24.04.1",
        "24.10",
        "2026.03.1",
        "2026.3.1",
        "2026.11",
        "20260315",
        "20260315-1",
        "1.0",
        "1.00",
        "1.0.0",
        "1.0-rc.1",
        "1.0~rc.1",
        "1.0~",
        "1.0^git1",
        "1.0^",
        "1.0-",
        "1.0.",
        "1.0a",
        "1.a",
        "v1.0",
        "1_0",
        "41.3.0",
        "9.99",
    ];
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (at, left) in written.iter().enumerate() {
        pairs.extend(written.iter().skip(at).map(|right| ((*left).to_owned(), (*right).to_owned())));
    }
    // Few letters, so that many pairs begin alike: there the rules are.
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[14; 32]));
    let made = ("[0-2][0-2a.~^_-]{0,6}", "[0-2][0-2a.~^_-]{0,6}");
    for _ in 0..300 {
        pairs.push(made.new_tree(&mut runner).unwrap().current());
    }
    let mut unequal = 0;
    for (left, right) in &pairs {
        let order = systemd(left, right);
        assert_eq!(compare_versions(left, right), order, "{left} {right}");
        unequal += usize::from(order != Ordering::Equal);
    }
    // A tool that holds everything equal would not be looking.
    assert!(unequal > pairs.len() / 2, "{unequal} of {}", pairs.len());
}
