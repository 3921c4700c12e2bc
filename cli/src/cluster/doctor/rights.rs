//! What a person may do with Bascule's kinds. The API server tells it everybody it knows.

use super::Finding;
use crate::cluster::problem::{self, Role};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SelfSubjectRulesReview,
    SelfSubjectRulesReviewSpec,
};
use kube::{Api, Client, api::PostParams};

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

impl Right {
    /// `pods/proxy`.
    fn whole_resource(&self) -> String {
        self.subresource.map_or_else(|| self.resource.to_owned(), |sub| format!("{}/{sub}", self.resource))
    }

    /// The one object that is needed. The Role names the Lease.
    fn name(&self) -> Option<&'static str> {
        (self.resource == "leases").then_some(bascule_api::OPERATOR_LEASE)
    }
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
    Right { here: true, ..right("coordination.k8s.io", "leases", "get", "the live report") },
    Right { here: true, subresource: Some("proxy"), ..right("", "pods", "get", "the live report") },
];

/// No namespace can have this name, so that no Role can be in it: what may be done there may be done in all of them.
const NO_NAMESPACE: &str = "no.namespace";

/// Which rights of an on-call engineer are missing.
pub(super) async fn granted(client: &Client, namespace: &str) -> anyhow::Result<Vec<Finding>> {
    // Two questions instead of one for each right, of which each takes a connection of its own.
    let (here, everywhere) = tokio::join!(rules(client, namespace), rules(client, NO_NAMESPACE));
    let unsaid = RIGHTS.iter().filter(|right| !allowed(if right.here { &here } else { &everywhere }, right));
    let unsaid: Vec<&Right> = unsaid.collect();
    let answers = futures::future::join_all(unsaid.iter().map(|right| may(client, right, namespace))).await;
    let mut missing = Vec::new();
    for (right, answer) in unsaid.into_iter().zip(answers) {
        if !answer.map_err(|error| problem::told(error, "create", "SelfSubjectAccessReviews", Role::OnCall))? {
            missing.push(right);
        }
    }
    // Nothing is written in this name: without it the command is left out, and there is no more to say.
    let me = if missing.is_empty() { None } else { crate::cluster::user(client).await.ok().flatten() };
    Ok(without(&missing, me.as_deref(), namespace))
}

/// What the person may do in a namespace. Nothing where that is not the whole truth: then each right is asked for.
async fn rules(client: &Client, namespace: &str) -> Vec<ResourceRule> {
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
    let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
    let answer = Api::<SelfSubjectRulesReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    // An authorizer that can't list what it allows may as well refuse what others allow.
    let whole = answer.ok().and_then(|review| review.status).filter(|status| !status.incomplete);
    whole.map(|status| status.resource_rules).unwrap_or_default()
}

/// Whether one of the rules gives the right, as RBAC decides. A form of rule that is not known here gives none: then it is asked for.
fn allowed(rules: &[ResourceRule], right: &Right) -> bool {
    let resource = right.whole_resource();
    let has = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
    rules.iter().any(|rule| {
        let names = rule.resource_names.as_deref().unwrap_or_default();
        let named = names.is_empty() || right.name().is_some_and(|name| names.iter().any(|one| one == name));
        named
            && has(&rule.verbs, right.verb)
            && has(rule.api_groups.as_deref().unwrap_or_default(), right.group)
            && has(rule.resources.as_deref().unwrap_or_default(), &resource)
    })
}

/// What a person can't do who lacks these rights, and whom an admin binds to what.
pub(super) fn without(missing: &[&Right], me: Option<&str>, namespace: &str) -> Vec<Finding> {
    if missing.is_empty() {
        return vec![Finding::good("rights", "you may do what an engineer on call has to")];
    }
    let mut told = Vec::new();
    let found = missing.iter().map(|right| {
        let resource = right.whole_resource();
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
        name: right.name().map(str::to_owned),
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
    use serde_json::{Value, json};

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

    fn rule(group: &str, resource: &str, verbs: &[&str], names: &[&str]) -> ResourceRule {
        let mut rule: Value = json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        serde_json::from_value(rule).unwrap()
    }

    fn not_given(rules: &[ResourceRule]) -> Vec<String> {
        let lacking = RIGHTS.iter().filter(|right| !allowed(rules, right));
        lacking.map(|right| format!("{} {}", right.verb, right.whole_resource())).collect()
    }

    #[test]
    fn a_rule_gives_what_it_says_and_no_more() {
        assert_eq!(not_given(&[]).len(), RIGHTS.len());
        assert!(not_given(&[rule("*", "*", &["*"], &[])]).is_empty());
        let all_but_one = |gone: usize| {
            let rules = RIGHTS.iter().enumerate().filter(|(index, _)| *index != gone);
            let rules = rules.map(|(_, right)| {
                let names: Vec<&str> = right.name().into_iter().collect();
                rule(right.group, &right.whole_resource(), &[right.verb], &names)
            });
            rules.collect::<Vec<_>>()
        };
        for (index, right) in RIGHTS.iter().enumerate() {
            let gone = format!("{} {}", right.verb, right.whole_resource());
            assert_eq!(not_given(&all_but_one(index)), [gone]);
        }
        let lacks_proxy = |rule: ResourceRule| not_given(&[rule]).contains(&"get pods/proxy".to_owned());
        // Of one pod, of pods themselves, or of another group's.
        assert!(lacks_proxy(rule("", "pods/proxy", &["get"], &["other"])));
        assert!(lacks_proxy(rule("", "pods", &["*"], &[])));
        assert!(lacks_proxy(rule("metrics.k8s.io", "pods/proxy", &["get"], &[])));
        assert!(!lacks_proxy(rule("", "pods/proxy", &["get"], &[])));
        let other_lease = rule("coordination.k8s.io", "leases", &["get"], &["other"]);
        assert!(not_given(&[other_lease]).contains(&"get leases".to_owned()));
    }
}
