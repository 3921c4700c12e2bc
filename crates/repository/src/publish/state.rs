//! The repository as it is published now, verified before anything is signed on top of it.
//!
//! Delegated roles belong to other teams. One that is missing, broken or not to be read by this tool is told of and passed over, as nodes do
//! (`tuf::search`): the timestamp of all channels must not expire over one of them. Nothing is signed on top of such a role.

use std::collections::BTreeMap;

use bascule_image::release::channel::{self, Channel};
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Digest};
use chrono::{DateTime, Utc};
use serde::Serialize;
use tough::TargetName;
use tough::schema::{Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp};

use super::document::Document;
use super::error::PublishError;
use super::folder::Folder;
use super::release::{channel_path, target_name};
use crate::error::in_one_line;
use crate::limits::MAX_ROOT_UPDATES;
use crate::tuf;

/// What keeps a delegated role, or its channel, from being used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleProblem {
    /// The role.
    pub role: String,
    /// Why.
    pub reason: String,
    /// Whether nodes refuse it too. Not where only this tool can't write again what another one wrote.
    pub nodes_refuse: bool,
}

impl std::fmt::Display for RoleProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { role, reason, nodes_refuse } = self;
        if *nodes_refuse {
            write!(f, "{role} can't be used: {reason}; nodes refuse that channel and no other")
        } else {
            write!(f, "{role} is as nodes want it, but this tool can't sign on top of it: {reason}")
        }
    }
}

/// All roles as published.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) root: Document<Root>,
    pub(super) timestamp: Document<Timestamp>,
    pub(super) snapshot: Document<Snapshot>,
    pub(super) targets: Document<Targets>,
    /// Delegated roles by name. Their `targets.signed.delegations` entries say who may sign them.
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
    /// Delegated roles that are not in `delegated`, and why.
    pub(super) problems: Vec<RoleProblem>,
    /// The top-level role as readers see it: it says which role speaks for which path.
    pub(super) seen: tuf::Targets,
    /// Delegated roles by name as readers see them; those that nodes refuse are not there.
    pub(super) readable: BTreeMap<String, tuf::Targets>,
}

impl Current {
    /// Reads and verifies. Expiry is not judged: renewing is what helps.
    ///
    /// # Errors
    /// [`PublishError::Folder`] when there is no repository, [`PublishError::Broken`] for anything of the top-level roles that does
    /// not verify.
    pub(super) fn load(folder: &Folder) -> Result<Self, PublishError> {
        let Some(first) = folder.read_metadata("1.root.json")? else {
            let reason = "holds no repository; make one with `bascule release init`";
            return Err(PublishError::Folder { path: folder.path().to_owned(), reason });
        };
        Self::load_from(folder, first, &BTreeMap::new())
    }

