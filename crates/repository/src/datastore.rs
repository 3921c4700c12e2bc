//! What a node remembers between updates, so that nothing older is accepted after a restart: the chain of root files, the
//! newest timestamp and snapshot, and the time floor.
//!
//! tough can keep such files itself, but writes them in place without `fsync`, and skips its rollback check when one can't
//! be parsed: a power cut at the wrong moment would switch the check off. Here it is one file, replaced by rename, and
//! tough works on a scratch copy. The chain of roots is kept whole and is verified from the caller's root each time,
//! so that the datastore adds no trust of its own: at worst it is lost.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::error::Error;
use crate::limits::MAX_STATE;

const STATE_FILE: &str = "trusted.json";
const LOCK_FILE: &str = "lock";
/// Begins the names of files that are being written. With a dot, so that nobody serves or uploads one.
pub(crate) const SCRATCH_PREFIX: &str = ".scratch-";
const FORMAT: u32 = 1;

/// Where the datastore lies.
#[derive(Debug, Clone)]
pub enum DatastoreLocation {
    /// A directory on storage that survives a restart. It is made if missing. One for each trust root and repository.
    Persistent(PathBuf),
    /// Nothing is remembered: each opening starts from the trust root. For looking at a repository by hand.
    Ephemeral,
}

/// The content of the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct State {
    format: u32,
    /// The latest time at which metadata was verified as not expired.
    pub(crate) verified_at: Option<DateTime<Utc>>,
    /// `N.root.json` by version, as fetched.
    pub(crate) roots: BTreeMap<u64, String>,
    /// The newest verified `timestamp.json`.
    pub(crate) timestamp: Option<String>,
    /// The newest verified snapshot.
    pub(crate) snapshot: Option<String>,
}

/// An opened and locked datastore.
#[derive(Debug)]
pub(crate) struct Datastore {
    directory: PathBuf,
    /// Keeps an ephemeral directory alive.
    _temporary: Option<TempDir>,
    /// Holds the lock until dropped.
    _lock: File,
    pub(crate) state: State,
    /// A state file was there and could not be used.
    pub(crate) was_reset: bool,
}

impl Datastore {
    /// Opens, locks and reads a datastore. Blocking.
    ///
    /// A state file that can't be parsed is set aside as if it were absent: a node that nobody logs in to must not stop
    /// for ever over one bad sector, and the trust root and `not_before` still hold. The caller reports it.
    pub(crate) fn open(location: &DatastoreLocation) -> Result<Self, Error> {
        let (directory, temporary) = match location {
            DatastoreLocation::Persistent(path) => (path.clone(), None),
            DatastoreLocation::Ephemeral => {
                let directory = tempfile::tempdir().map_err(|source| Error::Datastore {
                    path: std::env::temp_dir(),
                    doing: "a temporary one can't be made",
                    source,
                })?;
                (directory.path().to_owned(), Some(directory))
            }
        };
        let fail = |doing| {
            let path = directory.clone();
            move |source| Error::Datastore { path, doing, source }
        };
        fs::create_dir_all(&directory).map_err(fail("it can't be made"))?;
        let lock = File::create(directory.join(LOCK_FILE)).map_err(fail("it can't be locked"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: directory }),
            Err(TryLockError::Error(source)) => return Err(fail("it can't be locked")(source)),
        }
        remove_leftovers(&directory).map_err(fail("leftovers of a killed process can't be removed"))?;
        let read = read_state(&directory.join(STATE_FILE)).map_err(fail("its state can't be read"))?;
        let (state, was_reset) = match read {
            Read::Absent => (State::default(), false),
            Read::Good(state) => (*state, false),
            Read::Bad(reason) => {
                tracing::warn!(directory = %directory.display(), reason, "the datastore is damaged and starts afresh");
                (State::default(), true)
            }
        };
        Ok(Self { directory, _temporary: temporary, _lock: lock, state, was_reset })
    }

    /// A scratch directory for tough with the remembered timestamp and snapshot. Blocking.
    pub(crate) fn scratch(&self) -> Result<TempDir, Error> {
        let make = || -> io::Result<TempDir> {
            let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(&self.directory)?;
            for (name, content) in [("timestamp.json", &self.state.timestamp), ("snapshot.json", &self.state.snapshot)]
            {
                if let Some(content) = content {
                    fs::write(scratch.path().join(name), content)?;
                }
            }
            Ok(scratch)
        };
        make().map_err(|source| self.failed("a scratch copy can't be made", source))
    }

    /// Replaces the state, durably, if it differs. Blocking.
    pub(crate) fn save(&mut self, mut state: State) -> Result<(), Error> {
        state.format = FORMAT;
        if state == self.state {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&state)
            .map_err(io::Error::other)
            .map_err(|source| self.failed("its state can't be written", source))?;
        replace_file(&self.directory.join(STATE_FILE), 0o600, &bytes)
            .map_err(|source| self.failed("its state can't be written", source))?;
        self.state = state;
        Ok(())
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Datastore { path: self.directory.clone(), doing, source }
    }
}

/// Reads what tough left in the scratch directory.
pub(crate) fn read_scratch(scratch: &Path, name: &str) -> Option<String> {
    fs::read_to_string(scratch.join(name)).ok()
}

enum Read {
    Absent,
    Good(Box<State>),
    Bad(String),
}

fn read_state(path: &Path) -> io::Result<Read> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::Absent),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_STATE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_STATE {
        return Ok(Read::Bad(format!("it is longer than {MAX_STATE} bytes")));
    }
    Ok(match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.format == FORMAT => Read::Good(Box::new(state)),
        Ok(state) => Read::Bad(format!("it has format {}, this version reads {FORMAT}", state.format)),
        Err(error) => Read::Bad(error.to_string()),
    })
}

fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes beside, syncs, renames, syncs the directory: after a power cut there is the old file or the new one.
pub(crate) fn replace_file(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(version: u64) -> State {
        State {
            format: FORMAT,
            verified_at: DateTime::from_timestamp(1_760_000_000, 0),
            roots: BTreeMap::from([(version, "{}".to_owned())]),
            timestamp: Some("t".to_owned()),
            snapshot: None,
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_leftovers_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().join("store"));
        let mut store = Datastore::open(&location).unwrap();
        store.save(state(2)).unwrap();
        let scratch = store.scratch().unwrap();
        assert_eq!(read_scratch(scratch.path(), "timestamp.json").as_deref(), Some("t"));
        assert_eq!(read_scratch(scratch.path(), "snapshot.json"), None);
        let leftover = scratch.keep();
        drop(store);
        let store = Datastore::open(&location).unwrap();
        assert_eq!(store.state, state(2));
        assert!(!store.was_reset && !leftover.exists());
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().to_owned());
        let _first = Datastore::open(&location).unwrap();
        assert!(matches!(Datastore::open(&location), Err(Error::Busy { .. })));
    }

    #[test]
    fn damage_resets_the_store_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().to_owned());
        Datastore::open(&location).unwrap().save(state(2)).unwrap();
        let path = directory.path().join(STATE_FILE);
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() / 2], b"", b"{\"format\":9,\"roots\":{}}"] {
            fs::write(&path, bad).unwrap();
            let store = Datastore::open(&location).unwrap();
            assert!(store.was_reset);
            assert_eq!(store.state, State::default());
        }
    }
}
