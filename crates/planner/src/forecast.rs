//! When will each node probably be done? The planner itself is run forward over simulated time, with what drains and
//! boots took lately, in a cluster in which nothing breaks, every write is taken and every health gate passes.

use crate::{
    Action, GateSet, Snapshot, decide, model,
    plan::{DrainMode, DrainOrder, GateQuestion},
    snapshot::{DaemonSetPod, GateAnswer, HookState, Node, Refusals, UpdateFacts, Writes},
};
use bascule_api::{
    Booted, Disruption, Duration, FailedRelease, Goal, Health, NodeError, RolloutState, RootHash, SlotName, SlotState,
    SlotStatus, Slots, Staged, Time, Trial, Version,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

/// How a forecast is made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How far ahead it looks.
    pub horizon: Duration,
    /// What staging takes on a node.
    pub staging: Duration,
    /// What a drain takes where none was seen yet.
    pub drain: Duration,
    /// What a boot takes where none was seen yet.
    pub boot: Duration,
    /// How many plans may be made at most.
    pub plans: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            horizon: Duration::from_secs(60 * 86_400),
            staging: Duration::from_minutes(5),
            drain: Duration::from_minutes(2),
            boot: Duration::from_minutes(2),
            plans: 200_000,
        }
    }
}

/// When nodes will probably be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forecast {
    /// For each node of the snapshot, in its order, when it runs its policy's release. The snapshot's own time: it
    /// does already. `None`: not within the horizon, as things are now.
    pub nodes: Vec<Option<Time>>,
    /// For each node, when it is granted its first disruption, which takes it out of service. The snapshot's own time: it has a
    /// grant already. `None`: not within the horizon, or none is needed.
    pub starts: Vec<Option<Time>>,
    /// For each policy, in its order, when its last node is done; `None` where one is not.
    pub policies: Vec<Option<Time>>,
    /// Whether the number of plans was not enough to look as far as asked.
    pub cut: bool,
}

/// Something that happens to a node at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Staged(Version),
    Empty(i64),
    Up {
        slot: SlotName,
        trial: bool,
    },
    /// The kubelet of a boot that the agent has reported speaks, and its DaemonSet pods are there.
    Well,
}

/// Runs the planner forward.
#[must_use]
pub fn forecast(snapshot: &Snapshot, options: &Options) -> Forecast {
    Run::new(snapshot.clone(), *options).run()
}

struct Run {
    snapshot: Snapshot,
    options: Options,
    end: Time,
    index: BTreeMap<Arc<str>, usize>,
    events: BinaryHeap<Reverse<(Time, usize, Event)>>,
    questions: Vec<GateQuestion>,
    draining: BTreeMap<usize, i64>,
    /// Nodes on the way out of a trial: their agent goes on its own, without another grant.
    leaving: BTreeSet<usize>,
    pods: Vec<(u32, Vec<(String, u32)>)>,
    done: Vec<Option<Time>>,
    starts: Vec<Option<Time>>,
}

impl Run {
    fn new(mut snapshot: Snapshot, options: Options) -> Self {
        snapshot.refused = Refusals::default();
        // Nobody would say what became of what is in flight: it is given once more.
        snapshot.writes = Writes::default();
        let end = snapshot.now.after(options.horizon);
        let index = snapshot.nodes.iter().enumerate().map(|(at, node)| (Arc::clone(&node.name), at)).collect();
        let pods = snapshot.nodes.iter().map(|node| (node.pods.remaining, node.pods.budgets.clone())).collect();
        let done = vec![None; snapshot.nodes.len()];
        let starts = snapshot.nodes.iter().map(|node| node.granted().then_some(snapshot.now)).collect();
        let (events, questions) = (BinaryHeap::new(), Vec::new());
        let (draining, leaving) = (BTreeMap::new(), BTreeSet::new());
        let mut run = Self { snapshot, options, end, index, events, questions, draining, leaving, pods, done, starts };
        for at in 0..run.snapshot.nodes.len() {
            run.resume(at);
            run.follow(at);
        }
        run
    }

