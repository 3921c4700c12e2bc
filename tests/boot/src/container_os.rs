//! The reference OS with what a node really runs: containerd, runc and a kubelet of the control plane's own release, and the
//! container images that its pods are made of. `tests/boot/os-kubelet/` is the part that is not Debian's.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_os_image::{Contents, ImageFile, Recipe};
use bascule_tests::control_plane::Binaries;

use crate::oci::{self, Image};
use crate::reference::{self, Edition, Programs};

/// The workload's image, as a pod names it.
pub const SHOP: &str = "example.invalid/shop:1";
/// Where the workload listens, for its probe.
pub const SHOP_PORT: u16 = 8080;
/// The image of each pod's sandbox, as containerd's settings name it.
const PAUSE: &str = "example.invalid/pause:1";
/// Beside the packages of the reference OS.
pub(crate) const PACKAGES: [&str; 2] = ["containerd", "containernetworking-plugins"];
/// Units that are started, beside those of the reference OS and those that packages enable by themselves.
const WANTED: [&str; 3] = ["bascule-test-images.service", "bascule-test-logs.service", "kubelet.service"];
/// Programs of those packages that nothing here calls.
const UNUSED: [&str; 16] = [
    "usr/bin/containerd-shim",
    "usr/bin/containerd-shim-runc-v1",
    "usr/bin/containerd-stress",
    "usr/lib/cni/bandwidth",
    "usr/lib/cni/bridge",
    "usr/lib/cni/dhcp",
    "usr/lib/cni/firewall",
    "usr/lib/cni/host-device",
    "usr/lib/cni/ipvlan",
    "usr/lib/cni/macvlan",
    "usr/lib/cni/portmap",
    "usr/lib/cni/sbr",
    "usr/lib/cni/static",
    "usr/lib/cni/tuning",
    "usr/lib/cni/v%",
    "usr/share/containerd",
];

/// What goes in beside packages and files.
#[derive(Debug, Clone)]
pub struct Containers {
    kubelet: PathBuf,
    images: Vec<u8>,
}

impl Containers {
    /// Builds kubelet and container images, or finds the kubelet built.
    ///
    /// # Errors
    /// When Go is missing or fails.
    pub fn prepare(say: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let built = Binaries::kubelet(say)?;
        let path = built.join("container");
        let program = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let listen = format!(":{SHOP_PORT}");
        let images = [Image { name: PAUSE, arguments: &[] }, Image { name: SHOP, arguments: &[&listen] }];
        Ok(Self { kubelet: built.join("kubelet"), images: oci::archive(&program, &images)? })
    }
}

/// The recipe of one edition, with the vendor's first root of trust.
///
/// # Errors
/// When a file can't be read.
pub fn recipe(
    edition: Edition<'_>,
    programs: &Programs,
    trust_root: &str,
    containers: &Containers,
) -> anyhow::Result<Recipe> {
    let mut recipe = reference::recipe(edition, programs, trust_root)?;
    recipe.without.extend(UNUSED.map(str::to_owned));
    let files = &mut recipe.files;
    files.extend(reference::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("os-kubelet"), "")?);
    files.push(ImageFile::large_program("usr/bin/kubelet", &containers.kubelet)?);
    files.push(ImageFile {
        path: "usr/lib/bascule-test/images.tar".to_owned(),
        mode: 0o644,
        contents: Contents::Bytes(containers.images.clone()),
    });
    for unit in WANTED {
        let link = format!("etc/systemd/system/multi-user.target.wants/{unit}");
        files.push(ImageFile::link(&link, &format!("/usr/lib/systemd/system/{unit}")));
    }
    Ok(recipe)
}
