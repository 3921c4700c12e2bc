//! The writes in flight. A plan does not wait for those of the one before it: one slow answer would hold up every other node.

use super::{Carried, Written, forget::Forgetting};
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    time::Duration,
};
use tokio::task::{Id, JoinError, JoinSet};

/// How the writes to a node, or to what has none, went.
#[derive(Debug)]
pub struct Ended {
    /// The node.
    pub node: Option<String>,
    /// How.
    pub written: Written,
}

/// The writes in flight. Dropping it gives them up.
#[derive(Debug, Default)]
pub struct InFlight {
    tasks: JoinSet<Written>,
    nodes: HashMap<Id, String>,
    /// What policies remember. Their nodes wait for it.
    memories: JoinSet<Written>,
    remembering: HashMap<Id, String>,
    /// What ended since it was asked for.
    ended: Vec<Ended>,
    forgetting: Forgetting,
}

impl InFlight {
    /// The nodes that are being written to.
    #[must_use]
    pub fn nodes(&self) -> HashSet<String> {
        self.nodes.values().cloned().collect()
    }

    /// Whether nothing is being written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.remembering.is_empty()
    }

    /// Begins the writes to a node.
    pub(super) fn begin(&mut self, node: &str, writes: impl Future<Output = Written> + Send + 'static) {
        let task = self.tasks.spawn(writes);
        self.nodes.insert(task.id(), node.to_owned());
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
        let (id, written) = came_to(result);
        let done = written.carried.done > 0;
        self.ended.push(Ended { node: None, written });
        self.remembering.remove(&id).filter(|_| !done)
    }

    /// Waits until a write ends; for ever if none is in flight.
    pub async fn one_ended(&mut self) {
        tokio::select! {
            Some(result) = self.tasks.join_next_with_id() => self.note(result),
            Some(result) = self.memories.join_next_with_id() => drop(self.note_memory(result)),
            else => std::future::pending().await,
        }
    }

    /// How the writes went that ended since the last call.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        while let Some(result) = self.tasks.try_join_next_with_id() {
            self.note(result);
        }
        while let Some(result) = self.memories.try_join_next_with_id() {
            self.note_memory(result);
        }
        std::mem::take(&mut self.ended)
    }

    fn note(&mut self, result: Result<(Id, Written), JoinError>) {
        let (id, written) = came_to(result);
        let node = self.nodes.remove(&id);
        self.ended.push(Ended { node, written });
    }
}

/// Writes that broke off have failed.
fn came_to(result: Result<(Id, Written), JoinError>) -> (Id, Written) {
    result.unwrap_or_else(|error| {
        tracing::error!(error = crate::one_line(&error), "writes broke off");
        let carried = Carried { failed: 1, ..Carried::default() };
        (error.id(), Written { carried, unknown: true, ..Written::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn written(carried: Carried) -> Written {
        Written { carried, ..Written::default() }
    }

    fn ended(in_flight: &mut InFlight) -> Vec<(Option<String>, Carried)> {
        in_flight.take_ended().into_iter().map(|one| (one.node, one.written.carried)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_that_hangs_holds_up_its_own_policy_and_no_other() {
        let mut in_flight = InFlight::default();
        in_flight.remember("hangs".to_owned(), std::future::pending());
        in_flight.remember("good".to_owned(), async { written(Carried { done: 1, ..Carried::default() }) });
        in_flight.remember("fails".to_owned(), async { written(Carried { failed: 1, ..Carried::default() }) });
        let held = in_flight.remembered_within(Duration::from_millis(250)).await;
        assert_eq!(held, HashSet::from(["hangs".to_owned(), "fails".to_owned()]));
        assert!(in_flight.remembers("hangs") && !in_flight.remembers("good") && !in_flight.remembers("fails"));
        let mut sum = Carried::default();
        ended(&mut in_flight).into_iter().for_each(|(_, carried)| sum.add(carried));
        assert_eq!(sum, Carried { done: 1, failed: 1, ..Carried::default() });
        assert!(!in_flight.is_idle());
    }

    #[tokio::test]
    async fn a_node_is_held_until_its_writes_end_and_a_panic_frees_it_too() {
        let mut in_flight = InFlight::default();
        let (go, waits) = oneshot::channel::<()>();
        in_flight.begin("a", async move {
            waits.await.unwrap();
            written(Carried { done: 2, ..Carried::default() })
        });
        in_flight.begin("b", async { panic!("a test's panic") });
        in_flight.one_ended().await;
        let failed = Carried { failed: 1, ..Carried::default() };
        assert_eq!(ended(&mut in_flight), [(Some("b".to_owned()), failed)]);
        assert_eq!(in_flight.nodes(), HashSet::from(["a".to_owned()]));
        go.send(()).unwrap();
        in_flight.one_ended().await;
        assert_eq!(ended(&mut in_flight), [(Some("a".to_owned()), Carried { done: 2, ..Carried::default() })]);
        assert!(in_flight.is_idle());
    }
}
