//! Events for explanations that ask for people, which no action of ours marks.

use super::StatusWriter;
use crate::{
    events::{About, Notice},
    gather::Key,
};
use bascule_api::{ObjectRef, Rollout, RolloutState, WaitReason};
use bascule_planner::snapshot::Node;

impl StatusWriter {
    /// Tells people of an explanation that asks for them.
    pub(super) fn tell_transition(&self, node: &Node, before: Option<&Rollout>, after: &Rollout) {
        if before.is_some_and(|before| before.state == after.state && before.reason == after.reason) {
            return;
        }
        if let Some(reason) = warning(after) {
            self.tell(node, reason, true, &after.message, after.object.as_ref());
        }
    }

    fn tell(&self, node: &Node, reason: &'static str, warning: bool, note: &str, related: Option<&ObjectRef>) {
        let update = self.writer.world.updates.get(&Key::cluster(&node.name));
        let own = update.map(|update| About::own("NodeUpdate", &update.name, &update.uid));
        for about in [Some(About::node(&node.name, &node.uid)), own].into_iter().flatten() {
            let (note, related) = (note.to_owned(), related.cloned());
            self.writer.events.tell(Notice { about, warning, reason, action: "Observe", note, related });
        }
    }
}

fn warning(after: &Rollout) -> Option<&'static str> {
    match after.reason {
        WaitReason::NodeLost => Some("NodeLost"),
        WaitReason::AgentNotReporting if after.state == RolloutState::Failed => Some("AgentNotReporting"),
        WaitReason::HealthGate | WaitReason::InvalidPolicy | WaitReason::NotSelected
            if after.state == RolloutState::Trial =>
        {
            Some("TrialHeld")
        }
        WaitReason::Hook if after.state == RolloutState::Failed => Some("HookFailed"),
        WaitReason::DrainHeld => Some("DrainHeld"),
        WaitReason::WriteRefused => Some("WriteRefused"),
        WaitReason::StagingFailed => Some("StagingFailed"),
        WaitReason::BootCountingBroken => Some("BootCountingBroken"),
        WaitReason::PolicyConflict => Some("PolicyConflict"),
        WaitReason::Unreadable => Some("Unreadable"),
        WaitReason::UndrainablePod => Some("UndrainablePod"),
        WaitReason::DisruptionBudget if after.state == RolloutState::Draining => Some("DrainBlocked"),
        _ => None,
    }
}
