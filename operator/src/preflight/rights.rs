//! Whether the operator may do what it will have to: the Roles in the cluster against those of this version's manifests. A right
//! that is missing is told before the first node is cordoned, and not found missing by a node that nobody can uncordon.

use k8s_openapi::api::authorization::v1::{
    ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec, SubjectRulesReviewStatus,
};
use kube::{Api, Client, api::PostParams};
use serde::Deserialize;

/// What this version's manifests grant; the one list there is.
const MANIFEST: &str = include_str!("../../../manifests/operator/rbac.yaml");
/// The name of the Role and the ClusterRole.
const ROLE: &str = "bascule-operator";
/// What `--node-conditions` needs besides.
const NODE_CONDITIONS: (&str, &str) =
    (include_str!("../../../manifests/components/node-conditions/rbac.yaml"), "bascule-node-conditions");
/// Used by options of policies or of the operator, to tell people, or to clear away: without them the rest works.
const OPTIONAL: [&str; 7] = [
    "delete freezes",
    "delete pods",
    "create events",
    "patch events",
    "get configmaps",
    "get secrets",
    "impersonate serviceaccounts",
];
/// How many rights a message names.
const NAMED: usize = 5;

/// What the API server lets the operator do.
#[derive(Debug)]
pub(super) struct Rights(SubjectRulesReviewStatus);

/// One right of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Right<'a> {
    group: &'a str,
    resource: &'a str,
    verb: &'a str,
    names: &'a [String],
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    metadata: Named,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Rights {
    /// Asks for them, in the operator's own namespace.
    ///
    /// # Errors
    /// What the API server says.
    pub(super) async fn of(client: &Client, namespace: &str) -> kube::Result<Self> {
        let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
        let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
        let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
        Ok(Self(answer.status.unwrap_or_default()))
    }

    /// Whoever may do this may take the admission policies away, and they do not hold it (manifests/admission/operator.yaml).
    pub(super) fn above_admission(&self) -> bool {
        let (group, resource) = ("admissionregistration.k8s.io", "validatingadmissionpolicies");
        self.allow(&Right { group, resource, verb: "update", names: &[] })
    }

    /// One sentence about what is missing.
    pub(super) fn missing(&self, namespace: &str) -> Option<String> {
        if self.0.incomplete {
            // Another authorizer than RBAC has its say, and does not tell.
            return None;
        }
        let mut needed = self.lacking(&manifest((MANIFEST, ROLE)));
        needed.retain(|right| !OPTIONAL.contains(&right.as_str()));
        if needed.is_empty() {
            return None;
        }
        let more = if needed.len() > NAMED { format!(" and {} more", needed.len() - NAMED) } else { String::new() };
        let named = needed.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        Some(format!(
            "the operator may not {named}{more}: apply manifests/operator/rbac.yaml of this version ({}), and see that it is for \
             the namespace in which the operator runs ({namespace}) and its service account",
            env!("CARGO_PKG_VERSION")
        ))
    }

    /// What options miss. Nothing else waits for it.
    pub(super) fn missing_for_options(&self) -> Option<String> {
        let mut lacking = if self.0.incomplete { Vec::new() } else { self.lacking(&manifest((MANIFEST, ROLE))) };
        lacking.retain(|right| OPTIONAL.contains(&right.as_str()));
        (!lacking.is_empty()).then(|| {
            let rights = lacking.join(", ");
            format!(
                "the operator may not {rights}, and what needs that does not work: manifests/operator/rbac.yaml has it"
            )
        })
    }

    /// What `--node-conditions` misses. Nothing else waits for it.
    pub(super) fn missing_for_node_conditions(&self) -> Option<String> {
        let lacking = if self.0.incomplete { Vec::new() } else { self.lacking(&manifest(NODE_CONDITIONS)) };
        (!lacking.is_empty()).then(|| {
            let rights = lacking.join(", ");
            format!(
                "the operator may not {rights}, so Nodes don't show what happens to them: add the component \
                 manifests/components/node-conditions, or leave --node-conditions out"
            )
        })
    }

    fn lacking(&self, rules: &[Rule]) -> Vec<String> {
        let lacking = rules.iter().flat_map(rights).filter(|right| !self.allow(right));
        let mut lacking: Vec<String> = lacking.map(|right| format!("{} {}", right.verb, right.resource)).collect();
        lacking.sort();
        lacking.dedup();
        lacking
    }

    fn allow(&self, right: &Right<'_>) -> bool {
        self.0.resource_rules.iter().any(|rule| allows(rule, right))
    }
}

