//! An object whose status can't be written is left alone for a while, whatever is reported of it meanwhile: reports come at the pace of
//! the cluster's pod changes, and each would ask the API server once more.

use std::{collections::HashMap, time::Duration};

/// How long an object is left alone of which a write failed once; twice as long after each further one.
const FIRST: Duration = Duration::from_millis(500);
/// The longest time; after a write that nobody answered at once.
const LONGEST: Duration = Duration::from_secs(60);
/// How long after that an object is forgotten of which nothing is to be said any more.
const FORGOTTEN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Wait {
    failed: u32,
    until: Duration,
}

/// The objects whose last write failed, by kind and name.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<&'static str, HashMap<String, Wait>>);

impl Backoff {
    /// Until when an object is left alone; `None`: it may be written.
    #[must_use]
    pub fn until(&self, kind: &str, name: &str, now: Duration) -> Option<Duration> {
        self.0.get(kind)?.get(name).map(|wait| wait.until).filter(|until| now < *until)
    }

    /// Takes note of a write that failed, or that nobody answered. Says until when the object is left alone.
    pub fn failed(&mut self, kind: &'static str, name: &str, silence: bool, now: Duration) -> Duration {
        let of_kind = self.0.entry(kind).or_default();
        let wait = of_kind.entry(name.to_owned()).or_insert(Wait { failed: 0, until: now });
        let pause = if silence { LONGEST } else { FIRST.saturating_mul(1 << wait.failed.min(7)).min(LONGEST) };
        *wait = Wait { failed: wait.failed.saturating_add(1), until: now + pause };
        wait.until
    }

    /// Takes note of a write that succeeded.
    pub fn done(&mut self, kind: &str, name: &str) {
        if let Some(of_kind) = self.0.get_mut(kind) {
            of_kind.remove(name);
        }
    }

    /// Forgets what was not tried for long.
    pub fn forget(&mut self, now: Duration) {
        for of_kind in self.0.values_mut() {
            of_kind.retain(|_, wait| now < wait.until + FORGOTTEN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_left_alone_ever_longer_whatever_is_reported_and_no_other_is() {
        let (mut backoff, start) = (Backoff::default(), Duration::from_secs(1_000));
        let mut tries = Vec::new();
        // A report comes every tenth of a second.
        for tenth in 0..2_000_u64 {
            let now = start + Duration::from_millis(100 * tenth);
            if backoff.until("Freeze", "stop", now).is_none() {
                tries.push(tenth);
                assert!(backoff.failed("Freeze", "stop", false, now) > now);
            }
            assert!(
                backoff.until("Freeze", "other", now).is_none() && backoff.until("Rollback", "stop", now).is_none()
            );
        }
        assert_eq!(tries, [0, 5, 15, 35, 75, 155, 315, 635, 1_235, 1_835]);
        backoff.done("Freeze", "stop");
        assert!(backoff.until("Freeze", "stop", start).is_none());
    }

    #[test]
    fn silence_is_a_long_time_at_once_and_what_is_gone_is_forgotten() {
        let (mut backoff, now) = (Backoff::default(), Duration::from_secs(1_000));
        assert_eq!(backoff.failed("UpdatePolicy", "workers", true, now), now + LONGEST);
        assert_eq!(backoff.failed("NodeUpdate", "n1", false, now), now + FIRST);
        backoff.forget(now + FIRST + FORGOTTEN);
        assert_eq!(backoff.0.values().map(HashMap::len).sum::<usize>(), 1);
    }
}
