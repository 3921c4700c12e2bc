//! What Prometheus may ask of the operator. Every label's values come from a closed list or are the names of policies,
//! so that a large cluster can't blow up a time series database. The list stands in docs/operator.md.

mod report;

use crate::pulse::Pulse;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};
use std::time::Duration;

/// Everything that is measured. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

/// Upper bounds in seconds; a second is the goal (docs/benchmarks.md).
const REACTION: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0];

type Float = Gauge<f64, AtomicU64>;

#[derive(Debug)]
struct Inner {
    registry: Registry,
    /// What is measured is a sign of life, too.
    pulse: Pulse,
    /// Held while gauges are refilled and while they are read, so that nobody reads them half filled.
    whole: Mutex<()>,
    nodes: Family<PolicyState, Gauge>,
    waiting: Family<PolicyReason, Gauge>,
    releases: Family<PolicyRelease, Gauge>,
    exposed: Family<PolicySeverity, Gauge>,
    unavailable: Family<Policy, Gauge>,
    hook_failed: Family<Policy, Gauge>,
    drains_failing: Family<Policy, Gauge>,
    patch_age: Family<Policy, Float>,
    metadata_age: Family<Policy, Float>,
    metadata_expiry: Family<Policy, Float>,
    failures: Family<Category, Counter>,
    drains: Histogram,
    boots: Histogram,
    planning: Histogram,
    reaction: Family<ActionLabel, Histogram>,
    queue: Family<ActionLabel, Histogram>,
    actions: Family<ActionResult, Counter>,
    evictions: Family<ResultLabel, Counter>,
    notifications: Family<ResultLabel, Counter>,
    gates: Family<ResultLabel, Counter>,
    writes: Family<Kind, Counter>,
    watch_failures: Family<Kind, Counter>,
    unreadable: Family<Kind, Gauge>,
    leader: Gauge,
    time_zones: Family<Version, Gauge>,
    clock_skew: Float,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Policy {
    policy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyState {
    policy: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyReason {
    policy: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyRelease {
    policy: String,
    release: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicySeverity {
    policy: String,
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Category {
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionResult {
    action: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let minutes = || Histogram::new(exponential_buckets(1.0, 2.0, 13));
        let millis = || Histogram::new(exponential_buckets(0.001, 2.5, 11));
        let mut inner = Inner {
            registry: Registry::with_prefix("bascule"),
            pulse: Pulse::default(),
            whole: Mutex::new(()),
            nodes: Family::default(),
            waiting: Family::default(),
            releases: Family::default(),
            exposed: Family::default(),
            unavailable: Family::default(),
            hook_failed: Family::default(),
            drains_failing: Family::default(),
            patch_age: Family::default(),
            metadata_age: Family::default(),
            metadata_expiry: Family::default(),
            failures: Family::default(),
            drains: minutes(),
            boots: minutes(),
            planning: millis(),
            reaction: Family::new_with_constructor(|| Histogram::new(REACTION)),
            queue: Family::new_with_constructor(|| Histogram::new(REACTION)),
            actions: Family::default(),
            evictions: Family::default(),
            notifications: Family::default(),
            gates: Family::default(),
            writes: Family::default(),
            watch_failures: Family::default(),
            unreadable: Family::default(),
            leader: Gauge::default(),
            time_zones: Family::default(),
            clock_skew: Float::default(),
        };
        // Not measured yet, which is not the same as right.
        inner.clock_skew.set(f64::NAN);
        // A counter that appears with its first event has not increased, as Prometheus sees it.
        for category in bascule_api::NodeError::ALL {
            drop(inner.failures.get_or_create(&Category { category: category.as_str() }));
        }
        inner.register();
        Self(Arc::new(inner))
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let _whole = self.0.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// The operator's signs of life.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.0.pulse.clone()
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// Which time zone database windows are read with. Told once, at the start.
    pub fn time_zones(&self, version: &str) {
        self.0.time_zones.get_or_create(&Version { version: version.to_owned() }).set(1);
    }

    /// How far this machine's clock is ahead of the API server's.
    pub fn clock_skew(&self, ahead: chrono::TimeDelta) {
        self.0.clock_skew.set(ahead.as_seconds_f64());
    }

    /// A plan was made, and is carried out now.
    pub fn planned(&self, took: Duration) {
        self.0.pulse.planned();
        self.0.planning.observe(took.as_secs_f64());
    }

    /// An action is begun, this long after the change of a fact that asks it of many nodes at once.
    pub fn queued(&self, action: &'static str, waited: Duration) {
        self.0.queue.get_or_create(&ActionLabel { action }).observe(waited.as_secs_f64());
    }

    /// An action is written, this long after the change of a fact that caused it, or after it left its queue.
    pub fn reacted(&self, action: &'static str, took: Duration) {
        self.0.reaction.get_or_create(&ActionLabel { action }).observe(took.as_secs_f64());
    }

    /// An action was carried out or not.
    pub fn acted(&self, action: &'static str, result: &'static str) {
        self.0.actions.get_or_create(&ActionResult { action, result }).inc();
    }

    /// Something was written to the API server.
    pub fn wrote(&self, kind: &str) {
        self.0.writes.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// An eviction was answered.
    pub fn evicted(&self, result: &'static str) {
        self.0.evictions.get_or_create(&ResultLabel { result }).inc();
    }

    /// The webhook was told of something, or could not be.
    pub fn notified(&self, result: &'static str) {
        self.0.notifications.get_or_create(&ResultLabel { result }).inc();
    }

    /// A gate was asked.
    pub fn asked(&self, result: &'static str) {
        self.0.gates.get_or_create(&ResultLabel { result }).inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self, kind: &str) {
        self.0.watch_failures.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// How many objects of each kind can't be read now.
    pub fn unreadable(&self, counts: &BTreeMap<&str, i64>) {
        let _whole = self.0.whole.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.unreadable.clear();
        for (kind, count) in counts {
            self.0.unreadable.get_or_create(&Kind { kind: (*kind).to_owned() }).set(*count);
        }
    }

    /// A node was emptied.
    pub fn drained(&self, took: Duration) {
        self.0.drains.observe(took.as_secs_f64());
    }

    /// A node came back from its reboot.
    pub fn booted(&self, took: Duration) {
        self.0.boots.observe(took.as_secs_f64());
    }

    /// A release failed on a node.
    pub fn failed(&self, category: &'static str) {
        self.0.failures.get_or_create(&Category { category }).inc();
    }
}

impl Inner {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("nodes", "Nodes of a policy by state", self.nodes.clone());
        registry.register(
            "nodes_waiting",
            "Nodes of a policy by the reason they wait or move for",
            self.waiting.clone(),
        );
        registry.register(
            "nodes_on_release",
            "Nodes of a policy by the release they run (the 15 most frequent, then 'other')",
            self.releases.clone(),
        );
        registry.register(
            "nodes_exposed",
            "Nodes of a policy that do not run its target release, by the severity of what the target fixes",
            self.exposed.clone(),
        );
        registry.register("nodes_unavailable", "Nodes of a policy that are unavailable", self.unavailable.clone());
        registry.register(
            "rollout_hook_failed",
            "Whether a hook around a policy's rollout has failed and waits for a person",
            self.hook_failed.clone(),
        );
        registry.register(
            "nodes_drain_failing",
            "Nodes of a policy that are being drained, or wait for the next try, after two or more drains in a row that were given up",
            self.drains_failing.clone(),
        );
        registry.register_with_unit(
            "patch_age",
            "How long the target release has been published while nodes of the policy do not run it",
            Unit::Seconds,
            self.patch_age.clone(),
        );
        registry.register_with_unit(
            "repository_metadata_age",
            "How long ago the policy's repository metadata was read and verified last",
            Unit::Seconds,
            self.metadata_age.clone(),
        );
        registry.register_with_unit(
            "repository_metadata_expiry",
            "Time until the policy's repository metadata expires, negative afterwards",
            Unit::Seconds,
            self.metadata_expiry.clone(),
        );
        registry.register("node_failures", "Failures of releases on nodes", self.failures.clone());
        registry.register_with_unit(
            "drain",
            "From the begin of a drain until the node was empty",
            Unit::Seconds,
            self.drains.clone(),
        );
        registry.register_with_unit(
            "boot",
            "From an empty node until its agent reported from the new boot",
            Unit::Seconds,
            self.boots.clone(),
        );
        registry.register_with_unit("plan", "How long a plan takes", Unit::Seconds, self.planning.clone());
        registry.register_with_unit(
            "reaction",
            "From a change of a fact (or the end of the action's queue, see queue_wait_seconds) until an action that it caused is written",
            Unit::Seconds,
            self.reaction.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "How long actions that one fact asks of many nodes at once queued before they were begun",
            Unit::Seconds,
            self.queue.clone(),
        );
        registry.register("actions", "Actions carried out, by result", self.actions.clone());
        registry.register("evictions", "Answers to evictions", self.evictions.clone());
        registry.register("notifications", "Notifications for the webhook, by result", self.notifications.clone());
        registry.register("gate_answers", "Answers of health gates", self.gates.clone());
        registry.register("api_writes", "Writes to the API server, events and leases apart", self.writes.clone());
        registry.register("watch_failures", "Watches that failed and began anew", self.watch_failures.clone());
        registry.register(
            "unreadable_objects",
            "Objects that this version does not understand, and whose nodes it holds as they are",
            self.unreadable.clone(),
        );
        registry.register("leader", "1 while this replica leads", self.leader.clone());
        let zones = "1, with the version of the time zone database that maintenance windows are read with";
        registry.register("time_zone_database", zones, self.time_zones.clone());
        registry.register_with_unit(
            "clock_skew",
            "How far the clock of this replica's machine is ahead of the API server's, whose time counts",
            Unit::Seconds,
            self.clock_skew.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_readable_by_prometheus() {
        let metrics = Metrics::new();
        metrics.acted("Grant", "done");
        metrics.planned(Duration::from_millis(3));
        let text = metrics.text().unwrap();
        assert!(text.contains("bascule_actions_total{action=\"Grant\",result=\"done\"} 1"), "{text}");
        assert!(text.contains("# HELP bascule_plan_seconds How long a plan takes"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_skew_that_was_not_measured_is_not_shown_as_none() {
        let metrics = Metrics::new();
        let shown = || {
            let text = metrics.text().unwrap();
            text.lines().find_map(|line| line.strip_prefix("bascule_clock_skew_seconds ").map(str::to_owned))
        };
        assert_eq!(shown().as_deref(), Some("NaN"));
        metrics.clock_skew(chrono::TimeDelta::milliseconds(-90_500));
        assert_eq!(shown().as_deref(), Some("-90.5"));
    }

    #[test]
    fn what_can_be_read_again_is_counted_no_more() {
        let metrics = Metrics::new();
        metrics.unreadable(&BTreeMap::from([("NodeUpdate", 2)]));
        assert!(metrics.text().unwrap().contains("bascule_unreadable_objects{kind=\"NodeUpdate\"} 2"));
        metrics.unreadable(&BTreeMap::new());
        assert!(!metrics.text().unwrap().contains("bascule_unreadable_objects{"));
    }

    #[test]
    fn the_first_failure_of_each_kind_is_an_increase() {
        let metrics = Metrics::new();
        let count = |category: &str| {
            let text = metrics.text().unwrap();
            let start = format!("bascule_node_failures_total{{category=\"{category}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned))
        };
        for category in bascule_api::NodeError::ALL {
            assert_eq!(count(category.as_str()).as_deref(), Some("0"), "{category:?}");
        }
        metrics.failed("TrialFailed");
        assert_eq!(count("TrialFailed").as_deref(), Some("1"));
    }
}
