//! The folder that is served: `metadata/` and `targets/`, written so that readers and a killed publisher never see half a
//! file. `pending/` and the lock are for publishers only and are not uploaded.

use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bascule_image::digest::Sha256Stream;
use bascule_image::release::names::TargetPath;
use bascule_names::Digest;
use chrono::{DateTime, Utc};

use super::error::PublishError;
use super::prune::Unnamed;
use crate::datastore::{SCRATCH_PREFIX, replace_file};
use crate::limits::MAX_TARGETS;
use crate::lock::Lock;

const LOCK_FILE: &str = ".publish.lock";
/// What is served must be readable by the server's user.
const SERVED: u32 = 0o644;

/// A locked repository folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: Option<Lock>,
    /// What was made visible, in that order, relative to the folder.
    written: RefCell<Vec<PathBuf>>,
}

impl Folder {
    /// Locks a folder, making it if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, PublishError> {
        for part in ["metadata", "targets"] {
            let part = path.join(part);
            fs::create_dir_all(&part).map_err(PublishError::file("make", &part))?;
        }
        let lock_path = path.join(LOCK_FILE);
        // Whoever made the file may have been another user: it is locked by reading it as well.
        let open = || match File::open(&lock_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::create(&lock_path),
            other => other,
        };
        let lock = open().map_err(PublishError::file("lock", &lock_path))?;
        match Lock::take(lock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: Some(lock), written: RefCell::default() }),
            Err(TryLockError::WouldBlock) => Err(PublishError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(PublishError::file("lock", &lock_path)(error)),
        }
    }

    /// A folder that is only looked at.
    pub(super) fn look_at(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None, written: RefCell::default() }
    }

    /// The files made visible since the folder was opened, in that order.
    pub(super) fn written(&self) -> Vec<PathBuf> {
        self.written.borrow().clone()
    }

    fn note(&self, path: &Path) {
        let relative = path.strip_prefix(&self.path).unwrap_or(path);
        self.written.borrow_mut().push(relative.to_owned());
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn metadata_path(&self, name: &str) -> PathBuf {
        self.path.join("metadata").join(name)
    }

    pub(super) fn pending_path(&self) -> PathBuf {
        self.path.join("pending")
    }

    /// A metadata file, or `None` if it is not there.
    pub(super) fn read_metadata(&self, name: &str) -> Result<Option<Vec<u8>>, PublishError> {
        read_bounded(&self.metadata_path(name), MAX_TARGETS)
    }

    /// Writes a metadata file durably and in one step.
    pub(super) fn write_metadata(&self, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let path = self.metadata_path(name);
        replace_file(&path, SERVED, bytes).map_err(PublishError::file("write", &path))?;
        self.note(&path);
        Ok(())
    }

    /// The names of the changes that wait for signatures.
    pub(super) fn pending_ids(&self) -> Result<Vec<String>, PublishError> {
        let id = |name: &str| (name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(());
        names_in(&self.pending_path(), |name| id(name).is_some())
    }

    /// The names of the files of a waiting change.
    pub(super) fn pending_files(&self, id: &str) -> Result<Vec<String>, PublishError> {
        names_in(&self.pending_path().join(id), |name| name.ends_with(".json"))
    }

    /// A file of a waiting change.
    pub(super) fn read_pending(&self, id: &str, name: &str, limit: u64) -> Result<Option<Vec<u8>>, PublishError> {
        read_bounded(&self.pending_path().join(id).join(name), limit)
    }

    pub(super) fn write_pending(&self, id: &str, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let folder = self.pending_path().join(id);
        fs::create_dir_all(&folder).map_err(PublishError::file("make", &folder))?;
        let path = folder.join(name);
        replace_file(&path, SERVED, bytes).map_err(PublishError::file("write", &path))
    }

    /// Removes a waiting change, its description first: what is left of a removal that was interrupted is no change.
    pub(super) fn clear_pending(&self, id: &str) -> Result<(), PublishError> {
        let folder = self.pending_path().join(id);
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let remove = || {
            gone(fs::remove_file(folder.join("change.json")))?;
            gone(fs::remove_dir_all(&folder))
        };
        remove().map_err(PublishError::file("remove", &folder))?;
        // Only an empty one goes.
        let _ = fs::remove_dir(self.pending_path());
        Ok(())
    }

    /// Reads a target, of which no more than `limit` bytes are accepted, and checks that it is what its name says.
    pub(super) fn read_target(
        &self,
        target: &TargetPath,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, PublishError> {
        let path = self.target_path(target, digest);
        let missing = || PublishError::broken(target.to_string(), "its file is missing");
        let bytes = read_bounded(&path, limit)?.ok_or_else(missing)?;
        if Digest::from(bascule_image::Sha256::of(&bytes)) != *digest {
            return Err(PublishError::broken(target.to_string(), "its content is not the signed one"));
        }
        Ok(bytes)
    }

    /// Where a target with this digest lies (TUF 1.0, 6.2).
    pub(super) fn target_path(&self, target: &TargetPath, digest: &Digest) -> PathBuf {
        let text = target.as_str();
        let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
        self.path.join("targets").join(folder).join(format!("{}.{name}", hex::encode(digest.to_bytes())))
    }

    /// The same, relative to the folder.
    pub(super) fn relative_target_path(&self, target: &TargetPath, digest: &Digest) -> PathBuf {
        let path = self.target_path(target, digest);
        path.strip_prefix(&self.path).unwrap_or(&path).to_owned()
    }

    /// Puts bytes in place as a target. One that is there with the right length stays: its name is its digest.
    pub(super) fn write_target(&self, target: &TargetPath, digest: &Digest, bytes: &[u8]) -> Result<(), PublishError> {
        let path = self.target_path(target, digest);
        let folder = make_parent(&path)?;
        replace_file(&path, SERVED, bytes).map_err(PublishError::file("write", &path))?;
        self.note(&path);
        sync_folder(&folder)
    }

    /// Copies a file in place as a target, and says what it is. The digest is that of the bytes that were copied.
    pub(super) fn copy_target(&self, target: &TargetPath, from: &Path) -> Result<(Digest, u64), PublishError> {
        let folder = make_parent(&self.path.join("targets").join(target.as_str()))?;
        let copy = || -> io::Result<(tempfile::NamedTempFile, Digest, u64)> {
            let mut source = File::open(from)?;
            let mut out = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempfile_in(&folder)?;
            let mut digest = Sha256Stream::new();
            let mut buffer = vec![0; 1 << 20];
            let mut length = 0;
            loop {
                let count = source.read(&mut buffer)?;
                let piece = buffer.get(..count).unwrap_or_default();
                if piece.is_empty() {
                    break;
                }
                digest.update(piece);
                out.write_all(piece)?;
                length += piece.len() as u64;
            }
            out.as_file().set_permissions(fs::Permissions::from_mode(SERVED))?;
            out.as_file().sync_all()?;
            Ok((out, digest.finish().into(), length))
        };
        let (out, digest, length) = copy().map_err(PublishError::file("copy", from))?;
        let path = self.target_path(target, &digest);
        out.persist(&path).map_err(|error| PublishError::file("write", &path)(error.error))?;
        self.note(&path);
        sync_folder(&folder)?;
        Ok((digest, length))
    }

    /// The files in `metadata/`.
    pub(super) fn metadata_files(&self) -> Result<Vec<MetadataFile>, PublishError> {
        let folder = self.path.join("metadata");
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(PublishError::file("read", &folder))? {
            let entry = entry.map_err(PublishError::file("read", &folder))?;
            let path = entry.path();
            let metadata = entry.metadata().map_err(PublishError::file("read", &path))?;
            let modified = metadata.modified().map_err(PublishError::file("read", &path))?.into();
            if let Some(name) = entry.file_name().to_str().filter(|_| metadata.is_file()) {
                let path = Path::new("metadata").join(name);
                files.push(MetadataFile { name: name.to_owned(), path, bytes: metadata.len(), modified });
            }
        }
        Ok(files)
    }

    /// What publishers that were killed had begun to write to `metadata/`.
    pub(super) fn unfinished_metadata(&self) -> Result<Vec<Unnamed>, PublishError> {
        let unfinished = self.metadata_files()?.into_iter().filter(|file| file.name.starts_with(SCRATCH_PREFIX));
        Ok(unfinished.map(|file| Unnamed { path: file.path, bytes: file.bytes }).collect())
    }

    /// The files in `targets/` that publishing makes: those whose name begins with a digest, and what a publisher that was
    /// killed had begun to write.
    pub(super) fn published_files(&self) -> Result<Vec<Unnamed>, PublishError> {
        let mut files = Vec::new();
        let mut folders = vec![self.path.join("targets")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(PublishError::file("read", &folder))? {
                let entry = entry.map_err(PublishError::file("read", &folder))?;
                let path = entry.path();
                let metadata = entry.metadata().map_err(PublishError::file("read", &path))?;
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() && entry.file_name().to_str().is_some_and(is_ours) {
                    let path = path.strip_prefix(&self.path).unwrap_or(&path).to_owned();
                    files.push(Unnamed { path, bytes: metadata.len() });
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Removes files, and the folders below `targets/` that they leave empty.
    pub(super) fn remove<'a>(&self, files: impl Iterator<Item = &'a Path>) -> Result<(), PublishError> {
        let targets = self.path.join("targets");
        for relative in files {
            let path = self.path.join(relative);
            fs::remove_file(&path).map_err(PublishError::file("remove", &path))?;
            let above =
                path.ancestors().skip(1).take_while(|folder| folder.starts_with(&targets) && *folder != targets);
            for folder in above {
                // One that is not empty stays, and so does what lies above it.
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether a target's file is there with this length.
    pub(super) fn has_target(&self, target: &TargetPath, digest: &Digest, length: u64) -> bool {
        fs::metadata(self.target_path(target, digest)).is_ok_and(|metadata| metadata.len() == length)
    }
}

/// A file in `metadata/`.
pub(super) struct MetadataFile {
    pub(super) name: String,
    /// Relative to the repository folder.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) modified: DateTime<Utc>,
}

fn is_ours(name: &str) -> bool {
    let digest = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.starts_with(SCRATCH_PREFIX) || name.split_once('.').is_some_and(|(first, _)| digest(first))
}

/// Names of the entries of a folder that are wanted, sorted; none where there is no folder.
fn names_in(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, PublishError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PublishError::file("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(PublishError::file("read", folder))?;
        names.extend(entry.file_name().to_str().filter(|name| wanted(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn make_parent(path: &Path) -> Result<PathBuf, PublishError> {
    let parent = path.parent().unwrap_or(path).to_owned();
    fs::create_dir_all(&parent).map_err(PublishError::file("make", &parent))?;
    Ok(parent)
}

fn sync_folder(path: &Path) -> Result<(), PublishError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(PublishError::file("sync", path))
}

fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, PublishError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PublishError::file("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(PublishError::file("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(PublishError::broken(path.display().to_string(), format!("it is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}