    fn run(mut self) -> Forecast {
        let mut cut = true;
        let mut policies = vec![None; self.snapshot.policies.len()];
        for _ in 0..self.options.plans {
            let (plan, report) = decide::plan_asking(&self.snapshot, GateSet::ALL);
            let mut touched: Vec<usize> = Vec::new();
            for step in &plan.steps {
                let done = model::apply(&mut self.snapshot, step, &report);
                if let Action::Grant { node, .. } = &step.action
                    && done == model::Done::Applied
                    && let Some(starts) = self.index.get(node.as_str()).and_then(|at| self.starts.get_mut(*at))
                {
                    starts.get_or_insert(self.snapshot.now);
                }
                // A node whose autoscalers may go on is as done as before.
                let node = step.action.node().filter(|_| !matches!(step.action, Action::EndTruce { .. }));
                touched.extend(node.and_then(|name| self.index.get(name)));
            }
            model::write_statuses(&mut self.snapshot, &report);
            self.finish_hooks();
            touched.sort_unstable();
            touched.dedup();
            touched.iter().for_each(|at| self.follow(*at));
            self.drain(&plan.drains);
            for (at, said) in report.nodes.iter().enumerate() {
                if let Some(done) = self.done.get_mut(at) {
                    let current = said.state == RolloutState::Current && !plan_touches(&touched, at);
                    *done = if current { done.or(Some(self.snapshot.now)) } else { None };
                }
            }
            self.questions.clone_from(&plan.questions);
            let finished =
                self.done.iter().zip(&report.nodes).all(|(done, said)| said.policy.is_none() || done.is_some());
            let asks = self.answer();
            if !plan.steps.is_empty() || asks {
                continue;
            }
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            let next = [next, plan.wake_at].into_iter().flatten().min();
            match next.filter(|next| *next <= self.end && !finished) {
                Some(next) => self.advance(next),
                None => {
                    cut = false;
                    for (index, last) in policies.iter_mut().enumerate() {
                        *last = self.last_of(index, &report);
                    }
                    break;
                }
            }
        }
        Forecast { nodes: self.done, starts: self.starts, policies, cut }
    }

    fn last_of(&self, policy: usize, report: &crate::Report) -> Option<Time> {
        let members = self.done.iter().zip(&report.nodes).filter(|(_, said)| said.policy == Some(policy));
        members.map(|(done, _)| *done).try_fold(Time::default(), |last, done| Some(last.max(done?)))
    }

    fn advance(&mut self, to: Time) {
        self.snapshot.now = self.snapshot.now.max(to);
        while let Some(Reverse((at, node, event))) = self.events.peek().cloned() {
            if at > self.snapshot.now {
                break;
            }
            self.events.pop();
            self.happen(node, event);
            self.follow(node);
        }
    }

    /// Gates pass; whether a question was open.
    fn answer(&mut self) -> bool {
        let now = self.snapshot.now;
        let mut asked = false;
        let questions = std::mem::take(&mut self.questions);
        for question in questions {
            let known = self.snapshot.gates.iter_mut().find(|answer| {
                answer.policy == question.policy && answer.gate == question.gate && answer.node == question.node
            });
            match known {
                Some(answer) if answer.passes && answer.at == now => {}
                Some(answer) => {
                    answer.since = if answer.passes { answer.since } else { now };
                    answer.passes = true;
                    answer.at = now;
                    answer.missed = None;
                    asked = true;
                }
                None => {
                    asked = true;
                    self.snapshot.gates.push(GateAnswer {
                        policy: question.policy,
                        gate: question.gate,
                        node: question.node,
                        passes: true,
                        known: true,
                        message: String::new(),
                        at: now,
                        since: now,
                        missed: None,
                    });
                }
            }
        }
        asked
    }

    fn finish_hooks(&mut self) {
        for run in &mut self.snapshot.hooks {
            if matches!(run.state, HookState::Running { .. }) {
                run.state = HookState::Succeeded;
            }
        }
    }

