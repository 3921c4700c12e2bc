//! Seeded cluster worlds for the planner: API objects in memory, machines with the shipped agent's decisions, people and failures, and
//! an operator that is killed between any two of its actions.
//!
//! A world is a pure function of its seed. Each round some time passes, the environment acts, and the operator makes
//! a plan from what it sees (sometimes an old view of the nodes) and carries out a random part of it. After each
//! round the invariants are checked against the world itself, not against what the planner believes.

mod agent;
pub mod build;
mod check;
mod cluster;
mod faults;
mod history;
mod judge;
mod late;
mod leaders;
mod machine;
mod mutants;
mod overlap;
mod people;
mod players;
mod pods;
mod refusing;
pub mod scenario;
mod twin;
mod workload;

use bascule_api::{NodeUpdateStatus, Time};
use bascule_planner::{
    Action, GateSet, NodeReport, Plan, PolicyError, PolicyErrorKind, Report, Snapshot, Step, lint, model,
    snapshot::{HookStage, Node},
};
use history::{History, View};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::{collections::BTreeMap, fmt::Write as _};

pub use check::Broken;
pub use judge::Judge;
pub use machine::{Fate, Machine};
pub use mutants::Mutant;
pub use overlap::Meanwhile;
pub use players::Player;
pub use pods::Drains;
pub use refusing::Written;

/// How a world is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Rounds in which people and failures act.
    pub rounds: u32,
    /// The gates the planner asks; all of them, unless a test proves that one is needed.
    pub gates: GateSet,
    /// Whether a planner that plans on from plan to plan is compared with one that knows nothing.
    pub compare: bool,
    /// How nodes are emptied.
    pub drains: Drains,
    /// Whether plans are made while writes of the last one are in flight in every round, and what of them waits then; `None`: in some.
    pub overlap: Option<Meanwhile>,
    /// Who plans instead of the planner, where a test proves that a judge notices.
    pub mutant: Option<Mutant>,
    /// Whose word counts; everybody's, unless a test proves that this judge needs no other.
    pub judge: Option<Judge>,
    /// Whether what was refused is tried again at once: a mutant.
    pub impatient: bool,
    /// Who takes part beside those who always do; `None`: whom the seed says.
    pub player: Option<Player>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 40,
            gates: GateSet::ALL,
            compare: false,
            drains: Drains::Right,
            overlap: None,
            mutant: None,
            judge: None,
            impatient: false,
            player: None,
        }
    }
}

/// How many rounds of peace a world may need at most.
const MOST_ROUNDS: u32 = 600;
/// How many rounds, each up to the next moment at which something could happen, nothing must happen. Windows open and
/// close within them.
const QUIET_ROUNDS: u32 = 8;

