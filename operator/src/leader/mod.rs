//! One of several replicas acts; the others watch along and are ready.
//!
//! The Lease is taken and renewed as in client-go, but for two things: what a holder may do ends a third of the Lease's duration
//! before others may take over, and no two machines' clocks are compared (`election`, docs/decisions/0038). Beside it the fence
//! watches the Lease and believes only what it has seen: a replica whose watch is late does not act.
//!
//! Bascule's objects belong to the whole cluster, so two installations of it would fight over them. The fence watches the
//! Leases of that name in every namespace: the installation whose Lease is older leads, and the other waits and says so.

mod campaign;
mod election;
mod neighbours;

use crate::{clock::Clock, pulse::Pulse};
use bascule_api::{OPERATOR_LEASE, Time, UNREAD_ANNOTATION};
use campaign::Campaign;
use election::Candidate;
pub use election::Terms;
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use neighbours::{Neighbours, Precedence};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Why this replica can't take part in the election.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The Lease can't be read or created.
    #[error("cannot use Lease {namespace}/{name}: is the operator's Role installed, and does the namespace exist?")]
    Lease {
        /// The namespace.
        namespace: String,
        /// The Lease.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// What is known of the election.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Whether this replica may act.
    pub leads: bool,
    /// A number that stays the same for the life of an installation (from the Lease's UID).
    pub seed: u64,
    /// Who holds the Lease, as last seen.
    pub holder: Option<Arc<str>>,
    /// When whoever led could not read something last that trials hang on.
    pub unread_at: Option<Time>,
    /// The namespace of another installation, which keeps this replica from leading though it holds its Lease.
    pub kept_by: Option<Arc<str>>,
}

impl Leadership {
    /// What is told where another installation keeps this one from leading.
    #[must_use]
    pub fn kept(&self) -> Option<String> {
        let namespace = self.kept_by.as_ref()?;
        Some(format!(
            "another installation of Bascule leads in this cluster (namespace {namespace}), so this one waits: take out one of \
             the two"
        ))
    }
}

/// This replica's part in the election. Dropping it is a crash: the Lease runs out. [`Self::release`] gives it back.
#[derive(Debug)]
pub struct Leader {
    state: watch::Receiver<Leadership>,
    stop: Option<oneshot::Sender<()>>,
    campaign: JoinHandle<()>,
    fence: JoinHandle<()>,
}

impl Leader {
    /// Takes part from now on. `unread` says whether something can't be read that trials hang on: the next leader has to know.
    ///
    /// # Errors
    /// [`LeaderError`] when there is no Lease to be had.
    pub async fn start(
        client: Client,
        terms: Terms,
        clock: Clock,
        namespace: &str,
        unread: watch::Receiver<bool>,
        pulse: Pulse,
    ) -> Result<Self, LeaderError> {
        let Terms { identity, duration } = terms.clone();
        let (acts_until, held) = watch::channel(None);
        let mut campaign = Campaign {
            leases: Api::namespaced(client.clone(), namespace),
            name: OPERATOR_LEASE.to_owned(),
            candidate: Candidate::new(terms),
            clock,
            acts_until,
            unread,
            pulse: pulse.clone(),
        };
        campaign.first_look().await.map_err(|source| LeaderError::Lease {
            namespace: namespace.to_owned(),
            name: OPERATOR_LEASE.to_owned(),
            source: Box::new(source),
        })?;
        let (stop, stopped) = oneshot::channel();
        let campaign = tokio::spawn(campaign.run(stopped));
        let (sender, state) = watch::channel(Leadership::default());
        let leases: Api<Lease> = Api::all(client);
        let config = watcher::Config::default().fields(&format!("metadata.name={OPERATOR_LEASE}"));
        let fence = Fence {
            identity,
            namespace: namespace.to_owned(),
            duration,
            seen: None,
            held_since: None,
            valid_until: None,
            seed: 0,
            holder: None,
            unread_at: None,
            neighbours: Neighbours::default(),
            pulse,
        };
        let fence = tokio::spawn(keep_fence(leases, config, fence, held, sender));
        Ok(Self { state, stop: Some(stop), campaign, fence })
    }

