//! Whether the admission policies hold: that each is there, says what this version's manifest says, denies, and holds everybody
//! whom it is for; and that the API server enforces them at all, which is tried (docs/decisions/0033). Asked when the operator
//! starts, whenever it comes to lead, and while it leads.

use super::{rights::Rights, there};
use crate::one_line;
use bascule_api::NodeUpdate;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Map, Value, json};

/// What this version's manifests say; the one list there is.
pub(super) const MANIFESTS: [(&str, &str); 4] = [
    ("bascule-agent", include_str!("../../../manifests/admission/agent.yaml")),
    ("bascule-operator", include_str!("../../../manifests/admission/operator.yaml")),
    ("bascule-on-call", include_str!("../../../manifests/admission/on-call.yaml")),
    ("bascule-lease", include_str!("../../../manifests/admission/lease.yaml")),
];

/// What is known to be wrong. A newer version's policies may say something else, since they are applied before its operators
/// come; but they deny, and everybody. What can't be looked at now is not wrong.
pub(super) async fn broken(client: &Client, namespace: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, _) in MANIFESTS {
        let policy = there::<ValidatingAdmissionPolicy>(client, name).await;
        let binding = there::<ValidatingAdmissionPolicyBinding>(client, name).await;
        let (Ok(policy), Ok(binding)) = (policy, binding) else { continue };
        broken.extend(weakness(name, policy.as_ref(), binding.as_ref()));
    }
    if broken.is_empty()
        && let Ok(rights) = Rights::of(client, namespace).await
        && let Err(NotEnforced::Seen(why)) = tried(client, &rights).await
    {
        broken.push(why);
    }
    broken
}

/// What is missing of the policies or is not as this version's manifests have it.
pub(super) async fn differing(client: &Client) -> Vec<String> {
    let mut differing = Vec::new();
    for (name, manifest) in MANIFESTS {
        let policy = there::<ValidatingAdmissionPolicy>(client, name).await;
        let binding = there::<ValidatingAdmissionPolicyBinding>(client, name).await;
        match (policy, binding) {
            (Err(why), _) | (_, Err(why)) => differing.extend(why),
            (Ok(policy), Ok(binding)) => {
                let weakness = weakness(name, policy.as_ref(), binding.as_ref());
                let policy = policy.as_ref().filter(|_| weakness.is_none());
                differing.extend(weakness);
                differing.extend(policy.and_then(|policy| difference(name, manifest, policy)));
            }
        }
    }
    differing
}

/// Whether the API server lets the operator do what it only asks about.
///
/// # Errors
/// What is wrong, or why that is not known, with what mends it.
pub(super) async fn not_enforced(client: &Client, rights: &Rights) -> Result<(), String> {
    tried(client, rights).await.map_err(|(NotEnforced::Seen(why) | NotEnforced::Unknown(why))| why)
}

enum NotEnforced {
    Seen(String),
    Unknown(String),
}

async fn tried(client: &Client, rights: &Rights) -> Result<(), NotEnforced> {
    // Who is above the admission policies learns nothing from trying.
    if rights.above_admission() {
        return Ok(());
    }
    let asks = json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
        "metadata": {"generateName": "asks-", "annotations": {"bascule.dev/is-this-refused": "yes"}},
        "spec": {"policy": "none", "goal": "Idle"},
    });
    let unknown = |why: String| {
        NotEnforced::Unknown(format!("whether the API server enforces the admission policies can't be tried: {why}"))
    };
    let asks: NodeUpdate = serde_json::from_value(asks).map_err(|error| unknown(error.to_string()))?;
    let only_asking = PostParams { dry_run: true, ..PostParams::default() };
    match Api::<NodeUpdate>::all(client.clone()).create(&only_asking, &asks).await {
        Ok(_) => Err(NotEnforced::Seen(
            "the API server does not enforce the ValidatingAdmissionPolicy bascule-operator, and so perhaps none, and without them a \
             node could speak for another: its --disable-admission-plugins must not name ValidatingAdmissionPolicy, and the \
             binding's validationActions must be [Deny] as in manifests/admission"
                .to_owned(),
        )),
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy 'bascule-operator'") => Ok(()),
        Err(error) => Err(unknown(one_line(&error))),
    }
}

/// Why a policy does not hold everybody whom it is for, whatever it says.
fn weakness(
    name: &str,
    policy: Option<&ValidatingAdmissionPolicy>,
    binding: Option<&ValidatingAdmissionPolicyBinding>,
) -> Option<String> {
    let (Some(policy), Some(binding)) = (policy, binding) else {
        return Some(format!(
            "the ValidatingAdmissionPolicy {name} or its binding is not there, and without it a node could speak for \
             another: apply manifests/admission, and see that the API server serves admissionregistration.k8s.io/v1"
        ));
    };
    let bound = &binding.spec;
    let what = if policy.spec.as_ref().and_then(|spec| spec.failure_policy.as_deref()) == Some("Ignore") {
        "its failurePolicy is Ignore"
    } else if !bound.validation_actions.iter().any(|action| action == "Deny") {
        "the validationActions of its binding do not name Deny"
    } else if bound.policy_name != name || bound.match_resources.is_some() || bound.param_ref.is_some() {
        "its binding is for another policy, or narrows whom it holds"
    } else {
        return None;
    };
    Some(format!(
        "the ValidatingAdmissionPolicy {name} does not hold everybody whom it is for: {what}; apply manifests/admission"
    ))
}

