//! Where the boot partition is mounted, and on which disk it lies.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where a boot partition is usually mounted (Boot Loader Specification, "Mount points").
const USUAL: [&str; 3] = ["efi", "boot/efi", "boot"];

/// Why they are not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No boot partition.
    #[error("no boot partition is mounted at /efi, /boot/efi or /boot: mount it, or name it in boot.partition")]
    NoEsp,
    /// The disk below it can't be told.
    #[error("the disk with the boot partition at {} can't be told: name it in slots.disk", path.display())]
    Disk {
        /// Where the boot partition is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The first of the usual places that holds an `EFI` directory.
///
/// # Errors
/// None does.
pub fn find_esp(root: &Path) -> Result<PathBuf, FindError> {
    // Looking also makes an automount do its work.
    USUAL.iter().map(|place| root.join(place)).find(|path| path.join("EFI").is_dir()).ok_or(FindError::NoEsp)
}

/// The whole disk below the file system that is mounted at `mounted`.
///
/// # Errors
/// It is not on a partition of a disk.
pub fn find_disk(mounted: &Path) -> Result<PathBuf, FindError> {
    let failed = |source| FindError::Disk { path: mounted.to_owned(), source };
    let device = std::fs::metadata(mounted).map_err(failed)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let node = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize().map_err(failed)?;
    let on_partition = node.join("partition").exists();
    let disk = node.parent().and_then(Path::file_name).filter(|_| on_partition);
    let disk = disk.ok_or_else(|| failed(io::Error::other("it is not on a partition of a disk")))?;
    Ok(Path::new("/dev").join(disk))
}
