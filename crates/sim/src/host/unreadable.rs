//! A boot partition of which some files can't be read: the error comes where a real one does, in the middle of reading.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_agent::host::{Esp, EspFile, Firmware, Space};
use bascule_image::io::ReadAt;
use uuid::Uuid;

/// How often each file still fails, by its name without counters and ending.
#[derive(Clone, Debug, Default)]
pub struct Unreadable(Arc<Mutex<BTreeMap<String, Failing>>>);

/// How a file fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// So many reads still pass.
    pub skip: u64,
    /// So many fail after that; `u64::MAX` is for ever.
    pub times: u64,
    /// The number of errno.h.
    pub error: i32,
}

impl Unreadable {
    /// Reading the file whose name begins like this fails from now on, and listing the folder.
    pub fn fail(&self, name: &str, failing: Failing) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_ascii_lowercase(), failing);
    }

    /// Everything can be read again.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether some file fails for ever.
    pub fn is_permanent(&self) -> bool {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().any(|failing| failing.times == u64::MAX)
    }

    fn strike(&self, path: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let Some((_, failing)) = files.iter_mut().find(|(start, _)| name.starts_with(start.as_str())) else {
            return Ok(());
        };
        if failing.skip > 0 {
            failing.skip -= 1;
            return Ok(());
        }
        if failing.times == 0 {
            return Ok(());
        }
        failing.times = if failing.times == u64::MAX { u64::MAX } else { failing.times - 1 };
        Err(io::Error::from_raw_os_error(failing.error))
    }
}

/// The partition.
#[derive(Clone)]
pub struct UnreadableEsp {
    /// The one below.
    pub inner: Arc<dyn Esp>,
    /// What fails.
    pub unreadable: Unreadable,
}

impl std::fmt::Debug for UnreadableEsp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnreadableEsp").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

/// Firmware of which some variables can't be read.
#[derive(Clone)]
pub struct UnreadableFirmware {
    /// The one below.
    pub inner: Arc<dyn Firmware>,
    /// What fails, by the names of variables.
    pub unreadable: Unreadable,
}

impl std::fmt::Debug for UnreadableFirmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnreadableFirmware").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl Firmware for UnreadableFirmware {
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.unreadable.strike(name)?;
        self.inner.variable_of(vendor, name)
    }

    fn smbios(&self) -> io::Result<Vec<u8>> {
        self.inner.smbios()
    }
}

struct Opened {
    file: Box<dyn ReadAt>,
    path: String,
    unreadable: Unreadable,
}

impl ReadAt for Opened {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.unreadable.strike(&self.path)?;
        self.file.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

impl Esp for UnreadableEsp {
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        self.unreadable.strike(directory)?;
        self.inner.list(directory)
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.unreadable.strike(path)?;
        self.inner.read(path, limit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>> {
        let file = self.inner.open(path)?;
        Ok(Box::new(Opened { file, path: path.to_owned(), unreadable: self.unreadable.clone() }))
    }

    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<()> {
        self.inner.write(path, content)
    }

    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_start(path, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.replace(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn is_read_only(&self) -> io::Result<bool> {
        self.inner.is_read_only()
    }

    fn partition_uuid(&self) -> io::Result<Option<Uuid>> {
        self.inner.partition_uuid()
    }
}
