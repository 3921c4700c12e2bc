//! A disk of this machine: what the kernel says of it, and writing it with nobody else at it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bascule_gpt::{FileMedium, Geometry, Medium};
use bascule_names::Architecture;
use rustix::fs::{Advice, FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, NoArg, opcode};

use crate::target::{Firmware, Machine, Target, TargetKind, Use, content};

/// What a buffer's address must be a multiple of for `O_DIRECT`: the page size suits every device.
const ALIGNMENT: usize = 4096;
/// `BLKRRPART` of linux/fs.h: read the partition table again.
const READ_AGAIN: ioctl::Opcode = opcode::none(0x12, 95);

/// Why nothing can be said of a disk.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// It is no block device.
    #[error("{} is no block device; name a disk, e.g. /dev/sda (bascule disk makes files)", .0.display())]
    NoDevice(PathBuf),
    /// Something of it can't be read.
    #[error("what {} holds and who uses it can't be told", device.display())]
    Io {
        /// The disk.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the kernel says what there is.
#[derive(Debug, Clone)]
struct Places {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// Looks at a disk by its device node.
///
/// # Errors
/// It is none, or can't be read.
pub fn look(device: &Path) -> Result<Target, LookError> {
    let failed = |source| LookError::Io { device: device.to_owned(), source };
    let found = fs::metadata(device).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Err(LookError::NoDevice(device.to_owned()));
    }
    let node = Places::default().node(found.rdev()).map_err(failed)?;
    let file = File::open(device).map_err(failed)?;
    let sector = u64::from(rustix::fs::ioctl_blksszget(&file).map_err(|error| failed(error.into()))?);
    let medium = FileMedium { file: &file, sector };
    let (kind, read_only, uses) = Places::default().say(&node).map_err(failed)?;
    Ok(Target {
        device: device.canonicalize().map_err(failed)?,
        kind,
        geometry: medium.geometry().map_err(failed)?,
        read_only,
        uses,
        content: content(&medium).map_err(failed)?,
    })
}

/// What started this machine, and which processors it has.
///
/// # Errors
/// What the kernel says of the firmware can't be read.
pub fn this_machine() -> io::Result<Machine> {
    let architecture = match rustix::system::uname().machine().to_bytes() {
        b"x86_64" => Some(Architecture::X86_64),
        b"aarch64" => Some(Architecture::Arm64),
        _ => None,
    };
    Ok(Machine { firmware: Places::default().firmware()?, architecture })
}

impl Places {
    /// The folder that sysfs has for a device, by its number.
    fn node(&self, number: u64) -> io::Result<PathBuf> {
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        self.sys.join("dev/block").join(format!("{major}:{minor}")).canonicalize()
    }

    /// What a device is, whether it is read-only, and who uses it or a part of it.
    fn say(&self, node: &Path) -> io::Result<(TargetKind, bool, Vec<Use>)> {
        let kind = if node.join("partition").exists() {
            let disk = node.parent().map(name_of).unwrap_or_default();
            TargetKind::Partition { disk: Path::new("/dev").join(disk.replace('!', "/")) }
        } else if node.join("dm").exists() {
            TargetKind::Built { what: "a device-mapper device (LVM, encryption, multipath)" }
        } else if node.join("md").exists() {
            TargetKind::Built { what: "software RAID" }
        } else {
            TargetKind::Disk
        };
        let read_only = fs::read_to_string(node.join("ro"))?.trim() == "1";
        let mut devices = vec![node.to_owned()];
        for entry in fs::read_dir(node)? {
            let path = entry?.path();
            if path.join("partition").exists() {
                devices.push(path);
            }
        }
        devices.sort();
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo"))?;
        let swaps = read_if_there(&self.proc.join("swaps"))?.unwrap_or_default();
        let mut uses = Vec::new();
        for device in &devices {
            let name = name_of(device);
            let number = fs::read_to_string(device.join("dev"))?;
            uses.extend(mounted(&mounts, number.trim(), &name));
            if swaps.lines().skip(1).any(|line| is_swap(line, &name)) {
                uses.push(Use::Swap { device: name.clone() });
            }
            for holder in fs::read_dir(device.join("holders"))? {
                let holder = holder?.file_name().to_string_lossy().into_owned();
                uses.push(Use::Holder { device: name.clone(), holder });
            }
        }
        Ok((kind, read_only, uses))
    }

    fn firmware(&self) -> io::Result<Firmware> {
        let folder = self.sys.join("firmware/efi");
        if !folder.try_exists()? {
            return Ok(Firmware::Other);
        }
        // Kernels that don't say it start only where the firmware's bits are their own.
        let bits = read_if_there(&folder.join("fw_platform_size"))?;
        Ok(if bits.is_some_and(|bits| bits.trim() == "32") { Firmware::Uefi32 } else { Firmware::Uefi })
    }
}

fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where a device is mounted, by its number (proc_pid_mountinfo(5)). File systems on several devices have a number of their own
/// and name one of them as their source.
fn mounted(mounts: &str, number: &str, name: &str) -> Option<Use> {
    let node = format!("/dev/{}", name.replace('!', "/"));
    let at = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let found = fields.nth(2)?;
        let at = fields.nth(1)?;
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
        (found == number || source == Some(node.as_str())).then(|| at.to_owned())
    });
    at.map(|at| Use::Mounted { device: name.to_owned(), at })
}

