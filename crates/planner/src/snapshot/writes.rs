//! The writes of earlier plans: which are in flight, since when what is still to be written has waited, and what the API server bears.
//! Whoever carries plans out keeps this book, the operator and the simulator alike.

use super::{Speed, Write};
use crate::{
    Action, Plan, Step,
    plan::{Priority, Queue},
};
use std::{collections::BTreeMap, time::Duration};

/// For how long a grant that nobody answered for may still be written after it was given up: the API server gives a request up after a
/// minute (kube-apiserver, `--request-timeout`), and the client may have sent the last one, a repetition, just before.
const LOST_FOR: Duration = Duration::from_secs(60);

/// A write that has been in flight for so long hangs: most are answered within a second, and the others do not wait for it with all
/// places taken. Half of what an API server gives an admission webhook by default (Kubernetes, "Dynamic Admission Control", "Timeouts").
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// What is being written to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInFlight {
    /// Since when.
    pub since: Duration,
    /// The steps, in their order.
    pub steps: Vec<Write>,
    /// Whether the node is granted by it.
    pub grants: bool,
    priority: Priority,
    queues: Vec<Queue>,
}

/// What is known of a grant that no fact shows yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingGrant {
    /// It is being written.
    InFlight,
    /// What became of it is not known: it may be written, or may be yet.
    Lost,
}

/// How the writes to a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All are done.
    Done,
    /// One of them is not done, and nothing will come of it.
    NotDone,
    /// What became of one of them is not known, because nobody answered, or because the object was changed meanwhile, perhaps by this
    /// very write: clients repeat a request after a gateway's timeout.
    Unknown,
}

/// A step that an earlier plan asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    /// Since when.
    since: Duration,
    /// When it was begun first, and last.
    begun: Option<Duration>,
    tried: Option<Duration>,
}

/// A step that was begun, for whoever measures how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The action's name.
    pub action: &'static str,
    /// How long it had queued behind others of its kind; only where it has a queue, and once.
    pub queued: Option<Duration>,
    /// Since when it has been due: since the change that it follows from, or since it had its turn first.
    pub due_since: Duration,
}

/// The writes of earlier plans. Its times are of a clock that only goes on: how long the leader has led.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    /// When the plan is made.
    pub now: Duration,
    /// When the change came that leads to this plan.
    pub changed: Duration,
    in_flight: BTreeMap<String, NodeInFlight>,
    /// Nodes with a grant of which nobody knows what became of it, and when it was given up.
    lost: BTreeMap<String, Duration>,
    asked: BTreeMap<Write, Asked>,
    speed: Speed,
    drains_held_since: Option<Duration>,
    explanations_held_since: Option<Duration>,
}

impl Writes {
    /// The grant of a node that no fact may show yet.
    #[must_use]
    pub fn pending_grant(&self, node: &str) -> Option<PendingGrant> {
        if self.in_flight.get(node).is_some_and(|known| known.grants) {
            return Some(PendingGrant::InFlight);
        }
        self.lost.get(node).filter(|since| self.is_lost(**since)).map(|_| PendingGrant::Lost)
    }

    /// Whether there may be such a grant at all.
    pub(crate) fn has_pending_grants(&self) -> bool {
        !self.lost.is_empty() || self.in_flight.values().any(|known| known.grants)
    }

    fn is_lost(&self, since: Duration) -> bool {
        self.now < since.saturating_add(LOST_FOR)
    }

    /// How long it takes until the next place is free that is held for a grant of which nobody knows.
    pub(crate) fn next_place_free(&self) -> Option<Duration> {
        let ends = self.lost.values().filter(|since| self.is_lost(**since)).map(|since| since.saturating_add(LOST_FOR));
        ends.min().map(|end| end.saturating_sub(self.now))
    }

    /// What is being written, by node.
    #[must_use]
    pub const fn in_flight(&self) -> &BTreeMap<String, NodeInFlight> {
        &self.in_flight
    }

    /// Whether a node is being taken out of service.
    pub(crate) fn departs(&self) -> bool {
        self.in_flight.values().any(|known| known.priority == Priority::Departure)
    }

    /// How many steps of a queue are in flight.
    pub(crate) fn of_queue(&self, queue: Queue) -> usize {
        self.in_flight.values().flat_map(|known| &known.queues).filter(|known| **known == queue).count()
    }

    /// The nodes whose writes hang.
    pub(crate) fn hanging(&self) -> impl Iterator<Item = &str> {
        self.hang().map(|(node, _)| node.as_str())
    }

