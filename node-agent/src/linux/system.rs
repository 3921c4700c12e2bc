//! Facts of the running system from /proc and os-release.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bascule_api::Architecture;
use bascule_image::boot_loader;
use chrono::{DateTime, Utc};

use crate::host::{Pressure, Stall, SystemInfo};
use bascule_image::uki::OsRelease;

/// Longest file that is read here, in bytes.
const MAX: u64 = 64 << 10;
/// Where units of people and of packages lie, what counts first at the front (systemd.unit(5), "System Unit Search Path").
const UNITS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"];

/// The running system.
#[derive(Debug)]
pub struct LinuxSystem {
    root: PathBuf,
}

impl LinuxSystem {
    /// The system whose root file system is seen at `root`: `/`, or where a pod has it mounted.
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn read_os_release(root: &Path) -> io::Result<String> {
    // The file of the image itself first: /etc may be a writable overlay.
    match read(&root.join("usr/lib/os-release")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => read(&root.join("etc/os-release")),
        outcome => outcome,
    }
}

/// When the OS image was built, where it says so (os-release(5), `IMAGE_BUILD_TIME` in seconds since 1970, our own
/// field): the clock can't be right before.
pub(super) fn build_time(root: &Path) -> Option<DateTime<Utc>> {
    let release = OsRelease::parse(&read_os_release(root).ok()?);
    DateTime::from_timestamp(release.first(&["IMAGE_BUILD_TIME"])?.parse().ok()?, 0)
}

/// The template of an instance: `a@.service` of `a@b.service`.
fn template(unit: &str) -> Option<String> {
    let (name, instance) = unit.split_once('@')?;
    let (_, kind) = instance.rsplit_once('.')?;
    Some(format!("{name}@.{kind}"))
}

/// Whether a unit's file says that there is none: it is empty, or a link to /dev/null (systemd.unit(5), "masked").
fn is_mask(path: &Path, metadata: &std::fs::Metadata) -> io::Result<bool> {
    if metadata.is_symlink() {
        return Ok(std::fs::read_link(path)? == Path::new("/dev/null"));
    }
    Ok(metadata.is_file() && metadata.len() == 0)
}

/// The line `some` (kernel, Documentation/accounting/psi.rst); its total is in microseconds.
fn some(text: &str) -> Option<Stall> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let field = |name: &str| line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
    let total = Duration::from_micros(field("total=")?.parse().ok()?);
    Some(Stall { share: field("avg10=")?.parse().ok()?, total })
}

impl SystemInfo for LinuxSystem {
    fn boot_id(&self) -> io::Result<String> {
        Ok(read(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned())
    }

    fn command_line(&self) -> io::Result<String> {
        Ok(read(Path::new("/proc/cmdline"))?.trim().to_owned())
    }

    fn os_release(&self) -> io::Result<String> {
        read_os_release(&self.root)
    }

    fn boot_loaders(&self, architecture: Architecture) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        for path in boot_loader::in_image(architecture) {
            let file = match std::fs::File::open(self.root.join(path)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            file.take(boot_loader::MAX_SIZE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > boot_loader::MAX_SIZE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            found.push(bytes);
        }
        Ok(found)
    }

    fn pressure(&self) -> io::Result<Option<Pressure>> {
        let share = |what: &str| match read(&Path::new("/proc/pressure").join(what)) {
            Ok(text) => Ok(some(&text)),
            // A kernel without PSI, or one that has it switched off (EOPNOTSUPP).
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        };
        let (io, memory) = (share("io")?, share("memory")?);
        Ok(io.zip(memory).map(|(io, memory)| Pressure { io, memory }))
    }

    fn has_unit(&self, unit: &str) -> io::Result<bool> {
        // A file for the instance goes before the template, wherever each lies.
        for name in std::iter::once(unit.to_owned()).chain(template(unit)) {
            for folder in UNITS {
                let path = self.root.join(folder).join(&name);
                match std::fs::symlink_metadata(&path) {
                    Ok(metadata) => return Ok(!is_mask(&path, &metadata)?),
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_loaders_are_read_from_the_image_signed_ones_first() {
        let root = tempfile::tempdir().unwrap();
        let system = LinuxSystem::new(root.path().to_owned());
        let folder = root.path().join(boot_loader::FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(system.boot_loaders(Architecture::X86_64).unwrap(), Vec::<Vec<u8>>::new());
        std::fs::write(folder.join("systemd-bootx64.efi"), b"plain").unwrap();
        std::fs::write(folder.join("systemd-bootx64.efi.signed"), b"signed").unwrap();
        assert_eq!(system.boot_loaders(Architecture::X86_64).unwrap(), [b"signed".to_vec(), b"plain".to_vec()]);
        assert!(system.boot_loaders(Architecture::Arm64).unwrap().is_empty());
        let file = std::fs::File::create(folder.join("systemd-bootaa64.efi")).unwrap();
        file.set_len(boot_loader::MAX_SIZE + 1).unwrap();
        assert_eq!(system.boot_loaders(Architecture::Arm64).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn pressure_is_the_share_over_ten_seconds_and_the_total() {
        let text = "some avg10=12.50 avg60=3.00 avg300=1.00 total=70\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(some(text), Some(Stall { share: 12.5, total: Duration::from_micros(70) }));
        assert_eq!(some("full avg10=1.00"), None);
    }

    #[test]
    fn a_unit_is_there_by_its_file_or_its_template_unless_it_is_masked() {
        const UNIT: &str = "bascule-before-arm@41.3.0.service";
        let root = tempfile::tempdir().unwrap();
        let system = LinuxSystem::new(root.path().to_owned());
        let folder = |name: &str| {
            let folder = root.path().join(name).join("systemd/system");
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        assert!(!system.has_unit(UNIT).unwrap(), "no folder at all");
        std::fs::write(folder("usr/lib").join("bascule-before-arm@.service"), "[Service]\n").unwrap();
        assert!(system.has_unit(UNIT).unwrap());
        assert!(!system.has_unit("bascule-after-commit@41.3.0.service").unwrap());
        // A link that leads nowhere here may lead somewhere on the host.
        let own = folder("etc").join(UNIT);
        std::os::unix::fs::symlink("/usr/lib/acme/migrate.service", &own).unwrap();
        assert!(system.has_unit(UNIT).unwrap());
        std::fs::remove_file(&own).unwrap();
        let masked = folder("run").join("bascule-before-arm@.service");
        std::os::unix::fs::symlink("/dev/null", &masked).unwrap();
        assert!(!system.has_unit(UNIT).unwrap(), "masked by a link");
        std::fs::remove_file(&masked).unwrap();
        std::fs::write(&own, "").unwrap();
        assert!(!system.has_unit(UNIT).unwrap(), "masked by an empty file");
        std::fs::write(root.path().join("usr/local"), "").unwrap();
        assert!(system.has_unit("bascule-before-arm@1.0.service").unwrap(), "a file where a folder may be is none");
    }
}