/// Whether a line of proc_swaps(5) speaks of a device.
fn is_swap(line: &str, name: &str) -> bool {
    let file = line.split_whitespace().next().unwrap_or_default();
    file.strip_prefix("/dev/").is_some_and(|file| file == name.replace('!', "/"))
}

/// Whether the kernel knows the new partitions.
#[derive(Debug)]
pub enum Kernel {
    /// It does.
    Knows,
    /// It makes no partitions of such devices (loop devices that were not asked to).
    MakesNone,
    /// It goes on with what there was; a reboot helps.
    Failed(io::Error),
}

/// A disk that is open for writing, and for nobody else: nobody can mount it or a partition of it, or build on it (open(2), `O_EXCL`),
/// and udev looks at it only afterwards (systemd, "Locking Block Device Access").
#[derive(Debug)]
pub struct Device {
    file: File,
    /// Reads past the page cache, where that can be had.
    direct: File,
    geometry: Geometry,
}

impl Device {
    /// Opens a disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`]: somebody uses it. It can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = |flags: OFlags| i32::try_from(flags.bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags(OFlags::EXCL)).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        let direct = match OpenOptions::new().read(true).custom_flags(flags(OFlags::DIRECT)).open(path) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => File::open(path),
            other => other,
        }?;
        let sector = u64::from(rustix::fs::ioctl_blksszget(&file)?);
        let geometry = FileMedium { file: &file, sector }.geometry()?;
        Ok(Self { file, direct, geometry })
    }

    /// Has the kernel read the partition table again.
    #[allow(unsafe_code)]
    pub fn read_again(&self) -> Kernel {
        // SAFETY: the kernel takes no argument with this code, and writes to no memory of this process.
        let done = unsafe { ioctl::ioctl(&self.file, NoArg::<READ_AGAIN>::new()) };
        match done {
            Ok(()) => Kernel::Knows,
            Err(Errno::INVAL | Errno::NOTTY) => Kernel::MakesNone,
            Err(error) => Kernel::Failed(error.into()),
        }
    }
}

impl Medium for Device {
    fn geometry(&self) -> io::Result<Geometry> {
        Ok(self.geometry)
    }

