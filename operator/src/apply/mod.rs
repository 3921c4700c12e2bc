//! Carries a plan out, step by step, without a choice of its own: what a step expects is compared with the newest known
//! object, the write carries that object's resourceVersion, and on a mismatch the node's remaining steps are dropped.

mod announce;
mod attempt;
mod error;
mod forget;
mod in_flight;
mod node;
mod node_update;
mod statuses;

pub use attempt::{Attempt, Written};
pub use error::ApplyError;
pub use in_flight::{Ended, InFlight};

use crate::{
    events::Events,
    gather::{Caches, Key, NodeFact, UpdateFact, node_now},
    hooks,
    metrics::Metrics,
    notify::Notifier,
};
use bascule_api::UpdatePolicyStatus;
use bascule_planner::{
    Action, Plan, Report, Snapshot, Step,
    plan::{HookOrder, Taint},
    snapshot::{HookStage, Write, Writes},
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client, api::ListParams};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one step may take. A step that was given up may have been done all the same: the next plan sees it.
pub(crate) const SLOW: Duration = Duration::from_secs(30);
/// How long a plan waits for what it remembers. A policy whose memory takes longer holds up its own nodes and nobody else's.
const REMEMBERING: Duration = Duration::from_millis(250);

/// Writes to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    pub(crate) client: Client,
    pub(crate) world: Caches,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    pub(crate) notifier: Notifier,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

/// How writes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Steps that were carried out.
    pub done: usize,
    /// Steps that met another world than expected; a new plan is due.
    pub stale: usize,
    /// Steps that failed, and back off.
    pub failed: usize,
}

impl Carried {
    /// Both together.
    pub const fn add(&mut self, other: Self) {
        self.done += other.done;
        self.stale += other.stale;
        self.failed += other.failed;
    }
}

impl Writer {
    /// A writer.
    #[must_use]
    pub fn new(client: Client, world: Caches, metrics: Metrics, events: Events) -> Self {
        Self { client, world, metrics, events, notifier: Notifier::default() }
    }

    /// The same, and it tells somebody else too.
    #[must_use]
    pub fn telling(self, notifier: Notifier) -> Self {
        Self { notifier, ..self }
    }

    /// Remembers what a plan of these facts remembers, and begins as many of its batches as it says, in its order. Says how many were
    /// not begun; when others end they have their turn, by a newer plan. Times of the book are counted from `epoch` on.
    pub async fn carry_out(
        &self,
        snapshot: &Snapshot,
        (plan, report): (&Plan, &Report),
        (writes, epoch): (&mut Writes, Instant),
        in_flight: &mut InFlight,
    ) -> usize {
        let backs_off = |step: &Step| snapshot.refused.backs_off(&step.action, snapshot.now);
        let mut later = HashSet::new();
        for step in plan.steps.iter().filter(|step| step.action.node().is_none()) {
            let Some(policy) = self.remembers_for(&step.action) else { continue };
            // A Rollback is accepted only when the block that it asks for is remembered.
            if later.contains(&policy) || in_flight.remembers(&policy) || backs_off(step) {
                later.insert(policy); // the next plan sees what becomes of the one before
                continue;
            }
            let said = report.policies.iter().find(|said| said.policy == policy).map(|said| said.status.clone());
            in_flight.remember(policy, self.remembering(step, said, (&mut *writes, epoch)));
        }
        // Persist, then act: what was not remembered must not be acted upon.
        let mut unremembered = in_flight.remembered_within(REMEMBERING).await;
        unremembered.extend(later);
        for step in &plan.steps {
            // No policy has such a name: nobody waits for a Job that can't be made but who waits for what it is to do.
            let (order, key) = match &step.action {
                Action::RunRolloutHook(order) => (order, format!("{}/hooks", order.policy)),
                Action::KeepRolloutHook(order) => (order, format!("{}/hooks/{}", order.policy, order.hook)),
                _ => continue,
            };
            if unremembered.contains(&order.policy) || in_flight.remembers(&key) || backs_off(step) {
                continue;
            }
            in_flight.remember(key, self.remembering(step, None, (&mut *writes, epoch)));
        }
        self.forget(plan, in_flight.forgetting());
        let held: HashSet<&str> = report
            .nodes
            .iter()
            .filter(|node| {
                let policy = node.policy.and_then(|index| report.policies.get(index));
                policy.is_some_and(|policy| unremembered.contains(policy.policy.as_str()))
            })
            .map(|node| &*node.node)
            .collect();
        let mut due = plan.schedule.batches.iter().filter(|batch| !held.contains(batch.node.as_str()));
        for batch in due.by_ref().take(plan.schedule.room) {
            let steps = plan.steps_of(batch);
            let begun = self.begin(Some(&batch.node), &steps, (&mut *writes, epoch));
            let (writer, steps) = (self.clone(), steps.into_iter().cloned().zip(begun).collect());
            in_flight.begin(&batch.node, async move { writer.one_node(steps).await });
        }
        due.map(|batch| batch.steps.len()).sum()
    }

