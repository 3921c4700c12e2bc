//! The agent's ESP over a simulated one.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_agent::host::{Esp, EspFile, Space};
use bascule_image::io::ReadAt;
use uuid::Uuid;

use super::SimBus;
use crate::disk::Disk;
use crate::esp::{Esp as Fat, Renamed};
use crate::layout::{ESP_TYPE, Table, XBOOTLDR_TYPE};

/// No file on an ESP is longer.
const MAX_FILE: u64 = 1 << 30;

/// The mounted ESP.
#[derive(Debug)]
pub struct SimEsp {
    fat: Fat,
    uuid: Uuid,
    /// Told of writes, to see whether shutdown was held back meanwhile.
    bus: Option<Arc<SimBus>>,
    read_only: AtomicBool,
    is_mirror: AtomicBool,
    /// A renamed file is not written back before its folder: what the agent must not leave out.
    forgetful: AtomicBool,
    /// Whoever frees what is free already has it mounted read-only.
    finds_damage: AtomicBool,
    /// What was renamed and not written back.
    renamed: Mutex<Option<Renamed>>,
}

impl SimEsp {
    /// Mounts the ESP of a disk. Errors: there is none.
    pub fn mount(disk: &Disk, bus: Option<Arc<SimBus>>) -> io::Result<Self> {
        let table = Table::read(disk)?;
        let uuid = table.of_type(ESP_TYPE).map(|number| table.unique(number)).unwrap_or_default();
        Ok(Self::new(table.esp()?, uuid, bus))
    }

    /// Mounts the XBOOTLDR of a disk, if there is one.
    pub fn xbootldr(disk: &Disk, bus: Option<Arc<SimBus>>) -> io::Result<Option<Self>> {
        let table = Table::read(disk)?;
        let Some(number) = table.of_type(XBOOTLDR_TYPE) else { return Ok(None) };
        let (fat, uuid) = (Fat::new(table.part(number)?), table.unique(number));
        Ok(Some(Self::new(fat, uuid, bus)))
    }

    fn new(fat: Fat, uuid: Uuid, bus: Option<Arc<SimBus>>) -> Self {
        Self {
            fat,
            uuid,
            bus,
            read_only: AtomicBool::new(false),
            is_mirror: AtomicBool::new(false),
            forgetful: AtomicBool::new(false),
            finds_damage: AtomicBool::new(false),
            renamed: Mutex::new(None),
        }
    }

    /// What is mounted is a mirror of it and of another disk's from now on, which is no partition, or it alone again.
    pub fn mirror(&self, is_mirror: bool) {
        self.is_mirror.store(is_mirror, Ordering::Relaxed);
    }

    /// From now on a rename leaves the file to the next [`Esp::sync`], which writes its folder first: to see that the tests notice.
    pub fn forget_to_write_back(&self) {
        self.forgetful.store(true, Ordering::Relaxed);
    }

    /// From now on a removal or a replacement that frees clusters which are free already leaves it mounted read-only, as Linux does it. A
    /// file that is written over is not looked at.
    pub fn find_damage(&self) {
        self.finds_damage.store(true, Ordering::Relaxed);
    }

    /// Does what frees the clusters of a file. Linux gives no error for what it finds meanwhile.
    fn freeing(&self, path: &str, free: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let damaged = self.finds_damage.load(Ordering::Relaxed) && self.fat.has_free_clusters(path)?;
        free()?;
        if damaged {
            self.remount(true);
        }
        Ok(())
    }

    /// Mounts it read-only from now on, or writable again.
    pub fn remount(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    fn writes(&self) -> io::Result<()> {
        if self.read_only.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if let Some(bus) = &self.bus {
            bus.saw_write("the ESP");
        }
        Ok(())
    }
}

impl Esp for SimEsp {
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        match self.fat.list(directory) {
            Ok(files) => Ok(files.into_iter().map(|file| EspFile { name: file.name, size: file.size }).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.fat.read(path, limit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(self.fat.past_cache().read(path, MAX_FILE)?))
    }

    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        let given = content.take(MAX_FILE).read_to_end(&mut bytes);
        self.writes()?;
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.fat.create_directory(directory)?;
        }
        // What came before the error is in the file, as with any copy that breaks off.
        self.fat.write(path, &bytes)?;
        given.map(|_| ())
    }

    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.writes()?;
        self.fat.write_start(path, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writes()?;
        let renamed = self.fat.rename_late(from, to)?;
        if self.forgetful.load(Ordering::Relaxed) {
            // A panic of another thread leaves it as good as it was.
            *self.renamed.lock().unwrap_or_else(PoisonError::into_inner) = Some(renamed);
            return Ok(());
        }
        renamed.write_back()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.writes()?;
        self.freeing(to, || self.fat.replace(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.writes()?;
        match self.freeing(path, || self.fat.remove(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn sync(&self) -> io::Result<()> {
        let renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner).take();
        renamed.map_or(Ok(()), Renamed::folder_first)?;
        self.fat.sync()
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { free: self.fat.free()?, total: self.fat.size()? })
    }

    fn is_read_only(&self) -> io::Result<bool> {
        Ok(self.read_only.load(Ordering::Relaxed))
    }

    fn partition_uuid(&self) -> io::Result<Option<Uuid>> {
        Ok((!self.is_mirror.load(Ordering::Relaxed)).then_some(self.uuid))
    }
}
