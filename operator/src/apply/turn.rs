//! In which order the nodes of a plan are served, and since when each of its steps has been due.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so
//! only some are begun before the next plan. A node that is out of service goes before one that is to go there, and that
//! one before those that only stage; among equals whoever waits longest goes first. Who was tried and is still there
//! goes behind the others, or a few nodes that always fail would hold up the rest.
//!
//! Housekeeping is what one fact asks of every node at once and no node waits for: enrolment, another policy's name,
//! taints of a rollout. It stands in line, of which a few are called at a time while there is little else to do; a
//! thousand of them would only lengthen every queue of the API server. One that is called and does not succeed makes room
//! after a while.

use bascule_planner::{Action, Plan, Step, plan::Taint};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// How many steps of the housekeeping are called at once, less the other steps of the plan.
const CALLED_AT_ONCE: usize = 32;
/// How many are called whatever else there is to do.
const CALLED_AT_LEAST: usize = 4;
/// After this time one that is still not done goes back into the line.
const CALLED_FOR: Duration = Duration::from_secs(10);

/// A node and the kind of its step.
type Key = (String, &'static str);

/// What is kept from one plan to the next.
#[derive(Debug, Default)]
pub struct Turn {
    due: HashMap<Key, Due>,
    /// The last one that was called from the line, which goes on behind it.
    called: Option<Key>,
    in_line: usize,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    /// Since when it is due, or was called; `None` while it stands in line.
    since: Option<Instant>,
    /// When it was tried last.
    tried: Option<Instant>,
}

/// What a step may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// A node is out of service until it is done.
    OutOfService,
    /// A node goes out of service.
    Departure,
    /// A node prepares while it works.
    Preparation,
    /// See the module's text.
    Housekeeping,
}

const fn urgency(action: &Action) -> Urgency {
    match action {
        Action::CreateNodeUpdate { .. }
        | Action::SetPolicy { .. }
        | Action::Taint { taint: Taint::Outdated, .. }
        | Action::Untaint { taint: Taint::Outdated, .. } => Urgency::Housekeeping,
        Action::Stage { .. } | Action::Rest { .. } => Urgency::Preparation,
        Action::Grant { .. } | Action::RunHook(_) | Action::BeginDrain { .. } | Action::Cordon { .. } => {
            Urgency::Departure
        }
        _ => Urgency::OutOfService,
    }
}

fn key(step: &Step) -> Key {
    (step.action.node().unwrap_or_default().to_owned(), step.action.name())
}

impl Turn {
    /// Takes note of a plan that a change at `since` led to. Steps that were due before stay due since then.
    pub fn planned(&mut self, plan: &Plan, since: Instant) {
        let mut before = std::mem::take(&mut self.due);
        let mut line: Vec<Key> = Vec::new();
        let mut called: usize = 0;
        let mut others: usize = 0;
        for step in &plan.steps {
            let key = key(step);
            let known = before.remove(&key);
            let housekeeping = urgency(&step.action) == Urgency::Housekeeping;
            let lasts = |at: &Instant| !housekeeping || since.saturating_duration_since(*at) < CALLED_FOR;
            let before = known.and_then(|due| due.since).filter(lasts);
            match (housekeeping, before) {
                (true, None) => line.push(key.clone()),
                (true, Some(_)) => called += 1,
                (false, _) => others += 1,
            }
            let since = if housekeeping { before } else { before.or(Some(since)) };
            self.due.insert(key, Due { since, tried: known.and_then(|due| due.tried) });
        }
        line.sort_by_cached_key(|key| (self.called.as_ref().is_some_and(|last| key <= last), key.clone()));
        let places = CALLED_AT_ONCE.saturating_sub(others).max(CALLED_AT_LEAST);
        let room = places.saturating_sub(called);
        self.in_line = line.len().saturating_sub(room);
        for key in line.into_iter().take(room) {
            self.called = Some(key.clone());
            self.due.insert(key, Due { since: Some(since), tried: None });
        }
    }

    /// For how long a step has been due; one of the housekeeping since it was called.
    pub(super) fn waited(&self, step: &Step) -> Option<Duration> {
        self.due.get(&key(step)).and_then(|due| due.since).map(|since| since.elapsed())
    }

    /// Whether a step stands in line.
    pub(super) fn stands_in_line(&self, step: &Step) -> bool {
        self.due.get(&key(step)).is_some_and(|due| due.since.is_none())
    }

    /// How many steps stand in line.
    #[must_use]
    pub const fn in_line(&self) -> usize {
        self.in_line
    }

    /// The nodes in the order in which they are served.
    pub(super) fn order<'a, 'p>(&self, nodes: BTreeMap<&'a str, Vec<&'p Step>>) -> Vec<(&'a str, Vec<&'p Step>)> {
        let rank = |step: &&Step| {
            let due = self.due.get(&key(step));
            (urgency(&step.action), due.and_then(|due| due.tried.or(due.since)))
        };
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_cached_key(|(_, steps)| steps.iter().map(rank).min());
        nodes
    }

