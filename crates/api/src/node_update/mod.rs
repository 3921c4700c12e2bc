//! `NodeUpdate`: what the operator and one node's agent say to each other.
//!
//! `spec` is the operator's word to the agent. `status` is the agent's word, except `status.rollout`, which is the
//! operator's explanation for people (docs/decisions/0001: two field managers, held apart by the admission policy).

mod rollout;
mod spec;
mod status;

pub use rollout::{DrainProgress, Rollout, RolloutColumns, RolloutState};
pub use spec::{
    Cause, DaemonSetBefore, Disruption, DisruptionOutcome, Goal, Grant, LastDisruption, NodeUpdate, NodeUpdateSpec,
    PackFallback, ReleaseRef,
};
pub use status::{
    BootControl, BootControlBackend, Booted, Counting, FailedRelease, LastError, ManualAction, NodeError,
    NodeUpdateStatus, SlotName, SlotState, SlotStatus, Slots, Staged, Transfer, Trial,
};
