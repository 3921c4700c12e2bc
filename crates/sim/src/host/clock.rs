//! The clock of a machine process: the wall clock of this computer, and the time since the simulated machine started.

use std::time::Duration;

use bascule_agent::host::Clock;
use chrono::{DateTime, Utc};
use rustix::time::{ClockId, clock_gettime};

/// Time since this computer booted, suspended time included: the scale on which a simulated start is a point.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// Real time, counted from the simulated machine's start.
#[derive(Clone, Copy, Debug)]
pub struct RealClock {
    started: Duration,
}

impl RealClock {
    /// Of a machine that started at this [`boot_time`].
    pub fn since(started: Duration) -> Self {
        Self { started }
    }
}

impl Clock for RealClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock module that the others are given")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn since_boot(&self) -> Duration {
        boot_time().saturating_sub(self.started)
    }
}
