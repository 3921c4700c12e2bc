//! The root tree that an image is made of.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_image::release::manifest::MAX_IMAGE_SIZE;
use bascule_image::uki::OsRelease;

use super::boot::identity;
use super::{
    DEVICE_NODES, EMPTY_TREE, Finding, NO_IDENTITY, NO_INIT, NO_MODULES, NO_ROOT_DRIVERS, OTHER_MODULES, SPARSE_FILE,
    Subject, TREE_TOO_LARGE, host,
};

/// Longest list of modules that is read: Debian's generic kernel has 5,000 modules and 600 kB.
const MAX_LIST: u64 = 16 << 20;
/// A file of which holes are told: shorter ones cost nothing worth a word.
const LONG_FILE: u64 = 64 << 20;
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
    findings.extend(files(root)?);
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

/// What is odd about the files: the first device node, the first that is mostly holes, and all of them where they are too much.
fn files(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let (mut device, mut sparse, mut total) = (None, None, 0_u64);
    // Names of one file count once, as in the image.
    let mut seen = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))? {
            let entry = entry.with_context(|| format!("can't read {}", folder.display()))?;
            let path = entry.path();
            let found = entry.metadata().with_context(|| format!("can't read {}", path.display()))?;
            let place = || path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let kind = found.file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                device.get_or_insert_with(|| DEVICE_NODES.found(format!("{} is a device node", place())));
            } else if kind.is_file() && (found.nlink() == 1 || seen.insert((found.dev(), found.ino()))) {
                total = total.saturating_add(found.len());
                let used = found.blocks().saturating_mul(512);
                if found.len() >= LONG_FILE && used < found.len() / 2 {
                    let (length, used) = (found.len() >> 20, used.div_ceil(1 << 20));
                    sparse.get_or_insert_with(|| {
                        SPARSE_FILE.found(format!("{} has {length} MiB, of which {used} are in use", place()))
                    });
                }
            }
        }
    }
    let large = (total > MAX_IMAGE_SIZE).then(|| {
        TREE_TOO_LARGE.found(format!(
            "the files of the tree have {} GiB, an image at most {}",
            total.div_ceil(1 << 30),
            MAX_IMAGE_SIZE >> 30
        ))
    });
    Ok([large, device, sparse].into_iter().flatten().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    fn told(root: &Path) -> Vec<(u16, String)> {
        files(root).unwrap().into_iter().map(|finding| (finding.check.number, finding.text)).collect()
    }

    #[test]
    fn holes_and_what_is_longer_than_an_image_are_found() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("var/log")).unwrap();
        fs::write(tree.path().join("var/log/journal"), "much").unwrap();
        assert_eq!(told(tree.path()), []);
        let path = tree.path().join("var/log/lastlog");
        File::create(&path).unwrap().set_len(LONG_FILE - 1).unwrap();
        assert_eq!(told(tree.path()), [], "not worth a word");
        File::create(&path).unwrap().set_len(9 << 30).unwrap();
        let sparse = (34, "var/log/lastlog has 9216 MiB, of which 0 are in use".to_owned());
        assert_eq!(told(tree.path()), [sparse]);
        // Another name of it is no other file.
        fs::hard_link(&path, tree.path().join("again")).unwrap();
        let found = told(tree.path());
        assert!(matches!(found.as_slice(), [(34, _)]), "{found:?}");
        File::create(tree.path().join("other")).unwrap().set_len(8 << 30).unwrap();
        let found = told(tree.path());
        let large = (19, "the files of the tree have 18 GiB, an image at most 16".to_owned());
        assert_eq!(found.first(), Some(&large));
        assert!(TREE_TOO_LARGE.found("").stops() && !SPARSE_FILE.found("").stops());
    }

    #[test]
    fn a_device_node_is_found() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("dev")).unwrap();
        let made = Command::new("mknod").arg(tree.path().join("dev/null")).args(["c", "1", "3"]).status();
        if !made.is_ok_and(|made| made.success()) {
            // Past the harness, which keeps to itself what a test that passes prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no device node can be made here");
            return;
        }
        assert_eq!(told(tree.path()), [(29, "dev/null is a device node".to_owned())]);
    }
}
