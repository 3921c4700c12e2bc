//! What the agent counts, in the Prometheus text format.

use std::sync::Mutex;
use std::sync::PoisonError;

use bascule_api::{NodeError, NodeUpdateStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EffectLabels {
    effect: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KubernetesLabels {
    request: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReleaseLabels {
    version: String,
    slot: String,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    effects: Family<EffectLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    kubernetes_errors: Family<KubernetesLabels, Counter>,
    status_writes: Counter,
    transferred: Gauge,
    trial: Gauge,
    problem: Gauge,
    booted: Family<ReleaseLabels, Gauge>,
    booted_now: Mutex<Option<(String, String)>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("bascule_agent");
        let effects = Family::default();
        registry.register("effects", "Effects carried out, by name and outcome", effects.clone());
        let errors = Family::default();
        registry.register("errors", "Effects that failed, by category", errors.clone());
        let kubernetes_errors = Family::default();
        registry.register("kubernetes_errors", "Requests to the API server that failed", kubernetes_errors.clone());
        let status_writes = Counter::default();
        registry.register("status_writes", "Writes of the NodeUpdate's status", status_writes.clone());
        let transferred = Gauge::default();
        registry.register("transfer_bytes", "Bytes fetched by the running transfer", transferred.clone());
        let trial = Gauge::default();
        registry.register("trial", "1 while the running release is not committed", trial.clone());
        let problem = Gauge::default();
        registry.register("problem", "1 while something keeps the agent from its work", problem.clone());
        let booted = Family::default();
        registry.register("booted_release", "1 for the running release and slot", booted.clone());
        Self {
            registry,
            effects,
            errors,
            kubernetes_errors,
            status_writes,
            transferred,
            trial,
            problem,
            booted,
            booted_now: Mutex::default(),
        }
    }

    pub(crate) fn effect_done(&self, effect: &'static str) {
        self.effects.get_or_create(&EffectLabels { effect, outcome: "done" }).inc();
    }

    pub(crate) fn effect_failed(&self, effect: &'static str, category: NodeError) {
        self.effects.get_or_create(&EffectLabels { effect, outcome: "failed" }).inc();
        self.errors.get_or_create(&ErrorLabels { category: category.as_str() }).inc();
    }

    pub(crate) fn kubernetes_error(&self, request: &'static str, kind: &'static str) {
        self.kubernetes_errors.get_or_create(&KubernetesLabels { request, kind }).inc();
    }

    pub(crate) fn status_written(&self) {
        self.status_writes.inc();
    }

    /// Takes over what a status says.
    pub(crate) fn follow(&self, status: &NodeUpdateStatus) {
        self.trial.set(i64::from(status.trial.is_some()));
        self.problem.set(i64::from(status.last_error.is_some()));
        self.transferred.set(status.transfer.as_ref().map_or(0, |transfer| transfer.bytes_done));
        if let Some(booted) = &status.booted {
            let now = (booted.version.to_string(), booted.slot.to_string());
            let mut before = self.booted_now.lock().unwrap_or_else(PoisonError::into_inner);
            if before.as_ref() != Some(&now) {
                self.booted.clear();
                let labels = ReleaseLabels { version: now.0.clone(), slot: now.1.clone() };
                self.booted.get_or_create(&labels).set(1);
                *before = Some(now);
            }
        }
    }

    /// The text for a scrape.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
