//! Making a change visible: sign, write everything that nobody looks at yet, and replace `timestamp.json` last.
//!
//! Readers start at `timestamp.json`; every other file has its version or digest in its name. Killed at any point before
//! that last rename, the old state is served whole, and what lies around unnamed is overwritten by the next attempt.
//! When keys are rotated, what is new is signed with the old and the new keys, and the root follows the timestamp.
//!
//! Everything is signed before anything is written: a token or a signing service that goes away in the middle leaves the
//! repository as it was. Where a role needs more signatures than the keys at hand can give, nothing is published: the
//! documents wait (see `pending`) until `sign` has brought the missing ones.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bascule_image::release::names::TargetPath;
use bascule_names::Digest;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tough::schema::{RoleKeys, RoleType, Root, Snapshot, Targets, Timestamp};

use super::document::{Document, SPEC_VERSION, timestamp};
use super::error::PublishError;
use super::folder::Folder;
use super::keys::{SigningKey, names_in};
use super::state::{Current, keys_of};
use crate::repository::SIGNED_AT;

/// How long newly signed metadata is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// The root: rotated by hand, so long.
    pub root: TimeDelta,
    /// Targets and delegated roles: signed with each release.
    pub targets: TimeDelta,
    /// The snapshot.
    pub snapshot: TimeDelta,
    /// The timestamp: the longest time for which an attacker can hide a new release. Refresh it well before.
    pub timestamp: TimeDelta,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root: TimeDelta::days(365),
            targets: TimeDelta::days(180),
            snapshot: TimeDelta::days(30),
            timestamp: TimeDelta::days(7),
        }
    }
}

/// What every signing step is given.
#[derive(Debug, Clone, Copy)]
pub struct Signing<'a> {
    /// The private keys at hand, of any roles.
    pub keys: &'a [SigningKey],
    /// How long the result is valid.
    pub lifetimes: Lifetimes,
    /// Now.
    pub now: DateTime<Utc>,
}

/// How a change ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Readers see it.
    Published { timestamp: u64, snapshot: u64, targets: u64, root: u64 },
    /// It waits in `pending/` for signatures; readers see the state before.
    Waiting(Waiting),
}

/// What a change waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Names the change for `sign --change`.
    pub id: String,
    /// The signatures that are missing.
    pub missing: Vec<Missing>,
}

/// Signatures that a role still needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The role.
    pub role: String,
    /// Signatures there are.
    pub have: u64,
    /// Signatures there must be.
    pub need: u64,
    /// The keys that may give the missing ones.
    pub keys: Vec<String>,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = self.need.saturating_sub(self.have);
        write!(f, "{}: {more} more of {}", self.role, self.keys.join(", "))
    }
}

/// Missing signatures in one line.
pub(super) fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Changed documents on their way to being published.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) root: Option<Document<Root>>,
    pub(super) targets: Option<Document<Targets>>,
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
    /// Sign a new snapshot even if no targets changed.
    pub(super) new_snapshot: bool,
    /// New files that the documents name: written once it is clear that the change is published or waits.
    pub(super) files: Vec<(TargetPath, Digest, Vec<u8>)>,
}

impl Change {
    fn root<'a>(&'a self, current: &'a Current) -> &'a Document<Root> {
        self.root.as_ref().unwrap_or(&current.root)
    }

    /// Whether a snapshot has to be made: something that it names has changed, or its keys have.
    fn needs_snapshot(&self, current: &Current) -> bool {
        self.targets.is_some()
            || !self.delegated.is_empty()
            || self.new_snapshot
            || self.root(current).signed.signed.verify_role(&current.snapshot.signed).is_err()
    }
}

/// Signs the next version of the top-level targets with whatever keys are at hand.
pub(super) fn next_targets(
    mut targets: Targets,
    before: u64,
    key_sets: &[&RoleKeys],
    name: &str,
    signing: Signing<'_>,
) -> Result<Document<Targets>, PublishError> {
    targets.version = next_version(before);
    targets.expires = timestamp(signing.now + signing.lifetimes.targets)?;
    Document::sign(name, targets, key_sets, signing.keys)
}

