//! Hears of every pod that a drain disrupts: an audit line, an event and a count for each, and a warning where budgets were
//! overridden.

use crate::{
    drain::{DrainObserver, Mode},
    events::{About, Events, Notice, audit},
    gather::{Caches, Key},
    metrics::Metrics,
};
use bascule_api::ObjectRef;
use std::sync::Arc;
use tokio::sync::watch;

/// The drain's observer.
#[derive(Debug)]
pub struct Observer {
    world: Caches,
    metrics: Metrics,
    events: Events,
    changes: Arc<watch::Sender<u64>>,
}

impl Observer {
    /// An observer. `changes` is told of progress, so that it gets into the next report.
    #[must_use]
    pub const fn new(world: Caches, metrics: Metrics, events: Events, changes: Arc<watch::Sender<u64>>) -> Self {
        Self { world, metrics, events, changes }
    }
}

impl DrainObserver for Observer {
    fn pod_disrupted(&self, node: &str, pod: &ObjectRef, uid: &str, mode: Mode) {
        let update = self.world.updates.get(&Key::cluster(node));
        let disruption = update.as_ref().and_then(|update| update.facts.spec.disruption.as_ref());
        let cause = disruption.map(|disruption| &disruption.cause);
        let (action, result) = match mode {
            Mode::Evict => ("Evict", "accepted"),
            Mode::Delete => ("DeletePod", "deleted"),
        };
        // Whoever asks later why a pod went without its budget's leave finds it in both.
        let says = match mode {
            Mode::Evict => "",
            Mode::Delete => "deleted without its budget's leave: the drain's time was over (onTimeout: Delete)",
        };
        audit(action, node, &pod.to_string(), cause, says);
        self.metrics.evicted(result);
        let by = cause.map_or_else(String::new, |cause| format!(", asked for by {}", cause.object));
        let (reason, how) = match mode {
            Mode::Evict => ("Evicted", String::new()),
            Mode::Delete => ("Deleted", format!("; {says}")),
        };
        self.events.tell(Notice {
            about: About::pod(pod, uid),
            warning: mode == Mode::Delete,
            reason,
            action,
            note: format!("leaves node {node}, whose system is updated{by}{how}"),
            related: cause.map(|cause| cause.object.clone()),
        });
        if mode == Mode::Delete
            && let Some(known) = self.world.nodes.get(&Key::cluster(node))
        {
            self.events.tell(Notice {
                about: About::node(&known.name, &known.uid),
                warning: true,
                reason: "PodDeleted",
                action,
                note: format!("{pod} was {says}"),
                related: Some(pod.clone()),
            });
        }
    }

    fn pod_refused(&self, result: &'static str) {
        self.metrics.evicted(result);
    }

    fn progressed(&self, _node: &str) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
