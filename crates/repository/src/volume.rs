//! Datastores of many repositories in one folder of bounded size. A node reads the one repository that its OS image trusts;
//! whoever reads what others name must not have the folder filled by some of these for all the rest.
//!
//! One file is written at a time, so what lies in the folder and one file of [`Bounds::each`] beside it is the most that there
//! ever is, whatever is read at once and whenever a reading is given up. Room is judged where a file is about to be written, by
//! what lies on the disk then; a slow server therefore holds no room that others wait for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bascule_image::Sha256;

use crate::datastore::{DatastoreLocation, try_lock};
use crate::error::Error;

/// Bytes of SHA-256 in the name of a datastore's folder.
const NAME: usize = 16;
/// File systems give whole blocks.
const BLOCK: u64 = 4096;

/// What the datastores of a [`Volume`] may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// All together, with the file that is being written beside the one that it replaces.
    pub total: u64,
    /// Each.
    pub each: u64,
    /// One of at most so many bytes is small.
    pub small: u64,
    /// What is left to small ones, however many others there are.
    pub for_small: u64,
    /// Datastores that are not in use and stay, for whoever is asked for again soon.
    pub unused: usize,
    /// What these take together.
    pub unused_bytes: u64,
}

/// A folder with the datastores of many repositories.
#[derive(Debug)]
pub struct Volume {
    folder: PathBuf,
    bounds: Bounds,
    used: Mutex<BTreeSet<String>>,
    /// Whoever changes something in the folder holds it.
    disk: Mutex<()>,
}

/// A datastore as it lies on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    name: String,
    /// What it takes of the disk.
    bytes: u64,
    last_used: SystemTime,
    in_use: bool,
}

/// What writing a file comes to.
#[derive(Debug, PartialEq, Eq)]
enum Room<'a> {
    /// It fits once these have gone.
    After(Vec<&'a str>),
    /// It does not: so much is taken by others, of so much.
    None { taken: u64, most: u64 },
}

impl Bounds {
    /// What all may take together, a file of so many bytes among them, beside one that is being written.
    fn most(&self, bytes: u64) -> u64 {
        let reserved = if bytes <= self.small { 0 } else { self.for_small };
        self.total.saturating_sub(on_disk([self.each])).saturating_sub(reserved)
    }

    /// Whether a file of so many bytes fits in place of the one that its datastore has.
    fn room<'a>(&self, kept: &'a [Kept], name: &str, bytes: u64) -> Room<'a> {
        let before = kept.iter().find(|one| one.name == name).map_or(0, |one| one.bytes);
        let after = on_disk([bytes]);
        let others: u64 = kept.iter().filter(|one| one.name != name).map(|one| one.bytes).sum();
        // A file that grows nothing never waits for others to go.
        if after <= before {
            return Room::After(Vec::new());
        }
        let most = self.most(bytes);
        let mut taken = others;
        let mut gone = Vec::new();
        let mut unused = unused(kept, name);
        while taken.saturating_add(after) > most {
            let Some(oldest) = unused.pop() else { return Room::None { taken: others, most } };
            taken = taken.saturating_sub(oldest.bytes);
            gone.push(oldest.name.as_str());
        }
        Room::After(gone)
    }

    /// Those that are not in use and too many.
    fn surplus<'a>(&self, kept: &'a [Kept]) -> Vec<&'a str> {
        let mut unused = unused(kept, "");
        let mut bytes: u64 = unused.iter().map(|one| one.bytes).sum();
        let mut gone = Vec::new();
        while unused.len() > self.unused || bytes > self.unused_bytes {
            let Some(oldest) = unused.pop() else { break };
            bytes = bytes.saturating_sub(oldest.bytes);
            gone.push(oldest.name.as_str());
        }
        gone
    }
}

/// Those that are not in use, but this one; the oldest last.
fn unused<'a>(kept: &'a [Kept], name: &str) -> Vec<&'a Kept> {
    let mut unused: Vec<&Kept> = kept.iter().filter(|one| !one.in_use && one.name != name).collect();
    unused.sort_by(|a, b| (b.last_used, &b.name).cmp(&(a.last_used, &a.name)));
    unused
}

/// What a folder with files of these lengths takes.
fn on_disk(files: impl IntoIterator<Item = u64>) -> u64 {
    let block = |bytes: u64| bytes.div_ceil(BLOCK).saturating_mul(BLOCK);
    files.into_iter().map(block).fold(BLOCK, u64::saturating_add)
}

