//! The live report: what the leading operator's last plan says of every node and policy, as it serves it at
//! [`LIVE_REPORT_PATH`].
//!
//! The objects say the same, late by a bounded time; this is for people who ask now. It is no API object and is kept
//! nowhere: the leader makes it on request, and a reader that gets none makes the same from the objects. Nodes that wait
//! for the same thing share one entry of [`LiveReport::waits`], so that a report of 5,000 nodes stays near one megabyte.

use crate::{
    DrainProgress, FreezeSpec, FreezeStatus, ObjectRef, RollbackSpec, RollbackStatus, Rollout, RolloutState, Time,
    UpdatePolicyStatus, Version, WaitReason,
};
use serde::{Deserialize, Serialize};

/// Where an operator serves its report, on the port of its metrics.
pub const LIVE_REPORT_PATH: &str = "/report";
/// Where it says beside that what is not installed as it must be, a sentence a line, or nothing but that it is ready.
pub const READY_PATH: &str = "/readyz";
/// What a sentence there holds that is about an object which the operator does not understand: it makes no replica unready.
pub const NOT_UNDERSTOOD: &str = "can't be read by this version of the operator";
/// The form of [`LiveReport`]. A reader that meets a higher one reads the objects instead.
pub const LIVE_REPORT_FORMAT: u32 = 1;
/// The most bytes of a report that a reader takes.
pub const LIVE_REPORT_LIMIT: usize = 64 * 1024 * 1024;
/// The Lease of the operators, whose holder leads. The manifests give a replica the name of its pod.
pub const OPERATOR_LEASE: &str = "bascule-operator";
/// The namespace that the manifests install into.
pub const OPERATOR_NAMESPACE: &str = "bascule-system";

/// What the last plan says of everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveReport {
    /// [`LIVE_REPORT_FORMAT`] of whoever made it.
    pub format: u32,
    /// When the plan was made, by the API server's clock.
    pub planned_at: Time,
    /// The replica that made it, as the Lease names it. Empty where it was made from the objects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub planned_by: String,
    /// By how many seconds the clock of that operator's machine is ahead of the API server's, whose time its plans use; negative
    /// where it is behind. Absent where that is not known: made from the objects, or by an older operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew: Option<i64>,
    /// The version of that operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operator_version: String,
    /// The time zone database that it reads windows with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub time_zones: String,
    /// The names of the gates in their order; [`LiveNode::gates_passed`] counts in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
    /// What the health gates of the policies answered last. Empty where no policy has one, or where that is not known: made from
    /// the objects, or by an older operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_gates: Vec<LiveGate>,
    /// What nodes wait for; [`LiveNode::wait`] points here.
    pub waits: Vec<LiveWait>,
    /// The policies, by name.
    pub policies: Vec<LivePolicy>,
    /// Every node of the cluster, by name.
    pub nodes: Vec<LiveNode>,
    /// The Freezes, those that ended too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freezes: Vec<LiveOrder<FreezeSpec, FreezeStatus>>,
    /// The Rollbacks, those that are complete too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollbacks: Vec<LiveOrder<RollbackSpec, RollbackStatus>>,
}

/// A reason with all that is known about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveWait {
    /// The reason.
    pub reason: WaitReason,
    /// In a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The object that causes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
    /// When it ends, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// What a health gate of a policy answered last: to the plan, or, where no node waits for it, to whoever read the report. Reading it
/// has gates asked whose last answer is old, and waits for none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveGate {
    /// The policy, as an index into [`LiveReport::policies`].
    pub policy: usize,
    /// Its name, or its kind and position.
    pub gate: String,
    /// The node that the last answer is about, where a gate speaks of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it held. Absent where it could not be read, which counts as not holding, or has not answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
    /// Why it did not hold or could not be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When that was. Absent as long as it has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Whether it is being asked: a later reading has its answer, ten seconds after that at the latest unless many are asked.
    #[serde(default)]
    pub asking: bool,
}

/// A policy as the last plan sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LivePolicy {
    /// Its name.
    pub name: String,
    /// Whether an admin paused it.
    #[serde(default)]
    pub paused: bool,
    /// How many of its nodes may be unavailable at once, as a number; absent where the policy can't be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
    /// Its whole status.
    pub status: UpdatePolicyStatus,
    /// What lies ahead. Absent where nothing was foreseen: a fleet too large for the operator to do that, an older operator,
    /// or what the objects alone say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<LiveForecast>,
}

/// What the planner, run forward over the facts of a plan, foresees for a policy. Failures and later releases are in no forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveForecast {
    /// How many more nodes are done in the window that is open, or in the next one; absent where a policy has no windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_window: Option<usize>,
    /// When the last node is done; absent where that is further ahead than was looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Time>,
}

/// A node as the last plan sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveNode {
    /// Its name.
    pub name: String,
    /// The policy that selects it, as an index into [`LiveReport::policies`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<usize>,
    /// Its failure domain, `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What it does.
    pub state: RolloutState,
    /// Why, as an index into [`LiveReport::waits`].
    pub wait: usize,
    /// Since when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How many of [`LiveReport::gates`] hold, in their order; the next one is what it waits for. Absent for nodes that
    /// were not asked to pass the gates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates_passed: Option<usize>,
    /// How far its drain is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
    /// What it runs, as its agent said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Version>,
    /// What its inactive slot holds, verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Version>,
    /// How much of the slot that is being written is right already, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
}

/// What a person ordered, with its status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveOrder<Spec, Status> {
    /// The object's name.
    pub name: String,
    /// When it was written.
    pub created_at: Time,
    /// What was ordered.
    pub spec: Spec,
    /// How far it is.
    pub status: Status,
}

/// Why a replica has no report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoReport {
    /// In a sentence.
    pub message: String,
    /// Who leads, as far as this replica knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

impl LiveReport {
    /// What a node waits for.
    #[must_use]
    pub fn wait(&self, node: &LiveNode) -> Option<&LiveWait> {
        self.waits.get(node.wait)
    }

    /// The nodes of a policy.
    pub fn nodes_of(&self, policy: usize) -> impl Iterator<Item = &LiveNode> {
        self.nodes.iter().filter(move |node| node.policy == Some(policy))
    }
}

impl LiveWait {
    /// The part of an explanation that nodes can share.
    #[must_use]
    pub fn of(rollout: &Rollout) -> Self {
        Self {
            reason: rollout.reason,
            message: rollout.message.clone(),
            object: rollout.object.clone(),
            until: rollout.until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_may_be_missing() {
        let node: LiveNode = serde_json::from_str(r#"{"name":"n1","state":"Waiting","wait":0}"#).unwrap();
        assert_eq!(serde_json::to_string(&node).unwrap(), r#"{"name":"n1","state":"Waiting","wait":0}"#);
        let report: LiveReport = serde_json::from_str(
            r#"{"format":1,"plannedAt":"2026-11-28T23:00:00Z","waits":[],"policies":[],"nodes":[],"later":1}"#,
        )
        .unwrap();
        assert_eq!(report.wait(&node), None, "an index that points nowhere is no panic");
    }
}
