//! The one place of this crate that reads the wall clock.

use chrono::{DateTime, SecondsFormat, Utc};

/// Now.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Now as Kubernetes writes a `Time`.
pub(crate) fn seconds() -> String {
    now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Now as Kubernetes writes a `MicroTime`.
pub(crate) fn microseconds() -> String {
    now().to_rfc3339_opts(SecondsFormat::Micros, true)
}
