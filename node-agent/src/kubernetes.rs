//! The agent's side of the API server: it watches its own NodeUpdate and writes its part of the status.
//!
//! Two tasks, neither of which ever stops the agent's work: one turns the watch into events, one writes the newest status
//! when the server takes it. A refused token or an unreachable server is retried for ever with growing pauses, with fresh
//! credentials each time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bascule_api::{AGENT_MANAGER, NodeUpdate, NodeUpdateSpec, NodeUpdateStatus};
use futures::{Stream, StreamExt as _};
use kube::api::{Api, ApiResource, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Object;
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::core::{Desired, Event};
use crate::engine::in_one_line;
use crate::metrics::Metrics;
use crate::outage::Outage;

/// First pause after a failure.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest time for one request that is no watch.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A NodeUpdate whose status is read apart: a newer operator, or the newer agent of the release that the machine came from, may have
/// written there what this version does not know. The operator's word is heard all the same.
type Watched = Object<NodeUpdateSpec, Value>;

fn node_updates(client: Client) -> Api<Watched> {
    Api::all_with(client, &ApiResource::erase::<NodeUpdate>(&()))
}

/// How to reach the API server.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A kubeconfig, read again whenever a connection is made: a kubelet's client certificate is renewed in place.
    Kubeconfig(PathBuf),
    /// The pod's service account.
    InCluster,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig.
    #[error("the kubeconfig {} can't be used", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: bascule_kubeconfig::ConnectError,
    },
    /// The service account.
    #[error("this is no pod with a service account; name a kubeconfig in kubernetes.kubeconfig")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client.
    #[error("no client for the API server")]
    Client(#[source] kube::Error),
}

impl Credentials {
    /// A client with what the credentials are now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn client(&self) -> Result<Client, ClientError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let failed = |source| ClientError::Kubeconfig { path: path.clone(), source };
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(Box::new(error).into()))?;
                bascule_kubeconfig::from_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?
            }
            Self::InCluster => Config::incluster().map_err(ClientError::InCluster)?,
        };
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        // A watch may be silent for long, and its silence is timed apart.
        config.read_timeout = None;
        config.write_timeout = Some(REQUEST_TIMEOUT);
        Client::try_from(config).map_err(ClientError::Client)
    }
}

/// How a Kubernetes error is counted and shown.
fn kind(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            422 => "Invalid",
            429 => "TooManyRequests",
            500.. => "ServerError",
            _ => "Refused",
        },
        _ => "Unreachable",
    }
}

/// Pauses that grow, and shrink again after a success.
#[derive(Debug)]
struct Pauses(Duration);

impl Pauses {
    const fn new() -> Self {
        Self(PAUSE_FIRST)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        // A fleet that lost its server together must not come back together.
        pause.mul_f64(rand::random_range(0.75..1.25))
    }
}

/// A status for an object: one that was made anew has none of what was written before.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusToWrite {
    /// The object's UID.
    pub uid: String,
    /// The status.
    pub status: NodeUpdateStatus,
}

/// The link to one NodeUpdate.
#[derive(Debug, Clone)]
pub struct Link {
    /// How to reach the server.
    pub credentials: Credentials,
    /// The Node's name, and the object's.
    pub node: String,
    /// How often a status that differs only in its progress is written at most.
    pub progress_every: Duration,
    /// After which time without a sign of life a watch is given up.
    pub silence: Duration,
    /// Where requests and errors are counted.
    pub metrics: Arc<Metrics>,
}

impl Link {
    /// An API server sends each watch a bookmark about once a minute (k8s.io/apiserver, `storage/cacher`,
    /// `defaultBookmarkFrequency`). One that has missed four of them, or that sends none, gets a new connection.
    pub const SILENCE: Duration = Duration::from_secs(290);

    /// Turns the watch into events until nobody listens any more.
    pub async fn watch(self, events: mpsc::Sender<Event>) {
        let (mut pauses, mut outage) = (Pauses::new(), Outage::default());
        loop {
            match self.credentials.client().await {
                Ok(client) => match self.follow(client, &events, &mut pauses, &mut outage).await {
                    Ok(()) => return,
                    Err(broken) => {
                        let kind = broken.kind();
                        self.metrics.kubernetes_error("watch", kind);
                        if let Some(failures) = outage.failed(kind, Instant::now()) {
                            let error = in_one_line(&broken);
                            tracing::warn!(kind, error, failures, "the watch of NodeUpdate {} broke", self.node);
                        }
                    }
                },
                Err(error) => {
                    self.metrics.kubernetes_error("watch", "Credentials");
                    if let Some(failures) = outage.failed("Credentials", Instant::now()) {
                        let error = in_one_line(&error);
                        tracing::warn!(error, failures, "no client for the API server; trying again");
                    }
                }
            }
            tokio::time::sleep(pauses.next()).await;
            if events.is_closed() {
                return;
            }
        }
    }

