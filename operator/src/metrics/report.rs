//! Gauges that follow from a plan's report.

use super::{Metrics, Policy, PolicyReason, PolicyRelease, PolicySeverity, PolicyState};
use bascule_api::{RolloutState, Severity, Time, WaitReason};
use bascule_planner::{Report, Snapshot};
use std::{
    collections::{BTreeMap, HashMap},
    sync::PoisonError,
};

/// Releases that get a label of their own; the others are one.
const RELEASES: usize = 15;

impl Metrics {
    /// Sets every gauge that describes nodes and policies.
    ///
    /// `verified` says for each policy when its repository's metadata was verified last; its status keeps an older time
    /// while nothing changes, so that a quiet repository causes no writes.
    pub fn describe(&self, snapshot: &Snapshot, report: &Report, verified: &BTreeMap<String, Time>) {
        let inner = &self.0;
        let _whole = inner.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states: HashMap<(&str, &'static str), i64> = HashMap::new();
        let mut reasons: HashMap<(&str, &'static str), i64> = HashMap::new();
        let mut releases: BTreeMap<&str, BTreeMap<String, i64>> = BTreeMap::new();
        let mut outdated: BTreeMap<&str, i64> = BTreeMap::new();
        let mut failing: BTreeMap<&str, i64> = BTreeMap::new();
        for (node, facts) in report.nodes.iter().zip(&snapshot.nodes) {
            let Some(policy) = node.policy.and_then(|index| report.policies.get(index)) else { continue };
            let name = policy.policy.as_str();
            *states.entry((name, state_name(node.state))).or_default() += 1;
            *reasons.entry((name, node.wait.reason.as_str())).or_default() += 1;
            let given_up = facts.update.as_ref().and_then(|update| update.spec.last_disruption.as_ref());
            let given_up = given_up.is_some_and(|last| last.given_up >= 2);
            if given_up && (node.state == RolloutState::Draining || node.wait.reason == WaitReason::DrainBackoff) {
                *failing.entry(name).or_default() += 1;
            }
            let booted = facts.update.as_ref().and_then(|update| update.status.booted.as_ref());
            let version = booted.map_or_else(|| "unknown".to_owned(), |booted| booted.version.to_string());
            *releases.entry(name).or_default().entry(version).or_default() += 1;
            let target = policy.status.target.as_ref().map(|target| &target.version);
            if target.is_some() && target != booted.map(|booted| &booted.version) {
                *outdated.entry(name).or_default() += 1;
            }
        }
        inner.nodes.clear();
        for ((policy, state), count) in states {
            inner.nodes.get_or_create(&PolicyState { policy: policy.to_owned(), state }).set(count);
        }
        inner.waiting.clear();
        for ((policy, reason), count) in reasons {
            inner.waiting.get_or_create(&PolicyReason { policy: policy.to_owned(), reason }).set(count);
        }
        inner.releases.clear();
        for (policy, counts) in releases {
            for (release, count) in most_frequent(counts) {
                inner.releases.get_or_create(&PolicyRelease { policy: policy.to_owned(), release }).set(count);
            }
        }
        inner.drains_failing.clear();
        for policy in &report.policies {
            let count = failing.get(policy.policy.as_str()).copied().unwrap_or_default();
            inner.drains_failing.get_or_create(&Policy { policy: policy.policy.clone() }).set(count);
        }
        self.describe_policies(snapshot, report, &outdated, verified);
    }

    /// Takes back every gauge that describes nodes and policies: this replica does not lead any more, and what it knew
    /// last is no fact.
    pub fn forget(&self) {
        let inner = &self.0;
        let _whole = inner.whole.lock().unwrap_or_else(PoisonError::into_inner);
        inner.nodes.clear();
        inner.waiting.clear();
        inner.releases.clear();
        inner.exposed.clear();
        inner.unavailable.clear();
        inner.hook_failed.clear();
        inner.drains_failing.clear();
        for family in [&inner.patch_age, &inner.metadata_age, &inner.metadata_expiry] {
            family.clear();
        }
    }

    fn describe_policies(
        &self,
        snapshot: &Snapshot,
        report: &Report,
        outdated: &BTreeMap<&str, i64>,
        verified: &BTreeMap<String, Time>,
    ) {
        let inner = &self.0;
        for family in [&inner.patch_age, &inner.metadata_age, &inner.metadata_expiry] {
            family.clear();
        }
        inner.exposed.clear();
        inner.unavailable.clear();
        inner.hook_failed.clear();
        #[allow(clippy::cast_precision_loss, reason = "seconds of centuries fit a double exactly")]
        let seconds = |seconds: i64| seconds as f64;
        for policy in &report.policies {
            let label = Policy { policy: policy.policy.clone() };
            let status = &policy.status;
            inner.unavailable.get_or_create(&label).set(i64::from(status.counts.unavailable));
            let failed = status.maintenance.as_ref().is_some_and(|open| open.failed.is_some());
            inner.hook_failed.get_or_create(&label).set(i64::from(failed));
            let behind = outdated.get(policy.policy.as_str()).copied().unwrap_or_default();
            if let Some(target) = &status.target {
                let age = if behind > 0 { snapshot.now.seconds_since(target.published_at).max(0) } else { 0 };
                inner.patch_age.get_or_create(&label).set(seconds(age));
                let severity = severity_name(target.severity);
                inner.exposed.get_or_create(&PolicySeverity { policy: policy.policy.clone(), severity }).set(behind);
            }
            let remembered = status.repository.as_ref().and_then(|repository| repository.verified_at);
            if let Some(verified) = verified.get(&policy.policy).copied().or(remembered) {
                inner.metadata_age.get_or_create(&label).set(seconds(snapshot.now.seconds_since(verified).max(0)));
            }
            if let Some(expires) = status.repository.as_ref().and_then(|repository| repository.expires_at) {
                inner.metadata_expiry.get_or_create(&label).set(seconds(expires.seconds_since(snapshot.now)));
            }
        }
    }
}

fn most_frequent(counts: BTreeMap<String, i64>) -> Vec<(String, i64)> {
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest: i64 = sorted.iter().skip(RELEASES).map(|(_, count)| count).sum();
    sorted.truncate(RELEASES);
    if rest > 0 {
        sorted.push(("other".to_owned(), rest));
    }
    sorted
}

const fn state_name(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Current => "Current",
        RolloutState::Staging => "Staging",
        RolloutState::Waiting => "Waiting",
        RolloutState::Draining => "Draining",
        RolloutState::Rebooting => "Rebooting",
        RolloutState::Trial => "Trial",
        RolloutState::Reverting => "Reverting",
        RolloutState::Failed => "Failed",
        RolloutState::Unknown => "Unknown",
    }
}

const fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::None => "None",
        Severity::Low => "Low",
        Severity::Medium => "Medium",
        Severity::High => "High",
        Severity::Critical => "Critical",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_releases_share_a_label() {
        let counts = (0..20).map(|number| (format!("1.{number}"), number + 1)).collect();
        let shown = most_frequent(counts);
        assert_eq!(shown.len(), RELEASES + 1);
        assert_eq!(shown[0], ("1.19".to_owned(), 20));
        assert_eq!(shown[RELEASES], ("other".to_owned(), 1 + 2 + 3 + 4 + 5));
    }

