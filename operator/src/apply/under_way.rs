//! The nodes that are being written to. A plan does not wait for the writes of the one before it: one slow answer would hold
//! up every other node. A node has one writer at a time, and grants of one plan at most are under way: the next plan counts
//! a grant only when it is written.

use super::Carried;
use std::{
    collections::{HashMap, HashSet},
    future::Future,
};
use tokio::task::{Id, JoinError, JoinSet};

/// How many nodes are written to at once.
const AT_ONCE: usize = 32;

/// The writes under way. Dropping it gives them up.
#[derive(Debug, Default)]
pub struct UnderWay {
    tasks: JoinSet<Carried>,
    nodes: HashMap<Id, Node>,
    /// What ended since it was asked for.
    ended: Carried,
}

#[derive(Debug)]
struct Node {
    name: String,
    grants: bool,
}

impl UnderWay {
    /// How many more nodes may be begun.
    pub(super) fn room(&self) -> usize {
        AT_ONCE.saturating_sub(self.tasks.len())
    }

    /// Whether a node is being written to.
    pub(super) fn holds(&self, node: &str) -> bool {
        self.nodes.values().any(|one| one.name == node)
    }

    /// The nodes that are being written to.
    #[must_use]
    pub fn nodes(&self) -> HashSet<String> {
        self.nodes.values().map(|one| one.name.clone()).collect()
    }

    /// Whether a grant is being written.
    pub(super) fn grants(&self) -> bool {
        self.nodes.values().any(|one| one.grants)
    }

    /// Begins the writes to a node.
    pub(super) fn begin(&mut self, node: &str, grants: bool, writes: impl Future<Output = Carried> + Send + 'static) {
        let task = self.tasks.spawn(writes);
        self.nodes.insert(task.id(), Node { name: node.to_owned(), grants });
    }

    /// Waits until the writes to a node end; for ever if none are under way.
    pub async fn one_ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(result) => self.take_note(result),
            None => std::future::pending().await,
        }
    }

    /// How the writes went that ended since the last call.
    pub fn take_ended(&mut self) -> Carried {
        while let Some(result) = self.tasks.try_join_next_with_id() {
            self.take_note(result);
        }
        std::mem::take(&mut self.ended)
    }

    /// Takes note of a write that was waited for.
    pub(super) fn also_ended(&mut self, carried: Carried) {
        self.ended.add(carried);
    }

    fn take_note(&mut self, result: Result<(Id, Carried), JoinError>) {
        match result {
            Ok((id, carried)) => {
                self.nodes.remove(&id);
                self.ended.add(carried);
            }
            Err(error) => {
                self.nodes.remove(&error.id());
                tracing::error!(error = crate::one_line(&error), "the writes to a node broke off");
                self.ended.failed += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_node_is_held_until_its_writes_end_and_a_panic_frees_it_too() {
        let mut under_way = UnderWay::default();
        let (go, waits) = oneshot::channel::<()>();
        under_way.begin("a", true, async move {
            waits.await.unwrap();
            Carried { done: 2, ..Carried::default() }
        });
        under_way.begin("b", false, async { panic!("a test's panic") });
        under_way.one_ended().await;
        assert_eq!(under_way.take_ended(), Carried { failed: 1, ..Carried::default() });
        assert_eq!((under_way.holds("a"), under_way.holds("b"), under_way.grants()), (true, false, true));
        assert_eq!(under_way.room(), AT_ONCE - 1);
        go.send(()).unwrap();
        under_way.one_ended().await;
        assert_eq!(under_way.take_ended(), Carried { done: 2, ..Carried::default() });
        assert_eq!((under_way.holds("a"), under_way.grants(), under_way.room()), (false, false, AT_ONCE));
    }
}
