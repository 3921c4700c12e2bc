//! When a node's explanation is written: soon enough for whoever looks, rarely enough that a node's whole update costs a
//! dozen writes, those that move it included.
//!
//! A state or reason is written once it has lasted a moment, so that what passes by is not written at all; while all goes
//! well that moment doubles with each state of an update. What only moves on (a drain's progress, whose turn it is among
//! nodes that wait for each other) is written in pauses that grow to an hour. An end, good or bad, is
//! written at once, and after a change of the policy the pauses begin anew: whoever made it looks at what comes of it.
//!
//! Whatever it costs, no object says another state or reason than the plan for a minute on end: each node has a moment of
//! its own between [`RIGHT_FROM`] and [`RIGHT_UNTIL`] after which it is written, so that a thousand nodes whose reason changes
//! at once are spread over that time.

use bascule_api::{Rollout, RolloutState, Time, WaitReason};
use std::time::Duration;

/// How long a state or reason lasts before it is written.
const LASTS: Duration = Duration::from_secs(3);
/// The same for staging, whose progress the agent reports itself, for the queue before it, and for a drain that waits for a
/// budget, as it does for a moment with nearly every pod.
const HOLDS: Duration = Duration::from_secs(10);
/// How often that time doubles at most while an update goes well.
const DOUBLED: u32 = 3;
/// A node whose reason never lasts is written after so many times that pause all the same.
const RESTLESS: u32 = 4;
/// The first nodes are written when their objects have said something else than the plan for so long on end. Shorter, and
/// nodes that only take turns with others would be written each time.
const RIGHT_FROM: Duration = Duration::from_secs(20);
/// The last nodes. With what an order or [`LEAST`] may add this stays below a minute.
const RIGHT_UNTIL: Duration = Duration::from_secs(50);
/// Between two writes about one object, whatever changed.
const LEAST: Duration = Duration::from_secs(1);
/// The first pause between two writes of mere details; each further one is [`GROWTH`] times as long.
const DETAILS: Duration = Duration::from_secs(10);
/// The same for how far a drain is and whose turn it is, which pods and policy say as well.
const PROGRESS: Duration = Duration::from_secs(60);
const GROWTH: u32 = 4;
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What a write would tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Another state, or a reason that people act upon.
    News,
    /// The same, a little further.
    Details,
}

/// One node's pace. Its times are of any clock that only goes on, but where they are a [`Time`].
#[derive(Debug)]
pub struct Pace {
    /// What was planned last, and since when, by both clocks.
    planned: (RolloutState, WaitReason),
    since: Duration,
    began: Time,
    /// Since when the object says something else than what is planned.
    stale_since: Option<Duration>,
    /// Since when it says another state or reason, on end.
    wrong_since: Option<Duration>,
    /// For how long it may.
    right_after: Duration,
    written: Option<Duration>,
    /// Since when there was always an order under way.
    busy_since: Option<Duration>,
    /// How many writes in a row told details only.
    repeats: u32,
    /// How many states of an update were written since it began.
    told: u32,
    /// The generation of the node's policy.
    generation: Option<i64>,
}

impl Pace {
    /// A node whose explanation was not looked at before. Its `lot` is any number that stays the same.
    #[must_use]
    pub fn new(rollout: &Rollout, lot: u64, now: Duration, clock: Time) -> Self {
        let spread = RIGHT_UNTIL.saturating_sub(RIGHT_FROM).as_secs().max(1);
        Self {
            planned: (rollout.state, rollout.reason),
            since: now,
            began: clock,
            stale_since: None,
            wrong_since: None,
            right_after: RIGHT_FROM + Duration::from_secs(lot % spread),
            written: None,
            busy_since: None,
            repeats: 0,
            told: 0,
            generation: None,
        }
    }

    /// Takes note of the policy's generation.
    pub const fn under(&mut self, generation: Option<i64>) {
        let same = match (self.generation, generation) {
            (Some(before), Some(now)) => before == now,
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.generation = generation;
            self.repeats = 0;
            self.told = 0;
            self.written = None;
        }
    }

