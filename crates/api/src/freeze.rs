//! `Freeze`: an on-call engineer's stop switch. It stays on record when it has ended.

use crate::{Duration, Selector, Time};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Stops new disruptions, everywhere, for some policies or for some nodes, until it ends by itself. Updates in progress are finished, unless it
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
    doc = "Stops new disruptions, everywhere, for some policies or for some nodes, until it ends by itself. Updates in progress are finished, unless it says that drains are undone.",
    printcolumn(name = "Active", type_ = "string", json_path = ".status.conditions[?(@.type==\"Active\")].status"),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.endsAt"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy"),
    printcolumn(name = "Ended by", type_ = "string", json_path = ".spec.endedBy"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(unchanged_but_ended()).message("a Freeze is not changed, it is only ended, with spec.endedBy: end it and write another, so that the record stays true"))]
#[x_kube(validation = Rule::new("!has(oldSelf.endedBy) || (has(self.endedBy) && self.endedBy == oldSelf.endedBy)").message("this Freeze was ended already, and stays so: write another"))]
#[x_kube(validation = Rule::new("[has(self.policySelector), has(self.policies), has(self.nodes)].filter(x, x).size() <= 1").message("a Freeze is for policies by label, for policies by name, or for nodes: keep one of policySelector, policies and nodes (none: everywhere)"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct FreezeSpec {
    /// Why. Everybody who waits will read this.
    #[schemars(length(min = 3, max = 512))]
    pub reason: String,
    /// How long, counted from the object's creation.
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("a Freeze of no time holds nothing: write a duration like 2h"))]
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
    /// Who ended it before its time. Added once, when it ends, and never changed. The admission policy holds this to the
    /// name of the user that writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // Never null: one that was written so could not be changed to a name.
    #[schemars(with = "String", length(min = 1, max = 253))]
    pub ended_by: Option<String>,
}

/// The fields that stay as they were written.
const FIXED: [&str; 7] = ["reason", "duration", "policySelector", "policies", "nodes", "undoDrains", "requestedBy"];

/// Each field by itself: CEL has no "all but one". Without `?.`, whose cost the API server can't bound.
fn unchanged_but_ended() -> String {
    let same = |field: &str| {
        format!("has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})")
    };
    FIXED.map(same).join(" && ")
}

impl FreezeSpec {
    /// When it ends by itself, with the creation of its object.
    #[must_use]
    pub fn ends_at(&self, created_at: Time) -> Time {
        created_at.after(self.duration)
    }

    /// Whether it holds anything at a time: neither was it ended nor is its time over.
    #[must_use]
    pub fn is_active(&self, created_at: Time, now: Time) -> bool {
        self.ended_by.is_none() && now < self.ends_at(created_at)
    }

    /// Whether it is for a policy as a whole.
    #[must_use]
    pub fn is_for_policy(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.nodes.is_empty()
            && (self.policies.is_empty() || self.policies.iter().any(|one| one == name))
            && self.policy_selector.as_ref().is_none_or(|selector| selector.matches(labels))
    }

    /// Whether it is for a node by its name.
    #[must_use]
    pub fn is_for_node(&self, node: &str) -> bool {
        self.nodes.iter().any(|held| held == node)
    }
}

/// Labels and annotations of those who write objects from a text that they keep: by prefix, or as a whole.
const KEEPERS: [&str; 6] = [
    "app.kubernetes.io/managed-by",
    // Argo CD tracks by it unless told otherwise.
    "app.kubernetes.io/instance",
    "argocd.argoproj.io/",
    "helm.toolkit.fluxcd.io/",
    "kustomize.toolkit.fluxcd.io/",
    "meta.helm.sh/",
];

