//! A node with a grant: what happens next on its way. The facts decide, not a stored phase, so that any operator may
//! go on after any other, and every arrow can be interrupted.
//!
//! While `drainedAt` is absent the node has not been told to reboot: everything up to there is undone cleanly. From
//! there on the way is finished, forwards or backwards.

mod before;
mod boot;
mod daemons;
mod hooks;
mod trial;

pub(super) use boot::lost;
pub(super) use daemons::note;

use super::{
    desired::Desired,
    facts::{NodeView, Selection},
    health::Answers,
    memory::Took,
    policy::PolicyView,
    rollback,
};
use crate::{
    Action, Expect, GateSet, Rule, Step, ValidPolicy, Wait,
    plan::{DrainMode, DrainOrder, GateQuestion, cordon_mark},
    snapshot::{
        ACCEPT_ROLLBACK, COMMIT, Cordon, DisruptionBudget, HookRun, PolicyFacts, REMEMBER, Refusal, Refusals,
        RollbackFacts,
    },
};
use bascule_api::{
    DaemonSetBefore, Disruption, DisruptionOutcome, Drain, DrainProgress, Goal, Health, Hooks, NodeError,
    NodeUpdateSpec, ReleaseRef, RolloutState, Time, Version, WaitReason,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

/// What is said from the word to reboot until the agent reports from the new boot: one sentence, one write.
const REBOOTING: &str = "the agent arms the release and the machine reboots";

/// What all nodes in motion share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ctx<'a> {
    pub(super) now: Time,
    pub(super) unread_at: Option<Time>,
    pub(super) policies: &'a [Arc<PolicyFacts>],
    pub(super) rollbacks: &'a [Arc<RollbackFacts>],
    pub(super) hooks: &'a [HookRun],
    pub(super) refused: &'a Refusals,
    pub(super) budgets: &'a BTreeMap<String, DisruptionBudget>,
    pub(super) answers: Answers<'a>,
    pub(super) set: GateSet,
    /// On how many nodes machines have not come back from the word to boot a release, by policy.
    pub(super) lost: &'a BTreeMap<(usize, &'a Version), usize>,
    /// Trials that ended because of what a gate says of the cluster.
    pub(super) unproven: &'a [Unproven<'a>],
}

/// A trial that ended because a gate said no of the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unproven<'a> {
    pub(super) policy: usize,
    pub(super) version: &'a Version,
    pub(super) node: &'a str,
    pub(super) gate: &'a str,
    pub(super) ended_at: Time,
}

/// What happens to a node in motion.
#[derive(Debug)]
pub(super) struct Motion {
    pub(super) steps: Vec<Step>,
    pub(super) drain: Option<Arc<DrainOrder>>,
    pub(super) state: RolloutState,
    pub(super) wait: Arc<Wait>,
    pub(super) progress: Option<DrainProgress>,
    /// A failure of the release on this node, to be remembered first.
    pub(super) failure: Option<(NodeError, String)>,
    /// What the way of a node took that commits.
    pub(super) timing: Option<Took>,
    pub(super) questions: Vec<GateQuestion>,
    pub(super) wake: Option<Time>,
    /// What the next plan may say again.
    pub(super) kept: Option<KeptOrder>,
}

impl Motion {
    fn waits(state: RolloutState, wait: Wait) -> Self {
        Self::shared(state, Arc::new(wait))
    }

    fn shared(state: RolloutState, wait: Arc<Wait>) -> Self {
        let wake = wait.until;
        Self {
            steps: Vec::new(),
            drain: None,
            state,
            wait,
            progress: None,
            failure: None,
            timing: None,
            questions: Vec::new(),
            wake,
            kept: None,
        }
    }

    fn with(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn waking(mut self, at: Time) -> Self {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        self
    }
}

/// The policy whose settings hold for a node in motion, and who may judge what it tries: the one that gave the grant, whoever
/// selects the node by now.
#[derive(Debug, Clone, Copy)]
enum Owner<'c, 'a> {
    /// It can be used. Or it is gone, and this one alone selects the node: it was renamed, or the node is another's now.
    Judges(&'c PolicyView<'a>),
    /// It can't be used, for this reason: what it asks of a trial is not known.
    Invalid { policy: &'c PolicyView<'a>, why: &'c str },
    /// It is gone, and no other one alone selects the node.
    Gone,
}

impl<'c, 'a> Owner<'c, 'a> {
    fn of(policy: Option<&'c PolicyView<'a>>) -> Self {
        match policy.map(|policy| (policy, &policy.invalid)) {
            Some((policy, None)) => Self::Judges(policy),
            Some((policy, Some(wait))) => Self::Invalid { policy, why: &wait.message },
            None => Self::Gone,
        }
    }

