//! Which time decides whether metadata is expired: pure.
//!
//! TUF needs a clock that does not lie, and a node's clock may: a dead battery, a bad NTP server, an attacker on the way to
//! one. tough's own answer is to store the highest time it ever read and to refuse everything while the clock is behind
//! it; one jump into the future then locks a node out for as long as the jump was. Here instead:
//!
//! - The **floor** is the latest time at which metadata was verified as *not expired*, kept in the datastore, and at least
//!   the caller's `not_before` (for an agent: when its OS image was built). A wrong clock in the future makes metadata look
//!   expired, which is an error, and is therefore never remembered. The floor can't pass the expiry of signed metadata.
//! - A clock that is behind the floor by up to [`TOLERANCE`] counts as if it showed the floor: small corrections by NTP.
//! - A clock further behind is an error, not a licence: an attacker who holds a node's clock in the past can't have old
//!   metadata accepted for ever.

use chrono::{DateTime, TimeDelta, Utc};

/// How far a clock may be behind the floor. Generous for NTP steps and leap seconds, far below any metadata lifetime.
pub const TOLERANCE: TimeDelta = TimeDelta::minutes(10);

/// What the caller knows about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What the clock says.
    pub clock: DateTime<Utc>,
    /// A time that is certainly in the past, such as the build time of the running OS image.
    pub not_before: Option<DateTime<Utc>>,
}

impl Now {
    /// Only a clock, no knowledge of its own.
    pub fn at(clock: DateTime<Utc>) -> Self {
        Self { clock, not_before: None }
    }
}

/// The clock is too far behind what is known to be past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock shows {clock}, but {floor} has passed already; set the clock right (time synchronisation), then this goes on"
)]
pub struct ClockBehind {
    /// What the clock shows.
    pub clock: DateTime<Utc>,
    /// What is known to have passed.
    pub floor: DateTime<Utc>,
}

/// The time that expiry is judged by.
///
/// # Errors
/// [`ClockBehind`] when the clock is behind the floor by more than [`TOLERANCE`].
pub fn effective(now: Now, remembered: Option<DateTime<Utc>>) -> Result<DateTime<Utc>, ClockBehind> {
    let Some(floor) = now.not_before.max(remembered) else { return Ok(now.clock) };
    if now.clock < floor - TOLERANCE {
        return Err(ClockBehind { clock: now.clock, floor });
    }
    Ok(now.clock.max(floor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_760_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn small_steps_back_count_as_the_floor_and_large_ones_are_refused() {
        assert_eq!(effective(Now::at(at(0)), None), Ok(at(0)));
        assert_eq!(effective(Now::at(at(5)), Some(at(0))), Ok(at(5)));
        assert_eq!(effective(Now::at(at(-300)), Some(at(0))), Ok(at(0)));
        let behind = effective(Now::at(at(-601)), Some(at(0)));
        assert_eq!(behind, Err(ClockBehind { clock: at(-601), floor: at(0) }));
    }

    #[test]
    fn the_image_build_time_holds_a_node_that_never_verified_anything() {
        let now = Now { clock: DateTime::UNIX_EPOCH, not_before: Some(at(0)) };
        assert!(effective(now, None).is_err());
        assert!(effective(Now { clock: at(1), ..now }, Some(at(9))).is_ok_and(|time| time == at(9)));
    }
}
