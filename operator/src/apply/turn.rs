//! In which order the nodes of a plan are served, and since when each of its steps has been due.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so
//! only some are begun before the next plan; and the next plan goes on where that one stopped, or the first nodes of the
//! alphabet would always come first.

use bascule_planner::{Plan, Step};
use std::{
    collections::HashMap,
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
    pub(super) fn order<'a, T>(&self, mut nodes: Vec<(&'a str, T)>) -> Vec<(&'a str, T)> {
        if let Some(next) = &self.next {
            let first = nodes.partition_point(|(node, _)| *node < next.as_str());
            nodes.rotate_left(first);
        }
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
    use bascule_planner::{Action, Expect};

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
        let order = |turn: &Turn| -> Vec<&'static str> {
            turn.order(["a", "b", "c"].map(|node| (node, ())).to_vec()).into_iter().map(|(node, ())| node).collect()
        };
        assert_eq!(order(&turn), ["a", "b", "c"]);
        turn.stopped_before(Some("b"));
        assert_eq!(order(&turn), ["b", "c", "a"]);
        turn.stopped_before(Some("bb"));
        assert_eq!(order(&turn), ["c", "a", "b"], "the node itself has nothing left to do");
        turn.stopped_before(None);
        assert_eq!(order(&turn), ["a", "b", "c"]);
    }
}
