//! Rollbacks: which releases are left is decided once, when a Rollback is first seen, and remembered in its status.

use super::facts::NodeView;
use crate::{
    Snapshot,
    snapshot::{PolicyFacts, RollbackFacts},
};
use bascule_api::{Goal, RollbackStatus, UpdatePolicyStatus, Version, conditions};
use std::collections::BTreeMap;

/// The kind, as causes name it.
pub(super) const KIND: &str = "Rollback";
/// Most releases that one Rollback leaves, as in the schema.
const MAX_FROM: usize = 16;

/// A Rollback that is in force.
#[derive(Debug)]
pub(super) struct RollbackView<'a> {
    pub(super) index: usize,
    pub(super) facts: &'a RollbackFacts,
    /// Its status, accepted.
    pub(super) status: RollbackStatus,
    /// Whether the acceptance is not written yet.
    pub(super) fresh: bool,
}

impl<'a> RollbackView<'a> {
    fn speaks_of(&self, name: &str) -> bool {
        self.facts.spec.nodes.is_empty() || self.facts.spec.nodes.iter().any(|node| node == name)
    }

    /// Whether the node runs a release that this Rollback leaves.
    pub(super) fn leaves(&self, node: &NodeView<'_>) -> bool {
        self.speaks_of(&node.node.name) && node.running().is_some_and(|running| self.status.from.contains(running))
    }

    /// Whether nodes must not go to a release while this Rollback is in force.
    pub(super) fn blocks(&self, version: &Version) -> bool {
        self.status.from.contains(version)
    }

    /// Where the node goes.
    pub(super) fn destination<'b>(&'b self, node: &NodeView<'b>) -> Option<&'b Version> {
        let running = node.running()?;
        let named = self.facts.spec.version.as_ref();
        named
            .or_else(|| node.way_back().filter(|other| *other < running && !self.status.from.contains(other)))
            .or(self.status.to.as_ref())
    }

    /// Whether the node's way in motion leads to a release that this Rollback leaves.
    pub(super) fn forbids(&self, node: &NodeView<'_>, version: &Version) -> bool {
        self.speaks_of(&node.node.name) && self.status.from.contains(version)
    }
}

/// The Rollbacks of a policy that are in force, the youngest first. `members` are the indexes of its nodes, and `node` knows
/// which those are.
pub(super) fn in_force<'a>(
    snapshot: &'a Snapshot,
    policy: &PolicyFacts,
    members: &[usize],
    node: &dyn Fn(usize) -> Option<NodeView<'a>>,
) -> Vec<RollbackView<'a>> {
    let mut found: Vec<_> = snapshot
        .rollbacks
        .iter()
        .enumerate()
        .filter(|(_, facts)| facts.spec.policy == policy.name && facts.status.completed_at.is_none())
        .map(|(index, facts)| {
            let members: Vec<NodeView<'a>> = members.iter().filter_map(|index| node(*index)).collect();
            view(index, facts, &policy.status, members.iter())
        })
        .collect();
    found.sort_by(|a, b| (b.facts.created_at, &b.facts.name).cmp(&(a.facts.created_at, &a.facts.name)));
    found
}

fn view<'a, 'b>(
    index: usize,
    facts: &'a RollbackFacts,
    policy: &UpdatePolicyStatus,
    members: impl Iterator<Item = &'b NodeView<'a>>,
) -> RollbackView<'a>
where
    'a: 'b,
{
    let accepted = conditions::is_true(&facts.status.conditions, conditions::ACCEPTED);
    let mut view = RollbackView { index, facts, status: facts.status.clone(), fresh: !accepted };
    if !accepted {
        let members: Vec<_> = members.filter(|node| view.speaks_of(&node.node.name)).collect();
        let from = left_releases(facts, &members);
        view.status.to = destination_of_all(facts, policy, &from, &members);
        view.status.from = from;
        view.status.observed_generation = Some(facts.generation);
    }
    view
}

/// The releases that are left: everything newer than the named version, or else the newest that a node runs or is
/// on its way to. Nodes that never had it stay as they are.
fn left_releases(facts: &RollbackFacts, members: &[&NodeView<'_>]) -> Vec<Version> {
    let mut seen: Vec<&Version> = Vec::new();
    for node in members {
        let moving =
            node.update().filter(|update| update.spec.disruption.is_some() && update.spec.goal != Goal::Reverted);
        let next = moving.and_then(|update| update.spec.release.as_ref()).map(|release| &release.version);
        for version in [node.running(), next].into_iter().flatten() {
            if !seen.contains(&version) {
                seen.push(version);
            }
        }
    }
    seen.sort_unstable();
    match &facts.spec.version {
        Some(to) => seen.into_iter().filter(|version| *version > to).rev().take(MAX_FROM).cloned().collect(),
        None => seen.into_iter().next_back().cloned().into_iter().collect(),
    }
}

/// The release that nodes go back to whose other slot does not hold one.
fn destination_of_all(
    facts: &RollbackFacts,
    policy: &UpdatePolicyStatus,
    from: &[Version],
    members: &[&NodeView<'_>],
) -> Option<Version> {
    if let Some(version) = &facts.spec.version {
        return Some(version.clone());
    }
    let oldest = from.iter().min()?;
    let mut held: BTreeMap<&Version, usize> = BTreeMap::new();
    for node in members.iter().filter(|node| node.running().is_some_and(|running| from.contains(running))) {
        if let Some(other) = node.way_back().filter(|other| *other < oldest) {
            *held.entry(other).or_default() += 1;
        }
    }
    let most = held.into_iter().max_by_key(|(_, count)| *count).map(|(version, _)| version.clone());
    most.or_else(|| policy.previous.as_ref().map(|release| release.version.clone()).filter(|version| version < oldest))
}