fn name_of(key: &str) -> String {
    Sha256::of(key.as_bytes()).as_bytes().iter().take(NAME).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a folder's name is one that [`name_of`] gives. Whatever else lies beside is somebody else's.
fn is_name(name: &str) -> bool {
    name.len() == 2 * NAME && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volume {
    /// Datastores below this folder, which is made if missing.
    #[must_use]
    pub fn new(folder: PathBuf, bounds: Bounds) -> Self {
        Self { folder, bounds, used: Mutex::default(), disk: Mutex::default() }
    }

    /// The datastore of whatever this text names.
    #[must_use]
    pub fn datastore(self: &Arc<Self>, key: &str) -> DatastoreLocation {
        DatastoreLocation::Within { volume: Arc::clone(self), name: name_of(key) }
    }

    /// Says which datastores are in use; [`Self::tidy`] spares them. Whether that changes anything.
    pub fn set_used<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> bool {
        let names = keys.into_iter().map(name_of).collect();
        let mut used = held(&self.used);
        let changed = *used != names;
        *used = names;
        changed
    }

    /// Takes out what is not in use and beyond the bounds, the oldest first. Blocking.
    ///
    /// # Errors
    /// The folder can't be read, or something in it can't be removed.
    pub fn tidy(&self) -> io::Result<()> {
        let _disk = held(&self.disk);
        let kept = self.kept()?;
        self.bounds.surplus(&kept).into_iter().try_for_each(|name| self.remove(name).map(drop))
    }

    /// The folder of a datastore.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The most bytes of a datastore's file.
    pub(crate) const fn each(&self) -> u64 {
        self.bounds.each
    }

    /// Does what opens a datastore or writes so many bytes into it, alone, if there is room. Blocking.
    pub(crate) fn with_room<T>(
        &self,
        name: &str,
        bytes: u64,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _disk = held(&self.disk);
        let failed = |doing| move |source| Error::Datastore { path: self.folder.clone(), doing, source };
        let kept = self.kept().map_err(failed("what lies in it can't be read"))?;
        let full = |taken, most| Error::DatastoreNoRoom { path: self.folder.clone(), bytes, taken, most };
        match self.bounds.room(&kept, name, bytes) {
            Room::After(gone) => {
                for old in gone {
                    if !self.remove(old).map_err(failed("an old one can't be removed"))? {
                        let others: u64 = kept.iter().filter(|one| one.name != name).map(|one| one.bytes).sum();
                        return Err(full(others, self.bounds.most(bytes)));
                    }
                }
                work()
            }
            Room::None { taken, most } => Err(full(taken, most)),
        }
    }

    fn kept(&self) -> io::Result<Vec<Kept>> {
        let used = held(&self.used).clone();
        let mut kept = Vec::new();
        for entry in absent_is_empty(fs::read_dir(&self.folder))? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| is_name(name))
                && entry.file_type()?.is_dir()
            {
                let (bytes, last_used) = measured(&entry.path())?;
                kept.push(Kept { name: name.to_owned(), bytes, last_used, in_use: used.contains(name) });
            }
        }
        Ok(kept)
    }

    /// Whether it has gone. One that somebody has open stays: a reading that was given up may still be about to write.
    fn remove(&self, name: &str) -> io::Result<bool> {
        let path = self.path(name);
        match try_lock(&path) {
            Ok(_lock) => fs::remove_dir_all(&path).map(|()| true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn absent_is_empty(read: io::Result<fs::ReadDir>) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match read {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error),
    }
}

/// What a datastore takes, and when something in it was written last: its lock is, whenever it is opened.
fn measured(folder: &Path) -> io::Result<(u64, SystemTime)> {
    let (mut lengths, mut last_used) = (Vec::new(), SystemTime::UNIX_EPOCH);
    for entry in fs::read_dir(folder)? {
        let about = entry?.metadata()?;
        lengths.push(about.len());
        last_used = last_used.max(about.modified()?);
    }
    Ok((on_disk(lengths), last_used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const KIB: u64 = 1 << 10;
    /// Room for ten blocks of others beside the one being written; two of them for small ones.
    const BOUNDS: Bounds = Bounds {
        total: 64 * KIB,
        each: 16 * KIB,
        small: 4 * KIB,
        for_small: 8 * KIB,
        unused: 2,
        unused_bytes: 24 * KIB,
    };

    fn kept(name: &str, bytes: u64, age: u64, in_use: bool) -> Kept {
        let last_used = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
        Kept { name: name.to_owned(), bytes, last_used, in_use }
    }

    #[test]
    fn a_file_fits_while_the_rest_leaves_room_and_small_ones_have_a_share_of_their_own() {
        let none = Room::After(Vec::new());
        // 64 - 20 (the one being written, with its folder): 44 for small ones, 8 of them for these alone.
        let (large, small) = (36 * KIB, 44 * KIB);
        let full = [kept("a", 20 * KIB, 1, true), kept("b", 16 * KIB, 2, true)];
        assert_eq!(BOUNDS.room(&full[..1], "c", 12 * KIB), none);
        assert_eq!(BOUNDS.room(&full[..1], "c", 13 * KIB), Room::None { taken: 20 * KIB, most: large });
        assert_eq!(BOUNDS.room(&full, "c", 5 * KIB), Room::None { taken: 36 * KIB, most: large });
        assert_eq!(BOUNDS.room(&full, "c", 4 * KIB), none, "a small one has a share that others don't");
        let more = [full.clone().as_slice(), &[kept("c", 8 * KIB, 3, true)]].concat();
        assert_eq!(BOUNDS.room(&more, "d", 4 * KIB), Room::None { taken: 44 * KIB, most: small });
        // What is there is read again, and grows no more.
        assert_eq!(BOUNDS.room(&more, "a", 16 * KIB), none);
        assert_eq!(BOUNDS.room(&more, "b", 13 * KIB), Room::None { taken: 28 * KIB, most: large });
        let endless = [kept("a", u64::MAX, 1, true)];
        assert_eq!(BOUNDS.room(&endless, "b", u64::MAX), Room::None { taken: u64::MAX, most: large });
    }

    #[test]
    fn what_nobody_uses_goes_for_what_somebody_does_the_oldest_first() {
        let full = [
            kept("young", 8 * KIB, 1, false),
            kept("used", 12 * KIB, 9, true),
            kept("old", 8 * KIB, 3, false),
            kept("middle", 8 * KIB, 2, false),
        ];
        assert_eq!(BOUNDS.room(&full, "new", 4 * KIB), Room::After(vec![]));
        assert_eq!(BOUNDS.room(&full, "new", 8 * KIB), Room::After(vec!["old", "middle"]));
        assert_eq!(BOUNDS.room(&full, "old", 8 * KIB), Room::After(vec!["middle"]), "not the one itself");
        assert_eq!(BOUNDS.room(&full, "new", 16 * KIB), Room::After(vec!["old", "middle", "young"]));
    }

    #[test]
    fn a_few_that_nobody_uses_stay() {
        let few = [kept("a", 8 * KIB, 1, false), kept("b", 60 * KIB, 9, true), kept("c", 8 * KIB, 3, false)];
        assert_eq!(BOUNDS.surplus(&few), Vec::<&str>::new());
        let many = [few.clone().as_slice(), &[kept("d", 8 * KIB, 2, false), kept("e", 8 * KIB, 4, false)]].concat();
        assert_eq!(BOUNDS.surplus(&many), ["e", "c"]);
        let large = [kept("a", 8 * KIB, 1, false), kept("b", 20 * KIB, 2, false)];
        assert_eq!(BOUNDS.surplus(&large), ["b"]);
        assert_eq!(BOUNDS.surplus(&[kept("a", 28 * KIB, 1, false)]), ["a"]);
    }

    #[test]
    fn only_datastores_are_taken_out_and_none_that_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Arc::new(Volume::new(folder.path().join("state"), Bounds { unused: 0, ..BOUNDS }));
        volume.tidy().unwrap();
        let open = |key: &str| crate::datastore::Datastore::open(&volume.datastore(key)).unwrap();
        let others = folder.path().join("state/others");
        fs::create_dir_all(others.join("inner")).unwrap();
        assert!(volume.set_used(["used"]) && !volume.set_used(["used"]));
        drop(open("used"));
        drop(open("gone"));
        let under_way = open("under way");
        let left = || fs::read_dir(folder.path().join("state")).unwrap().count();
        assert_eq!(left(), 4);
        volume.tidy().unwrap();
        assert_eq!(left(), 3);
        assert!(volume.path(&name_of("used")).exists() && !volume.path(&name_of("gone")).exists() && others.exists());
        drop(under_way);
        volume.tidy().unwrap();
        assert_eq!(left(), 2);
    }
}
