//! What the cluster serves of Bascule's kinds, and what the person may do with them. Both is asked of the API server, which
//! answers it to everybody it knows.

use super::Finding;
use crate::cluster::problem::{self, Role};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

/// Whether the API server serves every kind, in the version that this program speaks.
pub(super) async fn kinds(client: &Client) -> anyhow::Result<Vec<Finding>> {
    let advice = "Apply manifests/crds of this program's version (docs/install.md).";
    let served = match client.list_api_group_resources("bascule.dev/v1alpha1").await {
        Ok(served) => served,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return Ok(vec![Finding::wrong("installation", "the cluster does not serve bascule.dev/v1alpha1", advice)]);
        }
        Err(error) => return Err(problem::told(error, "get", "the API server's kinds", Role::OnCall)),
    };
    let wanted = bascule_api::custom_resource_definitions();
    let missing: Vec<String> = wanted
        .iter()
        .map(|definition| definition.spec.names.plural.clone())
        .filter(|plural| !served.resources.iter().any(|one| one.name == *plural))
        .collect();
    Ok(vec![if missing.is_empty() {
        Finding::good("installation", "every kind of bascule.dev/v1alpha1 is served")
    } else {
        Finding::wrong("installation", format!("not served: {}", missing.join(", ")), advice)
    }])
}

/// A right, the role that gives it, and what can't be done without it.
struct Right {
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

const RIGHTS: [Right; 9] = [
    right("bascule.dev", "updatepolicies", "list", "status"),
    right("bascule.dev", "nodeupdates", "list", "explain"),
    right("bascule.dev", "freezes", "create", "freeze, pause, hold and abort"),
    right("bascule.dev", "freezes", "patch", "unfreeze and resume"),
    right("bascule.dev", "rollbacks", "create", "rollback"),
    right("", "nodes", "list", "forecast and plan"),
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
    if missing.is_empty() {
        return Ok(vec![Finding::good("rights", "you may do what an engineer on call has to")]);
    }
    let found = missing.into_iter().map(|right| {
        let resource =
            right.subresource.map_or_else(|| right.resource.to_owned(), |sub| format!("{}/{sub}", right.resource));
        let place = if right.here { format!(" in namespace {namespace}") } else { String::new() };
        let role = if right.here { "Role bascule-live-report" } else { "ClusterRole bascule-on-call" };
        Finding::warning(
            "rights",
            format!("you may not {} {resource}{place}: {} won't work", right.verb, right.without),
            format!("An admin binds you to the {role} (docs/install.md)."),
        )
    });
    Ok(found.collect())
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
