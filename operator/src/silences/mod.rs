//! Silences alerts of the node under way, at an Alertmanager (API v2): whoever updates nodes at night need not wake anybody for each.
//!
//! A silence is a lease: it ends some minutes ahead and is renewed while the node is under way, so that it lapses by itself
//! when the operator dies. A node that did not come back is not silenced any more: that is what people are to be woken for.

mod alertmanager;

use crate::clock::Clock;
use alertmanager::{Alertmanager, Silence, Trouble};
use bascule_api::{RolloutState, Time, WaitReason};
use bascule_planner::{Report, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use url::Url;

/// How long a silence holds without being renewed.
const LEASE: bascule_api::Duration = bascule_api::Duration::from_secs(300);
/// How long after its begin, or its last renewal, it is renewed.
const RENEWED: Duration = Duration::from_secs(120);
/// After Alertmanager could not be told.
const AGAIN: Duration = Duration::from_secs(10);
/// How many nodes may be silenced at once; the budget keeps it lower than this anywhere.
const MOST: usize = 1_000;

/// Where silences go.
#[derive(Debug, Clone)]
pub struct Target {
    /// Alertmanager, without the path of its API.
    pub url: Url,
    /// A file with a bearer token, read for each request so that it may be renewed.
    pub token_file: Option<PathBuf>,
    /// The label of alerts that holds a node's name.
    pub label: String,
}

/// The nodes whose alerts are expected now, each with why.
#[must_use]
pub fn expected(snapshot: &Snapshot, report: &Report) -> BTreeMap<String, String> {
    let nodes = report.nodes.iter().zip(&snapshot.nodes);
    let under_way = nodes.filter_map(|(said, facts)| {
        let disruption = facts.update.as_ref()?.spec.disruption.as_ref()?;
        let lost = said.wait.reason == WaitReason::NodeLost || said.state == RolloutState::Failed;
        (!lost).then(|| {
            let object = &disruption.cause.object;
            (facts.name.to_string(), format!("Bascule disrupts {} ({} {})", facts.name, object.kind, object.name))
        })
    });
    under_way.take(MOST).collect()
}

/// Keeps silences for whatever is expected.
#[derive(Debug)]
pub struct Silences {
    alertmanager: Alertmanager,
    label: String,
    clock: Clock,
    held: BTreeMap<String, Held>,
    /// Whether people were told that it does not work.
    complained: bool,
}

#[derive(Debug)]
struct Held {
    id: String,
    /// It is renewed only under the time that it began at: else Alertmanager makes another of it.
    since: Time,
    renew: Instant,
}

impl Silences {
    /// Holds none yet.
    #[must_use]
    pub fn new(target: Target, http: reqwest::Client, clock: Clock) -> Self {
        let alertmanager = Alertmanager { http, url: target.url, token_file: target.token_file };
        Self { alertmanager, label: target.label, clock, held: BTreeMap::new(), complained: false }
    }

    /// Goes on until the sender is dropped. What is held then lapses.
    pub async fn run(mut self, mut expected: watch::Receiver<BTreeMap<String, String>>) {
        loop {
            let wanted = expected.borrow_and_update().clone();
            let next = self.follow(&wanted).await;
            tokio::select! {
                changed = expected.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Begins, renews and ends silences; says when to come again.
    async fn follow(&mut self, wanted: &BTreeMap<String, String>) -> Option<Instant> {
        let over: BTreeSet<String> = self.held.keys().filter(|node| !wanted.contains_key(*node)).cloned().collect();
        for node in over {
            let Some(held) = self.held.remove(&node) else { continue };
            // It would lapse too: nobody waits for a silence to end.
            if let Err(trouble) = self.alertmanager.end(&held.id).await {
                tracing::info!(node, %trouble, "a silence was not ended: it lapses by itself");
            }
        }
        let mut failed = false;
        for (node, why) in wanted {
            let known = self.held.get(node);
            if known.is_some_and(|held| held.renew > Instant::now()) {
                continue;
            }
            let now = Time::new(self.clock.now());
            let since = known.map_or(now, |held| held.since);
            let lease = (since, now.after(LEASE));
            let silence = Silence::of(&self.label, node, why, lease, known.map(|held| held.id.clone()));
            match self.alertmanager.hold(&silence).await {
                Ok(id) => {
                    self.complained = false;
                    self.held.insert(node.clone(), Held { id, since, renew: Instant::now() + RENEWED });
                }
                Err(trouble) => {
                    failed = true;
                    // One that is not known any more is begun anew.
                    self.held.remove(node);
                    self.complain(node, &trouble);
                    break;
                }
            }
        }
        let renew = self.held.values().map(|held| held.renew).min();
        let again = failed.then(|| Instant::now() + AGAIN);
        [renew, again].into_iter().flatten().min()
    }

    /// Once, and not every ten seconds.
    fn complain(&mut self, node: &str, trouble: &Trouble) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(node, %trouble, "alerts can't be silenced: the update goes on without, and it is tried again");
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
