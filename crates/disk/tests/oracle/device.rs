//! Installing on a device: sectors of 512 and 4096 bytes, partitions that the kernel knows, one that somebody uses. On loop devices,
//! where they can be had.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_disk::{
    Content, Device, DiskError, Firmware, Kernel, Machine, Permission, Refusal, STATE, StateFiles, TargetKind, Use,
    content, install, judge, look,
};
use bascule_gpt::{Medium as _, Partition, Table};
use bascule_names::Architecture;

use super::install::{SMALL, small};
use super::{Bench, MIB, find, run, text};

/// Says what is not tried here. Past the harness, which keeps to itself what a test that passes prints.
fn skipped(why: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
}

fn asked(program: &str, arguments: &[&str]) -> Option<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A disk of 128 MiB on a loop device.
struct Loop {
    device: PathBuf,
    mounted: Option<PathBuf>,
}

impl Loop {
    /// `None`, said loudly, where loop devices can't be had.
    fn new(bench: &Bench, sector: u32) -> Option<Self> {
        let image = bench.path(&format!("image-{sector}"));
        fs::File::create(&image).unwrap().set_len(128 * MIB).unwrap();
        let sector = sector.to_string();
        let device = asked("losetup", &["--find", "--show", "--partscan", "--sector-size", &sector, text(&image)]);
        let Some(device) = device else {
            skipped(&format!("no loop device with sectors of {sector} bytes can be had here"));
            return None;
        };
        Some(Self { device: device.into(), mounted: None })
    }

    fn install(&self, bench: &Bench) -> Result<Vec<Partition>, DiskError> {
        let disk = Device::open(&self.device).unwrap();
        let scratch = tempfile::tempdir_in(bench.folder.path()).unwrap();
        let state = StateFiles::default();
        let parts = bench.laid(SMALL, |plan, first| install(&disk, plan, first, state, scratch.path(), &mut |_| {}))?;
        assert!(!matches!(disk.read_again(), Kernel::Failed(_)), "{:?}", disk.read_again());
        Ok(parts)
    }

    fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.device.display())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(place) = &self.mounted {
            let _ = asked("umount", &[place.to_str().unwrap_or_default()]);
        }
        let device = self.device.to_str().unwrap_or_default();
        let _ = asked("partx", &["--delete", device]);
        let _ = asked("losetup", &["--detach", device]);
    }
}

const HERE: Machine = Machine { firmware: Firmware::Uefi, architecture: Some(Architecture::X86_64) };

fn judged(device: &Path, replace: bool) -> Result<(), Refusal> {
    let permission = Permission { replace, other_machine: false };
    judge(&look(device).unwrap(), HERE, Architecture::X86_64, false, permission)
}

#[test]
fn a_device_is_installed_and_then_holds_something_with_both_sizes_of_sectors() {
    for sector in [512, 4096] {
        let bench = small();
        let Some(device) = Loop::new(&bench, sector) else { continue };
        let target = look(&device.device).unwrap();
        assert_eq!((target.kind, target.read_only, target.content), (TargetKind::Disk, false, Content::Nothing));
        assert_eq!((target.geometry.length, target.geometry.sector), (128 * MIB, u64::from(sector)));
        judged(&device.device, false).unwrap();
        let parts = device.install(&bench).unwrap();
        let said = run("sgdisk", &["-v", text(&device.device)]);
        assert!(said.contains("No problems found"), "{said}");
        let disk = Device::open(&device.device).unwrap();
        let mut found = Table::read(&disk).unwrap().partitions();
        found.sort_by_key(|part| part.start);
        assert_eq!(found, parts);
        // At any place, also one that begins and ends in the middle of a sector.
        let mut whole = vec![0; 8192];
        disk.read(0, &mut whole).unwrap();
        let mut piece = [0; 1000];
        disk.read(511, &mut piece).unwrap();
        assert_eq!(piece, whole[511..1511]);
        assert!(disk.read(128 * MIB - 1, &mut [0; 2]).is_err());
        drop(disk);
        let refusal = judged(&device.device, false).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Holds { content: Content::Partitions(parts), .. } if parts.len() == 6),
            "{refusal}"
        );
        judged(&device.device, true).unwrap();
    }
}

#[test]
fn a_disk_that_somebody_uses_is_not_written() {
    let bench = small();
    let Some(mut device) = Loop::new(&bench, 512) else { return };
    let parts = device.install(&bench).unwrap();
    let node = device.partition(find(&parts, STATE).number);
    if !Path::new(&node).exists() {
        skipped("the kernel makes no partitions of loop devices here");
        return;
    }
    let kind = look(Path::new(&node)).unwrap().kind;
    assert_eq!(kind, TargetKind::Partition { disk: device.device.clone() });
    let place = bench.path("mounted");
    fs::create_dir(&place).unwrap();
    if asked("mount", &["-t", "ext4", &node, text(&place)]).is_none() {
        skipped("nothing can be mounted here");
        return;
    }
    device.mounted = Some(place.clone());
    let name = Path::new(&node).file_name().unwrap().to_str().unwrap().to_owned();
    let refusal = judged(&device.device, true).unwrap_err();
    let uses = vec![Use::Mounted { device: name, at: text(&place).to_owned() }];
    assert_eq!(refusal, Refusal::InUse { device: device.device.clone(), uses });
    // Whatever was seen of it.
    assert_eq!(Device::open(&device.device).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    run("umount", &[text(&place)]);
    device.mounted = None;
    judged(&device.device, true).unwrap();
    let held = Device::open(&device.device).unwrap();
    assert!(matches!(content(&held).unwrap(), Content::Partitions(_)));
    assert!(asked("mount", &["-t", "ext4", &node, text(&place)]).is_none(), "nobody takes it while it is written");
    assert_eq!(Device::open(&device.device).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
}
