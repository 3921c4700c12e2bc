//! What lies below a mounted file system: the partition of a disk, and what sysfs, udev and its table say of that.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{BlockDisk, FindError};
use crate::gpt::{Table, TableError};
use crate::host::Disk;

/// What a folder is. stat(2) of an automount point speaks of the automount and does not mount (since Linux 4.14), so the look is
/// at what lies in it.
fn inside(mounted: &Path) -> io::Result<std::fs::Metadata> {
    std::fs::metadata(mounted.join("."))
}

/// Whether an error says that something is not there. Any other says that it may be.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The partition of a disk that a file system lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Below {
    pub(super) disk: PathBuf,
    pub(super) number: u32,
}

/// The types of a disk's partitions, in the order of the table.
type Types = Vec<(u32, Uuid)>;

/// Where links to block devices by their numbers are.
const BLOCKS: &str = "/sys/dev/block";

/// The partition below what is mounted at `mounted`. `None` where that is no mount of its own, or no partition of a disk.
pub(super) fn below(mounted: &Path) -> io::Result<Option<Below>> {
    let device = |path: PathBuf| match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found.dev())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    };
    let Some(own) = device(mounted.join("."))? else { return Ok(None) };
    if device(mounted.join(".."))? == Some(own) {
        return Ok(None);
    }
    below_device(Path::new(BLOCKS), own)
}

fn below_device(blocks: &Path, device: u64) -> io::Result<Option<Below>> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let node = match blocks.join(format!("{major}:{minor}")).canonicalize() {
        Ok(node) => node,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(number) = attribute(&node.join("partition"))? else { return Ok(None) };
    let number = number.parse().map_err(io::Error::other)?;
    let disk = node.parent().and_then(Path::file_name).map(|name| Path::new("/dev").join(name));
    Ok(disk.map(|disk| Below { disk, number }))
}