pub(super) fn next_version(version: u64) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(version)
}

/// New keys for targets: what is published must be signed afresh to verify under the new root.
pub(super) fn with_resigned(
    current: &Current,
    mut change: Change,
    signing: Signing<'_>,
) -> Result<Change, PublishError> {
    let root = change.root(current);
    if change.targets.is_none() && root.signed.signed.verify_role(&current.targets.signed).is_err() {
        let sets = [
            keys_of(&current.root.signed.signed, RoleType::Targets)?,
            keys_of(&root.signed.signed, RoleType::Targets)?,
        ];
        let targets = current.targets.signed.signed.clone();
        let before = targets.version.get();
        change.targets = Some(next_targets(targets, before, &sets, "targets", signing)?);
    }
    Ok(change)
}

/// Signs snapshot and timestamp over a change that has all its signatures, and makes it visible.
pub(super) fn publish(
    folder: &Folder,
    current: &Current,
    change: Change,
    signing: Signing<'_>,
) -> Result<Outcome, PublishError> {
    let root = change.root(current);
    let (old_keys, new_keys) = (&current.root.signed.signed, &root.signed.signed);
    let both = |role| Ok::<_, PublishError>([keys_of(old_keys, role)?, keys_of(new_keys, role)?]);
    let snapshot = if change.needs_snapshot(current) {
        next_snapshot(current, &change, &both(RoleType::Snapshot)?, signing)?
    } else {
        current.snapshot.clone()
    };
    let mut stamp = Timestamp::new(
        SPEC_VERSION.to_owned(),
        next_version(current.timestamp.signed.signed.version.get()),
        timestamp(signing.now + signing.lifetimes.timestamp)?,
    );
    stamp.meta.insert("snapshot.json".to_owned(), snapshot.metafile());
    stamp._extra.insert(SIGNED_AT.to_owned(), signing.now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true).into());
    let stamp = Document::sign("timestamp", stamp, &both(RoleType::Timestamp)?, signing.keys)?;
    // Counting keys foretold this; a signature that came back wrong from a token or a service is found here.
    let good = [
        ("snapshot", new_keys.verify_role(&snapshot.signed).is_ok()),
        ("timestamp", new_keys.verify_role(&stamp.signed).is_ok()),
    ];
    if let Some((role, _)) = good.iter().find(|(_, good)| !good) {
        return Err(PublishError::broken(*role, "its new signature does not verify"));
    }

    if let Some(targets) = &change.targets {
        folder.write_metadata(&format!("{}.targets.json", targets.signed.signed.version), &targets.bytes)?;
    }
    for (name, targets) in &change.delegated {
        folder.write_metadata(&format!("{}.{name}.json", targets.signed.signed.version), &targets.bytes)?;
    }
    folder.write_metadata(&format!("{}.snapshot.json", snapshot.signed.signed.version), &snapshot.bytes)?;
    match &change.root {
        // Signed for both roots: whichever of the two a reader has fetched, the timestamp it finds is good.
        Some(root)
            if old_keys.verify_role(&stamp.signed).is_ok()
                && old_keys.verify_role(&snapshot.signed).is_ok()
                && change.targets.as_ref().is_none_or(|targets| old_keys.verify_role(&targets.signed).is_ok()) =>
        {
            folder.write_metadata("timestamp.json", &stamp.bytes)?;
            write_root(folder, root)?;
        }
        // An old key is lost or stolen and must not sign any more. Readers between the two lines try again.
        Some(root) => {
            write_root(folder, root)?;
            folder.write_metadata("timestamp.json", &stamp.bytes)?;
        }
        None => folder.write_metadata("timestamp.json", &stamp.bytes)?,
    }
    let published_targets = change.targets.as_ref().unwrap_or(&current.targets);
    Ok(Outcome::Published {
        timestamp: stamp.signed.signed.version.get(),
        snapshot: snapshot.signed.signed.version.get(),
        targets: published_targets.signed.signed.version.get(),
        root: root.signed.signed.version.get(),
    })
}

