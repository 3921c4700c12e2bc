//! Whether a disk of a machine may be written: what is seen of it, and what is refused with which words. Pure.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bascule_gpt::{Geometry, Medium, Table, TableError};
use bascule_names::Architecture;

/// Bytes at both ends of a disk in which everything that is put onto one leaves a trace: tables, file systems, RAID, LVM, ZFS.
const EDGE: u64 = 1 << 20;
/// Partitions that are told of a disk; one with more is told to have more.
const TOLD: usize = 16;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// A whole disk.
    Disk,
    /// A partition of one.
    Partition {
        /// The disk.
        disk: PathBuf,
    },
    /// A device that the kernel builds on others, which no firmware knows.
    Built {
        /// What it is, in words.
        what: &'static str,
    },
}

/// Who has something of a disk in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// It is mounted.
    Mounted {
        /// The disk or the partition, by its name in the kernel.
        device: String,
        /// Where.
        at: String,
    },
    /// It is swap space.
    Swap {
        /// The disk or the partition.
        device: String,
    },
    /// Another device is built on it: RAID, LVM, encryption.
    Holder {
        /// The disk or the partition.
        device: String,
        /// The other one.
        holder: String,
    },
    /// A program has it for itself alone.
    Program,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at} (umount {at})"),
            Self::Swap { device } => write!(f, "{device} is swap space (swapoff /dev/{device})"),
            Self::Holder { device, holder } => {
                write!(f, "{holder} is built on {device} (stop it: mdadm --stop, vgchange -an, cryptsetup close)")
            }
            Self::Program => f.write_str("a program has it for itself alone (fuser -v tells which)"),
        }
    }
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeros where everything leaves a trace.
    Nothing,
    /// A GUID partition table, with these partitions in words.
    Partitions(Vec<String>),
    /// Something else: an MBR, a file system, part of a RAID.
    Something,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Partitions(parts) if parts.is_empty() => f.write_str("a partition table without partitions"),
            Self::Partitions(parts) => {
                let shown: Vec<&str> = parts.iter().take(TOLD).map(String::as_str).collect();
                write!(f, "partitions: {}", shown.join(", "))?;
                match parts.len().saturating_sub(TOLD) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::Something => {
                f.write_str("something that has no GUID partition table: an older table, a file system, part of a RAID")
            }
        }
    }
}

/// What is seen of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its device node, without links.
    pub device: PathBuf,
    /// What it is.
    pub kind: TargetKind,
    /// Length and sector size.
    pub geometry: Geometry,
    /// Whether the kernel writes nothing to it.
    pub read_only: bool,
    /// Who uses it.
    pub uses: Vec<Use>,
    /// What it holds.
    pub content: Content,
}

/// Which firmware started a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI, of as many bits as the processor has.
    Uefi,
    /// UEFI of 32 bits, which starts programs of 32 bits.
    Uefi32,
    /// None that the kernel knows as UEFI: a BIOS, or a boot loader that went the BIOS's way.
    Other,
}

/// The machine that is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// What started it.
    pub firmware: Firmware,
    /// Its processors; `None`: none that releases are built for.
    pub architecture: Option<Architecture>,
}

/// What somebody said that makes good what would be refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permission {
    /// What the disk holds is not needed any more.
    pub replace: bool,
    /// The disk goes into another machine.
    pub other_machine: bool,
}

/// Why a disk is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A partition was named.
    #[error("{} is a partition; a machine boots from a whole disk: name {}", device.display(), disk.display())]
    Partition {
        /// What was named.
        device: PathBuf,
        /// The disk that it lies on.
        disk: PathBuf,
    },
    /// What was named is no disk.
    #[error("{} is {what}, which no firmware boots from: name the disk itself", device.display())]
    Built {
        /// What was named.
        device: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It can't be written.
    #[error("{} is read-only: look for a switch on the medium, or name another disk", .0.display())]
    ReadOnly(PathBuf),
    /// Somebody uses it.
    #[error("{} is in use: {}", device.display(), listed(uses))]
    InUse {
        /// The disk.
        device: PathBuf,
        /// Who.
        uses: Vec<Use>,
    },
    /// Partition tables and FAT are not made for such sectors.
    #[error("{} has sectors of {sector} bytes; firmware boots from disks with sectors of 512 or 4096", device.display())]
    Sector {
        /// The disk.
        device: PathBuf,
        /// Bytes of a sector.
        sector: u64,
    },
    /// The boot loader would find no entry.
    #[error(
        "{} has sectors of 4096 bytes, on which systemd-boot finds no extended boot loader partition: leave --xbootldr-size out, the \
         entries lie on the ESP then", .0.display()
    )]
    Xbootldr(PathBuf),
    /// The machine has another firmware.
    #[error(
        "this system was not started by UEFI, and the disk boots by nothing else: switch the firmware from BIOS (legacy, CSM) to \
         UEFI and start again, or say --other-machine if the disk goes into another one"
    )]
    NoUefi,
    /// The machine's firmware has 32 bits.
    #[error(
        "the UEFI firmware of this machine has 32 bits and does not start the release's boot loader: install on another one, or say \
         --other-machine if the disk goes into one"
    )]
    Uefi32,
    /// The machine has other processors.
    #[error(
        "the release is built for {release}, and this machine has other processors: take the build for this machine, or say \
         --other-machine if the disk goes into one for that"
    )]
    Processor {
        /// What the release is for.
        release: Architecture,
    },
    /// It holds something.
    #[error("{} holds {content}; all of it would be lost: say --replace if it is not needed any more", device.display())]
    Holds {
        /// The disk.
        device: PathBuf,
        /// What it holds.
        content: Content,
    },
    /// What it holds is not what was looked at.
    #[error("{} was written by somebody else since it was looked at: try again", .0.display())]
    Changed(PathBuf),
}

