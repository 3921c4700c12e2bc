//! Tells people that a node booted its release as a trial, which no action of ours marks. Each plan is looked at: a trial can
//! be over before its explanation is written.

use crate::{
    events::{About, Events, Notice},
    gather::{Caches, Key},
    metrics::Metrics,
};
use bascule_api::{RolloutState, Time};
use bascule_planner::{Report, Snapshot, snapshot::Node};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// The nodes of which people were told that they run a trial.
#[derive(Debug, Default)]
pub(crate) struct Boots(HashSet<Arc<str>>);

impl Boots {
    /// Writes an event and observes the duration for each node that began its trial since the last look.
    pub(crate) fn tell(
        &mut self,
        world: &Caches,
        snapshot: &Snapshot,
        report: &Report,
        events: &Events,
        metrics: &Metrics,
    ) {
        let nodes = report.nodes.iter().zip(&snapshot.nodes);
        let on_trial: Vec<_> =
            nodes.filter(|(said, _)| said.state == RolloutState::Trial).map(|(_, node)| node).collect();
        for node in on_trial.iter().filter(|node| !self.0.contains(&node.name)) {
            // Where the written explanation knows of the trial already, an earlier leader told of it.
            let known = world.updates.get(&Key::cluster(&node.name));
            let before = known.as_ref().and_then(|known| known.rollout.as_ref());
            if before.is_none_or(|before| before.state != RolloutState::Trial) {
                announce(node, snapshot.now, events, metrics);
            }
        }
        self.0 = on_trial.into_iter().map(|node| Arc::clone(&node.name)).collect();
    }
}

fn announce(node: &Node, now: Time, events: &Events, metrics: &Metrics) {
    let Some(booted) = node.update.as_ref().and_then(|update| update.status.booted.as_ref()) else { return };
    let took = since_drained(node, now);
    if let Some(seconds) = took {
        metrics.booted(Duration::from_secs(seconds));
    }
    let after = took.map(|seconds| format!(", {seconds} s after the drain")).unwrap_or_default();
    let note = format!("{} in slot {} as a trial{after}", booted.version, booted.slot);
    let about = About::node(&node.name, &node.uid);
    events.tell(Notice { about, warning: false, reason: "Booted", action: "Observe", note, related: None });
}

fn since_drained(node: &Node, now: Time) -> Option<u64> {
    let drained = node.update.as_ref()?.spec.disruption.as_ref()?.drained_at?;
    u64::try_from(now.seconds_since(drained)).ok()
}
