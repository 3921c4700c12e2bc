//! Root tree to EROFS: without compression, so that a delta finds again what did not change, and the same bytes
//! for the same tree.

use std::path::Path;
use std::process::Command;

use crate::{Error, tool};

/// Identifies nothing: a fixed UUID keeps the image reproducible.
const FIXED_UUID: &str = "6a4b0b5c-0000-4000-8000-000000000000";

/// Writes the tree at `root` as an EROFS image to `image`. Owners and modes are kept; times are not.
pub(crate) fn write(root: &Path, image: &Path) -> Result<(), Error> {
    let mut command = Command::new("mkfs.erofs");
    command.args(["-T0", "-U", FIXED_UUID, "-x1", "--quiet"]).arg(image).arg(root);
    tool::run("writing the root as EROFS", &mut command).map(drop)
}
