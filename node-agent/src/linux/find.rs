//! Where the boot partition is mounted, and on which disk it lies.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bascule_gpt::kind;
use uuid::Uuid;

use super::{BlockDisk, EfiVariables};
use crate::boot::loader_device;
use crate::gpt::{Table, TableError};
use crate::host::Disk;

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
    /// What is mounted there is no partition of a disk.
    #[error(
        "the boot partition at {} lies on {device}, which is no partition of a disk: firmware and boot loader read and write the \
         ESP of one disk, and know nothing of a mirror (software RAID) or another device made of several; mount the ESP of the \
         disk that the machine boots from", path.display()
    )]
    NotPartition {
        /// Where it is mounted.
        path: PathBuf,
        /// What it is, in words.
        device: String,
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
///
/// # Errors
/// Neither copy of the table could be read: what the partitions are is not known.
fn types(disk: &dyn Disk) -> io::Result<Types> {
    match Table::read(disk) {
        Ok(table) => Ok(table.partitions().into_iter().map(|(kind, partition)| (partition.number, kind)).collect()),
        Err(TableError::Disk { source, .. }) => Err(source),
        Err(TableError::Invalid { .. }) => Ok(Vec::new()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The type of the partition below what is mounted at `mounted`, where that can be told.
fn kind_of(mounted: &Path) -> io::Result<Option<(Below, Uuid)>> {
    let Some(below) = below(mounted)? else { return Ok(None) };
    let found = types(&BlockDisk::open(&below.disk)?)?.into_iter().find(|(number, _)| *number == below.number);
    Ok(found.map(|(_, kind)| (below, kind)))
}

/// What is named as boot partition; where that is an XBOOTLDR, the ESP of the same disk, which has the boot loader's settings.
///
/// # Errors
/// [`FindError::NotEsp`]: that one is not mounted. [`FindError::Look`]: it may be, where nobody could look.
pub(super) fn named_esp(root: &Path, named: &Path) -> Result<PathBuf, FindError> {
    let kind = |path: &Path| kind_of(path).map_err(|source| FindError::Look { path: path.to_owned(), source });
    let Some((own, kind::XBOOTLDR)) = kind(named)? else { return Ok(named.to_owned()) };
    let is_it = |(below, kind): (Below, Uuid)| kind == kind::ESP && below.disk == own.disk;
    let places = USUAL.iter().map(|place| root.join(place)).map(|path| {
        let place = if kind(&path)?.is_some_and(is_it) { Place::Esp } else { Place::Other };
        Ok((path, place))
    });
    // On the disk of what is named, it is the one that was meant.
    first_esp(places, |_| true)?.ok_or_else(|| FindError::NotEsp { path: named.to_owned() })
}

/// What one of the usual places holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A partition of the ESP's type.
    Esp,
    /// Something with an `EFI` folder that is not known to be an ESP: no partition, on a disk without a table, or a partition of another
    /// type, which some firmware starts from all the same.
    MayBe,
    /// Nothing, or an XBOOTLDR; where the ESP of one disk is looked for, whatever else.
    Other,
}

/// The first place that has the ESP; `None` if none has. A place that does not answer hides none that is proven to be the one.
///
/// # Errors
/// A place that could not be looked at may have it, and none is known to: were what may be one taken for it, one partition would be
/// taken for the other, or the ESP of one disk for that of another.
fn first_esp(
    places: impl Iterator<Item = Result<(PathBuf, Place), FindError>>,
    is_proven: impl Fn(&Path) -> bool,
) -> Result<Option<PathBuf>, FindError> {
    let mut failed = None;
    for place in places {
        match place {
            Ok((path, Place::Esp)) if failed.is_none() || is_proven(&path) => return Ok(Some(path)),
            Ok((path, Place::MayBe)) if failed.is_none() => return Ok(Some(path)),
            Ok(_) => {}
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

fn look_at(path: &Path) -> io::Result<Place> {
    // Looking also makes an automount do its work.
    match std::fs::metadata(path.join("EFI")) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(Place::Other),
        Err(error) if is_absent(&error) => return Ok(Place::Other),
        Err(error) => return Err(error),
    }
    Ok(match kind_of(path)? {
        Some((_, kind::XBOOTLDR)) => Place::Other,
        Some((_, kind::ESP)) => Place::Esp,
        _ => Place::MayBe,
    })
}

/// The first of the usual places that holds an `EFI` directory and is no XBOOTLDR.
///
/// # Errors
/// None does, or one can't be looked at and may be the one.
pub fn find_esp(root: &Path) -> Result<PathBuf, FindError> {
    let places = USUAL.iter().map(|place| root.join(place)).map(|path| match look_at(&path) {
        Ok(place) => Ok((path, place)),
        Err(source) => Err(FindError::Look { path, source }),
    });
    let is_loaders = |path: &Path| {
        let device = loader_device(&EfiVariables::default());
        device.is_some() && partition_uuid(path).is_ok_and(|uuid| uuid == device)
    };
    first_esp(places, is_loaders)?.ok_or(FindError::NoEsp)
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
    let types = types(&BlockDisk::open(&esp.disk)?)?;
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
        // A link whose device went away just now names nothing.
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
    use std::ops::Range;

    use bascule_image::io::{ReadAt, Sink};

    use super::*;
    use crate::host::{DiskGeometry, Extent};

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
    fn a_dead_place_hides_no_esp_that_the_boot_loader_came_from() {
        let dead = |place: &str| Err(FindError::Look { path: place.into(), source: io::Error::from_raw_os_error(5) });
        let at = |place: &str, kind| Ok((PathBuf::from(place), kind));
        let first = |places: Vec<_>| first_esp(places.into_iter(), |path| path == Path::new("/boot"));
        let found = |places| first(places).unwrap().unwrap();
        for other in [Place::Esp, Place::Other] {
            let places = vec![dead("/efi"), at("/boot/efi", other), at("/boot", Place::Esp)];
            assert_eq!(found(places), Path::new("/boot"), "{other:?}");
        }
        assert_eq!(found(vec![at("/efi", Place::Esp), dead("/boot/efi"), dead("/boot")]), Path::new("/efi"));
        assert_eq!(found(vec![at("/efi", Place::MayBe), dead("/boot/efi")]), Path::new("/efi"));
        // What may be one, or is another disk's, is not taken for what may lie where nobody could look.
        for other in [Place::Esp, Place::MayBe, Place::Other] {
            let error = first(vec![dead("/efi"), at("/boot/efi", other), dead("/boot")]).unwrap_err();
            assert!(matches!(&error, FindError::Look { path, .. } if path == Path::new("/efi")), "{error}");
        }
        assert!(first(vec![at("/efi", Place::Other)]).unwrap().is_none());
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
