//! The drain of one node: asks for its pods to go, all at once within a common bound, and watches them leave until it is
//! told to stop. It decides nothing: whether, how long and how hard is the planner's word.

use super::{
    backoff,
    evict::{Answer, EvictionBackend, Target},
};
use crate::{clock::Clock, gather::PodFact};
use bascule_api::{Drain, ObjectRef};
pub use bascule_facts::{Blocked, Progress};
use bascule_planner::drain::{Hour, Ledger, Sorted, sort};
use chrono::{DateTime, Utc};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

/// After this time an accepted eviction of a pod that still shows no deletion is asked again.
const ACCEPTED_AGAIN: Duration = Duration::from_secs(20);
/// The shortest time between two requests for one pod.
const SOON: Duration = Duration::from_millis(500);
/// Where pods wait for their turn or for their end, time alone may change what is done.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Changes of pods come in bursts; one look serves them all.
const BURST: Duration = Duration::from_millis(20);

/// How hard pods are asked to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By eviction, under their budgets.
    Evict,
    /// By deletion, whatever the budgets say: the policy's word for a drain whose time is over.
    Delete,
}

/// What is asked of a drain.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The node.
    pub node: String,
    /// The policy's settings.
    pub settings: Drain,
    /// When the drain began.
    pub begun: DateTime<Utc>,
    /// How hard.
    pub mode: Mode,
    /// Whether nobody is asked, and only what the drain knows is kept.
    pub keeps: bool,
}

/// Where pods come from: the cache, or a list in a test.
pub trait PodSource: Send + Sync {
    /// The pods bound to a node.
    fn on_node(&self, node: &str) -> Vec<Arc<PodFact>>;
    /// Told whenever pods or budgets change.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Whether a budget allows a disruption now; `None` where it is not known.
    fn allows(&self, budget: &ObjectRef) -> Option<bool>;
    /// The UID of the operator's own pod, where it has to stay with its node.
    fn own_pod_that_stays(&self, namespace: &str, name: &str) -> Option<String>;
}

/// What happened to a pod, for the audit.
pub trait DrainObserver: Send + Sync {
    /// A pod was asked to go and the API server agreed.
    fn pod_disrupted(&self, node: &str, pod: &ObjectRef, uid: &str, mode: Mode);
    /// A pod was asked to go and did not, or was gone already.
    fn pod_refused(&self, result: &'static str);
    /// The progress changed.
    fn progressed(&self, node: &str);
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tools")
    }
}

/// What a drain works with.
#[derive(Clone)]
pub struct Tools {
    /// Asks pods to go.
    pub backend: Arc<dyn EvictionBackend>,
    /// Where pods are seen.
    pub pods: Arc<dyn PodSource>,
    /// Who is told.
    pub observer: Arc<dyn DrainObserver>,
    /// Bounds what is asked at once, over all nodes.
    pub permits: Arc<Semaphore>,
    /// The time.
    pub clock: Clock,
    /// This operator's own pod, which goes last: an eviction that is under way when its asker is evicted may be counted
    /// against its budget without the pod going, and the budget forgets that only after two minutes.
    pub own_pod: Option<(String, String)>,
}

impl Tools {
    /// The pods of a node by what is done with them now.
    fn sort<'a>(&self, present: &'a [Arc<PodFact>], order: &Order, ledger: &Ledger) -> Sorted<'a> {
        let own = self.own_pod.as_ref().filter(|_| present.iter().any(|pod| self.is_own(pod)));
        let own = own.and_then(|(namespace, name)| self.pods.own_pod_that_stays(namespace, name));
        let (now, begun) = (self.clock.now(), Some(order.begun));
        let hour = Hour { now, begun, given_up: ledger.given_up(), own: own.as_deref() };
        let sorted = sort(present.iter().map(|pod| &**pod), &order.settings, &hour);
        if order.mode == Mode::Delete { sorted.all_at_once() } else { sorted }
    }

    fn is_own(&self, pod: &PodFact) -> bool {
        self.own_pod.as_ref().is_some_and(|(namespace, name)| *namespace == pod.namespace && *name == pod.name)
    }
}

