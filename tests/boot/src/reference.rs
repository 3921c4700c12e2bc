//! The reference OS: which packages, files and units make a host that Bascule keeps patched. `docs/os-image.md` walks
//! through it; `tests/boot/os/` is the part that is not Debian's, laid out as it lies in the root.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use bascule_os_image::{Archive, Contents, Distribution, Fault, ImageFile, Kernel, Recipe};

use bascule_sim::layout::{ESP, STATE, XBOOTLDR};

use crate::{container_os, sealed_os};

/// The product's name: `IMAGE_ID` in os-release, and the product that the agent accepts releases of.
pub const PRODUCT: &str = "bascule-reference";

/// What the host runs, below a kubelet.
const PACKAGES: [&str; 13] = [
    "ca-certificates",
    "conntrack",
    "cryptsetup-bin",
    "dbus-broker",
    "dosfstools",
    "ethtool",
    "iproute2",
    "kmod",
    "runc",
    "systemd",
    "systemd-boot-tools",
    "systemd-sysv",
    "udev",
];

/// Units that a host without users and without a clock battery to set has no need of, or that would do Bascule's work:
/// `systemd-bless-boot` commits a trial as soon as it is up, Bascule's agent once the cluster says that it is healthy.
const MASKED: [&str; 17] = [
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty@tty1.service",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "serial-getty@ttyS0.service",
    "serial-getty@ttyS1.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-bless-boot.service",
    "systemd-boot-random-seed.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-networkd-wait-online.service",
];

/// Units that are started, and the target that wants them, beside those that packages enable by themselves.
const WANTED: [(&str, &str); 5] = [
    ("bascule-agent.service", "multi-user.target"),
    // `RequiredBy=boot-complete.target` too; nothing starts that here, since nothing but the agent blesses.
    ("bascule-guard.service", "sysinit.target"),
    ("bascule-test-guest.service", "multi-user.target"),
    ("bascule-test-shell.service", "sysinit.target"),
    ("systemd-networkd.service", "multi-user.target"),
];

/// The kernel's command line, without the root hash.
///
/// A kernel that gets nowhere restarts the machine, so that a trial counts down; the partitions are mounted as fstab
/// says and not guessed. `no_timer_check`: an emulated machine on a loaded host gets its first timer interrupts late, and
/// a kernel that tests for them panics (under KVM and Hyper-V it leaves that test out by itself).
pub const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=6 panic=1 oops=panic softlockup_panic=1 systemd.gpt_auto=0 no_timer_check";

/// What goes into the image beside packages and the files of `os/`.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The shipped `bascule-agent`, static.
    pub agent: Vec<u8>,
    /// The kubelet stand-in and port forwarder of the tests.
    pub guest: Vec<u8>,
}

/// What differs between the releases of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edition<'a> {
    /// Version of the release.
    pub version: &'a str,
    /// How far its packages are patched.
    pub archive: Archive,
    /// What is wrong with it.
    pub fault: Option<Fault>,
    /// How long the dead man waits for a commit.
    pub deadline: Deadline,
    /// Whether it has containerd and a real kubelet.
    pub containers: bool,
    /// How its file systems are mounted.
    pub mounts: Mounts,
    /// Which agent it has.
    pub agent: AgentOf,
    /// Whether it has a volume that its TPM opens, and a boot image with signatures for that.
    pub sealed: bool,
}

/// Which commit's agent a release has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentOf {
    /// This one's.
    Today,
    /// An earlier one's, whose records have an older format ([`crate::older::agent_with_older_records`]).
    OlderRecords,
}

/// How the file systems of a host are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// As `os/etc/fstab` says: one boot partition, mounted at boot.
    Usual,
    /// ESP and XBOOTLDR, each mounted when somebody looks there and not longer than it is needed. By device, since another
    /// disk may have partitions with the same labels.
    Automatic,
}

impl Mounts {
    /// The file `etc/fstab` where it is another one.
    fn fstab(self) -> Option<String> {
        let boot = "vfat nofail,nosuid,nodev,noexec,umask=0077,utf8,shortname=mixed,x-systemd.automount,\
                    x-systemd.idle-timeout=5s,x-systemd.device-timeout=infinity 0 2";
        (self == Self::Automatic).then(|| {
            format!(
                "/dev/vda{STATE} /var ext4 nosuid,nodev,noatime,x-systemd.device-timeout=infinity 0 0\n\
                 /dev/vda{ESP} /efi {boot}\n/dev/vda{XBOOTLDR} /boot {boot}\n"
            )
        })
    }
}

