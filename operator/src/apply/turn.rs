//! In which order the nodes of a plan are served, and since when each of its steps has been due.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so
//! only some are begun before the next plan; and the next plan goes on where that one stopped, or the first nodes of the
//! alphabet would always come first. A node that is out of service, or about to be, goes before those that only stage.
//!
//! Housekeeping is what one fact asks of every node at once and no node waits for: enrolment, another policy's name,
//! taints of a rollout. It stands in line, of which a few are called at a time; a thousand of them would only lengthen
//! every queue of the API server. One that is called and does not succeed makes room after a while.

use bascule_planner::{Action, Plan, Step, plan::Taint};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// How many steps of the housekeeping are called at once.
const CALLED_AT_ONCE: usize = 32;
/// After this time one that is still not done goes back into the line.
const CALLED_FOR: Duration = Duration::from_secs(10);

/// A node and the kind of its step.
type Key = (String, &'static str);

/// What is kept from one plan to the next.
#[derive(Debug, Default)]
pub struct Turn {
    /// Since when each step is due, or was called; `None` while it stands in line.
    due: HashMap<Key, Option<Instant>>,
    /// The first node that the last plan left out.
    next: Option<String>,
    /// The last one that was called from the line, which goes on behind it.
    called: Option<Key>,
    in_line: usize,
}

/// What a step may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// A node is out of service until it is done, or goes there by it.
    Service,
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
        _ => Urgency::Service,
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
        for step in &plan.steps {
            let (key, housekeeping) = (key(step), urgency(&step.action) == Urgency::Housekeeping);
            let known = before.remove(&key).flatten();
            let known = known.filter(|at| !housekeeping || since.saturating_duration_since(*at) < CALLED_FOR);
            if housekeeping && known.is_none() {
                line.push(key.clone());
            }
            called += usize::from(housekeeping && known.is_some());
            self.due.insert(key, if housekeeping { known } else { Some(known.unwrap_or(since)) });
        }
        line.sort_by_cached_key(|key| (self.called.as_ref().is_some_and(|last| key <= last), key.clone()));
        let room = CALLED_AT_ONCE.saturating_sub(called);
        self.in_line = line.len().saturating_sub(room);
        for key in line.into_iter().take(room) {
            self.called = Some(key.clone());
            self.due.insert(key, Some(since));
        }
    }

    /// For how long a step has been due; one of the housekeeping since it was called.
    pub(super) fn waited(&self, step: &Step) -> Option<Duration> {
        self.due.get(&key(step)).copied().flatten().map(|since| since.elapsed())
    }

    /// Whether a step stands in line.
    pub(super) fn stands_in_line(&self, step: &Step) -> bool {
        self.due.get(&key(step)).is_some_and(Option::is_none)
    }

    /// How many steps stand in line.
    #[must_use]
    pub const fn in_line(&self) -> usize {
        self.in_line
    }

    /// The nodes in the order in which they are served.
    pub(super) fn order<'a, 'p>(&self, nodes: BTreeMap<&'a str, Vec<&'p Step>>) -> Vec<(&'a str, Vec<&'p Step>)> {
        let next = self.next.as_deref().unwrap_or_default();
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_key(|(node, steps)| (steps.iter().map(|step| urgency(&step.action)).min(), *node < next));
        nodes
    }

    /// Takes note of the first node that was left out, if any was.
    pub(super) fn stopped_before(&mut self, node: Option<&str>) {
        self.next = node.map(ToOwned::to_owned);
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

    #[test]
    fn nodes_that_were_left_out_come_first() {
        let mut turn = Turn::default();
        let plan = plan(&["a", "b", "c"]);
        let order = |turn: &Turn| -> Vec<String> {
            let nodes = plan.steps.iter().map(|step| (step.action.node().unwrap(), vec![step])).collect();
            turn.order(nodes).into_iter().map(|(node, _)| node.to_owned()).collect()
        };
        assert_eq!(order(&turn), ["a", "b", "c"]);
        turn.stopped_before(Some("b"));
        assert_eq!(order(&turn), ["b", "c", "a"]);
        turn.stopped_before(Some("bb"));
        assert_eq!(order(&turn), ["c", "a", "b"], "the node itself has nothing left to do");
        turn.stopped_before(None);
        assert_eq!(order(&turn), ["a", "b", "c"]);
    }

    #[test]
    fn a_node_that_is_out_of_service_goes_before_those_that_can_wait() {
        let (mut turn, idle, marked) = (Turn::default(), plan(&["b", "d"]), taints(&[1]));
        turn.stopped_before(Some("d"));
        let uncordon = step(Action::Uncordon { node: "c".to_owned(), mark: String::new(), remove_outdated: true });
        let hold = step(Action::Taint { node: "o".to_owned(), taint: Taint::Hold });
        let steps = idle.steps.iter().chain(&marked.steps).chain([&uncordon, &hold]);
        let steps = steps.map(|step| (step.action.node().unwrap(), vec![step])).collect();
        let order: Vec<_> = turn.order(steps).into_iter().map(|(node, _)| node).collect();
        assert_eq!(order, ["o", "c", "d", "b", "n001"], "a node that is held back takes no pod meanwhile");
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