    /// The policy, where it can be used.
    const fn judge(self) -> Option<&'c PolicyView<'a>> {
        match self {
            Self::Judges(policy) => Some(policy),
            Self::Invalid { .. } | Self::Gone => None,
        }
    }

    /// The policy, whose memory and whose Rollbacks are known whether it can be used or not.
    const fn known(self) -> Option<&'c PolicyView<'a>> {
        match self {
            Self::Judges(policy) | Self::Invalid { policy, .. } => Some(policy),
            Self::Gone => None,
        }
    }
}

/// A node in motion with all that its next step rests on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moving<'c, 'a> {
    ctx: &'c Ctx<'a>,
    view: &'c NodeView<'a>,
    spec: &'a NodeUpdateSpec,
    disruption: &'a Disruption,
    grant: i64,
    granted_boot: &'a str,
    /// The policy, while it is there, valid, and the only one that selects the node: nobody else says that it is emptied.
    policy: Option<&'c PolicyView<'a>>,
    owner: Owner<'c, 'a>,
    desired: &'c Desired<'a>,
    /// The order that the last plan gave for it.
    kept: Option<&'c KeptOrder>,
}

/// A drain's order and the sentence about it, as long as nothing stands in the way: while pods leave, plan after plan says
/// the same of many nodes.
#[derive(Debug, Clone)]
pub(super) struct KeptOrder {
    order: Arc<DrainOrder>,
    wait: Arc<Wait>,
}

impl KeptOrder {
    fn new(order: DrainOrder) -> Self {
        let message = match order.mode {
            DrainMode::Evict => "pods are being evicted",
            DrainMode::DeleteRest => "pods that could not be evicted are deleted",
            DrainMode::Keep => "nobody is evicted any more",
        };
        let wait = Arc::new(Wait::new(WaitReason::Draining, message).until(Some(order.until)));
        Self { order: Arc::new(order), wait }
    }

    /// Whether it is the order of this grant still.
    fn holds(&self, moving: &Moving<'_, '_>, until: Time, mode: DrainMode) -> bool {
        let order = &self.order;
        (order.grant, order.until, order.mode) == (moving.grant, until, mode)
            && order.policy == moving.spec.policy
            && *order.node == *moving.view.node.name
    }
}

/// The next step of a node in motion. `policy` decides about it; `caring` is the one that gave the grant, or where that is gone
/// the only one that selects the node.
pub(super) fn next<'a>(
    ctx: &Ctx<'a>,
    view: &NodeView<'a>,
    policy: Option<&PolicyView<'a>>,
    caring: Option<&PolicyView<'a>>,
    desired: &Desired<'a>,
    kept: Option<&KeptOrder>,
) -> Option<Motion> {
    let update = view.update()?;
    let spec = &update.spec;
    let disruption = spec.disruption.as_ref()?;
    let (granted_boot, grant) = spec.grant.as_ref().map_or(("", 0), |grant| (grant.boot_id.as_str(), grant.generation));
    let owner = Owner::of(caring);
    let moving = Moving { ctx, view, spec, disruption, grant, granted_boot, policy, owner, desired, kept };
    if view.node.deleting {
        let wait = Wait::new(WaitReason::NodeGone, "the Node is being deleted");
        return Some(Motion::waits(RolloutState::Waiting, wait));
    }
    Some(match disruption.drained_at {
        None => before::next(&moving),
        Some(drained_at) => boot::next(&moving, drained_at),
    })
}