    /// The same, trusting the given root to begin with. `unfetched`: delegated roles that are not in the folder, and why.
    pub(super) fn load_from(
        folder: &Folder,
        trust_root: Vec<u8>,
        unfetched: &BTreeMap<String, String>,
    ) -> Result<Self, PublishError> {
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

        let described = snapshot.signed.signed.meta.get("targets.json");
        let name = format!("{}.targets.json", described.map(|meta| meta.version.get()).unwrap_or_default());
        let targets: Document<Targets> = Document::parse(&name, read(&name)?)?;
        refuse_unless(described == Some(&targets.metafile()), &name)?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&targets.signed).is_ok()), "targets.json")?;
        let broken = |error: crate::Error| PublishError::broken("metadata", in_one_line(&error));
        let seen = tuf::parse::<tuf::Targets>("targets", &targets.bytes).map_err(broken)?.role;
        let pins = tuf::parse::<tuf::Snapshot>("snapshot", &snapshot.bytes).map_err(broken)?.role;
        let (mut delegated, mut readable, mut problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let delegations = targets.signed.signed.delegations.clone().unwrap_or_default();
        for delegation in seen.delegations() {
            let name = delegation.name.to_string();
            let problem = |reason: String, nodes_refuse| RoleProblem { role: name.clone(), reason, nodes_refuse };
            let mut load = || {
                if let Some(reason) = unfetched.get(&name) {
                    return Err(problem(reason.clone(), true));
                }
                let pin = pins.meta.get(&format!("{name}.json"));
                let pin = pin.ok_or_else(|| problem("the snapshot does not name it".to_owned(), true))?;
                let file = format!("{}.{}.json", pin.version, tuf::quote(&name));
                let bytes = folder.read_metadata(&file).map_err(|error| problem(in_one_line(&error), true))?;
                let bytes = bytes.ok_or_else(|| problem(format!("the file {file} is missing"), true))?;
                let own = tuf::accept_targets(&name, pin, &bytes, seen.signers(delegation), DateTime::<Utc>::MIN_UTC)
                    .map_err(|error| problem(in_one_line(&error), true))?;
                readable.insert(name.clone(), own);
                // From here on nodes take it. What is read in the other schema must still be what was signed, or signing on top of
                // it would lose what that schema does not know.
                let document: Document<Targets> =
                    Document::parse(&file, bytes).map_err(|error| problem(in_one_line(&error), false))?;
                delegations.verify_role(&document.signed, &name).map_err(|_| {
                    problem("it holds members that would be lost, or keys of other kinds".to_owned(), false)
                })?;
                Ok(document)
            };
            match load() {
                Ok(document) => drop(delegated.insert(name.clone(), document)),
                Err(problem) => problems.push(problem),
            }
        }
        Ok(Self { root, timestamp, snapshot, targets, delegated, problems, seen, readable })
    }

    /// A delegated role to sign on top of, or to read from.
    ///
    /// # Errors
    /// [`PublishError::Broken`] with what is wrong with it.
    pub(super) fn usable(&self, role: &str) -> Result<&Document<Targets>, PublishError> {
        self.delegated.get(role).ok_or_else(|| {
            let problem = self.problems.iter().find(|problem| problem.role == role);
            let reason = problem.map_or("nobody delegates to it", |problem| &problem.reason);
            PublishError::broken(role, format!("{reason}; `bascule release delegate` makes it anew, without releases"))
        })
    }

    /// The delegated role that speaks for a channel, as readers look for it; `None`: the top-level one does.
    pub(super) fn role_of(&self, channel: &ChannelName) -> Option<&str> {
        let path = format!("{channel}.json");
        if self.seen.targets.get(&path).is_some() {
            return None;
        }
        let role = self.seen.delegations().iter().find(|delegation| delegation.covers(&path))?;
        Some(&role.name)
    }

    /// The version under which the snapshot names a delegated role, 0 where it does not.
    pub(super) fn version_of(&self, role: &str) -> u64 {
        self.snapshot.signed.signed.meta.get(&format!("{role}.json")).map_or(0, |meta| meta.version.get())
    }

    /// The channels, sorted: those that a role names which speaks for them.
    pub(super) fn channel_names(&self) -> Vec<ChannelName> {
        let named = |document: &Document<Targets>, role: Option<&str>| -> Vec<ChannelName> {
            let channel = |name: &TargetName| ChannelName::parse(name.raw().strip_suffix(".json")?).ok();
            let channels = document.signed.signed.targets.keys().filter_map(channel);
            channels.filter(|channel| self.role_of(channel) == role).collect()
        };
        let mut channels = named(&self.targets, None);
        channels.extend(self.delegated.iter().flat_map(|(role, document)| named(document, Some(role.as_str()))));
        channels.sort();
        channels.dedup();
        channels
    }

    /// Digest and length of a file of a channel. Roles of other channels are not asked, whatever they name.
    ///
    /// # Errors
    /// [`PublishError::Broken`] when the channel's own role can't be used.
    pub(super) fn named(
        &self,
        channel: &ChannelName,
        path: &TargetPath,
    ) -> Result<Option<(Digest, u64)>, PublishError> {
        let name = target_name(path)?;
        let own = self.role_of(channel).map(|role| self.usable(role)).transpose()?;
        let mut documents = [&self.targets].into_iter().chain(own);
        let Some(target) = documents.find_map(|document| document.signed.signed.targets.get(&name)) else {
            return Ok(None);
        };
        Ok(Some((digest_of(path.as_str(), target)?, target.length)))
    }

    /// A channel as it is published.
    pub(super) fn channel(&self, folder: &Folder, name: &ChannelName) -> Result<Channel, PublishError> {
        let path = channel_path(name)?;
        let Some((digest, _)) = self.named(name, &path)? else {
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
