//! The agent's word: what the machine holds, runs and fails at.

use super::Rollout;
use crate::{Architecture, Digest, RootHash, Time, Version};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the agent reports, and in `rollout` what the operator explains.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUpdateStatus {
    /// The generation of the spec the agent has acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The kernel's boot ID.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// The machine's architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The highest state version of the releases that were committed on this machine, since somebody last accepted to go back over
    /// one. A release with a lower one is refused. Absent where no release declares any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub state_version: Option<u32>,
    /// The two slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Slots>,
    /// What runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Booted>,
    /// What the inactive slot holds, verified and ready to be armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
    /// The running trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// The running transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// What went wrong last, until something succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// Releases that failed on this node and are not tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failed_releases: Vec<FailedRelease>,
    /// The last word to try again (`spec.retry`) that was followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried: Option<Time>,
    /// How the boot loader is told what to boot, and whether its counting works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_control: Option<BootControl>,
    /// Break-glass commands that were used on the node itself, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub manual_actions: Vec<ManualAction>,
    /// The generation of the last grant the agent used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_grant: Option<i64>,
    /// Conditions; see the list of constants in the API's documentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What the node does or waits for, as the operator says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// One of the two system slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SlotName {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotName {
    /// The other slot.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl std::fmt::Display for SlotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// The two slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slots {
    /// Slot A.
    #[serde(default)]
    pub a: SlotStatus,
    /// Slot B.
    #[serde(default)]
    pub b: SlotStatus,
}

impl Slots {
    /// The status of one slot.
    #[must_use]
    pub const fn get(&self, name: SlotName) -> &SlotStatus {
        match name {
            SlotName::A => &self.a,
            SlotName::B => &self.b,
        }
    }
}

/// What one slot holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotStatus {
    /// The state.
    #[serde(default)]
    pub state: SlotState,
    /// The release's version, where the slot holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Its dm-verity root hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_hash: Option<RootHash>,
    /// The state version that the release declares, as far as the agent knows. Absent counts as 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub state_version: Option<u32>,
}

/// The state of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SlotState {
    /// Nothing that could be booted.
    #[default]
    Empty,
    /// Being written; never trusted.
    Writing,
    /// Holds a verified release without a boot entry.
    Staged,
    /// Holds a release with a boot entry that has tries left.
    Armed,
    /// Runs, not committed.
    Trial,
    /// Holds a release with a permanent boot entry.
    Good,
    /// Holds a release that failed; its boot entry is never picked.
    Bad,
    /// Does not hold what it should: changed by somebody else or damaged.
    Damaged,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Booted {
    /// The slot.
    pub slot: SlotName,
    /// The release's version.
    pub version: Version,
    /// Its dm-verity root hash.
    pub root_hash: RootHash,
    /// Since when this release runs committed, over reboots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<Time>,
}

/// What the inactive slot holds, verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Staged {
    /// The release's version.
    pub version: Version,
    /// The digest of its manifest, as in the spec.
    pub digest: Digest,
    /// When it was verified last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// A running trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// The release on trial.
    pub version: Version,
    /// How often the boot loader would still try it.
    #[schemars(range(min = 0, max = 99))]
    pub tries_left: u32,
    /// When the guard reverts unless there is a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// A running transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// The release.
    pub version: Version,
    /// The root hash of the delta's base; absent for a full pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<RootHash>,
    /// Bytes fetched so far.
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// Bytes to fetch in all.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// How much of the slot is right already, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// Why the transfer rests, if it does (pressure on disk or memory).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub paused: Option<String>,
}

/// What kind of thing went wrong; the only error label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum NodeError {
    /// The repository can't be reached.
    Network,
    /// Metadata or content is not what was signed, or has expired.
    Trust,
    /// The release does not fit this machine (product, architecture, floor, size).
    Unsuitable,
    /// A disk or file system failed.
    Storage,
    /// No room on the ESP, a slot or the state partition.
    Space,
    /// The boot loader or its variables do not work as they must.
    BootControl,
    /// This machine's firmware would refuse the boot image: unsigned, signed by nobody it knows, or revoked.
    SecureBoot,
    /// The system bus, logind or systemd failed.
    SystemBus,
    /// The API server refused or can't be reached.
    Kubernetes,
    /// The grant does not match the boot, or is spent.
    Grant,
    /// The release is made for an older state of the machine than the machine was used with, and nobody accepted that.
    StateVersion,
    /// A hook of the OS image failed, or did not end in time.
    Hook,
    /// A file or value of the agent's settings is wrong.
    Settings,
    /// The trial did not become healthy in time.
    TrialFailed,
    /// The boot loader came back to the old release.
    BootFailed,
    /// Something that must not happen.
    Internal,
}

impl NodeError {
    /// Every category.
    pub const ALL: [Self; 16] = [
        Self::Network,
        Self::Trust,
        Self::Unsuitable,
        Self::Storage,
        Self::Space,
        Self::BootControl,
        Self::SecureBoot,
        Self::SystemBus,
        Self::Kubernetes,
        Self::Grant,
        Self::StateVersion,
        Self::Hook,
        Self::Settings,
        Self::TrialFailed,
        Self::BootFailed,
        Self::Internal,
    ];

    /// The category as it stands in objects and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "Network",
            Self::Trust => "Trust",
            Self::Unsuitable => "Unsuitable",
            Self::Storage => "Storage",
            Self::Space => "Space",
            Self::BootControl => "BootControl",
            Self::SecureBoot => "SecureBoot",
            Self::SystemBus => "SystemBus",
            Self::Kubernetes => "Kubernetes",
            Self::Grant => "Grant",
            Self::StateVersion => "StateVersion",
            Self::Hook => "Hook",
            Self::Settings => "Settings",
            Self::TrialFailed => "TrialFailed",
            Self::BootFailed => "BootFailed",
            Self::Internal => "Internal",
        }
    }
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// The kind.
    pub category: NodeError,
    /// What happened, and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How often in a row.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempts: u32,
    /// When it happened last.
    pub at: Time,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Time>,
}

/// A release that failed on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedRelease {
    /// The release's version.
    pub version: Version,
    /// The digest of its manifest.
    pub digest: Digest,
    /// When.
    pub at: Time,
    /// The kind of failure.
    pub category: NodeError,
    /// What was seen.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// How the boot loader is told what to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootControl {
    /// The backend.
    pub backend: BootControlBackend,
    /// Whether its counting works.
    pub counting: Counting,
}

/// A way of telling a boot loader what to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum BootControlBackend {
    /// Boot Loader Specification entries with counters, as systemd-boot does.
    SystemdBoot,
    /// GPT attribute bits of the data partitions, as ChromeOS defined them. Experimental.
    GptPrio,
}

/// Whether a boot loader's counting works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Counting {
    /// Not yet known.
    #[default]
    Unknown,
    /// Seen to work, or vouched for by the boot loader.
    Works,
    /// Seen not to work: nothing is armed on this node.
    Broken,
}

/// A break-glass command used on the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManualAction {
    /// `stage`, `commit` or `revert`.
    #[schemars(length(max = 32))]
    pub action: String,
    /// When.
    pub at: Time,
    /// The user on the node, as far as it can be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub user: Option<String>,
}
