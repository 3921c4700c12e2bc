//! Where a node keeps what it remembers between updates (`tuf::Memory`), so that nothing older is accepted after a restart:
//! one file, replaced by rename, so that after a power cut there is the old state whole or the new one.
//!
//! A node may go back to an older release, and with it to an older reader. So the file says two things of itself. `format` is the
//! layout of the members below, and stays while they mean the same; a version that adds a member leaves it alone, and a
//! version that does not know a member hands it on when it writes. `mustUnderstand` lists members that change what the
//! others mean: who does not know one of them must not use the file, and says so instead of forgetting what it guards.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::error::Error;
use crate::limits::MAX_STATE;
use crate::lock::Lock;
use crate::tuf::Memory;
use crate::volume::Volume;

const STATE_FILE: &str = "trusted.json";
const LOCK_FILE: &str = "lock";
/// Begins the names of files that are being written. With a dot, so that nobody serves or uploads one.
pub(crate) const SCRATCH_PREFIX: &str = ".scratch-";
/// 1 had no targets, did not say by which keys things were accepted, and knew no members of others.
const FORMAT: u32 = 2;
/// Most bytes of members that only newer versions know.
const MAX_UNKNOWN: usize = 1 << 20;

/// Where the datastore lies.
#[derive(Debug, Clone)]
pub enum DatastoreLocation {
    /// A directory on storage that survives a restart. It is made if missing. One for each trust root and repository.
    Persistent(PathBuf),
    /// One of several in a folder of bounded size, which [`Volume::datastore`] gives.
    Within {
        /// The folder of all.
        volume: Arc<Volume>,
        /// The one.
        name: String,
    },
    /// Nothing is remembered: each opening starts from the trust root. For looking at a repository by hand.
    Ephemeral,
}

/// The content of the state file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    format: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    must_understand: Vec<String>,
    #[serde(default)]
    verified_at: Option<DateTime<Utc>>,
    #[serde(default)]
    roots: BTreeMap<u64, String>,
    #[serde(default)]
    timestamp: Option<String>,
    #[serde(default)]
    snapshot: Option<String>,
    #[serde(default)]
    targets: Option<String>,
    #[serde(default)]
    accepted_by: Option<String>,
    /// Members that only newer versions know: handed on as they are.
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// An opened and locked datastore.
#[derive(Debug)]
pub(crate) struct Datastore {
    directory: PathBuf,
    /// The folder whose room it shares with others, and its name there.
    within: Option<(Arc<Volume>, String)>,
    /// Keeps an ephemeral directory alive.
    _temporary: Option<TempDir>,
    /// Holds the lock until dropped.
    _lock: Lock,
    memory: Memory,
    unknown: BTreeMap<String, Value>,
    /// A state file was there and could not be used.
    pub(crate) was_reset: bool,
}

impl Datastore {
    /// Opens, locks and reads a datastore. Blocking.
    ///
    /// A state file that can't be parsed is set aside as if it were absent: a node that nobody logs in to must not stop
    /// for ever over one bad sector, and the trust root and `not_before` still hold. The caller reports it.
    pub(crate) fn open(location: &DatastoreLocation) -> Result<Self, Error> {
        match location {
            DatastoreLocation::Persistent(path) => Self::open_at(path.clone(), None, None),
            DatastoreLocation::Within { volume, name } => {
                let within = Some((Arc::clone(volume), name.clone()));
                volume.with_room(name, 0, || Self::open_at(volume.path(name), within, None))
            }
            DatastoreLocation::Ephemeral => {
                let directory = tempfile::tempdir().map_err(|source| Error::Datastore {
                    path: std::env::temp_dir(),
                    doing: "a temporary one can't be made",
                    source,
                })?;
                Self::open_at(directory.path().to_owned(), None, Some(directory))
            }
        }
    }