    /// Watches with one client until that breaks; ends well when nobody listens any more.
    async fn follow(
        &self,
        client: Client,
        events: &mpsc::Sender<Event>,
        pauses: &mut Pauses,
        outage: &mut Outage,
    ) -> Result<(), Broken> {
        let alarm = Alarm::new()?;
        // How long a watch lasts is left to the server (half an hour or more, `--min-request-timeout`), and tokio sets no
        // timer meanwhile, which would wake an idle agent (see `alarm`).
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.node)).timeout(0);
        let mut stream = std::pin::pin!(watcher::watcher(node_updates(client), config));
        let mut found = false;
        loop {
            let sign_of_life = || {
                // Whatever is due soon is done now that the agent is awake. If the channel is full, it has enough to do.
                let _ = events.try_send(Event::Tick);
                alarm.set(self.silence)
            };
            let change = tokio::select! {
                biased;
                rang = alarm.rings() => return Err(rang.map_or_else(Broken::from, |()| Broken::Silent(self.silence))),
                change = next_change(&mut stream, sign_of_life) => change?,
            };
            let change = match change {
                Some(Ok(change)) => change,
                // The server forgot where we were: the watcher lists afresh by itself.
                Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => continue,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Broken::Ended),
            };
            if matches!(change, watcher::Event::Init) {
                // A list is about to be asked for; nothing was answered yet.
                found = false;
                continue;
            }
            *pauses = Pauses::new();
            if let Some(failures) = outage.over() {
                tracing::info!(failures, "the watch of NodeUpdate {} stands again", self.node);
            }
            let object = match change {
                watcher::Event::InitApply(object) => {
                    found = true;
                    Some(object)
                }
                watcher::Event::Apply(object) => Some(object),
                watcher::Event::Delete(_) => None,
                watcher::Event::InitDone if !found => None,
                watcher::Event::InitDone | watcher::Event::Init => continue,
            };
            for event in as_events(object) {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// Writes the newest status whenever it changes and the server takes it. Ends when the sender is gone, after one last
    /// try.
    pub async fn publish(self, mut statuses: watch::Receiver<Option<StatusToWrite>>) {
        let mut client: Option<Client> = None;
        let mut written: Option<StatusToWrite> = None;
        let mut last_write: Option<Instant> = None;
        let (mut pauses, mut outage) = (Pauses::new(), Outage::default());
        let mut open = true;
        while open {
            open = statuses.changed().await.is_ok();
            loop {
                let Some(status) = statuses.borrow_and_update().clone() else { break };
                if written.as_ref() == Some(&status) {
                    break;
                }
                if let Some(wait) = self.throttle(written.as_ref(), &status, last_write) {
                    // Something that is no progress may come meanwhile and must not wait.
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        changed = statuses.changed() => open = changed.is_ok(),
                    }
                    if open && self.throttle(written.as_ref(), &status, last_write).is_some() {
                        continue;
                    }
                }
                match self.write(&mut client, &status.status).await {
                    Ok(()) => {
                        // At rest no second connection is kept, which the server would end some time later.
                        if status.status.transfer.is_none() {
                            client = None;
                        }
                        written = Some(status);
                        last_write = Some(Instant::now());
                        pauses = Pauses::new();
                        if let Some(failures) = outage.over() {
                            tracing::info!(failures, "the status of NodeUpdate {} is written again", self.node);
                        }
                    }
                    Err(Unwritten { kind, error }) => {
                        self.metrics.kubernetes_error("status", kind);
                        if let Some(failures) = outage.failed(kind, Instant::now()) {
                            tracing::warn!(
                                kind,
                                error,
                                failures,
                                "the status of NodeUpdate {} is not written",
                                self.node
                            );
                        }
                        client = None;
                        if !open || kind == "NotFound" {
                            break;
                        }
                        tokio::select! {
                            () = tokio::time::sleep(pauses.next()) => {}
                            changed = statuses.changed() => open = changed.is_ok(),
                        }
                    }
                }
            }
        }
    }

    /// How long a status that differs from the written one only in its progress has to wait.
    fn throttle(
        &self,
        written: Option<&StatusToWrite>,
        status: &StatusToWrite,
        last: Option<Instant>,
    ) -> Option<Duration> {
        let (written, last) = (written.filter(|written| written.uid == status.uid)?, last?);
        let without = |status: &NodeUpdateStatus| NodeUpdateStatus {
            // Whether there is a transfer, of what, and whether it rests is no progress.
            transfer: status.transfer.clone().map(|transfer| bascule_api::Transfer {
                bytes_done: 0,
                bytes_total: 0,
                percent: 0,
                ..transfer
            }),
            ..status.clone()
        };
        if without(&written.status) != without(&status.status) {
            return None;
        }
        let due = last + self.progress_every;
        due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    async fn write(&self, client: &mut Option<Client>, status: &NodeUpdateStatus) -> Result<(), Unwritten> {
        let connected = match client {
            Some(client) => client.clone(),
            None => {
                let made = self.credentials.client().await;
                let made = made.map_err(|error| Unwritten { kind: "Credentials", error: in_one_line(&error) })?;
                client.insert(made).clone()
            }
        };
        let api = node_updates(connected);
        let patch = apply(&self.node, status);
        // Whoever else claims the agent's fields is wrong about them.
        let parameters = PatchParams::apply(AGENT_MANAGER).force();
        let patch = Patch::Apply(&patch);
        let request = api.patch_status(&self.node, &parameters, &patch);
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(_)) => {
                self.metrics.status_written();
                Ok(())
            }
            Ok(Err(error)) => Err(Unwritten { kind: kind(&error), error: in_one_line(&error) }),
            Err(_) => {
                let error = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
                Err(Unwritten { kind: "Timeout", error })
            }
        }
    }
}