    /// The state of the election, told whenever it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        self.state.clone()
    }

    /// Steps down and gives the Lease back, so that another replica need not wait for its end.
    pub async fn release(mut self) {
        self.fence.abort();
        let _ = (&mut self.fence).await;
        let told = self.stop.take().map(|stop| stop.send(()));
        if told.is_none_or(|told| told.is_err()) || (&mut self.campaign).await.is_err() {
            tracing::warn!("the Lease could not be given back and will expire");
        }
    }
}

impl Drop for Leader {
    /// Without this the election would go on in the background for a replica that is gone.
    fn drop(&mut self) {
        self.fence.abort();
        self.campaign.abort();
    }
}

#[derive(Debug)]
struct Fence {
    identity: String,
    namespace: String,
    duration: Duration,
    /// The renewal that was seen last, so that a relist of an old state does not count as a new one.
    seen: Option<String>,
    /// Since when this replica has held the Lease without a gap.
    held_since: Option<Instant>,
    valid_until: Option<Instant>,
    seed: u64,
    holder: Option<Arc<str>>,
    unread_at: Option<Time>,
    neighbours: Neighbours,
    pulse: Pulse,
}

impl Fence {
    /// Takes in the Lease as it was seen at `now`.
    fn take(&mut self, lease: &Lease, now: Instant) {
        if lease.metadata.namespace.as_deref() != Some(self.namespace.as_str()) {
            return self.neighbours.take(lease, now);
        }
        self.neighbours.own(lease);
        if let Some(uid) = &lease.metadata.uid {
            self.seed = bascule_planner::snapshot::seed_of(uid);
        }
        let said = lease.metadata.annotations.as_ref().and_then(|all| all.get(UNREAD_ANNOTATION));
        self.unread_at = said.and_then(|text| serde_json::from_value(text.as_str().into()).ok());
        let spec = lease.spec.clone().unwrap_or_default();
        self.holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty()).map(Arc::from);
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            self.lost();
            return;
        }
        let renewal = spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default();
        if self.seen.as_ref() != Some(&renewal) {
            self.pulse.lease_seen();
            self.seen = Some(renewal);
            self.held_since = self.held_since.filter(|_| self.holds(now)).or(Some(now));
            self.valid_until = Some(now + self.duration);
        }
    }

    /// A Lease was deleted.
    fn forget(&mut self, lease: &Lease) {
        if lease.metadata.namespace.as_deref() == Some(self.namespace.as_str()) {
            self.lost();
        } else {
            self.neighbours.forget(lease);
        }
    }

    fn lost(&mut self) {
        (self.valid_until, self.held_since, self.seen) = (None, None, None);
    }

    fn holds(&self, now: Instant) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }

    /// Whether this replica may act, and which installation keeps it from that.
    fn leads(&self, now: Instant) -> (bool, Option<String>) {
        let (Some(since), true) = (self.held_since, self.holds(now)) else { return (false, None) };
        match self.neighbours.precedence(since, now) {
            Precedence::Ours => (true, None),
            Precedence::Theirs(namespace) => (false, Some(namespace)),
        }
    }

    /// When the answer of [`Self::leads`] may change though nothing is seen.
    fn next(&self, now: Instant) -> Option<Instant> {
        let held = self.held_since.filter(|_| self.holds(now));
        let neighbours = held.and_then(|since| self.neighbours.next(since, now));
        self.valid_until.filter(|until| now < *until).into_iter().chain(neighbours).min()
    }
}

