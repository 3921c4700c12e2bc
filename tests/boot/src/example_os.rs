//! The OS of `examples/debian/`, as lists and files. The machines of the tests run this one; what tests add lies beside this crate's
//! sources, in `os-test` and `os-test-kubelet`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_os_image::{Contents, ImageFile, entries};

use crate::install::StateFile;

/// The product's name: `IMAGE_ID` in os-release, and the product that the agent accepts releases of.
pub const PRODUCT: &str = "bascule-reference";

/// The kernel's command line, without the root hash.
///
/// A kernel that gets nowhere restarts the machine, so that a trial counts down; the partitions are mounted as fstab
/// says and not guessed. `no_timer_check`: an emulated machine on a loaded host gets its first timer interrupts late, and
/// a kernel that tests for them panics (under KVM and Hyper-V it leaves that test out by itself).
pub const COMMAND_LINE: &str = include_str!("../../../examples/debian/command-line").trim_ascii();

/// A part of the OS: a folder of `examples/debian/`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    name: &'static str,
    packages: &'static str,
    removed: &'static str,
    links: &'static str,
}

/// What every host has.
pub(crate) const HOST: Layer = Layer {
    name: "host",
    packages: include_str!("../../../examples/debian/host/packages"),
    removed: include_str!("../../../examples/debian/host/removed"),
    links: include_str!("../../../examples/debian/host/links"),
};

/// What makes it a node: containerd and a kubelet.
pub(crate) const KUBERNETES: Layer = Layer {
    name: "kubernetes",
    packages: include_str!("../../../examples/debian/kubernetes/packages"),
    removed: include_str!("../../../examples/debian/kubernetes/removed"),
    links: include_str!("../../../examples/debian/kubernetes/links"),
};

impl Layer {
    /// Debian's packages, without those that these need.
    pub(crate) fn packages(&self) -> impl Iterator<Item = String> {
        entries(self.packages).map(str::to_owned)
    }

    /// What is taken out again.
    pub(crate) fn removed(&self) -> impl Iterator<Item = String> {
        entries(self.removed).map(str::to_owned)
    }

    /// Files and links that are not Debian's.
    fn files(&self) -> anyhow::Result<Vec<ImageFile>> {
        let mut files = folder(&workspace().join("examples/debian").join(self.name).join("files"), "")?;
        for line in entries(self.links) {
            let (path, target) = line.split_once(' ').with_context(|| format!("no link: {line}"))?;
            files.push(ImageFile::link(path, target));
        }
        Ok(files)
    }
}

/// What is put into every host after its packages: as `examples/debian/add-files` does it.
///
/// # Errors
/// When a file can't be read.
pub fn host_files(agent: &[u8], trust_root: &str) -> anyhow::Result<Vec<ImageFile>> {
    let mut files = HOST.files()?;
    let units = folder(&workspace().join("node-agent/units"), "usr/lib/systemd/system/")?;
    files.extend(units.into_iter().filter(|file| file.path.ends_with(".service")));
    files.push(ImageFile::folder("efi"));
    files.push(ImageFile::text("usr/lib/bascule/root.json", trust_root));
    files.push(ImageFile::program("usr/bin/bascule-agent", agent.to_vec()));
    Ok(files)
}

/// What is put into a node on top: kubelet, and the container images that come with the OS.
///
/// # Errors
/// When a file can't be read.
pub fn node_files(kubelet: &Path, images: &[u8]) -> anyhow::Result<Vec<ImageFile>> {
    let mut files = KUBERNETES.files()?;
    files.push(ImageFile::large_program("usr/bin/kubelet", kubelet)?);
    files.push(ImageFile {
        path: "usr/lib/container-images/images.tar".to_owned(),
        mode: 0o644,
        contents: Contents::Bytes(images.to_vec()),
    });
    Ok(files)
}

/// What the installer writes to the state partition of a node for its kubelet, with `arguments` of its own.
#[must_use]
pub fn state_of(node: &str, kubeconfig: &str, arguments: &str) -> [StateFile; 2] {
    let environment = format!("NODE={node}\nKUBELET_ARGUMENTS=\"{arguments}\"\n");
    [("lib/kubelet/node.env", environment), ("lib/kubelet/kubeconfig", kubeconfig.to_owned())]
        .map(|(path, content)| StateFile { path: path.to_owned(), content, mode: 0o600 })
}