    /// Takes note that steps are begun. Since when each has been due.
    fn begin(&self, node: Option<&str>, steps: &[&Step], (writes, epoch): (&mut Writes, Instant)) -> Vec<Instant> {
        let begun = writes.begin(node, steps, epoch.elapsed());
        let due = begun.into_iter().map(|one| {
            if let Some(queued) = one.queued {
                self.metrics.queued(one.action, queued);
            }
            epoch.checked_add(one.due_since).unwrap_or(epoch)
        });
        due.collect()
    }

    /// Writes what a policy remembers.
    fn remembering(
        &self,
        step: &Step,
        said: Option<UpdatePolicyStatus>,
        book: (&mut Writes, Instant),
    ) -> impl Future<Output = Written> + Send + use<> {
        let due = self.begin(None, &[step], book).first().copied().unwrap_or_else(Instant::now);
        let (writer, step) = (self.clone(), step.clone());
        async move {
            let begun = Instant::now();
            let result = in_time(&step, writer.remember(&step, said)).await;
            writer.note(&step, &result, (due, begun))
        }
    }

    /// Does the steps of one node, until one does not succeed.
    async fn one_node(&self, steps: Vec<(Step, Instant)>) -> Written {
        let mut written = Written::default();
        for (step, due) in steps {
            let begun = Instant::now();
            let result = in_time(&step, self.step(&step)).await;
            written.add(self.note(&step, &result, (due, begun)));
            if result.is_err() {
                break;
            }
        }
        written
    }

    /// Counts and logs.
    fn note(&self, step: &Step, result: &Result<(), ApplyError>, (due, begun): (Instant, Instant)) -> Written {
        let action = step.action.name();
        let mut written = Written { unknown: result.as_ref().is_err_and(ApplyError::is_unknown), ..Written::default() };
        // Of what was not asked the API server had nothing to answer.
        if !matches!(result, Err(ApplyError::Mismatch(_) | ApplyError::Gone(_) | ApplyError::Hook { .. })) {
            written.answers.push((begun, begun.elapsed()));
        }
        let failed = match result {
            Ok(()) => {
                self.metrics.acted(action, "done");
                self.metrics.reacted(action, due.elapsed());
                self.announce(step);
                written.carried.done = 1;
                None
            }
            Err(error) => {
                self.metrics.acted(action, error.category());
                let node = step.action.node().unwrap_or_default();
                if error.is_stale() {
                    tracing::debug!(action, node, error = crate::one_line(error), "planning anew");
                    written.carried.stale = 1;
                    return written;
                }
                tracing::warn!(action, node, error = crate::one_line(error), "a step failed and is planned anew");
                written.carried.failed = 1;
                Some(error.words())
            }
        };
        written.attempts.push(Attempt { write: Write::of(&step.action), failed });
        written
    }

    /// The policy whose nodes wait until this is written.
    fn remembers_for(&self, action: &Action) -> Option<String> {
        match action {
            Action::Remember { policy, .. } => Some(policy.clone()),
            Action::AcceptRollback { rollback, .. } => Some(
                self.world
                    .rollbacks
                    .get(&Key::cluster(rollback))
                    .map_or_else(String::new, |known| known.0.spec.policy.clone()),
            ),
            _ => None,
        }
    }

    async fn remember(&self, step: &Step, said: Option<UpdatePolicyStatus>) -> Result<(), ApplyError> {
        match &step.action {
            Action::Remember { policy, .. } => {
                let known = self.world.policies.get(&Key::cluster(policy));
                let known = known.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {policy}")))?;
                let said = said.ok_or_else(|| ApplyError::Gone(format!("the report on UpdatePolicy {policy}")))?;
                self.write_policy(&known, &said).await.map(|_| ())
            }
            Action::AcceptRollback { rollback, status } => {
                let known = self.world.rollbacks.get(&Key::cluster(rollback));
                let known = known.ok_or_else(|| ApplyError::Gone(format!("Rollback {rollback}")))?;
                if known.0.status == *status {
                    return Ok(());
                }
                self.write_rollback(rollback, &known.1, status).await
            }
            Action::KeepRolloutHook(order) => hooks::keep(self, order).await,
            Action::RunRolloutHook(order) if order.stage == HookStage::AfterRollout => hooks::begin(self, order).await,
            Action::RunRolloutHook(order) => {
                let policy = self.world.policies.get(&Key::cluster(&order.policy));
                let policy = policy.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {}", order.policy)))?;
                self.run_hook(owner("bascule.dev/v1alpha1", "UpdatePolicy", &policy.name, &policy.uid), order).await
            }
            _ => Ok(()),
        }
    }

