//! A real FAT file system on a recorded partition: what an EFI system partition is to firmware and to Linux alike.
//!
//! Nothing is durable before [`Esp::sync`]. A rename goes to the disk the way Linux' vfat (fs/fat/namei_vfat.c,
//! `vfat_rename`) and EDK2's FatPkg do it: first the new name, then the removal of the old one, so that a power cut may
//! leave both names on one chain of clusters, or, where the directory spans sectors, neither. vfat's new name has no clusters at
//! all before the file is written back: [`Esp::rename_late`].

mod check;
mod folder;
mod rename;

use std::io::{self, Read, Seek, Write};

pub use fatfs::FatType;
use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use crate::disk::{Overlay, Part, write_back};

/// An EFI system partition (or XBOOTLDR).
#[derive(Clone, Debug)]
pub struct Esp {
    part: Part,
    /// Reads go past the page cache.
    direct: bool,
}

/// A file in a directory of the ESP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspFile {
    /// Its long name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

/// A file that Linux renamed and has not written back.
#[derive(Clone, Debug)]
#[must_use = "nothing of the rename is on the partition yet"]
pub struct Renamed {
    part: Part,
    rename: rename::Rename,
}

impl Renamed {
    /// `fsync` of the file: its content is found under the new name, or under the old one. Not durable before [`Esp::sync`], which is
    /// less than Linux promises.
    pub fn write_back(self) -> io::Result<()> {
        self.rename.whole().iter().try_for_each(|step| write_back(&self.part, step))
    }

    /// `fsync` of the folder, and of the file only afterwards, as `syncfs` does it: for a while the new name is durable, and empty, and
    /// the old one is gone.
    pub fn folder_first(self) -> io::Result<()> {
        self.rename.hollow().iter().try_for_each(|step| write_back(&self.part, step))?;
        self.part.flush()?;
        write_back(&self.part, &self.rename.content(&self.part)?)
    }
}

/// All files have the same time, so that the same run writes the same bytes.
#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 2026, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

static FIXED_TIME: FixedTime = FixedTime;

/// EEXIST, ENOSPC: what Linux answers; fatfs has its own words for them.
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;

type Fat<'a> = FileSystem<&'a mut Overlay>;

impl Esp {
    /// The file system on this partition; nothing is read before the first call.
    pub fn new(part: Part) -> Self {
        Self { part, direct: false }
    }

    /// The same file system, but the content of files is read past the page cache, as O_DIRECT does it: names and clusters
    /// are still looked up in what the kernel remembers. (A last sector that is not full is read through the cache.)
    pub fn past_cache(&self) -> Self {
        Self { part: self.part.clone(), direct: true }
    }

    /// Makes an empty file system with `EFI/Linux` and `loader` and makes it durable. Its sectors have `sector` bytes, as those of the
    /// disk: Linux mounts none with smaller ones (fs/fat/inode.c).
    pub fn format(part: Part, sector: u64) -> io::Result<Self> {
        let esp = Self::new(part);
        let mut overlay = Overlay::new(esp.part.clone());
        // Small clusters keep the tests' disks small. Their number makes it FAT12 (up to 4084), FAT16 (up to 65524) or FAT32.
        let cluster: u32 = if esp.part.length() < 64 << 20 { 512 } else { 4096 };
        let sector = u16::try_from(sector).map_err(io::Error::other)?;
        let options = FormatVolumeOptions::new()
            .bytes_per_sector(sector)
            .bytes_per_cluster(cluster.max(u32::from(sector)))
            .volume_label(*b"ESP        ");
        fatfs::format_volume(&mut overlay, options)?;
        write_back(&esp.part, &overlay.changes()?)?;
        // What is free on FAT32 is on record from the beginning, as mkfs.fat leaves it.
        esp.change(|fat| fat.stats().map(|_| ()))?;
        for directory in ["EFI", "EFI/Linux", "loader"] {
            esp.create_directory(directory)?;
        }
        esp.sync()?;
        Ok(esp)
    }

    /// Which kind of FAT it is: the number of clusters decides.
    pub fn kind(&self) -> io::Result<FatType> {
        self.look(|fat| Ok(fat.fat_type()))
    }