    /// How many steps of a queue hang.
    pub(crate) fn hanging_of_queue(&self, queue: Queue) -> usize {
        self.hang().flat_map(|(_, known)| &known.queues).filter(|known| **known == queue).count()
    }

    fn hang(&self) -> impl Iterator<Item = (&String, &NodeInFlight)> {
        self.in_flight.iter().filter(|(_, known)| known.since.saturating_add(HANGS_AFTER) <= self.now)
    }

    /// How long it takes until one more of them does, if nobody answers.
    pub(crate) fn next_hangs(&self) -> Option<Duration> {
        let hang_at = self.in_flight.values().map(|known| known.since.saturating_add(HANGS_AFTER));
        hang_at.filter(|at| *at > self.now).min().map(|at| at.saturating_sub(self.now))
    }

    /// What the API server bears.
    #[must_use]
    pub const fn speed(&self) -> Speed {
        self.speed
    }

    pub(crate) const fn drains_held_since(&self) -> Option<Duration> {
        self.drains_held_since
    }

    pub(crate) const fn explanations_held_since(&self) -> Option<Duration> {
        self.explanations_held_since
    }

    /// Since when a step has been asked for, and when it was tried last.
    pub(crate) fn asked(&self, action: &Action) -> (Duration, Option<Duration>) {
        let known = if self.asked.is_empty() { None } else { self.asked.get(&Write::of(action)) };
        known.map_or((self.changed, None), |known| (known.since, known.tried))
    }

    /// Takes note of a plan: what it asks for again has been asked for since the first time.
    pub fn planned(&mut self, plan: &Plan) {
        let mut before = std::mem::take(&mut self.asked);
        for step in &plan.steps {
            // Nothing waits for records that are removed, and they have a pace of their own.
            if matches!(step.action, Action::ForgetFreeze { .. }) {
                continue;
            }
            let write = Write::of(&step.action);
            let first = Asked { since: self.changed, begun: None, tried: None };
            let known = before.remove(&write).unwrap_or(first);
            self.asked.insert(write, known);
        }
        for write in self.in_flight.values().flat_map(|known| &known.steps) {
            if let Some(known) = before.remove(write) {
                self.asked.insert(write.clone(), known);
            }
        }
        let now = self.now;
        self.lost.retain(|_, since| now < since.saturating_add(LOST_FOR));
        self.drains_held_since = plan.schedule.drains_held_since;
        self.explanations_held_since = plan.schedule.explanations_held_since;
    }

    /// Takes note that steps are begun; of one node, unless it is `None`.
    pub fn begin(&mut self, node: Option<&str>, steps: &[&Step], now: Duration) -> Vec<Begun> {
        let begun = steps.iter().map(|step| self.begin_one(&step.action, now)).collect();
        let priority = steps.iter().map(|step| step.action.priority()).min();
        if let (Some(node), Some(priority)) = (node, priority) {
            let known = NodeInFlight {
                since: now,
                steps: steps.iter().map(|step| Write::of(&step.action)).collect(),
                grants: steps.iter().any(|step| step.action.queue() == Some(Queue::Grants)),
                priority,
                queues: steps.iter().filter_map(|step| step.action.queue()).collect(),
            };
            self.in_flight.insert(node.to_owned(), known);
        }
        begun
    }

    fn begin_one(&mut self, action: &Action, now: Duration) -> Begun {
        let first = Asked { since: self.changed, begun: None, tried: None };
        let known = self.asked.entry(Write::of(action)).or_insert(first);
        let queues = action.queue().is_some();
        let queued = (queues && known.begun.is_none()).then(|| now.saturating_sub(known.since));
        let begun = *known.begun.get_or_insert(now);
        known.tried = Some(now);
        Begun { action: action.name(), queued, due_since: if queues { begun } else { known.since } }
    }

    /// Takes note that the API server answered a write, or did not for so long.
    pub fn answered(&mut self, begun: Duration, took: Duration) {
        self.speed.answered(begun, took, self.in_flight.len());
    }