/// One world.
#[derive(Debug)]
pub struct World {
    /// The API objects and all other facts, as they are.
    pub snapshot: Snapshot,
    /// The machines under the nodes, by node name.
    pub machines: BTreeMap<String, Machine>,
    /// What each release does to a machine that boots it, by version.
    pub fates: BTreeMap<String, Fate>,
    /// Nodes that a person cordoned, and nobody uncordoned since.
    pub held_by_people: Vec<String>,
    /// Nodes whose objects are deleted, as they were: their machines live on, and what runs there.
    lost: Vec<std::sync::Arc<bascule_planner::snapshot::Node>>,
    /// Nodes that carried the cluster and are gone for good, until a person says so.
    dead: Vec<String>,
    /// Policies that somebody deleted, as they were.
    deleted: Vec<std::sync::Arc<bascule_planner::snapshot::PolicyFacts>>,
    workload: pods::Workload,
    random: ChaCha8Rng,
    seed: u64,
    gates: GateSet,
    story: String,
    /// Whether the operator has only just begun, and has read nothing outside of the cluster.
    begins: bool,
    /// What the operator saw of the nodes some rounds ago.
    old_view: Option<View>,
    peace: bool,
    twin: Option<twin::Twin>,
    overlap: Option<Meanwhile>,
    mutant: Option<Mutant>,
    judge: Option<Judge>,
    /// What happened so far, where somebody judges it.
    history: Option<History>,
    /// For how many rounds trials were carried on with by nobody, by node.
    orphans: BTreeMap<String, u32>,
    /// Trials that ended because of the cluster.
    unproven: std::collections::BTreeSet<check::Unproven>,
    /// The release that each node was told to boot or to leave, where a DaemonSet pod had lost its readiness since the grant.
    shaken: BTreeMap<String, String>,
    /// When each node was told last to reboot.
    told: BTreeMap<String, Time>,
    /// How many failures each policy takes for too many, by what it said when it could be used last.
    thresholds: BTreeMap<String, u32>,
    refusing: refusing::Refusing,
    /// Watches that stand still, in the worlds that have some.
    late: Option<late::Late>,
    /// What a dead leader had in flight.
    strays: Vec<leaders::Stray>,
    /// Nodes from which that took the cordon or the truce, since the plan that it landed beside.
    struck: std::collections::BTreeSet<String>,
    /// Who else takes part, with chances of its own.
    company: Option<(Player, ChaCha8Rng)>,
    /// Decides in which rounds the API server takes its time. None of the worlds' other chances hangs on it.
    slow: Option<ChaCha8Rng>,
    impatient: bool,
    /// How many rounds the operator has lived through.
    lived: u32,
    /// For how many of these rounds nodes have held their grant beyond the time in which their drain has to begin.
    overdue: BTreeMap<String, u32>,
    /// Nodes that a plan adopts while grants of an earlier one are being written, which could not see that they have to be.
    adopted_meanwhile: std::collections::BTreeSet<String>,
}