    /// The partition below.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// The files (not directories) in a directory, as the directory orders them. A missing directory is `NotFound`.
    pub fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        self.look(|fat| {
            let mut files = Vec::new();
            for entry in fat.root_dir().open_dir(directory)?.iter() {
                let entry = entry?;
                if entry.is_file() {
                    files.push(EspFile { name: entry.file_name(), size: entry.len() });
                }
            }
            Ok(files)
        })
    }

    /// A file's content; longer than `limit` bytes is an error.
    pub fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.look(|fat| {
            // Read in steps of at least a sector: that is how the overlay tells content from the driver's own tables.
            let mut file = fat.root_dir().open_file(path)?.take(limit + 1);
            let (mut content, mut step) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                match file.read(&mut step)? {
                    0 => break,
                    count => content.extend_from_slice(step.get(..count).unwrap_or(&[])),
                }
            }
            if content.len() as u64 > limit {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("{path} is longer than {limit} bytes"),
                ));
            }
            Ok(content)
        })
    }

    /// Whether a file is there.
    pub fn exists(&self, path: &str) -> io::Result<bool> {
        match self.look(|fat| fat.root_dir().open_file(path).map(|_| ())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a directory below one that is there; one that is there already stays.
    pub fn create_directory(&self, path: &str) -> io::Result<()> {
        let mut overlay = Overlay::new(self.part.clone());
        let outcome = with_fat(&mut overlay, |fat| fat.root_dir().create_dir(path).map(|_| ()));
        if outcome.is_ok() {
            folder::mend(self, &mut overlay)?;
        }
        write_back(&self.part, &overlay.changes()?)?;
        outcome
    }

    /// Creates or replaces a file. Not durable before [`Esp::sync`].
    pub fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.part.disk().note(format!("ESP: write {path} ({} bytes)", content.len()));
        self.change(|fat| {
            let mut file = fat.root_dir().create_file(path)?;
            file.truncate()?;
            file.write_all(content)
        })
    }

    /// Writes over the first bytes of a file that is there. Not durable before [`Esp::sync`].
    pub fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.part.disk().note(format!("ESP: write the first {} bytes of {path}", bytes.len()));
        self.change(|fat| fat.root_dir().open_file(path)?.write_all(bytes))
    }

    /// Renames a file within its directory; never replaces another. Not durable before [`Esp::sync`]. The new name has its content
    /// at once, as firmware does it, and as Linux does where the file is written back before its folder is.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_late(from, to)?.write_back()
    }

    /// The same as Linux' vfat begins it. Nothing of it is seen here before the caller says what is written back first: the file
    /// ([`Renamed::write_back`]) or its folder ([`Renamed::folder_first`]).
    ///
    /// A kernel that writes the folder's dirty sectors back by itself between the rename and the first flush after it is not played.
    pub fn rename_late(&self, from: &str, to: &str) -> io::Result<Renamed> {
        self.part.disk().note(format!("ESP: rename {from} to {to}"));
        Ok(Renamed { part: self.part.clone(), rename: rename::prepare(&self.part, from, to)? })
    }

    /// Puts a file in the place of another one of its directory, durably but for the clusters that this frees: they go at the next
    /// [`Esp::sync`], as Linux frees them when nobody has the file open any more. Power lost before leaves of the sectors of both names
    /// whichever was written.
    pub fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.part.disk().note(format!("ESP: replace {to} by {from}"));
        let [names, clusters] = rename::over(&self.part, from, to)?;
        write_back(&self.part, &names)?;
        self.sync()?;
        write_back(&self.part, &clusters)
    }

    /// Removes a file. Not durable before [`Esp::sync`].
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.part.disk().note(format!("ESP: remove {path}"));
        // Linux takes the name away before it frees clusters: an error leaves no name whose clusters are free.
        let mut overlay = Overlay::new(self.part.clone());
        with_fat(&mut overlay, |fat| fat.root_dir().remove(path))?;
        write_back(&self.part, &overlay.changes()?)
    }

    /// `syncfs`: everything written so far is durable.
    pub fn sync(&self) -> io::Result<()> {
        self.part.flush()
    }

    /// Bytes that are free.
    pub fn free(&self) -> io::Result<u64> {
        self.look(|fat| {
            let stats = fat.stats()?;
            Ok(u64::from(stats.free_clusters()) * u64::from(stats.cluster_size()))
        })
    }

    /// Bytes in the file system.
    pub fn size(&self) -> io::Result<u64> {
        self.look(|fat| {
            let stats = fat.stats()?;
            Ok(u64::from(stats.total_clusters()) * u64::from(stats.cluster_size()))
        })
    }

    fn look<T>(&self, look: impl FnOnce(&Fat<'_>) -> io::Result<T>) -> io::Result<T> {
        let new = if self.direct { Overlay::past_cache } else { Overlay::new };
        with_fat(&mut new(self.part.clone()), look)
    }

    fn change(&self, change: impl FnOnce(&Fat<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut overlay = Overlay::new(self.part.clone());
        let outcome = with_fat(&mut overlay, change);
        // What a failed call did before it failed is in the page cache all the same.
        write_back(&self.part, &overlay.changes()?)?;
        outcome
    }
}

/// Runs one operation of the FAT driver and puts its errors into Linux' words.
fn with_fat<T>(overlay: &mut Overlay, run: impl FnOnce(&Fat<'_>) -> io::Result<T>) -> io::Result<T> {
    let options = FsOptions::new().update_accessed_date(false).time_provider(&FIXED_TIME);
    overlay.rewind()?;
    let outcome = FileSystem::new(&mut *overlay, options).and_then(|fat| run(&fat));
    // The driver passes over some errors of the medium, where Linux' would not.
    overlay.sound()?;
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::from_raw_os_error(EEXIST),
        io::ErrorKind::Other if error.to_string().contains("No space left") => io::Error::from_raw_os_error(ENOSPC),
        _ => error,
    })
}

#[cfg(test)]
mod tests;
