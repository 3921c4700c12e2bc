//! A block device, or a disk image in a file.
//!
//! Reads of the partition table and of written slots go past the page cache with `O_DIRECT`, so that they see what the
//! medium holds. Where a file system refuses that (a disk image on tmpfs), pages are dropped before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bascule_image::io::{ReadAt, Sink};
use rustix::fs::{Advice, FlockOperation, OFlags};

use crate::host::{Disk, DiskGeometry, Extent};

/// What a buffer's address must be a multiple of for `O_DIRECT`: the page size suits every device.
const ALIGNMENT: usize = 4096;
/// Most bytes of one read past the cache that needs a buffer of its own.
const BOUNCE: usize = 1 << 20;

/// A disk by its device node or image file.
#[derive(Debug)]
pub struct BlockDisk {
    path: PathBuf,
    is_device: bool,
}

impl BlockDisk {
    /// Opens a disk. Nothing is read yet.
    ///
    /// # Errors
    /// It is neither a block device nor a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file"));
        }
        Ok(Self { path: path.canonicalize()?, is_device: kind.is_block_device() })
    }

    /// The node of a partition and the offset at which the partition begins in it.
    fn node(&self, number: u32, extent: Extent) -> io::Result<(PathBuf, u64)> {
        if !self.is_device {
            return Ok((self.path.clone(), extent.start));
        }
        let disk = self.path.file_name().unwrap_or_default();
        let folder = Path::new("/sys/class/block").join(disk);
        let number_in = |path: &Path, file: &str| -> Option<u64> {
            std::fs::read_to_string(path.join(file)).ok()?.trim().parse().ok()
        };
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if number_in(&path, "partition") != Some(u64::from(number)) {
                continue;
            }
            // The kernel counts in units of 512 bytes, whatever the sector size.
            let start = number_in(&path, "start").map(|units| units.saturating_mul(512));
            let length = number_in(&path, "size").map(|units| units.saturating_mul(512));
            if (start, length) != (Some(extent.start), Some(extent.length)) {
                return Err(io::Error::other(format!(
                    "the kernel has partition {number} elsewhere than the table: reboot or run partx --update"
                )));
            }
            let node = Path::new("/dev").join(path.file_name().unwrap_or_default());
            return Ok((node, 0));
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the kernel knows no partition {number} of this disk")))
    }

    fn part(&self, number: u32, extent: Extent, write: bool) -> io::Result<Part> {
        let (path, start) = self.node(number, extent)?;
        // Exclusive, for a device, means that nobody has it mounted or built another device on it, and that nobody can while
        // it is written (open(2), O_EXCL).
        let exclusive = if write && self.is_device { OFlags::EXCL.bits() } else { 0 };
        let flags = i32::try_from(exclusive).unwrap_or_default();
        let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use: unmount it, or stop what is built on it", path.display()),
            ),
            _ => error,
        })?;
        Ok(Part { file, start, length: extent.length })
    }
}

impl Disk for BlockDisk {
    fn geometry(&self) -> io::Result<DiskGeometry> {
        let file = File::open(&self.path)?;
        let length = ReadAt::size(&file)?;
        let sector = if self.is_device { u64::from(rustix::fs::ioctl_blksszget(&file)?) } else { 512 };
        Ok(DiskGeometry { length, sector })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Direct::open(&self.path, 0, self.geometry()?.length)?.read_at(buffer, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        // Keeps udev from reading the table between two of its sectors (systemd, "Locking Block Device Access").
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.path)?.sync_all()
    }

    fn partition(&self, number: u32, extent: Extent) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(self.part(number, extent, true)?))
    }

    fn partition_direct(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        let (path, start) = self.node(number, extent)?;
        Ok(Box::new(Direct::open(&path, start, extent.length)?))
    }

    fn partition_read(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(self.part(number, extent, false)?))
    }
}

/// A piece of a file or device, through the page cache.
#[derive(Debug)]
struct Part {
    file: File,
    start: u64,
    length: u64,
}

impl Part {
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        end.map(|_| self.start + offset).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl ReadAt for Part {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.place(offset, buffer.len())?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

impl Sink for Part {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.place(offset, bytes.len())?)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()?;
        // What is written is not read again through the cache; the machine has better uses for the memory.
        let _ = rustix::fs::fadvise(&self.file, self.start, std::num::NonZeroU64::new(self.length), Advice::DontNeed);
        Ok(())
    }
}

