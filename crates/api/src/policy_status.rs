//! What the operator says about a policy. It is also the policy's memory: blocked releases and failures live here, so
//! that they survive restarts of everything.

use crate::{Digest, NodeError, ObjectRef, Severity, Time, Version, WaitReason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator says about a policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdatePolicyStatus {
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The release that nodes are to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ReleaseInfo>,
    /// The release before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<ReleaseInfo>,
    /// Nodes by state.
    #[serde(default)]
    pub counts: Counts,
    /// Texts for `kubectl get`.
    #[serde(default)]
    pub columns: Columns,
    /// The wave in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<WaveStatus>,
    /// The waves that were complete; they hold nobody back again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_waves: Option<CompleteWaves>,
    /// The open window, or else the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowStatus>,
    /// What holds the policy as a whole back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
    /// What is known of the release repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryStatus>,
    /// Releases that are never installed again by this policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub blocked: Vec<BlockedRelease>,
    /// Failures of the target release, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub failures: Vec<PolicyFailure>,
    /// The entries of `spec.retries` that were done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub retried: Vec<Retry>,
    /// What drains, boots and health checks took lately, in seconds; the planner fits nodes into windows with it.
    #[serde(default)]
    pub timings: Timings,
    /// The maintenance that is planned or under way, of a policy with hooks for whole rollouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    /// How many of them there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub maintenances: i64,
    /// The nodes of the whole cluster that were seen with a control plane or a member of etcd, until a person says in
    /// `spec.removedClusterMembers` that they were taken out for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub cluster_members: Vec<ClusterMember>,
    /// Past rollouts, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub history: Vec<HistoryEntry>,
    /// Conditions; see the list of constants in the API's documentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A node that carries the cluster itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMember {
    /// The node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Whether a member of etcd was seen on it; else a control plane was.
    #[serde(default)]
    pub etcd: bool,
    /// Whether it was seen although `spec.removedClusterMembers` named it. Until it is taken out of that list, the list says
    /// nothing of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
}

/// A person's word that a node tries again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// The node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// When it was said. Another time is another word; nothing is compared with it.
    pub at: Time,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub reason: Option<String>,
}

/// A stretch of time in which nodes are disrupted, with hooks before the first and after the last of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Maintenance {
    /// Counts them.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// The release that it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// When it was announced.
    pub planned_at: Time,
    /// When the hooks before it were done, so that nodes may be disrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at: Option<Time>,
    /// Whether the hooks after it run, so that none may be any more.
    #[serde(default)]
    pub ending: bool,
    /// Hooks that succeeded, as `beforeRollout/<name>` and `afterRollout/<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hooks_done: Vec<String>,
    /// Why a hook of it failed, until that is run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub failed: Option<String>,
}

/// A release as people know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseInfo {
    /// The version.
    pub version: Version,
    /// The digest of its manifest.
    pub digest: Digest,
    /// How urgent it is.
    pub severity: Severity,
    /// When it was published.
    pub published_at: Time,
    /// The state version that it declares. Absent counts as 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub state_version: Option<u32>,
}

/// Nodes by state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All nodes of the policy.
    #[serde(default)]
    pub nodes: u32,
    /// Nodes that run the target release, committed.
    #[serde(default)]
    pub updated: u32,
    /// Nodes that hold the target release in their inactive slot.
    #[serde(default)]
    pub staged: u32,
    /// Nodes with a grant.
    #[serde(default)]
    pub in_progress: u32,
    /// Nodes that wait.
    #[serde(default)]
    pub waiting: u32,
    /// Nodes on which the target release failed.
    #[serde(default)]
    pub failed: u32,
    /// Nodes that are unavailable for whatever reason.
    #[serde(default)]
    pub unavailable: u32,
}

/// Texts for `kubectl get`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Columns {
    /// E.g. `12/40`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub updated: String,
    /// E.g. `Mon 2026-11-30 22:00 CET`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub next_window: String,
    /// E.g. `MaintenanceWindow until 2026-11-23T21:00:00Z`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub waits_for: String,
}

/// A wave's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaveStatus {
    /// The wave's name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its place, from 1.
    pub index: u32,
    /// How many waves there are.
    pub of: u32,
    /// Nodes of the wave that are done.
    pub done: u32,
    /// Nodes of the wave.
    pub nodes: u32,
    /// When its soak ends, if it soaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak_until: Option<Time>,
}

/// The waves of a release that were complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CompleteWaves {
    /// The release. With another target all waves begin anew.
    pub version: Version,
    /// Those that were complete at some time, first to last.
    #[schemars(length(max = 16))]
    pub waves: Vec<CompleteWave>,
}

/// A wave that was complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CompleteWave {
    /// The wave's name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// When its nodes ran the release first. Its soak counts from then.
    pub complete_at: Time,
}

/// A maintenance window in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WindowStatus {
    /// Whether it is open.
    pub open: bool,
    /// When it opens or opened.
    pub start: Time,
    /// When it closes; absent where windows follow each other without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
}

/// What holds a policy back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitsFor {
    /// The reason that most of its waiting nodes share.
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
}

/// What is known of the release repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryStatus {
    /// When valid metadata was read last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<Time>,
    /// When the metadata expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// The version of the TUF root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_version: Option<i64>,
    /// The version of the TUF timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_version: Option<i64>,
    /// Why the last reading failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
}

/// A release that is never installed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockedRelease {
    /// The version.
    pub version: Version,
    /// When it was blocked.
    pub at: Time,
    /// By what: `FailureThreshold`, or the Rollback and its user.
    #[schemars(length(max = 320))]
    pub by: String,
    /// Why.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// A failure of a release on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyFailure {
    /// The release.
    pub version: Version,
    /// The node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// When.
    pub at: Time,
    /// The kind.
    pub category: NodeError,
    /// What was seen.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// What the steps of an update took lately, in seconds: the higher of the last values and a slowly falling average, so
/// that a window is rather left unused than overrun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// From the cordon until the node was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// From the end of the drain until the agent reported from the new boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_seconds: Option<u32>,
    /// From then until everything was healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_seconds: Option<u32>,
    /// When the youngest of the nodes that this was learned from was empty.
    // Only a node that was empty after that lets the values fall: a commit is planned again while it is being written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_from: Option<Time>,
}

/// A past rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The release.
    pub version: Version,
    /// When its first node was granted.
    pub started_at: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// How.
    pub outcome: Outcome,
    /// How many nodes ran it at the end.
    #[serde(default)]
    pub nodes: u32,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// It still runs.
    Running,
    /// Every node runs the release.
    Done,
    /// A newer release took its place.
    Superseded,
    /// The release was blocked after failures.
    Blocked,
    /// A person rolled it back.
    RolledBack,
}
