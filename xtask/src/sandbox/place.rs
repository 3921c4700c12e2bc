//! The sandbox's folder: one sandbox at a time in it, enough room, nothing left of the last run but its report.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, anyhow, bail};

/// Room for two copies of four releases, the control plane's data and logs, with a margin.
const SHARED_MIB: u64 = 1536;
/// A machine's disk when every block of it was written, and its logs.
const MACHINE_MIB: u64 = 512;
/// What a member of etcd and the logs of a control plane take on top of a machine.
const CONTROL_PLANE_MIB: u64 = 512;
/// The memory of a control plane: an API server above all.
const CONTROL_PLANE_MEMORY_MIB: u64 = 768;

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the folder, making it if needed, for this many machines, so many of which carry a control plane.
    ///
    /// # Errors
    /// Another sandbox uses it, it can't be made, or there is no room.
    pub(crate) fn take(folder: &Path, machines: u16, control_planes: u16) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("cannot use the folder {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))
            .with_context(|| format!("cannot write into the folder {}", folder.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another sandbox runs in {}: end it, or give this one its own --folder", folder.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock the folder {}", folder.display()));
            }
        }
        check_room(&folder, machines, control_planes)?;
        enough_memory(control_planes, memory_available())?;
        let place = Self { folder, _lock: lock };
        // What an earlier run left when even its cleaning up was killed.
        for name in ["run", "report.json", "report.txt", "transcript.txt"] {
            place.remove(name)?;
        }
        fs::create_dir(place.run()).with_context(|| format!("cannot make {}", place.run().display()))?;
        Ok(place)
    }

    /// What went wrong beside the story goes to `sandbox.log`, not between the lines of the table.
    ///
    /// # Errors
    /// The file can't be made, or somebody else listens to this process's traces.
    pub(crate) fn keep_log(&self) -> anyhow::Result<()> {
        let path = self.file("sandbox.log");
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // Clients log each refused connection as an error, and API servers are asked four times a second while they are down.
        let wanted = tracing_subscriber::EnvFilter::new("info,kube_client::client::builder=off");
        let traces = tracing_subscriber::fmt().with_ansi(false).with_env_filter(wanted);
        traces.with_writer(Mutex::new(file)).try_init().map_err(|error| anyhow!("cannot keep a log: {error}"))
    }

    /// Things that live as long as this run.
    pub(crate) fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// A file that stays after the run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {} of an earlier run", path.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.remove("run") {
            tracing::warn!(%error, "the sandbox left files behind");
        }
    }
}

fn check_room(folder: &Path, machines: u16, control_planes: u16) -> anyhow::Result<()> {
    let free = |place: &Path| -> anyhow::Result<u64> {
        let system = rustix::fs::statvfs(place).with_context(|| format!("cannot look at {}", place.display()))?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize) >> 20)
    };
    enough_room(folder, machines, control_planes, free(folder)?)?;
    // What etcd and the API servers keep lies there, which may be another file system.
    let temporary = std::env::temp_dir();
    enough_for_control_planes(&temporary, control_planes, free(&temporary)?)
}

/// `MemAvailable` of proc_meminfo(5) in MiB, where it can be read.
fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}

fn enough_memory(control_planes: u16, available: Option<u64>) -> anyhow::Result<()> {
    let needed = u64::from(control_planes) * CONTROL_PLANE_MEMORY_MIB;
    match available {
        Some(available) if available < needed => bail!(
            "{control_planes} control planes need {needed} MiB of memory, {available} MiB are available: end other \
             programs, or leave --control-planes out"
        ),
        _ => Ok(()),
    }
}

fn enough_room(folder: &Path, machines: u16, control_planes: u16, free: u64) -> anyhow::Result<()> {
    let needed = SHARED_MIB + u64::from(machines) * MACHINE_MIB + u64::from(control_planes) * CONTROL_PLANE_MIB;
    if free < needed {
        bail!(
            "the sandbox needs {needed} MiB of room in {}, {free} MiB are free: free some, or give another --folder",
            folder.display()
        );
    }
    Ok(())
}

fn enough_for_control_planes(folder: &Path, control_planes: u16, free: u64) -> anyhow::Result<()> {
    let needed = u64::from(control_planes) * CONTROL_PLANE_MIB;
    if free < needed {
        bail!(
            "{control_planes} control planes need {needed} MiB of room in {}, {free} MiB are free: free some, or name \
             another folder in TMPDIR",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_sandbox_in_the_same_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Place::take(folder.path(), 5, 0).unwrap();
        fs::write(first.run().join("disk"), "x").unwrap();
        let refused = Place::take(folder.path(), 5, 0).unwrap_err().to_string();
        assert!(refused.contains("another sandbox runs in"), "{refused}");
        drop(first);
        assert!(!folder.path().join("run").exists());
        Place::take(folder.path(), 5, 0).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_before_anything_is_written() {
        enough_room(Path::new("/srv"), 5, 0, 4096).unwrap();
        let refused = enough_room(Path::new("/srv"), 5, 0, 4095).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the sandbox needs 4096 MiB of room in /srv, 4095 MiB are free: free some, or give another --folder"
        );
        enough_room(Path::new("/srv"), 6, 0, 4096).unwrap_err();
        enough_room(Path::new("/srv"), 5, 3, 4096).unwrap_err();
        enough_for_control_planes(Path::new("/tmp"), 3, 1536).unwrap();
        let refused = enough_for_control_planes(Path::new("/tmp"), 3, 1535).unwrap_err().to_string();
        assert!(refused.contains("in /tmp, 1535 MiB are free") && refused.contains("TMPDIR"), "{refused}");
    }

    #[test]
    fn control_planes_need_memory() {
        enough_memory(3, Some(2304)).unwrap();
        enough_memory(3, None).unwrap();
        enough_memory(0, Some(0)).unwrap();
        let refused = enough_memory(3, Some(2303)).unwrap_err().to_string();
        assert!(refused.starts_with("3 control planes need 2304 MiB of memory, 2303 MiB are available"), "{refused}");
    }
}
