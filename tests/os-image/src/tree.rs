//! Packages to a root tree, by the two files with which the example in `examples/debian/` does it: mmdebstrap installs them with
//! their scripts, then everything that only a package manager needs is taken out again, because these hosts are replaced and
//! never changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::{Archive, Contents, Error, Recipe, archive, tool};

/// A package in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Debian's binary package name.
    pub name: String,
    /// Debian's version.
    pub version: String,
    /// Debian's architecture.
    pub architecture: String,
}

/// What installs packages, and what takes out again that only a package manager needs: the example's, as they stand.
const INSTALL: &str = "examples/debian/install-packages";
/// See [`INSTALL`].
const STRIP: &str = "examples/debian/strip-root";

/// A tree of packages, before a recipe's own files are put in.
#[derive(Debug)]
pub(crate) struct Tree {
    folder: PathBuf,
}

impl Tree {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// A file of kernel or boot loader, unpacked beside the root.
    pub(crate) fn boot_file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn packages(&self) -> PathBuf {
        self.folder.join("packages.json")
    }
}

/// Installs the recipe's packages and kernel into `tree`, as the example of the workspace at `workspace` does; `downloads` keeps
/// what was fetched.
pub(crate) fn install(recipe: &Recipe, tree: &Tree, workspace: &Path, downloads: &Path) -> Result<(), Error> {
    let work = &tree.folder;
    fs::create_dir_all(work).map_err(Error::io(work))?;
    let sources = work.join("archive.sources");
    let text = archive::sources(Path::new("/etc"), recipe.distribution, recipe.archive)?;
    fs::write(&sources, text).map_err(Error::io(&sources))?;
    let codename = recipe.distribution.codename();
    let kernel = match recipe.kernel.archive {
        Archive::Release => format!("{}/{codename}", recipe.kernel.package),
        Archive::Updates => recipe.kernel.package.to_owned(),
    };
    let mut command = Command::new(workspace.join(INSTALL));
    command
        .env("DEBIAN_SOURCES", &sources)
        .env("DEBIAN_DOWNLOADS", downloads)
        .args([codename, &kernel, &recipe.packages.join(",")])
        .arg(work);
    tool::run(&format!("installing packages for {} {}", recipe.product, recipe.version), &mut command)?;
    remember_packages(tree)?;
    tool::run("taking out what only a package manager needs", Command::new(workspace.join(STRIP)).arg(tree.root()))
        .map(drop)
}

fn remember_packages(tree: &Tree) -> Result<(), Error> {
    let listed = tree.folder.join("packages.list");
    let listed = fs::read_to_string(&listed).map_err(Error::io(&listed))?;
    let mut packages: Vec<Package> = listed
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            Some(Package {
                name: fields.next()?.to_owned(),
                version: fields.next()?.to_owned(),
                architecture: fields.next()?.to_owned(),
            })
        })
        .collect();
    let control = tree.folder.join("kernel.control");
    let text = fs::read_to_string(&control).map_err(Error::io(&control))?;
    let field = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.map(str::to_owned).ok_or_else(|| Error::Unexpected { what: name.to_owned(), detail: text.clone() })
    };
    packages.push(Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
    });
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    let path = tree.packages();
    let json = serde_json::to_vec_pretty(&packages).map_err(|error| Error::io(&path)(error.into()))?;
    fs::write(&path, json).map_err(Error::io(path))
}

/// Removes `path` below `root`; a trailing `*` means everything whose path begins so.
pub(crate) fn remove(root: &Path, path: &str) -> Result<(), Error> {
    let Some(prefix) = path.strip_suffix('*') else {
        return remove_one(&root.join(path));
    };
    let (folder, start) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    let folder = root.join(folder);
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(Error::io(&folder))?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            remove_one(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_one(path: &Path) -> Result<(), Error> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(Error::io(path))
}

/// Puts the recipe's own files into a tree.
pub(crate) fn finish(recipe: &Recipe, root: &Path) -> Result<(), Error> {
    recipe.without.iter().try_for_each(|path| remove(root, path))?;
    let os_release = root.join("usr/lib/os-release");
    fs::write(&os_release, recipe.os_release()).map_err(Error::io(os_release))?;
    for file in &recipe.files {
        let path = root.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        if file.contents != Contents::Folder {
            remove_one(&path)?;
        }
        match &file.contents {
            Contents::Text(text) => fs::write(&path, text),
            Contents::Bytes(bytes) => fs::write(&path, bytes),
            Contents::Copy { from, .. } => fs::copy(from, &path).map(drop),
            Contents::Link(target) => std::os::unix::fs::symlink(target, &path),
            Contents::Folder => fs::create_dir_all(&path),
        }
        .map_err(Error::io(&path))?;
        if !matches!(file.contents, Contents::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}
