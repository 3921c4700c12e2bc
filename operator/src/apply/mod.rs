//! Carries a plan out, step by step, without a choice of its own: what a step expects is compared with the newest known
//! object, the write carries that object's resourceVersion, and on a mismatch the node's remaining steps are dropped.

mod announce;
mod error;
mod node;
mod node_update;
mod orders_first;
mod statuses;
mod turn;

pub use error::ApplyError;
pub use node::EXCLUDE_LABEL;
pub use orders_first::OrdersFirst;
pub use turn::{Called, Turn};

use crate::{
    events::Events,
    gather::{Key, NodeFact, UpdateFact, World, node_now},
    hooks,
    metrics::Metrics,
};
use bascule_planner::{
    Action, Plan, Report, Step,
    plan::{HookOrder, Taint, initial_spec},
    snapshot::HookStage,
};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client, api::PostParams};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How many nodes are written at once: a wave of a hundred starts at once, beside as many evictions as are allowed.
const AT_ONCE: usize = 32;

/// After this time no node's steps are begun any more: what changed meanwhile comes first. A Freeze acts within a second.
const FRESH: Duration = Duration::from_millis(200);

/// How long one step may take. A step that was given up may have been done all the same: the next plan sees it.
const SLOW: Duration = Duration::from_secs(30);

/// Writes to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    pub(crate) client: Client,
    pub(crate) world: World,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

/// How a plan went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Steps that were carried out.
    pub done: usize,
    /// Steps that met another world than expected; a new plan is due.
    pub stale: usize,
    /// Steps that failed; a new plan is due after a pause.
    pub failed: usize,
    /// Steps that were not begun; a new plan is due at once.
    pub left: usize,
}

impl Writer {
    /// A writer.
    #[must_use]
    pub const fn new(client: Client, world: World, metrics: Metrics, events: Events) -> Self {
        Self { client, world, metrics, events }
    }

