//! The state folder on a real file system.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::host::{Space, StateStore};

/// Readable by root only: what is in here says what the node will trust.
const MODE: u32 = 0o600;

/// A folder, usually `/var/lib/bascule`.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// The file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_owned() })
    }

    fn file(&self, name: &str) -> io::Result<PathBuf> {
        let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        if plain { Ok(self.path.join(name)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl StateStore for StateFolder {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.file(name)?) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.file(name)?;
        let new = self.path.join(format!(".{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        self.sync()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => outcome?,
        }
        self.sync()
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.path)?;
        let unit = found.f_frsize;
        Ok(Space { free: found.f_bavail.saturating_mul(unit), total: found.f_blocks.saturating_mul(unit) })
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(self.path.join("lock"))?;
        // The kernel lets go of it when the process ends, however it ends.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(Held(file)))
    }
}

/// The lock of the folder. Given back by name: a program that another thread starts has the same open file description between fork(2)
/// and exec(3), and would keep the lock for that long if it were only closed.
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!(%error, "the lock of the state folder could not be given back by name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_the_lock_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::create(&folder.path().join("state")).unwrap();
        assert_eq!(state.read("journal.json", 9).unwrap(), None);
        state.write("journal.json", b"one").unwrap();
        state.write("journal.json", b"two").unwrap();
        assert_eq!(state.read("journal.json", 9).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(state.read("journal.json", 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // What a power cut left of a write that did not come to its end, longer than what is written now.
        std::fs::write(folder.path().join("state/.journal.json.new"), [b'x'; 5000]).unwrap();
        assert_eq!(state.read("journal.json", 9).unwrap().as_deref(), Some(&b"two"[..]));
        state.write("journal.json", b"three").unwrap();
        assert_eq!(state.read("journal.json", 9).unwrap().as_deref(), Some(&b"three"[..]));
        state.remove("journal.json").unwrap();
        state.remove("journal.json").unwrap();
        assert!(state.write("../x", b"").is_err());
        let held = state.lock().unwrap();
        assert_eq!(state.lock().map(|_| ()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn a_child_that_was_just_forked_does_not_keep_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let child = file.try_clone().unwrap();
        drop(Held(file));
        let other = File::open(&path).unwrap();
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(child);
    }
}
