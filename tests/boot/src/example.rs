//! What no shell file of `examples/debian/` can do: build the programs that go into the OS, and start a cluster for its machine to join.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bascule_os_image::{Store, ensure_qemu, shipped};
use bascule_tests::address::Address;
use bascule_tests::control_plane::Binaries;
use bascule_tests::https::HttpsServer;
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{Cluster, SETTINGS};
use crate::container_os::Containers;
use crate::install::StateFile;
use crate::vendor::{CA_FILE, Source};
use crate::{example_os, say};

/// The name of the one node, and of the folder with its first files.
pub const NODE: &str = "machine-1";
/// The admin's kubeconfig, in the folder of the example.
pub const KUBECONFIG: &str = "admin.kubeconfig";
/// The file with the address of the repository.
const REPOSITORY_URL: &str = "repository-url";
/// Logs of the cluster, and what its operator keeps.
const LOGS: &str = "cluster";

/// A step of `cargo xtask example`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Step {
    /// Build what goes into the OS and what is typed, and put it into the folder `programs`. Installs QEMU where it is missing.
    Programs,
    /// Start a control plane with Bascule for the folder's repository, and say what a machine needs to join it. Runs until Ctrl-C.
    Cluster,
}

/// Builds what goes into the OS, and what is typed, and puts it into `programs/` of the example's folder.
///
/// # Errors
/// When a compiler is missing or fails, or QEMU can't be had.
pub fn programs(workspace: &Path, folder: &Path) -> anyhow::Result<()> {
    ensure_qemu(&Store::new(workspace), &say)?;
    say("building the agent as it is shipped, and the initrd's program");
    let as_shipped = |name: &str| anyhow::Ok(shipped::build(workspace, &[name])?.join(name));
    let (agent, init) = (as_shipped("bascule-agent")?, as_shipped("bascule-init")?);
    say("building the command line tool");
    let own = crate::programs::of_the_vendor(workspace)?;
    let containers = Containers::prepare(&say)?;
    let kubectl = Binaries::locate(&say)?.path("kubectl");
    let place = folder.join("programs");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    for (program, file) in [
        ("bascule", own.join("bascule")),
        ("bascule-agent", agent),
        ("bascule-init", init),
        ("bascule-os-image", own.join("bascule-os-image")),
        ("kubectl", kubectl),
        ("kubelet", containers.kubelet().to_owned()),
    ] {
        name(&file, &place.join(program))?;
    }
    let images = place.join("images.tar");
    fs::write(&images, containers.images()).with_context(|| format!("writing {}", images.display()))?;
    say(&format!("{} has them", place.display()));
    Ok(())
}

/// Runs a control plane with Bascule, and serves the folder's repository, until it is told to end. What its machine is to know lies in
/// the folder `machine-1` then. API server and repository have one address, here and in the machine.
///
/// # Errors
/// When the folder has no repository, or a part does not come up.
pub async fn cluster(workspace: &Path, folder: &Path) -> anyhow::Result<()> {
    let (repository, trust_root) = (folder.join("repository"), folder.join("trust-root.json"));
    ensure!(
        repository.is_dir() && trust_root.is_file(),
        "{} has no `repository` or no `trust-root.json`: examples/debian/README.md says how they are made",
        folder.display()
    );
    let trust_root = fs::read_to_string(&trust_root).with_context(|| format!("reading {}", trust_root.display()))?;
    let address = Address::take().context(
        "the cluster gets an address of its own on this machine's loopback interface: that takes root, and `ip` (package iproute2)",
    )?;
    let server = HttpsServer::start_on(&repository, SocketAddr::from((address.get(), 0))).await;
    let server = server.context("serving the repository")?;
    let source = Source { url: server.url(), authority: server.ca_pem().to_owned(), trust_root };
    let (logs, machine) = (folder.join(LOGS), folder.join(NODE));
    // Of a cluster that was here before.
    for old in [&logs, &machine] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("emptying {}", old.display()))?;
        }
    }
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    say("starting the control plane");
    let programs = std::env::current_exe().context("finding this program")?;
    let programs = programs.parent().context("this program lies in no folder")?;
    let cluster = Cluster::start_at(workspace, &logs, programs, &source, address.get().into()).await?;
    for file in first_files(&cluster.kubelet(NODE)?, &source.authority) {
        write(&machine, &file)?;
    }
    let url = folder.join(REPOSITORY_URL);
    fs::write(&url, &source.url).with_context(|| format!("writing {}", url.display()))?;
    let kubeconfig = folder.join(KUBECONFIG);
    fs::copy(cluster.admin_kubeconfig(), &kubeconfig).with_context(|| format!("writing {}", kubeconfig.display()))?;
    say(&format!("the cluster runs; {} has what its machine is to know; Ctrl-C ends it", machine.display()));
    writeln!(std::io::stdout(), "export KUBECONFIG={}", kubeconfig.display())?;
    let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listening for signals")?,
        _ = terminated.recv() => {}
    }
    Ok(())
}

/// What the one machine is to know, as files below its `/var`.
fn first_files(kubeconfig: &str, authority: &str) -> Vec<StateFile> {
    let file = |path: String, content: String| StateFile { path, content, mode: 0o600 };
    let settings = format!(
        "[node]\nname = \"{NODE}\"\n\n[kubernetes]\nkubeconfig = \"/var/lib/kubelet/kubeconfig\"\n\n[repository]\n\
         extra-ca = [\"/var/{SETTINGS}/{CA_FILE}\"]\nonly-extra-ca = true\n"
    );
    let mut files = vec![
        file(format!("{SETTINGS}/agent.toml"), settings),
        file(format!("{SETTINGS}/{CA_FILE}"), authority.to_owned()),
    ];
    files.extend(example_os::state_of(NODE, kubeconfig, ""));
    files
}

fn write(top: &Path, file: &StateFile) -> anyhow::Result<()> {
    let path = top.join(&file.path);
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Never readable for others, not even while it is written: it may be a key.
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(file.mode).open(&path);
    opened
        .and_then(|mut opened| opened.write_all(file.content.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// Gives a file another name, in place of what had it before. Not by a symbolic link: mkosi shows the folder to its scripts, and nothing
/// around it.
fn name(file: &Path, name: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(name).is_ok() {
        fs::remove_file(name).with_context(|| format!("removing {}", name.display()))?;
    }
    let file = file.canonicalize().with_context(|| format!("finding {}", file.display()))?;
    // A copy where the two are on different file systems.
    fs::hard_link(&file, name)
        .or_else(|_| fs::copy(&file, name).map(drop))
        .with_context(|| format!("making {}", name.display()))
}
