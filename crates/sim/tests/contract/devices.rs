//! Rules that hold without faults, and the real thing on loop devices: sectors of 512 and 4096 bytes, partitions of the
//! kernel's, a mounted file system that becomes read-only or full, a partition that somebody else uses.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_agent::gpt::Table;
use bascule_agent::host::{Disk, DiskGeometry, Esp, Extent, Xbootldr};
use bascule_agent::linux::{BlockDisk, MountedEsp, find_esp, find_xbootldr};

use crate::walk::{self, FOLDER, NEW, OLD, PART, SLOT, content};

/// What every boot partition does. `OLD` is there, nothing else.
pub(crate) fn esp_rules(esp: &dyn Esp) {
    let kind = |outcome: std::io::Result<()>| outcome.map_err(|error| error.kind());
    assert_eq!(esp.list("EFI/none").unwrap(), []);
    assert_eq!(esp.open("EFI/Linux/none.efi").err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    assert_eq!(esp.read(OLD, 1999).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert_eq!(esp.read(OLD, 2000).unwrap(), content(1, 2000));
    esp.write(PART, &mut &b"new"[..]).unwrap();
    assert_eq!(kind(esp.rename(PART, OLD)), Err(ErrorKind::AlreadyExists), "a rename replaces nothing");
    assert_eq!(esp.read(OLD, 2000).unwrap(), content(1, 2000));
    assert_eq!(kind(esp.rename("EFI/Linux/none.efi", NEW)), Err(ErrorKind::NotFound));
    assert_eq!(kind(esp.write_start("EFI/Linux/none.efi", b"x")), Err(ErrorKind::NotFound));
    assert_eq!(kind(esp.replace("EFI/Linux/none.efi", OLD)), Err(ErrorKind::NotFound));
    assert_eq!(kind(esp.replace(PART, "EFI/Linux/none.efi")), Err(ErrorKind::NotFound), "and nothing is new by it");
    assert_eq!(esp.read(OLD, 2000).unwrap(), content(1, 2000));
    esp.remove("EFI/Linux/none.efi").unwrap();
    let past = esp.open(OLD).unwrap().read_at(&mut [0; 2], 1999).map_err(|error| error.kind());
    assert_eq!(past, Err(ErrorKind::UnexpectedEof), "what ends is not filled up");
    // An error of whoever gives the content is passed on as it is.
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(ErrorKind::ConnectionReset.into())
        }
    }
    assert_eq!(kind(esp.write(PART, &mut Broken)), Err(ErrorKind::ConnectionReset));
    esp.remove(PART).unwrap();
    esp.sync().unwrap();
}

