//! What a leader does over and over: one plan from all facts, its steps begun, and what tells when the next one is due.

use super::Parts;
use crate::{
    apply::{Carried, InFlight},
    boots::Boots,
    break_glass::BreakGlass,
    drain::{self, Drains},
    gather::{Assembler, Outside},
    health::GateBoard,
    hooks::{LeftOver, LettingGo},
    live::Planned,
    repository::Channels,
    rights::Rights,
    silences,
    status::Explained,
};
use bascule_planner::{
    Plan, Planner, Snapshot,
    plan::DrainMode,
    snapshot::{OfferState, PolicyFacts, Refusals, Writes},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Changes come in bursts; one plan serves those that follow the first within so many times what the last plan took, so that
/// planning takes a sixth of the time at most.
const BURST: u32 = 5;
/// The bounds of that time.
const SHORTEST_BURST: Duration = Duration::from_millis(25);
const LONGEST_BURST: Duration = Duration::from_millis(200);
/// After writes that ended, should nothing new be told before: steps that met another world than expected are tried again, and what
/// succeeded may have been seen by a plan that still left its node alone. What failed backs off for longer.
const ENDED_PAUSE: Duration = Duration::from_secs(1);
/// How long a new leader keeps the statuses of its predecessor while it reads the repositories for the first time:
/// saying "not read yet" of every node and taking it back a second later would help nobody.
const FIRST_READING: Duration = Duration::from_secs(10);
/// While hooks of a deleted policy are to be run: what their Jobs came to is told by no step of a plan.
const LEFT_OVER: Duration = Duration::from_secs(5);
/// The longest time between two plans, against clocks that jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// When the next plan is due.
#[derive(Debug, Clone, Copy)]
struct Next {
    /// At this time, though nothing changes.
    wake: Instant,
    /// How many steps were not begun: as soon as other writes end.
    left: usize,
}

/// Nobody tells of changes any more.
#[derive(Debug)]
struct Over;

/// What one leadership works with. Dropping it stops its drains, polls and questions.
pub(super) struct Round<'a> {
    parts: &'a Parts,
    seed: u64,
    /// When an operator before this one could not read something last.
    unread_at: Option<bascule_api::Time>,
    assembler: Assembler,
    planner: Planner,
    channels: Channels,
    gates: GateBoard,
    drains: Drains,
    rights: Rights,
    break_glass: BreakGlass,
    boots: Boots,
    left_over: LeftOver,
    letting_go: LettingGo,
    in_flight: InFlight,
    /// How writes went that ended since the last plan.
    ended: Carried,
    /// Those that failed when they were tried last.
    refused: Refusals,
    /// What is known of the others.
    writes: Writes,
    led_since: Instant,
    explained: watch::Sender<Explained>,
    /// The nodes whose alerts are expected.
    expected: watch::Sender<BTreeMap<String, String>>,
}

impl<'a> Round<'a> {
    pub(super) fn new(
        parts: &'a Parts,
        (seed, unread_at): (u64, Option<bascule_api::Time>),
        led_since: Instant,
        explained: watch::Sender<Explained>,
        expected: watch::Sender<BTreeMap<String, String>>,
    ) -> Self {
        Self {
            parts,
            seed,
            unread_at,
            assembler: Assembler::default(),
            planner: Planner::default(),
            channels: Channels::new(parts.reading.clone()),
            gates: GateBoard::new(
                parts.asker.clone(),
                parts.clock.clone(),
                parts.metrics.clone(),
                Arc::clone(&parts.changes),
            ),
            drains: Drains::new(parts.draining.clone()),
            rights: Rights::new(
                parts.reading.client.clone(),
                parts.asker.objects(),
                &parts.reading.namespace,
                Arc::clone(&parts.changes),
            ),
            break_glass: BreakGlass::default(),
            boots: Boots::default(),
            left_over: LeftOver::default(),
            letting_go: LettingGo::default(),
            in_flight: InFlight::default(),
            ended: Carried::default(),
            refused: Refusals::default(),
            writes: Writes::default(),
            led_since,
            explained,
            expected,
        }
    }

    pub(super) async fn plan_again_and_again(&mut self) {
        let mut changed = self.parts.world.changes();
        let mut since = Instant::now();
        loop {
            changed.mark_unchanged();
            let begun = Instant::now();
            let (next, first_change) = noticing(&mut changed, self.plan(since)).await;
            let burst = (begun.elapsed() * BURST).clamp(SHORTEST_BURST, LONGEST_BURST);
            let at = match first_change {
                Some(at) => Some(at),
                None => match self.until_a_plan_is_due(&mut changed, next).await {
                    Ok(at) => at,
                    Err(Over) => return,
                },
            };
            since = at.unwrap_or_else(Instant::now);
            if let Some(at) = at {
                tokio::time::sleep_until(at + burst).await;
            }
        }
    }

