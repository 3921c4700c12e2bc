//! What the cluster serves of Bascule's kinds, and what the person may do with them. Both is asked of the API server, which
//! answers it to everybody it knows.

use super::Finding;
use crate::cluster::problem::{self, Role};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::PostParams};
use serde_json::Value;

/// Whether the API server serves every kind, in the version that this program speaks.
pub(super) async fn kinds(client: &Client) -> anyhow::Result<Vec<Finding>> {
    let served = match client.list_api_group_resources("bascule.dev/v1alpha1").await {
        Ok(served) => served,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return Ok(vec![not_served("the cluster does not serve bascule.dev/v1alpha1")]);
        }
        Err(error) => return Err(problem::told(error, "get", "the API server's kinds", Role::OnCall)),
    };
    let wanted = bascule_api::custom_resource_definitions();
    let missing: Vec<String> = wanted
        .iter()
        .map(|definition| definition.spec.names.plural.clone())
        .filter(|plural| !served.resources.iter().any(|one| one.name == *plural))
        .collect();
    if !missing.is_empty() {
        return Ok(vec![not_served(&format!("not served: {}", missing.join(", ")))]);
    }
    let unknown = match served_schemas(client).await {
        Ok(Some(schemas)) => unknown_fields(&wanted, &schemas),
        // Definitions that were applied a moment ago are not in there yet.
        Ok(None) => return Ok(vec![Finding::good("installation", "every kind of bascule.dev/v1alpha1 is served")]),
        Err(error) => {
            let error = problem::told(error, "get", "the API server's schemas", Role::OnCall);
            let what = "the fields that the kinds have here were not looked at";
            return Ok(vec![Finding::warning("installation", what, error.to_string())]);
        }
    };
    Ok(vec![with_fields(&unknown)])
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

/// What the API server knows of the kinds' fields, which everybody may ask it.
async fn served_schemas(client: &Client) -> kube::Result<Option<Value>> {
    let request = http::Request::get("/openapi/v3/apis/bascule.dev/v1alpha1").body(Vec::new());
    match client.request(request.map_err(kube::Error::HttpError)?).await {
        Ok(document) => Ok(Some(document)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fields that this program knows and the cluster's definitions lack, `Kind spec.field`.
fn unknown_fields(wanted: &[CustomResourceDefinition], document: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object).unwrap_or(&empty);
    let mut lacking = Vec::new();
    for definition in wanted {
        let kind = &definition.spec.names.kind;
        let of_kind = |schema: &&Value| {
            let kinds = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
            let is = |one: &Value, key: &str, what: &str| one.get(key).is_some_and(|value| value == what);
            kinds.into_iter().flatten().any(|one| is(one, "kind", kind) && is(one, "group", "bascule.dev"))
        };
        let Some(theirs) = schemas.values().find(of_kind) else { continue };
        let ours = definition.spec.versions.first().and_then(|version| version.schema.as_ref());
        let ours = ours.and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok()).unwrap_or_default();
        for part in ["spec", "status"] {
            let path = format!("/properties/{part}");
            if let (Some(ours), Some(theirs)) = (ours.pointer(&path), theirs.pointer(&path)) {
                compare(&format!("{kind} {part}"), ours, theirs, &mut lacking);
            }
        }
    }
    lacking
}

fn compare(place: &str, ours: &Value, theirs: &Value, lacking: &mut Vec<String>) {
    let known = theirs.get("properties");
    for (name, field) in ours.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let place = format!("{place}.{name}");
        match known.and_then(|known| known.get(name)) {
            Some(known) => compare(&place, field, known, lacking),
            None => lacking.push(place),
        }
    }
    // Of a list, or a map.
    for inner in ["items", "additionalProperties"] {
        if let (Some(ours), Some(theirs)) = (ours.get(inner), theirs.get(inner)) {
            compare(&format!("{place}[]"), ours, theirs, lacking);
        }
    }
}

/// A right, the role that gives it, and what can't be done without it.
pub(super) struct Right {
    group: &'static str,
    resource: &'static str,
    subresource: Option<&'static str>,
    verb: &'static str,
    here: bool,
    without: &'static str,
}

const fn right(group: &'static str, resource: &'static str, verb: &'static str, without: &'static str) -> Right {
    Right { group, resource, subresource: None, verb, here: false, without }
}

pub(super) const RIGHTS: [Right; 13] = [
    right("bascule.dev", "updatepolicies", "list", "status"),
    right("bascule.dev", "nodeupdates", "list", "explain"),
    right("bascule.dev", "freezes", "list", "status and unfreeze"),
    right("bascule.dev", "rollbacks", "list", "status"),
    right("bascule.dev", "freezes", "create", "freeze, pause, hold and abort"),
    right("bascule.dev", "freezes", "patch", "unfreeze and resume"),
    right("bascule.dev", "rollbacks", "create", "rollback"),
    right("", "nodes", "list", "forecast and plan"),
    right("", "pods", "list", "what drains wait for in forecast and plan"),
    right("batch", "jobs", "list", "what drains wait for in forecast and plan"),
    right("policy", "poddisruptionbudgets", "list", "the budgets in doctor"),
    Right { here: true, ..right("coordination.k8s.io", "leases", "get", "what is live") },
    Right { here: true, subresource: Some("proxy"), ..right("", "pods", "get", "what is live") },
];