fn listed(uses: &[Use]) -> String {
    uses.iter().map(Use::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether a release for `release` may be installed on a disk, with the entries on a partition of their own if `xbootldr`. Its
/// size is judged by [`crate::Wishes::sizes`].
///
/// # Errors
/// It may not.
pub fn judge(
    target: &Target,
    machine: Machine,
    release: Architecture,
    xbootldr: bool,
    permission: Permission,
) -> Result<(), Refusal> {
    let device = || target.device.clone();
    match &target.kind {
        TargetKind::Disk => {}
        TargetKind::Partition { disk } => return Err(Refusal::Partition { device: device(), disk: disk.clone() }),
        TargetKind::Built { what } => return Err(Refusal::Built { device: device(), what }),
    }
    if target.read_only {
        return Err(Refusal::ReadOnly(device()));
    }
    if !target.uses.is_empty() {
        return Err(Refusal::InUse { device: device(), uses: target.uses.clone() });
    }
    match target.geometry.sector {
        512 => {}
        4096 if xbootldr => return Err(Refusal::Xbootldr(device())),
        4096 => {}
        sector => return Err(Refusal::Sector { device: device(), sector }),
    }
    if !permission.other_machine {
        match machine.firmware {
            Firmware::Uefi => {}
            Firmware::Uefi32 => return Err(Refusal::Uefi32),
            Firmware::Other => return Err(Refusal::NoUefi),
        }
        if machine.architecture != Some(release) {
            return Err(Refusal::Processor { release });
        }
    }
    if target.content != Content::Nothing && !permission.replace {
        return Err(Refusal::Holds { device: device(), content: target.content.clone() });
    }
    Ok(())
}

/// What a disk holds.
///
/// # Errors
/// It can't be read: what it holds is not known, which is not nothing.
pub fn content(medium: &(impl Medium + ?Sized)) -> io::Result<Content> {
    match Table::read(medium) {
        Ok(table) => {
            let told = table.partitions().into_iter().map(|part| {
                let label = if part.label.is_empty() { "without a name" } else { part.label.as_str() };
                format!("{} {} ({} MiB)", part.number, label, part.length >> 20)
            });
            Ok(Content::Partitions(told.collect()))
        }
        Err(TableError::Disk { source, .. }) => Err(source),
        Err(_) => {
            let length = medium.geometry()?.length;
            let edge = EDGE.min(length);
            for start in [0, length - edge] {
                let mut bytes = vec![0; usize::try_from(edge).map_err(io::Error::other)?];
                medium.read(start, &mut bytes)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    return Ok(Content::Something);
                }
            }
            Ok(Content::Nothing)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use bascule_gpt::{FileMedium, NewPartition, kind};
    use uuid::Uuid;

    use super::*;

    const X86: Architecture = Architecture::X86_64;
    const HERE: Machine = Machine { firmware: Firmware::Uefi, architecture: Some(X86) };
    const NONE: Permission = Permission { replace: false, other_machine: false };

    fn target() -> Target {
        Target {
            device: "/dev/sda".into(),
            kind: TargetKind::Disk,
            geometry: Geometry { length: 64 << 30, sector: 512 },
            read_only: false,
            uses: Vec::new(),
            content: Content::Nothing,
        }
    }

    /// The refusal of what is changed of an empty disk of a fitting machine.
    fn refused(change: impl FnOnce(&mut Target), machine: Machine, permission: Permission) -> Refusal {
        let mut target = target();
        change(&mut target);
        judge(&target, machine, X86, false, permission).unwrap_err()
    }

    #[test]
    fn an_empty_disk_of_a_fitting_machine_is_taken() {
        assert_eq!(judge(&target(), HERE, X86, true, NONE), Ok(()));
        let large = Target { geometry: Geometry { length: 64 << 30, sector: 4096 }, ..target() };
        assert_eq!(judge(&large, HERE, X86, false, NONE), Ok(()));
        assert_eq!(judge(&large, HERE, X86, true, NONE), Err(Refusal::Xbootldr("/dev/sda".into())));
    }

    #[test]
    fn what_is_no_disk_is_named() {
        let part = |target: &mut Target| {
            target.device = "/dev/sda2".into();
            target.kind = TargetKind::Partition { disk: "/dev/sda".into() };
        };
        let text = "/dev/sda2 is a partition; a machine boots from a whole disk: name /dev/sda";
        assert_eq!(refused(part, HERE, NONE).to_string(), text);
        let built = refused(|target| target.kind = TargetKind::Built { what: "software RAID" }, HERE, NONE);
        assert!(built.to_string().starts_with("/dev/sda is software RAID, which no firmware boots from"), "{built}");
    }

    #[test]
    fn no_permission_helps_a_disk_that_is_in_use_or_can_not_be_written() {
        let all = Permission { replace: true, other_machine: true };
        let read_only = refused(|target| target.read_only = true, HERE, all);
        assert_eq!(read_only, Refusal::ReadOnly("/dev/sda".into()));
        let used = refused(
            |target| {
                target.uses = vec![
                    Use::Mounted { device: "sda1".to_owned(), at: "/mnt".to_owned() },
                    Use::Swap { device: "sda2".to_owned() },
                    Use::Holder { device: "sda3".to_owned(), holder: "md0".to_owned() },
                    Use::Program,
                ];
            },
            HERE,
            all,
        );
        let text = used.to_string();
        for part in ["sda1 is mounted at /mnt", "sda2 is swap", "md0 is built on sda3", "a program has it"] {
            assert!(text.contains(part), "{text}");
        }
        let odd = refused(|target| target.geometry.sector = 2048, HERE, all);
        assert_eq!(odd, Refusal::Sector { device: "/dev/sda".into(), sector: 2048 });
    }

    #[test]
    fn another_firmware_or_processor_is_refused_unless_the_disk_goes_elsewhere() {
        for (machine, expected) in [
            (Machine { firmware: Firmware::Other, ..HERE }, Refusal::NoUefi),
            (Machine { firmware: Firmware::Uefi32, ..HERE }, Refusal::Uefi32),
            (Machine { architecture: Some(Architecture::Arm64), ..HERE }, Refusal::Processor { release: X86 }),
            (Machine { architecture: None, ..HERE }, Refusal::Processor { release: X86 }),
        ] {
            let refusal = refused(|_| {}, machine, NONE);
            assert_eq!(refusal, expected);
            assert!(refusal.to_string().contains("--other-machine"), "{refusal}");
            let elsewhere = Permission { other_machine: true, ..NONE };
            assert_eq!(judge(&target(), machine, X86, false, elsewhere), Ok(()));
        }
    }

    #[test]
    fn what_a_disk_holds_is_lost_only_where_somebody_says_so() {
        for content in [Content::Partitions(vec!["1 ESP (512 MiB)".to_owned()]), Content::Something] {
            let holds = refused(|target| target.content = content.clone(), HERE, NONE);
            assert!(holds.to_string().contains("--replace"), "{holds}");
            let permission = Permission { replace: true, ..NONE };
            assert_eq!(judge(&Target { content, ..target() }, HERE, X86, false, permission), Ok(()));
        }
        let many = Content::Partitions((1..=20).map(|number| format!("{number} x (1 MiB)")).collect());
        assert!(many.to_string().ends_with("16 x (1 MiB) and 4 more"), "{many}");
    }

    #[test]
    fn whatever_lies_on_a_disk_is_seen() {
        let file = tempfile::tempfile().unwrap();
        let length = 16 << 20;
        file.set_len(length).unwrap();
        let seen = |file: &File| content(&FileMedium { file, sector: 512 }).unwrap();
        assert_eq!(seen(&file), Content::Nothing);
        // The label of a RAID at the end, a file system at the start.
        for offset in [length - 65_536, 1080] {
            file.write_all_at(b"x", offset).unwrap();
            assert_eq!(seen(&file), Content::Something, "{offset}");
            file.write_all_at(b"\0", offset).unwrap();
        }
        let medium = FileMedium { file: &file, sector: 512 };
        let part = NewPartition {
            number: 1,
            kind: kind::ESP,
            uuid: Uuid::from_u128(1),
            length: 4 << 20,
            label: "ESP".to_owned(),
        };
        let table = Table::create(medium.geometry().unwrap(), Uuid::from_u128(2), 1 << 20, &[part]).unwrap();
        table.install(&medium).unwrap();
        assert_eq!(seen(&file), Content::Partitions(vec!["1 ESP (4 MiB)".to_owned()]));
        // The primary copy alone is gone.
        file.write_all_at(&[0; 512], 512).unwrap();
        assert_eq!(seen(&file), Content::Partitions(vec!["1 ESP (4 MiB)".to_owned()]));
    }

    #[test]
    fn a_disk_that_can_not_be_read_is_not_empty() {
        struct Dead;
        impl Medium for Dead {
            fn geometry(&self) -> io::Result<Geometry> {
                Ok(Geometry { length: 16 << 20, sector: 512 })
            }
            fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                Err(io::Error::from_raw_os_error(5))
            }
            fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
                Ok(())
            }
            fn flush(&self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(content(&Dead).unwrap_err().raw_os_error(), Some(5));
    }
}
