//! The disk of a new machine as an installer leaves it: partitions, the first release in slot A, and beside it what the
//! agent finds in its OS image and in `/etc`: the root of trust and its settings.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::Context as _;
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::layout::{Installed, Sizes, provision};
use bascule_sim::machine::MachineConfig;
use uuid::Uuid;

use super::machines::Seat;
use super::releases::Built;

/// Later releases may be larger than the first.
const GROWTH: u64 = 32 << 20;
/// From power-on to a running kernel, in milliseconds: a fast machine.
const FIRMWARE_MS: u64 = 700;
/// From the kernel to running services, in milliseconds.
const STARTUP_MS: u64 = 800;

/// What an installer is told.
pub(crate) struct Given<'a> {
    /// The machine's place in the cluster.
    pub(crate) seat: &'a Seat,
    /// The machine's own folder.
    pub(crate) directory: &'a Path,
    /// Where the agent's kubeconfig will lie once its pod was admitted.
    pub(crate) kubeconfig: &'a Path,
    /// The first TUF root.
    pub(crate) trust_root: &'a str,
    /// The authority of the repository's https server.
    pub(crate) extra_ca: &'a Path,
    /// How long a trial may take before the guard on the machine takes it back, in seconds.
    pub(crate) trial_seconds: u32,
}

/// Writes the disk and the files beside it.
///
/// # Errors
/// A file can't be written.
pub(crate) async fn install(given: &Given<'_>, release: &Built) -> anyhow::Result<MachineConfig> {
    let directory = given.directory.to_owned();
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let trust_root = directory.join("root.json");
    fs::write(&trust_root, given.trust_root).with_context(|| format!("cannot write {}", trust_root.display()))?;
    let settings = directory.join("agent.toml");
    let text = settings_text(given, &release.product, &trust_root);
    fs::write(&settings, text).with_context(|| format!("cannot write {}", settings.display()))?;
    let config = MachineConfig {
        name: given.seat.node.clone(),
        disk: directory.join("disk.img"),
        directory,
        boot: BootLoader::SystemdBoot,
        firmware_ms: FIRMWARE_MS,
        startup_ms: STARTUP_MS,
        agent_settings: settings,
        environment: BTreeMap::from([
            ("KUBECONFIG".to_owned(), given.kubeconfig.display().to_string()),
            ("RUST_LOG".to_owned(), "info".to_owned()),
        ]),
    };
    let (disk, release) = (config.disk.clone(), release.clone());
    tokio::task::spawn_blocking(move || write_disk(&disk, &release)).await??;
    Ok(config)
}

/// Writes the disk of a machine with `release` in slot A, as an installer does.
///
/// # Errors
/// A file can't be read or written.
pub(crate) fn write_disk(path: &Path, release: &Built) -> anyhow::Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut data, mut verity) = (open(&release.root)?, open(&release.verity)?);
    let uki = fs::read(&release.uki).with_context(|| format!("cannot read {}", release.uki.display()))?;
    let sizes = Sizes::for_image(data.metadata()?.len() + GROWTH, uki.len() as u64);
    let written = || -> std::io::Result<()> {
        let disk = Disk::create_file(path, sizes.disk())?;
        let mut first = Installed {
            version: &release.version,
            root_hash: release.root_hash,
            data: &mut data,
            verity: &mut verity,
            uki: &uki,
            entry: &format!("{}-{}.efi", release.product, release.version),
        };
        provision(&disk, sizes, BootLoader::SystemdBoot, Uuid::new_v4(), &mut first)
    };
    let mut written = written;
    written().with_context(|| format!("cannot write the disk {}", path.display()))
}

/// What a vendor puts into its image and an admin into `/etc`; times are those of a story of minutes.
fn settings_text(given: &Given<'_>, product: &str, trust_root: &Path) -> String {
    let node = &given.seat.node;
    let state = given.directory.join("state");
    let (trust_root, extra_ca) = (trust_root.display(), given.extra_ca.display());
    format!(
        r#"[node]
name = "{node}"
product = "{product}"

[state]
directory = "{}"

[repository]
trust-root = "{trust_root}"
extra-ca = ["{extra_ca}"]
only-extra-ca = true
proxy = "direct"

[transfer]
low-priority = false
pause-at-io-pressure = 100
pause-at-memory-pressure = 100

[trial]
deadline = "{}s"

[kubernetes]
kubeconfig = "{}"
progress-every = "1s"

[observe]
every = "30s"

[retry]
first = "1s"
max = "5s"

[reboot]
retry-after = "10s"

[health]
units = ["containerd.service"]

[server]
listen = "unix:{}"
"#,
        state.display(),
        given.trial_seconds,
        given.kubeconfig.display(),
        given.directory.join("agent.sock").display(),
    )
}
