//! Folders with what is in them.

use std::{fs, io, path::Path};

/// Copies a folder with all that is below it; what is there already under the same name is written over.
///
/// # Errors
/// What the file system says, with the path.
pub fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
    };
    fs::create_dir_all(to).map_err(named(to))?;
    for entry in fs::read_dir(from).map_err(named(from))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).map_err(named(&target))?;
        }
    }
    Ok(())
}
