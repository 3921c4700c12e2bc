//! How each role stands: until when its signatures hold, and who can give new ones.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tough::schema::{Role, RoleKeys, RoleType};

use super::document::Document;
use super::keys::{names_in, shown};
use super::state::{Current, expires};
use crate::tuf::TOP_LEVEL;

/// A role as it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleStanding {
    /// `root`, `timestamp`, `snapshot`, `targets`, or `channel-<name>`.
    pub role: String,
    /// Version of its metadata.
    pub version: u64,
    /// When it expires.
    pub expires: DateTime<Utc>,
    /// How many of its keys must sign.
    pub threshold: u64,
    /// Its keys, by name where they have one and by the beginning of their id.
    pub keys: Vec<String>,
    /// The keys that signed what is published.
    pub signed_by: Vec<String>,
}

impl RoleStanding {
    /// Whether readers refuse it at that time (TUF 1.0, 5.3.10: the expiry must be later than the time of the update).
    #[must_use]
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expires <= now
    }

    /// The channel that a delegated role signs; when such a role expires, nodes refuse this channel and no other.
    #[must_use]
    pub fn channel(&self) -> Option<&str> {
        let own = !TOP_LEVEL.contains(&self.role.as_str());
        own.then(|| self.role.strip_prefix("channel-").unwrap_or(&self.role))
    }

    /// Who must sign it: `2 of root-1 (0a1b2c3d), root-2 (4e5f6a7b)`.
    #[must_use]
    pub fn signers(&self) -> String {
        format!("{} of {}", self.threshold, self.keys.join(", "))
    }

    fn of<T: Role>(name: &str, document: &Document<T>, keys: &RoleKeys, names: &BTreeMap<String, String>) -> Self {
        let mut listed: Vec<String> = keys.keyids.iter().map(|id| shown(&id[..], names)).collect();
        let mut signed_by: Vec<String> = document.signers(keys).into_iter().map(|id| shown(id, names)).collect();
        listed.sort();
        signed_by.sort();
        Self {
            role: name.to_owned(),
            version: document.signed.signed.version().get(),
            expires: expires(&document.signed.signed),
            threshold: keys.threshold.get(),
            keys: listed,
            signed_by,
        }
    }
}

/// Every role: the four top-level ones in the order in which readers walk them, then the channels with keys of their own.
pub(super) fn of_all(current: &Current) -> Vec<RoleStanding> {
    let root = &current.root.signed.signed;
    let names = names_in(&root._extra);
    let mut all = Vec::new();
    if let Some(keys) = root.roles.get(&RoleType::Root) {
        all.push(RoleStanding::of("root", &current.root, keys, &names));
    }
    if let Some(keys) = root.roles.get(&RoleType::Timestamp) {
        all.push(RoleStanding::of("timestamp", &current.timestamp, keys, &names));
    }
    if let Some(keys) = root.roles.get(&RoleType::Snapshot) {
        all.push(RoleStanding::of("snapshot", &current.snapshot, keys, &names));
    }
    if let Some(keys) = root.roles.get(&RoleType::Targets) {
        all.push(RoleStanding::of("targets", &current.targets, keys, &names));
    }
    let names = names_in(&current.targets.signed.signed._extra);
    for (name, document) in &current.delegated {
        if let Some(keys) = current.delegated_keys(name) {
            all.push(RoleStanding::of(name, document, &keys, &names));
        }
    }
    all
}
