//! Making a change visible: sign, write everything that nobody looks at yet, and replace `timestamp.json` last.
//!
//! Readers start at `timestamp.json`; every other file has its version or digest in its name. Killed at any point before
//! that last rename, the old state is served whole, and what lies around unnamed is overwritten by the next attempt.
//! When keys are rotated, what is new is signed with the old and the new keys, and the root follows the timestamp.
//!
//! Where a role needs more signatures than the keys at hand can give, nothing is published: the documents wait in
//! `pending/` until `sign` has brought the missing ones.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use chrono::{DateTime, TimeDelta, Utc};
use tough::schema::{RoleKeys, RoleType, Root, Snapshot, Targets, Timestamp};

use super::document::{Document, SPEC_VERSION, timestamp};
use super::error::PublishError;
use super::folder::Folder;
use super::keys::SigningKey;
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
    /// It waits in `pending/` for these signatures; readers see the state before.
    Waiting(Vec<Missing>),
}

/// Signatures that a role still needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The role.
    pub role: String,
    /// Signatures there are.
    pub have: u64,
    /// Signatures there must be.
    pub need: u64,
}

/// Changed documents on their way to being published.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) root: Option<Document<Root>>,
    pub(super) targets: Option<Document<Targets>>,
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
    /// Sign a new snapshot even if no targets changed.
    pub(super) new_snapshot: bool,
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

/// Publishes a change, or lets it wait for signatures.
pub(super) fn publish(
    folder: &Folder,
    current: &Current,
    mut change: Change,
    signing: Signing<'_>,
) -> Result<Outcome, PublishError> {
    let root = change.root.as_ref().unwrap_or(&current.root);
    let (old_keys, new_keys) = (&current.root.signed.signed, &root.signed.signed);
    let both = |role| Ok::<_, PublishError>([keys_of(old_keys, role)?, keys_of(new_keys, role)?]);

    // New keys for targets: what is published must be signed afresh to verify under the new root.
    if change.targets.is_none() && root.signed.signed.verify_role(&current.targets.signed).is_err() {
        let targets = current.targets.signed.signed.clone();
        let before = targets.version.get();
        change.targets = Some(next_targets(targets, before, &both(RoleType::Targets)?, "targets", signing)?);
    }

    let snapshot = match next_snapshot(current, &change, &both(RoleType::Snapshot)?, new_keys, signing)? {
        Some(snapshot) => snapshot,
        None => current.snapshot.clone(),
    };
    let mut stamp = Timestamp::new(
        SPEC_VERSION.to_owned(),
        next_version(current.timestamp.signed.signed.version.get()),
        timestamp(signing.now + signing.lifetimes.timestamp)?,
    );
    stamp.meta.insert("snapshot.json".to_owned(), snapshot.metafile());
    stamp._extra.insert(SIGNED_AT.to_owned(), signing.now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true).into());
    let stamp = Document::sign("timestamp", stamp, &both(RoleType::Timestamp)?, signing.keys)?;

    let missing = missing_signatures(current, &change, &snapshot, &stamp)?;
    if !missing.is_empty() {
        wait(folder, &change)?;
        return Ok(Outcome::Waiting(missing));
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
    folder.clear_pending()?;
    let published_targets = change.targets.as_ref().unwrap_or(&current.targets);
    Ok(Outcome::Published {
        timestamp: stamp.signed.signed.version.get(),
        snapshot: snapshot.signed.signed.version.get(),
        targets: published_targets.signed.signed.version.get(),
        root: change.root.as_ref().unwrap_or(&current.root).signed.signed.version.get(),
    })
}

fn write_root(folder: &Folder, root: &Document<Root>) -> Result<(), PublishError> {
    folder.write_metadata(&format!("{}.root.json", root.signed.signed.version), &root.bytes)
}

/// A new snapshot if one is needed, signed with the keys at hand.
fn next_snapshot(
    current: &Current,
    change: &Change,
    key_sets: &[&RoleKeys],
    root: &Root,
    signing: Signing<'_>,
) -> Result<Option<Document<Snapshot>>, PublishError> {
    let needed = change.targets.is_some()
        || !change.delegated.is_empty()
        || change.new_snapshot
        || root.verify_role(&current.snapshot.signed).is_err();
    if !needed {
        return Ok(None);
    }
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
    Document::sign("snapshot", snapshot, key_sets, signing.keys).map(Some)
}

/// Judges every changed document as a reader will.
fn missing_signatures(
    current: &Current,
    change: &Change,
    snapshot: &Document<Snapshot>,
    stamp: &Document<Timestamp>,
) -> Result<Vec<Missing>, PublishError> {
    let mut missing = Vec::new();
    let mut judge = |role: &str, have: usize, keys: &RoleKeys, good: bool| {
        if !good {
            missing.push(Missing { role: role.to_owned(), have: have as u64, need: keys.threshold.get() });
        }
    };
    let root = change.root.as_ref().unwrap_or(&current.root);
    let keys = &root.signed.signed;
    if change.root.is_some() {
        let old = keys_of(&current.root.signed.signed, RoleType::Root)?;
        let new = keys_of(keys, RoleType::Root)?;
        let good = |by: &Root| by.verify_role(&root.signed).is_ok();
        judge("root (old keys)", root.signatures_of(old), old, good(&current.root.signed.signed));
        judge("root (new keys)", root.signatures_of(new), new, good(keys));
    }
    if let Some(targets) = &change.targets {
        let set = keys_of(keys, RoleType::Targets)?;
        judge("targets", targets.signatures_of(set), set, keys.verify_role(&targets.signed).is_ok());
    }
    let targets = change.targets.as_ref().unwrap_or(&current.targets);
    for (name, document) in &change.delegated {
        let delegations = targets.signed.signed.delegations.clone().unwrap_or_default();
        let Some(role) = delegations.roles.iter().find(|role| &role.name == name) else {
            return Err(PublishError::broken(name, "nobody delegates to it"));
        };
        let set = role.keys();
        judge(name, document.signatures_of(&set), &set, delegations.verify_role(&document.signed, name).is_ok());
    }
    let set = keys_of(keys, RoleType::Snapshot)?;
    judge("snapshot", snapshot.signatures_of(set), set, keys.verify_role(&snapshot.signed).is_ok());
    let set = keys_of(keys, RoleType::Timestamp)?;
    judge("timestamp", stamp.signatures_of(set), set, keys.verify_role(&stamp.signed).is_ok());
    Ok(missing)
}

/// Keeps what signatures cost somebody a walk to the safe for; snapshot and timestamp are made anew each time.
fn wait(folder: &Folder, change: &Change) -> Result<(), PublishError> {
    folder.clear_pending()?;
    if let Some(root) = &change.root {
        folder.write_pending(&format!("{}.root.json", root.signed.signed.version), &root.bytes)?;
    }
    if let Some(targets) = &change.targets {
        folder.write_pending(&format!("{}.targets.json", targets.signed.signed.version), &targets.bytes)?;
    }
    for (name, targets) in &change.delegated {
        folder.write_pending(&format!("{}.{name}.json", targets.signed.signed.version), &targets.bytes)?;
    }
    Ok(())
}
