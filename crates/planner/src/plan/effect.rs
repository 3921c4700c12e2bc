//! What an action does to a NodeUpdate's spec, as a pure function: the operator writes its result, the simulator
//! applies it, and nobody else knows how an action looks in the object.

use super::Action;
use bascule_api::{Disruption, DisruptionOutcome, Goal, Grant, LastDisruption, NodeUpdateSpec, PackFallback};

/// Stands for the boot that a grant was given for, where that is not known any more: no machine boots so.
pub const ADOPTED_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// The spec of a NodeUpdate that is created.
#[must_use]
pub fn initial_spec(policy: &str) -> NodeUpdateSpec {
    NodeUpdateSpec {
        policy: policy.to_owned(),
        goal: Goal::Idle,
        release: None,
        grant: None,
        disruption: None,
        last_disruption: None,
        pack_fallback: PackFallback::default(),
        retry: None,
    }
}

impl Action {
    /// The NodeUpdate's spec after this action; `None` for actions that do not change one.
    #[must_use]
    pub fn spec_after(&self, before: &NodeUpdateSpec) -> Option<NodeUpdateSpec> {
        let mut spec = before.clone();
        match self {
            Self::SetPolicy { policy, .. } => spec.policy.clone_from(policy),
            Self::Stage { policy, release, pack_fallback, .. } => {
                spec.policy.clone_from(policy);
                spec.goal = Goal::Staged;
                spec.release = Some(release.clone());
                spec.pack_fallback = *pack_fallback;
            }
            Self::Retry { at, .. } => {
                spec.retry = Some(*at);
                if let Some(last) = &mut spec.last_disruption {
                    last.given_up = 0;
                }
            }
            Self::Rest { .. } => rest(&mut spec),
            Self::Adopt { release, generation, cause, was_cordoned, at, .. } => {
                spec.goal = Goal::Booted;
                spec.release = Some(release.clone());
                spec.grant =
                    Some(Grant { boot_id: ADOPTED_BOOT.to_owned(), generation: *generation, accept_state: false });
                spec.disruption = Some(Disruption {
                    granted_at: *at,
                    was_cordoned: *was_cordoned,
                    cause: cause.clone(),
                    drain_started_at: Some(*at),
                    budgets_open_within: None,
                    closed_budgets: Vec::new(),
                    emptied_at: None,
                    drained_at: Some(*at),
                    hooks_done: Vec::new(),
                    daemon_sets: Vec::new(),
                });
            }
            Self::Grant {
                boot_id,
                generation,
                cause,
                was_cordoned,
                at,
                drain_begins,
                budgets_open_within,
                closed_budgets,
                daemon_sets,
                accept_state,
                ..
            } => {
                spec.grant =
                    Some(Grant { boot_id: boot_id.clone(), generation: *generation, accept_state: *accept_state });
                spec.disruption = Some(Disruption {
                    granted_at: *at,
                    was_cordoned: *was_cordoned,
                    cause: cause.clone(),
                    drain_started_at: drain_begins.then_some(*at),
                    budgets_open_within: *budgets_open_within,
                    closed_budgets: closed_budgets.clone(),
                    emptied_at: None,
                    drained_at: None,
                    hooks_done: Vec::new(),
                    daemon_sets: daemon_sets.clone(),
                });
            }
            Self::NoteHook { hook, .. } => {
                if let Some(disruption) = &mut spec.disruption
                    && !disruption.hooks_done.contains(hook)
                {
                    disruption.hooks_done.push(hook.clone());
                }
            }
            Self::BeginDrain { at, .. } => {
                if let Some(disruption) = &mut spec.disruption {
                    disruption.drain_started_at.get_or_insert(*at);
                }
            }
            Self::Emptied { at, .. } => {
                if let Some(disruption) = &mut spec.disruption {
                    disruption.emptied_at.get_or_insert(*at);
                }
            }
            Self::Boot { drained_at, daemon_sets, .. } => {
                spec.goal = Goal::Booted;
                if let Some(disruption) = &mut spec.disruption {
                    disruption.drained_at.get_or_insert(*drained_at);
                    disruption.daemon_sets.clone_from(daemon_sets);
                }
            }
            Self::Retract { goal: Goal::Idle, .. } => rest(&mut spec),
            Self::Retract { goal, .. } => spec.goal = *goal,
            Self::Commit { release, .. } => {
                spec.goal = Goal::Committed;
                if let Some(release) = release {
                    spec.release = Some(release.clone());
                }
            }
            Self::Revert { release, drained_at, daemon_sets, .. } => {
                spec.goal = Goal::Reverted;
                spec.release = Some(release.clone());
                if let (Some(disruption), Some(at)) = (&mut spec.disruption, drained_at) {
                    disruption.drained_at.get_or_insert(*at);
                    disruption.daemon_sets.clone_from(daemon_sets);
                }
            }
            Self::FreeGrant { outcome, version, at, goal, gate, message, .. } => {
                let before = spec.last_disruption.as_ref().map_or(0, |last| last.given_up);
                let given_up = match outcome {
                    DisruptionOutcome::DrainFailed
                    | DisruptionOutcome::NotRebooted
                    | DisruptionOutcome::Uncordoned
                    | DisruptionOutcome::Interrupted => before.saturating_add(1),
                    DisruptionOutcome::Withdrawn => before,
                    DisruptionOutcome::Committed
                    | DisruptionOutcome::RolledBack
                    | DisruptionOutcome::Failed
                    | DisruptionOutcome::Unproven => 0,
                };
                spec.disruption = None;
                spec.last_disruption = Some(LastDisruption {
                    ended_at: *at,
                    outcome: *outcome,
                    version: version.clone(),
                    given_up,
                    gate: gate.clone(),
                    message: message.chars().take(512).collect(),
                });
                if *goal == Goal::Idle { rest(&mut spec) } else { spec.goal = *goal }
            }
            Self::Remember { .. }
            | Self::AcceptRollback { .. }
            | Self::ForgetFreeze { .. }
            | Self::CreateNodeUpdate { .. }
            | Self::Taint { .. }
            | Self::Untaint { .. }
            | Self::RunHook(_)
            | Self::Truce { .. }
            | Self::EndTruce { .. }
            | Self::KeepRolloutHook(_)
            | Self::RunRolloutHook(_)
            | Self::Cordon { .. }
            | Self::Uncordon { .. } => return None,
        }
        Some(spec)
    }
}

fn rest(spec: &mut NodeUpdateSpec) {
    spec.goal = Goal::Idle;
    spec.release = None;
}
