//! Events for explanations that ask for people, which no action of ours marks.

use super::StatusWriter;
use crate::events::{About, Notice};
use bascule_api::{ObjectRef, Rollout, RolloutState, WaitReason};
use bascule_planner::snapshot::Node;

impl StatusWriter {
    /// Tells people of an explanation that asks for them.
    pub(super) fn tell_transition(&self, node: &Node, before: Option<&Rollout>, after: &Rollout) {
        if before.is_some_and(|before| before.state == after.state && before.reason == after.reason) {
            return;
        }
        if let Some(reason) = warning(after) {
            self.tell(node, reason, true, after.message.clone(), after.object.clone());
        }
    }

    fn tell(&self, node: &Node, reason: &'static str, warning: bool, note: String, related: Option<ObjectRef>) {
        let about = About::node(&node.name, &node.uid);
        self.writer.events.tell(Notice { about, warning, reason, action: "Observe", note, related });
    }
}

fn warning(after: &Rollout) -> Option<&'static str> {
    match after.reason {
        WaitReason::NodeLost => Some("NodeLost"),
        WaitReason::DrainHeld => Some("DrainHeld"),
        WaitReason::StagingFailed => Some("StagingFailed"),
        WaitReason::BootCountingBroken => Some("BootCountingBroken"),
        WaitReason::PolicyConflict => Some("PolicyConflict"),
        WaitReason::UndrainablePod => Some("UndrainablePod"),
        WaitReason::DisruptionBudget if after.state == RolloutState::Draining => Some("DrainBlocked"),
        _ => None,
    }
}