    /// Waits for a change, which it tells the time of, or for the time of the next plan.
    async fn until_a_plan_is_due(
        &mut self,
        changed: &mut watch::Receiver<u64>,
        next: Next,
    ) -> Result<Option<Instant>, Over> {
        let mut wake = next.wake;
        loop {
            tokio::select! {
                told = changed.changed() => return told.map(|()| Some(Instant::now())).map_err(|_| Over),
                () = tokio::time::sleep_until(wake) => return Ok(None),
                () = self.in_flight.one_ended() => {
                    // What succeeded shows as a change, for the most part: a watch may have been faster than the answer.
                    self.take_ended();
                    wake = wake.min(Instant::now() + self.retry(next.left));
                }
            }
        }
    }

    /// Takes note of how writes went.
    fn take_ended(&mut self) {
        let now = bascule_api::Time::new(self.parts.clock.now());
        for one in self.in_flight.take_ended() {
            let ending = one.written.ending();
            self.ended.add(one.written.carried);
            for (begun, took) in one.written.answers {
                self.writes.answered(begun.saturating_duration_since(self.led_since.into_std()), took);
            }
            for attempt in one.written.attempts {
                self.refused.note(attempt.write, attempt.failed.as_deref(), now);
            }
            if let Some(node) = one.node {
                self.writes.end(&node, ending, self.led_since.elapsed());
            }
        }
    }

    /// After what time a new plan is due because of how the last one's writes went, `left` of its steps having room now.
    fn retry(&self, left: usize) -> Duration {
        if left > 0 {
            Duration::ZERO
        } else if self.ended == Carried::default() {
            LONGEST_SLEEP
        } else {
            ENDED_PAUSE
        }
    }

    /// Makes one plan and begins to carry it out; says when to look again though nothing changes.
    async fn plan(&mut self, since: Instant) -> Next {
        let parts = self.parts;
        self.take_ended();
        self.ended = Carried::default();
        (self.writes.now, self.writes.changed) =
            (self.led_since.elapsed(), since.saturating_duration_since(self.led_since));
        self.break_glass.tell(&parts.world, &parts.events, bascule_api::Time::new(parts.clock.now()));
        let policies = parts.world.policies.all();
        self.channels.set(policies.iter().filter(|policy| policy.valid.is_ok()).map(|policy| &policy.spec.source));
        let progress = self.drains.progress();
        let mut snapshot = self.assembler.assemble(
            &parts.world,
            Outside {
                now: bascule_api::Time::new(parts.clock.now()),
                seed: self.seed,
                offer: &|source| self.channels.offer(source),
                gates: self.gates.answers(),
                drains: &progress,
                ceiling: parts.settings.max_unavailable.clone(),
                operator_node: parts.settings.node_name.clone(),
                own_pod: parts.draining.own_pod.clone(),
                unread_at: self.unread_at,
                refused: self.refused.clone(),
                writes: self.writes.clone(),
            },
        );
        // Nobody is asked about names that a policy should not hold.
        self.rights.set(policies.iter().filter(|policy| policy.valid.is_ok()).map(|policy| &*policy.spec));
        for facts in &mut snapshot.policies {
            let policy = policies.iter().find(|policy| policy.name == facts.name && policy.valid.is_ok());
            let Some(policy) = policy else { continue };
            if let Some(advice) = self.rights.advice(&policy.spec) {
                *facts = Arc::new(PolicyFacts { advice: Some(advice), ..PolicyFacts::clone(facts) });
            }
            // A node that is under way goes on: what it lacks then shows where it is needed.
            if let Some(error) = self.rights.missing(&policy.spec)
                // Nor does a right that is missing keep the hooks after a rollout from running.
                && facts.status.maintenance.is_none()
                && !parts
                    .world
                    .updates
                    .all()
                    .iter()
                    .any(|one| one.facts.spec.disruption.is_some() && one.facts.spec.policy == facts.name)
            {
                *facts = Arc::new(PolicyFacts { spec: Err(error), ..PolicyFacts::clone(facts) });
            }
        }
        let begun = Instant::now();
        let (plan, report) = self.planner.plan(&snapshot);
        parts.metrics.planned(begun.elapsed());
        self.refused.asked(&plan, snapshot.now);
        self.writes.planned(&plan);
        let verified = policies
            .iter()
            .filter_map(|policy| Some((policy.name.clone(), self.channels.verified_at(&policy.spec.source)?)));
        parts.metrics.describe(&snapshot, &report, &verified.collect());

        self.boots.tell(&parts.world, &snapshot, &report, &parts.events, &parts.metrics);
        // Before Jobs may be cleared away.
        let hooks_left = self.left_over.run(&parts.writer, &policies, snapshot.now);
        let book = (&mut self.writes, self.led_since.into_std());
        let mut left = parts.writer.carry_out(&snapshot, (&plan, &report), book, &mut self.in_flight).await;
        self.letting_go.run(&parts.writer, &self.left_over, self.rights.hook_namespaces());
        let schedule = &plan.schedule;
        let waiting = self.drains.set(parts.drain_orders(&plan), |node| schedule.may_begin_drain(node));
        left += waiting.iter().filter(|node| schedule.in_flight.contains(node)).count();
        self.gates.set(questions(&plan, &snapshot));
        // What backs off is tried again by a plan.
        let again = self.refused.next_try(snapshot.now);
        let mut wake = plan.wake_at.into_iter().chain(again).min().map(|at| parts.until(at));
        let reading_ends = self.led_since + FIRST_READING;
        if unread(&snapshot) && Instant::now() < reading_ends {
            wake = Some(wake.map_or(reading_ends, |wake| wake.min(reading_ends)));
            // People are not told of it, and the next plan is waited for all the same.
            parts.metrics.pulse().carried_out();
        } else {
            if !self.expected.is_closed() {
                let expected = silences::expected(&snapshot, &report);
                self.expected.send_if_modified(|before| {
                    let news = *before != expected;
                    *before = expected;
                    news
                });
            }
            let (snapshot, report) = (Arc::new(snapshot), Arc::new(report));
            parts.live.planned(Planned {
                snapshot: Arc::clone(&snapshot),
                report: Arc::clone(&report),
                world: parts.world.clone(),
                identity: Arc::clone(&parts.identity),
                gates: self.gates.heard(),
            });
            self.explained.send_replace(Explained {
                snapshot,
                report,
                at_once: plan.schedule.statuses,
                held_until: plan.schedule.explanations_held_until(),
                in_flight: self.in_flight.nodes(),
            });
        }

        // Remembering may have failed; the writes under way tell later.
        self.take_ended();
        let mut latest = Instant::now() + self.retry(if self.in_flight.is_idle() { left } else { 0 });
        if hooks_left {
            latest = latest.min(Instant::now() + LEFT_OVER);
        }
        Next { wake: wake.map_or(latest, |wake| wake.min(latest)), left }
    }
}

