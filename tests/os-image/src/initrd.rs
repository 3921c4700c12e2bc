//! The initrd: one static program and the few kernel modules between the kernel and a dm-verity root.
//!
//! dracut and initramfs-tools bring udev, a shell and half a system, which takes half a minute under emulation. This
//! host needs five steps (load modules, arm the watchdog, find two partitions, set up dm-verity, switch the root),
//! and `examples/debian/init` does exactly those.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Cpio;
use crate::{Error, entries, tool};

/// Modules to load, in this order, each with what it depends on. Those built into the kernel are left out.
const MODULES: &str = include_str!("../../../examples/debian/initrd-modules");

/// Writes the initrd for the modules below `root` to `path`: the program `init`, and the release's own `os_release`. The same input
/// gives the same bytes.
///
/// # Errors
/// When a module is missing in `root`, or a file can't be read or written.
pub fn write(root: &Path, init: &Path, os_release: &str, path: &Path) -> Result<(), Error> {
    let mut archive = Cpio::default();
    for folder in ["dev", "etc", "proc", "sys", "run", "root", "modules"] {
        archive.folder(folder);
    }
    // The name that systemd gives an initrd's own os-release (os-release(5)).
    archive.file("etc/initrd-release", 0o644, os_release.as_bytes());
    archive.file("init", 0o755, &fs::read(init).map_err(Error::io(init))?);
    let mut order = String::new();
    for file in load_order(root)? {
        let name = module_name(&file);
        archive.file(&format!("modules/{name}.ko"), 0o644, &unpacked(&file)?);
        order.push_str(&format!("/modules/{name}.ko\n"));
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let bytes = zstd::bulk::compress(&archive.finish(), 19).map_err(Error::io(path))?;
    fs::write(path, bytes).map_err(Error::io(path))
}

/// The module files to load, dependencies first.
fn load_order(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let modules = root.join("usr/lib/modules");
    let versions = fs::read_dir(&modules).map_err(Error::io(&modules))?;
    let mut folders: Vec<PathBuf> = versions.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    folders.sort();
    let folder = folders.pop().ok_or_else(|| missing("a kernel", &modules))?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(Error::io(path))
    };
    let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
    let mut loaded = BTreeSet::new();
    let mut order = Vec::new();
    for wanted in entries(MODULES) {
        if built_in.lines().any(|line| module_name(Path::new(line)) == wanted) {
            continue;
        }
        let line = dependencies
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(file, _)| module_name(Path::new(file)) == wanted));
        let (file, needs) = line.and_then(|line| line.split_once(':')).ok_or_else(|| missing(wanted, &folder))?;
        // depmod lists what a module needs in the reverse of the order in which it is to be loaded.
        for file in needs.split_whitespace().rev().chain([file]) {
            if loaded.insert(file.to_owned()) {
                order.push(folder.join(file));
            }
        }
    }
    Ok(order)
}

/// `kernel/drivers/md/dm-verity.ko.xz` is the module `dm_verity`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// A module's own bytes: unpacking here costs nothing, unpacking at each boot would.
fn unpacked(file: &Path) -> Result<Vec<u8>, Error> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let output = tool::run("unpacking a kernel module", Command::new("xz").arg("-dc").arg(file))?;
        return Ok(output.stdout);
    }
    fs::read(file).map_err(Error::io(file))
}

fn missing(what: &str, place: &Path) -> Error {
    Error::Unexpected { what: format!("kernel module {what}"), detail: place.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/lib/modules/6.0");
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("modules.dep"),
            "kernel/md/dm-verity.ko.xz: kernel/md/dm-bufio.ko.xz kernel/md/dm-mod.ko.xz\nkernel/md/dm-mod.ko.xz:\n\
             kernel/i6300esb.ko: kernel/watchdog.ko\nkernel/virtio_blk.ko:\n\
             kernel/nvme.ko: kernel/nvme-core.ko\nkernel/erofs.ko:\nkernel/efivarfs.ko:\n\
             kernel/vfat.ko: kernel/fat.ko\nkernel/nls_ascii.ko:\nkernel/nls_cp437.ko:\n",
        )
        .unwrap();
        fs::write(folder.join("modules.builtin"), "kernel/crypto/sha256-ssse3.ko\n").unwrap();
        let order: Vec<String> = load_order(root.path()).unwrap().iter().map(|file| module_name(file)).collect();
        assert_eq!(
            order,
            [
                "watchdog",
                "i6300esb",
                "virtio_blk",
                "nvme_core",
                "nvme",
                "dm_mod",
                "dm_bufio",
                "dm_verity",
                "erofs",
                "efivarfs",
                "fat",
                "vfat",
                "nls_ascii",
                "nls_cp437"
            ]
        );
    }
}
