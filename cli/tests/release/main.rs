//! `bascule release` as a vendor uses it: the binary, real tools, real files. Needs mkfs.erofs (erofs-utils) and systemd's
//! EFI stub (systemd-boot-efi).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod boot_loader;
mod disk;
mod fleet;
mod guide;
mod measured;
mod mistakes;
mod secure_boot;
mod state_versions;
mod story;
mod workshop;
