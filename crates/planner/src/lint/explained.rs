//! Invariant 8: every node has a reason with all that belongs to it; and the plan's own order.

use super::{Violation, violation};
use crate::{Action, Plan, Report, Snapshot};
use bascule_api::{RolloutState, WaitReason};

pub(super) fn check(snapshot: &Snapshot, plan: &Plan, report: &Report, found: &mut Vec<Violation>) {
    if report.nodes.len() != snapshot.nodes.len() {
        found.push(violation(8, "report", "does not speak of every node"));
    }
    for (node, said) in snapshot.nodes.iter().zip(&report.nodes) {
        if *node.name != *said.node {
            found.push(violation(8, &node.name, "the report speaks of another node in its place"));
        }
        let (reason, wait) = (said.wait.reason, &said.wait);
        if wait.message.is_empty() {
            found.push(violation(8, &node.name, format!("{reason} without a sentence")));
        }
        let current = reason == WaitReason::Current;
        if current && said.state != RolloutState::Current {
            found.push(violation(8, &node.name, format!("is {:?} and gives no reason", said.state)));
        }
        if needs_object(reason) && wait.object.is_none() {
            found.push(violation(8, &node.name, format!("{reason} does not name the object that causes it")));
        }
        if needs_end(reason) && wait.until.is_none() {
            found.push(violation(8, &node.name, format!("{reason} does not say when it ends")));
        }
        if wait.until.is_some_and(|until| until <= snapshot.now) && reason != WaitReason::StagingFailed {
            found.push(violation(8, &node.name, format!("{reason} should have ended at {:?}", wait.until)));
        }
        if wait.until.is_some_and(|until| until > snapshot.now && plan.wake_at.is_none_or(|wake| wake > until)) {
            found.push(violation(8, &node.name, format!("{reason} ends before the plan is made again")));
        }
    }
    let first = plan.steps.iter().position(|step| !persists(&step.action)).unwrap_or(plan.steps.len());
    if plan.steps.iter().skip(first).any(|step| persists(&step.action)) {
        found.push(violation(6, "plan", "something is remembered only after it was acted upon"));
    }
}

fn persists(action: &Action) -> bool {
    matches!(action, Action::Remember { .. } | Action::AcceptRollback { .. })
}

fn needs_object(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::Paused
            | WaitReason::Freeze
            | WaitReason::Halted
            | WaitReason::DisruptionBudget
            | WaitReason::UndrainablePod
            | WaitReason::Cordoned
            | WaitReason::PolicyConflict
            | WaitReason::InvalidPolicy
            | WaitReason::Unreadable
            | WaitReason::HealthGate
            | WaitReason::FailedHere
            | WaitReason::NodeLost
    ) && reason != WaitReason::UndrainablePod
}

fn needs_end(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::Freeze
            | WaitReason::MinimumAge
            | WaitReason::RollbackRetention
            | WaitReason::WaveSoak
            | WaitReason::NodeSoak
    )
}