    fn timings(&self, node: &Node) -> (Duration, Duration) {
        let policy = node.update.as_ref().map(|update| update.spec.policy.as_str());
        let timings = self
            .snapshot
            .policies
            .iter()
            .find(|known| Some(known.name.as_str()) == policy)
            .map(|known| &known.status.timings);
        let seen = |seconds: Option<u32>, guess: Duration| {
            seconds.map_or(guess, |seconds| Duration::from_secs(u64::from(seconds)))
        };
        (
            seen(timings.and_then(|timings| timings.drain_seconds), self.options.drain),
            seen(timings.and_then(|timings| timings.boot_seconds), self.options.boot),
        )
    }

    /// How long a machine may be away before somebody has to look, and nobody knows whether it comes back.
    fn patience(&self, node: &Node) -> Duration {
        let policy = node.update.as_ref().map(|update| update.spec.policy.as_str());
        let known = self.snapshot.policies.iter().find(|known| Some(known.name.as_str()) == policy);
        let valid = known.and_then(|known| known.spec.as_ref().ok());
        valid.map_or_else(|| Health::default().node_ready_timeout, |valid| valid.spec.health.node_ready_timeout)
    }

    /// When what began then is over. What has used its time up takes as long once more, for all that is known.
    fn ends(&self, began: Time, takes: Duration) -> Time {
        let end = began.after(takes);
        if end > self.snapshot.now { end } else { self.snapshot.now.after(takes) }
    }

    /// What goes on already on a node that was told to reboot before the forecast begins. Its agent has noted the grant and
    /// armed, so that nothing that it is told from now on says that it comes back.
    fn resume(&mut self, at: usize) {
        let Some(node) = self.snapshot.nodes.get(at) else { return };
        let Some(update) = &node.update else { return };
        let (Some(disruption), Some(grant)) = (&update.spec.disruption, &update.spec.grant) else { return };
        let Some(told) = disruption.drained_at else { return };
        let (_, boot) = self.timings(node);
        let end = self.ends(told, boot);
        let agent_is_back = update.status.boot_id.as_ref().is_some_and(|boot| *boot != grant.boot_id);
        if agent_is_back {
            if !is_well(node, disruption) {
                self.events.push(Reverse((end, at, Event::Well)));
            }
            return;
        }
        let armed = update.status.last_grant == Some(grant.generation);
        if !armed || self.snapshot.now >= told.after(self.patience(node)) {
            return;
        }
        let (Some(booted), Some(release)) = (&update.status.booted, &update.spec.release) else { return };
        // Where the release to be left does not run, it is what was armed: the machine was slow, and is to go back should it
        // come up with it.
        let trial = match update.spec.goal {
            Goal::Booted => true,
            Goal::Reverted => booted.version != release.version,
            Goal::Idle | Goal::Staged | Goal::Committed => return,
        };
        let up = Event::Up { slot: booted.slot.other(), trial };
        self.events.push(Reverse((end, at, up)));
    }

    fn drain(&mut self, orders: &[Arc<DrainOrder>]) {
        for order in orders.iter().filter(|order| order.mode != DrainMode::Keep) {
            let Some(at) = self.index.get(order.node.as_str()).copied() else { continue };
            if self.draining.get(&at) == Some(&order.grant) {
                continue;
            }
            self.draining.insert(at, order.grant);
            let Some(node) = self.snapshot.nodes.get(at) else { continue };
            let (drain, _) = self.timings(node);
            // What is waited for ends by a time of its own.
            let completes = node.pods.completing.as_ref().and_then(|completing| completing.by);
            let empty = self.ends(order.begun, drain).max(completes.unwrap_or_default());
            self.events.push(Reverse((empty, at, Event::Empty(order.grant))));
        }
    }