impl Edition<'static> {
    /// The first release: Debian's last point release.
    pub const OLD: Self = Self {
        version: "1.0",
        archive: Archive::Release,
        fault: None,
        deadline: Deadline::Patient,
        containers: false,
        mounts: Mounts::Usual,
        agent: AgentOf::Today,
        sealed: false,
    };
    /// The second: everything that was published since.
    pub const NEW: Self = Self { version: "1.1", archive: Archive::Updates, ..Self::OLD };
    // The others have the packages of the first: what is tested is the fault, and a delta without a difference is soon packed
    // and soon written.
    /// Its kubelet never reports Ready.
    pub const NEVER_READY: Self =
        Self { version: "1.2", fault: Some(Fault::KubeletNeverReady), deadline: Deadline::Soon, ..Self::OLD };
    /// Its kernel panics.
    pub const PANICS: Self = Self { version: "1.3", fault: Some(Fault::KernelPanic), ..Self::OLD };
    /// Its initrd hangs.
    pub const HANGS: Self = Self { version: "1.4", fault: Some(Fault::InitrdHang), ..Self::OLD };
    /// Sound, until the test flips a bit of it.
    pub const DECAYS: Self = Self { version: "1.5", ..Self::OLD };
    /// Sound, on a machine whose network goes.
    pub const CUT_OFF: Self = Self { version: "1.6", deadline: Deadline::Soon, ..Self::OLD };
    /// With containerd and a real kubelet.
    pub const CONTAINERS_OLD: Self = Self { version: "2.0", containers: true, ..Self::OLD };
    /// The same with everything that was published since.
    pub const CONTAINERS_NEW: Self = Self { version: "2.1", containers: true, ..Self::NEW };
    /// For a host with two boot partitions that are mounted when they are needed.
    pub const TWO_PARTITIONS_OLD: Self = Self { version: "3.0", mounts: Mounts::Automatic, ..Self::OLD };
    /// The next release of it.
    pub const TWO_PARTITIONS_NEW: Self = Self { version: "3.1", mounts: Mounts::Automatic, ..Self::OLD };
    /// The next one, with an agent that is older than the one before it.
    pub const OLDER_RECORDS: Self = Self { version: "3.2", agent: AgentOf::OlderRecords, ..Self::TWO_PARTITIONS_NEW };
    /// Signed for Secure Boot, as the three after it are or should be.
    pub const SIGNED_OLD: Self = Self { version: "4.0", ..Self::OLD };
    /// Never signed.
    pub const UNSIGNED: Self = Self { version: "4.1", ..Self::OLD };
    /// Signed, and revoked.
    pub const REVOKED: Self = Self { version: "4.2", ..Self::OLD };
    /// Signed.
    pub const SIGNED_NEW: Self = Self { version: "4.3", ..Self::OLD };
    /// For a host with a TPM.
    pub const SEALED_OLD: Self = Self { version: "5.0", sealed: true, ..Self::OLD };
    /// The next release of it.
    pub const SEALED_NEW: Self = Self { version: "5.1", ..Self::SEALED_OLD };
}

/// When the guard takes a trial back. A product's deadline is three quarters of an hour; nobody waits that long for a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Far beyond what a trial takes, also on a slow and busy machine: nothing is taken back for want of speed.
    Patient,
    /// For a release that is to be taken back.
    Soon,
}

impl Deadline {
    fn setting(self) -> String {
        let minutes = match self {
            Self::Patient => 20,
            Self::Soon => 4,
        };
        format!("[trial]\ndeadline = \"{minutes}m\"\n")
    }
}

/// The recipe of one edition, with the vendor's first root of trust.
///
/// # Errors
/// When the folder of files can't be read.
pub fn recipe(edition: Edition<'_>, programs: &Programs, trust_root: &str) -> anyhow::Result<Recipe> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = folder(&here.join("os"), "")?;
    files.extend(folder(&here.join("os-test"), "")?);
    let units = folder(&here.join("../../node-agent/units"), "usr/lib/systemd/system/")?;
    files.extend(units.into_iter().filter(|file| file.path.ends_with(".service")));
    files.push(ImageFile::text("usr/lib/bascule/agent.toml.d/60-deadline.toml", edition.deadline.setting()));
    if let Some(text) = edition.mounts.fstab() {
        files.retain(|file| file.path != "etc/fstab");
        files.push(ImageFile::text("etc/fstab", text));
    }
    files.push(ImageFile::folder("efi"));
    files.push(ImageFile::text("usr/lib/bascule/root.json", trust_root));
    // The image is the same on every node; what a node knows about itself is on its state partition.
    files.push(ImageFile::link("etc/bascule", "../var/etc/bascule"));
    files.push(ImageFile::program("usr/bin/bascule-agent", programs.agent.clone()));
    files.push(ImageFile::program("usr/libexec/bascule-test-guest", programs.guest.clone()));
    files.push(ImageFile::link("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target"));
    files.push(ImageFile::link("etc/systemd/system/dbus.service", "/usr/lib/systemd/system/dbus-broker.service"));
    for unit in MASKED {
        files.push(ImageFile::link(&format!("etc/systemd/system/{unit}"), "/dev/null"));
    }
    for (unit, target) in WANTED {
        let link = format!("etc/systemd/system/{target}.wants/{unit}");
        files.push(ImageFile::link(&link, &format!("/usr/lib/systemd/system/{unit}")));
    }
    Ok(Recipe { files, ..packages(edition) })
}

/// The recipe of one edition without its files: its packages can be installed before anything of ours is built.
#[must_use]
pub fn packages(edition: Edition<'_>) -> Recipe {
    let more = match edition {
        Edition { containers: true, .. } => &container_os::PACKAGES[..],
        Edition { sealed: true, .. } => &sealed_os::PACKAGES[..],
        _ => &[],
    };
    Recipe {
        product: PRODUCT.to_owned(),
        version: edition.version.to_owned(),
        distribution: Distribution::Trixie,
        archive: edition.archive,
        kernel: Kernel { package: "linux-image-cloud-amd64", archive: edition.archive },
        packages: PACKAGES.iter().chain(more).map(|name| (*name).to_owned()).collect(),
        fault: edition.fault,
        files: Vec::new(),
        without: ["usr/lib/udev/hwdb.bin", "usr/lib/udev/hwdb.d"].map(str::to_owned).to_vec(),
    }
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
