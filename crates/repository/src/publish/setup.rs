//! A new repository, and changes of who may sign what: rotation of keys, delegation of a channel.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::path::Path;

use bascule_names::ChannelName;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys, RoleType, Root, Snapshot, Targets, Timestamp,
};

use super::Publisher;
use super::commit::{Change, Outcome, Signing, next_targets, next_version, publish};
use super::document::{Document, SPEC_VERSION, timestamp};
use super::error::PublishError;
use super::folder::Folder;
use super::keys::PublicKey;
use super::state::keys_of;
use crate::repository::SIGNED_AT;

/// Who may sign a role.
#[derive(Debug, Clone)]
pub struct RoleSetup {
    /// Public halves of its keys.
    pub keys: Vec<PublicKey>,
    /// How many of them must sign.
    pub threshold: u64,
}

impl RoleSetup {
    fn checked(&self, role: &str) -> Result<RoleKeys, PublishError> {
        let refuse = |reason: String| PublishError::Role { role: role.to_owned(), reason };
        let mut keyids: Vec<_> = self.keys.iter().map(|key| key.id.clone()).collect();
        keyids.sort();
        keyids.dedup();
        if keyids.is_empty() {
            return Err(refuse("it has no keys".to_owned()));
        }
        let threshold = NonZeroU64::new(self.threshold)
            .filter(|threshold| threshold.get() <= keyids.len() as u64)
            .ok_or_else(|| {
                refuse(format!("a threshold of {} can't be met with {} different keys", self.threshold, keyids.len()))
            })?;
        Ok(RoleKeys { keyids, threshold, _extra: HashMap::new() })
    }
}

/// The four top-level roles.
#[derive(Debug, Clone)]
pub struct Roles {
    /// Signs the root, which names all keys. Offline, several people.
    pub root: RoleSetup,
    /// Signs which files there are.
    pub targets: RoleSetup,
    /// Signs which versions belong together.
    pub snapshot: RoleSetup,
    /// Signs that this is the newest. Online.
    pub timestamp: RoleSetup,
}

impl Roles {
    fn each(&self) -> [(RoleType, &RoleSetup); 4] {
        [
            (RoleType::Root, &self.root),
            (RoleType::Targets, &self.targets),
            (RoleType::Snapshot, &self.snapshot),
            (RoleType::Timestamp, &self.timestamp),
        ]
    }
}

/// Makes a repository without releases. All roles must be signed at once.
///
/// # Errors
/// [`PublishError::NotEnoughKeys`], [`PublishError::Role`], or [`PublishError::Folder`] when there is one already.
pub fn init(path: &Path, roles: &Roles, signing: Signing<'_>) -> Result<Outcome, PublishError> {
    let folder = Folder::open(path)?;
    if folder.read_metadata("timestamp.json")?.is_some() {
        return Err(PublishError::Folder { path: path.to_owned(), reason: "holds a repository already" });
    }
    let mut root = Root {
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: timestamp(signing.now + signing.lifetimes.root)?,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, setup) in roles.each() {
        root.roles.insert(role, setup.checked(&role.to_string())?);
        root.keys.extend(setup.keys.iter().map(|key| (key.id.clone(), key.key.clone())));
    }
    let enough = |role: RoleType, have: usize| {
        let needed = keys_of(&root, role)?.threshold.get();
        if (have as u64) < needed {
            return Err(PublishError::NotEnoughKeys { role: role.to_string(), needed, given: have });
        }
        Ok(())
    };
    let set = |role| keys_of(&root, role);
    let signed_root = Document::sign("root", root.clone(), &[set(RoleType::Root)?], signing.keys)?;
    enough(RoleType::Root, signed_root.signed.signatures.len())?;

    let expires = timestamp(signing.now + signing.lifetimes.targets)?;
    let targets = Targets::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, expires);
    let targets = Document::sign("targets", targets, &[set(RoleType::Targets)?], signing.keys)?;
    enough(RoleType::Targets, targets.signed.signatures.len())?;

    let expires = timestamp(signing.now + signing.lifetimes.snapshot)?;
    let mut snapshot = Snapshot::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, expires);
    snapshot.meta.insert("targets.json".to_owned(), targets.metafile());
    let snapshot = Document::sign("snapshot", snapshot, &[set(RoleType::Snapshot)?], signing.keys)?;
    enough(RoleType::Snapshot, snapshot.signed.signatures.len())?;

    let expires = timestamp(signing.now + signing.lifetimes.timestamp)?;
    let mut stamp = Timestamp::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, expires);
    stamp.meta.insert("snapshot.json".to_owned(), snapshot.metafile());
    stamp._extra.insert(SIGNED_AT.to_owned(), signing.now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true).into());
    let stamp = Document::sign("timestamp", stamp, &[set(RoleType::Timestamp)?], signing.keys)?;
    enough(RoleType::Timestamp, stamp.signed.signatures.len())?;

    folder.write_metadata("1.root.json", &signed_root.bytes)?;
    folder.write_metadata("1.targets.json", &targets.bytes)?;
    folder.write_metadata("1.snapshot.json", &snapshot.bytes)?;
    folder.write_metadata("timestamp.json", &stamp.bytes)?;
    Ok(Outcome::Published { timestamp: 1, snapshot: 1, targets: 1, root: 1 })
}

