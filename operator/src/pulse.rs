//! Whether the operator goes on, for the kubelet, which restarts it where it does not (`/healthz`).
//!
//! A restart helps against nothing that is somebody else's: an API server that is away or slow, a definition that is missing, another
//! replica that leads. So three things are asked alone, and each shows that this process is what does not go on:
//!
//! - Whoever acts makes a plan again and again. What it waits for while it carries one out are answers of the API server, for however
//!   long; until the next one it waits for nobody.
//! - Whoever writes its Lease sees it renewed by a watch. Where the API server takes the writes and the watch shows none of them, it
//!   shows nothing of anything else either: a watch that waits for a version which the API server will not have for long, since etcd was
//!   restored from a backup, ends only with its process.
//! - What is known of the cluster is no newer than the cluster. After such a restore it may be, and then nothing that is read counts.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long the next plan may be waited for. One is made each minute at the latest though nothing changes (`run::round`), and takes a
/// moment, or a few seconds on a machine that is starved of processor time: three were left out.
const WITHOUT_A_PLAN: Duration = Duration::from_secs(180);
/// How many times as long as the Lease holds the watch may show none of its renewals, each of which is written three times as often. A watch
/// that is merely late shows them late, and one whose connection died begins anew.
const UNSEEN: u32 = 10;

/// The signs of life. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Signs>>);

impl Pulse {
    /// This replica acts from now on.
    pub fn acts(&self) {
        self.note(|signs, now| signs.plans = Plans::Due(now));
    }

    /// It does not act any more.
    pub fn rests(&self) {
        self.note(|signs, _| signs.plans = Plans::NotOurs);
    }

    /// A plan was made and is carried out.
    pub fn planned(&self) {
        self.note(|signs, _| signs.plans = Plans::CarriedOut);
    }

    /// It was carried out, as far as it can be now; the next one is waited for.
    pub fn carried_out(&self) {
        self.note(|signs, now| signs.plans = Plans::Due(now));
    }

    /// The API server took a write of our Lease, which holds for that long.
    pub(crate) fn lease_written(&self, holds: Duration) {
        self.note(|signs, now| signs.renewals.written(now, holds));
    }

    /// The watch showed that our Lease was renewed, or somebody else holds it.
    pub(crate) fn lease_seen(&self) {
        self.note(|signs, _| signs.renewals.unseen_since = None);
    }

    /// The cluster is older than what is known of it.
    pub(crate) fn outlived(&self, why: String) {
        self.note(|signs, _| signs.outlived = Some(why));
    }

    /// Why this process is to be restarted, if it is.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stopped(Instant::now())
    }

    fn note(&self, note: impl FnOnce(&mut Signs, Instant)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    }
}

#[derive(Debug, Default)]
struct Signs {
    plans: Plans,
    renewals: Renewals,
    outlived: Option<String>,
}

#[derive(Debug, Default)]
enum Plans {
    /// Others make them, or nobody does.
    #[default]
    NotOurs,
    /// The next one has been waited for since then.
    Due(Instant),
    /// The last one is carried out: the API server is waited for.
    CarriedOut,
}

#[derive(Debug, Default)]
struct Renewals {
    /// When the API server took the last one.
    written: Option<Instant>,
    /// Since when it took one after the other and the watch showed none.
    unseen_since: Option<Instant>,
    /// How long our Lease holds.
    holds: Duration,
}

impl Renewals {
    fn written(&mut self, now: Instant, holds: Duration) {
        // After a while in which the API server was away, the watch is given its time anew.
        let on_end = self.written.is_some_and(|last| now.saturating_duration_since(last) <= holds);
        self.unseen_since = self.unseen_since.filter(|_| on_end).or(Some(now));
        (self.written, self.holds) = (Some(now), holds);
    }

    fn unseen(&self, now: Instant) -> bool {
        let for_so_long = |since: Instant| now.saturating_duration_since(since);
        self.unseen_since.is_some_and(|since| for_so_long(since) >= self.holds.saturating_mul(UNSEEN))
            && self.written.is_some_and(|last| for_so_long(last) <= self.holds)
    }
}

