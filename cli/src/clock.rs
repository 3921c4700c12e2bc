//! The one place of the command line that reads the clock, unless `--at` gives the time.

use std::sync::OnceLock;

use chrono::{DateTime, Utc};

static GIVEN: OnceLock<DateTime<Utc>> = OnceLock::new();

/// Lets every command of this process live at that time.
pub(crate) fn live_at(time: DateTime<Utc>) {
    // Said once, by main.
    let _ = GIVEN.set(time);
}

/// Now.
pub(crate) fn now() -> DateTime<Utc> {
    GIVEN.get().copied().unwrap_or_else(bascule_repository::clock::system_now)
}
