//! The boot partition as a mounted folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bascule_image::io::ReadAt;
use rustix::fs::{Advice, RenameFlags, StatVfsMountFlags};
use uuid::Uuid;

use crate::host::{Esp, EspFile, Space};

/// A directory with more in it is not listed at all: what was left out would be taken for absent.
const MAX_FILES: usize = 1024;
/// How much is copied at once.
const CHUNK: usize = 256 << 10;
/// After so many replacements that failed nothing is replaced any more, until the agent is started again.
const MAX_KEPT: usize = 16;

/// The mounted EFI system partition or XBOOTLDR.
#[derive(Debug)]
pub struct MountedEsp {
    root: PathBuf,
    /// Whoever opened it saw that a boot partition is mounted there: an empty one is empty.
    known: bool,
    /// What was replaced where that failed, by the path that it had. The medium may lead there still.
    kept: Mutex<Vec<(PathBuf, File)>>,
}

impl MountedEsp {
    /// The partition mounted at `root`.
    pub const fn new(root: PathBuf) -> Self {
        Self { root, known: false, kept: Mutex::new(Vec::new()) }
    }

    /// The same where a partition was seen to be mounted, so that a folder that is missing in it is not that of a partition
    /// that is missing.
    pub const fn known(root: PathBuf) -> Self {
        Self { root, known: true, kept: Mutex::new(Vec::new()) }
    }

