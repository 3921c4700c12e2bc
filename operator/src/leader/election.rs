//! Who may hold the Lease, as a pure machine: what was seen and when by this replica's monotonic clock goes in, what to write comes out.
//!
//! As in client-go (k8s.io/client-go/tools/leaderelection), no two machines' clocks are compared. A replica that waits counts from
//! when it first saw the holder's last renewal, and takes over when a whole duration has passed without another. The holder counts
//! from when it *sent* its last renewal that was answered, and stops acting at two thirds of the duration. What it sent was seen by
//! others later than that, so between its last act and the first of its successor lies a third of the duration at least, as
//! long as the two clocks run equally fast within that third. The times in the Lease are for people.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// How a Lease is held.
#[derive(Debug, Clone)]
pub struct Terms {
    /// This replica's name in it.
    pub identity: String,
    /// After this time without a renewal another replica may take over.
    pub duration: Duration,
}

impl Terms {
    /// How long after a renewal was sent its holder may act.
    pub fn acts_for(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// How often a holder renews: half of the time that it may act is left for a renewal that fails.
    pub fn renews_every(&self) -> Duration {
        self.duration / 3
    }

    /// How soon a request that failed is repeated, and how often one who waits looks.
    pub fn looks_every(&self) -> Duration {
        self.duration / 15
    }
}

/// What to do with the Lease now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Move {
    /// There is none: create it.
    Create(Value),
    /// Write this merge patch, which carries the resourceVersion that was seen: it fails where somebody else wrote meanwhile.
    Write(Value),
    /// Somebody else holds it.
    Wait,
}

/// The parts of a Lease whose change is a sign of life.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    holder: String,
    renewed: Option<String>,
    acquired: Option<String>,
    transitions: i32,
    duration: Duration,
}

impl Record {
    fn of(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            renewed: spec.renew_time.map(|time| time.0.to_string()),
            acquired: spec.acquire_time.map(|time| time.0.to_string()),
            transitions: spec.lease_transitions.unwrap_or_default(),
            duration: Duration::from_secs(seconds.unwrap_or_default()),
        }
    }
}

/// One replica's part.
#[derive(Debug)]
pub(super) struct Candidate {
    terms: Terms,
    seen: Option<(Record, Instant)>,
}

impl Candidate {
    pub const fn new(terms: Terms) -> Self {
        Self { terms, seen: None }
    }

    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What to do with the Lease, which was read from the API server by `now`. `time` is for people.
    pub fn look(&mut self, lease: Option<&Lease>, now: Instant, time: &MicroTime) -> Move {
        let Some(lease) = lease else {
            self.seen = None;
            return Move::Create(json!(self.held_since(time, 0)));
        };
        let record = Record::of(lease);
        if self.seen.as_ref().is_none_or(|(before, _)| *before != record) {
            self.seen = Some((record.clone(), now));
        }
        let first_seen = self.seen.as_ref().map_or(now, |(_, at)| *at);
        let version = json!({"resourceVersion": lease.metadata.resource_version, "uid": lease.metadata.uid});
        if record.holder == self.terms.identity {
            let spec = json!({"renewTime": time, "leaseDurationSeconds": self.terms.duration.as_secs()});
            return Move::Write(json!({"metadata": version, "spec": spec}));
        }
        // A holder with other settings keeps what it was promised.
        let silent_after = self.terms.duration.max(record.duration);
        if record.holder.is_empty() || now.saturating_duration_since(first_seen) >= silent_after {
            let spec = json!(self.held_since(time, record.transitions.saturating_add(1)));
            return Move::Write(json!({"metadata": version, "spec": spec}));
        }
        Move::Wait
    }

    /// The merge patch that gives a Lease back, where it is ours.
    pub fn give_back(&self, lease: &Lease, time: &MicroTime) -> Option<Value> {
        (Record::of(lease).holder == self.terms.identity).then(|| {
            json!({
                "metadata": {"resourceVersion": lease.metadata.resource_version, "uid": lease.metadata.uid},
                "spec": {"holderIdentity": "", "renewTime": time},
            })
        })
    }

