//! The conditions of KEP-5683 on Nodes, for clusters whose other tools understand them. Only with `--node-conditions`.

use super::StatusWriter;
use crate::apply::ApplyError;
use bascule_api::{Time, conditions};
use bascule_planner::{Report, Snapshot, snapshot::Node};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long no Node's conditions are written after the API server refused some: the right to them is missing, and each plan would ask for
/// every Node that differs.
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// Whether the API server refused conditions of Nodes lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    not_before: Option<Instant>,
}

impl Refusals {
    fn holds(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|at| now < at)
    }

    /// Takes note of how a write failed, and says whether it was refused.
    fn note(&mut self, error: &ApplyError, now: Instant) -> bool {
        let refused = matches!(error, ApplyError::Refused { .. });
        if refused {
            self.not_before = Some(now + AGAIN);
        }
        refused
    }
}

impl StatusWriter {
    pub(super) async fn write_maintenance(&mut self, snapshot: &Snapshot, report: &Report, now: Time) {
        if self.maintenance_refused.holds(Instant::now()) {
            return;
        }
        let readable = |node: &Node| node.unreadable.is_none();
        for (node, said) in snapshot.nodes.iter().zip(&report.nodes).filter(|(node, _)| readable(node)) {
            let Some(known) = self.writer.world.nodes.get(&crate::gather::Key::cluster(&node.name)) else { continue };
            let wanted = wanted(node);
            let shown = |type_: &str| known.maintenance.get(type_).copied();
            // A node that was never disrupted needs no conditions that say so.
            let differs = wanted.iter().any(|(type_, holds)| shown(type_).unwrap_or_default() != *holds);
            if !differs || self.backoff.until("Node", &node.name, self.led_since.elapsed()).is_some() {
                continue;
            }
            let message = said.wait.message.as_str();
            let Err(error) = self.writer.write_maintenance(&node.name, &wanted, message, now).await else {
                self.backoff.done("Node", &node.name);
                continue;
            };
            let error_line = crate::one_line(&error);
            if self.maintenance_refused.note(&error, Instant::now()) {
                let minutes = AGAIN.as_secs() / 60;
                tracing::warn!(node = %node.name, error = error_line, "no node's conditions are written for {minutes} minutes");
                return;
            }
            tracing::warn!(node = %node.name, error = error_line, "the node's conditions can't be written");
            if !error.is_stale() {
                self.backoff.failed("Node", &node.name, false, self.led_since.elapsed());
            }
        }
    }
}

fn wanted(node: &Node) -> BTreeMap<&'static str, bool> {
    let disruption = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref());
    let started = disruption.is_some_and(|disruption| disruption.drain_started_at.is_some());
    let drained = disruption.is_some_and(|disruption| disruption.drained_at.is_some());
    BTreeMap::from([
        (conditions::NODE_DRAIN_IN_PROGRESS, started && !drained),
        (conditions::NODE_DRAINED, drained),
        (conditions::NODE_MAINTENANCE_IN_PROGRESS, disruption.is_some()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16) -> ApplyError {
        let status: kube::core::Status = serde_json::from_value(serde_json::json!({"code": code})).unwrap();
        ApplyError::of("the status of Node n1", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn after_a_refusal_none_is_written_for_a_while_and_after_anything_else_the_next_is() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        for code in [404, 409, 503] {
            assert!(!refusals.note(&answered(code), now) && !refusals.holds(now), "{code}");
        }
        assert!(refusals.note(&answered(403), now));
        assert!(refusals.holds(now) && refusals.holds(now + AGAIN - Duration::from_secs(1)));
        assert!(!refusals.holds(now + AGAIN));
    }
}
