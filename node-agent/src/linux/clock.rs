//! The one place that reads the clocks.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::host::Clock;

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxClock;

impl Clock for LinuxClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock that decisions are given")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn since_boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    }
}