    /// A path below the root; nothing that leads out of it.
    fn path(&self, path: &str) -> io::Result<PathBuf> {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if plain && !path.is_empty() { Ok(self.root.join(path)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Makes a file that took the place of another one durable there.
    fn flush_replaced(&self, path: &Path) -> io::Result<()> {
        // The old name goes from the folder's sectors before the other one gets its content, which is when the file is written back (see
        // `rename`): power lost in between leaves what was there, and never two names on one file.
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        File::open(path)?.sync_all()?;
        self.sync()
    }
}

impl Esp for MountedEsp {
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        let entries = match std::fs::read_dir(self.path(directory)?) {
            Ok(entries) => entries,
            // An unmounted partition looks like one without entries; the root tells them apart.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.known || self.root.join("EFI").is_dir() {
                    return Ok(Vec::new());
                }
                let unmounted = format!(
                    "no boot partition is mounted at {}: mount it there, or name in boot.partition where it is (of an agent in a \
                     pod, in the volume efi of its DaemonSet): {error}",
                    self.root.display()
                );
                return Err(io::Error::new(error.kind(), unmounted));
            }
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for (count, entry) in entries.enumerate() {
            if count >= MAX_FILES {
                return Err(io::Error::other(format!(
                    "there are more than {MAX_FILES}: remove what does not belong there"
                )));
            }
            let entry = entry?;
            // A name that is no UTF-8 is none of ours. It is a file that can't be opened by it, and not one that is not there.
            let name = entry.file_name().to_string_lossy().into_owned();
            files.extend(listed(name, entry.metadata().map(|metadata| metadata.is_file().then_some(metadata.len())))?);
        }
        files.sort();
        Ok(files)
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(path)?)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>> {
        let file = File::open(self.path(path)?)?;
        // Clean pages are dropped, so that what is read is what the medium holds. Dirty ones were synced by whoever
        // wrote; if the partition is read-only there are none.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        Ok(Box::new(OpenFile(file)))
    }

    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<()> {
        let path = self.path(path)?;
        let open = || OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                open()?
            }
            opened => opened?,
        };
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            io::Write::write_all(&mut file, buffer.get(..count).unwrap_or_default())?;
        }
        file.sync_all()
    }

    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(path)?)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, &from, here, &to, RenameFlags::NOREPLACE) {
            // File systems that don't know the flag; nobody else writes here while the agent's lock is held.
            Err(rustix::io::Errno::INVAL) if !to.try_exists()? => std::fs::rename(&from, &to)?,
            outcome => outcome?,
        }
        // FAT gives the new name no content until the file itself is written back (linux, fs/fat/namei_vfat.c,
        // vfat_rename): were the directory synced first, power lost after that would leave neither name with the file.
        File::open(&to)?.sync_all()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        // Open files: a panic of another thread leaves them as good as they were.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            return Err(io::Error::other(format!(
                "{MAX_KEPT} replacements failed before, and nothing is replaced until the agent is started again"
            )));
        }
        // FAT frees the clusters of what is replaced when nobody has it open any more (linux, fs/fat/inode.c, fat_evict_inode). Were
        // that on the medium before the name leads elsewhere, power lost in between would leave it on clusters that are free.
        let replaced = File::open(&to)?;
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &from, here, &to, RenameFlags::empty())?;
        if let Err(error) = self.flush_replaced(&to) {
            // The kernel may have lost the name's new content, and says so once: the clusters stay until that name was flushed.
            kept.push((to, replaced));
            return Err(error);
        }
        drop(replaced);
        kept.retain(|(path, _)| *path != to);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(path)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn sync(&self) -> io::Result<()> {
        // The directories' own sectors, then everything else of the file system, then the device's cache.
        for folder in ["EFI/Linux", "EFI/bascule", "EFI/systemd", "EFI/BOOT"] {
            match File::open(self.root.join(folder)) {
                Ok(folder) => folder.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let root = File::open(&self.root)?;
        rustix::fs::syncfs(&root)?;
        root.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.root)?;
        let unit = found.f_frsize;
        Ok(Space { free: found.f_bavail.saturating_mul(unit), total: found.f_blocks.saturating_mul(unit) })
    }

    fn is_read_only(&self) -> io::Result<bool> {
        Ok(rustix::fs::statvfs(&self.root)?.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    fn partition_uuid(&self) -> io::Result<Option<Uuid>> {
        super::below::partition_uuid(&self.root)
    }
}

/// What a name in a directory is, by the length that its file has. One whose file is not found was removed just now, or is
/// one that Linux can't look up (a mount with another `iocharset=`): the boot loader may see it, and the rest is listed all the same.
fn listed(name: String, length: io::Result<Option<u64>>) -> io::Result<Option<EspFile>> {
    match length {
        Ok(length) => Ok(length.map(|size| EspFile { name, size })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(EspFile { name, size: 0 })),
        Err(error) => Err(error),
    }
}

struct OpenFile(File);

impl ReadAt for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_and_go_and_nothing_leads_out() {
        let folder = tempfile::tempdir().unwrap();
        let esp = MountedEsp::new(folder.path().to_owned());
        // What is not mounted must not look empty.
        let error = esp.list("EFI/Linux").unwrap_err();
        assert!(error.kind() == io::ErrorKind::NotFound && error.to_string().contains("boot.partition"), "{error}");
        std::fs::create_dir(folder.path().join("EFI")).unwrap();
        assert_eq!(esp.list("EFI/Linux").unwrap(), []);
        esp.write("EFI/Linux/a.part", &mut &b"abc"[..]).unwrap();
        esp.rename("EFI/Linux/a.part", "EFI/Linux/a.efi").unwrap();
        esp.write("EFI/Linux/b.efi", &mut &b"b"[..]).unwrap();
        let error = esp.rename("EFI/Linux/b.efi", "EFI/Linux/a.efi").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        esp.sync().unwrap();
        assert_eq!(esp.read("EFI/Linux/a.efi", 3).unwrap(), b"abc");
        esp.write_start("EFI/Linux/a.efi", b"x").unwrap();
        assert_eq!(esp.read("EFI/Linux/a.efi", 3).unwrap(), b"xbc");
        assert_eq!(esp.write_start("EFI/Linux/none.efi", b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(esp.read("EFI/Linux/a.efi", 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        esp.replace("EFI/Linux/b.efi", "EFI/Linux/a.efi").unwrap();
        assert_eq!(esp.read("EFI/Linux/a.efi", 3).unwrap(), b"b");
        for (from, to) in [("EFI/Linux/b.efi", "EFI/Linux/a.efi"), ("EFI/Linux/a.efi", "EFI/Linux/b.efi")] {
            assert_eq!(esp.replace(from, to).unwrap_err().kind(), io::ErrorKind::NotFound, "{from}");
        }
        esp.remove("EFI/Linux/a.efi").unwrap();
        esp.remove("EFI/Linux/a.efi").unwrap();
        for path in ["../x", "/etc/passwd", "", "EFI/../../x"] {
            assert_eq!(esp.read(path, 9).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    /// Its clusters are what the machine starts from, wherever the name that took its place did not reach the medium.
    #[test]
    fn what_was_replaced_stays_open_until_its_name_was_flushed() {
        let folder = tempfile::tempdir().unwrap();
        let esp = MountedEsp::new(folder.path().to_owned());
        let kept = || esp.kept.lock().unwrap().len();
        esp.write("EFI/BOOT/BOOTX64.EFI", &mut &b"old"[..]).unwrap();
        let replace = |number: usize| {
            esp.write("EFI/BOOT/BASCULE.NEW", &mut number.to_string().as_bytes()).unwrap();
            esp.replace("EFI/BOOT/BASCULE.NEW", "EFI/BOOT/BOOTX64.EFI")
        };
        // A folder that can't be flushed.
        let broken = folder.path().join("EFI/bascule");
        std::os::unix::fs::symlink("bascule", &broken).unwrap();
        for number in 1..=MAX_KEPT {
            assert!(esp.sync().is_err() && replace(number).is_err());
            assert_eq!(kept(), number);
        }
        assert!(replace(0).unwrap_err().to_string().contains("until the agent is started again"));
        assert_eq!(
            esp.read("EFI/BOOT/BOOTX64.EFI", 9).unwrap(),
            MAX_KEPT.to_string().as_bytes(),
            "nothing was renamed"
        );
        esp.kept.lock().unwrap().truncate(1);
        std::fs::remove_file(&broken).unwrap();
        replace(7).unwrap();
        assert_eq!((kept(), esp.read("EFI/BOOT/BOOTX64.EFI", 9).unwrap()), (0, b"7".to_vec()));
    }

    #[test]
    fn a_name_whose_file_is_not_found_costs_no_other_its_place_in_the_list() {
        let name = || "caf?.efi".to_owned();
        let error = |number| Err(io::Error::from_raw_os_error(number));
        assert_eq!(listed(name(), Ok(Some(7))).unwrap(), Some(EspFile { name: name(), size: 7 }));
        assert_eq!(listed(name(), Ok(None)).unwrap(), None, "a directory");
        assert_eq!(listed(name(), error(2)).unwrap(), Some(EspFile { name: name(), size: 0 }));
        assert!(listed(name(), error(5)).is_err());
    }

    #[test]
    fn a_directory_is_listed_whole_or_not_at_all() {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = tempfile::tempdir().unwrap();
        let linux = folder.path().join("EFI/Linux");
        std::fs::create_dir_all(&linux).unwrap();
        let esp = MountedEsp::new(folder.path().to_owned());
        // As a mount with another `iocharset=` shows it. The boot loader sees an entry.
        std::fs::write(linux.join(std::ffi::OsStr::from_bytes(b"caf\xe9.efi")), b"x").unwrap();
        let listed = esp.list("EFI/Linux").unwrap();
        assert_eq!(listed.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["caf\u{fffd}.efi"]);
        assert!(esp.open("EFI/Linux/caf\u{fffd}.efi").is_err());
        for number in 1..MAX_FILES {
            std::fs::write(linux.join(format!("{number}.conf")), b"").unwrap();
        }
        assert_eq!(esp.list("EFI/Linux").unwrap().len(), MAX_FILES);
        std::fs::write(linux.join("one-more.efi"), b"").unwrap();
        let error = esp.list("EFI/Linux").unwrap_err().to_string();
        assert!(error.contains("more than 1024"), "{error}");
    }
}
