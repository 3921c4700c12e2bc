//! A cluster as an admin finds it: a control plane without Bascule, a registry, a vendor's repository, and machines that
//! join with a kubelet of their own. What is installed there is what docs/install.md shows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bascule_tests::control_plane::{ControlPlane, Options, SERVICE_ADDRESS};
use bascule_tests::page::{self, Page};
use bascule_tests::registry::Registry;
use kube::Client;
use serde_json::json;

use crate::cluster::{SETTINGS, port_of};
use crate::container_os;
use crate::install::StateFile;
use crate::say;
use crate::vendor::ReferenceVendor;

/// Longer than whatever an admin types here takes.
const PATIENCE: Duration = Duration::from_secs(900);
/// Where a host's own authorities lie, as its agent sees it: as a service and as a pod.
const AUTHORITY: &str = "/etc/bascule/ca.pem";

/// Where the agent of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentIs {
    /// A pod of the DaemonSet.
    Pod,
    /// A service of the host.
    Service,
}

/// A version of Bascule.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a> {
    /// The root of its source.
    pub tree: &'a Path,
    /// The tag of its images.
    pub tag: &'a str,
}

/// What is added to the page's first policy: an emulated machine that shares its processor takes longer than any real one.
const SLOW_MACHINES: &str = "  health: {nodeReadyTimeout: 18m}\n";
/// The tag that the page shows.
const TAG: &str = "0.1.0";

impl Version<'static> {
    /// Of this tree, with the tag that the page shows.
    #[must_use]
    pub fn today() -> Self {
        Self { tree: page::tree(), tag: TAG }
    }
}

/// The cluster, and the folder that the admin works in.
pub struct Site {
    control_plane: ControlPlane,
    client: Client,
    registry: Registry,
    page: Page,
    trust_root: String,
    images: PathBuf,
    folder: PathBuf,
    programs: PathBuf,
    authority: String,
    ports: Vec<u16>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Site").field("server", &self.control_plane.server()).finish_non_exhaustive()
    }
}

