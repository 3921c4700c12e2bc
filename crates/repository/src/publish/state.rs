//! The repository as it is published now, verified before anything is signed on top of it.

use std::collections::BTreeMap;

use bascule_image::release::channel::{self, Channel};
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Digest};
use chrono::{DateTime, Utc};
use tough::TargetName;
use tough::schema::{Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp};

use super::document::Document;
use super::error::PublishError;
use super::folder::Folder;
use super::release::{channel_path, target_name};
use crate::error::in_one_line;
use crate::limits::MAX_ROOT_UPDATES;

/// All roles as published.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) root: Document<Root>,
    pub(super) timestamp: Document<Timestamp>,
    pub(super) snapshot: Document<Snapshot>,
    pub(super) targets: Document<Targets>,
    /// Delegated roles by name. Their `targets.signed.delegations` entries say who may sign them.
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
    /// Delegated roles that can't be used, and why. A publisher refuses them, whoever only looks is told.
    pub(super) problems: Vec<(String, String)>,
}

impl Current {
    /// Reads and verifies. Expiry is not judged: renewing is what helps.
    ///
    /// # Errors
    /// [`PublishError::Folder`] when there is no repository, [`PublishError::Broken`] for anything that does not verify.
    pub(super) fn load(folder: &Folder) -> Result<Self, PublishError> {
        let Some(first) = folder.read_metadata("1.root.json")? else {
            let reason = "holds no repository; make one with `bascule release init`";
            return Err(PublishError::Folder { path: folder.path().to_owned(), reason });
        };
        let current = Self::load_from(folder, first)?;
        match current.problems.first() {
            None => Ok(current),
            Some((role, reason)) => Err(PublishError::broken(role, reason)),
        }
    }

