//! What the facts of a view say, counted apart from the planner.

use bascule_api::{IntOrPercent, SlotState, Version};
use bascule_planner::{
    Snapshot,
    snapshot::{Cordon, EtcdMember, Node, PolicyFacts, UpdateFacts},
};

/// The policies that claim a node: those that select it, and one that can't be used and cared for it before.
pub(super) fn claiming<'v>(view: &'v Snapshot, node: &Node) -> Vec<&'v PolicyFacts> {
    let named = node.live_update().map(|update| update.spec.policy.as_str());
    let claims = |policy: &&PolicyFacts| match &policy.spec {
        Ok(valid) => valid.spec.node_selector.matches(&node.labels),
        Err(_) => named == Some(policy.name.as_str()),
    };
    view.policies.iter().map(|policy| &**policy).filter(claims).collect()
}

/// The policy whose node it is: while it is disrupted the one that it was granted by, else the only one that claims it.
pub(super) fn policy_of<'v>(view: &'v Snapshot, node: &Node) -> Option<&'v PolicyFacts> {
    let moving = node.live_update().filter(|update| update.spec.disruption.is_some());
    let named = |update: &UpdateFacts| view.policies.iter().find(|policy| policy.name == update.spec.policy);
    if let Some(policy) = moving.and_then(named) {
        return Some(&**policy);
    }
    match claiming(view, node)[..] {
        [policy] => Some(policy),
        _ => None,
    }
}

/// The nodes of a policy.
pub(super) fn members<'v>(view: &'v Snapshot, policy: &str) -> Vec<&'v Node> {
    let of = |node: &&Node| policy_of(view, node).is_some_and(|of| of.name == *policy);
    view.nodes.iter().map(|node| &**node).filter(of).collect()
}

/// Whether a node takes no work for a reason that everybody can see: it is not Ready, or cordoned.
pub(super) fn down(node: &Node) -> bool {
    !node.ready.ready || matches!(node.cordon, Cordon::Ours { .. } | Cordon::Other { .. })
}

/// Whether a node is in the middle of a disruption, by its NodeUpdate.
pub(super) fn moves(node: &Node) -> bool {
    node.live_update().is_some_and(|update| update.spec.disruption.is_some())
}

/// Whether a node carries the control plane or a member of etcd.
pub(super) fn carries(node: &Node) -> bool {
    node.control_plane || node.etcd != EtcdMember::None
}

/// The release that a node runs, as its agent said.
pub(super) fn running(node: &Node) -> Option<&Version> {
    node.live_update()?.status.booted.as_ref().map(|booted| &booted.version)
}

/// Whether that is a trial.
pub(super) fn on_trial(node: &Node) -> bool {
    let Some(status) = node.live_update().map(|update| &update.status) else { return false };
    let slot = status.booted.as_ref().zip(status.slots.as_ref()).map(|(booted, slots)| slots.get(booted.slot).state);
    status.trial.is_some() || slot == Some(SlotState::Trial)
}

/// So many of some.
pub(super) fn limit(quantity: &IntOrPercent, of: usize) -> usize {
    usize::try_from(quantity.of(u32::try_from(of).unwrap_or(u32::MAX)).unwrap_or(0)).unwrap_or(0)
}

/// The value of a label; empty for a node that does not have it.
pub(super) fn label<'n>(node: &'n Node, key: &str) -> &'n str {
    node.labels.get(key).map_or("", String::as_str)
}
