//! What can be read off a node at once: which policy selects it, what it runs, what its other slot holds.

use crate::{
    Snapshot,
    snapshot::{Cordon, Node, PolicyFacts, UpdateFacts},
};
use bascule_api::{Booted, Counting, Disruption, Goal, SlotState, SlotStatus, Version};
use std::sync::Arc;

/// Which policies select a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selection {
    None,
    One(usize),
    /// Two of them; there may be more.
    Conflict(usize, usize),
}

/// Which policies' selectors match a node. Policies that are not valid select too: a node of theirs must not be taken
/// over by another one while somebody mends a typing error.
pub(super) fn select(node: &Node, policies: &[Arc<PolicyFacts>]) -> Selection {
    let mut found = Selection::None;
    for (index, policy) in policies.iter().enumerate() {
        let selects = match &policy.spec {
            Ok(valid) => valid.spec.node_selector.matches(&node.labels),
            // What an invalid policy would select is not known, but what it cares for already is.
            Err(_) => node.live_update().is_some_and(|update| update.spec.policy == policy.name),
        };
        if selects {
            match found {
                Selection::None => found = Selection::One(index),
                Selection::One(first) | Selection::Conflict(first, _) => return Selection::Conflict(first, index),
            }
        }
    }
    found
}

/// One node with what follows from its facts alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeView<'a> {
    pub(super) node: &'a Node,
    pub(super) update: Option<&'a UpdateFacts>,
    pub(super) selection: Selection,
    /// The policy whose budgets it counts for: while it moves the one that granted, else the one that selects it.
    pub(super) policy: Option<usize>,
    /// A stable random order between nodes.
    pub(super) lot: u64,
    pub(super) runs_operator: bool,
}

impl<'a> NodeView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, node: &'a Node, selection: Selection, lot: u64) -> Self {
        let update = node.live_update();
        let granted_by = update
            .filter(|update| update.spec.disruption.is_some())
            .and_then(|update| snapshot.policies.iter().position(|policy| policy.name == update.spec.policy));
        let selected = match selection {
            Selection::One(policy) => Some(policy),
            Selection::None | Selection::Conflict(..) => None,
        };
        Self {
            node,
            update,
            selection,
            policy: granted_by.or(selected),
            lot,
            runs_operator: snapshot.operator_node.as_deref() == Some(&*node.name),
        }
    }

    pub(super) fn disruption(&self) -> Option<&'a Disruption> {
        self.update.and_then(|update| update.spec.disruption.as_ref())
    }

    pub(super) fn booted(&self) -> Option<&'a Booted> {
        self.update.and_then(|update| update.status.booted.as_ref())
    }

    pub(super) fn running(&self) -> Option<&'a Version> {
        self.booted().map(|booted| &booted.version)
    }

    pub(super) fn on_trial(&self) -> bool {
        self.update.is_some_and(|update| update.status.trial.is_some() || booted_slot_is(update, SlotState::Trial))
    }

    /// Whether what runs is permanent.
    pub(super) fn committed(&self) -> bool {
        !self.on_trial() && self.update.is_some_and(|update| booted_slot_is(update, SlotState::Good))
    }

    /// What the slot that does not run holds.
    pub(super) fn other_slot(&self) -> Option<&'a SlotStatus> {
        let update = self.update?;
        let booted = update.status.booted.as_ref()?;
        update.status.slots.as_ref().map(|slots| slots.get(booted.slot.other()))
    }

    /// The release the other slot could boot at once.
    pub(super) fn way_back(&self) -> Option<&'a Version> {
        let slot = self.other_slot()?;
        let version = slot.version.as_ref()?;
        // A way back that was armed and taken back again is staged; a newer release that is staged is no way back.
        let holds = match slot.state {
            SlotState::Good => true,
            SlotState::Staged => self.running().is_some_and(|running| version < running),
            _ => false,
        };
        holds.then_some(version)
    }

    /// Whether the agent reports from the boot that the kubelet reports from.
    pub(super) fn agent_reports(&self) -> bool {
        self.update.is_some_and(|update| {
            update.status.booted.is_some() && update.status.boot_id.as_deref() == Some(self.node.boot_id.as_str())
        })
    }

    pub(super) fn counting_broken(&self) -> bool {
        self.update
            .and_then(|update| update.status.boot_control.as_ref())
            .is_some_and(|control| control.counting == Counting::Broken)
    }

    pub(super) fn cordoned_by_other(&self) -> bool {
        matches!(self.node.cordon, Cordon::Other { .. })
    }

    /// Whether nothing of the node itself keeps it from being updated.
    pub(super) fn able(&self) -> bool {
        !self.node.deleting
            && self.node.ready.ready
            && !self.cordoned_by_other()
            && self.agent_reports()
            && !self.counting_broken()
    }

    /// Whether the release in the NodeUpdate's spec is in the inactive slot, verified.
    pub(super) fn staged_as_asked(&self) -> bool {
        let Some(update) = self.update else { return false };
        let Some(asked) = &update.spec.release else { return false };
        update.spec.goal == Goal::Staged
            && update
                .status
                .staged
                .as_ref()
                .is_some_and(|staged| staged.version == asked.version && staged.digest == asked.digest)
    }
}

fn booted_slot_is(update: &UpdateFacts, state: SlotState) -> bool {
    match (&update.status.booted, &update.status.slots) {
        (Some(booted), Some(slots)) => slots.get(booted.slot).state == state,
        _ => false,
    }
}

/// FNV-1a of a seed and a text: the lot that orders nodes between which nothing else decides.
pub(super) fn lot(seed: u64, text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in text.bytes() {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    // FNV's high bits depend little on the last bytes, by which node names differ.
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^ (hash >> 32)
}
