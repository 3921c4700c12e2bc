//! One decision: facts in, plan and report out.
//!
//! The order is that of a round: what is remembered, what moves, what may be staged, who goes next, what is said.

mod assess;
mod budget;
mod context;
mod desired;
mod facts;
mod fits;
mod gates;
mod grants;
mod groups;
mod health;
mod hold;
mod idle;
mod known;
mod maintenance;
mod members;
mod memory;
mod motion;
mod policy;
mod refused;
mod retries;
mod rollback;
mod schedule;
mod staging;
mod status;
mod taints;
mod texts;
mod waves;

use crate::{
    Action, GateSet, NodeReport, Plan, Report, Rule, Snapshot, Step, Wait,
    plan::{Expect, GateQuestion, Judged},
    report::NodeName,
};
use assess::{Assessment, Assessor};
use bascule_api::{DisruptionOutcome, DrainProgress, RolloutState, Time, Version, WaitReason};
use context::NodeContext;
use desired::Desired;
use facts::{NodeView, Selection};
use health::Answers;
use known::{Known, Verdicts};
use policy::PolicyView;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use waves::{Member, Standing, Waves};

pub use facts::lot;
pub use fits::first_node_takes;

/// How long after the uncordon autoscalers still leave a node alone: as long as a cluster autoscaler waits before it takes
/// away a node that it finds unneeded, so that pods have come back by then.
const TRUCE_AFTER: bascule_api::Duration = bascule_api::Duration::from_minutes(10);

/// What is said of a node that is done, from the moment on at which it is: another sentence would cost a write.
const AT_REST: &str = "runs the release its policy asks for";

/// Decides. Equal snapshots give equal plans and reports.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> (Plan, Report) {
    plan_asking(snapshot, GateSet::ALL)
}

/// Decides while asking only some of the gates. Everything but tests of the gates themselves calls [`plan`].
#[must_use]
pub fn plan_asking(snapshot: &Snapshot, set: GateSet) -> (Plan, Report) {
    Planner::default().decide(snapshot, set)
}

/// Plans again and again, and remembers what follows from facts that did not change. Gives what [`plan`] gives, in a
/// fraction of the time where few nodes changed.
#[derive(Debug, Default)]
pub struct Planner {
    known: Known,
    verdicts: Verdicts,
    /// By node: the standing order of the last plan, which counts only while it is the one that would be given anew.
    orders: Vec<Option<motion::KeptOrder>>,
}

impl Planner {
    /// Decides. Equal snapshots give equal plans and reports, whatever was planned before.
    #[must_use]
    pub fn plan(&mut self, snapshot: &Snapshot) -> (Plan, Report) {
        self.decide(snapshot, GateSet::ALL)
    }

    fn decide(&mut self, snapshot: &Snapshot, set: GateSet) -> (Plan, Report) {
        self.known.look(snapshot, &mut self.verdicts);
        self.orders.resize(snapshot.nodes.len(), None);
        decide(snapshot, set, &self.known, &mut self.verdicts, &mut self.orders)
    }
}

/// What a round has decided so far.
#[derive(Debug, Default)]
struct Draft {
    steps: Vec<Step>,
    drains: Vec<Arc<crate::plan::DrainOrder>>,
    questions: Vec<GateQuestion>,
    wake: Option<Time>,
    said: Vec<Option<Said>>,
}

/// What is said about a node.
#[derive(Debug, Clone)]
struct Said {
    state: RolloutState,
    wait: Arc<Wait>,
    gates_passed: Option<u8>,
    drain: Option<DrainProgress>,
}

impl Said {
    fn new(state: RolloutState, wait: Wait) -> Self {
        Self::shared(state, Arc::new(wait))
    }

    const fn shared(state: RolloutState, wait: Arc<Wait>) -> Self {
        Self { state, wait, gates_passed: None, drain: None }
    }
}

impl Draft {
    fn say(&mut self, node: usize, said: Said) {
        if let Some(slot) = self.said.get_mut(node) {
            *slot = Some(said);
        }
    }

    fn wake(&mut self, at: Option<Time>, now: Time) {
        if let Some(at) = at.filter(|at| *at > now) {
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        }
    }
}

/// All that a round looks at.
#[derive(Debug)]
struct Round<'a> {
    snapshot: &'a Snapshot,
    set: GateSet,
    known: &'a Known,
    /// In the snapshot's order.
    nodes: Vec<NodeContext<'a>>,
    policies: Vec<PolicyView<'a>>,
    draft: Draft,
    members: Arc<members::Members>,
}

