//! What the operator is to do: the whole vocabulary of its effects, each with what it expects to find.

mod action;
mod effect;
mod expect;
#[cfg(test)]
pub(crate) mod samples;
mod schedule;

pub use action::{Action, HookOrder, Judged, MemoryChange, Taint};
pub use effect::{ADOPTED_BOOT, initial_spec};
pub use expect::{Cordon, Expect, Mismatch};
pub(crate) use schedule::HELD_FOR;
pub use schedule::{Batch, Priority, Queue, Schedule};

use bascule_api::{Cause, Time};
use std::sync::Arc;

/// What to do now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Steps in their order. Steps of different nodes do not depend on each other, with one exception:
    /// [`Action::Remember`] comes first and must be written before anything else is done (persist, then act). When a
    /// step's expectation does not hold, the remaining steps of that node are dropped and a new plan is made.
    pub steps: Vec<Step>,
    /// Which of them are begun now, and in which order.
    pub schedule: Schedule,
    /// The nodes whose pods may be evicted now: standing orders. A drain that is not listed any more is stopped.
    pub drains: Vec<Arc<DrainOrder>>,
    /// The health gates whose answers the next plan needs. Others need not be asked.
    pub questions: Vec<GateQuestion>,
    /// When a new plan may differ although no fact changed; `None`: never.
    pub wake_at: Option<Time>,
}

impl Plan {
    /// Whether there is nothing to do now (orders that stand and questions apart).
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.steps.is_empty()
    }
}

/// One action with what it expects and what is to be said about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// What must hold when it is done. Checked against the newest known object; the write itself then carries that
    /// object's resourceVersion.
    pub expect: Expect,
    /// Who or what caused it, for the audit line.
    pub cause: Option<Cause>,
    /// In a sentence, for the event and the audit line; empty where nothing is worth saying.
    pub says: String,
}

/// A node that may be emptied now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    /// The node.
    pub node: String,
    /// The generation of the grant it is emptied for.
    pub grant: i64,
    /// The policy whose `spec.drain` holds.
    pub policy: String,
    /// When the drain began: pods that came later and tolerate the cordon are left alone.
    pub begun: Time,
    /// Until when. At that time the next plan decides what happens.
    pub until: Time,
    /// How pods are removed.
    pub mode: DrainMode,
}

/// How pods are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DrainMode {
    /// By eviction only.
    Evict,
    /// What is left is deleted with its grace period (`spec.drain.onTimeout: Delete`, after the timeout).
    DeleteRest,
    /// Not at all for now, and what the drain knows is kept: before it asks anybody, while a cordon that a person lifted is put
    /// back, or while the policy holds (`spec.drain.onTimeout: Hold`, after the timeout).
    Keep,
}

/// A health gate whose answer is needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GateQuestion {
    /// The policy.
    pub policy: String,
    /// The gate's name, see [`crate::ValidPolicy::gates`].
    pub gate: String,
    /// The node, for a gate that is asked for a node.
    pub node: Option<String>,
}

/// The text of the annotation on a node that we cordon: which grant did it.
#[must_use]
pub fn cordon_mark(node_update: &str, grant: i64) -> String {
    format!("{node_update}/{grant}")
}
