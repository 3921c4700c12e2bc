//! Writes the planner's report into the objects that people look at. Only what changed, and not every step of a progress
//! bar: when each is written is the planner's word (`bascule_planner::statuses`).

mod maintenance;
mod transitions;

use crate::{
    apply::{ApplyError, Writer},
    clock::Clock,
    gather::Key,
};
use bascule_api::{RollbackStatus, RolloutState, Time, conditions};
use bascule_planner::{
    Report, Snapshot,
    statuses::{Backoff, Hold, Pace, brings_verdicts, policy_pause},
};
use futures::{FutureExt as _, StreamExt as _, stream};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How many explanations are written before the newest report is looked at again: of a thousand that are due many would be out of date
/// when their turn comes.
const BATCH: usize = 64;
/// After a write that met a newer object, should no new report come before.
const STALE: Duration = Duration::from_secs(1);
/// For how long it is known when a policy was written last.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many more nodes than there are have a pace before those of nodes that are gone are dropped.
const GONE: usize = 1_000;

/// What was planned, to be explained.
#[derive(Debug, Clone, Default)]
pub struct Explained {
    /// The facts.
    pub snapshot: Arc<Snapshot>,
    /// The explanation.
    pub report: Arc<Report>,
    /// How many statuses may be written at once.
    pub at_once: usize,
    /// Until when explanations let orders go first, counted from the beginning of the leadership.
    pub held_until: Option<Duration>,
    /// The nodes that are being written to since.
    pub in_flight: HashSet<String>,
}

/// Writes statuses.
#[derive(Debug)]
pub struct StatusWriter {
    writer: Writer,
    clock: Clock,
    node_conditions: bool,
    maintenance_refused: maintenance::Refusals,
    led_since: Instant,
    /// When each policy was written last, since then.
    policies: HashMap<String, Duration>,
    nodes: HashMap<Arc<str>, Pace>,
    hold: Hold,
    backoff: Backoff,
}

impl StatusWriter {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(writer: Writer, clock: Clock, node_conditions: bool, led_since: Instant) -> Self {
        Self {
            writer,
            clock,
            node_conditions,
            maintenance_refused: maintenance::Refusals::default(),
            led_since,
            policies: HashMap::new(),
            nodes: HashMap::new(),
            hold: Hold::default(),
            backoff: Backoff::default(),
        }
    }

