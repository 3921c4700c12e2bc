//! The root tree that an image is made of.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_image::uki::OsRelease;

use super::boot::identity;
use super::{
    DEVICE_NODES, EMPTY_TREE, Finding, NO_IDENTITY, NO_INIT, NO_MODULES, NO_ROOT_DRIVERS, OTHER_MODULES, Subject, host,
};

/// Longest list of modules that is read: Debian's generic kernel has 5,000 modules and 600 kB.
const MAX_LIST: u64 = 16 << 20;
/// What a root of the usual kind needs.
const ROOT_DRIVERS: [&str; 2] = ["erofs", "dm-verity"];

/// `kernel_release`: what `uname -r` prints, where it is known.
pub(crate) fn tree(
    root: &Path,
    os_release: Option<&str>,
    kernel_release: Option<&str>,
    subject: Subject<'_>,
) -> anyhow::Result<Vec<Finding>> {
    let mut entries = fs::read_dir(root).with_context(|| format!("can't read {}", root.display()))?;
    if entries.next().is_none() {
        return Ok(vec![EMPTY_TREE.found(format!("{} is empty", root.display()))]);
    }
    let mut findings = Vec::new();
    let os_release = OsRelease::parse(os_release.unwrap_or_default());
    if os_release.first(&["IMAGE_ID"]).is_none() || os_release.first(&["IMAGE_VERSION"]).is_none() {
        findings.push(NO_IDENTITY.found("the tree's os-release does not say IMAGE_ID and IMAGE_VERSION"));
    }
    findings.extend(identity("the tree's os-release", &os_release, subject));
    let inits = ["usr/lib/systemd/systemd", "lib/systemd/systemd", "usr/sbin/init", "sbin/init"];
    if !inits.iter().any(|path| fs::symlink_metadata(root.join(path)).is_ok()) {
        findings.push(NO_INIT.found("the tree has no init"));
    }
    findings.extend(host(root)?);
    findings.extend(modules(root, kernel_release)?);
    if let Some(path) = device_node(root)? {
        findings.push(DEVICE_NODES.found(format!("{} is a device node", path.display())));
    }
    Ok(findings)
}

fn modules(root: &Path, kernel_release: Option<&str>) -> anyhow::Result<Vec<Finding>> {
    let folders = ["usr/lib/modules", "lib/modules"].map(|path| root.join(path));
    let mut releases = Vec::new();
    for folder in &folders {
        // A link of a merged /usr, which may lead out of the tree, is not followed.
        let real = folder.parent().is_some_and(|parent| fs::symlink_metadata(parent).is_ok_and(|found| found.is_dir()));
        if !real || !fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))? {
            let path = entry.with_context(|| format!("can't read {}", folder.display()))?.path();
            if path.is_dir() {
                releases.push(path);
            }
        }
    }
    if releases.is_empty() {
        return Ok(vec![NO_MODULES.found("the tree has no kernel modules")]);
    }
    let Some(kernel) = kernel_release else { return Ok(Vec::new()) };
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(own) = releases.iter().find(|path| name(path) == kernel) else {
        let found: Vec<String> = releases.iter().map(name).collect();
        let text = format!("the kernel that boots is {kernel}, the tree has modules of {}", found.join(", "));
        return Ok(vec![OTHER_MODULES.found(text)]);
    };
    let mut lists = String::new();
    for list in ["modules.builtin", "modules.dep"] {
        if let Ok(file) = fs::File::open(own.join(list)) {
            let mut bytes = Vec::new();
            file.take(MAX_LIST).read_to_end(&mut bytes).with_context(|| format!("can't read {list}"))?;
            lists.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    let missing: Vec<&str> =
        ROOT_DRIVERS.into_iter().filter(|driver| !lists.contains(&format!("/{driver}.ko"))).collect();
    if lists.is_empty() || missing.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![NO_ROOT_DRIVERS.found(format!("kernel {kernel} has no {}", missing.join(" and no ")))])
}

/// The first device node of a tree.
fn device_node(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))? {
            let entry = entry.with_context(|| format!("can't read {}", folder.display()))?;
            let kind = entry.file_type().with_context(|| format!("can't read {}", entry.path().display()))?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                return Ok(Some(path.strip_prefix(root).unwrap_or(&path).to_owned()));
            }
        }
    }
    Ok(None)
}