    /// Takes note of what is planned, and when it is to be written, where `before`, what the object says, differs. Sets
    /// since when it holds. An order that is being written to the `busy` object, and may change what is to be said, goes first.
    pub fn look(
        &mut self,
        before: Option<&Rollout>,
        after: &mut Rollout,
        busy: bool,
        now: Duration,
        clock: Time,
    ) -> Option<Duration> {
        if self.planned != (after.state, after.reason) {
            self.planned = (after.state, after.reason);
            (self.since, self.began) = (now, clock);
        }
        let wrong = before.is_none_or(|before| (before.state, before.reason) != self.planned);
        if wrong {
            after.since = Some(self.began);
        }
        self.wrong_since = wrong.then(|| self.wrong_since.unwrap_or(now));
        if before == Some(&*after) {
            self.stale_since = None;
            return None;
        }
        let stale = *self.stale_since.get_or_insert(now);
        let earliest = self.written.map_or(now, |written| written + LEAST);
        let due = match change(before, after) {
            Change::News => {
                let lasts = self.lasts(after);
                (self.since + lasts).min(stale + lasts * RESTLESS)
            }
            // An operator from before did not write them: no hurry, and not all nodes at once after an upgrade.
            Change::Details
                if before.is_some_and(|before| before.reason == after.reason && before.columns != after.columns) =>
            {
                stale + self.right_after
            }
            Change::Details => self.written.map_or(stale, |written| written + pause(after, self.repeats)),
        };
        let due = self.wrong_since.map_or(due, |wrong_since| due.min(wrong_since + self.right_after));
        self.busy_since = busy.then(|| self.busy_since.unwrap_or(now));
        let after_the_order = self.busy_since.map_or(now, |busy_since| busy_since + LASTS);
        Some(due.max(earliest).max(after_the_order))
    }

    /// Takes note of a write.
    pub fn wrote(&mut self, before: Option<&Rollout>, after: &Rollout, now: Duration) {
        // After a long rest details are as good as news.
        let rested =
            self.written.is_none_or(|written| now.saturating_sub(written) > pause(after, self.repeats) * GROWTH);
        self.repeats = match change(before, after) {
            Change::Details if !rested => self.repeats.saturating_add(1),
            Change::Details | Change::News => 0,
        };
        self.told = match after.state {
            RolloutState::Current | RolloutState::Failed => 0,
            _ if change(before, after) == Change::News => self.told.saturating_add(1),
            _ => self.told,
        };
        self.written = Some(now);
        self.stale_since = None;
        self.wrong_since = None;
    }
}

impl Pace {
    /// How long a state or reason lasts before it is written.
    fn lasts(&self, rollout: &Rollout) -> Duration {
        let doubled = if goes_well(rollout.reason) { 1 << self.told.min(DOUBLED) } else { 1 };
        match (rollout.state, rollout.reason) {
            (RolloutState::Staging, _)
            | (_, WaitReason::StagingQueue)
            | (RolloutState::Draining, WaitReason::DisruptionBudget) => HOLDS,
            // A hook is somebody else's Job, which is named for as long as it runs.
            (RolloutState::Current | RolloutState::Failed, _) | (_, WaitReason::Hook) => Duration::ZERO,
            _ => LASTS * doubled,
        }
    }
}

fn pause(rollout: &Rollout, repeats: u32) -> Duration {
    let progress = goes_well(rollout.reason) || takes_turns(rollout.reason);
    let first = if progress { PROGRESS } else { DETAILS };
    first.saturating_mul(GROWTH.saturating_pow(repeats)).min(LONGEST)
}

fn change(before: Option<&Rollout>, after: &Rollout) -> Change {
    match before {
        Some(before) if before.state == after.state => {
            let same = before.reason == after.reason;
            let turns = takes_turns(before.reason) && takes_turns(after.reason);
            if same || turns || goes_well(after.reason) { Change::Details } else { Change::News }
        }
        _ => Change::News,
    }
}

/// Reasons between which a node goes to and fro only because other nodes move.
const fn takes_turns(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::Queued
            | WaitReason::Budget
            | WaitReason::DomainBusy
            | WaitReason::ClusterMaxUnavailable
            | WaitReason::ControlPlane
            | WaitReason::OperatorNode
            | WaitReason::DisruptionBudget
    )
}