/// A piece of a file or device, past the page cache.
#[derive(Debug)]
struct Direct {
    file: File,
    start: u64,
    length: u64,
    block: u64,
    direct: bool,
}

impl Direct {
    fn open(path: &Path, start: u64, length: u64) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                // Blocks of another length than the device's would be refused, or read again and again.
                let block = if metadata.file_type().is_block_device() {
                    u64::from(rustix::fs::ioctl_blksszget(&file)?)
                } else {
                    metadata.blksize().max(512)
                };
                Ok(Self { file, start, length, block, direct: true })
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Ok(Self { file: File::open(path)?, start, length, block: 512, direct: false })
            }
            Err(error) => Err(error),
        }
    }

    fn drop_pages(&self, offset: u64, length: u64) -> io::Result<()> {
        // Dirty pages can't be dropped.
        self.file.sync_data()?;
        Ok(rustix::fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(length), Advice::DontNeed)?)
    }

    /// Reads whole blocks through an aligned buffer and takes out what was asked for.
    fn bounce(&self, buffer: &mut [u8], place: u64) -> io::Result<()> {
        let mut own = vec![0; BOUNCE + ALIGNMENT];
        let first = own.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let aligned = own.get_mut(first..first + BOUNCE).unwrap_or_default();
        let end = place + buffer.len() as u64;
        let (mut at, mut done) = (place - place % self.block, 0_usize);
        while done < buffer.len() {
            let wanted = (end - at).next_multiple_of(self.block).min(BOUNCE as u64);
            let window = aligned.get_mut(..usize::try_from(wanted).unwrap_or(BOUNCE)).unwrap_or_default();
            let got = std::os::unix::fs::FileExt::read_at(&self.file, window, at)?;
            let skip = usize::try_from(place.saturating_sub(at)).unwrap_or(0).min(got);
            let fresh = window.get(skip..got).unwrap_or_default();
            if fresh.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = fresh.len().min(buffer.len() - done);
            if let (Some(to), Some(from)) = (buffer.get_mut(done..done + count), fresh.get(..count)) {
                to.copy_from_slice(from);
            }
            done += count;
            at += got as u64 - got as u64 % self.block;
            if !(got as u64).is_multiple_of(self.block) && done < buffer.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl ReadAt for Direct {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.length);
        let Some(_) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let place = self.start + offset;
        if !self.direct {
            self.drop_pages(place, buffer.len() as u64)?;
            return self.file.read_exact_at(buffer, place);
        }
        let fits = place.is_multiple_of(self.block)
            && (buffer.len() as u64).is_multiple_of(self.block)
            && buffer.as_ptr().align_offset(ALIGNMENT) == 0;
        if fits { self.file.read_exact_at(buffer, place) } else { self.bounce(buffer, place) }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_past_the_cache_at_any_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0_u8; 3 << 20]).unwrap();
        let disk = BlockDisk::open(&path).unwrap();
        assert_eq!(disk.geometry().unwrap(), DiskGeometry { length: 3 << 20, sector: 512 });
        let extent = Extent { start: 1 << 20, length: 1 << 20 };
        let content: Vec<u8> = (0..extent.length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let sink = disk.partition(2, extent).unwrap();
        sink.write_at(&content, 0).unwrap();
        sink.flush().unwrap();
        let direct = disk.partition_direct(2, extent).unwrap();
        for (offset, length) in [(0, 4096), (1, 1), (511, 5000), (4096, 1 << 19), ((1 << 20) - 7, 7)] {
            let mut found = vec![0; length];
            direct.read_at(&mut found, offset).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert_eq!(found, content[from..from + length], "{offset} {length}");
        }
        assert!(direct.read_at(&mut [0; 2], (1 << 20) - 1).is_err());
        assert!(
            sink.write_at(&[0; 2], (1 << 20) - 1).is_err(),
            "a write past a partition's end must not reach the next"
        );
        let mut before = [0xff_u8; 512];
        disk.read((1 << 20) - 512, &mut before).unwrap();
        assert_eq!(before, [0; 512]);
    }
}
