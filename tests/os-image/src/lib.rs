//! Makes real operating system images out of Debian packages, for everything here that needs one: the sandbox's
//! releases, the machines of the boot tests, and the container hosts of the release benchmark.
//!
//! What installs packages and what is taken out again are the files of `examples/debian/`, which newcomers run by hand.
//!
//! A [`Recipe`] says what goes in; [`Store::build`] turns it into an [`OsImage`]: an EROFS root without
//! compression, a kernel, a small initrd that sets up dm-verity, and the systemd-boot stub to glue them with.
//! Verity trees, unified kernel images and packs are not made here but by `bascule-image`, as for any vendor.
//!
//! [`shipped`] builds the programs that go in.
//!
//! Images are cached below `target/os-images/` by the hash of their recipe; packages are fetched once, whatever
//! the number of images. The mirror is the one in the machine's own apt configuration.

mod archive;
mod boot_loader;
pub mod cache;
mod cargo;
mod cpio;
mod erofs;
mod error;
pub mod initrd;
mod qemu;
mod recipe;
pub mod shipped;
mod store;
mod tool;
mod tree;

pub use archive::sources_here;
pub use boot_loader::boot_loader_of;
pub use cargo::cargo;
pub use error::Error;
pub use qemu::ensure_qemu;
pub use recipe::{Archive, Contents, Distribution, Fault, ImageFile, Kernel, Recipe, container_host, sandbox};
pub use store::{KEPT_IMAGES, OsImage, Package, Store, unmount_below};
pub use tool::end_tools;

/// What a list says: its lines without those that are empty or begin with `#`.
pub fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}
