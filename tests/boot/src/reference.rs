//! The editions of the reference OS that the tests run: the example's OS (`examples/debian/`), with what tests add to it.

use std::path::Path;

use bascule_os_image::{Archive, Distribution, Fault, ImageFile, Kernel, Recipe};

use bascule_sim::layout::{ESP, STATE, XBOOTLDR};

use crate::example_os::{self, HOST, KUBERNETES, Layer, PRODUCT, folder};
use crate::sealed_os;

/// Units of the tests that are started, and the target that wants them.
const WANTED: [(&str, &str); 2] =
    [("bascule-test-guest.service", "multi-user.target"), ("bascule-test-shell.service", "sysinit.target")];

/// What goes into the image beside packages and the example's files.
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
    /// Whether it brings the boot loader of its packages, unsigned as Debian has it.
    pub brings_loader: bool,
    /// Whether it has what `bascule install` calls.
    pub installs: bool,
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
    /// As the example's fstab says: one boot partition, mounted at boot.
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
        brings_loader: false,
        installs: false,
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
    /// Brings a boot loader to a machine that has an older one.
    pub const BRINGS_LOADER: Self = Self { version: "1.7", brings_loader: true, ..Self::OLD };
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
    /// Signed, but for the boot loader that it brings.
    pub const SIGNED_NEW: Self = Self { version: "4.3", brings_loader: true, ..Self::OLD };
    /// For a host with a TPM.
    pub const SEALED_OLD: Self = Self { version: "5.0", sealed: true, ..Self::OLD };
    /// The next release of it.
    pub const SEALED_NEW: Self = Self { version: "5.1", ..Self::SEALED_OLD };
    /// A live system, from which others are installed.
    pub const LIVE: Self = Self { version: "6.0", installs: true, ..Self::OLD };
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
    let mut files = example_os::host_files(&programs.agent, trust_root)?;
    files.extend(folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("os-test"), "")?);
    files.push(ImageFile::text("usr/lib/bascule/agent.toml.d/60-deadline.toml", edition.deadline.setting()));
    if let Some(text) = edition.mounts.fstab() {
        files.retain(|file| file.path != "etc/fstab");
        files.push(ImageFile::text("etc/fstab", text));
    }
    files.push(ImageFile::program("usr/libexec/bascule-test-guest", programs.guest.clone()));
    for (unit, target) in WANTED {
        let link = format!("etc/systemd/system/{target}.wants/{unit}");
        files.push(ImageFile::link(&link, &format!("/usr/lib/systemd/system/{unit}")));
    }
    Ok(Recipe { files, ..packages(edition) })
}

/// The recipe of one edition without its files: its packages can be installed before anything of ours is built.
#[must_use]
pub fn packages(edition: Edition<'_>) -> Recipe {
    let layers: &[Layer] = if edition.containers { &[HOST, KUBERNETES] } else { &[HOST] };
    // e2fsprogs is among them, and all of them are one tree of packages.
    let sealed: &[&str] = if edition.sealed || edition.installs { &sealed_os::PACKAGES } else { &[] };
    Recipe {
        product: PRODUCT.to_owned(),
        version: edition.version.to_owned(),
        distribution: Distribution::Trixie,
        archive: edition.archive,
        kernel: Kernel { package: "linux-image-cloud-amd64", archive: edition.archive },
        packages: layers.iter().flat_map(Layer::packages).chain(sealed.iter().map(|name| (*name).to_owned())).collect(),
        fault: edition.fault,
        files: Vec::new(),
        without: layers.iter().flat_map(Layer::removed).collect(),
    }
}

#[cfg(test)]
mod tests {
    /// A run of all scenarios has all editions, and a store that keeps fewer images throws away what machines are still made of.
    #[test]
    fn the_store_keeps_the_image_of_each_edition() {
        let editions = include_str!("reference.rs").lines().filter(|line| line.starts_with("    pub const "));
        let sandbox = bascule_os_image::sandbox().len();
        let editions = editions.count();
        assert!(editions >= 20, "{editions}");
        assert!(
            editions + sandbox <= bascule_os_image::KEPT_IMAGES,
            "{editions} editions and {sandbox} of the sandbox"
        );
    }
}