/// Where a policy says something else than a manifest.
fn difference(name: &str, manifest: &str, found: &ValidatingAdmissionPolicy) -> Option<String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap_or_default();
    let wanted = documents.into_iter().find_map(|document| {
        let policy: ValidatingAdmissionPolicy = serde_json::from_value(document).ok()?;
        policy.spec.as_ref()?.validations.as_ref()?;
        Some(said(&policy))
    });
    let (wanted, found) = (wanted.unwrap_or_default(), said(found));
    let differs = |key: &&String| wanted.get(*key) != found.get(*key);
    let field = wanted.keys().chain(found.keys()).find(differs)?;
    Some(format!(
        "the ValidatingAdmissionPolicy {name} is not that of this version ({}): its {field} is another; apply manifests/admission",
        env!("CARGO_PKG_VERSION")
    ))
}

/// What a policy says, without what the API server adds to every policy that does not say it.
fn said(policy: &ValidatingAdmissionPolicy) -> Map<String, Value> {
    let mut spec = match serde_json::to_value(&policy.spec) {
        Ok(Value::Object(spec)) => spec,
        _ => return Map::new(),
    };
    spec.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
    if let Some(matching) = spec.get_mut("matchConstraints").and_then(Value::as_object_mut) {
        for (key, default) in
            [("matchPolicy", json!("Equivalent")), ("namespaceSelector", json!({})), ("objectSelector", json!({}))]
        {
            matching.entry(key).or_insert(default);
        }
        for rule in matching.get_mut("resourceRules").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(rule) = rule.as_object_mut() {
                rule.entry("scope").or_insert(json!("*"));
            }
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(name: &str, manifest: &str) -> (ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding) {
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap();
        let [policy, binding] = <[Value; 2]>::try_from(documents).unwrap();
        assert_eq!((&policy["metadata"]["name"], &binding["metadata"]["name"]), (&json!(name), &json!(name)));
        (serde_json::from_value(policy).unwrap(), serde_json::from_value(binding).unwrap())
    }

    #[test]
    fn every_policy_of_the_manifests_is_looked_at() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/admission");
        let files = std::fs::read_dir(folder).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name != "kustomization.yaml"
        });
        assert_eq!(files.count(), MANIFESTS.len());
        for (name, manifest) in MANIFESTS {
            let (policy, binding) = objects(name, manifest);
            assert_eq!(weakness(name, Some(&policy), Some(&binding)), None);
            assert_eq!(difference(name, manifest, &policy), None);
        }
    }

    #[test]
    fn a_policy_that_is_weaker_than_the_manifest_is_told() {
        let (name, manifest) = MANIFESTS[0];
        let (policy, binding) = objects(name, manifest);
        let weak = |policy: Option<&ValidatingAdmissionPolicy>, change: &dyn Fn(&mut Value)| {
            let mut bound = serde_json::to_value(&binding).unwrap();
            change(&mut bound);
            weakness(name, policy, Some(&serde_json::from_value(bound).unwrap())).unwrap_or_default()
        };
        assert!(weak(None, &|_| {}).contains("is not there"));
        assert!(weakness(name, Some(&policy), None).is_some_and(|said| said.contains("is not there")));
        for action in ["Audit", "Warn"] {
            let said = weak(Some(&policy), &|bound| bound["spec"]["validationActions"] = json!([action]));
            assert!(said.contains("do not name Deny"), "{said}");
        }
        assert_eq!(weak(Some(&policy), &|bound| bound["spec"]["validationActions"] = json!(["Deny", "Audit"])), "");
        let narrow = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}});
        assert!(weak(Some(&policy), &|bound| bound["spec"]["matchResources"] = narrow.clone()).contains("narrows"));
        assert!(weak(Some(&policy), &|bound| bound["spec"]["policyName"] = json!("other")).contains("narrows"));
        let mut open = policy.clone();
        open.spec.as_mut().unwrap().failure_policy = Some("Ignore".to_owned());
        assert!(weak(Some(&open), &|_| {}).contains("Ignore"));

        // What the API server adds is no difference; what somebody took away is.
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut found = serde_json::to_value(&policy).unwrap();
            change(&mut found["spec"]);
            difference(name, manifest, &serde_json::from_value(found).unwrap())
        };
        assert_eq!(changed(&|spec| spec["matchConstraints"]["matchPolicy"] = json!("Equivalent")), None);
        assert_eq!(changed(&|spec| spec["matchConstraints"]["resourceRules"][0]["scope"] = json!("*")), None);
        for (field, change) in [
            (
                "validations",
                &(|spec: &mut Value| drop(spec["validations"].as_array_mut().unwrap().pop())) as &dyn Fn(&mut Value),
            ),
            ("matchConditions", &|spec| spec["matchConditions"][0]["expression"] = json!("false")),
            ("matchConstraints", &|spec| {
                spec["matchConstraints"]["excludeResourceRules"] = spec["matchConstraints"]["resourceRules"].clone()
            }),
            ("matchConstraints", &|spec| {
                spec["matchConstraints"]["objectSelector"] = json!({"matchLabels": {"a": "b"}})
            }),
        ] {
            let said = changed(change).unwrap_or_default();
            assert!(said.contains(&format!("its {field} is another")), "{field}: {said}");
        }
    }
}