    fn held_since(&self, time: &MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.terms.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.terms.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(time.clone()),
            renew_time: Some(time.clone()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms(identity: &str) -> Terms {
        Terms { identity: identity.to_owned(), duration: 15 * SECOND }
    }

    fn time(text: &str) -> MicroTime {
        serde_json::from_value(json!(text)).unwrap()
    }

    fn lease(version: u64, spec: &Value) -> Lease {
        serde_json::from_value(json!({"metadata": {"uid": "u", "resourceVersion": version.to_string()}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn whoever_waits_counts_from_the_last_sign_of_life_that_it_saw_and_by_no_other_clock() {
        let (mut waiting, start, now) =
            (Candidate::new(terms("b")), Instant::now(), time("2026-11-29T02:00:00.000000Z"));
        // The holder's wall clock is ten years behind: that says nothing.
        let held =
            |renewed: &str| lease(7, &json!({"holderIdentity": "a", "renewTime": renewed, "leaseDurationSeconds": 15}));
        let (first, second) = (held("2016-01-01T00:00:00.000000Z"), held("2016-01-01T00:00:05.000000Z"));
        assert_eq!(waiting.look(Some(&first), start, &now), Move::Wait);
        assert_eq!(waiting.look(Some(&first), start + 14 * SECOND, &now), Move::Wait);
        assert_eq!(waiting.look(Some(&second), start + 14 * SECOND, &now), Move::Wait);
        assert_eq!(waiting.look(Some(&second), start + 28 * SECOND, &now), Move::Wait);
        let Move::Write(patch) = waiting.look(Some(&second), start + 29 * SECOND, &now) else {
            panic!("it was silent")
        };
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7", "uid": "u"}));
        assert_eq!((&patch["spec"]["holderIdentity"], &patch["spec"]["leaseTransitions"]), (&json!("b"), &json!(1)));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once_and_one_with_a_longer_promise_is_waited_for() {
        let (mut candidate, start, now) =
            (Candidate::new(terms("b")), Instant::now(), time("2026-11-29T02:00:00.000000Z"));
        assert!(matches!(candidate.look(None, start, &now), Move::Create(_)));
        let free = lease(1, &json!({"holderIdentity": ""}));
        assert!(matches!(candidate.look(Some(&free), start, &now), Move::Write(_)));
        let longer = lease(2, &json!({"holderIdentity": "a", "leaseDurationSeconds": 60}));
        assert_eq!(candidate.look(Some(&longer), start, &now), Move::Wait);
        assert_eq!(candidate.look(Some(&longer), start + 59 * SECOND, &now), Move::Wait);
        assert!(matches!(candidate.look(Some(&longer), start + 60 * SECOND, &now), Move::Write(_)));
    }

    #[test]
    fn only_its_own_lease_is_given_back() {
        let (candidate, now) = (Candidate::new(terms("b")), time("2026-11-29T02:00:00.000000Z"));
        assert_eq!(candidate.give_back(&lease(3, &json!({"holderIdentity": "a"})), &now), None);
        let patch = candidate.give_back(&lease(3, &json!({"holderIdentity": "b"})), &now).unwrap();
        assert_eq!(
            (&patch["metadata"]["resourceVersion"], &patch["spec"]["holderIdentity"]),
            (&json!("3"), &json!(""))
        );
    }

    /// What happens in a small world of one API server and two replicas.
    enum Event {
        Wakes(usize),
        ReadArrives(usize),
        IsAnswered(usize, Option<(u64, Value)>),
        WriteArrives { who: usize, version: u64, spec: Value, sent: u64 },
        WriteIsAnswered { who: usize, sent: u64 },
    }

    struct Contest {
        candidates: [Candidate; 2],
        /// Each monotonic clock's speed, in thousandths of the world's.
        rates: [u64; 2],
        /// Each wall clock's year.
        years: [i32; 2],
        /// Until when each acts, by the world's clock in milliseconds.
        acts_until: [u64; 2],
        acted: [bool; 2],
        stored: Option<(u64, Value)>,
        due: BTreeMap<(u64, usize), Event>,
        count: usize,
    }

    impl Contest {
        fn at(&mut self, time: u64, event: Event) {
            self.count += 1;
            self.due.insert((time, self.count), event);
        }

        fn acts_for(&self, who: usize) -> u64 {
            u64::try_from(self.candidates[who].terms().acts_for().as_millis()).unwrap() * 1000 / self.rates[who]
        }

        /// Lets the next event happen; the next requests take `there` and `back`, and the answer to a write may be lost.
        fn next(&mut self, origin: Instant, (there, back, lost): (u64, u64, bool)) -> Result<(), String> {
            let ((now, _), event) = self.due.pop_first().ok_or("nothing is due any more")?;
            match event {
                Event::Wakes(who) => self.at(now + there, Event::ReadArrives(who)),
                Event::ReadArrives(who) => {
                    let seen = self.stored.clone();
                    self.at(now + back, Event::IsAnswered(who, seen));
                }
                Event::IsAnswered(who, seen) => {
                    let time =
                        time(&format!("{}-01-01T00:00:{:02}.{:06}Z", self.years[who], now / 1000 % 60, self.count));
                    let own = origin + Duration::from_millis(now * self.rates[who] / 1000);
                    let read = seen.as_ref().map(|(version, spec)| lease(*version, spec));
                    let spec = match self.candidates[who].look(read.as_ref(), own, &time) {
                        Move::Wait => None,
                        Move::Create(spec) => Some(spec),
                        Move::Write(patch) => Some(patch["spec"].clone()),
                    };
                    let version = seen.map_or(0, |(version, _)| version);
                    if let Some(spec) = spec {
                        self.at(now + there, Event::WriteArrives { who, version, spec, sent: now });
                    }
                    let terms = self.candidates[who].terms();
                    self.at(now + u64::try_from(terms.looks_every().as_millis()).unwrap(), Event::Wakes(who));
                }
                Event::WriteArrives { who, version, spec, sent } => {
                    if self.stored.as_ref().map_or(0, |(version, _)| *version) != version {
                        return Ok(());
                    }
                    let mut merged = self.stored.take().map_or_else(|| json!({}), |(_, before)| before);
                    for (name, value) in spec.as_object().unwrap() {
                        merged[name] = value.clone();
                    }
                    self.stored = Some((version + 1, merged));
                    if !lost {
                        self.at(now + back, Event::WriteIsAnswered { who, sent });
                    }
                }
                Event::WriteIsAnswered { who, sent } => {
                    let until = sent + self.acts_for(who);
                    if now < until {
                        self.acts_until[who] = self.acts_until[who].max(until);
                        self.acted[who] = true;
                        if self.acts_until[1 - who] > now {
                            return Err(format!("both act at {now} ms"));
                        }
                    }
                }
            }
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 300, rng_seed: proptest::test_runner::RngSeed::Fixed(20), ..ProptestConfig::default()
        })]
        /// Requests and answers that take longer than the Lease lasts or are lost, monotonic clocks that run a tenth apart, wall clocks
        /// that are years apart: two replicas never act at the same time. It fails where a holder may act for one and a half durations.
        #[test]
        fn two_replicas_never_act_at_once(
            delays in proptest::collection::vec((0..20_000_u64, 0..20_000_u64, 0..12_u8), 1500),
            rates in (950..=1050_u64, 950..=1050_u64),
        ) {
            let origin = Instant::now();
            let mut world = Contest {
                candidates: [Candidate::new(terms("a")), Candidate::new(terms("b"))],
                rates: [rates.0, rates.1],
                years: [1999, 2044],
                acts_until: [0; 2],
                acted: [false; 2],
                stored: None,
                due: BTreeMap::new(),
                count: 0,
            };
            world.at(0, Event::Wakes(0));
            world.at(7, Event::Wakes(1));
            for (there, back, luck) in delays {
                // Mostly quick, seldom slower than the Lease lasts.
                let (there, back) = if luck < 10 { (there / 100, back / 100) } else { (there, back) };
                if let Err(reason) = world.next(origin, (there, back, luck == 9)) {
                    prop_assert!(false, "{reason}");
                }
            }
            prop_assert!(world.acted[0] || world.acted[1], "a world in which nobody ever acts shows nothing");
        }
    }
}
