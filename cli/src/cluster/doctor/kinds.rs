//! Which of Bascule's kinds the cluster serves, and with which fields. The API server tells it everybody it knows.

use super::Finding;
use crate::cluster::problem::{self, Role};
use bascule_api as api;
use bascule_api::Fields;
use kube::{Client, Resource as _};
use serde::Deserialize;
use std::{borrow::Cow, collections::BTreeMap};

/// What the API server knows of the kinds, as far as it matters here.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Document {
    #[serde(default)]
    components: Components,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Components {
    #[serde(default)]
    schemas: BTreeMap<String, Schema>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Schema {
    #[serde(default, rename = "x-kubernetes-group-version-kind")]
    kinds: Vec<GroupKind>,
    #[serde(default)]
    properties: BTreeMap<String, Fields>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct GroupKind {
    group: String,
    kind: String,
}

/// Whether the API server serves every kind, in the version that this program speaks.
pub(super) async fn look(client: &Client) -> anyhow::Result<Vec<Finding>> {
    // At once: where the kinds are not served, there are no schemas of them either.
    let (resources, schemas) =
        tokio::join!(client.list_api_group_resources("bascule.dev/v1alpha1"), served_schemas(client));
    let resources = match resources {
        Ok(served) => served.resources,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return Ok(vec![not_served("the cluster does not serve bascule.dev/v1alpha1")]);
        }
        Err(error) => return Err(problem::told(error, "get", "the API server's kinds", Role::OnCall)),
    };
    let missing: Vec<_> =
        plurals().into_iter().filter(|plural| !resources.iter().any(|one| one.name == *plural)).collect();
    if !missing.is_empty() {
        return Ok(vec![not_served(&format!("not served: {}", missing.join(", ")))]);
    }
    Ok(vec![match schemas {
        Ok(Some(document)) => with_fields(&unknown_fields(&Fields::known()?, &document)),
        // Definitions that were applied a moment ago are not in there yet.
        Ok(None) => Finding::good("installation", "every kind of bascule.dev/v1alpha1 is served"),
        Err(error) => {
            let error = problem::told(error, "get", "the API server's schemas", Role::OnCall);
            let what = "the fields that the kinds have here were not looked at";
            Finding::warning("installation", what, error.to_string())
        }
    }])
}

fn plurals() -> [Cow<'static, str>; 4] {
    [api::UpdatePolicy::plural(&()), api::NodeUpdate::plural(&()), api::Freeze::plural(&()), api::Rollback::plural(&())]
}

/// What fixes definitions that are missing or old.
const APPLY: &str = "Apply manifests/crds of this program's version (docs/install.md).";

fn not_served(what: &str) -> Finding {
    Finding::wrong("installation", what, APPLY)
}

/// Every kind is served, without these fields.
pub(super) fn with_fields(unknown: &[String]) -> Finding {
    match unknown {
        [] => Finding::good("installation", "every kind of bascule.dev/v1alpha1 is served, with every field"),
        // Still the same kinds: what follows can be looked at.
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let what = format!("the definitions are older than this program: they lack {first}{more}");
            Finding::warning("installation", what, APPLY)
        }
    }
}

/// What the API server knows of the kinds' fields.
async fn served_schemas(client: &Client) -> kube::Result<Option<Document>> {
    let request = http::Request::get("/openapi/v3/apis/bascule.dev/v1alpha1").body(Vec::new());
    match client.request(request.map_err(kube::Error::HttpError)?).await {
        Ok(document) => Ok(Some(document)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fields that this program knows and the cluster's definitions lack, `Kind spec.field`.
fn unknown_fields(known: &BTreeMap<String, Fields>, document: &Document) -> Vec<String> {
    let mut lacking = Vec::new();
    for (kind, ours) in known {
        let of_kind = |schema: &&Schema| schema.kinds.iter().any(|one| one.kind == *kind && one.group == api::GROUP);
        let Some(theirs) = document.components.schemas.values().find(of_kind) else { continue };
        for part in ["spec", "status"] {
            if let (Some(ours), Some(theirs)) = (ours.properties.get(part), theirs.properties.get(part)) {
                compare(&format!("{kind} {part}"), ours, theirs, &mut lacking);
            }
        }
    }
    lacking
}

fn compare(place: &str, ours: &Fields, theirs: &Fields, lacking: &mut Vec<String>) {
    for (name, field) in &ours.properties {
        let place = format!("{place}.{name}");
        match theirs.properties.get(name) {
            Some(known) => compare(&place, field, known, lacking),
            None => lacking.push(place),
        }
    }
    // Of a list, or a map.
    let inner = [(&ours.items, &theirs.items), (&ours.additional_properties, &theirs.additional_properties)];
    for pair in inner {
        if let (Some(ours), Some(theirs)) = pair {
            compare(&format!("{place}[]"), ours, theirs, lacking);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_kinds_are_those_of_the_definitions() {
        let defined = api::custom_resource_definitions();
        let defined: Vec<_> = defined.iter().map(|definition| definition.spec.names.plural.as_str()).collect();
        assert_eq!(plurals().to_vec(), defined);
    }

    #[test]
    fn a_definition_that_lacks_a_field_is_found() {
        let known = Fields::known().unwrap();
        // As the API server answers: every kind with its own schema.
        let served: serde_json::Map<String, Value> = api::custom_resource_definitions()
            .iter()
            .map(|definition| {
                let schema = definition.spec.versions[0].schema.as_ref().unwrap();
                let mut schema = serde_json::to_value(&schema.open_api_v3_schema).unwrap();
                let kind = &definition.spec.names.kind;
                schema["x-kubernetes-group-version-kind"] =
                    json!([{"group": "bascule.dev", "version": "v1alpha1", "kind": kind}]);
                (format!("dev.bascule.v1alpha1.{kind}"), schema)
            })
            .collect();
        let mut document = json!({"openapi": "3.0.0", "paths": {}, "components": {"schemas": served}});
        // What stands beside the kinds there.
        document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.Time"] = json!({"type": "string"});
        let lacking = |document: &Value| {
            let document: Document = serde_json::from_value(document.clone()).unwrap();
            unknown_fields(&known, &document)
        };
        assert_eq!(lacking(&document), Vec::<String>::new());
        let policy = &mut document["components"]["schemas"]["dev.bascule.v1alpha1.UpdatePolicy"];
        policy["properties"]["spec"]["properties"].as_object_mut().unwrap().remove("retries").unwrap();
        let hooks = &mut policy["properties"]["spec"]["properties"]["hooks"]["properties"]["beforeDrain"]["items"];
        hooks["properties"].as_object_mut().unwrap().remove("timeout").unwrap();
        assert_eq!(lacking(&document), ["UpdatePolicy spec.hooks.beforeDrain[].timeout", "UpdatePolicy spec.retries"]);
    }
}
