//! What is kept of a pod.

use super::{cache::Fact, needs};
use bascule_planner::drain::Pod as PodFact;
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;

impl Fact for PodFact {
    type Raw = Pod;

    fn of(pod: &Pod) -> Self {
        let mut fact = Self::from_kubernetes(pod);
        fact.needs = needs::shared(fact.needs);
        fact
    }

    fn place(&self) -> &str {
        &self.node
    }
}

/// A moment of Kubernetes' own type.
pub(crate) fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> DateTime<Utc> {
    bascule_api::Time::from_kubernetes(time).get()
}
