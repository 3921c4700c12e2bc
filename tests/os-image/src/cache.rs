//! Folders named by the hash of what went in: found again while nothing changes, and thrown away once others have been
//! used since. Each change of the agent makes every image anew, so without this a day's work fills a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::Error;

/// Notes that a folder of the cache is used now.
///
/// # Errors
/// [`Error::Io`] when it is not there or not ours.
pub fn used(folder: &Path) -> Result<(), Error> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let now = Timestamps { last_access: now, last_modification: now };
    utimensat(CWD, folder, &now, AtFlags::empty()).map_err(|error| Error::io(folder)(error.into()))
}

/// Removes all but the `most` folders of `cache` that were used last. What is not named by a hash is left alone.
///
/// # Errors
/// [`Error::Io`] when the cache can't be read or a folder can't be removed.
pub fn keep(cache: &Path, most: usize) -> Result<(), Error> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache).map_err(Error::io(cache))? {
        let entry = entry.map_err(Error::io(cache))?;
        if is_hash(&entry.file_name().to_string_lossy()) {
            let used = entry.metadata().and_then(|metadata| metadata.modified()).map_err(Error::io(entry.path()))?;
            found.push((used, entry.path()));
        }
    }
    found.sort();
    let surplus = found.len().saturating_sub(most);
    for (_, folder) in found.into_iter().take(surplus) {
        fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    Ok(())
}

/// Digest over source files, in hex: of what is made beside what goes in. Folders count with all that is below them, but for files
/// of tests. `paths` are those below `workspace`.
///
/// # Errors
/// [`Error::Io`] when one can't be read.
pub fn digest_of_sources(workspace: &Path, paths: &[&str]) -> Result<String, Error> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    while let Some(path) = open.pop() {
        let place = workspace.join(&path);
        if !place.is_dir() {
            files.push(path);
            continue;
        }
        for entry in fs::read_dir(&place).map_err(Error::io(&place))? {
            let name = entry.map_err(Error::io(&place))?.file_name();
            if !name.to_string_lossy().ends_with("tests.rs") {
                open.push(path.join(name));
            }
        }
    }
    files.sort();
    let mut all = digest::Context::new(&digest::SHA256);
    for path in files {
        let place = workspace.join(&path);
        let bytes = fs::read(&place).map_err(Error::io(&place))?;
        // The length parts one file from the next.
        all.update(format!("{} {}\n", path.display(), bytes.len()).as_bytes());
        all.update(&bytes);
    }
    Ok(hex::encode(all.finish()))
}

fn is_hash(name: &str) -> bool {
    name.len() >= 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_known_by_every_source_file_and_its_name_and_not_by_tests() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |paths: &[&str]| digest_of_sources(home.path(), paths).unwrap();
        write("src/one.rs", "1");
        write("src/deep/two.rs", "2");
        let first = of(&["src"]);
        assert_eq!(of(&["src"]), first);
        assert_eq!(of(&["src/deep/two.rs", "src/one.rs"]), first);
        write("src/deep/tests.rs", "a test");
        assert_eq!(of(&["src"]), first);
        write("src/deep/two.rs", "3");
        assert_ne!(of(&["src"]), first);
        write("src/deep/two.rs", "2");
        assert_eq!(of(&["src"]), first);
        fs::rename(home.path().join("src/one.rs"), home.path().join("src/other.rs")).unwrap();
        assert_ne!(of(&["src"]), first);
        assert!(digest_of_sources(home.path(), &["gone"]).is_err());
    }

    #[test]
    fn what_was_used_last_is_kept_and_what_is_no_cache_is_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let folder = |digit: &str| cache.path().join(digit.repeat(32));
        for digit in ["a", "b", "c"] {
            fs::create_dir(folder(digit)).unwrap();
            let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
            let old = Timestamps { last_access: old, last_modification: old };
            utimensat(CWD, folder(digit), &old, AtFlags::empty()).unwrap();
        }
        fs::create_dir(cache.path().join("trees")).unwrap();
        used(&folder("a")).unwrap();
        keep(cache.path(), 2).unwrap();
        let left = ["a", "b", "c"].map(|digit| folder(digit).exists());
        assert_eq!(left, [true, false, true]);
        keep(cache.path(), 0).unwrap();
        assert!(cache.path().join("trees").exists() && !folder("a").exists());
    }
}
