//! Asking for one pod to go, and what the API server's answers mean.
//!
//! The request is built here and not by kube's `Api::evict`: that one writes its delete options under the key
//! `delete_options`, which the API server ignores, and with it the UID precondition on which everything rests.

use async_trait::async_trait;
use bascule_api::ObjectRef;
use k8s_openapi::api::{core::v1::Pod, policy::v1::Eviction};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
    core::Status,
};
use std::time::Duration;

/// The pod that shall go: its UID is part of its name, since another pod may have taken the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
    /// Overrides the pod's own grace period, in seconds.
    pub grace_period_seconds: Option<u32>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The pod is being deleted: wait for it to go.
    Accepted,
    /// This very pod does not exist any more.
    Gone,
    /// A budget says: not now.
    Budget {
        /// The budget, where the answer names it.
        budget: Option<ObjectRef>,
        /// What the API server said.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// More than one budget covers the pod, which the eviction API refuses for ever.
    SeveralBudgets {
        /// What the API server said.
        message: String,
    },
    /// The pod's namespace is being deleted, and the pod with it: wait.
    NamespaceTerminating,
    /// An admission webhook or policy refused; it may change its mind.
    Denied {
        /// What it said.
        message: String,
    },
    /// The operator may not evict at all: its RBAC is incomplete.
    Forbidden {
        /// What the API server said.
        message: String,
    },
    /// The API server could not be reached or did not manage: try again.
    Failed {
        /// What happened.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
}

impl Answer {
    /// The only label in metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Gone => "gone",
            Self::Budget { .. } => "budget",
            Self::SeveralBudgets { .. } => "several-budgets",
            Self::NamespaceTerminating => "namespace-terminating",
            Self::Denied { .. } => "denied",
            Self::Forbidden { .. } => "forbidden",
            Self::Failed { .. } => "failed",
        }
    }
}

/// A way of making pods go. Small, since EvictionRequest (KEP-4563) is coming.
#[async_trait]
pub trait EvictionBackend: Send + Sync {
    /// Asks for a pod to be evicted, under its budgets.
    async fn evict(&self, target: &Target) -> Answer;
    /// Deletes a pod, whatever its budgets say.
    async fn delete(&self, target: &Target) -> Answer;
}

/// `pods/eviction` of policy/v1.
#[derive(Clone)]
pub struct EvictionApi {
    client: Client,
}

impl std::fmt::Debug for EvictionApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EvictionApi")
    }
}

impl EvictionApi {
    /// `client` must not repeat requests by itself: a 429 has a meaning here.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl EvictionBackend for EvictionApi {
    async fn evict(&self, target: &Target) -> Answer {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let eviction = request(target);
        let answer: Result<serde_json::Value, _> =
            pods.create_subresource("eviction", &target.name, &PostParams::default(), &eviction).await;
        match answer {
            Ok(_) => Answer::Accepted,
            Err(error) => classify(&error, &target.namespace),
        }
    }

