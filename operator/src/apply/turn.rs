//! In which order the nodes of a plan are served, and since when each of its steps has been due.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so
//! only some are begun before the next plan; and the next plan goes on where that one stopped, or the first nodes of the
//! alphabet would always come first. A node that is out of service, or about to be, goes before those that only stage or get
//! a taint.

use bascule_planner::{Action, Plan, Step};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// What is kept from one plan to the next.
#[derive(Debug, Default)]
pub struct Turn {
    due: HashMap<(String, &'static str), Instant>,
    /// The first node that the last plan left out.
    next: Option<String>,
}

fn key(step: &Step) -> (String, &'static str) {
    (step.action.node().unwrap_or_default().to_owned(), step.action.name())
}

/// Whether nothing is out of service until it is done.
const fn may_wait(action: &Action) -> bool {
    matches!(
        action,
        Action::CreateNodeUpdate { .. }
            | Action::SetPolicy { .. }
            | Action::Taint { .. }
            | Action::Untaint { .. }
            | Action::Stage { .. }
            | Action::Rest { .. }
    )
}

impl Turn {
    /// Takes note of a plan that a change at `since` led to. Steps that were due before stay due since then.
    pub fn planned(&mut self, plan: &Plan, since: Instant) {
        let mut before = std::mem::take(&mut self.due);
        let due = plan.steps.iter().map(|step| {
            let key = key(step);
            let since = before.remove(&key).unwrap_or(since);
            (key, since)
        });
        self.due = due.collect();
    }

    /// For how long a step has been due.
    pub(super) fn waited(&self, step: &Step) -> Option<Duration> {
        self.due.get(&key(step)).map(Instant::elapsed)
    }

    /// The nodes in the order in which they are served.
    pub(super) fn order<'a, 'p>(&self, nodes: BTreeMap<&'a str, Vec<&'p Step>>) -> Vec<(&'a str, Vec<&'p Step>)> {
        let next = self.next.as_deref().unwrap_or_default();
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_key(|(node, steps)| (steps.iter().all(|step| may_wait(&step.action)), *node < next));
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

    fn plan(nodes: &[&str]) -> Plan {
        let step = |node: &&str| Step {
            action: Action::Rest { node: (*node).to_owned() },
            expect: Expect::default(),
            cause: None,
            says: String::new(),
        };
        Plan { steps: nodes.iter().map(step).collect(), ..Plan::default() }
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
        let (mut turn, idle) = (Turn::default(), plan(&["a", "c"]));
        turn.stopped_before(Some("c"));
        let uncordon = Action::Uncordon { node: "b".to_owned(), mark: String::new(), remove_outdated: true };
        let urgent = Step { action: uncordon, expect: Expect::default(), cause: None, says: String::new() };
        let steps = idle.steps.iter().chain([&urgent]).map(|step| (step.action.node().unwrap(), vec![step])).collect();
        let order: Vec<_> = turn.order(steps).into_iter().map(|(node, _)| node).collect();
        assert_eq!(order, ["b", "c", "a"]);
    }
}