impl Freeze {
    /// Whether somebody else than the person at the terminal keeps it: an owner, or a tool that applies what lies in a repository.
    /// Such a tool makes it anew when it is gone, and it would hold again for its whole time.
    #[must_use]
    pub fn is_kept_elsewhere(&self) -> bool {
        let metadata = &self.metadata;
        let mut marks = metadata.labels.iter().chain(&metadata.annotations).flat_map(BTreeMap::keys);
        let kept = |mark: &String| {
            KEEPERS.iter().any(|keeper| if keeper.ends_with('/') { mark.starts_with(keeper) } else { mark == keeper })
        };
        metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty()) || marks.any(kept)
    }

    /// When it was created: its time counts from then.
    #[must_use]
    pub fn created_at(&self) -> Time {
        self.metadata.creation_timestamp.as_ref().map_or_else(Time::default, Time::from_kubernetes)
    }

    /// Whether it holds anything at a time.
    #[must_use]
    pub fn is_active(&self, now: Time) -> bool {
        self.spec.is_active(self.created_at(), now)
    }
}

/// What the operator sees of a Freeze.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FreezeStatus {
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
    /// When it ended: its time was over, or the operator saw that somebody had ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// How many nodes were in progress when it began and were finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub in_progress: Option<u32>,
    /// Conditions: `Active`, `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_core::CustomResourceExt as _;
    use serde_json::json;

    #[test]
    fn every_field_but_the_end_stays_as_it_was_written() {
        let definition = serde_json::to_value(Freeze::crd()).unwrap();
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut fields: Vec<&str> = spec["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        fields.retain(|field| *field != "endedBy");
        let mut fixed = FIXED.to_vec();
        fixed.sort_unstable();
        assert_eq!(fields, fixed);
    }

    #[test]
    fn it_is_active_until_it_is_ended_or_its_time_is_over() {
        let at = |second| Time::from(chrono::DateTime::from_timestamp(second, 0).unwrap());
        let mut spec: FreezeSpec = serde_json::from_value(json!({"reason": "incident", "duration": "1m"})).unwrap();
        let active = |spec: &FreezeSpec, second| spec.is_active(at(100), at(second));
        assert!(active(&spec, 100) && active(&spec, 159) && !active(&spec, 160));
        spec.ended_by = Some("alice".to_owned());
        assert!(!active(&spec, 101));
    }

    #[test]
    fn what_a_tool_or_an_owner_keeps_is_told_from_what_a_person_typed() {
        let of = |metadata: serde_json::Value| -> Freeze {
            let spec = json!({"reason": "incident", "duration": "2h"});
            let whole =
                json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": metadata, "spec": spec});
            serde_json::from_value(whole).unwrap()
        };
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "1"});
        for metadata in [
            json!({"ownerReferences": [owner]}),
            json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}}),
            json!({"labels": {"app.kubernetes.io/instance": "freezes"}}),
            json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "fleet"}}),
            json!({"labels": {"helm.toolkit.fluxcd.io/name": "fleet"}}),
            json!({"annotations": {"argocd.argoproj.io/tracking-id": "fleet:bascule.dev/Freeze:/f"}}),
            json!({"labels": {"team": "shop"}, "annotations": {"meta.helm.sh/release-name": "fleet"}}),
        ] {
            assert!(of(metadata.clone()).is_kept_elsewhere(), "{metadata}");
        }
        for metadata in [
            json!({"name": "freeze-x7k2"}),
            json!({"ownerReferences": [], "labels": {}}),
            json!({"labels": {"app.kubernetes.io/name": "f"}, "annotations": {"example.com/argocd.argoproj.io": "no"}}),
        ] {
            assert!(!of(metadata.clone()).is_kept_elsewhere(), "{metadata}");
        }
    }

    #[test]
    fn it_is_for_policies_or_for_nodes() {
        let of = |spec: serde_json::Value| -> FreezeSpec {
            let mut whole = json!({"reason": "incident", "duration": "2h"});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            serde_json::from_value(whole).unwrap()
        };
        let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
        for (spec, policy, node) in [
            (json!({}), true, false),
            (json!({"policies": ["workers"]}), true, false),
            (json!({"policies": ["control"]}), false, false),
            (json!({"nodes": ["b"]}), false, true),
            (json!({"nodes": ["c"]}), false, false),
            (json!({"policySelector": {"matchLabels": {"tier": "web"}}}), true, false),
            (json!({"policySelector": {"matchLabels": {"tier": "db"}}}), false, false),
        ] {
            let freeze = of(spec.clone());
            assert_eq!((freeze.is_for_policy("workers", &labels), freeze.is_for_node("b")), (policy, node), "{spec}");
        }
    }
}