    fn open_at(
        directory: PathBuf,
        within: Option<(Arc<Volume>, String)>,
        temporary: Option<TempDir>,
    ) -> Result<Self, Error> {
        let fail = |doing| {
            let path = directory.clone();
            move |source| Error::Datastore { path, doing, source }
        };
        fs::create_dir_all(&directory).map_err(fail("it can't be made"))?;
        let lock = match try_lock(&directory) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: directory }),
            Err(TryLockError::Error(source)) => return Err(fail("it can't be locked")(source)),
        };
        remove_leftovers(&directory).map_err(fail("leftovers of a killed process can't be removed"))?;
        let read = read_state(&directory.join(STATE_FILE)).map_err(fail("its state can't be read"))?;
        let (memory, unknown, was_reset) = match read {
            Read::Absent => (Memory::default(), BTreeMap::new(), false),
            Read::Good(memory, unknown) => (*memory, unknown, false),
            Read::Newer(part) => return Err(Error::DatastoreNewer { path: directory, part }),
            Read::Bad(reason) => {
                tracing::warn!(directory = %directory.display(), reason, "the datastore is damaged and starts afresh");
                (Memory::default(), BTreeMap::new(), true)
            }
        };
        Ok(Self { directory, within, _temporary: temporary, _lock: lock, memory, unknown, was_reset })
    }

    /// What is remembered.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Replaces what is remembered, durably, if it differs. Blocking.
    pub(crate) fn save(&mut self, memory: Memory) -> Result<(), Error> {
        if memory == self.memory {
            return Ok(());
        }
        let state = State {
            format: FORMAT,
            must_understand: Vec::new(),
            verified_at: memory.verified_at,
            roots: memory.roots.clone(),
            timestamp: memory.timestamp.clone(),
            snapshot: memory.snapshot.clone(),
            targets: memory.targets.clone(),
            accepted_by: memory.accepted_by.clone(),
            unknown: self.unknown.clone(),
        };
        let failed =
            |source| Error::Datastore { path: self.directory.clone(), doing: "its state can't be written", source };
        let bytes = serde_json::to_vec(&state).map_err(io::Error::other).map_err(failed)?;
        let (length, most) = (bytes.len() as u64, self.within.as_ref().map_or(MAX_STATE, |(volume, _)| volume.each()));
        if length > most {
            return Err(Error::DatastoreTooLarge { bytes: length, most });
        }
        let write = || replace_file(&self.directory.join(STATE_FILE), 0o600, &bytes).map_err(failed);
        match &self.within {
            Some((volume, name)) => volume.with_room(name, length, write)?,
            None => write()?,
        }
        self.memory = memory;
        Ok(())
    }
}

/// Takes the lock of a datastore without waiting for it.
pub(crate) fn try_lock(directory: &Path) -> Result<Lock, TryLockError> {
    Lock::take(File::create(directory.join(LOCK_FILE)).map_err(TryLockError::Error)?)
}

/// Reads what a datastore remembers, for looking at it. It is not verified here.
///
/// # Errors
/// [`Error::Busy`], [`Error::Datastore`], [`Error::DatastoreNewer`].
pub fn remembered(location: &DatastoreLocation) -> Result<Memory, Error> {
    Datastore::open(location).map(|store| store.memory)
}

enum Read {
    Absent,
    Good(Box<Memory>, BTreeMap<String, Value>),
    Newer(String),
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
        Ok(state) => understand(state),
        Err(error) => Read::Bad(error.to_string()),
    })
}

