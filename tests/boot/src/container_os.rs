//! The reference OS with what a node really runs: containerd, runc and a kubelet of the control plane's own release, and the
//! container images that its pods are made of. It is the whole of `examples/debian/`; `os-test-kubelet/` is what tests add.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_os_image::{ImageFile, Recipe};
use bascule_tests::control_plane::Binaries;

use crate::example_os;
use crate::install::StateFile;
use crate::oci::{self, Image};
use crate::reference::{self, Edition, Programs};

/// The workload's image, as a pod names it.
pub const SHOP: &str = "example.invalid/shop:1";
/// Where the workload listens, for its probe.
pub const SHOP_PORT: u16 = 8080;
/// The image of each pod's sandbox, as containerd's settings name it.
const PAUSE: &str = "example.invalid/pause:1";
/// The unit of the tests that is started beside those of the OS.
const WANTED: &str = "bascule-test-logs.service";
/// The address that QEMU's network gives to each machine. It is told: the tests' machines have no route by which it could be guessed.
const ADDRESS: &str = "10.0.2.15";
/// The label of nodes with containers that are really started.
const REAL: &str = "example.invalid/containers=real";

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

    /// The kubelet's file.
    #[must_use]
    pub fn kubelet(&self) -> &Path {
        &self.kubelet
    }

    /// An archive with the images.
    #[must_use]
    pub fn images(&self) -> &[u8] {
        &self.images
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
    let files = &mut recipe.files;
    files.extend(example_os::node_files(&containers.kubelet, &containers.images)?);
    files.extend(example_os::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("os-test-kubelet"), "")?);
    let link = format!("etc/systemd/system/multi-user.target.wants/{WANTED}");
    files.push(ImageFile::link(&link, &format!("/usr/lib/systemd/system/{WANTED}")));
    Ok(recipe)
}

/// What the installer writes to the state partition of a node for its kubelet.
#[must_use]
pub fn state_of(node: &str, kubeconfig: &str) -> [StateFile; 2] {
    let arguments = format!("--node-ip={ADDRESS} --node-labels={REAL}");
    example_os::state_of(node, kubeconfig, &arguments)
}