async fn keep_fence(
    leases: Api<Lease>,
    config: watcher::Config,
    mut fence: Fence,
    mut held: watch::Receiver<Option<Instant>>,
    state: watch::Sender<Leadership>,
) {
    let mut events = pin!(watcher(leases, config).default_backoff());
    let mut kept_by: Option<Arc<str>> = None;
    loop {
        let now = Instant::now();
        let (fenced, other) = fence.leads(now);
        let other = other.map(Arc::from);
        let acts_until = (*held.borrow_and_update()).filter(|until| now < *until);
        let leads = acts_until.is_some() && fenced;
        let (seed, holder, unread_at) = (fence.seed, fence.holder.clone(), fence.unread_at);
        let known = Leadership { leads, seed, holder, unread_at, kept_by: other };
        if kept_by != known.kept_by {
            match known.kept() {
                Some(kept) => tracing::error!("{kept}"),
                None => tracing::info!("no other installation of Bascule is in the way any more"),
            }
            kept_by.clone_from(&known.kept_by);
        }
        state.send_if_modified(|before| {
            let changed = *before != known;
            if before.leads != leads {
                tracing::info!(identity = fence.identity, leads, "the election changed");
            }
            *before = known;
            changed
        });
        let next = fence.next(now).into_iter().chain(acts_until).min();
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease))) => {
                    fence.take(&lease, Instant::now());
                }
                Some(Ok(watcher::Event::Delete(lease))) => fence.forget(&lease),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    if is_forbidden(&error) {
                        // The API server does answer, and says so to the next process too.
                        fence.pulse.lease_seen();
                    }
                    tracing::warn!(error = crate::one_line(&error), "the Lease can't be watched");
                }
                None => return,
            },
            changed = held.changed() => if changed.is_err() { return },
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => {
                if fence.valid_until.is_some_and(|until| until <= Instant::now()) {
                    tracing::warn!(identity = fence.identity, "the watch did not show the Lease renewed in time: stepping down");
                }
            }
        }
    }
}

