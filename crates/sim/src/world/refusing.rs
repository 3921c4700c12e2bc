//! An API server that does not take writes for a while: an admission webhook that is down, a policy that denies, a quota that is used
//! up. Whoever carries plans out backs off between two tries as the operator does, and the planner is told.

use super::{Broken, World};
use bascule_api::Time;
use bascule_planner::{
    Action, Plan, Report, Step, model,
    snapshot::{Refusals, Write, Writes},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};

/// How often what is refused may be tried in a minute: at once, and after backoffs that double from one second on.
const TRIES: usize = 7;
/// How many plans are made at once where something was refused: pods come and go, and each change makes one.
const PLANS_AT_ONCE: usize = 8;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A Node: its cordon, its taints, what autoscalers are asked.
    Node,
    /// A NodeUpdate: grants, and the word to the agent.
    NodeUpdate,
    /// A hook's Job.
    Job,
}

impl Written {
    /// What an action writes. What policies and Rollbacks remember is never refused here.
    pub(super) fn by(action: &Action) -> Option<Self> {
        match action {
            Action::Taint { .. }
            | Action::Untaint { .. }
            | Action::Truce { .. }
            | Action::EndTruce { .. }
            | Action::Cordon { .. }
            | Action::Uncordon { .. } => Some(Self::Node),
            _ if action.hook().is_some() => Some(Self::Job),
            _ => action.node().map(|_| Self::NodeUpdate),
        }
    }
}

/// Writes that are refused.
#[derive(Debug, Clone)]
struct Fault {
    what: Written,
    /// For one node; else for every node, and for whole rollouts.
    node: Option<String>,
    /// `None`: until somebody mends it.
    until: Option<Time>,
}

/// What the API server does not take, and how often it was tried.
#[derive(Debug, Default)]
pub(super) struct Refusing {
    /// Decides in some worlds of chance. It is none of theirs, so that all other worlds stay what they are.
    random: Option<ChaCha8Rng>,
    faults: Vec<Fault>,
    /// When writes that were refused were tried, by the operator that lives.
    tries: BTreeMap<Write, Vec<Time>>,
    refused: usize,
}

impl Refusing {
    /// In each fifth world.
    pub(super) fn of_seed(seed: u64) -> Self {
        let random = (seed % 5 == 2).then(|| ChaCha8Rng::seed_from_u64(seed.rotate_left(32) ^ 0x5eed));
        Self { random, ..Self::default() }
    }

    /// Everything is taken from now on.
    pub(super) fn mend(&mut self) {
        self.random = None;
        self.faults.clear();
    }

    /// The operator dies: the next one begins to count anew.
    pub(super) fn forget(&mut self) {
        self.tries.clear();
    }

    /// Whether something was refused at this very moment.
    pub(super) fn refuses_now(&self, now: Time) -> bool {
        self.tries.values().any(|tries| tries.last() == Some(&now))
    }

    /// What was tried again and again though it was refused.
    pub(super) fn hurried(&self, now: Time) -> Vec<Broken> {
        let often = |(write, tries): (&Write, &Vec<Time>)| {
            let lately = tries.iter().filter(|at| now.seconds_since(**at) < 60).count();
            let what = || format!("{write:?} was tried {lately} times in a minute, and refused each time");
            (lately > TRIES).then(|| Broken::World(0, what()))
        };
        self.tries.iter().filter_map(often).collect()
    }

    fn refuses(&self, what: Written, node: Option<&str>) -> bool {
        let is_it = |fault: &Fault| fault.what == what && (fault.node.is_none() || fault.node.as_deref() == node);
        self.faults.iter().any(is_it)
    }
}

impl World {
    /// From now on writes of this kind are refused, for one node or for all, until [`Self::take_writes`].
    pub fn refuse(&mut self, what: Written, node: Option<&str>) {
        self.tell(&format!("{}: the API server refuses to write a {what:?}", node.unwrap_or("everywhere")));
        self.refusing.faults.push(Fault { what, node: node.map(str::to_owned), until: None });
    }

    /// Everything is taken again.
    pub fn take_writes(&mut self) {
        self.tell("the API server takes all writes");
        self.refusing.mend();
    }

    /// How many writes were refused so far.
    #[must_use]
    pub const fn refused(&self) -> usize {
        self.refusing.refused
    }

