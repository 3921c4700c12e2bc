//! Every node's agent, in one task: it stages, reboots and commits at once, so that what is left is the operator's time.

use bascule_api::{AGENT_MANAGER, NodeUpdate, NodeUpdateSpec, Rollout};
use bascule_tests::agent::{StandIn, says_more};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How many statuses are written at once.
const AT_ONCE: usize = 16;

/// When every machine was installed.
const INSTALLED: &str = "2026-01-01T00:00:00Z";

/// An agent, and how long its node was away.
#[derive(Debug, Clone)]
struct Watched {
    agent: StandIn,
    granted: Option<Instant>,
    drained: f64,
    explained: Option<Rollout>,
}

/// The running agents; they end when this is dropped.
pub(crate) struct Agents {
    task: JoinHandle<()>,
    overheads: Arc<Mutex<Vec<f64>>>,
    explanations: Arc<Mutex<Explanations>>,
}

/// How often each explanation was seen to follow another on some node.
pub(crate) type Explanations = BTreeMap<String, u32>;

impl Drop for Agents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    pub(crate) fn start(client: Client) -> Self {
        let overheads = Arc::<Mutex<Vec<f64>>>::default();
        let explanations = Arc::<Mutex<Explanations>>::default();
        let task = tokio::spawn(run(client, Arc::clone(&overheads), Arc::clone(&explanations)));
        Self { task, overheads, explanations }
    }

    /// Seconds from the grant until the node was free again, less the drain, of each node since the last call: so many, which may be
    /// waited for since what the operator says of its nodes may come before what it writes to them.
    pub(crate) async fn overheads_of(&self, nodes: usize, patience: Duration) -> Vec<f64> {
        let until = Instant::now() + patience;
        loop {
            let known = self.overheads.lock().unwrap().len();
            if known >= nodes {
                return std::mem::take(&mut *self.overheads.lock().unwrap());
            }
            assert!(Instant::now() < until, "only {known} of {nodes} nodes were measured");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What was explained to whoever asks why a node waits, and how often.
    pub(crate) fn explanations(&self) -> Explanations {
        self.explanations.lock().unwrap().clone()
    }
}

async fn run(client: Client, overheads: Arc<Mutex<Vec<f64>>>, explanations: Arc<Mutex<Explanations>>) {
    let updates: Api<NodeUpdate> = Api::all(client.clone());
    let nodes: Api<Node> = Api::all(client);
    let mut machines: HashMap<String, Watched> = HashMap::new();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut events = pin!(watcher(updates.clone(), watcher::Config::default()).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let Ok(update) = event else { continue };
        let name = update.name_any();
        if !machines.contains_key(&name) {
            let boot_id = nodes.get(&name).await.ok().and_then(|node| Some(node.status?.node_info?.boot_id));
            let agent = StandIn::installed("1.0".parse().unwrap(), boot_id.unwrap_or_default(), INSTALLED);
            machines.insert(name.clone(), Watched { agent, granted: None, drained: 0.0, explained: None });
        }
        let Some(machine) = machines.get_mut(&name) else { continue };
        let said = update.status.as_ref().and_then(|status| status.rollout.clone());
        if said != machine.explained {
            let text =
                |one: Option<&Rollout>| one.map_or("-".to_owned(), |one| format!("{:?}/{}", one.state, one.reason));
            let change = format!("{} → {}", text(machine.explained.as_ref()), text(said.as_ref()));
            *explanations.lock().unwrap().entry(change).or_default() += 1;
            machine.explained = said;
        }
        machine.measure(&update.spec, &overheads);
        let rebooted = machine.agent.must_reboot(&update.spec);
        if rebooted {
            machine.agent.reboot(&update.spec, uuid::Uuid::new_v4().to_string(), true);
        }
        machine.agent.follow(&update.spec);
        let status = machine.agent.status(update.metadata.generation);
        let before = serde_json::to_value(update.status.clone().unwrap_or_default()).unwrap_or_default();
        if !says_more(&status, &before) {
            continue;
        }
        let (updates, nodes, boot_id) = (updates.clone(), nodes.clone(), machine.agent.boot_id.clone());
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        tokio::spawn(async move {
            let _permit = permit;
            if rebooted {
                let boot = json!({"status": {"nodeInfo": {"bootID": boot_id}}});
                let _ = nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&boot)).await;
            }
            let document = json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name}, "status": status,
            });
            let params = PatchParams::apply(AGENT_MANAGER).force();
            let _ = updates.patch_status(&name, &params, &Patch::Apply(&document)).await;
        });
    }
}

impl Watched {
    /// Counts from the grant until the node is free again.
    fn measure(&mut self, spec: &NodeUpdateSpec, overheads: &Mutex<Vec<f64>>) {
        match (&spec.disruption, self.granted) {
            (Some(_), None) => self.granted = Some(Instant::now()),
            (Some(disruption), Some(_)) => {
                let ended = disruption.drained_at.zip(disruption.drain_started_at);
                self.drained = ended.map_or(self.drained, |(end, start)| end.seconds_since(start) as f64);
            }
            (None, Some(granted)) => {
                overheads.lock().unwrap().push((granted.elapsed().as_secs_f64() - self.drained).max(0.0));
                self.granted = None;
            }
            (None, None) => {}
        }
    }
}
