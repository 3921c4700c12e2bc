//! The operator's part of a node's status, for people.

use crate::{ObjectRef, Time, WaitReason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The operator's explanation of what a node does or waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// What the node does.
    pub state: RolloutState,
    /// Why.
    pub reason: WaitReason,
    /// In a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The object that causes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
    /// When it ends, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The gates that hold, and last the one that does not, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub passed_gates: Vec<String>,
    /// How far the drain is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
}

/// What a node does, as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RolloutState {
    /// Runs what it should.
    Current,
    /// Downloads and verifies.
    Staging,
    /// Has something to do and may not yet.
    Waiting,
    /// Is being emptied.
    Draining,
    /// Arms, reboots, comes up.
    Rebooting,
    /// Runs the release, not committed.
    Trial,
    /// Goes back.
    Reverting,
    /// Came back from a failed release, or can't go on without a person.
    Failed,
    /// No agent has reported.
    Unknown,
}

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainProgress {
    /// Pods that have to go, in all.
    #[schemars(range(min = 0, max = 100_000))]
    pub pods: u32,
    /// Pods that are gone.
    #[schemars(range(min = 0, max = 100_000))]
    pub gone: u32,
}
