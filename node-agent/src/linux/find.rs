//! Where the boot partition is mounted, and on which disk it lies.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bascule_gpt::kind;
use uuid::Uuid;

use super::BlockDisk;
use crate::gpt::{Table, TableError};

/// Where a boot partition is usually mounted (Boot Loader Specification, "Mount points").
const USUAL: [&str; 3] = ["efi", "boot/efi", "boot"];

/// Why they are not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No boot partition.
    #[error("no boot partition is mounted at /efi, /boot/efi or /boot: mount it, or name it in boot.partition")]
    NoEsp,
    /// The settings name the other boot partition, and the ESP is not mounted.
    #[error(
        "boot.partition names {}, which is an XBOOTLDR, and the ESP of its disk is mounted at none of /efi, /boot/efi and /boot: \
         mount it and name that; the XBOOTLDR is found without being named", path.display()
    )]
    NotEsp {
        /// What is named.
        path: PathBuf,
    },
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

/// The partition of a disk that a file system lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Below {
    disk: PathBuf,
    number: u32,
}

/// The types of a disk's partitions, in the order of the table.
type Types = Vec<(u32, Uuid)>;

/// Where links to block devices by their numbers are.
const BLOCKS: &str = "/sys/dev/block";

/// The partition below what is mounted at `mounted`. `None` where that is no mount of its own, or no partition of a disk.
fn below(mounted: &Path) -> io::Result<Option<Below>> {
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
fn types(disk: &Path) -> io::Result<Types> {
    match Table::read(&BlockDisk::open(disk)?) {
        Ok(table) => Ok(table.partitions().into_iter().map(|(kind, partition)| (partition.number, kind)).collect()),
        Err(TableError::Disk { source, .. }) => Err(source),
        Err(TableError::Invalid { .. }) => Ok(Vec::new()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The type of the partition below what is mounted at `mounted`, where that can be told.
fn kind_of(mounted: &Path) -> io::Result<Option<(Below, Uuid)>> {
    let Some(below) = below(mounted)? else { return Ok(None) };
    let found = types(&below.disk)?.into_iter().find(|(number, _)| *number == below.number);
    Ok(found.map(|(_, kind)| (below, kind)))
}

/// What is named as boot partition; where that is an XBOOTLDR, the ESP of the same disk, which has the boot loader's settings.
///
/// # Errors
/// [`FindError::NotEsp`]: that one is not mounted.
pub(super) fn named_esp(root: &Path, named: &Path) -> Result<PathBuf, FindError> {
    let kind = |path: &Path| kind_of(path).map_err(|source| FindError::Look { path: path.to_owned(), source });
    let Some((own, kind::XBOOTLDR)) = kind(named)? else { return Ok(named.to_owned()) };
    for path in USUAL.iter().map(|place| root.join(place)) {
        if kind(&path)?.is_some_and(|(below, kind)| kind == kind::ESP && below.disk == own.disk) {
            return Ok(path);
        }
    }
    Err(FindError::NotEsp { path: named.to_owned() })
}

/// The first of the usual places that holds an `EFI` directory and is no XBOOTLDR.
///
/// # Errors
/// None does, or one can't be looked at: were the next one taken for it, one partition would be taken for the other.
pub fn find_esp(root: &Path) -> Result<PathBuf, FindError> {
    for path in USUAL.iter().map(|place| root.join(place)) {
        // Looking also makes an automount do its work.
        let found = match std::fs::metadata(path.join("EFI")) {
            Ok(found) => found.is_dir(),
            Err(error) if is_absent(&error) => false,
            Err(source) => return Err(FindError::Look { path, source }),
        };
        if !found {
            continue;
        }
        match kind_of(&path) {
            Ok(Some((_, kind::XBOOTLDR))) => {}
            Ok(_) => return Ok(path),
            Err(source) => return Err(FindError::Look { path, source }),
        }
    }
    Err(FindError::NoEsp)
}

/// The XBOOTLDR of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FoundXbootldr {
    /// There is none.
    None,
    /// It is mounted here.
    At(PathBuf),
    /// It is mounted at none of the usual places: which it is, in words.
    NotMounted(String),
}

/// The XBOOTLDR beside `esp`: the first partition of that type on the same disk, as the boot loader looks for it (Boot Loader
/// Specification, "The partitions"; systemd, src/boot/part-discovery.c), where one of the usual places has it.
///
/// # Errors
/// The disk can't be looked at: it may have one.
pub(super) fn find_xbootldr(root: &Path, esp: &Path) -> io::Result<FoundXbootldr> {
    // What is no partition of a disk has none beside it.
    let Some(esp) = below(esp)? else { return Ok(FoundXbootldr::None) };
    let types = types(&esp.disk)?;
    let places = USUAL.iter().map(|place| root.join(place)).map(|place| (below(&place), place));
    Ok(xbootldr_beside(&esp, &types, places))
}

/// Looks at the places one by one, and at none where there is nothing to be found: an automount or a network file system that does not
/// answer is no part of what boots.
fn xbootldr_beside(
    esp: &Below,
    types: &[(u32, Uuid)],
    places: impl Iterator<Item = (io::Result<Option<Below>>, PathBuf)>,
) -> FoundXbootldr {
    let Some((number, _)) = types.iter().find(|(_, found)| *found == kind::XBOOTLDR) else {
        return FoundXbootldr::None;
    };
    let wanted = Below { disk: esp.disk.clone(), number: *number };
    let mut failed = Vec::new();
    for (below, place) in places {
        match below {
            Ok(Some(below)) if below == wanted => return FoundXbootldr::At(place),
            Ok(_) => {}
            Err(error) => failed.push(format!("; {} can't be looked at: {error}", place.display())),
        }
    }
    FoundXbootldr::NotMounted(format!(
        "partition {number} of {} is an XBOOTLDR, which the boot loader takes entries from, and is mounted at none of /efi, \
         /boot/efi and /boot: mount it at /boot, and for an agent in a pod add the component xbootldr{}",
        esp.disk.display(),
        failed.concat()
    ))
}

/// The PARTUUID of the partition that the file system at `mounted` lies on, as udev names it, else as the partition table does.
///
/// # Errors
/// The folder or the table can't be read. What lies on no partition of a disk has none.
pub(super) fn partition_uuid(mounted: &Path) -> io::Result<Option<Uuid>> {
    if let Some(uuid) = uuid_by_udev(mounted)? {
        return Ok(Some(uuid));
    }
    match below(mounted)? {
        Some(below) => uuid_by_table(&BlockDisk::open(&below.disk)?, below.number),
        None => Ok(None),
    }
}

fn uuid_by_table(disk: &BlockDisk, number: u32) -> io::Result<Option<Uuid>> {
    let table = Table::read(disk).map_err(io::Error::other)?;
    let found = table.partitions().into_iter().find(|(_, partition)| partition.number == number);
    Ok(found.map(|(_, partition)| partition.uuid))
}

fn uuid_by_udev(mounted: &Path) -> io::Result<Option<Uuid>> {
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

    #[test]
    fn an_xbootldr_is_one_by_its_type_and_lies_on_the_disk_of_the_esp() {
        let on = |disk: &str, number| Below { disk: PathBuf::from(disk), number };
        let esp = on("/dev/sda", 1);
        let types = [(1, kind::ESP), (2, kind::ROOT_X86_64), (7, kind::XBOOTLDR), (8, kind::XBOOTLDR)];
        let look = |types: &[(u32, Uuid)], mounted: &[(&str, Below)]| {
            let places = mounted.iter().map(|(place, below)| (Ok(Some(below.clone())), PathBuf::from(place)));
            xbootldr_beside(&esp, types, places)
        };
        let at_efi = ("/efi", esp.clone());
        assert_eq!(look(&types, &[at_efi.clone(), ("/boot", on("/dev/sda", 7))]), FoundXbootldr::At("/boot".into()));
        // An ESP of another disk, a file system that is just called so, the second of two, one of another disk.
        for other in [on("/dev/sdb", 1), on("/dev/sda", 2), on("/dev/sda", 8), on("/dev/sdb", 7)] {
            let found = look(&types, &[at_efi.clone(), ("/boot", other.clone())]);
            assert!(
                matches!(&found, FoundXbootldr::NotMounted(why) if why.contains("partition 7 of /dev/sda")),
                "{found:?}"
            );
            let none = look(&types[..2], &[at_efi.clone(), ("/boot", other)]);
            assert_eq!(none, FoundXbootldr::None);
        }
    }

    #[test]
    fn a_place_that_does_not_answer_hides_no_xbootldr_and_invents_none() {
        let on = |number| Below { disk: PathBuf::from("/dev/sda"), number };
        let dead = |place: &str| (Err(io::Error::from_raw_os_error(19)), PathBuf::from(place));
        let types = [(1, kind::ESP), (7, kind::XBOOTLDR)];
        let look = |types: &[(u32, Uuid)], places: Vec<_>| xbootldr_beside(&on(1), types, places.into_iter());
        assert_eq!(look(&types[..1], vec![dead("/efi"), dead("/boot")]), FoundXbootldr::None);
        let mounted = (Ok(Some(on(7))), PathBuf::from("/boot"));
        assert_eq!(look(&types, vec![dead("/efi"), mounted]), FoundXbootldr::At("/boot".into()));
        let found = look(&types, vec![(Ok(Some(on(1))), "/efi".into()), dead("/boot")]);
        assert!(
            matches!(&found, FoundXbootldr::NotMounted(why) if why.contains("/boot can't be looked at: No such device")),
            "{found:?}"
        );
    }

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