    /// Whole sectors through an aligned buffer, past the page cache: what the medium holds.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let sector = self.geometry.sector.max(1);
        let first = offset - offset % sector;
        let end = offset.checked_add(buffer.len() as u64).and_then(|end| end.checked_next_multiple_of(sector));
        let end = end.filter(|end| *end <= self.geometry.length).ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = usize::try_from(end - first).map_err(io::Error::other)?;
        let mut own = vec![0; length + ALIGNMENT];
        let start = own.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let window = own.get_mut(start..start + length).unwrap_or_default();
        // Where the cache can't be passed by, it is at least asked to forget.
        let _ = rustix::fs::fadvise(&self.direct, first, std::num::NonZeroU64::new(end - first), Advice::DontNeed);
        self.direct.read_exact_at(window, first)?;
        let skip = usize::try_from(offset - first).unwrap_or(0);
        match window.get(skip..skip + buffer.len()) {
            Some(found) => buffer.copy_from_slice(found),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A machine's sysfs and procfs, as far as they are read: a disk with two partitions, a device-mapper device, a RAID.
    struct Fake {
        folder: tempfile::TempDir,
        places: Places,
    }

    impl Fake {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let places = Places { sys: folder.path().join("sys"), proc: folder.path().join("proc") };
            let fake = Self { folder, places };
            for (device, number) in [
                ("pci/block/sda", "8:0"),
                ("pci/block/sda/sda1", "8:1"),
                ("pci/block/sda/sda2", "8:2"),
                ("virtual/block/dm-0", "253:0"),
                ("virtual/block/md0", "9:0"),
                ("pci/block/cciss!c0d0", "104:0"),
                ("pci/block/cciss!c0d0/cciss!c0d0p1", "104:1"),
            ] {
                let node = fake.places.sys.join("devices").join(device);
                fs::create_dir_all(node.join("holders")).unwrap();
                fs::write(node.join("dev"), format!("{number}\n")).unwrap();
                fs::write(node.join("ro"), "0\n").unwrap();
                let links = fake.places.sys.join("dev/block");
                fs::create_dir_all(&links).unwrap();
                std::os::unix::fs::symlink(&node, links.join(number)).unwrap();
            }
            for part in ["sda/sda1", "sda/sda2", "cciss!c0d0/cciss!c0d0p1"] {
                fs::write(fake.places.sys.join("devices/pci/block").join(part).join("partition"), "1\n").unwrap();
            }
            fs::create_dir(fake.places.sys.join("devices/virtual/block/dm-0/dm")).unwrap();
            fs::create_dir(fake.places.sys.join("devices/virtual/block/md0/md")).unwrap();
            fs::create_dir_all(fake.places.proc.join("self")).unwrap();
            fake.mounts("36 35 259:1 / / rw,noatime master:1 - ext4 /dev/nvme0n1p1 rw\n");
            fake
        }

        fn mounts(&self, text: &str) {
            fs::write(self.places.proc.join("self/mountinfo"), text).unwrap();
        }

        fn say(&self, major: u32, minor: u32) -> (TargetKind, bool, Vec<Use>) {
            let node = self.places.node(rustix::fs::makedev(major, minor)).unwrap();
            self.places.say(&node).unwrap()
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_disk_is_told() {
        let fake = Fake::new();
        assert_eq!(fake.say(8, 0), (TargetKind::Disk, false, Vec::new()));
        assert_eq!(fake.say(8, 2).0, TargetKind::Partition { disk: "/dev/sda".into() });
        assert_eq!(fake.say(104, 1).0, TargetKind::Partition { disk: "/dev/cciss/c0d0".into() });
        assert!(matches!(fake.say(253, 0).0, TargetKind::Built { .. }));
        assert!(matches!(fake.say(9, 0).0, TargetKind::Built { what: "software RAID" }));
        fs::write(fake.places.sys.join("devices/pci/block/sda/ro"), "1\n").unwrap();
        assert!(fake.say(8, 0).1);
    }

    #[test]
    fn whoever_uses_a_disk_or_a_part_of_it_is_found() {
        let fake = Fake::new();
        let mounted = |device: &str, at: &str| Use::Mounted { device: device.to_owned(), at: at.to_owned() };
        fake.mounts("40 35 8:1 / /boot/efi rw shared:2 - vfat /dev/sda1 rw\n");
        assert_eq!(fake.say(8, 0).2, [mounted("sda1", "/boot/efi")]);
        // A file system on several devices.
        fake.mounts("41 35 0:45 /sub /data rw - btrfs /dev/sda rw\n");
        assert_eq!(fake.say(8, 0).2, [mounted("sda", "/data")]);
        fake.mounts("");
        let swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 100 0 -2\n/dev/sda22 partition 1 0 -3\n";
        fs::write(fake.places.proc.join("swaps"), swaps).unwrap();
        assert_eq!(fake.say(8, 0).2, [Use::Swap { device: "sda2".to_owned() }]);
        fs::remove_file(fake.places.proc.join("swaps")).unwrap();
        fs::create_dir(fake.places.sys.join("devices/pci/block/sda/sda1/holders/dm-0")).unwrap();
        let holder = Use::Holder { device: "sda1".to_owned(), holder: "dm-0".to_owned() };
        assert_eq!(fake.say(8, 0).2, [holder]);
        assert_eq!(fake.say(104, 0).2, [], "another disk");
    }

    #[test]
    fn what_can_not_be_read_is_no_leave_to_write() {
        let fake = Fake::new();
        fs::remove_file(fake.places.proc.join("self/mountinfo")).unwrap();
        let node = fake.places.node(rustix::fs::makedev(8, 0)).unwrap();
        assert!(fake.places.say(&node).is_err());
        fake.mounts("");
        fs::remove_dir(fake.places.sys.join("devices/pci/block/sda/sda2/holders")).unwrap();
        assert!(fake.places.say(&node).is_err());
        let file = fake.folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(look(&file), Err(LookError::NoDevice(path)) if path == file));
        assert!(matches!(look(&fake.folder.path().join("none")), Err(LookError::Io { .. })));
    }

    #[test]
    fn a_machine_that_a_bios_started_is_known() {
        let fake = Fake::new();
        assert_eq!(fake.places.firmware().unwrap(), Firmware::Other);
        let efi = fake.places.sys.join("firmware/efi");
        fs::create_dir_all(&efi).unwrap();
        assert_eq!(fake.places.firmware().unwrap(), Firmware::Uefi);
        fs::write(efi.join("fw_platform_size"), "32\n").unwrap();
        assert_eq!(fake.places.firmware().unwrap(), Firmware::Uefi32);
        fs::write(efi.join("fw_platform_size"), "64\n").unwrap();
        assert_eq!(fake.places.firmware().unwrap(), Firmware::Uefi);
    }
}
