//! The sandbox's own watches. They feed one [`Snapshot`] that the acts wait on, the view draws, and the report quotes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bascule_api::{NodeUpdate, UpdatePolicy};
use bascule_sim::machine::MachineView;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::snapshot::{PodSeen, Snapshot};

/// The label that nodes of the sandbox carry, so that nothing else in a cluster is ever touched.
pub(crate) const SANDBOX_LABEL: &str = "bascule.dev/sandbox";

/// Watches over a cluster. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    sender: watch::Sender<Snapshot>,
    tasks: Mutex<JoinSet<()>>,
}

impl Observer {
    /// Sees machines and nothing else before [`Self::watch`].
    pub(crate) fn new() -> Self {
        Self { sender: watch::Sender::new(Snapshot::default()), tasks: Mutex::default() }
    }

    /// Starts watching the cluster, with a client of its own so that its requests are counted apart. Everything that is
    /// watched has to be installed by then.
    pub(crate) fn watch(&self, client: &Client, namespace: &str) {
        let sender = &self.sender;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = watcher::Config::default().labels(SANDBOX_LABEL);
        tasks.spawn(follow(Api::<Node>::all(client.clone()), ours, sender.clone(), see_node));
        let all = watcher::Config::default();
        tasks.spawn(follow(Api::<NodeUpdate>::all(client.clone()), all.clone(), sender.clone(), see_update));
        tasks.spawn(follow(Api::<UpdatePolicy>::all(client.clone()), all, sender.clone(), see_policy));
        let shop = watcher::Config::default().labels("app=shop");
        tasks.spawn(follow(Api::<Pod>::namespaced(client.clone(), namespace), shop, sender.clone(), see_pod));
    }

    /// The present.
    pub(crate) fn now(&self) -> Snapshot {
        self.sender.borrow().clone()
    }

    /// To be told of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.sender.subscribe()
    }

    /// A machine shows another state.
    pub(crate) fn see_machine(&self, view: MachineView) {
        let name = view.name.clone();
        change(&self.sender, |seen| seen.nodes.entry(name).or_default().machine = Some(view));
    }

    /// A machine's process ended, which none does before the story ends.
    pub(crate) fn lose_machine(&self, name: &str, why: String) {
        change(&self.sender, |seen| {
            seen.lost.insert(name.to_owned(), why);
        });
    }

    /// From now on the worst is remembered.
    pub(crate) fn remember_the_worst(&self) {
        change(&self.sender, Snapshot::watch_from_here);
    }

    /// Waits until the cluster is as `wanted` says, and gives that moment.
    ///
    /// # Errors
    /// When it does not get there in time, or at once when it never can; the message has `what`.
    pub(crate) async fn until(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> anyhow::Result<Snapshot> {
        let mut receiver = self.subscribe();
        match timeout(patience, receiver.wait_for(|seen| wanted(seen) || seen.hopeless().is_some())).await {
            Ok(seen) => {
                let seen = seen.context("the watch over the cluster ended")?.clone();
                match seen.hopeless().filter(|_| !wanted(&seen)) {
                    Some(why) => bail!("{what}: never, because {why}"),
                    None => Ok(seen),
                }
            }
            Err(_) => bail!("{what}: not within {} s", patience.as_secs()),
        }
    }
}

fn change(sender: &watch::Sender<Snapshot>, with: impl FnOnce(&mut Snapshot)) {
    sender.send_modify(|seen| {
        with(seen);
        seen.note();
    });
}

/// What a watch says about one object.
enum Seen<K> {
    There(K),
    Gone(K),
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    sender: watch::Sender<Snapshot>,
    see: fn(&mut Snapshot, Seen<K>),
) where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    let uid = |object: &K| object.uid().unwrap_or_default();
    // A watch that had to list again is told nothing of what went meanwhile: what the new list lacks is gone.
    let (mut known, mut before) = (BTreeMap::<String, K>::new(), BTreeMap::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                known.insert(uid(&object), object.clone());
                change(&sender, |seen| see(seen, Seen::There(object)));
            }
            Ok(watcher::Event::Delete(object)) => {
                known.remove(&uid(&object));
                change(&sender, |seen| see(seen, Seen::Gone(object)));
            }
            Ok(watcher::Event::Init) => before = std::mem::take(&mut known),
            Ok(watcher::Event::InitDone) => {
                let gone = std::mem::take(&mut before).into_iter().filter(|(uid, _)| !known.contains_key(uid));
                let gone: Vec<K> = gone.map(|(_, object)| object).collect();
                change(&sender, |seen| {
                    gone.into_iter().for_each(|object| see(seen, Seen::Gone(object)));
                    // What came back under the name of something that went is there.
                    known.values().cloned().for_each(|object| see(seen, Seen::There(object)));
                });
            }
            Err(error) => tracing::debug!(%error, "a watch of the sandbox broke off and starts again"),
        }
    }
}

fn see_node(seen: &mut Snapshot, node: Seen<Node>) {
    match node {
        Seen::Gone(node) => {
            seen.nodes.remove(&node.name_any());
        }
        Seen::There(node) => {
            let known = seen.nodes.entry(node.name_any()).or_default();
            known.zone = node.labels().get("topology.kubernetes.io/zone").cloned().unwrap_or_default();
            known.cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            known.ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        }
    }
}

fn see_update(seen: &mut Snapshot, update: Seen<NodeUpdate>) {
    match update {
        Seen::There(update) => {
            let name = update.name_any();
            seen.nodes.entry(name).or_default().update = Some(update);
        }
        Seen::Gone(update) => {
            if let Some(node) = seen.nodes.get_mut(&update.name_any()) {
                node.update = None;
            }
        }
    }
}

fn see_policy(seen: &mut Snapshot, policy: Seen<UpdatePolicy>) {
    match policy {
        Seen::There(policy) => seen.policy = Some(policy),
        Seen::Gone(_) => seen.policy = None,
    }
}

fn see_pod(seen: &mut Snapshot, pod: Seen<Pod>) {
    match pod {
        Seen::Gone(pod) => {
            seen.shop.remove(&pod.uid().unwrap_or_default());
        }
        Seen::There(pod) => {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            let ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
            let healthy = ready && pod.metadata.deletion_timestamp.is_none();
            let uid = pod.uid().unwrap_or_default();
            seen.shop.insert(uid, PodSeen { healthy, node: pod.spec.and_then(|spec| spec.node_name) });
        }
    }
}
