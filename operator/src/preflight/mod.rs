//! What has to be there before the operator may act: an API server that is new enough, Bascule's definitions in a version
//! that this program knows, the rights that it needs, and the admission policies, enforced, without which an agent could speak
//! for another node. What is missing is told in the log, by `/readyz` and as an event on the operator's pod, with what mends it,
//! until it is there.

mod admission;
mod leading;
#[cfg(test)]
mod leading_tests;
mod rights;

use crate::{one_line, server::Readiness, trouble::Trouble};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, Resource, ResourceExt as _};
pub(crate) use leading::{AGAIN_WHILE_LEADING, holds, no_longer_holds};
use rights::Rights;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// The oldest Kubernetes that is supported, `1.<minor>` (docs/install.md).
pub const OLDEST_MINOR: u32 = 34;
/// How often what is missing is looked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// How many fields of a definition a message names.
const NAMED: usize = 3;
/// Limits of which a lower one refuses more, and those of which a higher one does.
const UPPER: [&str; 4] = ["maxItems", "maxLength", "maxProperties", "maximum"];
const LOWER: [&str; 4] = ["minItems", "minLength", "minProperties", "minimum"];

/// Returns when everything is there.
pub(crate) async fn passed(
    client: &Client,
    namespace: &str,
    node_conditions: bool,
    readiness: &Readiness,
    trouble: &Trouble,
) {
    const SO: &str = "the operator can't act yet";
    let mut told = Told::default();
    loop {
        let found = missing(client, namespace, node_conditions, &mut told).await;
        if told.nothing(readiness, SO, found) {
            return;
        }
        trouble.tell(&told.told(SO)).await;
        tokio::time::sleep(AGAIN).await;
    }
}

/// What was found last time.
#[derive(Debug, Default)]
struct Told {
    missing: Vec<String>,
    /// What nothing waits for.
    besides: Vec<String>,
}

impl Told {
    /// Whether nothing is found. What is makes the operator not ready, and is logged once as long as it stays.
    fn nothing(&mut self, readiness: &Readiness, so: &str, found: Vec<String>) -> bool {
        for sentence in found.iter().filter(|sentence| !self.missing.contains(*sentence)) {
            tracing::error!(missing = sentence, "{so}");
        }
        readiness.block(&found);
        self.missing = found;
        self.missing.is_empty()
    }

    /// All of it in a sentence.
    fn told(&self, so: &str) -> String {
        format!("{so}: {}", self.missing.join("; "))
    }

    /// Warns of what nothing waits for, once as long as it stays. How many warnings that are.
    fn besides(&mut self, found: Vec<String>) -> usize {
        let new: Vec<&String> = found.iter().filter(|sentence| !self.besides.contains(*sentence)).collect();
        for sentence in &new {
            tracing::warn!("{sentence}");
        }
        let warnings = new.len();
        self.besides = found;
        warnings
    }
}

async fn missing(client: &Client, namespace: &str, node_conditions: bool, told: &mut Told) -> Vec<String> {
    let mut missing = Vec::new();
    match client.apiserver_version().await {
        Ok(version) => missing.extend(too_old(&version.major, &version.minor)),
        Err(error) => return vec![format!("the API server does not tell its version: {}", one_line(&error))],
    }
    for wanted in bascule_api::custom_resource_definitions() {
        match definition(client, &wanted).await {
            Ok(said) | Err(said) => missing.extend(said),
        }
    }
    missing.extend(admission::differing(client).await);
    let rights = match Rights::of(client, namespace).await {
        Ok(rights) => rights,
        Err(error) => {
            missing.push(format!("the API server does not tell the operator's rights: {}", one_line(&error)));
            return missing;
        }
    };
    missing.extend(rights.missing(namespace));
    let of_options = rights.missing_for_options();
    let of_conditions = rights.missing_for_node_conditions().filter(|_| node_conditions);
    told.besides(of_options.into_iter().chain(of_conditions).collect());
    if missing.is_empty() {
        missing.extend(admission::not_enforced(client, &rights).await.err());
    }
    missing
}

/// What is wrong with a definition.
///
/// # Errors
/// Why that is not known, where something can be done about it.
async fn definition(client: &Client, wanted: &CustomResourceDefinition) -> Result<Option<String>, Option<String>> {
    let name = wanted.name_any();
    Ok(match there::<CustomResourceDefinition>(client, &name).await? {
        None => Some(format!(
            "the definition {name} is not there: apply manifests/crds of this version ({})",
            env!("CARGO_PKG_VERSION")
        )),
        Some(found) => older(&name, wanted, &found),
    })
}

