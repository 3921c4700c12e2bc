//! The one place of the command line that reads the clock.

use chrono::{DateTime, Utc};

/// Now.
pub(crate) fn now() -> DateTime<Utc> {
    bascule_repository::clock::system_now()
}