#[derive(Debug, Default)]
struct PodState {
    pod: Option<Arc<PodFact>>,
    attempts: u32,
    next: Option<Instant>,
    last_asked: Option<Instant>,
    asking: bool,
    blocked: Option<(Blocked, Instant)>,
}

/// What a drain remembers, also where its order changes in the middle: by other settings, or to harder means.
#[derive(Debug, Default)]
pub struct Memory {
    /// The UIDs of all pods that had to go.
    ever: BTreeSet<String>,
    waited: BTreeMap<ObjectRef, Duration>,
    /// What stands in the way of pods that are to leave, by their UIDs, and since when.
    blocked: BTreeMap<String, (Blocked, Instant)>,
    ledger: Ledger,
}

/// Runs until it is dropped. `progress` holds what it has reached.
pub async fn run(order: Order, tools: Tools, progress: Arc<watch::Sender<Progress>>, memory: Arc<Mutex<Memory>>) {
    let mut changes = tools.pods.changes();
    let mut states: BTreeMap<String, PodState> = BTreeMap::new();
    let mut asked: JoinSet<(String, Answer)> = JoinSet::new();
    loop {
        changes.mark_unchanged();
        let (look_again, wake) = look(&order, &tools, &progress, &memory, &mut states, &mut asked);
        tokio::select! {
            Some(done) = asked.join_next(), if !asked.is_empty() => {
                if let Ok((uid, answer)) = done && let Some(state) = states.get_mut(&uid) {
                    take(&order, &tools, &uid, state, answer);
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return; // nobody feeds the cache any more: the operator stops
                }
                tokio::time::sleep(BURST).await;
            }
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if look_again => {}
        }
    }
}

/// Looks at the node's pods once, asks those to go that are due, and reports. Whether time alone may change what is done, and
/// when somebody is to be asked next.
fn look(
    order: &Order,
    tools: &Tools,
    progress: &watch::Sender<Progress>,
    memory: &Mutex<Memory>,
    states: &mut BTreeMap<String, PodState>,
    asked: &mut JoinSet<(String, Answer)>,
) -> (bool, Option<Instant>) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let Memory { ever, waited, blocked, ledger } = &mut *memory;
    let present = tools.pods.on_node(&order.node);
    let mut sorted = tools.sort(&present, order, ledger);
    if ledger.meet(sorted.leaving()) {
        sorted = tools.sort(&present, order, ledger);
    }
    let leaving = sorted.leaving().count();
    let uids: BTreeSet<&str> = sorted.leaving().map(|pod| pod.uid.as_str()).collect();
    ever.extend(uids.iter().map(|uid| (*uid).to_owned()));
    let (remaining, refused) = match sorted.asked() {
        Ok(pods) => (pods, None),
        Err(refused) => (&[][..], Some(refused.to_string())),
    };
    if refused.is_none() {
        states.retain(|uid, state| {
            let stays = uids.contains(uid.as_str());
            if !stays {
                forgive(state, waited);
            }
            stays
        });
    }
    // Who is not asked any more, since the policy holds, is still there for the reason that was given last.
    for (uid, known) in blocked.iter().filter(|(uid, _)| uids.contains(uid.as_str())) {
        states.entry(uid.clone()).or_insert_with(|| PodState { blocked: Some(known.clone()), ..PodState::default() });
    }
    for pod in remaining {
        let state = states.entry(pod.uid.clone()).or_default();
        state.pod = present.iter().find(|known| known.uid == pod.uid).cloned();
        if pod.deletes_at.is_some() {
            forgive(state, waited);
            state.next = None;
        } else if order.keeps || (leaving > 1 && tools.is_own(pod)) {
            continue; // the others leave first, which is a change of pods
        } else if !state.asking && due(state, tools.pods.as_ref()).is_none_or(|at| at <= Instant::now()) {
            ledger.asked(pod);
            state.asking = true;
            state.last_asked = Some(Instant::now());
            let (tools, mode, target) = (tools.clone(), order.mode, target(pod, &order.settings));
            asked.spawn(async move {
                let answer = match tools.permits.acquire().await {
                    Ok(_permit) if mode == Mode::Evict => tools.backend.evict(&target).await,
                    Ok(_permit) => tools.backend.delete(&target).await,
                    Err(_) => Answer::Failed { message: "the operator stops".to_owned(), retry_after: None },
                };
                (target.uid, answer)
            });
        }
    }
    *blocked = states.iter().filter_map(|(uid, state)| Some((uid.clone(), state.blocked.clone()?))).collect();
    report(
        &order.node,
        tools,
        progress,
        Progress {
            pods: ever.len(),
            gone: ever.iter().filter(|uid| !present.iter().any(|pod| pod.uid == **uid)).count(),
            blocked: blocked.values().map(|(blocked, _)| blocked.clone()).collect(),
            given_up: ledger.given_up().clone(),
            refused,
            waited_for: waited.clone(),
        },
    );
    let look_again = !sorted.completing.is_empty() || !sorted.later.is_empty();
    let source = tools.pods.as_ref();
    let wake = states.values().filter(|state| !state.asking).filter_map(|state| due(state, source)).min();
    (look_again, wake)
}