/// Why a status was not written.
struct Unwritten {
    /// For the metrics.
    kind: &'static str,
    /// With its causes.
    error: String,
}

/// Why a watch came to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// No timer.
    #[error("the kernel gives the agent no timer")]
    Timer(#[from] std::io::Error),
    /// Nothing came for too long.
    #[error("the API server gave no sign of life for {} s", .0.as_secs())]
    Silent(Duration),
    /// The client gave up.
    #[error("the watch ended")]
    Ended,
    /// It failed.
    #[error(transparent)]
    Failed(#[from] watcher::Error),
}

impl Broken {
    /// For the metrics.
    fn kind(&self) -> &'static str {
        match self {
            Self::Timer(_) => "Timer",
            Self::Silent(_) => "Silent",
            Self::Ended => "Ended",
            Self::Failed(
                watcher::Error::InitialListFailed(error)
                | watcher::Error::WatchStartFailed(error)
                | watcher::Error::WatchFailed(error),
            ) => kind(error),
            Self::Failed(_) => "Refused",
        }
    }
}

/// The next change. `sign_of_life` is called whenever the server has said anything: the watcher keeps bookmarks and the
/// renewals of the watch to itself, but it is asked for a change only when something came.
async fn next_change<S: Stream + Unpin>(
    stream: &mut S,
    mut sign_of_life: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<Option<S::Item>> {
    std::future::poll_fn(|context| match sign_of_life() {
        Ok(()) => stream.poll_next_unpin(context).map(Ok),
        Err(error) => std::task::Poll::Ready(Err(error)),
    })
    .await
}

/// The agent's part of an object: everything in the status but the operator's explanation.
fn own_part(mut status: NodeUpdateStatus) -> NodeUpdateStatus {
    status.rollout = None;
    status
}

/// What is understood of the agent's part of a status.
fn understood(status: Value) -> NodeUpdateStatus {
    let Value::Object(fields) = status else { return NodeUpdateStatus::default() };
    let one_by_one = fields.into_iter().filter(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        // What it explains of the rollout is the operator's.
        name != "rollout" && serde_json::from_value::<NodeUpdateStatus>(alone).is_ok()
    });
    serde_json::from_value(Value::Object(one_by_one.collect())).unwrap_or_default()
}

fn as_events(object: Option<Watched>) -> Vec<Event> {
    let Some(object) = object else { return vec![Event::Desired(None)] };
    let uid = object.metadata.uid.unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let remembered = Event::Remembered(Box::new(object.status.map(understood).unwrap_or_default()));
    vec![remembered, Event::Desired(Some(Desired::new(uid, generation, &object.spec)))]
}

/// What is applied: only fields that are the agent's.
fn apply(node: &str, status: &NodeUpdateStatus) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "bascule.dev/v1alpha1",
        "kind": "NodeUpdate",
        "metadata": { "name": node },
        "status": own_part(status.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_explanation_is_never_written() {
        let rollout = serde_json::from_value(serde_json::json!({"state": "Waiting", "reason": "Paused"}));
        let status = NodeUpdateStatus { rollout: rollout.ok(), last_grant: Some(3), ..NodeUpdateStatus::default() };
        let patch = apply("n1", &status);
        assert_eq!(patch["status"]["lastGrant"], 3);
        assert!(patch["status"].get("rollout").is_none());
    }

    #[test]
    fn what_another_version_wrote_into_the_status_keeps_no_word_from_being_heard() {
        let object = serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1",
            "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": "u", "generation": 4},
            "spec": {"policy": "workers", "goal": "Committed"},
            "status": {
                "lastGrant": 3,
                "lastError": {"category": "Tomorrow", "message": "x", "attempts": 1, "at": "2026-06-01T12:00:00Z"},
                "rollout": {"state": "Waiting", "reason": "Tomorrow"}
            }
        });
        let events = as_events(Some(serde_json::from_value(object).unwrap()));
        let [Event::Remembered(status), Event::Desired(Some(desired))] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((status.last_grant, &status.last_error), (Some(3), &None));
        assert_eq!((desired.goal, desired.generation), (bascule_api::Goal::Committed, 4));
    }
}