impl Site {
    /// Starts everything but machines. Everything is kept below `folder`.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(folder: &Path, vendor: &ReferenceVendor) -> anyhow::Result<Self> {
        // A machine under emulation that shares its processor is slow to beat, and that is not what is tested.
        let options = Options { node_monitor_grace: Duration::from_secs(40), ..Options::default() };
        let control_plane = ControlPlane::start(options).await?;
        let registry = Registry::start(folder).await?;
        let own = std::env::current_exe().context("finding this program")?;
        let programs = own.parent().context("this program lies in no folder")?.to_owned();
        let repository = port_of(&vendor.url())?;
        let images = format!("{SERVICE_ADDRESS}:{}", registry.port());
        let releases = format!("https://{SERVICE_ADDRESS}:{repository}");
        let page = Page::read().with(&[
            ("registry.example.com", images.as_str()),
            ("https://images.example.com/acme-os", releases.as_str()),
        ]);
        let ports = vec![port_of(control_plane.server())?, repository, registry.port()];
        let client = control_plane.client().await?;
        let authority = vendor.authority().to_owned();
        Ok(Self {
            control_plane,
            client,
            registry,
            page,
            trust_root: vendor.trust_root()?,
            images: folder.join("images"),
            folder: folder.join("admin"),
            programs,
            authority,
            ports,
        })
    }

    /// Builds the images of a version, and puts them into the registry.
    ///
    /// # Errors
    /// When the images can't be built.
    pub async fn publishes(&self, version: Version<'_>) -> anyhow::Result<()> {
        let Version { tree, tag } = version;
        say(&format!("building the container images {tag}, and putting them into the registry"));
        let mut images = tokio::process::Command::new(self.programs.join("xtask"));
        // The tree that it is started in is what it builds, unless cargo names another.
        images.current_dir(tree).env_remove("CARGO_MANIFEST_DIR").args(["images", "--tag", tag, "--push"]);
        images.arg(format!("{}/platform", self.registry.address())).arg("--ca").arg(self.registry.authority());
        images.arg("--out").arg(self.images.join(tag));
        let built = images.kill_on_drop(true).output().await.context("starting `cargo xtask images`")?;
        ensure!(built.status.success(), "no images: {}", String::from_utf8_lossy(&built.stderr));
        say(&format!("cargo xtask images --push\n{}", String::from_utf8_lossy(&built.stdout).trim_end()));
        Ok(())
    }

    /// Lays out the admin's folder as the page describes it, with a version's manifests.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn lays_out(&self, version: Version<'_>) -> anyhow::Result<()> {
        let Version { tree, tag } = version;
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder).with_context(|| format!("emptying {}", self.folder.display()))?;
        }
        let page = self.page.with(&[(&format!("newTag: {TAG}"), &format!("newTag: {tag}"))]);
        page.lay_out(&self.folder, &tree.join("manifests"), &self.trust_root);
        page.add_authority(&self.folder, &self.authority);
        page::add_resource(&self.folder, "manifests/components/host-agent/rbac.yaml");
        let policy = self.folder.join("workers.yaml");
        let text = std::fs::read_to_string(&policy).with_context(|| format!("reading {}", policy.display()))?;
        std::fs::write(&policy, text + SLOW_MACHINES).with_context(|| format!("writing {}", policy.display()))?;
        Ok(())
    }

    /// A client of the cluster's admin.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Ports of the host's loopback that a machine must reach.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// What the installer writes to the state partition of a node.
    ///
    /// # Errors
    /// When no certificate can be made, or the registry's can't be read.
    pub fn state_of(&self, node: &str, agent: AgentIs) -> anyhow::Result<Vec<StateFile>> {
        let kubelet = self.control_plane.kubelet(node)?.kubeconfig().to_owned();
        let file = |path: &str, content: String| StateFile { path: path.to_owned(), content, mode: 0o600 };
        let no_program = StateFile { mode: 0o755, ..file("lib/bascule-test/no-program", "\x7fno program".to_owned()) };
        let mut settings = format!("[repository]\nextra-ca = [\"{AUTHORITY}\"]\nonly-extra-ca = true\n");
        let mut files = Vec::new();
        match agent {
            AgentIs::Pod => files.push(file("lib/bascule-test/agent-is-a-pod", String::new())),
            AgentIs::Service => {
                settings.push_str(&format!("\n[node]\nname = \"{node}\"\n"));
                settings.push_str("\n[kubernetes]\nkubeconfig = \"/etc/bascule/kubeconfig\"\n");
                files.push(file(&format!("{SETTINGS}/kubeconfig"), kubelet.clone()));
            }
        }
        let registry = format!("{SERVICE_ADDRESS}:{}", self.registry.port());
        let hosts = format!(
            "server = \"https://{registry}\"\n[host.\"https://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
             ca = \"/var/etc/containerd/registry-ca.pem\"\n"
        );
        let authority =
            std::fs::read_to_string(self.registry.authority()).context("reading the registry's authority")?;
        let api_server = port_of(self.control_plane.server())?;
        let guest = json!({ "node": node, "zone": "a", "ports": self.ports, "apiServer": api_server });
        files.extend([
            no_program,
            file(&format!("{SETTINGS}/agent.toml"), settings),
            file(&format!("{SETTINGS}/ca.pem"), self.authority.clone()),
            file("etc/containerd/registry-ca.pem", authority),
            file(&format!("etc/containerd/certs.d/{registry}/hosts.toml"), hosts),
            file("lib/bascule-test/settings.json", guest.to_string()),
        ]);
        files.extend(container_os::state_of(node, &kubelet));
        Ok(files)
    }

    /// Types a block of the page.
    ///
    /// # Errors
    /// As [`Self::types`].
    pub async fn follows(&self, block: &str) -> anyhow::Result<String> {
        self.types(self.page.block(block).trim_end()).await
    }

    /// Types something into a shell in the admin's folder, and tells what it said.
    ///
    /// # Errors
    /// When it does not end with success within a quarter of an hour.
    pub async fn types(&self, script: &str) -> anyhow::Result<String> {
        let began = Instant::now();
        let shell = page::shell(&self.control_plane, script, &self.folder, std::slice::from_ref(&self.programs));
        let mut shell = tokio::process::Command::from(shell);
        let output = tokio::time::timeout(PATIENCE, shell.kill_on_drop(true).output()).await;
        let output = output.with_context(|| format!("`{script}` did not end"))??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{script}` failed: {said}{complaint}");
        let prompt = script.lines().map(|line| format!("$ {line}\n")).collect::<String>();
        say(&format!("after {} s:\n{prompt}{}{complaint}", began.elapsed().as_secs(), said));
        Ok(said)
    }
}