/// An object, `None` where there is none. Where an older Role does not let us look, nothing is said against it.
async fn there<K>(client: &Client, name: &str) -> Result<Option<K>, Option<String>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    match Api::<K>::all(client.clone()).get_opt(name).await {
        Ok(found) => Ok(found),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            tracing::warn!(kind = %K::kind(&()), name, "it can't be looked at; apply the operator's Role of this version");
            Err(None)
        }
        Err(error) => Err(Some(format!("{} {name} can't be read: {}", K::kind(&()), one_line(&error)))),
    }
}

fn too_old(major: &str, minor: &str) -> Option<String> {
    // Some providers write "34+".
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match (number(major), number(minor)) {
        (Some(1), Some(minor)) if minor < OLDEST_MINOR => Some(format!(
            "this is Kubernetes 1.{minor}, and Bascule needs 1.{OLDEST_MINOR} or newer: update the control plane first"
        )),
        _ => None,
    }
}

/// Whether a definition in the cluster lacks fields that this program writes or reads, or values that it writes into them.
fn older(name: &str, wanted: &CustomResourceDefinition, found: &CustomResourceDefinition) -> Option<String> {
    let schema = |definition: &CustomResourceDefinition, version: &str| -> Option<Value> {
        let version = definition.spec.versions.iter().find(|one| one.name == version && one.served)?;
        serde_json::to_value(version.schema.as_ref()?.open_api_v3_schema.as_ref()?).ok()
    };
    let version = &wanted.spec.versions.first()?.name;
    let Some(found) = schema(found, version) else {
        return Some(format!("the definition {name} does not serve {version}: apply manifests/crds of this version"));
    };
    let mut lacking = Vec::new();
    lacks(&schema(wanted, version)?, &found, "", &mut lacking);
    if lacking.is_empty() {
        return None;
    }
    let more = if lacking.len() > NAMED { format!(" and {} more", lacking.len() - NAMED) } else { String::new() };
    let named = lacking.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    Some(format!(
        "the definition {name} is older than this operator: it lacks {named}{more}; apply manifests/crds of this version"
    ))
}

/// Paths of fields that a schema has and another has not, and of those into which the other lets less.
fn lacks(wanted: &Value, found: &Value, path: &str, lacking: &mut Vec<String>) {
    if found.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        return;
    }
    refuses(wanted, found, path, lacking);
    for (name, wanted) in wanted.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = field(path, name);
        match found.get("properties").and_then(|properties| properties.get(name)) {
            Some(found) => lacks(wanted, found, &path, lacking),
            None => lacking.push(path),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let (Some(wanted), Some(found)) = (wanted.get(inner), found.get(inner)) {
            lacks(wanted, found, path, lacking);
        }
    }
}

/// What a schema takes in one field and another refuses there, which would refuse the whole object with it. Patterns and rules can't be
/// compared.
fn refuses(wanted: &Value, found: &Value, path: &str, lacking: &mut Vec<String>) {
    let list = |schema: &Value, key: &str| schema.get(key).and_then(Value::as_array).cloned();
    if let Some(taken) = list(found, "enum") {
        match list(wanted, "enum") {
            Some(wanted) => lacking.extend(wanted.iter().filter(|value| !taken.contains(value)).map(|value| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!("{path}={value}")
            })),
            None => lacking.push(format!("any value of {path}")),
        }
    }
    let limit = |schema: &Value, key: &str| schema.get(key).and_then(Value::as_f64);
    for (keys, sign) in [(UPPER, 1.0), (LOWER, -1.0)] {
        for key in keys {
            let (Some(taken), wanted) = (limit(found, key), limit(wanted, key)) else { continue };
            if wanted.is_none_or(|wanted| sign * taken < sign * wanted) {
                let wanted = wanted.map_or_else(|| "none".to_owned(), |wanted| wanted.to_string());
                lacking.push(format!("{path} ({key} {wanted})"));
            }
        }
    }
    let needed = list(wanted, "required").unwrap_or_default();
    let more = list(found, "required").unwrap_or_default().into_iter().filter(|name| !needed.contains(name));
    lacking.extend(more.filter_map(|name| Some(format!("{} (optional)", field(path, name.as_str()?)))));
}