impl Signs {
    fn stopped(&self, now: Instant) -> Option<String> {
        if let Plans::Due(since) = self.plans
            && now.saturating_duration_since(since) >= WITHOUT_A_PLAN
        {
            return Some(format!("leads, and has made no plan for {} s", WITHOUT_A_PLAN.as_secs()));
        }
        if self.renewals.unseen(now) {
            let holds = self.renewals.holds.as_secs();
            return Some(format!(
                "the API server takes renewals of the Lease, and the watch has shown none for {UNSEEN} times {holds} s"
            ));
        }
        self.outlived.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOLDS: Duration = Duration::from_secs(15);

    fn signs(plans: Plans) -> Signs {
        Signs { plans, ..Signs::default() }
    }

    #[test]
    fn who_leads_and_makes_no_plan_is_restarted_and_who_waits_for_the_api_server_is_not() {
        let start = Instant::now();
        let due = signs(Plans::Due(start));
        assert_eq!(due.stopped(start + 179 * SECOND), None);
        assert!(due.stopped(start + 180 * SECOND).is_some_and(|why| why.contains("no plan for 180 s")));
        for plans in [Plans::NotOurs, Plans::CarriedOut] {
            assert_eq!(signs(plans).stopped(start + 86_400 * SECOND), None);
        }
        assert_eq!(due.stopped(start - SECOND), None, "a clock that stood still");
    }

    #[test]
    fn each_plan_is_a_sign_of_life_and_a_deposed_leader_needs_none() {
        let pulse = Pulse::default();
        let plans = |pulse: &Pulse| {
            let signs = pulse.0.lock().unwrap();
            match signs.plans {
                Plans::NotOurs => "others'",
                Plans::Due(_) => "due",
                Plans::CarriedOut => "carried out",
            }
        };
        assert_eq!(plans(&pulse), "others'");
        for (happens, then) in [
            (&(|pulse: &Pulse| pulse.acts()) as &dyn Fn(&Pulse), "due"),
            (&|pulse| pulse.planned(), "carried out"),
            (&|pulse| pulse.carried_out(), "due"),
            (&|pulse| pulse.rests(), "others'"),
        ] {
            happens(&pulse);
            assert_eq!((plans(&pulse), pulse.stopped()), (then, None));
        }
    }

    /// Renewals every five seconds of a Lease that holds for fifteen, from one second to another.
    fn renew(renewals: &mut Renewals, start: Instant, seconds: std::ops::Range<u32>) {
        for second in seconds.step_by(5) {
            renewals.written(start + second * SECOND, HOLDS);
        }
    }

    #[test]
    fn renewals_that_the_watch_never_shows_are_a_watch_that_shows_nothing() {
        let (mut renewals, start) = (Renewals::default(), Instant::now());
        renew(&mut renewals, start, 0..146);
        assert!(!renewals.unseen(start + 149 * SECOND));
        assert!(renewals.unseen(start + 150 * SECOND));
        renewals.unseen_since = None;
        assert!(!renewals.unseen(start + 150 * SECOND), "it was late");
        renew(&mut renewals, start, 150..291);
        assert!(!renewals.unseen(start + 295 * SECOND));
        let signs = Signs { renewals, ..Signs::default() };
        let why = signs.stopped(start + 300 * SECOND).unwrap();
        assert!(why.contains("10 times 15 s"), "{why}");
    }

    #[test]
    fn while_the_api_server_is_away_and_just_after_nothing_is_concluded() {
        let (mut renewals, start) = (Renewals::default(), Instant::now());
        // The last one was taken and not shown any more, and then nothing was answered for an hour.
        renewals.written(start, HOLDS);
        assert!(!renewals.unseen(start + 3_000 * SECOND));
        renew(&mut renewals, start, 3_600..3_700);
        assert!(!renewals.unseen(start + 3_700 * SECOND), "the watch is given its time anew");
        renew(&mut renewals, start, 3_700..3_751);
        assert!(renewals.unseen(start + 3_750 * SECOND));
    }

    #[test]
    fn who_knows_of_what_the_cluster_forgot_is_restarted() {
        let pulse = Pulse::default();
        assert_eq!(pulse.stopped(), None);
        pulse.outlived("Node is older".to_owned());
        pulse.rests();
        assert_eq!(pulse.stopped().as_deref(), Some("Node is older"));
    }
}
