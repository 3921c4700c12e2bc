//! systemd-boot of another release of Debian than images are made of: what is on the disk of a machine that was installed long ago.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Archive, Distribution, Error, Store, archive, tool};

const PACKAGE: &str = "systemd-boot-efi";
/// Where the package has it.
const FILE: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Fetches systemd-boot for x86-64 from the main archive of a release of Debian, or finds it. Package lists stay in the store: the
/// machine's are not touched.
///
/// # Errors
/// [`Error`] when apt can't fetch it.
pub fn boot_loader_of(store: &Store, distribution: Distribution, say: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let codename = distribution.codename();
    let folder = store.folder().join("boot-loaders").join(codename);
    let kept = folder.join("systemd-bootx64.efi");
    if kept.exists() {
        return Ok(kept);
    }
    say(&format!("fetching the boot loader of Debian's {codename}"));
    let work = folder.with_extension("partial");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    }
    let lists = work.join("lists");
    for path in [&folder, &lists.join("partial")] {
        fs::create_dir_all(path).map_err(Error::io(path))?;
    }
    let sources = work.join("archive.sources");
    let text = archive::sources(Path::new("/etc"), distribution, Archive::Release)?;
    fs::write(&sources, text).map_err(Error::io(&sources))?;
    let apt = |step: &str, arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .current_dir(&work)
            .arg(format!("-oDir::Etc::sourcelist={}", sources.display()))
            .arg("-oDir::Etc::sourceparts=-")
            .arg(format!("-oDir::State::lists={}", lists.display()))
            // What the machine's own apt remembers of its own sources stays as it is.
            .args(["-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=", "-oAPT::Sandbox::User=root"])
            .args(["-q", "-oAcquire::Languages=none"])
            .args(arguments);
        tool::run(step, &mut command).map(drop)
    };
    apt("reading the package lists", &["update"])?;
    // With its suite: a machine of a later release has a newer one, which apt would rather have.
    apt("fetching the boot loader", &["download", &format!("{PACKAGE}/{codename}")])?;
    let package = package_in(&work)?;
    let tree = work.join("tree");
    tool::run("unpacking the boot loader", Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree))?;
    let found = tree.join(FILE);
    fs::rename(&found, &kept).map_err(Error::io(found))?;
    fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    Ok(kept)
}

fn package_in(folder: &Path) -> Result<PathBuf, Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    Err(Error::Unexpected { what: PACKAGE.to_owned(), detail: format!("apt left no package in {}", folder.display()) })
}
