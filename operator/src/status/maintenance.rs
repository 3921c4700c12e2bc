//! The conditions of KEP-5683 on Nodes, for clusters whose other tools understand them. Only with `--node-conditions`.

use super::StatusWriter;
use bascule_api::{Time, conditions};
use bascule_planner::{Report, Snapshot, snapshot::Node};
use std::collections::BTreeMap;

impl StatusWriter {
    pub(super) async fn write_maintenance(&self, snapshot: &Snapshot, report: &Report, now: Time) {
        for (node, said) in snapshot.nodes.iter().zip(&report.nodes) {
            let Some(known) = self.writer.world.nodes.get(&crate::gather::Key::cluster(&node.name)) else { continue };
            let wanted = wanted(node);
            let shown = |type_: &str| known.maintenance.get(type_).copied();
            // A node that was never disrupted needs no conditions that say so.
            let differs = wanted.iter().any(|(type_, holds)| shown(type_).unwrap_or_default() != *holds);
            if !differs {
                continue;
            }
            let message = said.wait.message.as_str();
            if let Err(error) = self.writer.write_maintenance(&node.name, &wanted, message, now).await {
                tracing::warn!(node = %node.name, error = crate::one_line(&error), "the node's conditions can't be written");
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
