//! Pods of the sandbox that are more than records: replicas of the operator run as the real program with the token of
//! their pod, and the token of an agent's pod is brought to its machine, which runs the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bascule_tests::address::Address;
use bascule_tests::container::{ContainerError, arguments, environment};
use bascule_tests::control_plane::{Credentials, free_port};
use bascule_tests::kubelet::Runtime;
use bascule_tests::supervise::Supervised;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How long the container of a crashed pod stays down (a kubelet starts with 10 s and doubles; the story is shorter).
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Makes credentials out of (namespace, service account, token).
type Identify = Box<dyn Fn(&str, &str, &str) -> Credentials + Send + Sync>;

/// The node's container runtime, shared by all kubelets of the sandbox.
pub(crate) struct Containers {
    /// The operator's program.
    pub(crate) operator: PathBuf,
    /// Logs and kubeconfigs.
    pub(crate) folder: PathBuf,
    /// The authority of the release repository.
    pub(crate) extra_ca: PathBuf,
    /// Makes credentials of a token.
    pub(crate) identify: Identify,
    /// Running pods by uid.
    running: Mutex<BTreeMap<String, Running>>,
    /// Where pods are reached, by uid; they keep it as long as the sandbox runs, over reboots of their machines too.
    addresses: Mutex<BTreeMap<String, Address>>,
}

impl std::fmt::Debug for Containers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Containers").field("running", &self.operators()).finish_non_exhaustive()
    }
}

/// A pod that runs as a process.
#[derive(Debug)]
struct Running {
    name: String,
    node: String,
    process: Arc<Mutex<Option<Supervised>>>,
    keeper: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keeper.abort();
        lock(&self.process).take();
    }
}

/// What a pod of ours is, by its label.
fn role(pod: &Pod) -> Option<&str> {
    pod.labels().get("app.kubernetes.io/name").map(String::as_str).filter(|name| name.starts_with("bascule-"))
}

/// Where the kubeconfig of a node's agent lies.
pub(crate) fn agent_kubeconfig(folder: &Path, node: &str) -> PathBuf {
    folder.join(format!("agent-{node}.kubeconfig"))
}

impl Containers {
    /// No pod runs yet.
    pub(crate) fn new(operator: PathBuf, folder: PathBuf, extra_ca: PathBuf, identify: Identify) -> Self {
        Self { operator, folder, extra_ca, identify, running: Mutex::default(), addresses: Mutex::default() }
    }

    /// Names of the operator's replicas that run at this moment, in order.
    pub(crate) fn operators(&self) -> Vec<String> {
        let mut names: Vec<String> = lock(&self.running).values().map(|running| running.name.clone()).collect();
        names.sort();
        names
    }

    /// Kills a replica of the operator at once. Its container starts again.
    pub(crate) fn kill(&self, name: &str) {
        for running in lock(&self.running).values().filter(|running| running.name == name) {
            if let Some(process) = lock(&running.process).as_mut()
                && let Err(error) = process.kill()
            {
                tracing::warn!(name, %error, "an operator could not be killed");
            }
        }
    }

    /// Whether the API server's pod proxy reaches the pods: they have addresses of their own.
    pub(crate) fn are_reachable(&self) -> bool {
        !lock(&self.addresses).is_empty()
    }

    /// Where the pod listens: at an address of its own, on the port that its manifest names, so that the API server's pod proxy
    /// reaches it; where this machine gives none, on any port of the loopback interface.
    fn listen(&self, pod: &Pod) -> Result<SocketAddr, String> {
        let mut addresses = lock(&self.addresses);
        let uid = pod.uid().unwrap_or_default();
        let own = addresses.get(&uid).map(Address::get).or_else(|| {
            let address = Address::take()?;
            let own = address.get();
            addresses.insert(uid, address);
            Some(own)
        });
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let port = containers.first().and_then(|container| container.ports.as_ref()?.first());
        let port = port.and_then(|port| u16::try_from(port.container_port).ok());
        match (own, port) {
            (Some(own), Some(port)) => Ok((own, port).into()),
            _ => Ok((Ipv4Addr::LOCALHOST, free_port().map_err(|error| error.to_string())?).into()),
        }
    }