    /// What the agent does next with the operator's word.
    fn follow(&mut self, at: usize) {
        let Some(node) = self.snapshot.nodes.get(at) else { return };
        let (_, boot) = self.timings(node);
        let patience = self.patience(node);
        let (now, staging) = (self.snapshot.now, self.options.staging);
        let Some(node) = self.snapshot.nodes.get_mut(at).map(Arc::make_mut) else { return };
        let Some(update) = node.update.as_mut() else { return };
        update.status.observed_generation = Some(update.generation);
        if matches!(update.spec.goal, Goal::Idle | Goal::Staged) {
            disarm(update, now);
        }
        let Some(release) = update.spec.release.clone() else { return };
        let Some(booted) = update.status.booted.clone() else { return };
        // As the agent: a grant is good once, and in the boot that it was given for. Nobody counts on a machine that was told
        // to reboot and has been away for too long.
        let granted = update.spec.grant.as_ref().filter(|grant| {
            let told = update.spec.disruption.as_ref().map(|disruption| disruption.drained_at);
            told.is_some_and(|told| told.is_none_or(|told| now < told.after(patience)))
                && update.status.last_grant.is_none_or(|last| grant.generation > last)
                && update.status.boot_id.as_ref().is_none_or(|boot| *boot == grant.boot_id)
        });
        match update.spec.goal {
            Goal::Staged if update.status.staged.as_ref().is_none_or(|staged| staged.version != release.version) => {
                self.events.push(Reverse((now.after(staging), at, Event::Staged(release.version))));
            }
            Goal::Booted | Goal::Reverted => {
                let reverts = update.spec.goal == Goal::Reverted;
                if reverts && update.status.trial.is_some() && booted.version == release.version {
                    if self.leaving.insert(at) {
                        let up = Event::Up { slot: booted.slot.other(), trial: false };
                        self.events.push(Reverse((now.after(boot), at, up)));
                    }
                } else if let Some(grant) = granted
                    && (!reverts || booted.version == release.version)
                {
                    update.status.last_grant = Some(grant.generation);
                    let up = Event::Up { slot: booted.slot.other(), trial: !reverts };
                    self.events.push(Reverse((now.after(boot), at, up)));
                }
            }
            Goal::Committed if update.status.trial.is_some() => {
                update.status.trial = None;
                if let Some(booted) = &mut update.status.booted {
                    booted.committed_at = Some(now);
                    set_slot(&mut update.status.slots, booted.slot, SlotState::Good, Some(&booted.version));
                }
            }
            Goal::Idle | Goal::Staged | Goal::Committed => {}
        }
        if !node.cordon.is_cordoned()
            && let Some((remaining, budgets)) = self.pods.get(at)
        {
            node.pods.remaining = *remaining;
            node.pods.budgets.clone_from(budgets);
        }
    }

