//! Fixtures for tests of the whole system, the benchmarks and the sandbox: a real Kubernetes control plane, kubelets
//! that stand in for machines, and processes that never outlive the test that started them.

use std::io::Write as _;

pub mod address;
pub mod agent;
#[allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_debug_implementations,
    reason = "helpers of tests: what goes wrong here is a failed test"
)]
pub mod bascule;
pub mod clock;
#[allow(clippy::indexing_slicing, reason = "a missing key of a JSON value reads as null")]
pub mod container;
pub mod control_plane;
pub mod files;
pub mod https;
pub mod karpenter;
pub mod kubelet;
pub mod kwok;
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests: what goes wrong here is a failed test"
)]
pub mod page;
pub mod registry;
pub mod rights;
pub mod supervise;
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    missing_docs,
    missing_debug_implementations,
    reason = "helpers of tests: what goes wrong here is a failed test"
)]
pub mod vendor;
pub mod webhook;
pub mod words;
pub mod workload;

/// Says that a test looks at nothing here, and why. Past the harness, which keeps to itself what a test that passes prints.
pub fn skipped(why: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// The TLS library can be driven by more than one provider and refuses to guess. Every fixture calls this before it
/// makes a client; calling it again does nothing.
pub fn install_tls_provider() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
