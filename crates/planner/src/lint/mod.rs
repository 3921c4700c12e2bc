//! Checks the invariants on any plan, whoever made it.
//!
//! Written apart from the gates and in another way: it knows nothing of waves, choices or order, recounts everything
//! from the snapshot, and asks only whether carrying the plan out could break what docs/invariants.md promises. The
//! property tests run it on every plan of every world; the operator may run it before it acts.

mod disruption;
mod explained;
mod rollout;
mod state;

use crate::{Action, Plan, Report, Snapshot, plan::MemoryChange, snapshot::PolicyFacts};
use bascule_api::Version;
use std::{borrow::Cow, sync::Arc};

/// A promise that a plan would break.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The invariant of the architecture, by its number.
    pub invariant: u8,
    /// The node or policy.
    pub subject: String,
    /// What would happen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "invariant {} at {}: {}", self.invariant, self.subject, self.what)
    }
}

/// Every violation of the invariants 4 (budgets), 6 (failed releases), 7 (undo only our own), 8 (every wait is
/// explained) and 10 (same facts, same plan), and of the promises that a policy makes with its own fields (paused,
/// frozen, windows, minimum age, control plane).
#[must_use]
pub fn lint(snapshot: &Snapshot, plan: &Plan, report: &Report) -> Vec<Violation> {
    let mut found = Vec::new();
    let snapshot = &*forgetting(snapshot, plan);
    disruption::check(snapshot, plan, &mut found);
    rollout::check(snapshot, plan, report, &mut found);
    explained::check(snapshot, plan, report, &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

/// The facts without the failures that the plan forgets, since a node tries again by a person's word: that is written before
/// anything rests on it.
fn forgetting<'a>(snapshot: &'a Snapshot, plan: &Plan) -> Cow<'a, Snapshot> {
    let mut known = Cow::Borrowed(snapshot);
    for step in &plan.steps {
        let Action::Remember { policy, changes, .. } = &step.action else { continue };
        for change in changes {
            let MemoryChange::Retried(retry) = change else { continue };
            let facts = known.to_mut().policies.iter_mut().find(|facts| facts.name == *policy);
            if let Some(facts) = facts {
                Arc::make_mut(facts).status.failures.retain(|failure| failure.node != retry.node);
            }
        }
    }
    known
}

fn violation(invariant: u8, subject: &str, what: impl Into<String>) -> Violation {
    Violation { invariant, subject: subject.to_owned(), what: what.into() }
}

/// Whether a policy's memory forbids a release: it is blocked there, and no admin lifted that, or too many further nodes
/// failed since.
fn blocked(policy: &PolicyFacts, version: &Version) -> bool {
    let Some(block) = policy.status.blocked.iter().find(|block| block.version == *version) else { return false };
    let Ok(valid) = &policy.spec else { return true };
    let since = policy.status.failures.iter().filter(|failure| failure.version == *version && failure.at > block.at);
    !valid.spec.allowed_versions.contains(version)
        || u32::try_from(since.count()).unwrap_or(u32::MAX) >= valid.spec.failure_threshold
}
