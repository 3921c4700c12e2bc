//! The cluster that the machines belong to: the control plane of `bascule-tests`, Bascule installed from `manifests/` with
//! the agent as a host service, the real operator, the vendor's repository, and somebody on call.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bascule_api::{NodeUpdate, NodeUpdateStatus, UpdatePolicy};
use bascule_tests::control_plane::{ControlPlane, Credentials, Options, apply, free_port};
use bascule_tests::supervise::Supervised;
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;

use crate::install::StateFile;
use crate::vendor::{CA_FILE, ReferenceVendor, Source};

/// Where a node of the reference OS keeps its own settings, below `/var`.
pub(crate) const SETTINGS: &str = "etc/bascule";
/// From a node's word that a release failed to the operator's that it is blocked.
const BLOCKED: Duration = Duration::from_secs(300);
/// Who stops and rolls back.
const ON_CALL: &str = "alice";

/// A running cluster. Dropping it ends everything of it.
pub struct Cluster {
    operator: Supervised,
    control_plane: ControlPlane,
    client: Client,
    on_call: PathBuf,
    cli: PathBuf,
    authority: String,
    ports: Vec<u16>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("server", &self.control_plane.server()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts everything but machines. Logs go to `folder`; `programs` holds operator and command line tool.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(
        workspace: &Path,
        folder: &Path,
        programs: &Path,
        vendor: &ReferenceVendor,
    ) -> anyhow::Result<Self> {
        Self::start_at(workspace, folder, programs, &vendor.source()?, Ipv4Addr::LOCALHOST.into()).await
    }

    /// The same with an API server at any address of this machine, and for a repository that somebody else serves.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at(
        workspace: &Path,
        folder: &Path,
        programs: &Path,
        source: &Source,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        // A machine under emulation that shares its processor is slow to beat, and that is not what is tested.
        let options = Options { node_monitor_grace: Duration::from_secs(40), address, ..Options::default() };
        let control_plane = ControlPlane::start(options).await?;
        let client = control_plane.client().await?;
        apply(client.clone(), &manifests(workspace, &source.trust_root)?).await.context("installing Bascule")?;
        let authority = folder.join(CA_FILE);
        fs::write(&authority, &source.authority).with_context(|| format!("writing {}", authority.display()))?;

        let account = "system:serviceaccount:bascule-system:bascule-operator";
        let groups = ["system:serviceaccounts", "system:serviceaccounts:bascule-system"];
        let kubeconfig = folder.join("operator.kubeconfig");
        control_plane.user(account, &groups)?.write_to(&kubeconfig)?;
        let environment = [
            ("KUBECONFIG", kubeconfig.display().to_string()),
            ("BASCULE_LISTEN", format!("127.0.0.1:{}", free_port()?)),
            ("BASCULE_EXTRA_CA", authority.display().to_string()),
            ("BASCULE_STATE_DIR", folder.join("operator-state").display().to_string()),
            ("BASCULE_NAMESPACE", "bascule-system".to_owned()),
            ("BASCULE_IDENTITY", "boot-tests".to_owned()),
            ("RUST_LOG", "info,bascule=debug".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let none: [&str; 0] = [];
        let log = folder.join("operator.log");
        let operator = Supervised::start(&programs.join("bascule-operator"), none, &environment, &log)?;

        let on_call = folder.join("on-call.kubeconfig");
        control_plane.user(ON_CALL, &[])?.write_to(&on_call)?;
        let ports = [control_plane.server(), &source.url].map(port_of).into_iter().collect::<anyhow::Result<_>>()?;
        let cli = programs.join("bascule");
        let authority = source.authority.clone();
        Ok(Self { operator, control_plane, client, on_call, cli, authority, ports })
    }

    /// Ports of the host's loopback that a machine must reach: API server and repository.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The command line tool.
    #[must_use]
    pub fn cli(&self) -> &Path {
        &self.cli
    }

    /// A client of the cluster's admin.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The kubeconfig of the cluster's admin. It goes with the cluster.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.control_plane.admin_kubeconfig()
    }

    /// What `kubectl` tells the cluster's admin.
    ///
    /// # Errors
    /// When it does not end with success.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.control_plane.kubectl());
        let output = command.args(arguments).kill_on_drop(true).output().await.context("starting kubectl")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`kubectl {}` failed: {complaint}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the installer writes to the state partition of a node.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn state_of(&self, node: &str) -> anyhow::Result<Vec<StateFile>> {
        let kubelet: Credentials = self.control_plane.user(&format!("system:node:{node}"), &["system:nodes"])?;
        let file = |path: String, content: String| StateFile { path, content, mode: 0o600 };
        let settings = format!(
            "[node]\nname = \"{node}\"\n\n[kubernetes]\nkubeconfig = \"/var/{SETTINGS}/kubeconfig\"\n\n[repository]\n\
             extra-ca = [\"/var/{SETTINGS}/{CA_FILE}\"]\nonly-extra-ca = true\n\n\
             [observe]\ninspect-every = \"5m\"\n"
        );
        let guest = json!({ "node": node, "zone": "a", "ports": self.ports });
        Ok(vec![
            file(format!("{SETTINGS}/agent.toml"), settings),
            file(format!("{SETTINGS}/kubeconfig"), kubelet.kubeconfig().to_owned()),
            file(format!("{SETTINGS}/{CA_FILE}"), self.authority.clone()),
            file("lib/bascule-test/settings.json".to_owned(), guest.to_string()),
            file("lib/bascule-test/kubeconfig".to_owned(), kubelet.kubeconfig().to_owned()),
        ])
    }

    /// The kubeconfig of a node's kubelet.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn kubelet(&self, node: &str) -> anyhow::Result<String> {
        Ok(self.control_plane.kubelet(node)?.kubeconfig().to_owned())
    }

