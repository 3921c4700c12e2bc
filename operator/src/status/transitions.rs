//! Events and measurements for what a node does by itself, which no action of ours marks.

use super::StatusWriter;
use crate::events::{About, Notice};
use bascule_api::{Rollout, RolloutState, Time, WaitReason};
use bascule_planner::snapshot::Node;

impl StatusWriter {
    /// Tells what changed between two explanations of a node.
    pub(super) fn tell_transition(&self, node: &Node, before: Option<&Rollout>, after: &Rollout) {
        let Some((reason, warning, note)) = transition(node, before, after, Time::new(self.clock.now())) else {
            return;
        };
        if reason == "Booted"
            && let Some(seconds) = since_drained(node, Time::new(self.clock.now()))
        {
            self.writer.metrics.booted(std::time::Duration::from_secs(seconds));
        }
        self.writer.events.tell(Notice {
            about: About::node(&node.name, &node.uid),
            warning,
            reason,
            action: "Observe",
            note,
            related: after.object.clone(),
        });
    }
}

fn transition(
    node: &Node,
    before: Option<&Rollout>,
    after: &Rollout,
    now: Time,
) -> Option<(&'static str, bool, String)> {
    if before.is_some_and(|before| before.state == after.state && before.reason == after.reason) {
        return None;
    }
    let came = |state| before.is_some_and(|before| before.state != state) && after.state == state;
    if came(RolloutState::Trial) {
        let status = &node.update.as_ref()?.status;
        let booted = status.booted.as_ref()?;
        let after_reboot =
            since_drained(node, now).map(|seconds| format!(", {seconds} s after the drain")).unwrap_or_default();
        return Some(("Booted", false, format!("{} in slot {} as a trial{after_reboot}", booted.version, booted.slot)));
    }
    let warning = match after.reason {
        WaitReason::NodeLost => "NodeLost",
        WaitReason::DrainHeld => "DrainHeld",
        WaitReason::StagingFailed => "StagingFailed",
        WaitReason::BootCountingBroken => "BootCountingBroken",
        WaitReason::PolicyConflict => "PolicyConflict",
        WaitReason::UndrainablePod => "UndrainablePod",
        WaitReason::DisruptionBudget if after.state == RolloutState::Draining => "DrainBlocked",
        _ => return None,
    };
    Some((warning, true, after.message.clone()))
}

fn since_drained(node: &Node, now: Time) -> Option<u64> {
    let drained = node.update.as_ref()?.spec.disruption.as_ref()?.drained_at?;
    u64::try_from(now.seconds_since(drained)).ok()
}