/// What every disk does.
pub(crate) fn disk_rules(disk: &dyn Disk) {
    let (number, extent) = SLOT;
    let sink = disk.partition(number, extent).unwrap();
    let length = extent.length;
    assert!(sink.write_at(&[0; 4096], length - 1024).is_err(), "a write past a partition's end reaches no other");
    assert!(sink.read_at(&mut [0; 4096], length - 1024).is_err());
    let beyond = Extent { start: disk.geometry().unwrap().length - 4096, length: 1 << 20 };
    assert!(disk.partition(number, beyond).and_then(|sink| sink.write_at(&[0; 4096], 8192)).is_err());
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Says what is not tried here. Past the harness, which keeps to itself what a test that passes prints.
fn skipped(why: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// ESP, slot, verity, XBOOTLDR and one more, as sgdisk is told of them.
const USUAL: [&str; 10] =
    ["1:0:+40M", "1:ef00", "2:0:+8M", "2:8304", "3:0:+2M", "3:8305", "4:0:+8M", "4:ea00", "5:0:+8M", "5:8300"];
/// [`SLOT`] and nothing else.
pub(crate) const SLOT_ALONE: [&str; 2] = ["2:1M:+1M", "2:8304"];

/// A disk image on a loop device with a table, its partitions known to the kernel.
pub(crate) struct Loop {
    device: String,
    mounted: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

impl Loop {
    /// One with the usual partitions.
    fn new(sector: u32) -> Option<Self> {
        Self::cut(sector, &USUAL)
    }

    /// `None`, said loudly, where loop devices can't be had.
    pub(crate) fn cut(sector: u32, table: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        let image = image.to_str().unwrap();
        let sector = sector.to_string();
        let device = run("losetup", &["--find", "--show", "--sector-size", &sector, image]);
        let Some(device) = device else {
            skipped(&format!("no loop device with sectors of {sector} bytes can be had here"));
            return None;
        };
        let made = Self { device, mounted: Vec::new(), folder };
        let table = table.chunks_exact(2).flat_map(|pair| ["-n", pair[0], "-t", pair[1]]);
        let table: Vec<&str> = ["-o"].into_iter().chain(table).chain([made.device.as_str()]).collect();
        run("sgdisk", &table).expect("install gdisk");
        // The kernel may have looked by itself already.
        let _ = run("partx", &["--update", &made.device]);
        if !Path::new(&made.partition(2)).exists() {
            let _ = run("partx", &["--add", &made.device]);
        }
        if !Path::new(&made.partition(2)).exists() {
            skipped("the kernel makes no partitions of loop devices here");
            return None;
        }
        Some(made)
    }

    pub(crate) fn name(&self) -> &str {
        &self.device
    }

    pub(crate) fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.device)
    }

    /// Mounts the first partition: as FAT, or where this kernel has none as ext4, which is said.
    fn mount(&mut self) -> Option<PathBuf> {
        let place = self.mount_at(1, "mount")?;
        std::fs::create_dir_all(place.join(FOLDER)).unwrap();
        std::fs::write(place.join(OLD), content(1, 2000)).unwrap();
        Some(place)
    }

    /// Mounts an empty file system on a partition.
    fn mount_at(&mut self, number: u32, place: &str) -> Option<PathBuf> {
        let (node, place) = (self.partition(number), self.folder.path().join(place));
        std::fs::create_dir_all(&place).unwrap();
        let target = place.to_str().unwrap().to_owned();
        run("mkfs.vfat", &[&node]).expect("install dosfstools");
        if run("mount", &["-t", "vfat", &node, &target]).is_none() {
            skipped("in part: this kernel mounts no FAT; ext4 stands in");
            run("mke2fs", &["-q", "-F", "-t", "ext4", &node]).expect("install e2fsprogs");
            if run("mount", &["-t", "ext4", &node, &target]).is_none() {
                skipped("nothing can be mounted here");
                return None;
            }
        }
        self.mounted.push(place.clone());
        Some(place)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for place in &self.mounted {
            let _ = run("umount", &[place.to_str().unwrap_or_default()]);
        }
        let _ = run("partx", &["--delete", &self.device]);
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

#[test]
fn partitions_of_a_loop_device_with_both_sizes_of_sectors() {
    for sector in [512, 4096] {
        let Some(device) = Loop::new(sector) else { continue };
        let disk = BlockDisk::open(Path::new(&device.device)).unwrap();
        assert_eq!(disk.geometry().unwrap(), DiskGeometry { length: 96 << 20, sector: u64::from(sector) });
        let table = Table::read(&disk).unwrap();
        let parts = table.partitions();
        let data = &parts[1].1;
        assert_eq!((parts.len(), data.number, data.extent.length), (5, 2, 8 << 20));
        let sink = disk.partition(data.number, data.extent).unwrap();
        let written = content(5, 128 << 10);
        sink.write_at(&written, 4096).unwrap();
        sink.flush().unwrap();
        drop(sink);
        let medium = disk.partition_direct(data.number, data.extent).unwrap();
        for (offset, length) in [(4096, 128 << 10), (5000, 3000)] {
            let mut found = vec![0; length];
            medium.read_at(&mut found, offset).unwrap();
            let from = offset as usize - 4096;
            assert!(found == written[from..from + length], "{sector}: {offset} {length}");
        }
        // The table, written and read again as the agent does it.
        let mut table = Table::read(&disk).unwrap();
        table.write(&disk).unwrap();
        assert_eq!(Table::read(&disk).unwrap().partitions(), parts, "{sector}");
        // The table says something else than the kernel.
        let moved = Extent { start: data.extent.start + 4096, length: data.extent.length };
        assert!(disk.partition(data.number, moved).is_err());
        assert!(disk.partition(9, data.extent).is_err());
    }
}

#[test]
fn a_partition_that_somebody_uses_is_not_written() {
    let Some(mut device) = Loop::new(512) else { return };
    let Some(_mounted) = device.mount() else { return };
    let disk = BlockDisk::open(Path::new(&device.device)).unwrap();
    let partitions = Table::read(&disk).unwrap().partitions();
    let (used, free) = (&partitions[0].1, &partitions[1].1);
    let refused = disk.partition(used.number, used.extent).err().expect("it is mounted");
    assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
    assert!(refused.to_string().contains("in use"), "{refused}");
    let held = disk.partition(free.number, free.extent).unwrap();
    assert!(disk.partition(free.number, free.extent).is_err(), "nobody else writes it meanwhile");
    // Reading needs no right of one's own: the slot is read back while it is open for writing.
    disk.partition_direct(free.number, free.extent).unwrap();
    disk.partition_read(used.number, used.extent).unwrap();
    drop(held);
    disk.partition(free.number, free.extent).unwrap();
}

#[test]
fn a_mounted_partition_keeps_the_rules_also_read_only_and_full() {
    let Some(mut device) = Loop::new(512) else { return };
    let Some(place) = device.mount() else { return };
    let esp = MountedEsp::new(place.clone());
    esp_rules(&esp);
    let steps = walk::esp(&esp);
    assert!(steps.iter().all(|(_, answer)| answer.is_ok()), "{steps:#?}");
    // Full: nothing of what was there is harmed.
    let full = esp.write(PART, &mut std::io::Read::take(std::io::repeat(7), 200 << 20)).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    esp.remove(PART).unwrap();
    esp.sync().unwrap();
    let before = esp.read(NEW, 1 << 20).unwrap();
    assert!(esp.space().unwrap().free > 1 << 20);
    assert!(!esp.is_read_only().unwrap());
    // Read-only in the middle of everything.
    run("mount", &["-o", "remount,ro", place.to_str().unwrap()]).unwrap();
    assert!(esp.is_read_only().unwrap());
    let read_only = Err(ErrorKind::ReadOnlyFilesystem);
    let kind = |outcome: std::io::Result<()>| outcome.map_err(|error| error.kind());
    assert_eq!(kind(esp.write(PART, &mut &b"x"[..])), read_only);
    assert_eq!(kind(esp.rename(NEW, OLD)), read_only);
    assert_eq!(kind(esp.remove(NEW)), read_only);
    assert_eq!(kind(esp.write_start(NEW, b"x")), read_only);
    assert_eq!(esp.read(NEW, 1 << 20).unwrap(), before);
}

/// Which of what is mounted the boot loader takes entries from is told by the type of the partition and its disk.
#[test]
fn the_xbootldr_is_the_partition_of_that_type_on_the_disk_of_the_esp() {
    let (Some(mut device), Some(mut other)) = (Loop::new(512), Loop::new(512)) else { return };
    let Some(esp) = device.mount_at(1, "efi") else { return };
    std::fs::create_dir(esp.join("EFI")).unwrap();
    let (root, disk) = (device.folder.path().to_owned(), device.device.clone());
    let found = || find_xbootldr(&root, &esp).unwrap();
    let place = root.join("boot");
    let not_mounted = |found: Xbootldr| match found {
        Xbootldr::NotMounted(why) => assert!(why.contains(&format!("partition 4 of {disk}")), "{why}"),
        other => panic!("{other:?}"),
    };
    not_mounted(found());
    // Another file system there, with all that an XBOOTLDR has; then one of another disk.
    device.mount_at(5, "boot").unwrap();
    std::fs::create_dir_all(place.join("EFI/Linux")).unwrap();
    not_mounted(found());
    run("umount", &[place.to_str().unwrap()]).unwrap();
    other.mount_at(4, "boot").unwrap();
    run("mount", &["--bind", other.folder.path().join("boot").to_str().unwrap(), place.to_str().unwrap()]).unwrap();
    not_mounted(found());
    run("umount", &[place.to_str().unwrap()]).unwrap();
    // It, and nothing is on it yet.
    device.mount_at(4, "boot").unwrap();
    let Xbootldr::Mounted(mounted) = found() else { panic!("{:?}", found()) };
    assert_eq!((mounted.list("EFI/Linux").unwrap(), mounted.list("loader/entries").unwrap()), (Vec::new(), Vec::new()));
    // Its PARTUUID is that of the table, also where udev names none.
    let table = Table::read(&BlockDisk::open(Path::new(&disk)).unwrap()).unwrap();
    let named = table.partitions().into_iter().find(|(_, partition)| partition.number == 4);
    assert_eq!(mounted.partition_uuid().unwrap(), named.map(|(_, partition)| partition.uuid));
    // It is no ESP, whatever is on it and whatever is not mounted.
    std::fs::create_dir(place.join("EFI")).unwrap();
    assert_eq!(find_esp(&root).unwrap(), esp);
    run("umount", &[esp.to_str().unwrap()]).unwrap();
    std::fs::remove_dir(&esp).unwrap();
    assert!(find_esp(&root).is_err(), "{:?}", find_esp(&root));
}
