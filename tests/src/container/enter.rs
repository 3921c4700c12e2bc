//! Inside the new mount namespace: builds the container's root, moves into it, gives up rights, becomes the program.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount};
use rustix::process::pivot_root;
use rustix::thread::{set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid};

use super::{Container, Mount};

/// Devices that every container has (OCI Runtime Specification, "Default Devices").
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const NO_DATA: Option<&CStr> = None;

/// Becomes the container's program. Returns only when that is not possible, with the reason.
#[must_use]
pub fn enter(container: &Container) -> io::Error {
    match prepare(container) {
        Ok(()) => Command::new(&container.program)
            .args(&container.arguments)
            .env_clear()
            .envs(container.environment.iter().map(|(key, value)| (key, value)))
            .exec(),
        Err(error) => error,
    }
}

fn prepare(container: &Container) -> io::Result<()> {
    let root = &container.root;
    let named = |what: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", what.display()));
    mount_bind(root, root)?;
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let own_devices = container.mounts.iter().all(|one| one.target != Path::new("/dev"));
    if own_devices {
        devices(&inside(Path::new("/dev")))?;
    }
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A machine without EFI has no place below /sys where its variables could be mounted, and nobody can make one.
    let no_place = |one: &&Mount| one.target.starts_with("/sys") && !one.target.exists();
    let system = match container.mounts.iter().find(no_place) {
        Some(_) => ("tmpfs", "/sys", plain),
        None => ("sysfs", "/sys", plain | MountFlags::RDONLY),
    };
    for (kind, place, flags) in [("proc", "/proc", plain), system] {
        let target = inside(Path::new(place));
        fs::create_dir_all(&target)?;
        mount(kind, &target, kind, flags, NO_DATA).map_err(|error| named(&target, error.into()))?;
    }
    for one in &container.mounts {
        let target = inside(&one.target);
        mount_point(&one.source, &target).map_err(|error| named(&target, error))?;
        mount_bind_recursive(&one.source, &target).map_err(|error| named(&one.source, error.into()))?;
        if one.read_only {
            mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, c"")?;
        }
    }
    if container.read_only_root {
        mount_remount(root, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    std::env::set_current_dir(root)?;
    // The old root lies over the new one until it is taken away (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    set_thread_groups(&[])?;
    set_thread_gid(rustix::process::Gid::from_raw(container.gid))?;
    set_thread_uid(rustix::process::Uid::from_raw(container.uid))?;
    if container.no_new_privileges {
        set_no_new_privs(true)?;
    }
    Ok(())
}

/// A mount needs something of its own kind below it; runtimes make that in the container's root.
fn mount_point(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target).map(|_| ())
}

fn devices(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID, Some(c"mode=755"))?;
    for device in DEVICES {
        let (source, target) = (PathBuf::from("/dev").join(device), folder.join(device));
        mount_point(&source, &target)?;
        mount_bind(&source, &target)?;
    }
    Ok(())
}
