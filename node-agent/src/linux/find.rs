//! Where the boot partition is mounted, and on which disk it lies.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Where a boot partition is usually mounted (Boot Loader Specification, "Mount points").
const USUAL: [&str; 3] = ["efi", "boot/efi", "boot"];

/// Why they are not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No boot partition.
    #[error("no boot partition is mounted at /efi, /boot/efi or /boot: mount it, or name it in boot.partition")]
    NoEsp,
    /// One of the usual places can't be looked at: a boot partition may be there.
    #[error("whether a boot partition is mounted at {} can't be told", path.display())]
    Look {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is built on the disk, or which others there are, can't be told.
    #[error("whether {} may be written to can't be told", disk.display())]
    Unknown {
        /// The disk.
        disk: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk below it can't be told.
    #[error("the disk with the boot partition at {} can't be told: name it in slots.disk", path.display())]
    Disk {
        /// Where the boot partition is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is one of several paths to a device, or all of them together.
    #[error(
        "{} is part of the multipath device {multipath}: slots on dm-multipath are not supported, since a partition table \
         that is written through one path is not seen on the others; boot from a disk of its own", disk.display()
    )]
    Multipath {
        /// The disk.
        disk: PathBuf,
        /// Name of the device-mapper device.
        multipath: String,
    },
    /// Another disk has the running release, too.
    #[error(
        "{} and {} both have a partition with PARTUUID {uuid}, which the running slot is found by: a copy of the disk is \
         attached; detach it, or give one of them other PARTUUIDs", disk.display(), other.display()
    )]
    SameDisk {
        /// The disk with the slots.
        disk: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What both have.
        uuid: Uuid,
    },
}

/// What a folder is. stat(2) of an automount point speaks of the automount and does not mount (since Linux 4.14), so the look is
/// at what lies in it.
fn inside(mounted: &Path) -> io::Result<std::fs::Metadata> {
    std::fs::metadata(mounted.join("."))
}

/// Whether an error says that something is not there. Any other says that it may be.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The first of the usual places that holds an `EFI` directory.
///
/// # Errors
/// None does, or one can't be looked at: were the next one taken for it, one partition would be taken for the other.
pub fn find_esp(root: &Path) -> Result<PathBuf, FindError> {
    for path in USUAL.iter().map(|place| root.join(place)) {
        // Looking also makes an automount do its work.
        match std::fs::metadata(path.join("EFI")) {
            Ok(found) if found.is_dir() => return Ok(path),
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(source) => return Err(FindError::Look { path, source }),
        }
    }
    Err(FindError::NoEsp)
}