impl<'a> Moving<'_, 'a> {
    fn name(&self) -> String {
        self.view.node.name.to_string()
    }

    /// The policy's settings; the defaults where they are not known or no policy cares for the node any more.
    fn settings<T>(&self, of: impl Fn(&'a ValidPolicy) -> &'a T, default: &'static LazyLock<T>) -> &'a T {
        self.owner.judge().and_then(|policy| policy.valid).map_or(&**default, of)
    }

    /// The name of the policy whose settings hold.
    fn policy_name(&self) -> &str {
        self.owner.judge().map_or(self.spec.policy.as_str(), |policy| policy.facts.name.as_str())
    }

    /// Why the policy that gave the grant does not decide about the node any more.
    fn let_go(&self) -> String {
        let name = &self.spec.policy;
        match self.owner {
            Owner::Invalid { why, .. } => format!("policy {name} can't be used: {why}"),
            Owner::Judges(policy) if policy.facts.name == *name => match self.view.traits.selection {
                Selection::Conflict(..) => format!("not policy {name} alone selects this node any more"),
                Selection::None | Selection::One(_) => format!("policy {name} does not select this node any more"),
            },
            Owner::Judges(_) | Owner::Gone => format!("policy {name} is not there any more"),
        }
    }

    /// Whether a person's Rollback disrupts the node.
    fn by_rollback(&self) -> bool {
        self.disruption.cause.object.kind == rollback::KIND
    }

    fn health(&self) -> &'a Health {
        static DEFAULT: LazyLock<Health> = LazyLock::new(Health::default);
        self.settings(|valid| &valid.spec.health, &DEFAULT)
    }

    fn drain(&self) -> &'a Drain {
        static DEFAULT: LazyLock<Drain> = LazyLock::new(Drain::default);
        self.settings(|valid| &valid.spec.drain, &DEFAULT)
    }

    fn hooks(&self) -> &'a Hooks {
        static DEFAULT: LazyLock<Hooks> = LazyLock::new(Hooks::default);
        self.settings(|valid| &valid.spec.hooks, &DEFAULT)
    }

    fn release(&self) -> Option<&'a ReleaseRef> {
        self.spec.release.as_ref()
    }

    /// A step on this node: it expects this node, this goal and this grant.
    fn step(&self, action: Action, says: impl Into<String>) -> Step {
        Step {
            action,
            expect: Expect {
                node_uid: Some(self.view.node.uid.clone()),
                has_update: Some(true),
                goal: Some(self.spec.goal),
                release: self.release().map(|release| release.version.clone()),
                grant: Some(Some(self.grant)),
                ..Expect::default()
            },
            cause: Some(self.disruption.cause.clone()),
            says: says.into(),
        }
    }

    /// The same of a verdict on a trial: it is about the boots that kubelet and agent report from. Power may have been lost meanwhile, and
    /// the machine be back.
    fn verdict(&self, action: Action, says: impl Into<String>) -> Step {
        let mut step = self.step(action, says);
        step.expect.boot_id = Some(self.view.node.boot_id.clone());
        step.expect.agent_boot = self.view.update().map(|update| update.status.boot_id.clone());
        step
    }

    /// What was said where the word that makes the trial permanent, or what is written before it, had been refused for a while when the
    /// trial ended.
    fn uncommitted(&self, ended: Time) -> Option<&'a str> {
        let drained_at = self.disruption.drained_at?;
        // Of this trial, and not of one before it. What failed only afterwards kept no commit away: it may be this very failure.
        let was = |refusal: &Refusal| refusal.tried() >= drained_at && refusal.since < ended;
        let kept = |object: &str, action| self.ctx.refused.kept_from_committing(object, action, self.ctx.now, was);
        let memory = || kept(&self.spec.policy, REMEMBER);
        let order = || {
            let mut orders = self.ctx.rollbacks.iter().filter(|facts| facts.spec.policy == self.spec.policy);
            orders.find_map(|facts| kept(&facts.name, ACCEPT_ROLLBACK))
        };
        let refusal = kept(&self.view.node.name, COMMIT).or_else(memory).or_else(order)?;
        Some(&refusal.words)
    }

    /// What the API server says to a write that should have been done by then, and has failed for a while.
    fn refused_beyond(&self, action: &Action, by: Time) -> Option<&'a str> {
        let late = self.ctx.now >= by && self.ctx.set.keeps(Rule::GivenBack);
        let told = self.ctx.refused.told(action, self.ctx.now);
        told.filter(|_| late).map(|refusal| refusal.words.as_str())
    }

    /// The agent reports from a boot after the grant.
    fn agent_is_back(&self) -> bool {
        let boot = self.view.update().and_then(|update| update.status.boot_id.as_deref());
        boot.is_some_and(|boot| boot != self.granted_boot)
    }

    /// The agent has armed something with this grant, whatever was asked of it since.
    fn agent_used_grant(&self) -> bool {
        self.view.update().is_some_and(|update| update.status.last_grant == Some(self.grant))
    }

    /// The kubelet reports from a boot after the grant.
    fn kubelet_is_back(&self) -> bool {
        self.view.node.boot_id != self.granted_boot
    }

    /// How many other machines of its policy have not come back from the same release.
    fn lost_too(&self) -> usize {
        let key = self.view.traits.policy.zip(self.release().map(|release| &release.version));
        key.and_then(|key| self.ctx.lost.get(&key)).map_or(0, |lost| lost.saturating_sub(1))
    }

    /// Whether a trial of the same release ended on another node because of one of these gates, before this node was told to
    /// reboot: what happens to several at once is the cluster's doing. When a trial began that was adopted nobody knows.
    fn unproven_elsewhere(&self, gates: &[String]) -> bool {
        let version = self.release().map(|release| &release.version);
        let told = self.disruption.drained_at.filter(|_| self.granted_boot != crate::plan::ADOPTED_BOOT);
        self.ctx.unproven.iter().any(|ended| {
            self.view.traits.policy == Some(ended.policy)
                && version == Some(ended.version)
                && *ended.node != *self.view.node.name
                && gates.iter().any(|gate| gate == ended.gate)
                && told.is_some_and(|told| told >= ended.ended_at)
        })
    }

    /// The node runs the release that the spec names.
    fn runs_asked(&self) -> bool {
        self.release().is_some_and(|release| self.view.running() == Some(&release.version))
    }

    /// The node's DaemonSet pods before its reboot, where they are asked for afterwards.
    fn daemon_sets(&self) -> Vec<DaemonSetBefore> {
        if self.health().daemon_sets { note(self.view.node, &self.disruption.daemon_sets) } else { Vec::new() }
    }

    /// Whether nobody remembers what was ready on the node before its reboot: its Node was deleted meanwhile, and what is known
    /// of the grant is what the agent reports.
    fn before_is_forgotten(&self) -> bool {
        self.granted_boot == crate::plan::ADOPTED_BOOT
            && self.health().daemon_sets
            && self.disruption.daemon_sets.is_empty()
            && self.ctx.set.keeps(Rule::BrokenBefore)
    }

    /// When the kubelet was first seen in the new boot: what was seen of the node before says nothing of it.
    fn boot_seen(&self, drained_at: Time) -> Time {
        self.in_this_boot(self.view.node.boot_seen, drained_at)
    }

    /// When the machine was first seen back in the new boot, by its kubelet or its agent.
    fn back_seen(&self, drained_at: Time) -> Time {
        self.in_this_boot(self.view.node.back_seen, drained_at)
    }

    fn in_this_boot(&self, seen: Time, drained_at: Time) -> Time {
        if self.ctx.set.keeps(Rule::ThisBoot) { seen.max(drained_at) } else { drained_at }
    }

    /// Takes our cordon away, if it is there.
    fn uncordon(&self) -> Option<Step> {
        let (mark, cordon, says) = match &self.view.node.cordon {
            Cordon::Ours { mark } => (mark, crate::plan::Cordon::Ours(mark.clone()), "takes work again"),
            Cordon::Lifted { mark } => (mark, crate::plan::Cordon::Lifted(mark.clone()), ""),
            Cordon::None | Cordon::Other { .. } => return None,
        };
        let action = Action::Uncordon {
            node: self.name(),
            mark: mark.clone(),
            remove_outdated: self.view.node.taints.outdated,
            truce_until: self.ctx.now.after(crate::decide::TRUCE_AFTER),
        };
        Some(Step {
            action,
            expect: Expect { node_uid: Some(self.view.node.uid.clone()), cordon: Some(cordon), ..Expect::default() },
            cause: Some(self.disruption.cause.clone()),
            says: says.to_owned(),
        })
    }

    /// Ends the disruption: uncordons what we cordoned, frees the grant.
    fn end(&self, mut motion: Motion, outcome: DisruptionOutcome, goal: Goal, message: &str, says: String) -> Motion {
        // A node that works need not wait for its grant's end until our mark is off it.
        let works = matches!(self.view.node.cordon, Cordon::Lifted { .. });
        let (before, after) = if works { (None, self.uncordon()) } else { (self.uncordon(), None) };
        motion.steps.extend(before);
        let action = Action::FreeGrant {
            node: self.name(),
            outcome,
            version: self.release().map(|release| release.version.clone()),
            at: self.ctx.now,
            goal,
            gate: None,
            message: message.to_owned(),
        };
        motion.steps.push(self.step(action, says));
        motion.steps.extend(after);
        motion
    }

    fn mark(&self) -> String {
        cordon_mark(&self.view.node.name, self.grant)
    }
}
