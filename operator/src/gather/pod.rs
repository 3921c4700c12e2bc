//! What is kept of a pod.

use super::{cache::Fact, needs, sent::Untyped};
use bascule_planner::drain::Pod as PodFact;
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

impl Fact for PodFact {
    type Raw = Pod;

    fn of(pod: &Pod) -> Self {
        let mut fact = Self::from_kubernetes(pod);
        fact.needs = needs::shared(fact.needs);
        fact
    }

    /// One that was never read is at least there: its node is not empty while it stands on it.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self> {
        let where_it_stands = || {
            let spec = PodSpec { node_name: untyped.part("/spec/nodeName"), ..PodSpec::default() };
            Self::of(&Pod { metadata: untyped.metadata().clone(), spec: Some(spec), ..Pod::default() })
        };
        before.is_none().then(where_it_stands)
    }

    fn place(&self) -> &str {
        &self.node
    }
}

/// A moment of Kubernetes' own type.
pub(crate) fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> DateTime<Utc> {
    bascule_api::Time::from_kubernetes(time).get()
}