fn field(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_control_plane_is_told_from_a_new_one() {
        assert!(too_old("1", "33").is_some_and(|said| said.contains("1.33") && said.contains("1.34 or newer")));
        assert!(too_old("1", "29+").is_some());
        for (major, minor) in [("1", "34"), ("1", "36+"), ("2", "0"), ("", "")] {
            assert_eq!(too_old(major, minor), None, "{major}.{minor}");
        }
        let page = include_str!("../../../docs/install.md");
        assert!(page.contains(&format!("Kubernetes 1.{OLDEST_MINOR}")), "docs/install.md says another version");
    }

    #[test]
    fn what_nothing_waits_for_is_told_once_as_long_as_it_stays() {
        let mut told = Told::default();
        let found = |sentences: &[&str]| sentences.iter().map(|sentence| (*sentence).to_owned()).collect::<Vec<_>>();
        assert_eq!(told.besides(found(&["a"])), 1);
        assert_eq!(told.besides(found(&["a"])), 0);
        assert_eq!(told.besides(found(&["a", "b"])), 1);
        assert_eq!(told.besides(found(&[])), 0);
        assert_eq!(told.besides(found(&["a"])), 1, "it had gone in between");
    }

    #[test]
    fn a_definition_that_lacks_a_field_is_older_and_one_with_more_is_not() {
        for wanted in bascule_api::custom_resource_definitions() {
            let name = wanted.name_any();
            assert_eq!(older(&name, &wanted, &wanted), None);
            let mut less = wanted.clone();
            let schema = less.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
            let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
            let dropped = spec.properties.as_mut().unwrap().pop_first().unwrap().0;
            let said = older(&name, &wanted, &less).unwrap();
            assert!(said.contains(&format!("it lacks spec.{dropped}")), "{said}");
            assert_eq!(older(&name, &less, &wanted), None, "the next version's definitions are applied first");
            less.spec.versions[0].name = "v1".to_owned();
            assert!(older(&name, &wanted, &less).unwrap().contains("does not serve v1alpha1"));
        }
    }

    #[test]
    fn a_definition_that_does_not_know_a_reason_is_older() {
        for (kind, field) in [
            ("UpdatePolicy", "waitsFor/properties/reason"),
            ("NodeUpdate", "rollout/properties/reason"),
            ("NodeUpdate", "failedReleases/items/properties/category"),
        ] {
            let all = bascule_api::custom_resource_definitions();
            let wanted = all.into_iter().find(|definition| definition.spec.names.kind == kind).unwrap();
            let mut less = serde_json::to_value(&wanted).unwrap();
            let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
            let values = less.pointer_mut(&format!("{status}/{field}/enum")).unwrap().as_array_mut().unwrap();
            let dropped = values.remove(3);
            let less: CustomResourceDefinition = serde_json::from_value(less).unwrap();
            let said = older("x", &wanted, &less).unwrap();
            let path = field.replace("/properties/", ".").replace("/items", "");
            assert!(said.contains(&format!("it lacks status.{path}={}", dropped.as_str().unwrap())), "{said}");
            assert_eq!(older("x", &less, &wanted), None, "the next version's definitions are applied first");
        }
    }

    #[test]
    fn a_definition_that_takes_less_in_any_way_is_older() {
        let wanted = serde_json::json!({
            "properties": {
                "word": {"enum": ["a", "b", null]},
                "words": {"items": {"enum": ["c"]}, "maxItems": 64},
                "free": {"type": "string", "maxLength": 8},
                "count": {"minimum": 1},
            },
            "required": ["word"],
        });
        let said = |change: &dyn Fn(&mut Value)| {
            let (mut found, mut lacking) = (wanted.clone(), Vec::new());
            change(&mut found);
            lacks(&wanted, &found, "", &mut lacking);
            lacking
        };
        assert_eq!(said(&|_| {}), Vec::<String>::new());
        for (pointer, value, lacking) in [
            ("/properties/word/enum", serde_json::json!(["b", "z"]), vec!["word=a", "word=null"]),
            ("/properties/words/items/enum", serde_json::json!([]), vec!["words=c"]),
            ("/properties/words/maxItems", serde_json::json!(63), vec!["words (maxItems 64)"]),
            ("/properties/free/enum", serde_json::json!(["a"]), vec!["any value of free"]),
            ("/properties/free/maxItems", serde_json::json!(1), vec!["free (maxItems none)"]),
            ("/properties/count/minimum", serde_json::json!(2), vec!["count (minimum 1)"]),
            ("/required", serde_json::json!(["word", "free"]), vec!["free (optional)"]),
            // More is no less.
            ("/properties/words/maxItems", serde_json::json!(65), vec![]),
            ("/properties/count/minimum", serde_json::json!(0), vec![]),
            ("/properties/word/enum", serde_json::json!(["a", "b", null, "z"]), vec![]),
            ("/required", serde_json::json!([]), vec![]),
        ] {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let change = |found: &mut Value| found.pointer_mut(parent).unwrap()[key] = value.clone();
            assert_eq!(said(&change), lacking, "{pointer}");
        }
    }
}
