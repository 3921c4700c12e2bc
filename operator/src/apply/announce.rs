//! What is said about a step that was carried out: an event for people, and an audit line for everything that touches a
//! workload or a machine.

use super::Writer;
use crate::{
    events::{About, Notice, audit},
    gather::Key,
    notify::{Kind, Notification},
};
use bascule_api::{DisruptionOutcome, ObjectRef, Version};
use bascule_planner::{Action, Step, plan::MemoryChange};

impl Writer {
    pub(super) fn announce(&self, step: &Step) {
        if let Action::Remember { policy, changes, .. } = &step.action {
            self.announce_memory(policy, changes);
            return;
        }
        if let Action::ForgetFreeze { freeze } = &step.action {
            audit(step.action.name(), "", &format!("Freeze {freeze}"), step.cause.as_ref(), &step.says);
            return;
        }
        let Some(name) = step.action.node() else { return };
        self.measure_drain(name, &step.action);
        if is_audited(&step.action) {
            audit(step.action.name(), name, &format!("Node {name}"), step.cause.as_ref(), &step.says);
        }
        if step.says.is_empty() {
            return;
        }
        let Some(node) = self.world.nodes.get(&Key::cluster(name)) else { return };
        let (reason, warning) = reason(&step.action);
        let update = self.world.updates.get(&Key::cluster(name));
        let own = update.map(|update| About::own("NodeUpdate", &update.name, &update.uid));
        // Whoever describes the Node and whoever describes its NodeUpdate reads the same.
        for about in [Some(About::node(&node.name, &node.uid)), own].into_iter().flatten() {
            self.events.tell(Notice {
                about,
                warning,
                reason,
                action: step.action.name(),
                note: step.says.clone(),
                related: step.cause.as_ref().map(|cause| cause.object.clone()),
            });
        }
    }

    fn measure_drain(&self, node: &str, action: &Action) {
        let (Action::Boot { drained_at, .. } | Action::Revert { drained_at: Some(drained_at), .. }) = action else {
            return;
        };
        let update = self.world.updates.get(&Key::cluster(node));
        let disruption = update.as_ref().and_then(|update| update.facts.spec.disruption.as_ref());
        if let Some(started) = disruption.and_then(|disruption| disruption.drain_started_at) {
            let seconds = u64::try_from(drained_at.seconds_since(started)).unwrap_or_default();
            self.metrics.drained(std::time::Duration::from_secs(seconds));
        }
    }

    fn announce_memory(&self, policy: &str, changes: &[MemoryChange]) {
        let Some(known) = self.world.policies.get(&Key::cluster(policy)) else { return };
        let about = About::own("UpdatePolicy", &known.name, &known.uid);
        for change in changes {
            let (reason, warning, note, related) = match change {
                MemoryChange::Failed(failure) => {
                    self.metrics.failed(failure.category.as_str());
                    let node = ObjectRef { kind: "Node".to_owned(), namespace: None, name: failure.node.clone() };
                    let note = format!("{} failed on {}: {}", failure.version, failure.node, failure.message);
                    ("ReleaseFailed", true, note, Some(node))
                }
                MemoryChange::Blocked { version, by, reason } => {
                    let note = format!("{version} is never installed again by this policy ({by}): {reason}");
                    ("ReleaseBlocked", true, note, None)
                }
                MemoryChange::Retried(retry) => {
                    let node = ObjectRef { kind: "Node".to_owned(), namespace: None, name: retry.node.clone() };
                    let why = retry.reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
                    (
                        "Retried",
                        false,
                        format!("what failed on {} is forgotten, as was asked{why}", retry.node),
                        Some(node),
                    )
                }
                MemoryChange::Started(version) => ("RolloutStarted", false, format!("{version} is rolled out"), None),
                MemoryChange::Ended(version, outcome) => {
                    ("RolloutEnded", false, format!("the rollout of {version} ended: {outcome:?}"), None)
                }
                MemoryChange::Maintenance(reason, note) if !note.is_empty() => {
                    (*reason, *reason == "MaintenanceHookFailed", note.clone(), None)
                }
                MemoryChange::Maintenance(..) | MemoryChange::Timed | MemoryChange::Members | MemoryChange::Waves => {
                    continue;
                }
            };
            if let Some((kind, release)) = notified(change) {
                let (policy, release, message) = (known.name.clone(), Some(release.clone()), note.clone());
                self.notifier.tell(Notification { kind, policy, release, message });
            }
            self.events.tell(Notice { about: about.clone(), warning, reason, action: "Remember", note, related });
        }
    }
}

