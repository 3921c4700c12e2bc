//! Packages to a root tree: mmdebstrap installs them with their scripts, then everything that only a package
//! manager needs is taken out again, because these hosts are replaced and never changed.

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

/// Fixed date for whatever a package script stamps into a file (seconds since 1970; 2025-01-01).
const SOURCE_DATE_EPOCH: &str = "1735689600";

/// What a host that is replaced as a whole does not need at run time. `%` ends a prefix.
const STRIPPED: [&str; 40] = [
    "boot/%",
    "etc/apt",
    "etc/dpkg",
    "etc/kernel",
    "etc/logrotate.d",
    "etc/cron.daily",
    "etc/hostname",
    "etc/resolv.conf",
    "initrd.img%",
    "vmlinuz%",
    "usr/bin/apt%",
    "usr/bin/debconf%",
    "usr/bin/dpkg%",
    "usr/bin/perl%",
    "usr/include",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/kernel",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/x86_64-linux-gnu/libapt-%",
    "usr/sbin/dpkg%",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/debconf",
    "usr/share/doc",
    "usr/share/dpkg",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "usr/share/zsh",
    "var/cache/%",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/lib/systemd/deb-systemd-helper-enabled",
    "var/log/%",
    "tmp/%",
];

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

    /// Kernel and boot loader, unpacked beside the root.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(crate) fn boot_loader(&self) -> PathBuf {
        self.folder.join("boot-loader/usr/lib/systemd/boot/efi")
    }

    pub(crate) fn packages(&self) -> PathBuf {
        self.folder.join("packages.json")
    }
}

/// Installs the recipe's packages and kernel into `tree`; `downloads` keeps what was fetched.
pub(crate) fn install(recipe: &Recipe, tree: &Tree, downloads: &Path) -> Result<(), Error> {
    let work = &tree.folder;
    fs::create_dir_all(work).map_err(Error::io(work))?;
    fs::create_dir_all(downloads).map_err(Error::io(downloads))?;
    let sources = work.join("archive.sources");
    let text = archive::sources(Path::new("/etc"), recipe.distribution, recipe.archive)?;
    fs::write(&sources, text).map_err(Error::io(&sources))?;

    let script = work.join("fetch-kernel.sh");
    fs::write(&script, fetch_kernel(recipe, downloads)).map_err(Error::io(&script))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(Error::io(&script))?;

    let archives = "\"$1\"/var/cache/apt/archives";
    let linked_in = format!(
        "mkdir -p {archives} && find '{}' -maxdepth 1 -name '*.deb' -exec cp -fl -t {archives} {{}} +",
        downloads.display()
    );
    let linked_out =
        format!("find {archives} -maxdepth 1 -name '*.deb' -exec cp -fl -t '{}' {{}} +", downloads.display());
    let mut command = Command::new("mmdebstrap");
    command
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .args(["--mode=root", "--variant=essential", "--format=directory", "--dpkgopt=force-unsafe-io"])
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--aptopt=APT::Install-Recommends \"false\""])
        .args(["--aptopt=Acquire::Languages \"none\"", "--skip=download/empty,essential/unlink"])
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg(format!("--setup-hook={linked_in}"))
        .arg(format!("--customize-hook={linked_out}"))
        .arg(format!("--customize-hook='{}' \"$1\" '{}'", script.display(), work.display()))
        .arg(recipe.distribution.codename())
        .arg(tree.root())
        .arg(&sources);
    tool::run(&format!("installing packages for {} {}", recipe.product, recipe.version), &mut command)?;
    remember_packages(tree)?;
    STRIPPED.iter().try_for_each(|path| remove(&tree.root(), path))?;
    // Empty, not missing: systemd then makes one up for each boot, over a read-only root.
    let machine_id = tree.root().join("etc/machine-id");
    fs::write(&machine_id, "").map_err(Error::io(machine_id))
}

/// A script run by mmdebstrap while its apt is still there: the kernel is unpacked, not installed, since its
/// scripts would build an initrd that nobody uses.
fn fetch_kernel(recipe: &Recipe, downloads: &Path) -> String {
    let suite = match recipe.kernel.archive {
        Archive::Release => format!("/{}", recipe.distribution.codename()),
        Archive::Updates => String::new(),
    };
    format!(
        r#"#!/bin/sh
set -eu
root=$1 work=$2
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
# A folder for each: what lands in it is the file, whatever its version. apt takes it from its cache if it is there.
fetch() {{
  folder=$(mktemp -d -p "$work")
  (cd "$folder" && apt-get -qq -oAPT::Sandbox::User=root download "$1")
  cp -fl "$folder"/*.deb '{downloads}'
  echo "$folder"/*.deb
}}
meta=$(fetch '{package}{suite}')
kernel=$(dpkg-deb -f "$meta" Depends | tr ',' '\n' | sed -n 's/^ *\(linux-image-[^ ]*\) (= \([^)]*\)).*/\1=\2/p' | head -n1)
image=$(fetch "$kernel")
dpkg-deb -x "$image" "$root"
dpkg-deb -f "$image" Package Version Architecture > "$work/kernel.control"
mv "$root"/boot/vmlinuz-* "$work/vmlinuz"
for modules in "$root"/usr/lib/modules/* "$root"/lib/modules/*; do
  [ ! -d "$modules/kernel" ] || chroot "$root" depmod "$(basename "$modules")"
done
loader=$(fetch systemd-boot-efi)
dpkg-deb -x "$loader" "$work/boot-loader"
"#,
        downloads = downloads.display(),
        package = recipe.kernel.package,
    )
}

fn remember_packages(tree: &Tree) -> Result<(), Error> {
    let mut command = Command::new("dpkg-query");
    command
        .arg(format!("--admindir={}", tree.root().join("var/lib/dpkg").display()))
        .args(["-W", "-f=${Package}\t${Version}\t${Architecture}\n"]);
    let listed = tool::run("listing the packages", &mut command)?;
    let mut packages: Vec<Package> = String::from_utf8_lossy(&listed.stdout)
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

/// Removes `path` below `root`; a trailing `%` means everything whose path begins so.
pub(crate) fn remove(root: &Path, path: &str) -> Result<(), Error> {
    let Some(prefix) = path.strip_suffix('%') else {
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
