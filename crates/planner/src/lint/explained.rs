//! Invariant 8: every node has a reason with all that belongs to it; and the plan's own order.

use super::{Violation, violation};
use crate::{Action, Plan, Report, Snapshot};
use bascule_api::{RolloutState, WaitReason};
use std::collections::BTreeSet;

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
    refused(snapshot, plan, report, found);
    let first = plan.steps.iter().position(|step| !persists(&step.action)).unwrap_or(plan.steps.len());
    if plan.steps.iter().skip(first).any(|step| persists(&step.action)) {
        found.push(violation(6, "plan", "something is remembered only after it was acted upon"));
    }
}

/// Whoever waits for a write that has failed for a while reads what the API server says, and nothing is said to be done that was not.
fn refused(snapshot: &Snapshot, plan: &Plan, report: &Report, found: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    for step in &plan.steps {
        let Some(refusal) = snapshot.refused.told(&step.action, snapshot.now) else { continue };
        let what = step.action.name();
        if let Action::KeepRolloutHook(order) | Action::RunRolloutHook(order) = &step.action {
            let mut said = report.policies.iter().filter(|said| said.policy == order.policy);
            if !said.any(|said| said.status.maintenance.as_ref().is_some_and(|open| open.failed.is_some())) {
                found.push(violation(8, &order.policy, format!("hook {} is not said to fail", order.hook)));
            }
        }
        // Of a node's steps the first that fails is what the others wait for.
        let Some(name) = step.action.node().filter(|node| seen.insert(*node)) else { continue };
        let nodes = snapshot.nodes.iter().zip(&report.nodes);
        for (node, said) in nodes.filter(|(node, _)| *node.name == *name) {
            if !said.wait.message.contains(&refusal.words) {
                found.push(violation(8, name, format!("does not tell why {what} fails: {}", said.wait.message)));
            }
            if node.granted() && said.state == RolloutState::Current {
                found.push(violation(8, name, format!("is said to be done, and {what} fails")));
            }
        }
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