/// What the partitions of a disk are. One that was read and has no table has none, for the boot loader as well.
///
/// # Errors
/// Neither copy of the table could be read: what the partitions are is not known.
pub(super) fn types(disk: &dyn Disk) -> io::Result<Types> {
    match Table::read(disk) {
        Ok(table) => Ok(table.partitions().into_iter().map(|(kind, partition)| (partition.number, kind)).collect()),
        Err(TableError::Disk { source, .. }) => Err(source),
        Err(TableError::Invalid { .. }) => Ok(Vec::new()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The type of the partition below what is mounted at `mounted`, where that can be told.
pub(super) fn kind_of(mounted: &Path) -> io::Result<Option<(Below, Uuid)>> {
    let Some(below) = below(mounted)? else { return Ok(None) };
    let found = types(&BlockDisk::open(&below.disk)?)?.into_iter().find(|(number, _)| *number == below.number);
    Ok(found.map(|(_, kind)| (below, kind)))
}

/// The PARTUUID of the partition that the file system at `mounted` lies on, as udev names it, else as the partition table does.
///
/// # Errors
/// The folder or the table can't be read. What lies on no partition of a disk has none.
pub(super) fn partition_uuid(mounted: &Path) -> io::Result<Option<Uuid>> {
    if let Some(uuid) = uuid_by_udev(Path::new("/dev/disk/by-partuuid"), inside(mounted)?.dev())? {
        return Ok(Some(uuid));
    }
    match below(mounted)? {
        Some(below) => uuid_by_table(&BlockDisk::open(&below.disk)?, below.number),
        None => Ok(None),
    }
}

fn uuid_by_table(disk: &BlockDisk, number: u32) -> io::Result<Option<Uuid>> {
    let table = match Table::read(disk) {
        Ok(table) => table,
        // The names in a table of another kind are none for the boot loader.
        Err(TableError::Invalid { .. }) => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    };
    let found = table.partitions().into_iter().find(|(_, partition)| partition.number == number);
    Ok(found.map(|(_, partition)| partition.uuid))
}

fn uuid_by_udev(links: &Path, device: u64) -> io::Result<Option<Uuid>> {
    let links = match std::fs::read_dir(links) {
        Ok(links) => links,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for link in links {
        let link = link?;
        // A link whose device went away just now, or that can't be followed, names nothing: the table is asked next.
        let Ok(target) = std::fs::metadata(link.path()) else { continue };
        // A name that is no UUID is of a table of another kind, or of somebody's own rule: it says nothing.
        if target.rdev() == device
            && let Some(uuid) = link.file_name().to_str().and_then(|name| name.parse().ok())
        {
            return Ok(Some(uuid));
        }
    }
    Ok(None)
}

/// The whole disk below the file system that is mounted at `mounted`.
///
/// # Errors
/// It is not on a partition of a disk, or that can't be told.
pub fn find_disk(mounted: &Path) -> Result<PathBuf, FindError> {
    let failed = |source| FindError::Disk { path: mounted.to_owned(), source };
    let device = inside(mounted).map_err(failed)?.dev();
    disk_below(Path::new(BLOCKS), mounted, device)
}

fn disk_below(blocks: &Path, mounted: &Path, device: u64) -> Result<PathBuf, FindError> {
    let failed = |source| FindError::Disk { path: mounted.to_owned(), source };
    if let Some(below) = below_device(blocks, device).map_err(failed)? {
        return Ok(below.disk);
    }
    let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let device = match blocks.join(&numbers).canonicalize() {
        Ok(node) => format!("/dev/{}", node.file_name().unwrap_or_default().display()),
        Err(error) if is_absent(&error) => format!("device {numbers}, no block device"),
        Err(error) => return Err(failed(error)),
    };
    Err(FindError::NotPartition { path: mounted.to_owned(), device })
}

/// Names in a folder of sysfs; none where the folder is not there.
pub(super) fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A file of sysfs, if it is there.
pub(super) fn attribute(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A link that leads to itself: something is there, and nobody can look at it.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a helper of tests is no `#[test]` function itself")]
pub(super) fn unreadable(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(path, path).unwrap();
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use bascule_image::io::{ReadAt, Sink};

    use super::*;
    use crate::host::{DiskGeometry, Extent};

    #[test]
    fn the_partition_below_a_device_is_told_by_sysfs_or_not_at_all() {
        let sys = tempfile::tempdir().unwrap();
        let (blocks, disk) = (sys.path().join("block"), sys.path().join("devices/nvme0n1"));
        std::fs::create_dir_all(disk.join("nvme0n1p3")).unwrap();
        std::fs::create_dir_all(&blocks).unwrap();
        std::fs::write(disk.join("nvme0n1p3/partition"), "3\n").unwrap();
        std::os::unix::fs::symlink(disk.join("nvme0n1p3"), blocks.join("259:3")).unwrap();
        std::os::unix::fs::symlink(&disk, blocks.join("259:0")).unwrap();
        unreadable(&blocks.join("259:9"));
        let below = |minor| below_device(&blocks, rustix::fs::makedev(259, minor));
        let expected = Below { disk: "/dev/nvme0n1".into(), number: 3 };
        assert_eq!(below(3).unwrap(), Some(expected));
        assert_eq!((below(0).unwrap(), below(1).unwrap()), (None, None), "a whole disk, and no block device");
        assert!(below(9).is_err(), "what can't be looked at may be one");
    }

    #[test]
    fn a_name_of_udevs_that_is_no_uuid_hides_none_that_is() {
        let links = tempfile::tempdir().unwrap();
        let device = std::fs::metadata("/dev/null").unwrap().rdev();
        let link = |name: &str| std::os::unix::fs::symlink("/dev/null", links.path().join(name)).unwrap();
        let found = |device| uuid_by_udev(links.path(), device).unwrap();
        for number in 1..9 {
            link(&format!("1f2e3d4c-0{number}"));
        }
        assert_eq!(found(device), None);
        link("11111111-2222-4333-8444-555555555555");
        assert_eq!(found(device), Some("11111111-2222-4333-8444-555555555555".parse().unwrap()));
        assert_eq!(found(device + 1), None);
        assert_eq!(uuid_by_udev(&links.path().join("none"), device).unwrap(), None);
    }

    #[test]
    fn an_esp_that_is_no_partition_is_refused_in_a_sentence() {
        let sys = tempfile::tempdir().unwrap();
        let (blocks, mirror) = (sys.path().join("block"), sys.path().join("devices/virtual/block/md0"));
        std::fs::create_dir_all(&mirror).unwrap();
        std::fs::create_dir_all(&blocks).unwrap();
        std::os::unix::fs::symlink(&mirror, blocks.join("9:0")).unwrap();
        unreadable(&blocks.join("9:1"));
        let look = |minor| disk_below(&blocks, Path::new("/efi"), rustix::fs::makedev(9, minor)).unwrap_err();
        for (minor, words) in [(0, "/dev/md0"), (2, "device 9:2, no block device")] {
            let error = look(minor).to_string();
            assert!(error.contains("at /efi") && error.contains(words) && error.contains("software RAID"), "{error}");
        }
        assert!(matches!(look(1), FindError::Disk { .. }), "what can't be looked at may be a partition");
    }

    /// A disk whose sectors can't be read, from some place on.
    struct Rotten {
        bytes: Vec<u8>,
        sound: Range<u64>,
    }

    impl Disk for Rotten {
        fn geometry(&self) -> io::Result<DiskGeometry> {
            Ok(DiskGeometry { length: self.bytes.len() as u64, sector: 512 })
        }

        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let end = offset + buffer.len() as u64;
            if offset < self.sound.start || end > self.sound.end {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.bytes.read_at(buffer, offset)
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            unreachable!("nobody writes")
        }

        fn flush(&self) -> io::Result<()> {
            unreachable!("nobody writes")
        }

        fn partition(&self, _: u32, _: Extent) -> io::Result<Box<dyn Sink>> {
            unreachable!("nobody writes")
        }

        fn partition_direct(&self, _: u32, _: Extent) -> io::Result<Box<dyn ReadAt>> {
            unreachable!("only the table is read")
        }

        fn partition_read(&self, _: u32, _: Extent) -> io::Result<Box<dyn ReadAt>> {
            unreachable!("only the table is read")
        }
    }

    #[test]
    fn a_table_that_can_not_be_read_is_not_one_without_an_xbootldr() {
        let length = 4 << 20;
        let empty = |sound| Rotten { bytes: vec![0; length], sound };
        let all = 0..length as u64;
        assert_eq!(types(&empty(all.clone())).unwrap(), [], "it was read, and has no table");
        // One of the two copies, or both.
        for sound in [0..0, 64 << 10..all.end, 0..all.end - (64 << 10)] {
            assert_eq!(types(&empty(sound.clone())).unwrap_err().raw_os_error(), Some(5), "{sound:?}");
        }
    }
}