/// Whether the API server does not let us watch: no restart helps against that.
fn is_forbidden(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => return false,
    };
    matches!(code, 401 | 403)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_restart_helps_against_a_right_that_is_missing() {
        let answered = |code: u16| {
            let status = serde_json::from_value(serde_json::json!({"status": "Failure", "code": code})).unwrap();
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        assert!(is_forbidden(&answered(403)) && is_forbidden(&answered(401)));
        let status = || -> Box<kube::core::Status> {
            Box::new(serde_json::from_value(serde_json::json!({"status": "Failure", "code": 403})).unwrap())
        };
        let started = watcher::Error::WatchStartFailed(kube::Error::Api(status()));
        let failed = watcher::Error::WatchFailed(kube::Error::Api(status()));
        assert!([started, failed, watcher::Error::WatchError(status())].iter().all(is_forbidden));
        assert!(!is_forbidden(&answered(504)) && !is_forbidden(&watcher::Error::NoResourceVersion));
    }

    fn lease(holder: &str, renewed: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "l", "namespace": "own", "uid": "u", "creationTimestamp": "2026-11-01T00:00:00Z"},
            "spec": {"holderIdentity": holder, "renewTime": renewed}
        }))
        .unwrap()
    }

    #[test]
    fn what_its_predecessor_could_not_read_is_told_to_the_next_leader() {
        let mut fence = fence();
        let mut held = lease("other", "2026-11-29T02:00:00.000000Z");
        held.metadata.annotations = Some([(UNREAD_ANNOTATION.to_owned(), "2026-11-29T01:59:58Z".to_owned())].into());
        fence.take(&held, Instant::now());
        assert_eq!(fence.unread_at.map(|at| at.to_string()).as_deref(), Some("2026-11-29T01:59:58Z"));
        held.metadata.annotations = None;
        fence.take(&held, Instant::now());
        assert_eq!(fence.unread_at, None);
    }

    fn foreign(created: &str, holder: &str, second: u32) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "l", "namespace": "other", "uid": "v", "creationTimestamp": created},
            "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 15,
                "renewTime": format!("2026-11-21T10:00:{second:02}.000000Z"),
            }
        }))
        .unwrap()
    }

    fn fence() -> Fence {
        Fence {
            identity: "me".into(),
            namespace: "own".into(),
            duration: Duration::from_secs(15),
            seen: None,
            held_since: None,
            valid_until: None,
            seed: 0,
            neighbours: Neighbours::default(),
            holder: None,
            unread_at: None,
            pulse: Pulse::default(),
        }
    }

    #[test]
    fn leadership_ends_one_duration_after_the_last_renewal_that_was_seen() {
        let (mut fence, start) = (fence(), Instant::now());
        fence.take(&lease("me", "2026-11-21T10:00:00.000000Z"), start);
        assert!(fence.holds(start + Duration::from_secs(14)));
        assert!(!fence.holds(start + Duration::from_secs(15)));
        // A relist of the same renewal is no renewal.
        fence.take(&lease("me", "2026-11-21T10:00:00.000000Z"), start + Duration::from_secs(14));
        assert!(!fence.holds(start + Duration::from_secs(15)));
        fence.take(&lease("me", "2026-11-21T10:00:05.000000Z"), start + Duration::from_secs(20));
        assert!(fence.holds(start + Duration::from_secs(34)));
    }

    #[test]
    fn another_holder_ends_it_at_once() {
        let (mut fence, start) = (fence(), Instant::now());
        fence.take(&lease("me", "2026-11-21T10:00:00.000000Z"), start);
        fence.take(&lease("other", "2026-11-21T10:00:01.000000Z"), start);
        assert!(!fence.holds(start));
        assert_eq!(fence.holder.as_deref(), Some("other"));
        assert_eq!(fence.seed, bascule_planner::snapshot::seed_of("u"));
        assert_ne!(bascule_planner::snapshot::seed_of("u"), bascule_planner::snapshot::seed_of("v"));
    }

    #[test]
    fn an_older_installation_leads_until_it_is_silent() {
        let (mut fence, start) = (fence(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        fence.take(&lease("me", "2026-11-21T10:00:00.000000Z"), start);
        assert_eq!(fence.leads(start), (true, None));
        fence.take(&foreign("2026-10-01T00:00:00Z", "they", 0), after(1));
        assert_eq!(fence.leads(after(1)), (false, Some("other".to_owned())));
        fence.take(&lease("me", "2026-11-21T10:00:10.000000Z"), after(10));
        // The same renewal again is no sign of life.
        fence.take(&foreign("2026-10-01T00:00:00Z", "they", 0), after(11));
        assert_eq!(fence.next(after(11)), Some(after(16)));
        assert_eq!(fence.leads(after(15)), (false, Some("other".to_owned())));
        assert_eq!(fence.leads(after(16)), (true, None));
        fence.take(&foreign("2026-10-01T00:00:00Z", "they", 17), after(17));
        assert!(!fence.leads(after(17)).0);
        // It gave its Lease back.
        fence.take(&foreign("2026-10-01T00:00:00Z", "", 18), after(18));
        assert!(fence.leads(after(18)).0);
    }

    #[test]
    fn a_lease_that_says_it_holds_for_years_holds_as_long_as_an_operator_could_mean() {
        let (mut fence, start) = (fence(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let forged = |created: &str| {
            let mut lease = foreign(created, "nobody", 0);
            lease.spec.as_mut().unwrap().lease_duration_seconds = Some(i32::MAX);
            lease
        };
        for created in ["2026-10-01T00:00:00Z", "2026-11-20T00:00:00Z"] {
            fence.take(&lease("me", "2026-11-21T10:00:00.000000Z"), start);
            fence.take(&forged(created), start);
            assert!(!fence.leads(start).0);
            fence.take(&lease("me", "2026-11-21T10:09:59.000000Z"), after(599));
            fence.take(&forged(created), after(599));
            assert_eq!(fence.leads(after(600)), (true, None), "{created}");
            fence.lost();
        }
    }

    #[test]
    fn a_younger_installation_is_given_the_time_to_step_down() {
        let (mut fence, start) = (fence(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        fence.take(&foreign("2026-11-20T00:00:00Z", "they", 0), start);
        fence.take(&lease("me", "2026-11-21T10:00:02.000000Z"), after(2));
        // It may lead since before it could see us.
        fence.take(&foreign("2026-11-20T00:00:00Z", "they", 10), after(10));
        fence.take(&lease("me", "2026-11-21T10:00:12.000000Z"), after(12));
        assert_eq!(fence.leads(after(12)), (false, Some("other".to_owned())));
        assert_eq!(fence.next(after(12)), Some(after(17)), "one duration of its Lease after we were to be seen");
        fence.take(&foreign("2026-11-20T00:00:00Z", "they", 18), after(18));
        assert_eq!(fence.leads(after(18)), (true, None), "whoever renews now has seen us");
    }
}
