//! Carries changes of what boots out. Each looks first whether it finds what is expected, is durable when it returns, and is
//! looked for afterwards. At every instant something boots: the old release or the new one, whole.

use bascule_api::BootControlBackend;

use super::error::esp;
use super::files::{self, read_content};
use super::{BootError, BootFolder};
use crate::core::boot::{Attributes, BootChange, BootPartition, Expected, FileContent};
use crate::gpt::{Change, Table};
use crate::host::Host;
use crate::observe::RunningSlots;

/// Carries changes out in order; the first that fails ends them.
///
/// # Errors
/// [`BootError::Unexpected`] when something else is found than was expected: that change was not begun.
pub fn apply(
    host: &Host,
    backend: BootControlBackend,
    slots: &RunningSlots,
    changes: &[BootChange],
) -> Result<(), BootError> {
    for (at, change) in changes.iter().enumerate() {
        match change {
            BootChange::Rename { partition, from, to, expect } => {
                let folder = BootFolder::on(host, backend, *partition)?;
                find(&folder, from, expect, false)?;
                let (from_path, to_path) = (folder.path(from), folder.path(to));
                folder.esp.rename(&from_path, &to_path).map_err(esp("renaming", &from_path))?;
                folder.esp.sync().map_err(esp("syncing", &to_path))?;
                moved(&folder, from, to, expect)?;
            }
            BootChange::PutInPlace { partition, from, to, expect } => {
                let folder = BootFolder::on(host, backend, *partition)?;
                find(&folder, from, expect, false)?;
                files::put_in_place(&*folder.esp, &folder.path(from), &folder.path(to))?;
                moved(&folder, from, to, expect)?;
            }
            BootChange::Remove { .. } => {
                // Several removals are one change, and are looked at before the first: they may be one file under several
                // names, of which nothing is left to be seen once one of them is gone.
                let before = at.checked_sub(1).and_then(|at| changes.get(at));
                if !matches!(before, Some(BootChange::Remove { .. })) {
                    let more = changes.iter().skip(at).map_while(removal);
                    remove(host, backend, &more.collect::<Vec<_>>())?;
                }
            }
            BootChange::Copy { partition, from, to, expect } => {
                let folder = BootFolder::on(host, backend, *partition)?;
                find(&folder, from, expect, true)?;
                files::copy_of(&*folder.esp, &folder.path(from), &folder.path(to))?;
            }
            BootChange::Attributes(wanted) => set_attributes(host, slots, wanted)?,
        }
    }
    Ok(())
}

type Removal<'c> = (BootPartition, &'c str, &'c Expected);

fn removal(change: &BootChange) -> Option<Removal<'_>> {
    match change {
        BootChange::Remove { partition, file, expect } => Some((*partition, file, expect)),
        _ => None,
    }
}

fn remove(host: &Host, backend: BootControlBackend, removals: &[Removal<'_>]) -> Result<(), BootError> {
    for (partition, file, expect) in removals {
        find(&BootFolder::on(host, backend, *partition)?, file, expect, true)?;
    }
    for (partition, file, _) in removals {
        let folder = BootFolder::on(host, backend, *partition)?;
        let path = folder.path(file);
        folder.esp.remove(&path).map_err(esp("removing", &path))?;
    }
    sync(host, backend)?;
    for (partition, file, _) in removals {
        let folder = BootFolder::on(host, backend, *partition)?;
        if size_of(&folder, file)?.is_some() {
            return Err(BootError::Unexpected { path: folder.path(file), reason: "it is still there".to_owned() });
        }
    }
    Ok(())
}

/// Makes everything on the boot partitions durable.
///
/// # Errors
/// A file system failed.
pub fn sync(host: &Host, backend: BootControlBackend) -> Result<(), BootError> {
    for folder in BootFolder::all(host, backend) {
        folder.esp.sync().map_err(esp("syncing", folder.directory))?;
    }
    Ok(())
}

fn size_of(folder: &BootFolder, file: &str) -> Result<Option<u64>, BootError> {
    let files = folder.esp.list(folder.directory).map_err(esp("listing", folder.directory))?;
    Ok(files.into_iter().find(|found| found.name == file).map(|found| found.size))
}

/// Looks whether a file is what is expected.
fn find(folder: &BootFolder, file: &str, expect: &Expected, whole: bool) -> Result<(), BootError> {
    let path = folder.path(file);
    let unexpected = |reason: String| Err(BootError::Unexpected { path: path.clone(), reason });
    match size_of(folder, file)? {
        None => return unexpected("it is gone".to_owned()),
        Some(size) if size != expect.size => return unexpected(format!("it has {size} bytes, not {}", expect.size)),
        Some(_) => {}
    }
    // What could not be read then is taken by name and length, and by the record that says whose it is.
    if !matches!(expect.content, FileContent::Unread(_)) && read_content(folder, file)? != expect.content {
        return unexpected("its content changed".to_owned());
    }
    if let Some(digest) = expect.digest.as_ref().filter(|_| whole)
        && files::digest(&*folder.esp, &path)?.0 != *digest
    {
        return unexpected("its content changed".to_owned());
    }
    Ok(())
}

/// Looks whether a file is where it was moved to.
fn moved(folder: &BootFolder, from: &str, to: &str, expect: &Expected) -> Result<(), BootError> {
    let arrived = size_of(folder, to)? == Some(expect.size);
    let left = from.eq_ignore_ascii_case(to) || size_of(folder, from)?.is_none();
    if arrived && left {
        return Ok(());
    }
    let reason = format!("it was renamed from {from}, and that is not what is there now");
    Err(BootError::Unexpected { path: folder.path(to), reason })
}

/// Sets boot attributes of both slots in one change of the table.
fn set_attributes(
    host: &Host,
    slots: &RunningSlots,
    wanted: &[(bascule_api::SlotName, Attributes)],
) -> Result<(), BootError> {
    let mut table = Table::read(&*host.disk)?;
    let mut changed = false;
    for (slot, attributes) in wanted {
        let partition = &slots.partitions.get(*slot).0;
        changed |= Attributes::of(partition.attributes) != *attributes;
        let change = Change { set: attributes.bits(), clear: Attributes::ALL, ..Change::default() };
        table.change(partition.number, &change)?;
    }
    if changed { Ok(table.write(&*host.disk)?) } else { Ok(()) }
}
