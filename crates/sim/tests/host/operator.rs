//! As much of an operator as one node sees: it reads the agent's status and writes the spec. It is not on the node, so
//! no power cut touches it; and it gives a grant for the boot it sees, once.

use bascule_agent::core::Desired;
use bascule_api::{Counting, Goal, Grant, NodeUpdateStatus, PackFallback, ReleaseRef};

/// What the operator does with a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Commits it.
    Commit,
    /// Gives it up.
    Revert,
    /// Says nothing: guard or boot loader must end it.
    Silence,
}

/// The operator's side of one node.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    pub(crate) target: ReleaseRef,
    pub(crate) verdict: Verdict,
    pub(crate) goal: Goal,
    pub(crate) grant: Option<Grant>,
    /// Whether it gives no grant where boot control is reported broken, as the planner does.
    pub(crate) waits_for_boot_control: bool,
    generation: i64,
    grants: i64,
}

impl Operator {
    pub(crate) fn new(target: ReleaseRef, verdict: Verdict) -> Self {
        Self {
            target,
            verdict,
            goal: Goal::Staged,
            grant: None,
            waits_for_boot_control: true,
            generation: 1,
            grants: 0,
        }
    }

    /// The spec as the agent sees it.
    pub(crate) fn desired(&self) -> Desired {
        Desired {
            uid: "5f1c1b1e-0000-4000-8000-000000000001".to_owned(),
            generation: self.generation,
            goal: self.goal,
            release: (self.goal != Goal::Idle).then(|| self.target.clone()),
            grant: self.grant.clone(),
            disruption_begun: self.grant.is_some(),
            pack_fallback: PackFallback::Allow,
            retry: None,
        }
    }

    /// Reads a status; whether the spec changed.
    pub(crate) fn react(&mut self, status: &NodeUpdateStatus) -> bool {
        let (Some(boot_id), Some(booted)) = (&status.boot_id, &status.booted) else { return false };
        let runs = booted.version == self.target.version;
        let failed = status.failed_releases.iter().any(|failed| failed.digest == self.target.digest);
        let staged = status.staged.as_ref().is_some_and(|staged| staged.digest == self.target.digest);
        // As the planner's gate: no node is drained for a trial that would not end by itself.
        let broken = status.boot_control.as_ref().is_some_and(|control| control.counting == Counting::Broken);
        let (goal, grant) = if failed {
            // Never again on this node.
            (Goal::Idle, None)
        } else if runs && status.trial.is_some() {
            match self.verdict {
                Verdict::Commit => (Goal::Committed, None),
                Verdict::Revert => (Goal::Reverted, None),
                Verdict::Silence => (self.goal, self.grant.clone()),
            }
        } else if runs {
            (Goal::Committed, None)
        } else if staged && !(broken && self.waits_for_boot_control) {
            let given = self.grant.clone().filter(|grant| grant.boot_id == *boot_id);
            let grant = given.unwrap_or_else(|| {
                self.grants = self.grants.max(status.last_grant.unwrap_or(0)) + 1;
                Grant { boot_id: boot_id.clone(), generation: self.grants, accept_state: false }
            });
            (Goal::Booted, Some(grant))
        } else {
            (Goal::Staged, None)
        };
        let changed = (goal, &grant) != (self.goal, &self.grant);
        if changed {
            (self.goal, self.grant) = (goal, grant);
            self.generation += 1;
        }
        changed
    }
}
