//! The only place that reads the wall clock. Everything else is given the time, so that tests can set it and decisions
//! can be repeated.

use chrono::{DateTime, Utc};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        #[allow(clippy::disallowed_methods, reason = "this is the one module that may read the clock")]
        Self(Arc::new(Utc::now))
    }

    /// A clock that tells what `read` says; for tests.
    pub fn from_fn(read: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The present time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        (self.0)()
    }
}

/// A moment on this machine, for the age of what is known. Two clocks tell it: one never goes back, and stands still while the machine
/// is suspended; the other one goes on, and may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    /// The present one.
    #[must_use]
    pub fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// How much later another one is: the longer of what the two clocks say, so that nothing seems newer than it is. Nothing where it is
    /// earlier.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        let steady = later.steady.saturating_duration_since(self.steady);
        steady.max(later.wall.duration_since(self.wall).unwrap_or_default())
    }

    /// How long ago it is.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.until(Self::now())
    }

    /// The later one of two, by the clock that never goes back.
    #[must_use]
    pub fn or_later(self, other: Self) -> Self {
        if other.steady > self.steady { other } else { self }
    }
}

#[cfg(test)]
impl Moment {
    /// So much later.
    pub(crate) fn after(self, time: Duration) -> Self {
        Self { steady: self.steady + time, wall: self.wall + time }
    }

    /// So much earlier.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self { steady: self.steady.checked_sub(time).unwrap_or(self.steady), wall: self.wall - time }
    }

    /// When the machine, which is suspended now, goes on after so much time.
    pub(crate) fn after_suspension(self, time: Duration) -> Self {
        Self { wall: self.wall + time, ..self }
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_as_old_as_the_clock_says_that_says_more() {
        let (known, minute) = (Moment::now(), Duration::from_secs(60));
        assert_eq!(known.until(known.after(minute)), minute);
        assert_eq!(known.until(known.after_suspension(minute)), minute, "the machine was suspended");
        let set_back = Moment { wall: known.wall - minute, ..known.after(minute) };
        assert_eq!(known.until(set_back), minute);
        assert_eq!(known.after(minute).until(known), Duration::ZERO);
        assert_eq!((known.or_later(known.before(minute)), known.or_later(set_back)), (known, set_back));
    }
}