/// Another boot partition beside `esp`: one of the usual places that is a mount of its own and has a folder for entries.
///
/// # Errors
/// One of the places can't be looked at: it may be there.
pub fn find_xbootldr(root: &Path, esp: &Path) -> io::Result<Option<PathBuf>> {
    // Folders in it: an automount point has another device until somebody looks below it.
    let device = |path: PathBuf| match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.dev())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    };
    let known = [device(esp.join("EFI"))?, device(root.to_owned())?];
    for place in USUAL.iter().map(|place| root.join(place)) {
        let found = device(place.join("EFI/Linux"))?;
        if found.is_some() && !known.contains(&found) {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The PARTUUID of the partition that the file system at `mounted` lies on, as udev names it.
///
/// # Errors
/// The folder can't be read. That udev knows none is `None`.
pub(super) fn partition_uuid(mounted: &Path) -> io::Result<Option<Uuid>> {
    let device = inside(mounted)?.dev();
    let links = match std::fs::read_dir("/dev/disk/by-partuuid") {
        Ok(links) => links,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for link in links {
        let link = link?;
        // A link whose device went away just now names nothing.
        let Ok(target) = std::fs::metadata(link.path()) else { continue };
        if target.rdev() == device {
            return Ok(link.file_name().to_str().and_then(|name| name.parse().ok()));
        }
    }
    Ok(None)
}

/// The whole disk below the file system that is mounted at `mounted`.
///
/// # Errors
/// It is not on a partition of a disk.
pub fn find_disk(mounted: &Path) -> Result<PathBuf, FindError> {
    let failed = |source| FindError::Disk { path: mounted.to_owned(), source };
    let device = inside(mounted).map_err(failed)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let node = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize().map_err(failed)?;
    let on_partition = node.join("partition").exists();
    let disk = node.parent().and_then(Path::file_name).filter(|_| on_partition);
    let disk = disk.ok_or_else(|| failed(io::Error::other("it is not on a partition of a disk")))?;
    Ok(Path::new("/dev").join(disk))
}

/// Refuses a disk below or above dm-multipath. `disk` is its device node; `sys` the folder `/sys/class/block`.
///
/// # Errors
/// [`FindError::Multipath`]. What sysfs does not have is no multipath; what can't be read of it may be one.
pub(super) fn refuse_multipath(sys: &Path, disk: &Path) -> Result<(), FindError> {
    let unknown = |source| FindError::Unknown { disk: disk.to_owned(), source };
    let name = disk.file_name().unwrap_or_default();
    let own = sys.join(name);
    let holders = names(&own.join("holders")).map_err(unknown)?;
    let holders = holders.into_iter().map(|name| sys.join(name));
    for device in std::iter::once(own).chain(holders) {
        let text = |file: &str| attribute(&device.join(file)).map_err(unknown);
        // multipath-tools gives its devices such UUIDs, kpartx their partitions.
        let is_path = text("dm/uuid")?.is_some_and(|uuid| uuid.starts_with("mpath-") || uuid.contains("-mpath-"));
        if is_path {
            let multipath = text("dm/name")?.unwrap_or_else(|| "without a name".to_owned());
            return Err(FindError::Multipath { disk: disk.to_owned(), multipath });
        }
    }
    Ok(())
}

/// Names in a folder of sysfs; none where the folder is not there.
fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A file of sysfs, if it is there.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The other disks of the machine: whole disks that hold something, neither loop devices nor devices made of others.
///
/// # Errors
/// What sysfs has can't be read.
pub(super) fn other_disks(sys: &Path, disk: &Path) -> Result<Vec<PathBuf>, FindError> {
    let unknown = |source| FindError::Unknown { disk: disk.to_owned(), source };
    let mut found = Vec::new();
    for name in names(sys).map_err(unknown)? {
        let path = sys.join(&name);
        let whole = path.join("device").try_exists().map_err(unknown)?
            && !path.join("partition").try_exists().map_err(unknown)?;
        let size = attribute(&path.join("size")).map_err(unknown)?.and_then(|size| size.parse::<u64>().ok());
        let other = Path::new("/dev").join(name);
        if whole && size.is_some_and(|size| size > 0) && other != disk {
            found.push(other);
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses a disk of which another is a copy: the initrd looks for the slot by PARTUUID on all disks, so that the system may
/// run from the one and be updated on the other.
///
/// # Errors
/// [`FindError::SameDisk`]. A disk that can't be read or has no table is nobody's copy.
pub(super) fn refuse_copies(disk: (&Path, &[Uuid]), others: &[(PathBuf, Vec<Uuid>)]) -> Result<(), FindError> {
    let (disk, own) = disk;
    for (other, theirs) in others {
        if let Some(uuid) = theirs.iter().find(|uuid| !uuid.is_nil() && own.contains(uuid)) {
            return Err(FindError::SameDisk { disk: disk.to_owned(), other: other.clone(), uuid: *uuid });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipath_is_refused_from_below_and_above() {
        let sys = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = sys.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sda/size", "100\n");
        std::fs::create_dir_all(sys.path().join("sda/holders/dm-0")).unwrap();
        write("dm-0/dm/uuid", "CRYPT-LUKS2-x\n");
        write("sdb/size", "100\n");
        std::fs::create_dir_all(sys.path().join("sdb/holders/dm-1")).unwrap();
        write("dm-1/dm/uuid", "mpath-3600a0b80\n");
        write("dm-1/dm/name", "mpatha\n");
        write("dm-2/dm/uuid", "part1-mpath-3600a0b80\n");
        let refused = |disk: &str| refuse_multipath(sys.path(), Path::new(disk)).map_err(|error| error.to_string());
        assert_eq!(refused("/dev/sda"), Ok(()));
        assert_eq!(refused("/dev/nvme0n1"), Ok(()));
        for disk in ["/dev/sdb", "/dev/dm-1", "/dev/dm-2"] {
            let message = refused(disk).unwrap_err();
            assert!(message.contains(disk) && message.contains("multipath"), "{message}");
        }
    }

    #[test]
    fn a_copy_of_the_disk_is_named() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let other = |uuids: &[Uuid]| vec![(PathBuf::from("/dev/sdb"), uuids.to_vec())];
        assert!(refuse_copies((Path::new("/dev/sda"), &[a, Uuid::nil()]), &other(&[b, Uuid::nil()])).is_ok());
        let message = refuse_copies((Path::new("/dev/sda"), &[a]), &other(&[b, a])).unwrap_err().to_string();
        assert!(message.contains("/dev/sda and /dev/sdb"), "{message}");
    }

    #[test]
    fn other_disks_are_whole_ones_that_hold_something() {
        let sys = tempfile::tempdir().unwrap();
        for (name, size, device, partition) in [
            ("sda", "9", true, false),
            ("nvme0n1", "9", true, false),
            ("sda1", "9", false, true),
            ("loop0", "9", false, false),
            ("sr0", "0", true, false),
        ] {
            let folder = sys.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("size"), size).unwrap();
            for (file, there) in [("device", device), ("partition", partition)] {
                if there {
                    std::fs::write(folder.join(file), "1").unwrap();
                }
            }
        }
        let found = other_disks(sys.path(), Path::new("/dev/sda")).unwrap();
        assert_eq!(found, [PathBuf::from("/dev/nvme0n1")]);
    }

    /// A link that leads to itself: something is there, and nobody can look at it.
    fn unreadable(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(path, path).unwrap();
    }

    #[test]
    fn a_place_that_can_not_be_looked_at_is_no_place_without_a_boot_partition() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("boot/EFI/Linux")).unwrap();
        assert_eq!(find_esp(root.path()).unwrap(), root.path().join("boot"));
        unreadable(&root.path().join("efi/EFI"));
        let error = find_esp(root.path()).unwrap_err();
        assert!(matches!(&error, FindError::Look { path, .. } if *path == root.path().join("efi")), "{error}");
    }

    #[test]
    fn what_sysfs_does_not_give_is_no_leave_to_write() {
        let sys = tempfile::tempdir().unwrap();
        let disk = Path::new("/dev/sda");
        assert!(refuse_multipath(sys.path(), disk).is_ok(), "what is not there is nothing that is built on it");
        unreadable(&sys.path().join("dm-0/dm/uuid"));
        std::fs::create_dir_all(sys.path().join("sda/holders/dm-0")).unwrap();
        let error = refuse_multipath(sys.path(), disk).unwrap_err();
        assert!(matches!(error, FindError::Unknown { .. }), "{error}");
        unreadable(&sys.path().join("sdb/size"));
        let error = other_disks(sys.path(), disk).unwrap_err();
        assert!(matches!(error, FindError::Unknown { .. }), "{error}");
    }
}