/// As RBAC decides (`pkg/registry/rbac/validation`, `VerbMatches` and its neighbours).
fn allows(rule: &ResourceRule, right: &Right<'_>) -> bool {
    let has = |list: &Option<Vec<String>>, wanted: &str| list.iter().flatten().any(|one| one == "*" || one == wanted);
    let names = rule.resource_names.as_deref().unwrap_or_default();
    let named = names.is_empty() || (!right.names.is_empty() && right.names.iter().all(|name| names.contains(name)));
    let verbs = rule.verbs.iter().any(|one| one == "*" || one == right.verb);
    verbs && named && has(&rule.api_groups, right.group) && has(&rule.resources, right.resource)
}

fn rights(rule: &Rule) -> impl Iterator<Item = Right<'_>> {
    rule.api_groups.iter().flat_map(move |group| {
        rule.resources.iter().flat_map(move |resource| {
            rule.verbs.iter().map(move |verb| Right { group, resource, verb, names: &rule.resource_names })
        })
    })
}

/// The rules of the Role and the ClusterRole of a name; a test holds that there are some.
fn manifest((text, role): (&str, &str)) -> Vec<Rule> {
    let documents: Vec<Document> = serde_saphyr::from_multiple(text).unwrap_or_default();
    let own = documents.into_iter().filter(|one| one.metadata.name == role && one.kind.ends_with("Role"));
    own.flat_map(|one| one.rules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the API server would tell of some rules.
    fn told(rules: &[Rule]) -> Rights {
        let rule = |rule: &Rule| ResourceRule {
            api_groups: Some(rule.api_groups.clone()),
            resources: Some(rule.resources.clone()),
            resource_names: Some(rule.resource_names.clone()),
            verbs: rule.verbs.clone(),
        };
        Rights(SubjectRulesReviewStatus {
            resource_rules: rules.iter().map(rule).collect(),
            ..SubjectRulesReviewStatus::default()
        })
    }

    #[test]
    fn each_right_of_the_manifest_is_missed_when_it_is_not_there() {
        let rules = manifest((MANIFEST, ROLE));
        assert!(rules.len() > 15, "{}", rules.len());
        assert_eq!((told(&rules).missing("ns"), told(&rules).missing_for_options()), (None, None));
        let every = Rule {
            api_groups: vec!["*".to_owned()],
            resources: vec!["*".to_owned()],
            verbs: vec!["*".to_owned()],
            resource_names: Vec::new(),
        };
        let admin = told(&[every]);
        assert_eq!(admin.missing("ns"), None);
        assert!(admin.above_admission() && !told(&rules).above_admission());
        let mut needed = 0;
        for number in 0..rules.len() {
            let mut less = manifest((MANIFEST, ROLE));
            let gone = less.remove(number);
            let optional = |verb: &String| OPTIONAL.contains(&format!("{verb} {}", gone.resources[0]).as_str());
            let said = told(&less).missing("ns");
            if gone.verbs.iter().all(optional) {
                assert_eq!(said, None);
                assert!(told(&less).missing_for_options().is_some_and(|said| said.contains(&gone.resources[0])));
            } else {
                needed += 1;
                let said = said.unwrap();
                assert!(said.contains(&gone.resources[0]) && said.contains("namespace in which"), "{said}");
            }
        }
        assert!(needed > 12, "{needed}");
        let unknown = Rights(SubjectRulesReviewStatus { incomplete: true, ..SubjectRulesReviewStatus::default() });
        assert_eq!(unknown.missing("ns"), None, "somebody else decides");
    }

    #[test]
    fn the_status_of_nodes_is_asked_for_by_an_option_only() {
        let rules = manifest((MANIFEST, ROLE));
        assert!(!rules.iter().any(|rule| rule.resources.contains(&"nodes/status".to_owned())));
        let said = told(&rules).missing_for_node_conditions().unwrap();
        assert!(said.contains("may not patch nodes/status") && said.contains("components/node-conditions"), "{said}");
        let more: Vec<Rule> = rules.into_iter().chain(manifest(NODE_CONDITIONS)).collect();
        assert_eq!(told(&more).missing_for_node_conditions(), None);
    }

    #[test]
    fn a_name_that_is_granted_is_not_every_name() {
        let rule = |names: &[&str]| ResourceRule {
            api_groups: Some(vec!["g".to_owned()]),
            resources: Some(vec!["r".to_owned()]),
            resource_names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            verbs: vec!["get".to_owned()],
        };
        let [one, two] = [vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]];
        let right = |names| Right { group: "g", resource: "r", verb: "get", names };
        assert!(allows(&rule(&[]), &right(&one)) && allows(&rule(&["a", "b"]), &right(&two)));
        assert!(!allows(&rule(&["a"]), &right(&two)) && !allows(&rule(&["a"]), &right(&[])));
        assert!(!allows(&rule(&[]), &Right { verb: "list", ..right(&one) }));
    }
}
