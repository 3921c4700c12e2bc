//! What goes into an image. A recipe is plain data: its hash names the cache entry, so nothing that changes the
//! image may come from anywhere else.

use std::fs;
use std::path::{Path, PathBuf};

use ring::digest;
use serde::Serialize;

use crate::Error;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Distribution {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Distribution {
    pub(crate) fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// How far packages are patched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Archive {
    /// The main archive alone: the last point release.
    Release,
    /// With the updates and security archives: everything published today.
    Updates,
}

/// Which kernel, and how far it is patched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Kernel {
    /// Debian's meta package, such as `linux-image-cloud-amd64`.
    pub package: &'static str,
    /// Where its newest version is taken from; [`Archive::Release`] keeps the old kernel beside new packages.
    pub archive: Archive,
}

/// A fault that a release carries: the machine that runs it shows the fault, whoever installed it.
///
/// Written as `BASCULE_FAULT=` into the image's os-release, and so into the `.osrel` section of its unified kernel
/// image, where a simulated machine can read it without mounting anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Fault {
    /// The kubelet starts and never reports the node as ready.
    KubeletNeverReady,
    /// The kubelet ends at once, again and again.
    KubeletCrashLoop,
    /// The machine hangs before the agent is started.
    HangBeforeAgent,
    /// The agent itself ends at once.
    AgentCrashLoop,
    /// The kernel panics before it runs any program.
    KernelPanic,
    /// The initrd hangs after it has armed the watchdog.
    InitrdHang,
}

impl Fault {
    /// Every fault there is.
    pub const ALL: [Self; 6] = [
        Self::KubeletNeverReady,
        Self::KubeletCrashLoop,
        Self::HangBeforeAgent,
        Self::AgentCrashLoop,
        Self::KernelPanic,
        Self::InitrdHang,
    ];

    /// The word in `BASCULE_FAULT=`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::KubeletNeverReady => "never-ready",
            Self::KubeletCrashLoop => "kubelet-fails",
            Self::HangBeforeAgent => "hang-before-agent",
            Self::AgentCrashLoop => "agent-fails",
            Self::KernelPanic => "panic",
            Self::InitrdHang => "hang",
        }
    }

    /// Reads the fault out of an os-release text; `None` when the release carries none.
    #[must_use]
    pub fn from_os_release(text: &str) -> Option<Self> {
        let word = text.lines().find_map(|line| line.strip_prefix("BASCULE_FAULT="))?.trim().trim_matches('"');
        Self::ALL.into_iter().find(|fault| fault.word() == word)
    }
}

/// Where a file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Contents {
    /// Given here.
    Text(String),
    /// Given here, not text.
    Bytes(Vec<u8>),
    /// A large file of the machine that builds, known by its hash.
    Copy {
        /// Where it is. No part of the recipe: the same content elsewhere gives the same image.
        #[serde(skip)]
        from: PathBuf,
        /// SHA-256 of its content, in hex.
        sha256: String,
    },
    /// A symbolic link to this target.
    Link(String),
    /// An empty folder, such as a mount point.
    Folder,
}

/// A file put into the root after the packages.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct ImageFile {
    /// Path inside the root, without a leading slash.
    pub path: String,
    /// Permission bits; ignored for links.
    pub mode: u32,
    /// What is in it.
    pub contents: Contents,
}

impl ImageFile {
    /// A text file that everybody may read.
    #[must_use]
    pub fn text(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), mode: 0o644, contents: Contents::Text(text.into()) }
    }

    /// A program.
    #[must_use]
    pub fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), mode: 0o755, contents: Contents::Bytes(bytes) }
    }

    /// A program that is too large to be carried about in a recipe.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be read.
    pub fn large_program(path: &str, from: &Path) -> Result<Self, Error> {
        let bytes = fs::read(from).map_err(Error::io(from))?;
        let sha256 = hex::encode(digest::digest(&digest::SHA256, &bytes));
        Ok(Self { path: path.to_owned(), mode: 0o755, contents: Contents::Copy { from: from.to_owned(), sha256 } })
    }

    /// A symbolic link at `path`.
    #[must_use]
    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, contents: Contents::Link(target.to_owned()) }
    }

    /// An empty folder.
    #[must_use]
    pub fn folder(path: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o755, contents: Contents::Folder }
    }
}

