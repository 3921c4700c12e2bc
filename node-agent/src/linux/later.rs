//! Parts of the machine that may not be there yet, or not any more: opened when they are first needed, and tried again at
//! each use until that works. An agent that can't look at its machine runs, and says so through the API; were it to end
//! first, nobody would hear why.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_api::NodeError;
use bascule_image::io::{ReadAt, Sink};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::engine::in_one_line;
use crate::host::{
    Clock, Disk, DiskGeometry, Esp, EspFile, Extent, FetchError, ReleaseQuery, Releases, ResolvedRelease, Space,
    StateStore,
};
use crate::releases::RepositoryReleases;
use crate::settings::Settings;

/// Something that is opened when it is needed.
pub(super) struct Later<T> {
    open: Box<dyn Fn() -> io::Result<T> + Send + Sync>,
    opened: Mutex<Option<Arc<T>>>,
}

impl<T> Later<T> {
    pub(super) fn new(open: impl Fn() -> io::Result<T> + Send + Sync + 'static) -> Self {
        Self { open: Box::new(open), opened: Mutex::new(None) }
    }

    fn get(&self) -> io::Result<Arc<T>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            return Ok(Arc::clone(opened));
        }
        let new = Arc::new((self.open)()?);
        *opened = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl<T: Esp> Esp for Later<T> {
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        self.get()?.list(directory)
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.get()?.read(path, limit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>> {
        self.get()?.open(path)
    }

    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<()> {
        self.get()?.write(path, content)
    }

    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.get()?.write_start(path, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.get()?.rename(from, to)
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.get()?.replace(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.get()?.remove(path)
    }

    fn sync(&self) -> io::Result<()> {
        self.get()?.sync()
    }

    fn space(&self) -> io::Result<Space> {
        self.get()?.space()
    }

    fn is_read_only(&self) -> io::Result<bool> {
        self.get()?.is_read_only()
    }

    fn partition_uuid(&self) -> io::Result<Option<Uuid>> {
        self.get()?.partition_uuid()
    }
}

impl<T: Disk> Disk for Later<T> {
    fn geometry(&self) -> io::Result<DiskGeometry> {
        self.get()?.geometry()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.get()?.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.get()?.write(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.get()?.flush()
    }

    fn partition(&self, number: u32, extent: Extent) -> io::Result<Box<dyn Sink>> {
        self.get()?.partition(number, extent)
    }

    fn partition_direct(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        self.get()?.partition_direct(number, extent)
    }

    fn partition_read(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        self.get()?.partition_read(number, extent)
    }
}

impl<T: StateStore> StateStore for Later<T> {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        self.get()?.read(name, limit)
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.get()?.write(name, content)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.get()?.remove(name)
    }

    fn space(&self) -> io::Result<Space> {
        self.get()?.space()
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        self.get()?.lock()
    }
}

/// Repositories whose settings are looked at when something is to be fetched: a file of authorities that is missing today may
/// be there tomorrow.
pub(super) struct LateReleases {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) runtime: Handle,
}

impl Releases for LateReleases {
    fn resolve(&self, query: &ReleaseQuery) -> Result<Arc<dyn ResolvedRelease>, FetchError> {
        let options = super::repository_options(&self.settings).map_err(|error| FetchError {
            version: query.version.clone(),
            repository: query.repository.clone(),
            message: in_one_line(&error),
            category: NodeError::Settings,
            transient: false,
            cancelled: false,
            source: None,
        })?;
        RepositoryReleases::new(options, Arc::clone(&self.clock), self.runtime.clone()).resolve(query)
    }
}

/// A state folder that is not there.
pub(super) struct NoState {
    pub(super) why: String,
}

impl NoState {
    fn refuse<T>(&self) -> io::Result<T> {
        Err(io::Error::other(self.why.clone()))
    }
}

impl StateStore for NoState {
    fn read(&self, _: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        self.refuse()
    }

    fn write(&self, _: &str, _: &[u8]) -> io::Result<()> {
        self.refuse()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        self.refuse()
    }

    fn space(&self) -> io::Result<Space> {
        self.refuse()
    }

    /// Nothing is done that two agents could do at once.
    fn lock(&self) -> io::Result<Box<dyn Send>> {
        Ok(Box::new(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::linux::MountedEsp;

    #[test]
    fn what_is_not_there_yet_is_an_error_and_is_found_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let mounted = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&mounted);
        let esp = Later::new(move || match asked.load(Ordering::SeqCst) {
            true => Ok(MountedEsp::new(root.clone())),
            false => Err(io::Error::other("no boot partition is mounted")),
        });
        assert!(esp.list("EFI/Linux").unwrap_err().to_string().contains("no boot partition"));
        std::fs::create_dir_all(folder.path().join("EFI/Linux")).unwrap();
        mounted.store(true, Ordering::SeqCst);
        assert_eq!(esp.list("EFI/Linux").unwrap(), []);
    }
}