    fn happen(&mut self, at: usize, event: Event) {
        let now = self.snapshot.now;
        let Some(node) = self.snapshot.nodes.get_mut(at).map(Arc::make_mut) else { return };
        let Some(update) = node.update.as_mut() else { return };
        match event {
            Event::Staged(version) => {
                let asked = update.spec.release.as_ref().filter(|asked| asked.version == version);
                if let (Some(asked), Some(booted)) = (asked, &update.status.booted) {
                    let digest = asked.digest.clone();
                    set_slot(&mut update.status.slots, booted.slot.other(), SlotState::Staged, Some(&version));
                    update.status.last_error = None;
                    update.status.staged = Some(Staged { version, digest, at: Some(now) });
                }
            }
            Event::Empty(grant) => {
                let current = update.spec.grant.as_ref().is_some_and(|given| given.generation == grant);
                if current && update.spec.disruption.is_some() {
                    node.pods.remaining = 0;
                    node.pods.budgets.clear();
                    node.pods.completing = None;
                }
            }
            Event::Well => {
                node.ready.ready = true;
                node.ready.since = Some(now);
                if let Some(boot) = update.status.boot_id.clone().filter(|boot| *boot != node.boot_id) {
                    (node.boot_id, node.boot_seen) = (boot, now);
                }
                if let Some(disruption) = &update.spec.disruption {
                    for pod in node.daemon_sets.0.iter_mut().filter(|pod| is_awaited(pod, disruption)) {
                        (pod.ready, pod.since) = (true, Some(now));
                    }
                }
            }
            Event::Up { slot, trial } => {
                self.leaving.remove(&at);
                node.boot_id = format!("{}+", node.boot_id);
                node.ready.ready = true;
                node.ready.since = Some(now);
                (node.boot_seen, node.back_seen) = (now, now);
                for pod in &mut node.daemon_sets.0 {
                    (pod.ready, pod.since) = (true, Some(now));
                }
                update.status.boot_id = Some(node.boot_id.clone());
                let held = update.status.slots.as_ref().and_then(|slots| slots.get(slot).version.clone());
                let version = held.or_else(|| update.status.staged.as_ref().map(|staged| staged.version.clone()));
                if let Some(version) = version {
                    let state = if trial { SlotState::Trial } else { SlotState::Good };
                    set_slot(&mut update.status.slots, slot, state, Some(&version));
                    if !trial && let Some(left) = &update.status.booted {
                        // A trial that is given up has failed here, as its agent says from then on.
                        let asked = update.spec.release.as_ref().filter(|asked| asked.version == left.version);
                        let given_up = asked.filter(|_| update.status.trial.is_some());
                        let state = if given_up.is_some() { SlotState::Bad } else { SlotState::Staged };
                        set_slot(&mut update.status.slots, left.slot, state, Some(&left.version));
                        if let Some(release) = given_up {
                            update.status.failed_releases.retain(|failed| failed.version != release.version);
                            update.status.failed_releases.push(FailedRelease {
                                version: release.version.clone(),
                                digest: release.digest.clone(),
                                at: now,
                                category: NodeError::TrialFailed,
                                message: "the trial was given up".to_owned(),
                            });
                        }
                    }
                    update.status.trial =
                        trial.then(|| Trial { version: version.clone(), tries_left: 0, deadline: None });
                    let root_hash = RootHash::from_bytes(&[0; 32]);
                    update.status.booted = Some(Booted { slot, version, root_hash, committed_at: None });
                }
                update.status.staged = None;
            }
        }
    }
}

fn plan_touches(touched: &[usize], at: usize) -> bool {
    touched.binary_search(&at).is_ok()
}

fn set_slot(slots: &mut Option<Slots>, name: SlotName, state: SlotState, version: Option<&Version>) {
    let slots = slots.get_or_insert_default();
    let slot = match name {
        SlotName::A => &mut slots.a,
        SlotName::B => &mut slots.b,
    };
    let state_version = slot.state_version.filter(|_| slot.version.as_ref() == version);
    *slot = SlotStatus { state, version: version.cloned(), root_hash: slot.root_hash.take(), state_version };
}

/// Whether a DaemonSet pod of a node that rebooted has to speak before the node counts as healthy: one that was broken before is
/// waited for by nobody, and what the old boot said of one counts for nothing.
fn is_awaited(pod: &DaemonSetPod, disruption: &Disruption) -> bool {
    match disruption.daemon_sets.iter().find(|before| *before.name == *pod.set) {
        Some(before) if !before.ready && before.since.is_none() => false,
        Some(before) => !pod.ready || (before.since.is_some() && before.since == pod.since),
        None => !pod.ready,
    }
}

/// Whether nothing is missing any more of a node whose agent reports from the boot that it was told to make.
fn is_well(node: &Node, disruption: &Disruption) -> bool {
    let boot = node.update.as_ref().and_then(|update| update.status.boot_id.as_deref());
    node.ready.ready
        && boot == Some(node.boot_id.as_str())
        && !node.daemon_sets.0.iter().any(|pod| is_awaited(pod, disruption))
}

/// What an agent does that is not to boot any more what it has armed.
fn disarm(update: &mut UpdateFacts, now: Time) {
    let Some(slots) = &mut update.status.slots else { return };
    for slot in [&mut slots.a, &mut slots.b] {
        if slot.state != SlotState::Armed {
            continue;
        }
        slot.state = SlotState::Staged;
        let held = update.spec.release.as_ref().filter(|asked| slot.version.as_ref() == Some(&asked.version));
        if let Some(held) = held {
            let (version, digest) = (held.version.clone(), held.digest.clone());
            update.status.staged = Some(Staged { version, digest, at: Some(now) });
        }
    }
}
