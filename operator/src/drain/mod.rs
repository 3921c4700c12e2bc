//! Emptying nodes. The planner says which nodes are to be emptied, and when to stop; this does it.

mod backoff;
pub mod evict;
pub mod node;
#[cfg(test)]
mod tests;

pub use evict::{Answer, EvictionApi, EvictionBackend, Target};
pub use node::{Blocked, DrainObserver, Mode, Order, PodSource, Progress, Tools};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{sync::watch, task::AbortHandle};

/// The drains under way. Dropping it stops them all, which leaves the nodes as they are.
pub struct Drains {
    tools: Tools,
    running: BTreeMap<String, Running>,
}

struct Running {
    order: Order,
    progress: Arc<watch::Sender<Progress>>,
    memory: Arc<Mutex<node::Memory>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Drains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.running.keys()).finish()
    }
}

impl Drains {
    /// No drain yet.
    #[must_use]
    pub const fn new(tools: Tools) -> Self {
        Self { tools, running: BTreeMap::new() }
    }

    /// Makes the drains under way those that are wanted: starts what is missing, stops what is not wanted any more,
    /// and goes on where the order changed. What is missing waits where it `may_begin` not yet; the nodes of which that is so.
    pub fn set(&mut self, wanted: Vec<Order>, may_begin: impl Fn(&str) -> bool) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = wanted.iter().map(|order| order.node.clone()).collect();
        self.running.retain(|node, _| names.contains(node));
        let mut waiting = Vec::new();
        for order in wanted {
            let before = self.running.get(&order.node);
            if before.is_some_and(|running| running.order == order) {
                continue;
            }
            // One that only kept what it knew begins when it asks.
            let begins = before.is_none_or(|running| running.order.keeps && !order.keeps);
            if begins && !may_begin(&order.node) {
                waiting.push(order.node);
                continue;
            }
            // Another beginning is another drain, which knows nothing of the one before.
            let (progress, memory) = match before.filter(|running| running.order.begun == order.begun) {
                Some(running) => (Arc::clone(&running.progress), Arc::clone(&running.memory)),
                None => (Arc::new(watch::Sender::new(Progress::default())), Arc::default()),
            };
            let drain = node::run(order.clone(), self.tools.clone(), Arc::clone(&progress), Arc::clone(&memory));
            let task = tokio::spawn(drain).abort_handle();
            self.running.insert(order.node.clone(), Running { order, progress, memory, task });
        }
        waiting
    }

    /// How far each drain is.
    #[must_use]
    pub fn progress(&self) -> BTreeMap<String, Progress> {
        self.running.iter().map(|(node, running)| (node.clone(), running.progress.borrow().clone())).collect()
    }

    /// How far one drain is.
    #[must_use]
    pub fn progress_of(&self, node: &str) -> Option<Progress> {
        self.running.get(node).map(|running| running.progress.borrow().clone())
    }
}
