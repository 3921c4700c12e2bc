//! Whether a disk may be written to: it is one device with one path, and no other is a copy of it.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::FindError;
use super::below::{attribute, names};

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
    use super::super::below::unreadable;
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