/// What a node that moves goes through when nothing is wrong.
const fn goes_well(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::Draining
            | WaitReason::LoadBalancers
            | WaitReason::Rebooting
            | WaitReason::Trial
            | WaitReason::NodeSoak
            | WaitReason::Committing
            | WaitReason::Reverting
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::RolloutColumns;

    fn rollout(state: RolloutState, reason: WaitReason, message: &str) -> Rollout {
        Rollout {
            state,
            reason,
            message: message.to_owned(),
            object: None,
            until: None,
            since: Some(Time::default()),
            passed_gates: Vec::new(),
            drain: None,
            columns: RolloutColumns::of(state, reason),
        }
    }

    /// The lot of a node that is written last.
    const LATEST: u64 = 29;

    fn waiting(reason: WaitReason) -> Rollout {
        rollout(RolloutState::Waiting, reason, "")
    }

    /// A node under test: its pace, what its object says, and how often that was written.
    struct Node {
        pace: Pace,
        says: Option<Rollout>,
        writes: u32,
        busy: bool,
        start: Duration,
    }

    impl Node {
        fn new(says: Rollout) -> Self {
            let start = Duration::from_secs(1_000);
            Self {
                pace: Pace::new(&says, LATEST, start, Time::default()),
                says: Some(says),
                writes: 0,
                busy: false,
                start,
            }
        }

        /// This is planned `at` so many seconds after the start; it is written if that is due.
        fn planned(&mut self, mut rollout: Rollout, at: u64) -> bool {
            let now = self.start + Duration::from_secs(at);
            let due = self.pace.look(self.says.as_ref(), &mut rollout, self.busy, now, Time::default());
            let writes = due.is_some_and(|due| due <= now);
            if writes {
                self.pace.wrote(self.says.as_ref(), &rollout, now);
                self.says = Some(rollout);
                self.writes += 1;
            }
            writes
        }
    }

    #[test]
    fn what_lasts_is_written_and_what_passes_by_is_not() {
        let mut node = Node::new(rollout(RolloutState::Current, WaitReason::Current, ""));
        assert!(!node.planned(rollout(RolloutState::Staging, WaitReason::Transferring, ""), 10));
        assert!(!node.planned(waiting(WaitReason::Wave), 11));
        assert!(node.planned(waiting(WaitReason::Wave), 14));
        assert!(!node.planned(waiting(WaitReason::Freeze), 20));
        assert!(node.planned(waiting(WaitReason::Freeze), 23));
        assert!(!node.planned(waiting(WaitReason::Freeze), 30), "it stands there");
        assert!(node.planned(rollout(RolloutState::Failed, WaitReason::Reverted, ""), 40), "an end is told at once");
    }

    #[test]
    fn an_update_that_goes_well_is_told_with_growing_patience_and_one_that_does_not_at_once() {
        let mut node = Node::new(rollout(RolloutState::Current, WaitReason::Current, ""));
        let way = [
            (RolloutState::Waiting, WaitReason::Wave),
            (RolloutState::Draining, WaitReason::Draining),
            (RolloutState::Rebooting, WaitReason::Rebooting),
            (RolloutState::Trial, WaitReason::Trial),
            (RolloutState::Failed, WaitReason::NodeLost),
            (RolloutState::Draining, WaitReason::Draining),
        ];
        let mut shown = |(state, reason), from: u64| {
            (from..from + 100).find(|second| node.planned(rollout(state, reason, ""), *second)).map(|at| at - from)
        };
        let after: Vec<_> = way.into_iter().zip((0..).step_by(100)).map(|(said, from)| shown(said, from)).collect();
        assert_eq!(after, [Some(3), Some(6), Some(12), Some(24), Some(0), Some(3)]);
    }

    #[test]
    fn an_order_that_is_being_written_goes_before_its_explanation_but_not_for_ever() {
        let mut node = Node::new(rollout(RolloutState::Draining, WaitReason::Draining, ""));
        let current = || rollout(RolloutState::Current, WaitReason::Current, "");
        node.busy = true;
        assert_eq!(
            (10..20).find(|second| node.planned(current(), *second)),
            Some(13),
            "the order fails again and again"
        );
        let mut node = Node::new(rollout(RolloutState::Draining, WaitReason::Draining, ""));
        node.pace.written = Some(node.start);
        assert!(!node.planned(rollout(RolloutState::Draining, WaitReason::Draining, "a detail, not told yet"), 5));
        node.busy = true;
        assert!(!node.planned(current(), 10));
        node.busy = false;
        assert!(node.planned(current(), 11), "it is written");
    }

    #[test]
    fn a_node_that_never_rests_is_explained_all_the_same() {
        let mut node = Node::new(waiting(WaitReason::Wave));
        let restless = [WaitReason::Freeze, WaitReason::Paused];
        let written = (0..60).find(|second| node.planned(waiting(restless[*second as usize % 2]), *second));
        assert_eq!(written, Some(12));
    }

    #[test]
    fn whose_turn_it_is_costs_a_write_ever_more_rarely() {
        let mut node = Node::new(waiting(WaitReason::Wave));
        let turns = [WaitReason::Budget, WaitReason::DomainBusy, WaitReason::DisruptionBudget];
        for second in 0..3_600 {
            node.planned(waiting(turns[second as usize / 5 % 3]), second);
        }
        assert!((3..=6).contains(&node.writes), "{} writes in an hour", node.writes);
    }

    #[test]
    fn no_object_is_wrong_for_a_minute_whatever_was_written_before() {
        let states = [RolloutState::Waiting, RolloutState::Draining, RolloutState::Trial, RolloutState::Staging];
        let all = || WaitReason::ALL.iter().flat_map(|reason| states.map(|state| (state, *reason)));
        for (before, after) in all().flat_map(|before| all().map(move |after| (before, after))) {
            if before == after {
                continue;
            }
            let mut node = Node::new(rollout(before.0, before.1, ""));
            // A long story of details: the pause before the next one is an hour.
            (node.pace.repeats, node.pace.told) = (9, 9);
            node.pace.written = Some(node.start);
            node.planned(rollout(before.0, before.1, ""), 0);
            let told = (1..70).find(|second| node.planned(rollout(after.0, after.1, ""), *second));
            assert!(told.is_some_and(|second| second < 60), "{before:?}, then {after:?}: {told:?}");
        }
    }

    #[test]
    fn nodes_that_change_all_at_once_are_spread_over_half_a_minute() {
        let mut seconds = std::collections::BTreeMap::<u64, usize>::new();
        for lot in 0..1_000 {
            let mut node = Node::new(waiting(WaitReason::Budget));
            node.pace = Pace::new(&waiting(WaitReason::Budget), lot, node.start, Time::default());
            (node.pace.repeats, node.pace.written) = (9, Some(node.start));
            let told = (1..70).find(|second| node.planned(waiting(WaitReason::OperatorNode), *second));
            *seconds.entry(told.unwrap()).or_default() += 1;
        }
        assert!(seconds.values().all(|count| *count <= 34), "{seconds:?}");
    }

    #[test]
    fn progress_is_told_in_growing_pauses_and_after_a_rest_at_once() {
        let mut node = Node::new(rollout(RolloutState::Draining, WaitReason::Draining, "0"));
        let progress = |gone: u64| rollout(RolloutState::Draining, WaitReason::Draining, &gone.to_string());
        let written: Vec<_> = (1..=900).filter(|second| node.planned(progress(*second), *second)).collect();
        assert_eq!(written, [1, 61, 301]);
        assert!(node.planned(progress(1_000_000), 90_000));
        assert!(node.planned(progress(1_000_001), 90_060), "the pauses begin anew");
    }

    #[test]
    fn a_change_of_the_policy_shows_at_once_what_comes_of_it() {
        let mut node = Node::new(waiting(WaitReason::HealthGate));
        let found = |value: u64| rollout(RolloutState::Waiting, WaitReason::HealthGate, &value.to_string());
        for second in 1..=60 {
            node.planned(found(second), second);
        }
        assert!(!node.planned(found(61), 61));
        node.pace.under(Some(2));
        assert!(node.planned(found(62), 62));
        assert!(!node.planned(found(63), 63));
        assert!(node.planned(found(72), 72));
    }

    #[test]
    fn since_is_when_it_began_and_not_when_it_was_written() {
        let at = |seconds: i64| Time::new(chrono::DateTime::from_timestamp(seconds, 0).unwrap());
        let before = waiting(WaitReason::Wave);
        let start = Duration::from_secs(1_000);
        let mut pace = Pace::new(&before, 0, start, at(0));
        let mut after = waiting(WaitReason::Freeze);
        pace.look(Some(&before), &mut after, false, start, at(100));
        pace.look(Some(&before), &mut after, false, start + LASTS, at(103));
        assert_eq!(after.since, Some(at(100)));
    }
}