fn decide(
    snapshot: &Snapshot,
    set: GateSet,
    known: &Known,
    verdicts: &mut Verdicts,
    orders: &mut [Option<motion::KeptOrder>],
) -> (Plan, Report) {
    let nodes = known.views().map(|view| NodeContext { view, desired: None, assessed: Assessment::default() });
    let nodes: Vec<NodeContext<'_>> = nodes.collect();
    let policies = snapshot.policies.iter().enumerate();
    let policies =
        policies.map(|(index, facts)| PolicyView::new(snapshot, facts, known.groups.members.get(index))).collect();
    let carriers = known.groups.carriers.iter().filter_map(|node| snapshot.nodes.get(*node));
    let members = members::Members::of(snapshot, carriers.map(|node| &**node));
    let draft = Draft { said: vec![None; nodes.len()], ..Draft::default() };
    let mut round = Round { snapshot, set, known, nodes, policies, draft, members: Arc::new(members) };
    for policy in &mut round.policies {
        policy.memory.know(&round.members.known);
    }
    round.accept_rollbacks();
    round.absorb_failures();
    round.assess(true);
    round.move_on(orders);
    round.assess(false);
    round.look_after_idle();
    let waves = round.waves();
    round.stage(&waves);
    let grants = round.grant(&waves, verdicts);
    round.taint(&waves);
    round.finish(&waves, grants)
}

impl<'a> Round<'a> {
    fn now(&self) -> Time {
        self.snapshot.now
    }

    fn deciding(&self, view: &NodeView<'a>) -> Option<usize> {
        policy::deciding(&self.policies, view)
    }

    /// What is said of a node to which nothing is done, because what it says of itself, or what a policy says that cares for it or may
    /// do so, can't be read.
    fn unreadable(&self, view: &NodeView<'_>) -> Option<Said> {
        if let Some(unreadable) = &view.node.unreadable {
            return Some(Said::new(RolloutState::Unknown, unreadable.wait()));
        }
        let (first, second) = match view.traits.selection {
            Selection::None => (None, None),
            Selection::One(policy) => (Some(policy), None),
            Selection::Conflict(first, second) => (Some(first), Some(second)),
        };
        let policies = [view.traits.policy, first, second].into_iter().flatten();
        let held_by = policies.filter_map(|index| self.policies.get(index)).find(|policy| policy.unreadable)?;
        held_by.invalid.as_ref().map(|wait| Said::shared(RolloutState::Waiting, Arc::clone(wait)))
    }

    fn accept_rollbacks(&mut self) {
        for index in 0..self.policies.len() {
            let Some(policy) = self.policies.get_mut(index) else { continue };
            if policy.unreadable {
                continue; // which releases are left is decided once, and by its memory
            }
            let node = |index: usize| self.nodes.get(index).map(|node| node.view);
            policy.rollbacks = rollback::in_force(self.snapshot, policy.facts, policy.members, &node);
            for rollback in policy.rollbacks.iter().filter(|rollback| rollback.fresh) {
                let facts = rollback.facts;
                let user = facts.spec.requested_by.as_deref();
                if facts.spec.block {
                    let by = user.map_or_else(
                        || format!("Rollback {}", facts.name),
                        |user| format!("Rollback {} by {user}", facts.name),
                    );
                    for version in &rollback.status.from {
                        policy.memory.block(version, &by, &facts.spec.reason, self.snapshot.now);
                    }
                }
            }
        }
    }

    /// Takes over failures that agents report of the release that is rolled out. A release that is blocked by them
    /// gives way to another, of which failures may be known too; hence the loop, which ends with the releases.
    fn absorb_failures(&mut self) {
        self.follow_retries();
        let now = self.snapshot.now;
        for (index, policy) in self.policies.iter_mut().enumerate() {
            // How many failures are too many is not known of a policy that can't be used: they are counted once it can.
            let Some(threshold) = policy.valid.map(|valid| valid.spec.failure_threshold) else { continue };
            policy.memory.recount(threshold, now);
            for _ in 0..=policy.facts.offer.releases.len() {
                let Some(target) = policy.target(None).map(|release| release.version.clone()) else { break };
                let failed = self.known.groups.failed.iter().filter_map(|node| self.nodes.get(*node));
                for view in failed.filter(|view| view.traits.policy == Some(index)) {
                    let Some(update) = view.update() else { continue };
                    // A trial that nobody looked after, because its Node was deleted, says nothing of its release.
                    if update.forgot_a_grant() && self.set.keeps(Rule::Adoption) {
                        continue;
                    }
                    // What ends now is judged with all that is known of it, and what ended because of the cluster was.
                    let unproven = update.spec.last_disruption.as_ref().is_some_and(|last| {
                        last.outcome == DisruptionOutcome::Unproven && last.version.as_ref() == Some(&target)
                    });
                    if view.traits.moves || unproven {
                        continue;
                    }
                    for failed in update.status.failed_releases.iter().filter(|failed| failed.version == target) {
                        let at = failed.at.min(now);
                        let failure = memory::failure(&target, &view.node.name, at, failed.category, &failed.message);
                        policy.memory.fail(failure, threshold, now);
                    }
                }
                if !policy.remembers_block(&target) {
                    break;
                }
            }
            policy.refresh_halt();
        }
    }

