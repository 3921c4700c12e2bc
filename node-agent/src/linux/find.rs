//! Where the boot partitions are mounted.

use std::io;
use std::path::{Path, PathBuf};

use bascule_gpt::kind;
use uuid::Uuid;

use super::below::{Below, below, is_absent, kind_of, partition_uuid, types};
use super::{BlockDisk, EfiVariables};
use crate::boot::loader_device;

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

#[cfg(test)]
mod tests {
    use super::super::below::unreadable;
    use super::*;

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
}
