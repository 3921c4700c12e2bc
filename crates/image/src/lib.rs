//! A Bascule release as bytes: what is published, what a node checks, and how few bytes it moves.
//!
//! The crate reads and builds manifests, channel files, packs, dm-verity trees and unified kernel images. It knows no
//! network, no clock, no async runtime and no device: bytes come in over [`io::Source`] and [`io::ReadAt`] and go out over
//! [`io::Sink`]. Workers are plain threads, so that a caller can run it from any executor. The formats are specified in
//! `docs/release-format.md`.

pub mod apply;
pub mod boot_loader;
pub mod build;
pub mod command_line;
pub mod digest;
pub mod io;
pub mod pack;
pub mod release;
#[cfg(test)]
pub(crate) mod testing;
pub mod uki;
pub mod verity;
pub mod work;

pub use digest::Sha256;
pub use release::channel::Channel;
pub use release::manifest::Manifest;
