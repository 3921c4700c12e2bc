//! One contract for boot partition, disk, firmware variables and state folder, held against the simulated and the real implementation: the
//! same steps, the same answers, and, with a fault at each single access, an error that says what happened or the same answers.
//! Never another answer: what could not be read is not something else.
//!
//! The real implementations run in a child: under strace (Debian package `strace`), which lets one system call after the other
//! fail, or with a library that lets one move fewer bytes than it could. The simulated ones run on a disk that does. Loop devices are
//! used where they can be had.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

mod child;
mod devices;
mod simulated;
mod state_folder;
mod walk;