    /// The same, trusting the given root to begin with, and going on without delegated roles that can't be used.
    pub(super) fn load_from(folder: &Folder, trust_root: Vec<u8>) -> Result<Self, PublishError> {
        let (root, before) = load_root(folder, trust_root)?;
        // A publisher that was killed while it replaced keys may have left files that only the root before verifies.
        let roots: Vec<&Signed<Root>> = [Some(&root.signed), before.as_ref()].into_iter().flatten().collect();
        let signed_by = |check: &dyn Fn(&Signed<Root>) -> bool| roots.iter().any(|root| check(root));
        let read =
            |name: &str| folder.read_metadata(name)?.ok_or_else(|| PublishError::broken(name, "the file is missing"));
        let refuse_unless = |good: bool, name: &str| {
            if good { Ok(()) } else { Err(PublishError::broken(name, "it is not signed by the keys of its role")) }
        };

        let timestamp: Document<Timestamp> = Document::parse("timestamp.json", read("timestamp.json")?)?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&timestamp.signed).is_ok()), "timestamp.json")?;
        let described = timestamp.signed.signed.meta.get("snapshot.json");
        let version = described.map(|meta| meta.version.get()).unwrap_or_default();
        let name = format!("{version}.snapshot.json");
        let snapshot: Document<Snapshot> = Document::parse(&name, read(&name)?)?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&snapshot.signed).is_ok()), &name)?;
        refuse_unless(described == Some(&snapshot.metafile()), &name)?;

        let load_targets = |role: &str| -> Result<Document<Targets>, PublishError> {
            let described = snapshot.signed.signed.meta.get(&format!("{role}.json"));
            let version = described.map(|meta| meta.version.get()).unwrap_or_default();
            let name = format!("{version}.{role}.json");
            let document: Document<Targets> = Document::parse(&name, read(&name)?)?;
            refuse_unless(described == Some(&document.metafile()), &name)?;
            Ok(document)
        };
        let targets = load_targets("targets")?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&targets.signed).is_ok()), "targets.json")?;
        let (mut delegated, mut problems) = (BTreeMap::new(), Vec::new());
        if let Some(delegations) = &targets.signed.signed.delegations {
            for role in &delegations.roles {
                let load = || {
                    let document = load_targets(&role.name)?;
                    refuse_unless(delegations.verify_role(&document.signed, &role.name).is_ok(), &role.name)?;
                    Ok::<_, PublishError>(document)
                };
                match load() {
                    Ok(document) => drop(delegated.insert(role.name.clone(), document)),
                    Err(PublishError::Broken { reason, .. }) => problems.push((role.name.clone(), reason)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self { root, timestamp, snapshot, targets, delegated, problems })
    }

    /// The channels, sorted.
    pub(super) fn channel_names(&self) -> Vec<ChannelName> {
        let documents = [&self.targets].into_iter().chain(self.delegated.values());
        let names = documents.flat_map(|document| document.signed.signed.targets.keys());
        let channel = |name: &TargetName| ChannelName::parse(name.raw().strip_suffix(".json")?).ok();
        let mut channels: Vec<ChannelName> = names.filter_map(channel).collect();
        channels.sort();
        channels.dedup();
        channels
    }

    /// Digest and length of a file that a role names.
    pub(super) fn named(&self, path: &TargetPath) -> Result<Option<(Digest, u64)>, PublishError> {
        let name = target_name(path)?;
        let found = [&self.targets].into_iter().chain(self.delegated.values());
        let Some(target) = found.filter_map(|document| document.signed.signed.targets.get(&name)).next() else {
            return Ok(None);
        };
        Ok(Some((digest_of(path.as_str(), target)?, target.length)))
    }

    /// A channel as it is published.
    pub(super) fn channel(&self, folder: &Folder, name: &ChannelName) -> Result<Channel, PublishError> {
        let path = channel_path(name)?;
        let Some((digest, _)) = self.named(&path)? else {
            let known = self.channel_names().iter().map(ToString::to_string).collect();
            return Err(PublishError::NoChannel { name: name.to_string(), known });
        };
        let bytes = folder.read_target(&path, &digest, channel::MAX_LENGTH as u64)?;
        Channel::parse(&bytes).map_err(|source| PublishError::Format { what: "channel file", source })
    }

    /// The keys that may sign a delegated role.
    pub(super) fn delegated_keys(&self, name: &str) -> Option<RoleKeys> {
        let delegations = self.targets.signed.signed.delegations.as_ref()?;
        delegations.roles.iter().find(|role| role.name == name).map(|role| role.keys())
    }
}

/// The digest that a role names.
pub(super) fn digest_of(what: &str, target: &Target) -> Result<Digest, PublishError> {
    let digest = <[u8; 32]>::try_from(&target.hashes.sha256[..])
        .map_err(|_| PublishError::broken(what, "its digest is no SHA-256"))?;
    Ok(Digest::from_sha256(&digest))
}

/// The keys of a top-level role in a root.
pub(super) fn keys_of(root: &Root, role: RoleType) -> Result<&RoleKeys, PublishError> {
    root.roles.get(&role).ok_or_else(|| PublishError::broken("root", format!("it names no keys for {role}")))
}

/// When a role expires.
pub(super) fn expires<T: Role>(role: &T) -> DateTime<Utc> {
    DateTime::from_timestamp(role.expires().as_second(), 0).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// The newest root that is linked to the first, and the one before it.
fn load_root(folder: &Folder, trust_root: Vec<u8>) -> Result<(Document<Root>, Option<Signed<Root>>), PublishError> {
    const FIRST: &str = "the root to begin with";
    let mut root: Document<Root> = Document::parse(FIRST, trust_root)?;
    let check = |by: &Signed<Root>, of: &Signed<Root>, name: &str| {
        by.signed.verify_role(of).map_err(|error| PublishError::broken(name, in_one_line(&error)))
    };
    check(&root.signed, &root.signed, FIRST)?;
    let mut before = None;
    let first = root.signed.signed.version.get();
    for version in first.saturating_add(1)..=first.saturating_add(MAX_ROOT_UPDATES) {
        let name = format!("{version}.root.json");
        let Some(bytes) = folder.read_metadata(&name)? else { break };
        let next: Document<Root> = Document::parse(&name, bytes)?;
        check(&root.signed, &next.signed, &name)?;
        check(&next.signed, &next.signed, &name)?;
        if next.signed.signed.version.get() != version {
            return Err(PublishError::broken(name, "its version is not that of its name"));
        }
        before = Some(root.signed);
        root = next;
    }
    Ok((root, before))
}
