//! The one place of this crate that reads the system clock. Everything else is given the time.

use chrono::{DateTime, Utc};

/// The system's clock.
#[allow(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn system_now() -> DateTime<Utc> {
    Utc::now()
}