/// When a pod is to be asked next; at once where that is not set. A budget that has room again is asked soon, not only
/// when the backoff ends, but never in a hot loop while its status lags behind.
fn due(state: &PodState, pods: &dyn PodSource) -> Option<Instant> {
    let budget = state.blocked.as_ref().and_then(|(blocked, _)| blocked.object.as_ref());
    let soon = state.last_asked.filter(|_| budget.is_some_and(|budget| pods.allows(budget) == Some(true)));
    match (state.next, soon) {
        (Some(next), Some(asked)) => Some(next.min(asked + SOON)),
        (next, _) => next,
    }
}

fn target(pod: &PodFact, settings: &Drain) -> Target {
    Target {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        grace_period_seconds: settings.grace_period_seconds,
    }
}

fn forgive(state: &mut PodState, waited: &mut BTreeMap<ObjectRef, Duration>) {
    if let Some((blocked, since)) = state.blocked.take()
        && let Some(budget) = blocked.object
    {
        let total = waited.entry(budget).or_default();
        *total = (*total).max(since.elapsed());
    }
}

/// Turns an answer into when to ask again, and what to say.
fn take(order: &Order, tools: &Tools, uid: &str, state: &mut PodState, answer: Answer) {
    state.asking = false;
    let Some(pod) = state.pod.as_ref().map(|pod| pod.reference()) else { return };
    let again = |state: &mut PodState, retry_after| {
        state.attempts = state.attempts.saturating_add(1);
        state.next = Some(Instant::now() + backoff::wait(state.attempts, retry_after, rand::random()));
    };
    let block = |state: &mut PodState, message: String, object: Option<ObjectRef>, permanent| {
        let since = state.blocked.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        state.blocked = Some((Blocked { pod: pod.clone(), message, object, permanent }, since));
    };
    if answer != Answer::Accepted {
        tools.observer.pod_refused(answer.category());
    }
    match answer {
        Answer::Accepted => {
            tools.observer.pod_disrupted(&order.node, &pod, uid, order.mode);
            state.attempts = 0;
            state.next = Some(Instant::now() + ACCEPTED_AGAIN);
        }
        Answer::Gone => state.next = Some(Instant::now() + ACCEPTED_AGAIN),
        Answer::Budget { budget, message, retry_after } => {
            block(state, message, budget, false);
            again(state, retry_after);
        }
        Answer::SeveralBudgets { message } => {
            block(state, message, None, true);
            again(state, None);
        }
        Answer::NamespaceTerminating => {
            block(state, "its namespace is being deleted, and the pod with it".to_owned(), None, false);
            again(state, None);
        }
        Answer::Denied { message } => {
            block(state, message, None, false);
            again(state, None);
        }
        Answer::Forbidden { message } => {
            let message = format!("the operator may not evict pods, correct its ClusterRole: {message}");
            block(state, message, None, true);
            again(state, None);
        }
        Answer::Failed { message, retry_after } => {
            block(state, format!("the API server did not manage: {message}"), None, false);
            again(state, retry_after);
        }
    }
}

fn report(node: &str, tools: &Tools, progress: &watch::Sender<Progress>, now: Progress) {
    let changed = progress.send_if_modified(|before| {
        let changed = *before != now;
        *before = now;
        changed
    });
    if changed {
        tools.observer.progressed(node);
    }
}