    /// A policy with a node, as a plan describes them.
    fn described() -> (Snapshot, Report) {
        let policy: bascule_api::UpdatePolicy = serde_json::from_value(serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "uid": "p", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
        }))
        .unwrap();
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        }))
        .unwrap();
        let changes = std::sync::Arc::new(tokio::sync::watch::Sender::new(0));
        let world = crate::gather::Caches::new(changes, &crate::clock::Clock::system());
        world.policies.apply(&kube::runtime::watcher::Event::Apply(policy));
        world.nodes.apply(&kube::runtime::watcher::Event::Apply(node));
        let drains = Default::default();
        let outside = crate::gather::Outside {
            now: Time::default(),
            seed: 1,
            offer: &|_| std::sync::Arc::default(),
            gates: Vec::new(),
            drains: &drains,
            ceiling: None,
            operator_node: None,
            own_pod: None,
            refused: Default::default(),
            writes: Default::default(),
        };
        let snapshot = crate::gather::Assembler::default().assemble(&world, outside);
        let report = bascule_planner::Planner::default().plan(&snapshot).1;
        (snapshot, report)
    }

    #[test]
    fn a_scrape_never_meets_a_gauge_that_is_just_being_filled_and_a_deposed_leader_has_none() {
        let metrics = Metrics::new();
        let (snapshot, report) = described();
        let none = BTreeMap::new();
        metrics.describe(&snapshot, &report, &none);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    metrics.describe(&snapshot, &report, &none);
                }
            });
            for _ in 0..2_000 {
                let text = metrics.text().unwrap();
                assert_eq!(text.lines().filter(|line| line.starts_with("bascule_nodes{")).count(), 1, "{text}");
                assert!(text.contains("bascule_nodes_unavailable{policy=\"workers\"}"), "{text}");
            }
        });
        metrics.forget();
        assert!(!metrics.text().unwrap().contains("workers"), "a deposed leader says nothing of the fleet");
    }
}
