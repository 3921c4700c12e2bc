//! The operator's word to one node's agent.

use super::NodeUpdateStatus;
use crate::{ChannelName, Digest, ObjectRef, Time, Version};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of one node's OS and what is asked of it. Created by the operator, owned by the Node, edited by nobody.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bascule.dev",
    version = "v1alpha1",
    kind = "NodeUpdate",
    plural = "nodeupdates",
    shortname = "nu",
    category = "bascule",
    status = "NodeUpdateStatus",
    derive = "PartialEq",
    crates(kube_core = "kube_core"),
    doc = "The state of one node's OS and what is asked of it. Created by the operator, owned by the Node, edited by nobody.",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy"),
    printcolumn(name = "Booted", type_ = "string", json_path = ".status.booted.version"),
    printcolumn(name = "Staged", type_ = "string", json_path = ".status.staged.version"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.rollout.state"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.rollout.columns.reason"),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.rollout.until"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.rollout.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.policy"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.goal != 'Booted' || has(self.grant)").message("goal Booted needs a grant: nothing is disrupted without one"))]
#[x_kube(validation = Rule::new("self.goal == 'Idle' || has(self.release)").message("every goal but Idle names a release"))]
#[x_kube(validation = Rule::new("!has(self.grant) || !has(oldSelf.grant) || self.grant.generation >= oldSelf.grant.generation").message("grant generations never go down"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct NodeUpdateSpec {
    /// The policy that selects this node.
    #[schemars(length(max = 63))]
    pub policy: String,
    /// What the agent shall reach.
    #[serde(default)]
    pub goal: Goal,
    /// The release in question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRef>,
    /// The permission to disrupt the node. It holds while `disruption` is there too; afterwards it stays as the counter
    /// of grants, so that a generation never comes twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// What the operator remembers of the disruption it granted, so that another operator can finish or undo it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<Disruption>,
    /// How the last disruption ended. A drain that failed is tried again later because of this, and a wave's soak is
    /// counted from it by the API server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_disruption: Option<LastDisruption>,
    /// Whether a missing pack may be replaced by the next cheapest.
    #[serde(default)]
    pub pack_fallback: PackFallback,
    /// A person's word that what failed here is tried again (`at` of the entry in the policy's `spec.retries`). The agent
    /// forgets its failures once for each, and answers in `status.retried`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Time>,
}

/// What the agent shall reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Goal {
    /// Nothing is asked.
    #[default]
    Idle,
    /// The release is in the inactive slot, verified. Harmless.
    Staged,
    /// The release is armed and booted; needs a grant for the present boot.
    Booted,
    /// The running trial is made permanent.
    Committed,
    /// The node leaves `release` and runs what its other slot holds: a trial is given up, or a committed release is
    /// left. The latter needs a grant for the present boot, as every reboot does. A node that does not run `release`
    /// has nothing to do; only the version counts here, not the digest.
    Reverted,
}

/// What a node does when the cheapest pack is missing on the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PackFallback {
    /// Take the next cheapest and say so.
    #[default]
    Allow,
    /// Wait with an error: the network is dearer than the time.
    Forbid,
}

/// A release, named so that nothing else can be meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseRef {
    /// The release's version.
    pub version: Version,
    /// The SHA-256 digest of its manifest.
    pub digest: Digest,
    /// The repository to fetch it from. The agent trusts its own root only.
    #[schemars(length(min = 9, max = 512))]
    pub repository: String,
    /// The channel that lists it.
    pub channel: ChannelName,
}

/// The permission for one node to be disrupted, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The boot it was given for (`status.nodeInfo.bootID` of the Node). After the reboot it is spent.
    #[serde(rename = "bootID")]
    #[schemars(length(min = 1, max = 64))]
    pub boot_id: String,
    /// Counts the grants of this node. An agent refuses one that is not above the last it used, so that a restored
    /// backup of the cluster's state can't repeat a reboot.
    #[schemars(range(min = 1))]
    pub generation: i64,
    /// Whether the node may go to a release that is made for an older state of the machine than it was used with
    /// (`status.stateVersion`). A person said so, in a Rollback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_state: bool,
}

/// Why a node is disrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// The UpdatePolicy or Rollback that asks for it.
    pub object: ObjectRef,
    /// The person who wrote that object, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub user: Option<String>,
}

/// What the operator remembers of a disruption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// When the grant was given.
    pub granted_at: Time,
    /// Whether the node was already cordoned then; if so, it stays cordoned afterwards.
    pub was_cordoned: bool,
    /// Why.
    pub cause: Cause,
    /// When the drain began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_started_at: Option<Time>,
    /// Its budgets allowed nothing at the grant and are given this time from the cordon on to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets_open_within: Option<crate::Duration>,
    /// The budgets that allowed nothing at the grant, `namespace/name`: one that is used up only later is waited for like any other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 317)))]
    pub closed_budgets: Vec<String>,
    /// When its pods were gone, though volumes of theirs were still attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emptied_at: Option<Time>,
    /// When the node was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_at: Option<Time>,
    /// Hooks that succeeded for this grant, as `beforeDrain/<name>` and `afterCommit/<name>`: they are not run again,
    /// whatever becomes of their Jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hooks_done: Vec<String>,
    /// The DaemonSet pods of the node before its reboot, with the policy's `health.daemonSets`: what was not ready before
    /// is not asked of the release, and what was has to become ready again in the new boot. Noted with the grant and once
    /// more with the word to reboot; what was ready at the grant only is waited for and not asked of the release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub daemon_sets: Vec<DaemonSetBefore>,
}

/// The pod of a DaemonSet on a node before its reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetBefore {
    /// The DaemonSet, `namespace/name`.
    #[schemars(length(max = 317))]
    pub name: String,
    /// Whether its pod was ready, at the word to reboot once that is given.
    pub ready: bool,
    /// The last transition of the pod's Ready condition when it was seen ready last, by the node's own clock. A pod that
    /// shows the very same after the reboot has not been looked at by the kubelet of the new boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// How a disruption ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDisruption {
    /// When the grant was freed.
    pub ended_at: Time,
    /// How.
    pub outcome: DisruptionOutcome,
    /// The release it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// How many disruptions in a row, this one included, were given up before the reboot.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub given_up: u32,
    /// The gate that said no, of a trial that was given up for what a gate says of the cluster (`Unproven`). The release is blamed
    /// when the same gate says no on a second node that was told to reboot after that. None where nothing said no: nobody could
    /// be asked, or the trial ended for another reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub gate: Option<String>,
    /// In a sentence, what stopped it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
}

/// How a disruption ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DisruptionOutcome {
    /// The release was committed.
    Committed,
    /// The node went back to the release in its other slot, as a Rollback asked.
    RolledBack,
    /// The release failed on the node, which runs its old one again.
    Failed,
    /// The trial was given up while a gate that speaks of the cluster did not pass. Nothing is said of the release.
    Unproven,
    /// The drain or a hook did not succeed; the node was not rebooted.
    DrainFailed,
    /// The agent did not reboot the node in time; it was not rebooted.
    NotRebooted,
    /// The node rebooted before its release was armed (its power failed, or somebody rebooted it), or its agent did not hold the
    /// release any more once it was empty. Nothing was tried.
    Interrupted,
    /// Somebody uncordoned the node in the middle of its drain; it was not rebooted.
    Uncordoned,
    /// The reason for the disruption went away before the reboot.
    Withdrawn,
}