    /// Whether writes of this kind to a node are refused now.
    pub(super) fn refuses(&self, what: Written, node: &str) -> bool {
        self.refusing.refuses(what, Some(node))
    }

    /// Now and then a webhook breaks, or somebody writes a policy.
    pub(super) fn break_writes(&mut self) {
        let (now, nodes) = (self.snapshot.now, self.snapshot.nodes.len());
        self.refusing.faults.retain(|fault| fault.until.is_none_or(|until| until > now));
        let Some(random) = &mut self.refusing.random else { return };
        if self.refusing.faults.len() >= 2 || random.random_range(0..100) >= 12 {
            return;
        }
        let what = match random.random_range(0..4) {
            0 | 1 => Written::Node,
            2 => Written::NodeUpdate,
            _ => Written::Job,
        };
        // A trial that nobody can commit is taken back by its guard, which is no news.
        let longest = if what == Written::NodeUpdate { 600 } else { 2_400 };
        let (seconds, of) = (random.random_range(60..longest), random.random_range(0..=nodes));
        let node = self.snapshot.nodes.get(of).map(|node| node.name.to_string());
        let place = node.as_deref().unwrap_or("everywhere");
        self.tell(&format!("{place}: the API server refuses to write a {what:?} for {seconds} s"));
        let until = now.after(bascule_api::Duration::from_secs(seconds));
        self.refusing.faults.push(Fault { what, node, until: Some(until) });
    }

    /// How many plans more are made at this moment.
    pub(super) fn plans_at_once(&self) -> usize {
        if self.refusing.refuses_now(self.snapshot.now) { PLANS_AT_ONCE } else { 0 }
    }

    /// Whether a step backs off, since its write has just failed.
    pub(super) fn backs_off(&self, step: &Step) -> bool {
        !self.impatient && self.snapshot.refused.backs_off(&step.action, self.snapshot.now)
    }

    /// The nodes of a plan that are left alone, since a write of theirs backs off.
    pub(super) fn backing_off(&self, plan: &Plan) -> BTreeSet<String> {
        let backing_off = plan.steps.iter().filter(|step| !step.action.is_housekeeping() && self.backs_off(step));
        backing_off.filter_map(|step| step.action.node()).map(str::to_owned).collect()
    }

    /// Carries one step out; `Err`: the API server does not take it, and says this.
    pub(super) fn carry_out(&mut self, step: &Step, report: &Report) -> Result<model::Done, String> {
        if self.refusing.faults.is_empty() && self.snapshot.refused.is_empty() {
            return Ok(self.written(step, report));
        }
        let (write, now) = (Write::of(&step.action), self.snapshot.now);
        let node = step.action.node();
        let refused = Written::by(&step.action).filter(|what| self.refusing.refuses(*what, node));
        if let Some(what) = refused.filter(|_| self.stands(step)) {
            let words =
                format!("admission webhook \"writes.example.com\" denied the request: no {what:?} is written now");
            self.note_refusal(&write);
            self.snapshot.refused.note(write.clone(), Some(&words), now);
            let tries = self.refusing.tries.entry(write).or_default();
            tries.retain(|at| now.seconds_since(*at) < 60);
            tries.push(now);
            self.refusing.refused += 1;
            return Err(words);
        }
        let done = self.written(step, report);
        if done == model::Done::Applied {
            self.snapshot.refused.note(write, None, now);
        }
        Ok(done)
    }

    /// Whether the world is as a step expects it: else nothing is written.
    fn stands(&self, step: &Step) -> bool {
        let Some(name) = step.action.node() else { return true };
        let node = self.snapshot.nodes.iter().find(|node| *node.name == *name);
        node.is_some_and(|node| step.expect.check(node).is_ok())
    }

    /// A plan was carried out as far as it could be.
    pub(super) fn note_asked(&mut self, plan: &Plan) {
        let now = self.snapshot.now;
        self.snapshot.refused.asked(plan, now);
        self.snapshot.writes.planned(plan);
    }

    /// The operator dies, and with it what it knows of its writes.
    pub(super) fn forget_writes(&mut self) {
        self.snapshot.refused = Refusals::default();
        self.snapshot.writes = Writes::default();
        self.refusing.forget();
    }
}