    /// What the nodes that move, or those that do not, should run, and what follows from it for each.
    fn assess(&mut self, moving: bool) {
        let mut assessor = Assessor::new(&self.policies, &self.known.texts, self.snapshot.now);
        let mut assess = |index: usize, node: &mut NodeContext<'a>| {
            (node.desired, node.assessed) = assessor.look(index, &node.view);
        };
        if moving {
            for index in &self.known.groups.moving {
                if let Some(node) = self.nodes.get_mut(*index) {
                    assess(*index, node);
                }
            }
        } else {
            for (index, node) in self.nodes.iter_mut().enumerate().filter(|(_, node)| !node.view.traits.moves) {
                assess(index, node);
            }
        }
    }

    /// Nodes with a grant go their way.
    fn move_on(&mut self, orders: &mut [Option<motion::KeptOrder>]) {
        let mut lost: BTreeMap<(usize, &Version), usize> = BTreeMap::new();
        for view in self.known.groups.moving.iter().filter_map(|index| self.nodes.get(*index)) {
            let policy = view.traits.policy.and_then(|index| Some((index, self.policies.get(index)?)));
            if let Some((index, policy)) = policy
                && !view.traits.unreadable
                && let Some(version) = motion::lost(view, policy, self.now())
            {
                *lost.entry((index, version)).or_default() += 1;
            }
        }
        let reporting = self.known.groups.failed.iter().filter_map(|index| self.nodes.get(*index));
        let unproven: Vec<_> = reporting
            .filter_map(|view| {
                let last = view.update()?.spec.last_disruption.as_ref();
                let last = last.filter(|last| last.outcome == DisruptionOutcome::Unproven)?;
                Some(motion::Unproven {
                    policy: view.traits.policy?,
                    version: last.version.as_ref()?,
                    node: &view.node.name,
                    gate: last.gate.as_deref()?,
                    ended_at: last.ended_at,
                })
            })
            .collect();
        let ctx = motion::Ctx {
            now: self.now(),
            unread_at: self.snapshot.unread_at,
            policies: &self.snapshot.policies,
            rollbacks: &self.snapshot.rollbacks,
            hooks: &self.snapshot.hooks,
            refused: &self.snapshot.refused,
            budgets: &self.snapshot.budgets,
            answers: Answers(&self.snapshot.gates, self.set),
            set: self.set,
            lost: &lost,
            unproven: &unproven,
        };
        for index in self.known.groups.moving.iter().copied() {
            let Some(view) = self.nodes.get(index).map(|node| node.view) else { continue };
            if let Some(said) = self.unreadable(&view) {
                self.draft.say(index, said);
                continue;
            }
            let gone = || Desired::Nothing(Arc::new(Wait::new(WaitReason::NotSelected, "no policy selects the node")));
            let desired = self.nodes.get(index).and_then(|node| node.desired.clone()).unwrap_or_else(gone);
            let deciding = self.deciding(&view).and_then(|policy| self.policies.get(policy));
            let asked = view.update().map_or("", |update| update.spec.policy.as_str());
            let policy = deciding.filter(|policy| policy.facts.name == asked);
            let caring = view.traits.policy.and_then(|policy| self.policies.get(policy));
            let kept = orders.get_mut(index);
            let before = kept.as_ref().and_then(|kept| kept.as_ref());
            let Some(moved) = motion::next(&ctx, &view, policy, caring, &desired, before) else { continue };
            self.remember(&view, &moved);
            self.draft.steps.extend(moved.steps);
            self.draft.drains.extend(moved.drain);
            if let Some(kept) = kept {
                *kept = moved.kept;
            }
            self.draft.questions.extend(moved.questions);
            self.draft.wake(moved.wake, self.snapshot.now);
            let said = Said { drain: moved.progress, ..Said::shared(moved.state, moved.wait) };
            self.draft.say(index, said);
        }
        for policy in &mut self.policies {
            policy.refresh_halt();
        }
    }

    fn remember(&mut self, view: &NodeView<'a>, moved: &motion::Motion) {
        let now = self.snapshot.now;
        let Some(policy) = view.traits.policy.and_then(|policy| self.policies.get_mut(policy)) else { return };
        let release = view.update().and_then(|update| update.spec.release.as_ref());
        if let (Some((category, message)), Some(release)) = (&moved.failure, release) {
            // What fails under a policy that can't be used is noted, and judged once it can.
            let threshold = policy.valid.map_or(u32::MAX, |valid| valid.spec.failure_threshold);
            let failure = memory::failure(&release.version, &view.node.name, now, *category, message);
            let is_new = !policy.memory.failed_on(&release.version, &view.node.name);
            policy.memory.fail(failure, threshold, now);
            // What an agent reports of a trial stays so; what is concluded here is about what is seen here.
            let taken_back = moved.steps.iter().find(|step| matches!(step.action, Action::Revert { .. }));
            if let Some(step) = taken_back.filter(|_| is_new) {
                let judged = Judged { node: view.node.name.to_string(), expect: step.expect.clone() };
                policy.memory.judged.push(judged);
            }
        }
        if let Some(took) = &moved.timing {
            policy.memory.time(took, now);
        }
    }

    /// The waves of each policy, with how each of its members stands.
    fn waves(&self) -> Vec<PolicyWaves> {
        self.policies.iter().map(|policy| self.waves_of(policy)).collect()
    }

    fn waves_of(&self, policy: &PolicyView<'a>) -> PolicyWaves {
        let members = policy.members.iter().filter_map(|index| self.nodes.get(*index));
        let members: Vec<&Member> = members.map(|node| &node.assessed.member).collect();
        let spec = policy.valid.map_or(&[][..], |valid| &valid.spec.waves);
        let by_lot = policy.by_lot.iter().filter_map(|place| members.get(*place).copied());
        let name = |node: usize| self.nodes.get(node).map_or("", |view| &view.node.name);
        // What nobody runs any more is tried anew. What can't be read may run it.
        let mut views = policy.members.iter().filter_map(|index| self.nodes.get(*index));
        let unread = views.any(|view| view.traits.unreadable);
        let is_run = unread || members.iter().any(|member| matches!(member.standing, Standing::Done(_)));
        let target = policy.target(None).filter(|_| is_run);
        let waves = Waves::new(
            &waves::Rollout {
                policy: &policy.facts.name,
                waves: spec,
                complete: target.map_or(&[][..], |target| policy.memory.waves_of(&target.version)),
                remembers: self.set.keeps(Rule::WavesPassed),
                all: self.nodes.len(),
                now: self.now(),
                node_name: &name,
            },
            by_lot,
        );
        let goes_back =
            |index: usize| self.nodes.get(index).and_then(|node| node.desired.as_ref()).is_some_and(Desired::goes_back);
        let unfinished = members
            .iter()
            .filter(|member| matches!(member.standing, Standing::Ahead | Standing::Moving))
            .map(|member| (member.index, member.standing == Standing::Moving || goes_back(member.index)))
            .collect();
        let standings = members.iter().map(|member| member.standing).collect();
        PolicyWaves { waves, unfinished, standings }
    }

    /// Notes which rollouts begin. Where a release is there for some architectures only, nodes take turns with different ones; the
    /// newest of those that nodes are still to run is the rollout, or each grant would take the place of the one before.
    fn start_rollouts(&mut self, granted: &[(usize, Version)]) {
        let mut granted: Vec<_> = granted.iter().collect();
        granted.sort_unstable_by(|one, other| other.cmp(one));
        for (index, version) in granted {
            let running = self.policies.get(*index).and_then(|policy| policy.memory.running());
            let newer = running.filter(|running| running.version > *version);
            if newer.is_some_and(|newer| self.is_target(*index, &newer.version)) {
                continue;
            }
            if let Some(policy) = self.policies.get_mut(*index) {
                policy.memory.start(version, self.snapshot.now);
            }
        }
    }

    /// Whether a release is what nodes of a policy are to run, of whatever architecture.
    fn is_target(&self, policy: usize, version: &Version) -> bool {
        let Some(policy) = self.policies.get(policy) else { return false };
        let members = policy.members.iter().filter_map(|index| self.nodes.get(*index));
        let machines: BTreeSet<_> = members.map(|view| view.node.architecture).collect();
        machines.into_iter().any(|machine| policy.target(machine).is_some_and(|release| release.version == *version))
    }

    fn finish(mut self, waves: &[PolicyWaves], grants: Grants) -> (Plan, Report) {
        let mut policies = Vec::with_capacity(self.policies.len());
        let unfinished: Vec<bool> = waves.iter().map(|waves| !waves.unfinished.is_empty()).collect();
        self.maintain(&grants, &unfinished);
        self.quote_refusals();
        self.start_rollouts(&grants.started);
        let mut remembered = Vec::new();
        for index in 0..self.policies.len() {
            let Some(report) = self.policy_report(index, waves.get(index), grants.used.get(index).copied()) else {
                continue;
            };
            // Nothing is written over a memory that can't be read.
            if let Some(policy) = self.policies.get_mut(index)
                && !policy.memory.changes.is_empty()
                && !policy.unreadable
            {
                let changes = std::mem::take(&mut policy.memory.changes);
                let judged = std::mem::take(&mut policy.memory.judged);
                let action = Action::Remember { policy: policy.facts.name.clone(), changes, judged };
                remembered.push(Step { action, expect: Expect::default(), cause: None, says: String::new() });
            }
            policies.push(report);
        }
        let rollbacks = self.rollback_statuses(&mut remembered);
        let freezes = self.freeze_statuses();
        remembered.append(&mut self.draft.steps);
        self.forget_freezes(&mut remembered);
        let now = self.snapshot.now;
        for freeze in self.snapshot.freezes.iter().filter(|freeze| freeze.is_active(now)) {
            self.draft.wake(Some(freeze.ends_at()), now);
        }
        for policy in &self.policies {
            let expires = policy.facts.offer.repository.expires_at;
            self.draft.wake(expires, now);
            match policy.opening {
                crate::windows::Opening::Open(span) => self.draft.wake(span.end, now),
                crate::windows::Opening::Closed(next) => self.draft.wake(next.map(|span| span.start), now),
                crate::windows::Opening::Always => {}
            }
        }
        self.draft.questions.sort_unstable();
        self.draft.questions.dedup();
        let unknown = Arc::new(Wait::new(WaitReason::NotSelected, "no policy selects the node"));
        let mut said = std::mem::take(&mut self.draft.said).into_iter();
        let nodes = self
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let said = said.next().flatten();
                let said = said.unwrap_or_else(|| Said::shared(RolloutState::Unknown, Arc::clone(&unknown)));
                NodeReport {
                    node: NodeName::new(Arc::clone(&self.known.names), index),
                    policy: node.traits.policy,
                    state: said.state,
                    wait: said.wait,
                    gates_passed: said.gates_passed,
                    drain: said.drain,
                }
            })
            .collect();
        let schedule = schedule::schedule(&remembered, self.snapshot);
        // What has no place now has one when what takes it hangs.
        if let Some(pause) = self.snapshot.writes.next_hangs().filter(|_| schedule.leaves_some()) {
            self.draft.wake(Some(now.after(bascule_api::Duration::from_secs(pause.as_secs().saturating_add(1)))), now);
        }
        let plan = Plan {
            schedule,
            steps: remembered,
            drains: self.draft.drains,
            questions: self.draft.questions,
            wake_at: self.draft.wake,
        };
        (plan, Report { nodes, policies, freezes, rollbacks })
    }
}

/// The waves of a policy and its members that are not done.
#[derive(Debug)]
struct PolicyWaves {
    waves: Waves,
    /// Members that still have to move or do, as indexes into the snapshot, and whether they go back or move already.
    unfinished: Vec<(usize, bool)>,
    /// How each member stands, in the members' order.
    standings: Vec<Standing>,
}

/// What the grants of a round leave behind.
#[derive(Debug, Default)]
struct Grants {
    /// Rollouts that began: policy and release.
    started: Vec<(usize, bascule_api::Version)>,
    /// How many nodes of each policy are unavailable now, this round's grants included.
    used: Vec<u32>,
    /// By policy: whether a node would be granted but for hooks of the whole rollout, and for which release.
    wanting: Vec<Option<Option<Version>>>,
    /// By policy: whether a node is granted.
    granted: Vec<bool>,
}
