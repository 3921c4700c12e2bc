//! The nodes that are being written to. A plan does not wait for the writes of the one before it: one slow answer would hold
//! up every other node. A node has one writer at a time, and grants of one plan at most are under way: the next plan counts
//! a grant only when it is written.

use super::{Carried, Written, forget::Forgetting};
use bascule_planner::{Action, Step};
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    time::Duration,
};
use tokio::task::{Id, JoinError, JoinSet};

/// How many nodes are written to at once.
const AT_ONCE: usize = 32;

/// The writes under way. Dropping it gives them up.
#[derive(Debug, Default)]
pub struct UnderWay {
    tasks: JoinSet<Written>,
    nodes: HashMap<Id, Node>,
    /// What policies remember. Their nodes wait for it.
    memories: JoinSet<Written>,
    remembering: HashMap<Id, String>,
    /// What ended since it was asked for.
    ended: Written,
    forgetting: Forgetting,
}

#[derive(Debug)]
struct Node {
    name: String,
    grants: bool,
}

impl UnderWay {
    /// Which nodes, in the order given, may be begun now, and how many steps are left for later. A node that is being written
    /// to is neither: what it needs shows when its writes have ended.
    pub(super) fn choose<'a, 'p>(
        &self,
        nodes: Vec<(&'a str, Vec<&'p Step>)>,
    ) -> (Vec<(&'a str, Vec<&'p Step>)>, usize) {
        let mut room = AT_ONCE.saturating_sub(self.nodes.len());
        let mut left = 0;
        let mut chosen = Vec::new();
        for (node, steps) in nodes {
            if self.nodes.values().any(|one| one.name == node) {
                continue;
            }
            if room == 0 || (grants(&steps) && self.grants()) {
                left += steps.len();
                continue;
            }
            room -= 1;
            chosen.push((node, steps));
        }
        (chosen, left)
    }

    /// The nodes that are being written to.
    #[must_use]
    pub fn nodes(&self) -> HashSet<String> {
        self.nodes.values().map(|one| one.name.clone()).collect()
    }

    /// Whether nothing is being written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.remembering.is_empty()
    }

    fn grants(&self) -> bool {
        self.nodes.values().any(|one| one.grants)
    }

    /// Begins the writes to a node.
    pub(super) fn begin(
        &mut self,
        node: &str,
        steps: &[&Step],
        writes: impl Future<Output = Written> + Send + 'static,
    ) {
        let grants = grants(steps);
        let task = self.tasks.spawn(writes);
        self.nodes.insert(task.id(), Node { name: node.to_owned(), grants });
    }

    /// The records that are being removed.
    pub(super) const fn forgetting(&mut self) -> &mut Forgetting {
        &mut self.forgetting
    }

    /// Whether a policy's memory is being written.
    pub(super) fn remembers(&self, policy: &str) -> bool {
        self.remembering.values().any(|one| one == policy)
    }

    /// Begins to write what a policy remembers.
    pub(super) fn remember(&mut self, policy: String, write: impl Future<Output = Written> + Send + 'static) {
        let task = self.memories.spawn(write);
        self.remembering.insert(task.id(), policy);
    }

    /// Waits for what is being remembered, but not for long. The policies for which it is not written: their nodes must wait.
    pub(super) async fn remembered_within(&mut self, patience: Duration) -> HashSet<String> {
        let mut failed = HashSet::new();
        let until = tokio::time::Instant::now() + patience;
        while let Ok(Some(result)) = tokio::time::timeout_at(until, self.memories.join_next_with_id()).await {
            failed.extend(self.note_memory(result));
        }
        failed.extend(self.remembering.values().cloned());
        failed
    }

    /// The policy, if its memory was not written.
    fn note_memory(&mut self, result: Result<(Id, Written), JoinError>) -> Option<String> {
        let (id, written) = match result {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(error = crate::one_line(&error), "remembering broke off");
                (error.id(), Written { carried: Carried { failed: 1, ..Carried::default() }, ..Written::default() })
            }
        };
        let done = written.carried.done > 0;
        self.ended.add(written);
        self.remembering.remove(&id).filter(|_| !done)
    }

    /// Waits until a write ends; for ever if none is under way.
    pub async fn one_ended(&mut self) {
        tokio::select! {
            Some(result) = self.tasks.join_next_with_id() => self.take_note(result),
            Some(result) = self.memories.join_next_with_id() => drop(self.note_memory(result)),
            else => std::future::pending().await,
        }
    }

    /// How the writes went that ended since the last call.
    pub fn take_ended(&mut self) -> Written {
        while let Some(result) = self.tasks.try_join_next_with_id() {
            self.take_note(result);
        }
        while let Some(result) = self.memories.try_join_next_with_id() {
            self.note_memory(result);
        }
        std::mem::take(&mut self.ended)
    }

    fn take_note(&mut self, result: Result<(Id, Written), JoinError>) {
        match result {
            Ok((id, written)) => {
                self.nodes.remove(&id);
                self.ended.add(written);
            }
            Err(error) => {
                self.nodes.remove(&error.id());
                tracing::error!(error = crate::one_line(&error), "the writes to a node broke off");
                self.ended.carried.failed += 1;
            }
        }
    }
}