/// A broken promise, with the story that led to it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The world's seed.
    pub seed: u64,
    /// What is broken.
    pub broken: Vec<Broken>,
    /// What happened, round by round.
    pub story: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "world {} broke a promise", self.seed)?;
        f.write_str(&self.story)?;
        for broken in &self.broken {
            writeln!(f, "=> {broken}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Runs the world of a seed to its end.
///
/// # Errors
/// [`Failure`], when a promise was broken.
pub fn run(seed: u64, options: Options) -> Result<World, Box<Failure>> {
    let mut world = World::random(seed, options.gates, options.drains);
    world.twin = options.compare.then(twin::Twin::default);
    world.overlap = options.overlap;
    (world.mutant, world.judge) = (options.mutant, options.judge);
    world.impatient = options.impatient;
    world.invite(options.player.or_else(|| players::of_seed(seed)));
    for _ in 0..options.rounds {
        world.round()?;
    }
    world.settle()?;
    world.fail_if(world.judged())?;
    Ok(world)
}

impl World {
    /// A world around a snapshot, without chance: nothing happens but what a scenario says.
    #[must_use]
    pub fn quiet(snapshot: Snapshot) -> Self {
        let mut world = Self {
            machines: BTreeMap::new(),
            fates: BTreeMap::new(),
            held_by_people: Vec::new(),
            lost: Vec::new(),
            dead: Vec::new(),
            deleted: Vec::new(),
            workload: pods::Workload::default(),
            random: ChaCha8Rng::seed_from_u64(snapshot.seed),
            seed: snapshot.seed,
            gates: GateSet::ALL,
            story: String::new(),
            begins: false,
            old_view: None,
            peace: true,
            twin: None,
            overlap: None,
            mutant: None,
            judge: None,
            history: None,
            orphans: BTreeMap::new(),
            unproven: std::collections::BTreeSet::new(),
            shaken: BTreeMap::new(),
            told: BTreeMap::new(),
            thresholds: BTreeMap::new(),
            refusing: refusing::Refusing::default(),
            late: None,
            strays: Vec::new(),
            struck: std::collections::BTreeSet::new(),
            company: None,
            slow: None,
            impatient: false,
            lived: 0,
            overdue: BTreeMap::new(),
            adopted_meanwhile: std::collections::BTreeSet::new(),
            snapshot,
        };
        let names: Vec<String> = world.snapshot.nodes.iter().map(|node| node.name.to_string()).collect();
        for name in names {
            world.machines.insert(name.clone(), Machine::new(&name));
        }
        world
    }

    fn tell(&mut self, line: &str) {
        let _ = writeln!(self.story, "{}  {line}", self.snapshot.now);
    }

    /// What happened so far.
    #[must_use]
    pub fn story(&self) -> &str {
        &self.story
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn up_to(&mut self, most: usize) -> usize {
        if most == 0 { 0 } else { self.random.random_range(0..=most) }
    }

    /// One round: time passes, things happen, the operator acts.
    fn round(&mut self) -> Result<(), Box<Failure>> {
        let seconds = if self.peace { 30 } else { self.random.random_range(3..150) };
        self.pass(seconds);
        if !self.peace {
            self.misfortune();
            self.people_act();
            self.meddle();
            self.break_writes();
        }
        let takes_its_time = self.takes_its_time();
        match self.overlap.or(takes_its_time.then_some(Meanwhile::Waits)) {
            Some(meanwhile) => self.operate_overlapping(meanwhile)?,
            None => {
                self.operate(true)?;
                for _ in 0..self.plans_at_once() {
                    self.operate(false)?;
                }
                let struck = std::mem::take(&mut self.struck);
                if self.workload.orders.iter().any(|order| struck.contains(&order.node)) {
                    // Its watch shows it a moment later, and whoever is emptied there is asked anew.
                    self.operate(false)?;
                }
            }
        }
        if !self.peace {
            self.stall_watches();
        }
        self.orphans = check::orphans(self);
        self.overdue = check::overdue(self);
        self.unproven.extend(check::unproven(self));
        for (node, at) in check::told(self) {
            let last = self.told.entry(node).or_insert(at);
            *last = at.max(*last);
        }
        for (node, version) in check::shaken(self) {
            match version {
                Some(version) => self.shaken.insert(node, version),
                None => self.shaken.remove(&node),
            };
        }
        self.fail_if(check::world(self))
    }

    /// Whether the API server takes its time in this round: some writes are answered late, twice or not at all.
    fn takes_its_time(&mut self) -> bool {
        // Who has only just begun has nothing in flight, and what a dead leader had lands beside its first plan.
        let may = !self.peace && !self.begins && self.strays.is_empty();
        self.slow.as_mut().filter(|_| may).is_some_and(|random| random.random_range(0..100) < 15)
    }

    /// Time passes: agents, machines, pods and Jobs go on.
    pub fn pass(&mut self, seconds: i64) {
        let now = self.snapshot.now.get() + chrono::TimeDelta::seconds(seconds);
        self.snapshot.now = Time::new(now);
        let writes = &mut self.snapshot.writes;
        writes.now += std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        writes.changed = writes.now;
        self.run_machines();
        self.run_workload();
        self.run_hooks();
        self.answer_gates();
    }

    /// The operator plans and carries out a part of the plan; it may be killed between any two actions. Of several plans at one moment
    /// only the first is of `chance`.
    fn operate(&mut self, chance: bool) -> Result<(), Box<Failure>> {
        let chance = chance && !self.peace;
        let stale = chance && self.chance(15);
        let late = self.late_view();
        let is_late = late.is_some();
        let mut view = match late {
            Some(view) => view,
            None if stale => self.old_view(),
            None => self.view(),
        };
        if std::mem::take(&mut self.begins) {
            self.tell("operator  begins, and has read no repository yet, nor asked for its rights");
            for policy in &mut view.facts.policies {
                std::sync::Arc::make_mut(policy).offer = std::sync::Arc::default();
            }
            ask_for_rights(&mut view.facts);
        }
        self.note_thresholds();
        let seen = &view.facts;
        let (plan, report) = self.plan(seen);
        let mut broken: Vec<Broken> = lint(seen, &plan, &report).into_iter().map(Broken::Lint).collect();
        if let Some(twin) = &mut self.twin {
            broken.extend(twin.compare(seen, &plan, &report));
        }
        if self.chance(10) {
            let again = self.plan(seen);
            if again != (plan.clone(), report.clone()) {
                broken.push(Broken::World(10, "the same facts gave another plan".to_owned()));
            }
        }
        let uids: BTreeMap<std::sync::Arc<str>, String> = if is_late {
            seen.nodes.iter().map(|node| (std::sync::Arc::clone(&node.name), node.uid.clone())).collect()
        } else {
            BTreeMap::new()
        };
        // What an old view showed of the NodeUpdates: each is written as the version that was seen.
        let old = if stale && !is_late { seen.nodes.clone() } else { Vec::new() };
        let number = self.note_plan(view, &plan, &report);
        let survives = !(chance && self.chance(25));
        let steps = self.in_order(&plan);
        let lives = if survives { steps.len() } else { self.up_to(steps.len()) };
        broken.extend(self.land_strays(&report));
        let mut refused = std::collections::BTreeSet::new();
        let mut unremembered = std::collections::BTreeSet::new();
        for step in steps.iter().copied().take(lives) {
            let node = step.action.node().unwrap_or_default().to_owned();
            let rests_on = self.remembers_for(&step.action);
            let waits = rests_on.as_ref().is_some_and(|policy| unremembered.contains(policy))
                || (!node.is_empty() && refused.contains(&node))
                || self.backs_off(step);
            if waits {
                continue;
            }
            if self.is_of_another_version(step, &old) {
                self.tell(&format!("API server  has another version of {node} than the old view"));
                refused.insert(node);
                continue;
            }
            let done = self.carry_out(step, &report);
            self.tell(&format!("operator  {} {node} {} {}", step.action.name(), step.says, shown(&done)));
            if done == Ok(model::Done::Applied) {
                self.note_act(number, &step.action);
                broken.extend(check::step(self, &step.action));
            } else if let Action::Remember { policy, .. } = &step.action {
                refused.extend(nodes_of(&report, policy));
                unremembered.extend(rests_on);
            } else if !step.action.is_housekeeping() {
                refused.insert(node);
            }
        }
        self.note_asked(&plan);
        if lives == steps.len() && survives {
            // Who sees no news can't be held to what it does not see.
            self.lived = if is_late { 0 } else { self.lived + u32::from(chance || self.peace) };
            if !(stale || is_late) {
                model::write_statuses(&mut self.snapshot, &report);
            }
            self.workload.orders = plan.drains.iter().map(|order| (**order).clone()).collect();
            if is_late {
                // Pods of a Node that is gone are no drain's: whoever gets its name is another node.
                let same = |name: &str, node: &Node| *node.name == *name && uids.get(name) == Some(&node.uid);
                let nodes = &self.snapshot.nodes;
                self.workload.orders.retain(|order| nodes.iter().any(|node| same(&order.node, node)));
            }
        } else {
            self.tell("operator  is killed");
            self.leave_in_flight(number, steps.get(lives..).unwrap_or_default(), &refused);
            self.lived = 0;
            self.watch_on();
            self.forget_writes();
            self.workload.forget();
            self.begins = self.chance(30);
            if self.chance(30) {
                self.forget_boots();
            }
        }
        self.workload.questions = plan.questions;
        self.fail_if(broken)
    }

    /// The policy whose memory has to be written first, for steps of no node.
    fn remembers_for(&self, action: &Action) -> Option<String> {
        match action {
            Action::Remember { policy, .. } => Some(policy.clone()),
            Action::AcceptRollback { rollback, .. } => {
                let known = self.snapshot.rollbacks.iter().find(|known| known.name == *rollback);
                known.map(|known| known.spec.policy.clone())
            }
            Action::KeepRolloutHook(order) | Action::RunRolloutHook(order) => Some(order.policy.clone()),
            _ => None,
        }
    }

    /// Whether a step writes a NodeUpdate of which its agent has said something else since the plan's view of it.
    fn is_of_another_version(&self, step: &Step, old: &[std::sync::Arc<Node>]) -> bool {
        let writes = matches!(Written::by(&step.action), Some(Written::NodeUpdate));
        let status = |nodes: &[std::sync::Arc<Node>]| {
            let node = nodes.iter().find(|node| step.action.node() == Some(&*node.name))?;
            // What the operator itself explains it has seen.
            Some(NodeUpdateStatus { rollout: None, ..node.update.as_ref()?.status.clone() })
        };
        match status(old).filter(|_| writes) {
            Some(seen) => status(&self.snapshot.nodes).is_some_and(|now| now != seen),
            None => false,
        }
    }

    /// The steps of a plan in the order in which they are carried out: what is remembered first, then as many batches as it says.
    fn in_order<'p>(&self, plan: &'p Plan) -> Vec<&'p Step> {
        if self.impatient {
            return plan.steps.iter().collect();
        }
        let remembered = plan.steps.iter().filter(|step| step.action.node().is_none());
        let batches = plan.schedule.batches.iter().take(plan.schedule.room);
        remembered.chain(batches.flat_map(|batch| plan.steps_of(batch))).collect()
    }

    /// What the policies that can be used say of failures.
    fn note_thresholds(&mut self) {
        let policies = self.snapshot.policies.iter();
        let valid = policies.filter_map(|policy| Some((&policy.name, policy.spec.as_ref().ok()?)));
        for (name, valid) in valid {
            self.thresholds.insert(name.clone(), valid.spec.failure_threshold);
        }
    }

    /// Nobody is left who saw the nodes boot: the next operator sees all boots now.
    fn forget_boots(&mut self) {
        self.tell("operator  and who stood by begin anew");
        let now = self.snapshot.now;
        for node in &mut self.snapshot.nodes {
            let node = std::sync::Arc::make_mut(node);
            (node.boot_seen, node.back_seen) = (now, now);
        }
    }

    /// An older view of the nodes, with the operator's own objects as they are: it has seen its own writes, but not
    /// what kubelets, agents and people did since.
    fn old_view(&mut self) -> View {
        let Some(view) = self.old_view.take() else {
            let view = self.view();
            self.old_view = Some(view.clone());
            return view;
        };
        self.tell("operator  plans from an old view of the nodes");
        let mut old = view.facts;
        old.now = self.snapshot.now;
        old.policies.clone_from(&self.snapshot.policies);
        old.freezes.clone_from(&self.snapshot.freezes);
        old.rollbacks.clone_from(&self.snapshot.rollbacks);
        old.hooks.clone_from(&self.snapshot.hooks);
        old.refused.clone_from(&self.snapshot.refused);
        old.writes.clone_from(&self.snapshot.writes);
        old.gates.clone_from(&self.snapshot.gates);
        old.budgets = std::sync::Arc::clone(&self.snapshot.budgets);
        old.nodes.retain(|node| self.snapshot.nodes.iter().any(|now| now.name == node.name && now.uid == node.uid));
        for node in &mut old.nodes {
            let Some(now) = self.snapshot.nodes.iter().find(|now| now.name == node.name) else { continue };
            let node = std::sync::Arc::make_mut(node);
            // Spec and status are one object: who has seen its own last write has seen the status of that moment.
            if node.update.as_ref().map(|update| &update.spec) != now.update.as_ref().map(|update| &update.spec) {
                node.update.clone_from(&now.update);
                // And when the machine was seen back, where the agent was the first to say so.
                node.back_seen = node.back_seen.max(now.back_seen);
            }
            node.cordon = now.cordon.clone();
            node.taints = now.taints;
            node.excluded = now.excluded;
            node.truce = now.truce;
        }
        let mut new = Vec::new();
        for node in &self.snapshot.nodes {
            if !old.nodes.iter().any(|known| known.name == node.name) {
                old.nodes.push(std::sync::Arc::clone(node));
                new.push(std::sync::Arc::clone(&node.name));
            }
        }
        let pods = std::sync::Arc::new(view.pods.with(&self.shown_pods(), &new));
        let new = new.into_iter().map(|node| (node, old.now)).collect();
        View { facts: old, pods, at: view.at, fresh: false, new }
    }

    /// The plan that follows from facts, to the planner or to a mutant of it.
    fn plan(&self, seen: &Snapshot) -> (Plan, Report) {
        mutants::plan(self.mutant, seen, self.gates)
    }

    /// Peace: nothing bad happens any more, people take their hands away, and everything has to come to rest.
    fn settle(&mut self) -> Result<(), Box<Failure>> {
        self.make_peace();
        let mut quiet = 0;
        for _ in 0..MOST_ROUNDS {
            let told = self.story.len();
            self.name_members_again();
            self.round()?;
            let (plan, report) = self.plan(&self.snapshot);
            let calm = self.machines.values().all(Machine::is_calm)
                && plan.is_quiet()
                && plan.drains.is_empty()
                && !self.snapshot.nodes.iter().any(|node| node.granted());
            // What happened in this round may lead to something in the next.
            let new = self.story.get(told..).unwrap_or_default();
            let nothing = new.lines().all(|line| line.ends_with(overlap::PLANS_AGAIN));
            quiet = if calm && nothing && plan.questions.is_empty() { quiet + 1 } else { 0 };
            self.note_quiet(quiet);
            if quiet >= QUIET_ROUNDS {
                return self.fail_if(check::end(self, &report));
            }
            // Nothing happens before that moment, so the world need not wait for it.
            let next = plan.wake_at.map_or(0, |wake| wake.seconds_since(self.snapshot.now) - 15);
            if calm && next > 0 && plan.questions.is_empty() && !self.workload.is_busy() {
                self.pass(next.min(86_400));
            }
        }
        let (plan, report) = self.plan(&self.snapshot);
        let mut what = String::from("does not come to rest");
        for step in &plan.steps {
            let _ = write!(what, "\n   {} {:?} {}", step.action.name(), step.action.node(), step.says);
        }
        for said in &report.nodes {
            let _ = write!(what, "\n   {} {:?} {}: {}", said.node, said.state, said.wait.reason, said.wait.message);
        }
        self.fail_if(vec![Broken::World(9, what)])
    }

    fn fail_if(&self, mut broken: Vec<Broken>) -> Result<(), Box<Failure>> {
        if let Some(judge) = self.judge {
            broken.retain(|broken| matches!(broken, Broken::Judged(by, _) if *by == judge));
        }
        if broken.is_empty() {
            return Ok(());
        }
        let story = format!("{}{}", self.story, self.shown());
        Err(Box::new(Failure { seed: self.seed, broken, story }))
    }
}

/// The nodes that wait until what their policy remembers is written.
fn nodes_of<'r>(report: &'r Report, policy: &'r str) -> impl Iterator<Item = String> + 'r {
    let waits = move |said: &&NodeReport| {
        let of = said.policy.and_then(|index| report.policies.get(index));
        of.is_some_and(|of| of.policy == *policy)
    };
    report.nodes.iter().filter(waits).map(|said| said.node.to_string())
}

/// Whether it may run a policy's hooks and ask its object gates an operator that has just begun does not know yet, and until it does
/// the policy can't be used: unless one of its nodes, or its maintenance, is under way already.
fn ask_for_rights(seen: &mut Snapshot) {
    const STAGES: [HookStage; 4] =
        [HookStage::BeforeDrain, HookStage::AfterCommit, HookStage::BeforeRollout, HookStage::AfterRollout];
    let moves = |node: &std::sync::Arc<Node>| {
        let spec = node.update.as_ref().map(|update| &update.spec).filter(|spec| spec.disruption.is_some());
        spec.map(|spec| spec.policy.clone())
    };
    let under_way: std::collections::BTreeSet<String> = seen.nodes.iter().filter_map(moves).collect();
    for policy in &mut seen.policies {
        let needs = policy.spec.as_ref().is_ok_and(|valid| {
            let spec = &valid.spec;
            STAGES.iter().any(|stage| !stage.hooks(&spec.hooks).is_empty())
                || spec.health.gates.iter().any(|gate| gate.object.is_some())
        });
        if needs && policy.status.maintenance.is_none() && !under_way.contains(&policy.name) {
            let asked = PolicyErrorKind::Right("whether the operator may do this is being asked".to_owned());
            std::sync::Arc::make_mut(policy).spec = Err(PolicyError::new("spec", asked));
        }
    }
}

fn shown(done: &Result<model::Done, String>) -> String {
    match done {
        Ok(model::Done::Applied) => String::new(),
        Ok(model::Done::Refused(mismatch)) => format!("[refused: {mismatch}]"),
        Ok(model::Done::Gone) => "[gone]".to_owned(),
        Err(words) => format!("[not taken: {words}]"),
    }
}