fn understand(state: State) -> Read {
    if state.format == 0 {
        return Read::Bad("it has no format".to_owned());
    }
    if state.format > FORMAT {
        return Read::Newer(format!("format {} (this version reads {FORMAT})", state.format));
    }
    // Every member that this version knows is in `State`; what it may have to understand is among the others.
    if let Some(part) = state.must_understand.first() {
        return Read::Newer(part.clone());
    }
    let mut unknown = state.unknown;
    if serde_json::to_vec(&unknown).map_or(usize::MAX, |bytes| bytes.len()) > MAX_UNKNOWN {
        tracing::warn!("the datastore holds too much that only a newer version knows; that is left out");
        unknown.clear();
    }
    let memory = Memory {
        verified_at: state.verified_at,
        roots: state.roots,
        timestamp: state.timestamp,
        snapshot: state.snapshot,
        targets: state.targets,
        accepted_by: state.accepted_by,
    };
    Read::Good(Box::new(memory), unknown)
}

fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            let path = entry.path();
            if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
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

    fn memory(version: u64) -> Memory {
        Memory {
            verified_at: DateTime::from_timestamp(1_760_000_000, 0),
            roots: BTreeMap::from([(version, "{}".to_owned())]),
            timestamp: Some("t".to_owned()),
            snapshot: None,
            targets: Some("x".to_owned()),
            accepted_by: Some("k".to_owned()),
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_leftovers_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().join("store"));
        let mut store = Datastore::open(&location).unwrap();
        store.save(memory(2)).unwrap();
        let leftovers = [".scratch-file", ".scratch-folder"].map(|name| directory.path().join("store").join(name));
        fs::write(&leftovers[0], "half").unwrap();
        fs::create_dir(&leftovers[1]).unwrap();
        drop(store);
        let store = Datastore::open(&location).unwrap();
        assert_eq!(*store.memory(), memory(2));
        assert!(!store.was_reset && !leftovers.iter().any(|path| path.exists()));
        drop(store);
        assert_eq!(remembered(&location).unwrap(), memory(2));
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
        Datastore::open(&location).unwrap().save(memory(2)).unwrap();
        let path = directory.path().join(STATE_FILE);
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() / 2], b"", b"{\"roots\":{}}", b"{\"format\":0}", b"{\"format\":2,\"roots\":[]}"]
        {
            fs::write(&path, bad).unwrap();
            let store = Datastore::open(&location).unwrap();
            assert!(store.was_reset);
            assert_eq!(*store.memory(), Memory::default());
        }
    }

    #[test]
    fn what_the_first_format_remembered_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().to_owned());
        let old =
            r#"{"format":1,"verifiedAt":"2025-10-09T08:53:20Z","roots":{"2":"{}"},"timestamp":"t","snapshot":"s"}"#;
        fs::write(directory.path().join(STATE_FILE), old).unwrap();
        let store = Datastore::open(&location).unwrap();
        let known = Memory { snapshot: Some("s".to_owned()), targets: None, accepted_by: None, ..memory(2) };
        assert_eq!(*store.memory(), known);
        assert!(!store.was_reset);
    }

    #[test]
    fn what_a_newer_version_adds_is_handed_on_and_what_it_insists_on_is_not_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let location = DatastoreLocation::Persistent(directory.path().to_owned());
        let path = directory.path().join(STATE_FILE);
        let newer = |must: Value| {
            serde_json::json!({"format": 2, "mustUnderstand": must, "timestamp": "t", "mirrors": {"seen": [1, 2]}})
                .to_string()
        };
        fs::write(&path, newer(serde_json::json!([]))).unwrap();
        let mut store = Datastore::open(&location).unwrap();
        assert_eq!(store.memory().timestamp.as_deref(), Some("t"));
        store.save(memory(3)).unwrap();
        drop(store);
        let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&written["mirrors"]["seen"][1], &written["roots"]["3"]), (&2.into(), &"{}".into()));

        for text in [newer(serde_json::json!(["mirrors"])), "{\"format\":9,\"roots\":{}}".to_owned()] {
            fs::write(&path, &text).unwrap();
            let refused = Datastore::open(&location).unwrap_err();
            assert!(matches!(&refused, Error::DatastoreNewer { part, .. } if part == "mirrors" || part.contains('9')));
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "nothing is lost");
        }
    }
}
