//! From a root tree to a file system image that depends on the tree alone: EROFS, not compressed (deltas find nothing in
//! compressed data, and packs are compressed on their way), fixed time stamps and UUID.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use uuid::Uuid;

/// Makes an EROFS image of `tree` with mkfs.erofs.
pub(crate) fn make_erofs(tree: &Path, image: &Path, uuid: Uuid, time: u64) -> anyhow::Result<()> {
    ensure!(tree.is_dir(), "{} is no folder; --root takes the root tree of the OS", tree.display());
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", &format!("-T{time}"), &format!("-U{uuid}")]);
    command.args([image.as_os_str().to_owned(), OsString::from(tree)]);
    // A locale must not change the order of names.
    command.env("LC_ALL", "C");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("mkfs.erofs is not there; install erofs-utils (apt install erofs-utils), or give a ready --image")
        }
        Err(error) => return Err(error).context("can't run mkfs.erofs"),
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        bail!("mkfs.erofs failed on {} ({}): {last}", tree.display(), output.status);
    }
    Ok(())
}
