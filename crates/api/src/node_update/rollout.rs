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
    /// Texts for `kubectl get`.
    #[serde(default, skip_serializing_if = "RolloutColumns::is_empty")]
    pub columns: RolloutColumns,
}

/// Texts for `kubectl get`. They follow from the rest, so that they never cost a write of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutColumns {
    /// The reason, where it says more than the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<WaitReason>,
}

impl RolloutColumns {
    /// What the columns say of a node.
    #[must_use]
    pub const fn of(state: RolloutState, reason: WaitReason) -> Self {
        Self { reason: if state.says(reason) { None } else { Some(reason) } }
    }

    /// Whether there is nothing in them.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.reason.is_none()
    }
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

impl RolloutState {
    /// Whether the reason is the same word again.
    #[must_use]
    pub const fn says(self, reason: WaitReason) -> bool {
        matches!(
            (self, reason),
            (Self::Current, WaitReason::Current)
                | (Self::Draining, WaitReason::Draining)
                | (Self::Rebooting, WaitReason::Rebooting)
                | (Self::Trial, WaitReason::Trial)
                | (Self::Reverting, WaitReason::Reverting)
        )
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_never_say_the_same_word_twice() {
        let column = |state, reason| RolloutColumns::of(state, reason).reason;
        for state in [
            RolloutState::Current,
            RolloutState::Staging,
            RolloutState::Waiting,
            RolloutState::Draining,
            RolloutState::Rebooting,
            RolloutState::Trial,
            RolloutState::Reverting,
            RolloutState::Failed,
            RolloutState::Unknown,
        ] {
            for reason in WaitReason::ALL {
                let same = reason.as_str() == format!("{state:?}");
                assert_eq!(column(state, *reason).is_none(), same, "{state:?} {reason}");
            }
        }
        assert_eq!(column(RolloutState::Waiting, WaitReason::Budget), Some(WaitReason::Budget));
        assert_eq!(column(RolloutState::Draining, WaitReason::DisruptionBudget), Some(WaitReason::DisruptionBudget));
    }
}