/// What a webhook is told of, and about which release.
fn notified(change: &MemoryChange) -> Option<(Kind, &Version)> {
    match change {
        MemoryChange::Started(version) => Some((Kind::Began, version)),
        MemoryChange::Ended(version, outcome) => Some((Kind::from(*outcome), version)),
        MemoryChange::Blocked { version, .. } => Some((Kind::Blocked, version)),
        MemoryChange::Failed(_)
        | MemoryChange::Retried(_)
        | MemoryChange::Maintenance(..)
        | MemoryChange::Timed
        | MemoryChange::Members
        | MemoryChange::Waves => None,
    }
}

const fn is_audited(action: &Action) -> bool {
    matches!(
        action,
        Action::Grant { .. }
            | Action::Adopt { .. }
            | Action::Cordon { .. }
            | Action::Uncordon { .. }
            | Action::Boot { .. }
            | Action::Retract { .. }
            | Action::Commit { .. }
            | Action::Revert { .. }
            | Action::RunHook(_)
            | Action::FreeGrant { .. }
            | Action::Retry { .. }
    )
}

/// The event's reason, and whether somebody should look.
const fn reason(action: &Action) -> (&'static str, bool) {
    match action {
        Action::Remember { .. } | Action::AcceptRollback { .. } => ("Remembered", false),
        Action::ForgetFreeze { .. } => ("RecordRemoved", false),
        Action::CreateNodeUpdate { .. } => ("Enrolled", false),
        Action::Adopt { .. } => ("Adopted", true),
        Action::SetPolicy { .. } => ("PolicyChanged", false),
        Action::Retry { .. } => ("Retrying", false),
        Action::Taint { .. } => ("Tainted", false),
        Action::Untaint { .. } => ("Untainted", false),
        Action::Stage { .. } => ("Staging", false),
        Action::Rest { .. } => ("AtRest", false),
        Action::Grant { .. } => ("Granted", false),
        Action::KeepRolloutHook(_) => ("HookKept", false),
        Action::RunHook(_) | Action::RunRolloutHook(_) => ("HookStarted", false),
        Action::NoteHook { .. } => ("HookDone", false),
        Action::BeginDrain { .. } => ("DrainStarted", false),
        Action::Truce { .. } => ("TruceBegun", false),
        Action::EndTruce { .. } => ("TruceEnded", false),
        Action::Emptied { .. } => ("Emptied", false),
        Action::Cordon { .. } => ("Cordoned", false),
        Action::Boot { .. } => ("Drained", false),
        Action::Retract { .. } => ("Retracted", true),
        Action::Commit { .. } => ("Committing", false),
        Action::Revert { .. } => ("Reverting", true),
        Action::Uncordon { .. } => ("Uncordoned", false),
        Action::FreeGrant { outcome, .. } => match outcome {
            DisruptionOutcome::Committed => ("Updated", false),
            DisruptionOutcome::RolledBack => ("RolledBack", false),
            DisruptionOutcome::Failed => ("Reverted", true),
            DisruptionOutcome::Unproven => ("Unproven", true),
            DisruptionOutcome::DrainFailed => ("DrainFailed", true),
            DisruptionOutcome::NotRebooted => ("NotRebooted", true),
            DisruptionOutcome::Interrupted => ("Interrupted", true),
            DisruptionOutcome::Uncordoned => ("UncordonedByOthers", true),
            DisruptionOutcome::Withdrawn => ("Withdrawn", false),
        },
    }
}