    /// Applies the policy that keeps one node on one channel: as fast as it is safe, since nothing else runs there.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn keep_patched(&self, node: &str, repository: &str, channel: &str) -> anyhow::Result<()> {
        let policy = format!(
            "apiVersion: bascule.dev/v1alpha1\nkind: UpdatePolicy\nmetadata: {{name: {node}}}\nspec:\n  \
             nodeSelector: {{matchLabels: {{kubernetes.io/hostname: {node}}}}}\n  \
             source: {{repository: \"{repository}\", channel: {channel}, pollInterval: 10s}}\n  \
             budget: {{maxUnavailable: 1}}\n  provenAfter: 1s\n  drain: {{timeout: 60s}}\n  \
             health: {{nodeReadyTimeout: 15m, nodeSoak: 5s}}\n  failureThreshold: 1\n"
        );
        apply(self.client.clone(), &policy).await.with_context(|| format!("writing the policy of {node}"))?;
        Ok(())
    }

    /// Waits until the node's own word about itself is as `wanted`.
    ///
    /// # Errors
    /// With the last word, when that is not so within `patience`, or the operator has ended.
    pub async fn until(
        &self,
        node: &str,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&NodeUpdateStatus) -> bool,
    ) -> anyhow::Result<NodeUpdateStatus> {
        use futures::TryStreamExt as _;
        let updates: Api<NodeUpdate> = Api::all(self.client.clone());
        let only = watcher::Config::default().fields(&format!("metadata.name={node}"));
        let mut seen = std::pin::pin!(watcher(updates, only).default_backoff().applied_objects());
        let mut last = None;
        let waited = tokio::time::timeout(patience, async {
            // While the API server is away the watch fails and is begun again; that is no news.
            loop {
                match seen.try_next().await {
                    Ok(Some(update)) => {
                        let status = update.status.unwrap_or_default();
                        if wanted(&status) {
                            return Ok(status);
                        }
                        last = Some(status);
                    }
                    Ok(None) => bail!("the watch ended"),
                    Err(_) => {}
                }
            }
        })
        .await;
        match waited {
            Ok(found) => found,
            Err(_) => bail!(
                "{node}: {what} was not so within {} s; last it said {}; its policy says {}; the operator's log ends \
                 with:\n{}",
                patience.as_secs(),
                serde_json::to_string(&last)?,
                self.word_about(node).await,
                self.operator.log_tail(5)
            ),
        }
    }

    /// What the operator says about a node's policy, for somebody who asks why nothing happens.
    async fn word_about(&self, policy: &str) -> String {
        let policies: Api<UpdatePolicy> = Api::all(self.client.clone());
        match policies.get(policy).await {
            Ok(policy) => serde_json::to_string(&policy.status).unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until a policy says that it never tries `version` again.
    ///
    /// # Errors
    /// With what the policy says, when that is not so within five minutes.
    pub async fn until_blocked(&self, policy: &str, version: &str) -> anyhow::Result<()> {
        let policies: Api<UpdatePolicy> = Api::all(self.client.clone());
        let blocked = |policy: Option<&UpdatePolicy>| {
            let status = policy.and_then(|policy| policy.status.as_ref());
            status.is_some_and(|status| status.blocked.iter().any(|release| release.version.as_str() == version))
        };
        let waited = tokio::time::timeout(BLOCKED, await_condition(policies, policy, blocked)).await;
        ensure!(
            matches!(waited, Ok(Ok(_))),
            "{version} failed and is not blocked; the policy says {}",
            self.word_about(policy).await
        );
        Ok(())
    }

    /// Types a command of `bascule` with the rights of somebody on call.
    ///
    /// # Errors
    /// When it does not end with success.
    pub async fn on_call(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(&self.cli)
            .args(arguments)
            .env("KUBECONFIG", &self.on_call)
            .env("NO_COLOR", "1")
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("starting {}", self.cli.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`bascule {}` failed: {said}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }
}

/// The objects of `manifests/` for hosts that carry the agent themselves, the trust root, and who is on call. The operator runs beside
/// the cluster here, with the rights of its account, so its Deployment is left out.
fn manifests(workspace: &Path, trust_root: &str) -> anyhow::Result<String> {
    const FOLDERS: [&str; 3] = ["crds", "roles", "admission"];
    const FILES: [&str; 3] = ["operator/namespace.yaml", "operator/rbac.yaml", "components/host-agent/rbac.yaml"];
    let top = workspace.join("manifests");
    let mut paths = FILES.map(|file| top.join(file)).to_vec();
    for folder in FOLDERS {
        let folder = top.join(folder);
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut found = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        found.sort();
        paths.extend(found.into_iter().filter(|path| !path.ends_with("kustomization.yaml")));
    }
    let mut all = Vec::new();
    for path in paths {
        all.push(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let trust = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "bascule-trust-root", "namespace": "bascule-system" },
        "data": { "root.json": trust_root },
    });
    let on_call = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "boot-tests-on-call" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "bascule-on-call" },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": ON_CALL }],
    });
    all.extend([trust.to_string(), on_call.to_string()]);
    Ok(all.join("\n---\n"))
}

pub(crate) fn port_of(url: &str) -> anyhow::Result<u16> {
    let port = url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
    port.with_context(|| format!("{url} has no port"))
}
