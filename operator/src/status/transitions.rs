//! Events and measurements for what a node does by itself, which no action of ours marks.

use super::StatusWriter;
use crate::events::{About, Notice};
use bascule_api::{ObjectRef, Rollout, RolloutState, Time, WaitReason};
use bascule_planner::snapshot::Node;

impl StatusWriter {
    /// Tells that a node booted its release as a trial. `before` is what its object says: where that knows of the trial
    /// already, an earlier leader told it.
    pub(super) fn tell_boot(&self, node: &Node, before: Option<&Rollout>) {
        if before.is_none_or(|before| before.state == RolloutState::Trial) {
            return;
        }
        let Some(booted) = node.update.as_ref().and_then(|update| update.status.booted.as_ref()) else { return };
        let took = since_drained(node, Time::new(self.clock.now()));
        if let Some(seconds) = took {
            self.writer.metrics.booted(std::time::Duration::from_secs(seconds));
        }
        let after = took.map(|seconds| format!(", {seconds} s after the drain")).unwrap_or_default();
        let note = format!("{} in slot {} as a trial{after}", booted.version, booted.slot);
        self.tell(node, "Booted", false, note, None);
    }

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

fn since_drained(node: &Node, now: Time) -> Option<u64> {
    let drained = node.update.as_ref()?.spec.disruption.as_ref()?.drained_at?;
    u64::try_from(now.seconds_since(drained)).ok()
}