    async fn delete(&self, target: &Target) -> Answer {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let params = DeleteParams {
            grace_period_seconds: target.grace_period_seconds,
            preconditions: Some(Preconditions { uid: Some(target.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match pods.delete(&target.name, &params).await {
            Ok(_) => Answer::Accepted,
            Err(error) => classify(&error, &target.namespace),
        }
    }
}

fn request(target: &Target) -> Eviction {
    Eviction {
        metadata: meta::ObjectMeta {
            name: Some(target.name.clone()),
            namespace: Some(target.namespace.clone()),
            ..meta::ObjectMeta::default()
        },
        delete_options: Some(meta::DeleteOptions {
            grace_period_seconds: target.grace_period_seconds.map(i64::from),
            preconditions: Some(meta::Preconditions { uid: Some(target.uid.clone()), resource_version: None }),
            ..meta::DeleteOptions::default()
        }),
    }
}

/// What an error of the eviction API means (Kubernetes, "API-initiated eviction", and pkg/registry/core/pod/storage).
#[must_use]
pub fn classify(error: &kube::Error, namespace: &str) -> Answer {
    match error {
        kube::Error::Api(status) => of_status(status, namespace),
        other => Answer::Failed { message: crate::one_line(other), retry_after: None },
    }
}

fn of_status(status: &Status, namespace: &str) -> Answer {
    let message: String = status.message.chars().take(512).collect();
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let retry_after = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(u64::from(seconds)));
    match status.code {
        404 => Answer::Gone,
        // Also a conflict of versions is a 409; only the UID's says that the pod is another one.
        409 if message.contains("UID in the precondition") || message.contains("UID in precondition") => Answer::Gone,
        429 => match causes.iter().find(|cause| cause.reason == "DisruptionBudget") {
            Some(cause) => Answer::Budget {
                budget: budget_of(&cause.message, namespace),
                message: cause.message.chars().take(512).collect(),
                retry_after,
            },
            None => Answer::Failed { message, retry_after },
        },
        403 if causes.iter().any(|cause| cause.reason == "NamespaceTerminating") => Answer::NamespaceTerminating,
        500 if message.contains("more than one PodDisruptionBudget") => Answer::SeveralBudgets { message },
        400..=499 if message.contains("admission webhook") || message.contains("ValidatingAdmissionPolicy") => {
            Answer::Denied { message }
        }
        401 | 403 => Answer::Forbidden { message },
        _ => Answer::Failed { message, retry_after },
    }
}

/// "The disruption budget NAME needs 3 healthy pods and has 3 currently", or "… is still being processed …".
fn budget_of(message: &str, namespace: &str) -> Option<ObjectRef> {
    let name = message.strip_prefix("The disruption budget ")?.split_whitespace().next()?;
    Some(ObjectRef {
        kind: "PodDisruptionBudget".to_owned(),
        namespace: Some(namespace.to_owned()),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: serde_json::Value) -> Answer {
        let status: Status = serde_json::from_value(status).unwrap();
        classify(&kube::Error::Api(Box::new(status)), "shop")
    }

    #[test]
    fn the_uid_precondition_is_where_the_api_server_looks_for_it() {
        let target =
            Target { namespace: "shop".into(), name: "web".into(), uid: "u-1".into(), grace_period_seconds: Some(0) };
        let body = serde_json::to_value(request(&target)).unwrap();
        assert_eq!(body["deleteOptions"]["preconditions"]["uid"], "u-1");
        assert_eq!(body["deleteOptions"]["gracePeriodSeconds"], 0);
    }

    #[test]
    fn answers_are_told_apart() {
        let budget = |name: &str| {
            Some(ObjectRef { kind: "PodDisruptionBudget".into(), namespace: Some("shop".into()), name: name.into() })
        };
        let needs = "The disruption budget checkout needs 3 healthy pods and has 3 currently";
        assert_eq!(
            answer(serde_json::json!({
                "code": 429, "reason": "TooManyRequests",
                "message": "Cannot evict pod as it would violate the pod's disruption budget.",
                "details": {"retryAfterSeconds": 10, "causes": [{"reason": "DisruptionBudget", "message": needs}]}
            })),
            Answer::Budget {
                budget: budget("checkout"),
                message: needs.into(),
                retry_after: Some(Duration::from_secs(10))
            }
        );
        assert_eq!(answer(serde_json::json!({"code": 404, "message": "pods \"web\" not found"})), Answer::Gone);
        for other in [
            "Precondition failed: UID in precondition: a, UID in object meta: b",
            "Operation cannot be fulfilled on Pod \"web\": the UID in the precondition (a) does not match the UID in \
             record (b). The object might have been deleted and then recreated",
        ] {
            assert_eq!(answer(serde_json::json!({"code": 409, "message": other})), Answer::Gone);
        }
        assert!(matches!(
            answer(serde_json::json!({"code": 409, "message": "the object has been modified"})),
            Answer::Failed { .. }
        ));
        assert_eq!(
            answer(serde_json::json!({
                "code": 403, "message": "forbidden",
                "details": {"causes": [{"reason": "NamespaceTerminating", "message": "namespace shop is being terminated"}]}
            })),
            Answer::NamespaceTerminating
        );
        assert!(matches!(
            answer(serde_json::json!({"code": 500, "message":
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."})),
            Answer::SeveralBudgets { .. }
        ));
        assert!(matches!(
            answer(serde_json::json!({"code": 403, "message": "admission webhook \"a.b\" denied the request: no"})),
            Answer::Denied { .. }
        ));
        assert!(matches!(
            answer(serde_json::json!({"code": 403, "message": "pods \"web\" is forbidden: User \"x\" cannot create"})),
            Answer::Forbidden { .. }
        ));
        assert_eq!(
            answer(serde_json::json!({"code": 429, "message": "too many", "details": {"retryAfterSeconds": 1}})),
            Answer::Failed { message: "too many".into(), retry_after: Some(Duration::from_secs(1)) }
        );
        assert!(matches!(answer(serde_json::json!({"code": 503, "message": "later"})), Answer::Failed { .. }));
    }
}