    /// Carries a plan out, or as much of it as can be begun in a moment.
    pub async fn carry_out<'p>(&self, plan: &'p Plan, report: &Report, turn: &mut Turn) -> Carried {
        let mut carried = Carried::default();
        let mut by_node: BTreeMap<&'p str, Vec<&'p Step>> = BTreeMap::new();
        for step in plan.steps.iter().filter(|step| !turn.stands_in_line(step)) {
            match step.action.node() {
                Some(node) => by_node.entry(node).or_default().push(step),
                None => {
                    // Persist, then act: what was not remembered must not be acted upon.
                    let result = self.remember(step, report).await;
                    if !self.note(step, &result, turn, &mut carried) {
                        return carried;
                    }
                }
            }
        }
        let (order, until) = (turn.order(by_node), Instant::now() + FRESH);
        // Boxed, or the compiler can't see that the whole future may move between threads.
        let one = |(_, steps): (&str, Vec<&'p Step>)| {
            self.one_node(steps.clone(), turn, until).map(move |one| (steps, one)).boxed()
        };
        let nodes: Vec<_> = order.into_iter().map(one).collect();
        let results: Vec<(Vec<&Step>, Carried)> = stream::iter(nodes).buffer_unordered(AT_ONCE).collect().await;
        let now = Instant::now();
        for (steps, one) in results {
            carried.done += one.done;
            carried.stale += one.stale;
            carried.failed += one.failed;
            carried.left += one.left;
            if one.left == 0 {
                turn.tried(&steps, now);
            }
        }
        carried
    }

    async fn one_node(&self, steps: Vec<&Step>, turn: &Turn, until: Instant) -> Carried {
        let mut carried = Carried::default();
        if Instant::now() >= until {
            return Carried { left: steps.len(), ..carried };
        }
        for step in steps {
            let result = match tokio::time::timeout(SLOW, self.step(step)).await {
                Ok(result) => result,
                Err(_) => Err(ApplyError::TooSlow { action: step.action.name() }),
            };
            if !self.note(step, &result, turn, &mut carried) {
                break;
            }
        }
        carried
    }

    /// Counts and logs; whether to go on.
    fn note(&self, step: &Step, result: &Result<(), ApplyError>, turn: &Turn, carried: &mut Carried) -> bool {
        let action = step.action.name();
        match result {
            Ok(()) => {
                self.metrics.acted(action, "done");
                if let Some(waited) = turn.waited(step) {
                    self.metrics.reacted(action, waited);
                }
                carried.done += 1;
                self.announce(step);
                true
            }
            Err(error) => {
                self.metrics.acted(action, error.category());
                let node = step.action.node().unwrap_or_default();
                if error.is_stale() {
                    carried.stale += 1;
                    tracing::debug!(action, node, error = crate::one_line(error), "planning anew");
                } else {
                    carried.failed += 1;
                    tracing::warn!(action, node, error = crate::one_line(error), "a step failed and is planned anew");
                }
                false
            }
        }
    }

    async fn remember(&self, step: &Step, report: &Report) -> Result<(), ApplyError> {
        match &step.action {
            Action::Remember { policy, .. } => {
                let known = self.world.policies.get(&Key::cluster(policy));
                let known = known.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {policy}")))?;
                let said = report.policies.iter().find(|said| said.policy == *policy);
                let said = said.ok_or_else(|| ApplyError::Gone(format!("the report on UpdatePolicy {policy}")))?;
                self.write_policy(&known, &said.status).await.map(|_| ())
            }
            Action::AcceptRollback { rollback, status } => {
                let known = self.world.rollbacks.get(&Key::cluster(rollback));
                let known = known.ok_or_else(|| ApplyError::Gone(format!("Rollback {rollback}")))?;
                if known.0.status == *status {
                    return Ok(());
                }
                self.write_rollback(rollback, &known.1, status).await
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
        match &step.action {
            Action::CreateNodeUpdate { policy, .. } => self.create_update(&node, &initial_spec(policy)).await,
            Action::Taint { taint, .. } => self.put_taint(&node, *taint, true).await,
            Action::Untaint { taint, .. } => self.put_taint(&node, *taint, false).await,
            Action::Cordon { mark, .. } => self.patch_node(&node, node::cordon(&node, mark)).await.map(|_| ()),
            Action::Uncordon { remove_outdated, .. } => {
                self.patch_node(&node, node::uncordon(&node, *remove_outdated)).await.map(|_| ())
            }
            Action::RunHook(order) => self.run_hook(&node, order).await,
            action => {
                let update = self.update(name)?;
                match action.spec_after(&update.facts.spec) {
                    Some(spec) => self.write_spec(&node, &update, &spec).await,
                    None => Ok(()),
                }
            }
        }
    }

    fn update(&self, name: &str) -> Result<Arc<UpdateFact>, ApplyError> {
        self.world.updates.get(&Key::cluster(name)).ok_or_else(|| ApplyError::Gone(format!("NodeUpdate {name}")))
    }

    async fn put_taint(&self, node: &NodeFact, taint: Taint, wanted: bool) -> Result<(), ApplyError> {
        self.patch_node(node, node::taint(node, taint, wanted)).await.map(|_| ())
    }

    async fn run_hook(&self, node: &NodeFact, order: &HookOrder) -> Result<(), ApplyError> {
        let wrong = |reason: String| ApplyError::Hook { hook: order.hook.clone(), reason };
        let policy = self.world.policies.get(&Key::cluster(&order.policy));
        let policy = policy.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {}", order.policy)))?;
        let hooks = match order.stage {
            HookStage::BeforeDrain => &policy.spec.hooks.before_drain,
            HookStage::AfterCommit => &policy.spec.hooks.after_commit,
        };
        let hook = hooks.iter().find(|hook| hook.name == order.hook);
        let hook = hook.ok_or_else(|| wrong("the policy has no such hook any more".to_owned()))?;
        let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.name.clone(),
            uid: node.uid.clone(),
            ..Default::default()
        };
        let job = hooks::job(order, hook, Some(owner)).map_err(wrong)?;
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &hook.namespace);
        let params =
            PostParams { field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
        match jobs.create(&params, &job).await {
            Ok(created) => {
                self.metrics.wrote("Job");
                self.world.jobs.written(&created);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(ApplyError::of(format!("Job of hook {}", order.hook), error)),
        }
    }
}
