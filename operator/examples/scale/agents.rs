//! Every node's agent, in one task: it stages, reboots and commits at once, so that what is left is the operator's time.

use bascule_api::{AGENT_MANAGER, Goal, NodeUpdate, NodeUpdateSpec, Rollout};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How many statuses are written at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Clone)]
struct Machine {
    boot_id: String,
    running: String,
    other: Option<(String, String)>,
    trial: bool,
    used_grant: i64,
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

    /// Seconds from the grant until the node was free again, less the drain, of each node since the last call.
    pub(crate) fn overheads(&self) -> Vec<f64> {
        std::mem::take(&mut *self.overheads.lock().unwrap())
    }

    /// What was explained to whoever asks why a node waits, and how often.
    pub(crate) fn explanations(&self) -> Explanations {
        self.explanations.lock().unwrap().clone()
    }
}

async fn run(client: Client, overheads: Arc<Mutex<Vec<f64>>>, explanations: Arc<Mutex<Explanations>>) {
    let updates: Api<NodeUpdate> = Api::all(client.clone());
    let nodes: Api<Node> = Api::all(client);
    let mut machines: HashMap<String, Machine> = HashMap::new();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut events = pin!(watcher(updates.clone(), watcher::Config::default()).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let Ok(update) = event else { continue };
        let name = update.name_any();
        if !machines.contains_key(&name) {
            let boot_id = nodes.get(&name).await.ok().and_then(|node| Some(node.status?.node_info?.boot_id));
            let machine = Machine {
                boot_id: boot_id.unwrap_or_default(),
                running: "1.0".to_owned(),
                other: None,
                trial: false,
                used_grant: 0,
                granted: None,
                drained: 0.0,
                explained: None,
            };
            machines.insert(name.clone(), machine);
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
        let rebooted = machine.follow(&update.spec, &overheads);
        let status = machine.status(update.metadata.generation);
        let before = serde_json::to_value(update.status.clone().unwrap_or_default()).unwrap_or_default();
        if !status.as_object().is_some_and(|status| status.iter().any(|(key, value)| before.get(key) != Some(value))) {
            continue;
        }
        let (updates, nodes, boot_id) = (updates.clone(), nodes.clone(), machine.boot_id.clone());
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

impl Machine {
    /// Does what is asked; whether that was a reboot.
    fn follow(&mut self, spec: &NodeUpdateSpec, overheads: &Mutex<Vec<f64>>) -> bool {
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
        let Some(release) = &spec.release else { return false };
        let version = release.version.as_str();
        match spec.goal {
            Goal::Staged if self.running != version => {
                self.other = Some((version.to_owned(), release.digest.as_str().to_owned()));
            }
            Goal::Booted => {
                let granted = spec.grant.as_ref().filter(|grant| {
                    grant.boot_id == self.boot_id && grant.generation > self.used_grant && self.running != version
                });
                if let Some(grant) = granted
                    && let Some((staged, _)) = self.other.take_if(|held| held.0 == version)
                {
                    self.used_grant = grant.generation;
                    self.boot_id = uuid::Uuid::new_v4().to_string();
                    self.running = staged;
                    self.trial = true;
                    return true;
                }
            }
            Goal::Committed => self.trial = false,
            Goal::Idle | Goal::Staged | Goal::Reverted => {}
        }
        false
    }

    fn status(&self, generation: Option<i64>) -> Value {
        let state = if self.trial { "Trial" } else { "Good" };
        let mut status = json!({
            "observedGeneration": generation,
            "bootID": self.boot_id,
            "architecture": "x86-64",
            "booted": {"slot": "A", "version": self.running, "rootHash": "a".repeat(64)},
            "slots": {"a": {"state": state, "version": self.running}, "b": {"state": "Empty"}},
            "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
            "lastGrant": self.used_grant,
        });
        if self.trial {
            status["trial"] = json!({"version": self.running, "triesLeft": 2});
        } else {
            status["booted"]["committedAt"] = json!("2026-01-01T00:00:00Z");
        }
        if let Some((version, digest)) = &self.other {
            status["slots"]["b"] = json!({"state": "Staged", "version": version});
            status["staged"] = json!({"version": version, "digest": digest});
        }
        status
    }
}
