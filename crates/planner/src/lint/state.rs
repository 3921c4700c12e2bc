//! What a machine's state was used with, on every grant of a plan.

use super::{Violation, violation};
use crate::{
    Snapshot,
    snapshot::{Node, PolicyFacts},
};
use bascule_api::{Cause, Version};

/// Nobody is drained for a release that is made for an older state than the machine was used with, unless the Rollback that asks
/// for it accepts that.
pub(super) fn check(
    snapshot: &Snapshot,
    (node, policy): (&Node, Option<&PolicyFacts>),
    cause: &Cause,
    installs: Option<&Version>,
    found: &mut Vec<Violation>,
) {
    let Some(status) = node.live_update().map(|update| &update.status) else { return };
    let made_for = match (installs, &status.booted, &status.slots) {
        (Some(version), ..) => policy.and_then(|policy| policy.offer.release(version)?.state_version),
        (None, Some(booted), Some(slots)) => slots.get(booted.slot.other()).state_version,
        (None, ..) => return,
    };
    let accepted = snapshot.rollbacks.iter().any(|rollback| {
        cause.object.kind == "Rollback" && rollback.name == cause.object.name && rollback.spec.accept_state
    });
    if made_for < status.state_version && !accepted {
        found.push(violation(0, &node.name, "goes back over its state version, which nobody accepted"));
    }
}
