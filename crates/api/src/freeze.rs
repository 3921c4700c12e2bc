//! `Freeze`: an on-call engineer's stop switch.

use crate::{Duration, Selector, Time};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stops new disruptions, everywhere, for some policies or for some nodes, until it ends by itself. What already moves is finished, unless it
/// says that drains are undone.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bascule.dev",
    version = "v1alpha1",
    kind = "Freeze",
    plural = "freezes",
    shortname = "fz",
    category = "bascule",
    status = "FreezeStatus",
    derive = "PartialEq",
    crates(kube_core = "kube_core"),
    doc = "Stops new disruptions, everywhere, for some policies or for some nodes, until it ends by itself. What already moves is finished, unless it says that drains are undone.",
    printcolumn(name = "Active", type_ = "string", json_path = ".status.conditions[?(@.type==\"Active\")].status"),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.endsAt"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a Freeze is not changed: delete it and write another, so that the record stays true"))]
#[x_kube(validation = Rule::new("[has(self.policySelector), has(self.policies), has(self.nodes)].filter(x, x).size() <= 1").message("a Freeze is for policies by label, for policies by name, or for nodes: keep one of policySelector, policies and nodes (none: everywhere)"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct FreezeSpec {
    /// Why. Everybody who waits will read this.
    #[schemars(length(min = 3, max = 512))]
    pub reason: String,
    /// How long, counted from the object's creation.
    pub duration: Duration,
    /// The policies it holds, by their labels. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_selector: Option<Selector>,
    /// The policies it holds, by name. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub policies: Vec<String>,
    /// Holds these nodes only, whatever policy selects them. Default: the nodes of the policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 253)))]
    pub nodes: Vec<String>,
    /// Undo drains that are under way: their nodes take work again, on their old release. A node that reboots already is
    /// finished all the same. Default: drains are finished too.
    #[serde(default)]
    pub undo_drains: bool,
    /// Who asks. The admission policy holds this to the name of the user that writes the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub requested_by: Option<String>,
}

/// What the operator sees of a Freeze.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FreezeStatus {
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
    /// How many nodes were in progress when it began and were finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub in_progress: Option<u32>,
    /// Conditions: `Active`, `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