    /// Takes note that steps were begun.
    pub(super) fn tried(&mut self, steps: &[&Step], now: Instant) {
        for step in steps {
            if let Some(due) = self.due.get_mut(&key(step)) {
                due.tried = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::Expect;

    fn step(action: Action) -> Step {
        Step { action, expect: Expect::default(), cause: None, says: String::new() }
    }

    fn plan(nodes: &[&str]) -> Plan {
        let steps = nodes.iter().map(|node| step(Action::Rest { node: (*node).to_owned() }));
        Plan { steps: steps.collect(), ..Plan::default() }
    }

    fn taints(nodes: &[usize]) -> Plan {
        let taint = |node: &usize| Action::Taint { node: format!("n{node:03}"), taint: Taint::Outdated };
        Plan { steps: nodes.iter().map(taint).map(step).collect(), ..Plan::default() }
    }

    #[test]
    fn a_step_that_is_planned_again_has_been_due_since_the_first_time() {
        let now = Instant::now();
        let (first, second) = (now.checked_sub(Duration::from_secs(60)).unwrap(), now);
        let mut turn = Turn::default();
        turn.planned(&plan(&["a"]), first);
        turn.planned(&plan(&["a", "b"]), second);
        let waited =
            |turn: &Turn, node: &str| turn.waited(&plan(&[node]).steps[0]).map(|waited| waited.as_secs() >= 60);
        assert_eq!((waited(&turn, "a"), waited(&turn, "b")), (Some(true), Some(false)));
        turn.planned(&plan(&["b"]), second);
        turn.planned(&plan(&["a", "b"]), second);
        assert_eq!(waited(&turn, "a"), Some(false), "it was done in between");
        assert_eq!(waited(&turn, "c"), None);
    }

    fn order(turn: &Turn, steps: &[&Step]) -> Vec<String> {
        let nodes = steps.iter().map(|step| (step.action.node().unwrap(), vec![*step])).collect();
        turn.order(nodes).into_iter().map(|(node, _)| node.to_owned()).collect()
    }

    #[test]
    fn who_waits_longest_goes_first_and_who_failed_goes_behind() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        turn.planned(&plan(&["c"]), start);
        let plan = plan(&["a", "b", "c"]);
        let steps: Vec<_> = plan.steps.iter().collect();
        turn.planned(&plan, start + Duration::from_secs(1));
        assert_eq!(order(&turn, &steps), ["c", "a", "b"]);
        turn.tried(&[steps[2], steps[0]], start + Duration::from_secs(2));
        turn.planned(&plan, start + Duration::from_secs(2));
        assert_eq!(order(&turn, &steps), ["b", "a", "c"]);
        turn.tried(&[steps[1]], start + Duration::from_secs(3));
        turn.planned(&plan, start + Duration::from_secs(3));
        assert_eq!(order(&turn, &steps), ["a", "c", "b"]);
        assert!(turn.waited(steps[2]).is_some(), "it is due since the first time all the same");
    }

    #[test]
    fn a_node_that_is_out_of_service_goes_before_those_that_can_wait() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        let stage = plan(&["a"]);
        turn.planned(&stage, now);
        let cordon = step(Action::Cordon { node: "b".to_owned(), mark: String::new() });
        let uncordon = step(Action::Uncordon { node: "c".to_owned(), mark: String::new(), remove_outdated: true });
        let hold = step(Action::Taint { node: "d".to_owned(), taint: Taint::Hold });
        let all = [taints(&[1]).steps, stage.steps, vec![cordon, uncordon, hold]].concat();
        turn.planned(&Plan { steps: all.clone(), ..Plan::default() }, now + Duration::from_secs(1));
        let steps: Vec<_> = all.iter().collect();
        assert_eq!(order(&turn, &steps), ["c", "d", "b", "a", "n001"]);
    }

    #[test]
    fn little_housekeeping_is_done_while_there_is_much_else_to_do() {
        let many: Vec<String> = (0..100).map(|node| format!("s{node}")).collect();
        let called = |others: usize| {
            let orders = plan(&many.iter().take(others).map(String::as_str).collect::<Vec<_>>());
            let all = Plan { steps: [taints(&(0..100).collect::<Vec<_>>()).steps, orders.steps].concat(), ..orders };
            let mut turn = Turn::default();
            turn.planned(&all, Instant::now());
            all.steps.iter().filter(|step| !turn.stands_in_line(step)).count() - others
        };
        assert_eq!([called(0), called(20), called(30), called(100)], [32, 12, 4, 4]);
    }

    #[test]
    fn housekeeping_stands_in_line_and_only_there() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        let mut left: Vec<usize> = (0..100).collect();
        let mut rounds = Vec::new();
        while !left.is_empty() {
            let plan = taints(&left);
            turn.planned(&plan, now);
            let called: Vec<_> = plan.steps.iter().map(|step| !turn.stands_in_line(step)).collect();
            let mut called = called.into_iter();
            let before = left.len();
            left.retain(|_| !called.next().unwrap());
            rounds.push((before - left.len(), turn.in_line()));
        }
        assert_eq!(rounds, [(32, 68), (32, 36), (32, 4), (4, 0)]);
        let many: Vec<String> = (0..100).map(|node| format!("n{node}")).collect();
        let orders = plan(&many.iter().map(String::as_str).collect::<Vec<_>>());
        turn.planned(&orders, now);
        assert!(orders.steps.iter().all(|step| !turn.stands_in_line(step)), "an order has no line");
    }

    #[test]
    fn housekeeping_that_never_succeeds_does_not_hold_up_the_rest() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        let plan = taints(&(0..100).collect::<Vec<_>>());
        let mut seen = std::collections::BTreeSet::new();
        for second in 0..40 {
            turn.planned(&plan, start + Duration::from_secs(second));
            let called = plan.steps.iter().filter(|step| !turn.stands_in_line(step));
            let called: Vec<_> = called.map(|step| step.action.node().unwrap().to_owned()).collect();
            assert_eq!(called.len(), CALLED_AT_ONCE);
            seen.extend(called);
        }
        assert_eq!(seen.len(), 100);
    }
}