/// All files below `top`, as files of the image; their paths there begin with `place`.
pub(crate) fn folder(top: &Path, place: &str) -> anyhow::Result<Vec<ImageFile>> {
    let mut files = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(top)?.to_str().context("a file name that is not UTF-8")?;
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push(ImageFile { path: format!("{place}{name}"), mode: 0o644, contents: Contents::Text(text) });
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// The root of the tree that this program was built of.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;
    use crate::reference::{Edition, packages};

    /// What lies at a path: the permission bits, and content or target.
    type Lies = BTreeMap<String, (u32, Vec<u8>)>;

    fn lies_below(root: &Path, place: &Path, found: &mut Lies) {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                found.insert(name, (0o777, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
            } else if metadata.is_dir() {
                if fs::read_dir(&path).unwrap().next().is_none() {
                    found.insert(name, (mode, Vec::new()));
                }
                lies_below(root, &path, found);
            } else {
                found.insert(name, (mode, fs::read(&path).unwrap()));
            }
        }
    }

    #[test]
    fn what_a_newcomer_puts_into_a_tree_is_what_the_tests_put_into_theirs() {
        let home = tempfile::tempdir().unwrap();
        let (root, programs) = (home.path().join("root"), home.path().join("programs"));
        for folder in [&programs, &root.join("usr/lib/udev/hwdb.d"), &root.join("usr/lib/cni")] {
            fs::create_dir_all(folder).unwrap();
        }
        for gone in ["usr/lib/udev/hwdb.bin", "usr/lib/udev/hwdb.d/20-pci.hwdb", "usr/lib/cni/vlan", "usr/lib/cni/vrf"]
        {
            fs::write(root.join(gone), "").unwrap();
        }
        let stays = ["usr/lib/cni/ptp", "usr/lib/udev/stays"];
        for path in stays.map(|path| root.join(path)) {
            fs::write(&path, "stays").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        for (name, content) in [("bascule-agent", "agent"), ("kubelet", "kubelet"), ("images.tar", "images")] {
            fs::write(programs.join(name), content).unwrap();
        }
        fs::write(home.path().join("trust-root.json"), "{}").unwrap();
        let script = workspace().join("examples/debian/add-files");
        let output = Command::new(script).args(["1.0", "root"]).current_dir(home.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut added = Lies::new();
        lies_below(&root, &root, &mut added);

        let kubelet = programs.join("kubelet");
        let mut files = host_files(b"agent", "{}").unwrap();
        files.extend(node_files(&kubelet, b"images").unwrap());
        let os_release = packages(Edition::OLD).os_release();
        files.push(ImageFile::text("usr/lib/os-release", os_release));
        files.extend(stays.map(|path| ImageFile::text(path, "stays")));
        let expected: Lies = files
            .into_iter()
            .map(|file| {
                let content = match file.contents {
                    Contents::Text(text) | Contents::Link(text) => text.into_bytes(),
                    Contents::Bytes(bytes) => bytes,
                    Contents::Copy { from, .. } => fs::read(from).unwrap(),
                    Contents::Folder => Vec::new(),
                };
                (file.path, (file.mode, content))
            })
            .collect();
        let paths = |lies: &Lies| lies.keys().cloned().collect::<Vec<_>>();
        assert_eq!(paths(&added), paths(&expected));
        assert_eq!(added, expected);
    }

    #[test]
    fn mkosi_installs_the_same_packages() {
        let conf = fs::read_to_string(workspace().join("examples/mkosi/mkosi.conf")).unwrap();
        let listed = conf.split_once("Packages=\n").unwrap().1.lines().map_while(|line| line.strip_prefix("    "));
        let mut listed: Vec<&str> = listed.collect();
        listed.sort_unstable();
        // `install-packages` takes these two by themselves.
        let boot = ["linux-image-cloud-amd64", "systemd-boot-efi"].map(str::to_owned);
        let mut ours: Vec<String> = HOST.packages().chain(KUBERNETES.packages()).chain(boot).collect();
        ours.sort_unstable();
        assert_eq!(listed, ours);
    }

    #[test]
    fn a_list_names_what_the_other_file_that_reads_it_sees() {
        let home = tempfile::tempdir().unwrap();
        for path in [
            "usr/bin/apt",
            "usr/bin/apt-get",
            "usr/bin/sh",
            "var/cache/.hidden",
            "etc/apt/sources.list",
            "etc/os-release",
        ] {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let script = workspace().join("examples/debian/strip-root");
        let output = Command::new(script).arg(home.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut left = Lies::new();
        lies_below(home.path(), home.path(), &mut left);
        let left: Vec<&str> = left.keys().map(String::as_str).collect();
        assert_eq!(left, ["etc/machine-id", "etc/os-release", "usr/bin/sh", "var/cache"]);
        // Not of the system that runs, whatever the list says.
        let (remove, empty) = (workspace().join("examples/debian/remove"), home.path().join("empty"));
        fs::write(&empty, "").unwrap();
        for root in ["/", "//", "/usr/..", "", "/missing"] {
            let output = Command::new(&remove).arg(root).arg(&empty).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{root:?}");
        }
        assert_eq!(COMMAND_LINE.lines().count(), 1);
    }
}