    async fn step(&self, step: &Step) -> Result<(), ApplyError> {
        let name = step.action.node().unwrap_or_default();
        let gone = || ApplyError::Gone(format!("Node {name}"));
        let now = node_now(&self.world, name).ok_or_else(gone)?;
        step.expect.check(&now)?;
        let node = self.world.nodes.get(&Key::cluster(name)).ok_or_else(gone)?;
        if matches!(step.action, Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. }) {
            self.look_at_pods(name).await?;
        }
        match &step.action {
            Action::CreateNodeUpdate { spec, .. } => self.create_update(&node, spec).await,
            Action::Taint { taint, .. } => self.put_taint(&node, *taint, true).await,
            Action::Untaint { taint, .. } => self.put_taint(&node, *taint, false).await,
            Action::Cordon { mark, .. } => self.patch_node(&node, node::cordon(&node, mark)).await.map(|_| ()),
            Action::Uncordon { remove_outdated, truce_until, .. } => {
                let patch = node::uncordon(&node, *remove_outdated, *truce_until);
                self.patch_node(&node, patch).await.map(|_| ())
            }
            Action::Truce { exclude, .. } => self.patch_node(&node, node::truce(&node, *exclude)).await.map(|_| ()),
            Action::EndTruce { .. } => self.patch_node(&node, node::end_truce(&node)).await.map(|_| ()),
            Action::RunHook(order) => self.run_hook(owner("v1", "Node", &node.name, &node.uid), order).await,
            action => {
                let update = self.update(name)?;
                match action.spec_after(&update.facts.spec) {
                    Some(spec) => self.write_spec(&node, &update, &spec).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Reads a node's pods past every watch. A reboot can't be taken back, and a watch that is late may not have shown a pod that
    /// came before the cordon: a node goes down only with pods that the plan knew of.
    async fn look_at_pods(&self, node: &str) -> Result<(), ApplyError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let found =
            pods.list(&params).await.map_err(|error| ApplyError::of(format!("the pods of Node {node}"), error))?;
        let before = self.world.pods.of_place(node);
        for pod in &found.items {
            self.world.pods.written(pod);
        }
        if before == self.world.pods.of_place(node) {
            return Ok(());
        }
        Err(ApplyError::Conflict(format!("what runs on Node {node}")))
    }

    fn update(&self, name: &str) -> Result<Arc<UpdateFact>, ApplyError> {
        self.world.updates.get(&Key::cluster(name)).ok_or_else(|| ApplyError::Gone(format!("NodeUpdate {name}")))
    }

    async fn put_taint(&self, node: &NodeFact, taint: Taint, wanted: bool) -> Result<(), ApplyError> {
        self.patch_node(node, node::taint(node, taint, wanted)).await.map(|_| ())
    }

    async fn run_hook(&self, owner: OwnerReference, order: &HookOrder) -> Result<(), ApplyError> {
        let wrong = |reason: String| ApplyError::Hook { hook: order.hook.clone(), reason };
        let policy = self.world.policies.get(&Key::cluster(&order.policy));
        let policy = policy.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {}", order.policy)))?;
        let hook = order.stage.hooks(&policy.spec.hooks).iter().find(|hook| hook.name == order.hook);
        let hook = hook.ok_or_else(|| wrong("the policy has no such hook any more".to_owned()))?;
        let job = hooks::job(order, hook, Some(owner)).map_err(wrong)?;
        hooks::make(self, &job).await.map_err(|error| hooks::refused(order, error))
    }
}

/// What became of a step within its time.
async fn in_time(step: &Step, writes: impl Future<Output = Result<(), ApplyError>>) -> Result<(), ApplyError> {
    let result = tokio::time::timeout(SLOW, writes).await;
    result.unwrap_or_else(|_| Err(ApplyError::TooSlow { action: step.action.name() }))
}

/// What a Job goes away with.
fn owner(api_version: &str, kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}
