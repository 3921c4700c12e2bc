//! What pods need of nodes, kept once for all that need the same, and what nodes have to give.

use super::{NodeFact, PodFact};
use bascule_planner::drain::{Barrier, Needs, Space};
use k8s_openapi::api::core::v1::Taint;
use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// Most of what pods need is the same for all pods of a workload.
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Known {
    needs: HashSet<Arc<Needs>>,
    /// At how many those that nobody uses any more are let go.
    sweep_at: usize,
}

/// How many are kept before anything is let go.
const SWEEP_FROM: usize = 1_024;

/// The same needs as they are known already.
pub(super) fn shared(needs: Arc<Needs>) -> Arc<Needs> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = known.needs.get(&needs) {
        return Arc::clone(shared);
    }
    if known.needs.len() >= known.sweep_at.max(SWEEP_FROM) {
        known.needs.retain(|needs| Arc::strong_count(needs) > 1);
        known.sweep_at = known.needs.len().saturating_mul(2);
    }
    known.needs.insert(Arc::clone(&needs));
    needs
}

/// What a node has to give beside the pods that it has.
#[must_use]
pub fn space<'a>(node: &NodeFact, pods: impl Iterator<Item = &'a PodFact>) -> Space {
    let keeps = |taint: &&Taint| taint.effect != "PreferNoSchedule" && taint.key != "node.kubernetes.io/unschedulable";
    let mut free = node.allocatable.clone();
    for (resource, much) in pods.filter(|pod| !pod.finished).flat_map(|pod| &pod.needs.requests) {
        if let Some(free) = free.get_mut(resource) {
            *free = free.saturating_sub(*much);
        }
    }
    Space { free, barriers: node.taints.iter().filter(keeps).map(Barrier::from_kubernetes).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_needs_are_kept_once() {
        let needs =
            || Arc::new(Needs { selector: [("only".to_owned(), "here".to_owned())].into(), ..Needs::default() });
        assert!(Arc::ptr_eq(&shared(needs()), &shared(needs())));
    }
}