fn grants(steps: &[&Step]) -> bool {
    steps.iter().any(|step| matches!(step.action, Action::Grant { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::Expect;
    use tokio::sync::oneshot;

    fn step(action: Action) -> Step {
        Step { action, expect: Expect::default(), cause: None, says: String::new() }
    }

    fn grant(node: &str) -> Step {
        let object = bascule_api::ObjectRef { kind: "UpdatePolicy".to_owned(), namespace: None, name: "p".to_owned() };
        step(Action::Grant {
            node: node.to_owned(),
            boot_id: String::new(),
            generation: 1,
            cause: bascule_api::Cause { object, user: None },
            was_cordoned: false,
            at: bascule_api::Time::default(),
            drain_begins: true,
            budgets_open_within: None,
            closed_budgets: Vec::new(),
            daemon_sets: Vec::new(),
            accept_state: false,
        })
    }

    fn rest(node: &str) -> Step {
        step(Action::Rest { node: node.to_owned() })
    }

    fn written(carried: Carried) -> Written {
        Written { carried, ..Written::default() }
    }

    fn chosen(under_way: &UnderWay, steps: &[Step]) -> (Vec<String>, usize) {
        let nodes = steps.iter().map(|step| (step.action.node().unwrap(), vec![step])).collect();
        let (chosen, left) = under_way.choose(nodes);
        (chosen.into_iter().map(|(node, _)| node.to_owned()).collect(), left)
    }

    #[tokio::test]
    async fn a_node_has_one_writer_and_grants_wait_for_those_of_an_earlier_plan() {
        let mut under_way = UnderWay::default();
        let steps = [grant("a"), grant("b"), rest("c"), rest("d")];
        assert_eq!(chosen(&under_way, &steps), (["a", "b", "c", "d"].map(str::to_owned).to_vec(), 0), "of one plan");
        let never = std::future::pending::<Written>;
        under_way.begin("d", &[&steps[3]], never());
        assert_eq!(chosen(&under_way, &steps), (["a", "b", "c"].map(str::to_owned).to_vec(), 0));
        under_way.begin("a", &[&steps[0]], never());
        // The budget may have held one node only: the planner does not count the first until it is written.
        assert_eq!(chosen(&under_way, &steps), (vec!["c".to_owned()], 1));
        for node in 0..AT_ONCE - 2 {
            under_way.begin(&format!("n{node}"), &[], never());
        }
        assert_eq!(chosen(&under_way, &steps), (vec![], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_that_hangs_holds_up_its_own_policy_and_no_other() {
        let mut under_way = UnderWay::default();
        under_way.remember("hangs".to_owned(), std::future::pending());
        under_way.remember("good".to_owned(), async { written(Carried { done: 1, ..Carried::default() }) });
        under_way.remember("fails".to_owned(), async { written(Carried { failed: 1, ..Carried::default() }) });
        let held = under_way.remembered_within(Duration::from_millis(250)).await;
        assert_eq!(held, HashSet::from(["hangs".to_owned(), "fails".to_owned()]));
        assert!(under_way.remembers("hangs") && !under_way.remembers("good") && !under_way.remembers("fails"));
        assert_eq!(under_way.take_ended().carried, Carried { done: 1, failed: 1, ..Carried::default() });
        assert!(!under_way.is_idle());
    }

    #[tokio::test]
    async fn a_node_is_held_until_its_writes_end_and_a_panic_frees_it_too() {
        let mut under_way = UnderWay::default();
        let (go, waits) = oneshot::channel::<()>();
        under_way.begin("a", &[&grant("a")], async move {
            waits.await.unwrap();
            written(Carried { done: 2, ..Carried::default() })
        });
        under_way.begin("b", &[&rest("b")], async { panic!("a test's panic") });
        under_way.one_ended().await;
        assert_eq!(under_way.take_ended().carried, Carried { failed: 1, ..Carried::default() });
        assert_eq!(under_way.nodes(), HashSet::from(["a".to_owned()]));
        go.send(()).unwrap();
        under_way.one_ended().await;
        assert_eq!(under_way.take_ended().carried, Carried { done: 2, ..Carried::default() });
        assert!(under_way.is_idle());
    }
}
