//! Leases of other installations in the same cluster, as one watch over all namespaces shows them.
//!
//! Who sees its own Lease renewed by that watch has seen every Lease that was written before, since the watch tells of all
//! in one order. So a younger installation knows of an older one at the latest when it renews for the first time after the
//! older came, and an older one that waits for one duration of the younger's Lease can't meet it.
//!
//! Who may write such a Lease at all is up to an admission policy (manifests/admission/lease.yaml). One that was there before
//! that policy, or says that it holds for years, holds for as long as an operator could mean.

use k8s_openapi::api::coordination::v1::Lease;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long a Lease holds that does not say.
const DEFAULT_DURATION: Duration = Duration::from_secs(15);
/// The longest that a Lease holds for us, whatever it says: no operator can be told more (`--lease-seconds`).
const LONGEST_DURATION: Duration = Duration::from_secs(crate::settings::LONGEST_LEASE);

/// Whose installation leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Precedence {
    /// Nobody is in the way.
    Ours,
    /// The installation in that namespace is, at least for now.
    Theirs(String),
}

/// A Lease's age among others: when it was made, and where, for two of one second.
type Age = (String, String);

#[derive(Debug)]
struct Neighbour {
    age: Age,
    renewal: String,
    duration: Duration,
    alive_until: Instant,
}

/// What is known of the others.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    own: Option<Age>,
    others: BTreeMap<String, Neighbour>,
}

fn age(lease: &Lease) -> Age {
    let made = lease.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
    (made.unwrap_or_default(), lease.metadata.namespace.clone().unwrap_or_default())
}

impl Neighbours {
    /// The Lease of this installation.
    pub(super) fn own(&mut self, lease: &Lease) {
        self.own = Some(age(lease));
    }

    /// Another one as it was seen at `now`. At first sight it counts as alive: it may be.
    pub(super) fn take(&mut self, lease: &Lease, now: Instant) {
        let spec = lease.spec.clone().unwrap_or_default();
        let namespace = lease.metadata.namespace.clone().unwrap_or_default();
        if spec.holder_identity.is_none_or(|holder| holder.is_empty()) {
            self.others.remove(&namespace);
            return;
        }
        let renewal = spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default();
        if self.others.get(&namespace).is_some_and(|known| known.renewal == renewal) {
            return;
        }
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DEFAULT_DURATION, Duration::from_secs).min(LONGEST_DURATION);
        self.others.insert(namespace, Neighbour { age: age(lease), renewal, duration, alive_until: now + duration });
    }

    /// Its Lease was deleted.
    pub(super) fn forget(&mut self, lease: &Lease) {
        self.others.remove(lease.metadata.namespace.as_deref().unwrap_or_default());
    }

    /// Who leads while we have held our Lease since `since`.
    pub(super) fn precedence(&self, since: Instant, now: Instant) -> Precedence {
        match self.in_the_way(since, now).next() {
            Some((namespace, _)) => Precedence::Theirs(namespace.clone()),
            None => Precedence::Ours,
        }
    }

    /// When somebody who is in the way is so no longer, if nothing more is seen of them.
    pub(super) fn next(&self, since: Instant, now: Instant) -> Option<Instant> {
        self.in_the_way(since, now).map(|(_, until)| until).min()
    }

    fn in_the_way(&self, since: Instant, now: Instant) -> impl Iterator<Item = (&String, Instant)> {
        self.others.iter().filter_map(move |(namespace, other)| {
            let older = self.own.as_ref().is_none_or(|own| other.age < *own);
            let until = if older { other.alive_until } else { other.alive_until.min(since + other.duration) };
            (now < until).then_some((namespace, until))
        })
    }
}