/// Which rights of an on-call engineer are missing.
pub(super) async fn granted(client: &Client, namespace: &str) -> anyhow::Result<Vec<Finding>> {
    let mut missing = Vec::new();
    let answers = RIGHTS.iter().map(|right| may(client, right, namespace));
    for (right, answer) in RIGHTS.iter().zip(futures::future::join_all(answers).await) {
        if !answer.map_err(|error| problem::told(error, "create", "SelfSubjectAccessReviews", Role::OnCall))? {
            missing.push(right);
        }
    }
    // Nothing is written in this name: without it the command is left out, and there is no more to say.
    let me = if missing.is_empty() { None } else { crate::cluster::user(client).await.ok().flatten() };
    Ok(without(&missing, me.as_deref(), namespace))
}

/// What a person can't do who lacks these rights, and whom an admin binds to what.
pub(super) fn without(missing: &[&Right], me: Option<&str>, namespace: &str) -> Vec<Finding> {
    if missing.is_empty() {
        return vec![Finding::good("rights", "you may do what an engineer on call has to")];
    }
    let mut told = Vec::new();
    let found = missing.iter().map(|right| {
        let resource =
            right.subresource.map_or_else(|| right.resource.to_owned(), |sub| format!("{}/{sub}", right.resource));
        let place = if right.here { format!(" in namespace {namespace}") } else { String::new() };
        let role = if right.here { "Role bascule-live-report" } else { "ClusterRole bascule-on-call" };
        let finding = Finding::warning(
            "rights",
            format!("you may not {} {resource}{place}: {} won't work", right.verb, right.without),
            format!("An admin binds you to the {role} (docs/install.md)."),
        );
        // Once for each role: it gives all of them.
        match me {
            Some(me) if !told.contains(&role) => {
                told.push(role);
                finding.run(binding(me, right.here.then_some(namespace)))
            }
            _ => finding,
        }
    });
    found.collect()
}

/// What an admin types to give a person the role for everything, or the one in the operator's namespace.
fn binding(user: &str, namespace: Option<&str>) -> String {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let name: String =
        user.to_ascii_lowercase().chars().map(|letter| if plain(letter) { letter } else { '-' }).collect();
    let user = crate::cluster::quoted(user);
    match namespace {
        None => format!(
            "kubectl create clusterrolebinding bascule-on-call-{name} --clusterrole=bascule-on-call --user={user}"
        ),
        Some(namespace) => format!(
            "kubectl -n {namespace} create rolebinding bascule-live-report-{name} --role=bascule-live-report --user={user}"
        ),
    }
}

async fn may(client: &Client, right: &Right, namespace: &str) -> kube::Result<bool> {
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(right.resource.to_owned()),
        subresource: right.subresource.map(str::to_owned),
        verb: Some(right.verb.to_owned()),
        namespace: right.here.then(|| namespace.to_owned()),
        // The Role names the Lease.
        name: (right.resource == "leases").then(|| bascule_api::OPERATOR_LEASE.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_admin_is_told_what_to_type_for_a_person_whatever_the_name() {
        assert_eq!(
            binding("oidc:Alice@example.com", None),
            "kubectl create clusterrolebinding bascule-on-call-oidc-alice-example-com --clusterrole=bascule-on-call \
             --user=oidc:Alice@example.com"
        );
        let odd = binding("o'neil", Some("bascule-system"));
        assert!(odd.starts_with("kubectl -n bascule-system create rolebinding bascule-live-report-o-neil "), "{odd}");
        assert!(odd.ends_with(r"--user='o'\''neil'"), "{odd}");
    }

    #[test]
    fn a_definition_that_lacks_a_field_is_found() {
        let wanted = bascule_api::custom_resource_definitions();
        // As the API server answers: every kind with its own schema.
        let served: serde_json::Map<String, Value> = wanted
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
        let mut document = json!({"components": {"schemas": served}});
        assert_eq!(unknown_fields(&wanted, &document), Vec::<String>::new());
        let policy = &mut document["components"]["schemas"]["dev.bascule.v1alpha1.UpdatePolicy"];
        policy["properties"]["spec"]["properties"].as_object_mut().unwrap().remove("retries").unwrap();
        let hooks = &mut policy["properties"]["spec"]["properties"]["hooks"]["properties"]["beforeDrain"]["items"];
        hooks["properties"].as_object_mut().unwrap().remove("timeout").unwrap();
        let lacking = unknown_fields(&wanted, &document);
        assert_eq!(lacking, ["UpdatePolicy spec.hooks.beforeDrain[].timeout", "UpdatePolicy spec.retries"]);
    }
}
