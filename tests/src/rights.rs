//! Rights that are granted against rights that are used, by the API server's own log: one that nothing needs is one that only
//! an attacker would use.

use crate::control_plane::Request;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::{Api, Client};
use std::collections::BTreeSet;

/// The namespace of the operator's own Role.
pub const HOME: &str = "bascule-system";

const LISTS: &str = "an API server that does not stream lists, or a watch that is too old";
/// What no test or story makes the operator do at once with all else, with what does it.
pub const OPERATOR_ELSEWHERE: &[(&str, &str)] = &[
    ("delete pods", "spec.drain.onTimeout: Delete"),
    ("patch rollbacks/status.bascule.dev", "a Rollback"),
    ("patch events.events.k8s.io", "an event that comes again becomes a series"),
    ("get secrets", "spec.health.prometheusSecret"),
    ("impersonate serviceaccounts", "an object gate; the log names it as the account that is impersonated"),
    ("list daemonsets.apps", LISTS),
    ("list jobs.batch", LISTS),
    ("list persistentvolumeclaims", LISTS),
    ("list poddisruptionbudgets.policy", LISTS),
    ("list volumeattachments.storage.k8s.io", LISTS),
];

/// What an account was granted, as `verb resource.group`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// In the whole cluster.
    pub everywhere: BTreeSet<String>,
    /// In its own namespace only.
    pub at_home: BTreeSet<String>,
}

impl Granted {
    /// What a ClusterRole, and a Role of its name where there is one in [`HOME`], grant.
    ///
    /// # Errors
    /// When there is no such ClusterRole, or the server does not answer.
    pub async fn of(client: &Client, role: &str) -> kube::Result<Self> {
        let cluster: Api<ClusterRole> = Api::all(client.clone());
        let roles: Api<Role> = Api::namespaced(client.clone(), HOME);
        let at_home = roles.get_opt(role).await?.and_then(|role| role.rules);
        Ok(Self { everywhere: rights(cluster.get(role).await?.rules), at_home: rights(at_home) })
    }

    /// What of it no request of a user needed. A right for the whole cluster that is used in its own namespace only counts:
    /// it is too wide.
    #[must_use]
    pub fn unused<'a>(
        &self,
        requests: impl Iterator<Item = &'a Request> + Clone,
        user: &str,
        elsewhere: &[(&str, &str)],
    ) -> Vec<String> {
        let own = requests.filter(|request| request.user == user && request.impersonated.is_none());
        let used = |at_home: bool| -> BTreeSet<String> {
            let there = own.clone().filter(|request| (request.namespace == HOME) == at_home);
            there.map(|request| right(&request.verb, &request.resource, &request.group)).collect()
        };
        let of = |granted: &BTreeSet<String>, used: BTreeSet<String>| -> Vec<String> {
            let known = |right: &&String| elsewhere.iter().any(|(known, _)| known == right);
            granted.difference(&used).filter(|right| !known(right)).cloned().collect()
        };
        [of(&self.everywhere, used(false)), of(&self.at_home, used(true))].concat()
    }
}

fn rights(rules: Option<Vec<PolicyRule>>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for rule in rules.into_iter().flatten() {
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                all.extend(rule.resources.iter().flatten().map(|resource| right(verb, resource, group)));
            }
        }
    }
    all
}

fn right(verb: &str, resource: &str, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{verb} {resource}{dot}{group}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_in_the_own_namespace_only_is_too_wide_for_the_cluster() {
        let request = |namespace: &str, verb: &str| Request {
            user: "operator".to_owned(),
            impersonated: None,
            verb: verb.to_owned(),
            resource: "pods".to_owned(),
            group: String::new(),
            namespace: namespace.to_owned(),
            name: String::new(),
            query: String::new(),
            code: 200,
            at: None,
        };
        let set = |rights: &[&str]| rights.iter().map(|right| (*right).to_owned()).collect();
        let granted = Granted { everywhere: set(&["list pods", "get pods"]), at_home: set(&["get pods"]) };
        let unused = |requests: &[Request], elsewhere| granted.unused(requests.iter(), "operator", elsewhere);
        let all = [request("", "list"), request("shop", "get"), request(HOME, "get")];
        assert_eq!(unused(&all, &[]), Vec::<String>::new());
        assert_eq!(unused(&all[..1], &[]), ["get pods", "get pods"]);
        assert_eq!(unused(&[request(HOME, "list"), request(HOME, "get")], &[]), ["get pods", "list pods"]);
        assert_eq!(unused(&all[1..], &[("list pods", "elsewhere")]), Vec::<String>::new());
        let other = Request { user: "alice".to_owned(), ..request("", "list") };
        assert_eq!(unused(&[other, request("shop", "get"), request(HOME, "get")], &[]), ["list pods"]);
    }
}
