//! Renewing what would expire, and saying what will expire all the same.

use tough::schema::{RoleKeys, RoleType};

use super::Publisher;
use super::commit::{Change, Outcome, Signing, given, next_targets};
use super::error::PublishError;
use super::pending;
use super::standing::{self, RoleStanding};
use super::state::{Current, expires, keys_of};

/// What a refresh has done for each role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// How it ended.
    pub outcome: Outcome,
    /// Every role.
    pub roles: Vec<Renewal>,
}

/// What a refresh has done for a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// How the role stands now.
    pub standing: RoleStanding,
    /// Whether it was renewed.
    pub renewed: bool,
    /// The waiting change for whose sake it was left as it is.
    pub kept_for: Option<String>,
}

impl Publisher {
    /// How every role stands.
    #[must_use]
    pub fn roles(&self) -> Vec<RoleStanding> {
        standing::of_all(&self.current)
    }

    /// Renews the timestamp, and the snapshot, the targets and delegated roles too where enough keys for them are given.
    /// What waits for signatures keeps waiting: a role that a waiting change has begun to sign is left as it is until half
    /// of its lifetime is over, since a new version of it would void those signatures.
    ///
    /// # Errors
    /// [`PublishError::NotEnoughKeys`] when not even the timestamp can be signed.
    pub fn refresh(&mut self, signing: Signing<'_>) -> Result<Refreshed, PublishError> {
        let before = self.roles();
        let root = &self.current.root.signed.signed;
        let can = |keys: &RoleKeys| given(keys, signing.keys).len() as u64 >= keys.threshold.get();
        let stamp_keys = keys_of(root, RoleType::Timestamp)?;
        if !can(stamp_keys) {
            let (needed, given) = (stamp_keys.threshold.get(), given(stamp_keys, signing.keys).len());
            return Err(PublishError::NotEnoughKeys { role: "timestamp".to_owned(), needed, given });
        }
        let mut change = Change { new_snapshot: can(keys_of(root, RoleType::Snapshot)?), ..Change::default() };
        let waiting = pending::read(&self.folder)?;
        let mut kept = Vec::new();
        if change.new_snapshot {
            let half = signing.now + signing.lifetimes.targets / 2;
            let set = keys_of(root, RoleType::Targets)?;
            let begun = waiting.iter().find(|pending| pending.targets.is_some());
            if can(set) {
                match begun.filter(|_| expires(&self.current.targets.signed.signed) > half) {
                    Some(pending) => kept.push(("targets".to_owned(), pending.id.clone())),
                    None => {
                        let targets = self.current.targets.signed.signed.clone();
                        let version = targets.version.get();
                        change.targets = Some(next_targets(targets, version, &[set], "targets", signing)?);
                    }
                }
            }
            for (name, document) in &self.current.delegated {
                let Some(set) = self.current.delegated_keys(name).filter(can) else { continue };
                let begun = waiting.iter().find(|pending| pending.delegated.contains_key(name));
                match begun.filter(|_| expires(&document.signed.signed) > half) {
                    Some(pending) => kept.push((name.clone(), pending.id.clone())),
                    None => {
                        let own = document.signed.signed.clone();
                        let version = own.version.get();
                        change.delegated.insert(name.clone(), next_targets(own, version, &[&set], name, signing)?);
                    }
                }
            }
        }
        let outcome = super::commit::publish(&self.folder, &self.current, change, signing)?;
        self.current = Current::load(&self.folder)?;
        let renewal = |standing: RoleStanding| Renewal {
            renewed: before.iter().all(|old| old.role != standing.role || old.version != standing.version),
            kept_for: kept.iter().find(|(role, _)| *role == standing.role).map(|(_, id)| id.clone()),
            standing,
        };
        Ok(Refreshed { outcome, roles: self.roles().into_iter().map(renewal).collect() })
    }
}
