//! An object whose status can't be written rests, whatever is reported of it meanwhile: reports come at the pace of the cluster's pod
//! changes, and each would ask the API server once more.

use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// How long an object rests of which a write failed once; twice as long after each further one.
const FIRST: Duration = Duration::from_millis(500);
/// The longest rest; after a write that nobody answered at once.
const LONGEST: Duration = Duration::from_secs(60);
/// How long after its rest an object is forgotten of which nothing is to be said any more.
const FORGOTTEN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Rest {
    failed: u32,
    until: Instant,
}

/// The objects whose last write failed, by kind and name.
#[derive(Debug, Default)]
pub(super) struct Rests(HashMap<&'static str, HashMap<String, Rest>>);

impl Rests {
    /// Until when an object rests; `None`: it may be written.
    pub(super) fn until(&self, kind: &str, name: &str, now: Instant) -> Option<Instant> {
        self.0.get(kind)?.get(name).map(|rest| rest.until).filter(|until| now < *until)
    }

    /// Takes note of a write that failed, or that nobody answered. Says until when the object rests.
    pub(super) fn failed(&mut self, kind: &'static str, name: &str, silence: bool, now: Instant) -> Instant {
        let of_kind = self.0.entry(kind).or_default();
        let rest = of_kind.entry(name.to_owned()).or_insert(Rest { failed: 0, until: now });
        let pause = if silence { LONGEST } else { FIRST.saturating_mul(1 << rest.failed.min(7)).min(LONGEST) };
        *rest = Rest { failed: rest.failed.saturating_add(1), until: now + pause };
        rest.until
    }

    /// Takes note of a write that succeeded.
    pub(super) fn done(&mut self, kind: &str, name: &str) {
        if let Some(of_kind) = self.0.get_mut(kind) {
            of_kind.remove(name);
        }
    }

    /// Forgets what was not tried for long.
    pub(super) fn forget(&mut self, now: Instant) {
        for of_kind in self.0.values_mut() {
            of_kind.retain(|_, rest| now < rest.until + FORGOTTEN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_rests_ever_longer_whatever_is_reported_and_no_other_does() {
        let (mut rests, start) = (Rests::default(), Instant::now());
        let mut tries = Vec::new();
        // A report comes every tenth of a second.
        for tenth in 0..2_000_u64 {
            let now = start + Duration::from_millis(100 * tenth);
            if rests.until("Freeze", "stop", now).is_none() {
                tries.push(tenth);
                assert!(rests.failed("Freeze", "stop", false, now) > now);
            }
            assert!(rests.until("Freeze", "other", now).is_none() && rests.until("Rollback", "stop", now).is_none());
        }
        assert_eq!(tries, [0, 5, 15, 35, 75, 155, 315, 635, 1_235, 1_835]);
        rests.done("Freeze", "stop");
        assert!(rests.until("Freeze", "stop", start).is_none());
    }

    #[test]
    fn silence_is_a_long_rest_at_once_and_what_is_gone_is_forgotten() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        assert_eq!(rests.failed("UpdatePolicy", "workers", true, now), now + LONGEST);
        assert_eq!(rests.failed("NodeUpdate", "n1", false, now), now + FIRST);
        rests.forget(now + FIRST + FORGOTTEN);
        assert_eq!(rests.0.values().map(HashMap::len).sum::<usize>(), 1);
    }
}
