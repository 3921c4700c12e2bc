//! The shipped reader against TUF 1.0: the cases of the TUF conformance suite under their names
//! (<https://github.com/theupdateframework/tuf-conformance>), what that suite does not try, and a literal model of section 5.
//!
//! The suite itself drives `examples/tuf-conformance-client.rs`; docs/tuf.md says how. These run with every `cargo test`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod basic;
mod channels;
mod client;
mod datastore;
mod delegations;
mod download;
mod expiration;
mod images;
mod images_model;
mod key_rotations;
mod keys;
mod model;
mod rollback;
mod search;
mod signatures;
mod simulator;