impl Publisher {
    /// Publishes the next root: the given roles get other keys or thresholds (none: only a later expiry). Needs
    /// signatures by the old and the new root keys, and by the new keys of each role that changes.
    ///
    /// # Errors
    /// [`PublishError`]
    pub fn rotate(
        &mut self,
        changes: &BTreeMap<String, RoleSetup>,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        self.refuse_pending()?;
        let mut root = self.current.root.signed.signed.clone();
        root.version = next_version(root.version.get());
        root.expires = timestamp(signing.now + signing.lifetimes.root)?;
        for (name, setup) in changes {
            let role = name.parse::<RoleType>().ok().filter(|role| root.roles.contains_key(role)).ok_or_else(|| {
                PublishError::Role {
                    role: name.clone(),
                    reason: "only root, targets, snapshot and timestamp have their keys in the root".to_owned(),
                }
            })?;
            root.roles.insert(role, setup.checked(name)?);
            root.keys.extend(setup.keys.iter().map(|key| (key.id.clone(), key.key.clone())));
        }
        // A key that no role uses any more is revoked.
        let used: Vec<_> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
        root.keys.retain(|id, _| used.contains(id));
        let sets = [
            keys_of(&self.current.root.signed.signed, RoleType::Root)?.clone(),
            keys_of(&root, RoleType::Root)?.clone(),
        ];
        let root = Document::sign("root", root, &[&sets[0], &sets[1]], signing.keys)?;
        self.finish(Change { root: Some(root), ..Change::default() }, signing)
    }

