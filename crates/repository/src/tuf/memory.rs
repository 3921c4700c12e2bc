//! What is remembered between updates: the trusted files of 5.3.8, 5.4.5, 5.5.7 and 5.6.6, as they were received.
//!
//! It adds no trust of its own. Each update verifies it again from the caller's trust root: the chain of roots link by link,
//! the rest by the newest root's keys. At worst it is lost.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

/// The remembered files, and what is needed to judge them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The latest time at which metadata was verified as not expired.
    pub verified_at: Option<DateTime<Utc>>,
    /// `N.root.json` by version: the trust roots of the OS images that ran here, and all that followed up to the newest. One line
    /// of descent (`lineage`), with a gap where an image's trust root was more than one version ahead.
    pub roots: BTreeMap<u64, String>,
    /// The newest verified `timestamp.json`.
    pub timestamp: Option<String>,
    /// The newest verified snapshot.
    pub snapshot: Option<String>,
    /// The newest verified top-level targets.
    pub targets: Option<String>,
    /// Which timestamp and snapshot keys were the root's when these two were accepted (`keys::fingerprint`). 5.3.11 compares
    /// with it rather than with the root before: so it also holds when the node lost power between the new root and the
    /// deletion, when the new root was expired, and when the OS image brought it. `None`: an older format, which did not say.
    pub accepted_by: Option<String>,
}

impl Memory {
    /// 5.3.11: forgets the timestamp and the snapshot. Whether there was anything to forget.
    pub(super) fn forget(&mut self) -> bool {
        let before = self.timestamp.take().is_some();
        self.snapshot.take().is_some() || before
    }
}