impl Parts {
    fn until(&self, at: bascule_api::Time) -> Instant {
        let pause = (at.get() - self.clock.now()).to_std().unwrap_or_default();
        Instant::now() + pause.min(LONGEST_SLEEP) + Duration::from_millis(5)
    }

    fn drain_orders(&self, plan: &Plan) -> Vec<drain::Order> {
        let orders = plan.drains.iter().map(|order| {
            let policy = self.world.policies.get(&crate::gather::Key::cluster(&order.policy));
            drain::Order {
                node: order.node.clone(),
                settings: policy.map(|policy| policy.spec.drain.clone()).unwrap_or_default(),
                begun: order.begun.get(),
                mode: match order.mode {
                    DrainMode::Evict | DrainMode::Keep => drain::Mode::Evict,
                    DrainMode::DeleteRest => drain::Mode::Delete,
                },
                keeps: order.mode == DrainMode::Keep,
            }
        });
        orders.collect()
    }
}

/// What comes of some work, and when something changed first while it was done.
async fn noticing<T>(changed: &mut watch::Receiver<u64>, work: impl Future<Output = T>) -> (T, Option<Instant>) {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return (done, None),
        _ = changed.changed() => {}
    }
    let at = Instant::now();
    (work.await, Some(at))
}

/// Whether a repository that a policy names was not even tried yet.
fn unread(snapshot: &Snapshot) -> bool {
    snapshot.policies.iter().any(|policy| policy.spec.is_ok() && policy.offer.state == OfferState::Unread)
}

/// What the plan wants to know, with the gates it speaks of.
fn questions(plan: &Plan, snapshot: &Snapshot) -> BTreeMap<crate::health::GateKey, crate::health::Asked> {
    let ask = |question: &bascule_planner::plan::GateQuestion| {
        let policy = snapshot.policies.iter().find(|policy| policy.name == question.policy)?;
        let valid = policy.spec.as_ref().ok()?;
        let index = valid.gates.iter().position(|gate| gate.name == question.gate)?;
        let gate = valid.spec.health.gates.get(index)?.clone();
        Some((question.clone(), crate::health::Asked { health: valid.spec.health.clone(), gate }))
    };
    plan.questions.iter().filter_map(ask).collect()
}