    /// Takes note that the writes to a node ended.
    pub fn end(&mut self, node: &str, ending: Ending, now: Duration) {
        if self.in_flight.remove(node).is_none_or(|known| !known.grants) {
            return;
        }
        match ending {
            Ending::Done => {
                self.lost.remove(node);
            }
            // That a grant was not taken when it was given again says nothing of the first time.
            Ending::NotDone => {}
            Ending::Unknown => {
                self.lost.insert(node.to_owned(), now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{
        Taint,
        samples::{at, grant, rest, step},
    };

    fn taint(node: &str, taint: Taint) -> Step {
        step(Action::Taint { node: node.to_owned(), taint })
    }

    fn plan(steps: &[Step]) -> Plan {
        Plan { steps: steps.to_vec(), ..Plan::default() }
    }

    #[test]
    fn a_step_that_is_planned_again_has_been_due_since_the_first_time() {
        let mut writes = Writes { changed: at(1), ..Writes::default() };
        writes.planned(&plan(&[rest("a")]));
        writes.changed = at(60);
        writes.planned(&plan(&[rest("a"), rest("b")]));
        let since = |writes: &Writes, node: &str| writes.asked(&rest(node).action).0;
        assert_eq!((since(&writes, "a"), since(&writes, "b")), (at(1), at(60)));
        writes.planned(&plan(&[rest("b")]));
        writes.changed = at(61);
        writes.planned(&plan(&[rest("a"), rest("b")]));
        assert_eq!(since(&writes, "a"), at(61), "it was done in between");
    }

    #[test]
    fn the_time_in_the_queue_is_told_once_and_what_comes_after_is_the_reaction() {
        let mut writes = Writes { changed: at(2), ..Writes::default() };
        let steps = [grant("a"), rest("b"), taint("c", Taint::Outdated), taint("c", Taint::Hold)];
        writes.planned(&plan(&steps));
        let refs: Vec<&Step> = steps.iter().collect();
        let begun = |writes: &mut Writes, second| -> Vec<_> {
            let begun = writes.begin(None, &refs, at(second));
            begun.into_iter().map(|one| (one.queued.map(|for_| for_.as_secs()), one.due_since.as_secs())).collect()
        };
        assert_eq!(begun(&mut writes, 5), [(Some(3), 5), (None, 2), (Some(3), 5), (None, 2)]);
        assert_eq!(begun(&mut writes, 9), [(None, 5), (None, 2), (None, 5), (None, 2)], "begun again");
        assert_eq!(writes.asked(&steps[0].action), (at(2), Some(at(9))));
    }

    #[test]
    fn a_grant_is_pending_until_its_writes_end_and_longer_where_nobody_answered() {
        let mut writes = Writes::default();
        let (one, other) = (grant("a"), rest("b"));
        writes.begin(Some("a"), &[&one], at(10));
        writes.begin(Some("b"), &[&other], at(10));
        assert_eq!(writes.pending_grant("a"), Some(PendingGrant::InFlight));
        assert_eq!((writes.pending_grant("b"), writes.in_flight().len()), (None, 2));
        assert_eq!((writes.of_queue(Queue::Grants), writes.of_queue(Queue::Stages), writes.departs()), (1, 0, true));
        writes.now = at(40);
        writes.end("a", Ending::Unknown, at(40));
        writes.end("b", Ending::Unknown, at(40));
        assert_eq!((writes.pending_grant("a"), writes.pending_grant("b")), (Some(PendingGrant::Lost), None));
        assert!(writes.has_pending_grants() && writes.in_flight().is_empty());
        writes.now = at(99);
        writes.planned(&Plan::default());
        assert_eq!(
            writes.pending_grant("a"),
            Some(PendingGrant::Lost),
            "it may have been asked again until it was given up"
        );
        assert_eq!(writes.next_place_free(), Some(at(1)));
        writes.now = at(100);
        assert_eq!(writes.pending_grant("a"), None, "the API server has given it up");
        assert_eq!(writes.next_place_free(), None);
        writes.planned(&Plan::default());
        assert!(!writes.has_pending_grants());
    }

    #[test]
    fn a_grant_that_is_taken_when_it_is_tried_again_is_lost_no_more_and_one_that_is_refused_then_is() {
        let mut writes = Writes::default();
        let one = grant("a");
        let lost = Some(PendingGrant::Lost);
        for (ending, pending) in [
            (Ending::NotDone, None),
            (Ending::Unknown, lost),
            // A person cordoned the node meanwhile, or a webhook denies: the first one may be written all the same.
            (Ending::NotDone, lost),
            (Ending::Done, None),
        ] {
            writes.begin(Some("a"), &[&one], at(1));
            writes.end("a", ending, at(2));
            assert_eq!(writes.pending_grant("a"), pending, "{ending:?}");
        }
    }
}
