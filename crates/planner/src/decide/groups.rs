//! Which nodes stand together, as lists of indexes into the snapshot: what a round would otherwise look for by passing
//! over every node. The lists hold from plan to plan for as long as no node changes sides.

use super::facts::{Selection, Traits};
use crate::{Snapshot, snapshot::EtcdMember};
use bascule_api::Goal;

/// In which lists a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a list of its own")]
pub(super) struct Sides {
    policy: Option<usize>,
    conflict: bool,
    moves: bool,
    unsettled: bool,
    failed: bool,
    unavailable: bool,
    carries: bool,
}

impl Sides {
    pub(super) fn of(traits: &Traits, snapshot: &Snapshot) -> Self {
        let decided = match traits.selection {
            Selection::One(policy) => snapshot.policies.get(policy).is_some_and(|policy| policy.spec.is_ok()),
            Selection::None | Selection::Conflict(..) => false,
        };
        let settled = decided
            && traits.live
            && traits.of_policy
            && !traits.deleting
            && !traits.cordoned_by_us
            && !traits.truce
            && !traits.on_trial
            && !matches!(traits.goal, Some(Goal::Booted | Goal::Reverted));
        Self {
            policy: traits.policy,
            conflict: matches!(traits.selection, Selection::Conflict(..)),
            moves: traits.moves,
            unsettled: !traits.moves && (!settled || traits.unreadable),
            failed: traits.has_failed,
            unavailable: traits.unavailable,
            carries: traits.control_plane || traits.etcd != EtcdMember::None,
        }
    }
}

/// The nodes of one policy.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Those that count for its budgets, in the snapshot's order.
    pub(super) nodes: Vec<usize>,
    /// Their places in `nodes`, by their lot.
    pub(super) by_lot: Vec<usize>,
}

/// All lists.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// By policy.
    pub(super) members: Vec<Members>,
    /// Nodes that two policies select.
    pub(super) conflicts: Vec<usize>,
    /// Nodes with a grant.
    pub(super) moving: Vec<usize>,
    /// Nodes without one of which something has to be set right, or said that is no matter of gates.
    pub(super) unsettled: Vec<usize>,
    /// Nodes whose agents report releases that failed.
    pub(super) failed: Vec<usize>,
    /// Nodes that are not Ready, cordoned by anybody, or granted.
    pub(super) unavailable: Vec<usize>,
    /// Nodes with a control plane or a member of etcd.
    pub(super) carriers: Vec<usize>,
}

impl Groups {
    /// Sorts nodes into lists, by what follows from each; `by_lot` are all nodes by their lot.
    pub(super) fn of<'t>(
        snapshot: &Snapshot,
        traits: impl ExactSizeIterator<Item = &'t Traits>,
        by_lot: &[usize],
    ) -> Self {
        let mut out = Self::default();
        out.members.resize_with(snapshot.policies.len(), Members::default);
        // Each node's place among its policy's members.
        let mut places = vec![None; traits.len()];
        for ((index, traits), place) in traits.enumerate().zip(&mut places) {
            let sides = Sides::of(traits, snapshot);
            if let Some((policy, members)) =
                sides.policy.and_then(|policy| Some((policy, out.members.get_mut(policy)?)))
            {
                *place = Some((policy, members.nodes.len()));
                members.nodes.push(index);
            }
            for (stands, list) in [
                (sides.conflict, &mut out.conflicts),
                (sides.moves, &mut out.moving),
                (sides.unsettled, &mut out.unsettled),
                (sides.failed, &mut out.failed),
                (sides.unavailable, &mut out.unavailable),
                (sides.carries, &mut out.carriers),
            ] {
                if stands {
                    list.push(index);
                }
            }
        }
        for (policy, place) in by_lot.iter().filter_map(|index| *places.get(*index)?) {
            if let Some(members) = out.members.get_mut(policy) {
                members.by_lot.push(place);
            }
        }
        out
    }
}
