//! `Rollback`: an on-call engineer's way back.

use crate::{Time, Version};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Brings a policy or some nodes back to the previous or a named release. Nodes that still hold it in the other slot go
/// back without a download. Ignores maintenance windows and honours budgets unless told otherwise.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bascule.dev",
    version = "v1alpha1",
    kind = "Rollback",
    plural = "rollbacks",
    shortname = "rb",
    category = "bascule",
    status = "RollbackStatus",
    derive = "PartialEq",
    crates(kube_core = "kube_core"),
    doc = "Brings a policy or some nodes back to the previous or a named release.",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.to"),
    printcolumn(name = "Done", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Complete", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].status"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a Rollback is not changed: delete it and write another, so that the record stays true"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct RollbackSpec {
    /// Why. This goes into the record of every node.
    #[schemars(length(min = 3, max = 512))]
    pub reason: String,
    /// The policy whose nodes go back.
    #[schemars(length(min = 1, max = 63))]
    pub policy: String,
    /// Only these nodes of the policy. Default: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 253)))]
    pub nodes: Vec<String>,
    /// The release to go back to. Default: what each node's other slot holds, if it is older than what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Block the release that is left, so that the policy does not take it again. Default: true.
    #[serde(default = "default_true")]
    pub block: bool,
    /// Wait for maintenance windows. Default: false.
    #[serde(default)]
    pub respect_windows: bool,
    /// Ignore budgets: all at once. PodDisruptionBudgets are honoured even then. Default: false.
    #[serde(default)]
    pub ignore_budgets: bool,
    /// Go back also where the release is made for an older state of the machine than the machine was used with
    /// (`status.stateVersion` of the NodeUpdate). What the newer releases made of the state stays as it is, and whether the older
    /// one can use it is for whoever says this to know. Default: false.
    #[serde(default)]
    pub accept_state: bool,
    /// Who asks. The admission policy holds this to the name of the user that writes the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub requested_by: Option<String>,
}

fn default_true() -> bool {
    true
}

/// How far a Rollback is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackStatus {
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The release that is gone back to, where it is one for all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    /// The releases that are left, and blocked if the spec says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub from: Vec<Version>,
    /// Done and all, e.g. `7/12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
    /// Nodes that hold the release in their other slot.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub without_download: u32,
    /// Nodes that must fetch it.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub with_download: u32,
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Conditions: `Accepted`, `Complete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
