//! PodDisruptionBudgets: what each allows now, and which evictions need its permission.

use crate::{Fact, PodFact, pod::moment};
use bascule_api::{Duration, Selector};
use bascule_planner::drain::opens_after_cordon;
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use std::collections::BTreeMap;

/// How long an eviction that was allowed counts against a budget while its pod is not deleted (kubernetes,
/// pkg/controller/disruption, `DeletionTimeout`).
const COUNTED_FOR: TimeDelta = TimeDelta::minutes(2);
/// An eviction is normally carried out by the request that was allowed; after this time it was not.
const NEVER_FINISHED_AFTER: TimeDelta = TimeDelta::seconds(10);

/// One PodDisruptionBudget.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetFact {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The pods it covers; a null selector covers none.
    pub selector: Option<Selector>,
    /// `status.disruptionsAllowed`, or 0 while the status is behind the spec (the eviction API refuses then).
    pub allowed: u32,
    /// `status.currentHealthy`.
    pub healthy: u32,
    /// `status.desiredHealthy`.
    pub desired: u32,
    /// `status.expectedPods`.
    pub expected: u32,
    /// Whether pods that are not ready may always go (`unhealthyPodEvictionPolicy: AlwaysAllow`).
    pub unhealthy_always: bool,
    /// Within what time it opens once the node of its pods is cordoned, where its annotation says so.
    pub opens_after_cordon: Option<Duration>,
    /// `status.disruptedPods`: the pods whose eviction was allowed and whose deletion was not seen yet, and when.
    pub disrupted: BTreeMap<String, DateTime<Utc>>,
}

impl BudgetFact {
    /// `namespace/name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it covers a pod.
    #[must_use]
    pub fn covers(&self, pod: &PodFact) -> bool {
        self.namespace == pod.namespace && self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }

    /// Whether evicting a pod that it covers needs one of its allowed disruptions (Kubernetes, "Unhealthy Pod Eviction
    /// Policy"; pkg/registry/core/pod/storage/eviction.go).
    #[must_use]
    pub const fn is_needed_for(&self, pod: &PodFact) -> bool {
        if pod.finished || pod.pending || pod.deletes_at.is_some() {
            return false;
        }
        pod.ready || !self.lets_unhealthy_go()
    }

    /// Whether pods that are not ready go without one.
    const fn lets_unhealthy_go(&self) -> bool {
        self.unhealthy_always || (self.healthy >= self.desired && self.desired > 0)
    }

    /// Whether it allows no disruption although every pod is healthy: no drain of their nodes ever succeeds.
    #[must_use]
    pub const fn never_opens(&self) -> bool {
        self.expected > 0 && self.allowed == 0 && self.healthy >= self.expected && self.desired >= self.expected
    }

    /// The evictions that were allowed and, as far as time tells, never carried out: the pod's name and until when it counts.
    /// That happens where the API server or its client ends in the middle of one.
    pub fn unfinished(&self, now: DateTime<Utc>) -> impl Iterator<Item = (&str, DateTime<Utc>)> {
        let over = move |since: DateTime<Utc>| now < since + NEVER_FINISHED_AFTER || now >= since + COUNTED_FOR;
        let disrupted = self.disrupted.iter().filter(move |(_, since)| !over(**since));
        disrupted.map(|(pod, since)| (pod.as_str(), *since + COUNTED_FOR))
    }

    /// Whether the same pods need the one and the other.
    #[must_use]
    pub fn needs_the_same(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.selector) == (&other.namespace, &other.name, &other.selector)
            && self.lets_unhealthy_go() == other.lets_unhealthy_go()
            && self.opens_after_cordon == other.opens_after_cordon
    }
}

impl Fact for BudgetFact {
    type Raw = PodDisruptionBudget;

    fn of(budget: &PodDisruptionBudget) -> Self {
        let (meta, spec, status) = (&budget.metadata, budget.spec.as_ref(), budget.status.as_ref());
        let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or_default();
        let observed = status.and_then(|status| status.observed_generation).unwrap_or_default();
        let current = observed >= meta.generation.unwrap_or_default();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            selector: spec.and_then(|spec| spec.selector.as_ref()).map(Selector::from_kubernetes),
            allowed: number(status.filter(|_| current).and_then(|status| status.disruptions_allowed)),
            healthy: number(status.and_then(|status| status.current_healthy)),
            desired: number(status.and_then(|status| status.desired_healthy)),
            expected: number(status.and_then(|status| status.expected_pods)),
            unhealthy_always: spec.and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref())
                == Some("AlwaysAllow"),
            opens_after_cordon: meta.annotations.as_ref().and_then(opens_after_cordon),
            disrupted: disrupted(budget),
        }
    }
}

fn disrupted(budget: &PodDisruptionBudget) -> BTreeMap<String, DateTime<Utc>> {
    let pods = budget.status.iter().filter_map(|status| status.disrupted_pods.as_ref()).flatten();
    pods.map(|(pod, at)| (pod.clone(), moment(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: serde_json::Value) -> BudgetFact {
        let raw: PodDisruptionBudget = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "minAvailable": 3},
            "status": status
        }))
        .unwrap();
        BudgetFact::of(&raw)
    }

    fn pod(json: serde_json::Value) -> PodFact {
        let mut raw = serde_json::json!({"metadata": {"name": "p", "namespace": "shop", "labels": {"app": "web"}}});
        raw["status"] = json;
        PodFact::of(&serde_json::from_value(raw).unwrap())
    }

    #[test]
    fn a_status_behind_its_spec_allows_nothing() {
        let status = |observed| {
            serde_json::json!({"observedGeneration": observed, "disruptionsAllowed": 1, "currentHealthy": 4,
                "desiredHealthy": 3, "expectedPods": 4})
        };
        assert_eq!(budget(status(1)).allowed, 0);
        assert_eq!(budget(status(2)).allowed, 1);
    }

    #[test]
    fn unhealthy_pods_go_without_it_when_enough_others_are_healthy() {
        let status = |healthy| {
            serde_json::json!({"observedGeneration": 2, "disruptionsAllowed": 0, "currentHealthy": healthy,
                "desiredHealthy": 3, "expectedPods": 4})
        };
        let ready = pod(serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        let unready = pod(serde_json::json!({"phase": "Running"}));
        let pending = pod(serde_json::json!({"phase": "Pending"}));
        assert!(budget(status(3)).covers(&ready));
        assert!(budget(status(3)).is_needed_for(&ready));
        assert!(!budget(status(3)).is_needed_for(&unready));
        assert!(budget(status(2)).is_needed_for(&unready));
        assert!(!budget(status(2)).is_needed_for(&pending));
        let always = BudgetFact { unhealthy_always: true, ..budget(status(2)) };
        assert!(!always.is_needed_for(&unready));
    }
}
