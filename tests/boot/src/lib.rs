//! Whole virtual machines that boot, update, fail and lose power: what no simulation proves.
//!
//! Each machine has UEFI firmware, systemd-boot, a kernel, dm-verity and systemd, and runs the agent that is shipped. It
//! talks to the control plane of `bascule-tests` and to the operator, both on the host's loopback. The runner
//! (`cargo xtask boot`) builds what they need and runs the scenarios; docs/boot-tests.md says what
//! each one breaks and how to repeat it.

pub mod arguments;
pub mod cluster;
pub mod console;
pub mod container_os;
pub mod disk;
pub mod example;
pub mod example_os;
pub mod install;
pub mod lab;
pub mod machine;
pub mod oci;
pub mod offline;
pub mod older;
pub mod policy_key;
pub mod programs;
pub mod qmp;
pub mod reference;
pub mod relay;
pub mod release;
pub mod runner;
pub mod scenarios;
pub mod sealed_os;
pub mod site;
pub mod vendor;

use std::sync::OnceLock;
use std::time::Instant;

/// Tells the person at the terminal what is being done, one line each, with the seconds since the first one.
pub fn say(line: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGAN.get_or_init(Instant::now).elapsed().as_secs();
    // Nobody to tell when standard error is closed.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("[{seconds:4} s] {line}\n").as_bytes());
}
