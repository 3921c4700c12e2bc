//! Events for explanations that ask for people, which no action of ours marks.

use super::StatusWriter;
use crate::{
    events::{About, Notice},
    gather::Key,
    notify::{Kind, Notification, Notifier},
};
use bascule_api::{ObjectRef, Rollout, RolloutState, UpdatePolicyStatus, WaitReason, conditions::HALTED};
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

/// Tells a webhook that a policy starts no more nodes.
pub(super) fn tell_halt(notifier: &Notifier, policy: &str, before: &UpdatePolicyStatus, after: &UpdatePolicyStatus) {
    if let Some(message) = halts(before, after) {
        notifier.tell(Notification {
            kind: Kind::Halted,
            policy: policy.to_owned(),
            release: after.target.as_ref().map(|target| target.version.clone()),
            message: message.to_owned(),
        });
    }
}

/// Why a policy halts that did not before.
fn halts<'a>(before: &UpdatePolicyStatus, after: &'a UpdatePolicyStatus) -> Option<&'a str> {
    fn halted(status: &UpdatePolicyStatus) -> Option<&str> {
        let halted = status.conditions.iter().find(|one| one.type_ == HALTED && one.status == "True");
        halted.map(|one| one.message.as_str())
    }
    halted(after).filter(|_| halted(before).is_none())
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_halt_is_told_when_it_begins() {
        let status = |halted: &str| -> UpdatePolicyStatus {
            let condition = json!({"type": HALTED, "status": halted, "reason": "FailureThreshold",
                "message": "41.3.0 failed on 2 nodes", "lastTransitionTime": "2026-11-28T23:00:00Z"});
            serde_json::from_value(json!({"conditions": [condition]})).unwrap()
        };
        let none = UpdatePolicyStatus::default();
        assert_eq!(halts(&none, &status("True")), Some("41.3.0 failed on 2 nodes"));
        assert_eq!(halts(&status("False"), &status("True")), Some("41.3.0 failed on 2 nodes"));
        assert_eq!(halts(&status("True"), &status("True")), None, "once");
        assert_eq!(halts(&status("True"), &status("False")), None);
    }
}