    /// Lets other keys sign a channel and its releases (`<channel>.json`, `releases/*/*/*`) but nothing of any other
    /// channel: what a channel file names by digest can't be replaced by anybody.
    ///
    /// Needs the keys of targets and of the new role.
    ///
    /// # Errors
    /// [`PublishError`]
    pub fn delegate(
        &mut self,
        channel: &ChannelName,
        setup: &RoleSetup,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        self.refuse_pending()?;
        let name = delegated_role_name(channel);
        let mut targets = self.current.targets.signed.signed.clone();
        let channel_file = format!("{channel}.json");
        if targets.targets.keys().any(|target| target.raw() == channel_file) {
            let reason = "it has releases already; delegate a channel before its first release".to_owned();
            return Err(PublishError::Channel { what: format!("channel {channel}"), reason });
        }
        let keys = setup.checked(&name)?;
        let pattern = |text: String| PathPattern::new(text).map_err(|error| PublishError::broken(&name, error));
        let paths = PathSet::Paths(vec![pattern(channel_file)?, pattern("releases/*/*/*".to_owned())?]);
        let role = DelegatedRole {
            name: name.clone(),
            keyids: keys.keyids.clone(),
            threshold: keys.threshold,
            paths,
            terminating: false,
            targets: None,
        };
        let delegations = targets.delegations.get_or_insert_with(Delegations::new);
        delegations.keys.extend(setup.keys.iter().map(|key| (key.id.clone(), key.key.clone())));
        delegations.roles.retain(|known| known.name != name);
        delegations.roles.push(role);
        let used: Vec<_> = delegations.roles.iter().flat_map(|role| role.keyids.clone()).collect();
        delegations.keys.retain(|id, _| used.contains(id));

        let before = self.current.delegated.get(&name);
        let own = match before {
            Some(document) => document.signed.signed.clone(),
            None => Targets::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, timestamp(signing.now)?),
        };
        let version = before.map_or(0, |document| document.signed.signed.version.get());
        let own = next_targets(own, version, &[&keys], &name, signing)?;
        let set = keys_of(&self.current.root.signed.signed, RoleType::Targets)?.clone();
        let version = targets.version.get();
        let targets = next_targets(targets, version, &[&set], "targets", signing)?;
        self.finish(
            Change { targets: Some(targets), delegated: BTreeMap::from([(name, own)]), ..Change::default() },
            signing,
        )
    }

    /// Signs the timestamp afresh, and the snapshot and the targets too where the keys for them are given.
    ///
    /// # Errors
    /// [`PublishError::NotEnoughKeys`] when not even the timestamp can be signed.
    pub fn refresh(&mut self, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        self.refuse_pending()?;
        let root = &self.current.root.signed.signed;
        let given = |keys: &RoleKeys| signing.keys.iter().filter(|key| keys.keyids.contains(&key.public().id)).count();
        let can = |keys: &RoleKeys| given(keys) as u64 >= keys.threshold.get();
        let stamp_keys = keys_of(root, RoleType::Timestamp)?;
        if !can(stamp_keys) {
            let (needed, given) = (stamp_keys.threshold.get(), given(stamp_keys));
            return Err(PublishError::NotEnoughKeys { role: "timestamp".to_owned(), needed, given });
        }
        let mut change = Change { new_snapshot: can(keys_of(root, RoleType::Snapshot)?), ..Change::default() };
        if change.new_snapshot {
            let set = keys_of(root, RoleType::Targets)?;
            if can(set) {
                let targets = self.current.targets.signed.signed.clone();
                let version = targets.version.get();
                change.targets = Some(next_targets(targets, version, &[set], "targets", signing)?);
            }
            for (name, document) in &self.current.delegated {
                let Some(set) = self.current.delegated_keys(name) else { continue };
                if can(&set) {
                    let own = document.signed.signed.clone();
                    let version = own.version.get();
                    change.delegated.insert(name.clone(), next_targets(own, version, &[&set], name, signing)?);
                }
            }
        }
        self.finish(change, signing)
    }

    /// Adds the signatures of the given keys to what waits, and publishes it if it has enough.
    ///
    /// # Errors
    /// [`PublishError::Stale`] when the repository has moved on meanwhile.
    pub fn sign_pending(&mut self, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        let path = self.folder.pending_path();
        let pending = self.folder.read_pending()?;
        if pending.is_empty() {
            return Err(PublishError::Folder { path, reason: "nothing waits for signatures here" });
        }
        let fits = |new: u64, old: u64| {
            if new == old.saturating_add(1) { Ok(()) } else { Err(PublishError::Stale { path: path.clone() }) }
        };
        let mut change = Change::default();
        let current = &self.current;
        let old = &current.root.signed.signed;
        for (name, bytes) in &pending {
            if name.ends_with(".root.json") {
                let waiting: Document<Root> = Document::parse(name, bytes.clone())?;
                fits(waiting.signed.signed.version.get(), old.version.get())?;
                let sets = [keys_of(old, RoleType::Root)?, keys_of(&waiting.signed.signed, RoleType::Root)?];
                let (role, signatures) = (waiting.signed.signed.clone(), &waiting.signed.signatures);
                change.root = Some(Document::with_signatures("root", role, signatures, &sets, signing.keys)?);
            }
        }
        let new = change.root.as_ref().map_or(old, |root| &root.signed.signed).clone();
        for (name, bytes) in &pending {
            if name.ends_with(".targets.json") {
                let waiting: Document<Targets> = Document::parse(name, bytes.clone())?;
                fits(waiting.signed.signed.version.get(), current.targets.signed.signed.version.get())?;
                let sets = [keys_of(old, RoleType::Targets)?, keys_of(&new, RoleType::Targets)?];
                let (role, signatures) = (waiting.signed.signed.clone(), &waiting.signed.signatures);
                change.targets = Some(Document::with_signatures("targets", role, signatures, &sets, signing.keys)?);
            }
        }
        let targets = change.targets.as_ref().unwrap_or(&current.targets).signed.signed.clone();
        let roles = targets.delegations.map(|delegations| delegations.roles).unwrap_or_default();
        for (name, bytes) in &pending {
            let Some(role) = roles.iter().find(|role| name.ends_with(&format!(".{}.json", role.name))) else {
                continue;
            };
            let waiting: Document<Targets> = Document::parse(name, bytes.clone())?;
            let before = current.delegated.get(&role.name).map_or(0, |known| known.signed.signed.version.get());
            fits(waiting.signed.signed.version.get(), before)?;
            let (own, signatures) = (waiting.signed.signed.clone(), &waiting.signed.signatures);
            let document = Document::with_signatures(&role.name, own, signatures, &[&role.keys()], signing.keys)?;
            change.delegated.insert(role.name.clone(), document);
        }
        self.finish(change, signing)
    }

    /// Throws away what waits for signatures.
    ///
    /// # Errors
    /// [`PublishError::File`]
    pub fn discard_pending(&mut self) -> Result<(), PublishError> {
        self.folder.clear_pending()
    }

    pub(super) fn finish(&mut self, change: Change, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        let outcome = publish(&self.folder, &self.current, change, signing)?;
        if matches!(outcome, Outcome::Published { .. }) {
            self.current = super::state::Current::load(&self.folder)?;
        }
        Ok(outcome)
    }

    pub(super) fn refuse_pending(&self) -> Result<(), PublishError> {
        if self.folder.read_pending()?.is_empty() {
            return Ok(());
        }
        let reason = "something waits here for signatures; sign or discard it first";
        Err(PublishError::Folder { path: self.folder.pending_path(), reason })
    }
}

/// The name can't collide with a top-level role or another role's file.
pub(super) fn delegated_role_name(channel: &ChannelName) -> String {
    format!("channel-{channel}")
}