fn write_root(folder: &Folder, root: &Document<Root>) -> Result<(), PublishError> {
    folder.write_metadata(&format!("{}.root.json", root.signed.signed.version), &root.bytes)
}

/// The next snapshot, signed with the keys at hand.
fn next_snapshot(
    current: &Current,
    change: &Change,
    key_sets: &[&RoleKeys],
    signing: Signing<'_>,
) -> Result<Document<Snapshot>, PublishError> {
    let mut snapshot = Snapshot::new(
        SPEC_VERSION.to_owned(),
        next_version(current.snapshot.signed.signed.version.get()),
        timestamp(signing.now + signing.lifetimes.snapshot)?,
    );
    // TUF 1.0, 5.5.5: a role that was listed once must stay listed.
    snapshot.meta = current.snapshot.signed.signed.meta.clone();
    if let Some(targets) = &change.targets {
        snapshot.meta.insert("targets.json".to_owned(), targets.metafile());
    }
    for (name, targets) in &change.delegated {
        snapshot.meta.insert(format!("{name}.json"), targets.metafile());
    }
    Document::sign("snapshot", snapshot, key_sets, signing.keys)
}

/// Judges every changed document as a reader will, and counts who could sign snapshot and timestamp, which are not signed
/// before all the rest is.
pub(super) fn missing(current: &Current, change: &Change, signing: Signing<'_>) -> Result<Vec<Missing>, PublishError> {
    let mut missing = Vec::new();
    let root = change.root(current);
    let new = &root.signed.signed;
    let old = &current.root.signed.signed;
    let mut judge =
        |role: &str, signed_by: Vec<&[u8]>, keys: &RoleKeys, names: &BTreeMap<String, String>, good: bool| {
            if !good {
                let open = keys.keyids.iter().filter(|id| !signed_by.contains(&&id[..]));
                let mut open: Vec<String> = open.map(|id| super::keys::shown(&id[..], names)).collect();
                open.sort();
                missing.push(Missing {
                    role: role.to_owned(),
                    have: signed_by.len() as u64,
                    need: keys.threshold.get(),
                    keys: open,
                });
            }
        };
    let names: BTreeMap<_, _> = names_in(&old._extra).into_iter().chain(names_in(&new._extra)).collect();
    if change.root.is_some() {
        for (role, by) in [("root (old keys)", old), ("root (new keys)", new)] {
            let set = keys_of(by, RoleType::Root)?;
            judge(role, root.signers(set), set, &names, by.verify_role(&root.signed).is_ok());
        }
    }
    if let Some(targets) = &change.targets {
        let set = keys_of(new, RoleType::Targets)?;
        judge("targets", targets.signers(set), set, &names, new.verify_role(&targets.signed).is_ok());
    }
    let targets = change.targets.as_ref().unwrap_or(&current.targets);
    let own_names = names_in(&targets.signed.signed._extra);
    for (name, document) in &change.delegated {
        let delegations = targets.signed.signed.delegations.clone().unwrap_or_default();
        let Some(role) = delegations.roles.iter().find(|role| &role.name == name) else {
            return Err(PublishError::broken(name, "nobody delegates to it"));
        };
        let set = role.keys();
        let good = delegations.verify_role(&document.signed, name).is_ok();
        judge(name, document.signers(&set), &set, &own_names, good);
    }
    for role in [RoleType::Snapshot, RoleType::Timestamp] {
        if role == RoleType::Snapshot && !change.needs_snapshot(current) {
            continue;
        }
        let set = keys_of(new, role)?;
        let given = given(set, signing.keys);
        let good = given.len() as u64 >= set.threshold.get();
        judge(&role.to_string(), given, set, &names, good);
    }
    Ok(missing)
}

/// The ids of the keys at hand that belong to a set.
pub(super) fn given<'a>(set: &RoleKeys, keys: &'a [SigningKey]) -> Vec<&'a [u8]> {
    let mut ids: Vec<&[u8]> =
        keys.iter().map(|key| &key.public().id).filter(|id| set.keyids.contains(id)).map(|id| &id[..]).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