/// Everything that decides what an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Recipe {
    /// `IMAGE_ID` in os-release: what the product is called.
    pub product: String,
    /// `IMAGE_VERSION` in os-release.
    pub version: String,
    /// Which Debian.
    pub distribution: Distribution,
    /// How far its packages are patched.
    pub archive: Archive,
    /// The kernel.
    pub kernel: Kernel,
    /// Packages beside the essential ones, without the kernel.
    pub packages: Vec<String>,
    /// A fault to carry.
    pub fault: Option<Fault>,
    /// Files put in after the packages.
    pub files: Vec<ImageFile>,
    /// Paths (folders with all that is in them) taken out after the packages.
    pub without: Vec<String>,
}

impl Recipe {
    /// The text of the image's os-release.
    #[must_use]
    pub fn os_release(&self) -> String {
        let mut text = format!(
            "NAME=\"Bascule reference OS\"\nID={product}\nID_LIKE=debian\nPRETTY_NAME=\"Bascule reference OS {version}\"\n\
             VERSION_ID={version}\nIMAGE_ID={product}\nIMAGE_VERSION={version}\nDEBIAN_CODENAME={codename}\n",
            product = self.product,
            version = self.version,
            codename = self.distribution.codename(),
        );
        if let Some(fault) = self.fault {
            text.push_str(&format!("BASCULE_FAULT={}\n", fault.word()));
        }
        text
    }
}

/// The small container host of the sandbox and the boot tests: what a node needs below its kubelet.
const SMALL_HOST: [&str; 10] = [
    "ca-certificates",
    "conntrack",
    "dbus-broker",
    "ethtool",
    "iproute2",
    "kmod",
    "runc",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// The sandbox's releases 1.0, 1.1, 1.2 and 1.3, in this order.
///
/// 1.0 is Debian's last point release, 1.1 has everything published since, 1.2 is 1.1 with a kubelet that never
/// becomes ready, 1.3 is 1.1 with a package more.
#[must_use]
pub fn sandbox() -> [Recipe; 4] {
    let kernel = |archive| Kernel { package: "linux-image-cloud-amd64", archive };
    let release = |version: &str, archive, fault, more: &[&str]| Recipe {
        product: "bascule-reference".to_owned(),
        version: version.to_owned(),
        distribution: Distribution::Trixie,
        archive,
        kernel: kernel(archive),
        packages: SMALL_HOST.iter().chain(more).map(|name| (*name).to_owned()).collect(),
        fault,
        files: Vec::new(),
        without: vec!["usr/lib/udev/hwdb.bin".to_owned(), "usr/lib/udev/hwdb.d".to_owned()],
    };
    [
        release("1.0", Archive::Release, None, &[]),
        release("1.1", Archive::Updates, None, &[]),
        release("1.2", Archive::Updates, Some(Fault::KubeletNeverReady), &[]),
        release("1.3", Archive::Updates, None, &["nftables"]),
    ]
}

/// A container host of the size that is run in earnest (more than 500 MB of root), for the release benchmark.
#[must_use]
pub fn container_host(version: &str, distribution: Distribution, archive: Archive, kernel: Archive) -> Recipe {
    let packages = [
        "bash-completion",
        "bind9-dnsutils",
        "ca-certificates",
        "chrony",
        "cloud-init",
        "conntrack",
        "containerd",
        "containernetworking-plugins",
        "cryptsetup-bin",
        "curl",
        "dbus",
        "dmsetup",
        "e2fsprogs",
        "ethtool",
        "gdisk",
        "iproute2",
        "iptables",
        "ipvsadm",
        "jq",
        "kmod",
        "lvm2",
        "multipath-tools",
        "nfs-common",
        "nftables",
        "nvme-cli",
        "open-iscsi",
        "openssh-server",
        "procps",
        "qemu-guest-agent",
        "runc",
        "socat",
        "strace",
        "systemd",
        "systemd-sysv",
        "tcpdump",
        "udev",
        "vim-tiny",
        "xfsprogs",
    ];
    Recipe {
        product: "bascule-container-host".to_owned(),
        version: version.to_owned(),
        distribution,
        archive,
        kernel: Kernel { package: "linux-image-amd64", archive: kernel },
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        fault: None,
        files: Vec::new(),
        without: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read_back_from_the_os_release_it_was_written_to() {
        let [sound, _, faulty, _] = sandbox();
        assert_eq!(Fault::from_os_release(&sound.os_release()), None);
        assert_eq!(Fault::from_os_release(&faulty.os_release()), Some(Fault::KubeletNeverReady));
        for fault in Fault::ALL {
            let text = Recipe { fault: Some(fault), ..sound.clone() }.os_release();
            assert_eq!(Fault::from_os_release(&text), Some(fault));
        }
    }
}