    fn start_operator(&self, pod: &Pod, credentials: &Credentials) -> Result<Running, String> {
        let name = pod.name_any();
        let kubeconfig = self.folder.join(format!("{name}.kubeconfig"));
        credentials.write_to(&kubeconfig).map_err(|error| error.to_string())?;
        let listen = self.listen(pod)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let state = self.folder.join(format!("state-{name}"));
        let environment = environment_of(pod, &state).map_err(|error| error.to_string())?;
        // Several replicas share one machine, its root and its network, and this repository's authority is its own.
        let own = [
            ("KUBECONFIG", kubeconfig.display().to_string()),
            ("BASCULE_LISTEN", listen.to_string()),
            ("BASCULE_EXTRA_CA", self.extra_ca.display().to_string()),
            ("RUST_LOG", "info,bascule=debug".to_owned()),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value));
        let environment: Vec<(String, String)> = environment.into_iter().chain(own).collect();
        let arguments = arguments(pod).map_err(|error| error.to_string())?;
        let log = self.folder.join(format!("{name}.log"));
        let program = self.operator.clone();
        let start = move || Supervised::start(&program, &arguments, &environment, &log);
        let process = Arc::new(Mutex::new(Some(start().map_err(|error| error.to_string())?)));
        let kept = Arc::clone(&process);
        let keeper = tokio::spawn(async move {
            loop {
                sleep(RESTART_AFTER).await;
                let mut process = lock(&kept);
                let ended = process.as_mut().is_none_or(|process| !matches!(process.ended(), Ok(None)));
                if ended {
                    match start() {
                        Ok(again) => *process = Some(again),
                        Err(error) => tracing::warn!(%error, "an operator does not start again"),
                    }
                }
            }
        });
        Ok(Running { name, node, process, keeper })
    }
}

/// The environment as the pod's manifest has it. Where it names a place in an emptyDir, that is the folder `volumes`.
fn environment_of(pod: &Pod, volumes: &Path) -> Result<Vec<(String, String)>, ContainerError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let scratch = |name: &str| spec.volumes.iter().flatten().any(|one| one.name == name && one.empty_dir.is_some());
    let mounts = spec.containers.first().and_then(|container| container.volume_mounts.clone()).unwrap_or_default();
    let places: Vec<String> =
        mounts.into_iter().filter(|mount| scratch(&mount.name)).map(|mount| mount.mount_path).collect();
    let moved = |value: String| {
        let inside = places.iter().find_map(|place| value.strip_prefix(place.as_str()));
        inside.map(|rest| format!("{}{rest}", volumes.display())).unwrap_or(value)
    };
    Ok(environment(pod)?.into_iter().map(|(key, value)| (key, moved(value))).collect())
}

#[async_trait]
impl Runtime for Containers {
    fn runs(&self, pod: &Pod) -> bool {
        role(pod).is_some()
    }

    async fn start(&self, pod: &Pod, token: &str) -> Result<(), String> {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
        let credentials = (self.identify)(&pod.namespace().unwrap_or_default(), &account, token);
        match role(pod) {
            Some("bascule-operator") => {
                // After a reboot of its machine the container of the last boot is gone.
                self.stop(pod).await;
                let running = self.start_operator(pod, &credentials)?;
                lock(&self.running).insert(pod.uid().unwrap_or_default(), running);
                Ok(())
            }
            Some("bascule-agent") => {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                credentials.write_to(&agent_kubeconfig(&self.folder, &node)).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
    }

    fn address(&self, pod: &Pod) -> Option<IpAddr> {
        lock(&self.addresses).get(&pod.uid().unwrap_or_default()).map(|address| address.get().into())
    }

    async fn stop(&self, pod: &Pod) {
        let running = lock(&self.running).remove(&pod.uid().unwrap_or_default());
        let Some(running) = running else { return };
        running.keeper.abort();
        let process = lock(&running.process).take();
        let Some(mut process) = process else { return };
        if let Err(error) = process.terminate() {
            tracing::warn!(%error, "an operator could not be asked to end");
        }
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let deadline = tokio::time::Instant::now() + Duration::from_secs(grace.unwrap_or(5).min(10));
        while matches!(process.ended(), Ok(None)) && tokio::time::Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn power_off(&self, node: &str) {
        lock(&self.running).retain(|_, running| running.node != node);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