    /// Writes whatever comes, until the sender is dropped.
    pub async fn run(mut self, mut explained: watch::Receiver<Explained>) {
        loop {
            let now = explained.borrow_and_update().clone();
            let next = self.write(&now).await.map(|at| self.led_since + at);
            tokio::select! {
                changed = explained.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Writes what is due; says when the rest is.
    async fn write(&mut self, explained: &Explained) -> Option<Duration> {
        let (snapshot, report) = (explained.snapshot.as_ref(), explained.report.as_ref());
        let (now, at_once) = (Time::new(self.clock.now()), explained.at_once.max(1));
        let mut next: Option<Duration> = None;
        let mut later = |at: Duration| next = Some(next.map_or(at, |before: Duration| before.min(at)));

        // All at once: one whose write hangs holds up nobody else's.
        let mut writes = Vec::new();
        for (policy, said) in snapshot.policies.iter().zip(&report.policies) {
            let key = Key::cluster(&policy.name);
            // Nothing is written over what can't be read.
            if self.writer.world.policies.unreadable(&key).is_some() {
                continue;
            }
            let Some(known) = self.writer.world.policies.get(&key) else { continue };
            if known.status != policy.status {
                continue; // its memory was written since; the next report speaks of it
            }
            if brings_verdicts(&known.status, &said.status) {
                continue; // the step that remembers it may have found that it is not so any more
            }
            let Some(pause) = policy_pause(&known.status, &said.status) else { continue };
            if !self.backs_off("UpdatePolicy", &policy.name, &mut later) && self.due(&policy.name, pause, &mut later) {
                let (writer, status) = (self.writer.clone(), said.status.clone());
                writes.push(
                    async move { ended("UpdatePolicy", &known.name, writer.write_policy(&known, &status).await) }
                        .boxed(),
                );
            }
        }
        for (freeze, said) in snapshot.freezes.iter().zip(&report.freezes) {
            let (key, status) = (Key::cluster(&freeze.name), &said.status);
            if self.writer.world.freezes.unreadable(&key).is_some() {
                continue;
            }
            let known = self.writer.world.freezes.get(&key);
            if let Some(known) = known.filter(|known| known.0.status == freeze.status && known.0.status != *status)
                && !self.backs_off("Freeze", &freeze.name, &mut later)
            {
                let (writer, name, status) = (self.writer.clone(), freeze.name.clone(), status.clone());
                writes.push(
                    async move { ended("Freeze", &name, writer.write_freeze(&name, &known.1, &status).await) }.boxed(),
                );
            }
        }
        for (rollback, status) in snapshot.rollbacks.iter().zip(&report.rollbacks) {
            let key = Key::cluster(&rollback.name);
            if self.writer.world.rollbacks.unreadable(&key).is_some() {
                continue;
            }
            let known = self.writer.world.rollbacks.get(&key);
            let is_accepted = |status: &RollbackStatus| conditions::is_true(&status.conditions, conditions::ACCEPTED);
            if is_accepted(status) && known.as_ref().is_some_and(|known| !is_accepted(&known.0.status)) {
                continue; // the plan accepts it, once the block that it asks for is remembered
            }
            if let Some(known) = known.filter(|known| known.0.status == rollback.status && known.0.status != *status)
                && !self.backs_off("Rollback", &rollback.name, &mut later)
            {
                let (writer, name, status) = (self.writer.clone(), rollback.name.clone(), status.clone());
                writes.push(
                    async move { ended("Rollback", &name, writer.write_rollback(&name, &known.1, &status).await) }
                        .boxed(),
                );
            }
        }
        let written: Vec<Ended> = stream::iter(writes).buffer_unordered(at_once).collect().await;
        for one in written {
            self.note(one, &mut later);
        }

        let mut due = Vec::new();
        let instant = self.led_since.elapsed();
        let held_until = self.hold.until(explained.held_until, instant);
        for (node, facts) in report.nodes.iter().zip(&snapshot.nodes) {
            let Some(known) = self.writer.world.updates.get(&Key::cluster(&node.node)) else { continue };
            let before = known.rollout.as_ref();
            let mut rollout = node.rollout(before, now);
            let lot = || bascule_planner::snapshot::seed_of(&node.node);
            let pace = self.nodes.entry(node.node.shared()).or_insert_with(|| Pace::new(&rollout, lot(), instant, now));
            let policy = node.policy.and_then(|index| snapshot.policies.get(index));
            pace.under(policy.map(|policy| policy.generation));
            let busy = explained.in_flight.contains(&*node.node);
            let at = pace.look(before, &mut rollout, busy, instant, now);
            let held = held_until.filter(|_| rollout.state != RolloutState::Failed);
            let backs_off = self.backoff.until("NodeUpdate", &node.node, instant);
            match at.map(|at| held.into_iter().chain(backs_off).fold(at, Duration::max)) {
                None => {}
                Some(at) if at > instant => later(at),
                Some(_) if due.len() >= BATCH => later(instant),
                Some(_) => {
                    pace.wrote(before, &rollout, instant);
                    self.tell_transition(facts, before, &rollout);
                    due.push((node.node.to_string(), rollout));
                }
            }
        }
        let writes = due.into_iter().map(|(node, rollout)| {
            let writer = self.writer.clone();
            async move { ended("NodeUpdate", &node, writer.write_rollout(&node, &rollout).await) }.boxed()
        });
        let writes: Vec<_> = writes.collect();
        let written: Vec<Ended> = stream::iter(writes).buffer_unordered(at_once).collect().await;
        for one in written {
            self.note(one, &mut later);
        }
        if self.node_conditions {
            self.write_maintenance(snapshot, report, now).await;
        }
        if self.nodes.len() > report.nodes.len().saturating_add(GONE) {
            let there: HashSet<&str> = report.nodes.iter().map(|node| &*node.node).collect();
            self.nodes.retain(|node, _| there.contains(&**node));
        }
        self.policies.retain(|_, at| *at + REMEMBERED > instant);
        self.backoff.forget(instant);
        next
    }

    /// Whether an object is left alone for now; `later` is told until when.
    fn backs_off(&self, kind: &str, name: &str, later: &mut impl FnMut(Duration)) -> bool {
        self.backoff.until(kind, name, self.led_since.elapsed()).map(later).is_some()
    }

    /// Takes note of how a write went. One that failed in a way that a new report does not mend is tried again `later`, and not with the
    /// next report.
    fn note(&mut self, ended: Ended, later: &mut impl FnMut(Duration)) {
        let Ended { kind, name, result } = ended;
        match result {
            Ok(()) => self.backoff.done(kind, &name),
            // What changed there may be nothing that a plan follows from.
            Err(error) if error.is_stale() => later(self.led_since.elapsed() + STALE),
            // It is written. The answer is the whole object, of which something can't be read; the watch brings it.
            Err(ApplyError::Api { source, .. }) if matches!(*source, kube::Error::SerdeError(_)) => {
                self.backoff.done(kind, &name);
            }
            Err(error) => {
                tracing::warn!(kind, name, error = crate::one_line(&error), "the status can't be written");
                let silence = matches!(error, ApplyError::TooSlow { .. });
                later(self.backoff.failed(kind, &name, silence, self.led_since.elapsed()));
            }
        }
    }

    /// Whether a policy is to be written now; if later, `later` is told when.
    fn due(&mut self, name: &str, pause: Duration, later: &mut impl FnMut(Duration)) -> bool {
        let now = self.led_since.elapsed();
        match self.policies.get(name) {
            Some(last) if *last + pause > now => {
                later(*last + pause);
                false
            }
            _ => {
                self.policies.insert(name.to_owned(), now);
                true
            }
        }
    }
}

/// How the write of a status went.
struct Ended {
    kind: &'static str,
    name: String,
    result: Result<(), ApplyError>,
}

fn ended<T>(kind: &'static str, name: &str, result: Result<T, ApplyError>) -> Ended {
    Ended { kind, name: name.to_owned(), result: result.map(|_| ()) }
}
