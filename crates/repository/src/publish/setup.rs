//! A new repository, and changes of who may sign what: rotation of keys, delegation of a channel.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::path::Path;

use bascule_names::ChannelName;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys, RoleType, Root, Snapshot, Targets, Timestamp,
};

use super::Publisher;
use super::commit::{Change, Outcome, Signing, next_targets, next_version};
use super::document::{Document, SPEC_VERSION, timestamp};
use super::error::PublishError;
use super::folder::Folder;
use super::keys::{PublicKey, names_in, note_names};
use super::pending::{KeySet, NamedKey, Operation};
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
    fn of<'a>(
        keys: &RoleKeys,
        key: impl Fn(&Decoded<Hex>) -> Option<&'a Key>,
        names: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let named = |id: &Decoded<Hex>| {
            let named = NamedKey { name: names.get(&hex::encode(&id[..])).cloned(), key: key(id)?.clone() };
            PublicKey::named(&named).ok()
        };
        Some(Self { keys: keys.keyids.iter().map(named).collect::<Option<_>>()?, threshold: keys.threshold.get() })
    }

    fn of_set(set: &KeySet) -> Result<Self, PublishError> {
        let keys = set.keys.iter().map(PublicKey::named).collect::<Result<_, _>>()?;
        Ok(Self { keys, threshold: set.threshold })
    }

    fn to_set(&self) -> KeySet {
        let mut keys: Vec<&PublicKey> = self.keys.iter().collect();
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        keys.dedup_by(|a, b| a.id == b.id);
        KeySet { keys: keys.into_iter().map(PublicKey::to_named).collect(), threshold: self.threshold }
    }

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
    let used: Vec<_> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
    note_names(&mut root._extra, roles.each().into_iter().flat_map(|(_, setup)| &setup.keys), &used);
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
    /// Who signs a role now: one of root, targets, snapshot, timestamp.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<RoleSetup> {
        let root = &self.current.root.signed.signed;
        let keys = root.roles.get(&name.parse::<RoleType>().ok()?)?;
        RoleSetup::of(keys, |id| root.keys.get(id), &names_in(&root._extra))
    }

    /// Who signs a channel now, where it has keys of its own.
    #[must_use]
    pub fn role_of_channel(&self, channel: &ChannelName) -> Option<RoleSetup> {
        let targets = &self.current.targets.signed.signed;
        let keys = self.current.delegated_keys(&delegated_role_name(channel))?;
        let delegations = targets.delegations.as_ref()?;
        RoleSetup::of(&keys, |id| delegations.keys.get(id), &names_in(&targets._extra))
    }

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
        for (name, setup) in changes {
            setup.checked(name)?;
        }
        let roles = changes.iter().map(|(name, setup)| (name.clone(), setup.to_set())).collect();
        self.perform(Operation::Rotate { roles }, signing)
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
        setup.checked(&delegated_role_name(channel))?;
        self.perform(Operation::Delegate { channel: channel.clone(), keys: setup.to_set() }, signing)
    }

    /// The documents of what somebody asked for, made on what is published now and signed with the keys at hand.
    pub(super) fn documents(&self, operation: &Operation, signing: Signing<'_>) -> Result<Change, PublishError> {
        match operation {
            Operation::Offer { channel, product, release, files } => {
                self.offered(channel, product, release, files, signing)
            }
            Operation::Withdraw { channel, version, withdrawal } => {
                self.withdrawn(channel, version, withdrawal, signing)
            }
            Operation::LeaveOut { channel, versions } => self.left_out(channel, versions, signing),
            Operation::Rotate { roles } => self.rotated(roles, signing),
            Operation::Delegate { channel, keys } => self.delegated(channel, keys, signing),
        }
    }

    fn rotated(&self, changes: &BTreeMap<String, KeySet>, signing: Signing<'_>) -> Result<Change, PublishError> {
        let mut root = self.current.root.signed.signed.clone();
        root.version = next_version(root.version.get());
        root.expires = timestamp(signing.now + signing.lifetimes.root)?;
        let mut named = Vec::new();
        for (name, set) in changes {
            let role = name.parse::<RoleType>().ok().filter(|role| root.roles.contains_key(role)).ok_or_else(|| {
                PublishError::Role {
                    role: name.clone(),
                    reason: "only root, targets, snapshot and timestamp have their keys in the root".to_owned(),
                }
            })?;
            let setup = RoleSetup::of_set(set)?;
            root.roles.insert(role, setup.checked(name)?);
            root.keys.extend(setup.keys.iter().map(|key| (key.id.clone(), key.key.clone())));
            named.extend(setup.keys);
        }
        // A key that no role uses any more is revoked.
        let used: Vec<_> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
        root.keys.retain(|id, _| used.contains(id));
        note_names(&mut root._extra, named.iter(), &used);
        let sets = [
            keys_of(&self.current.root.signed.signed, RoleType::Root)?.clone(),
            keys_of(&root, RoleType::Root)?.clone(),
        ];
        let root = Document::sign("root", root, &[&sets[0], &sets[1]], signing.keys)?;
        Ok(Change { root: Some(root), ..Change::default() })
    }

    fn delegated(&self, channel: &ChannelName, set: &KeySet, signing: Signing<'_>) -> Result<Change, PublishError> {
        let name = delegated_role_name(channel);
        let mut targets = self.current.targets.signed.signed.clone();
        let channel_file = format!("{channel}.json");
        if targets.targets.keys().any(|target| target.raw() == channel_file) {
            let reason = "it has releases already; delegate a channel before its first release".to_owned();
            return Err(PublishError::Channel { what: format!("channel {channel}"), reason });
        }
        let setup = RoleSetup::of_set(set)?;
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
        note_names(&mut targets._extra, setup.keys.iter(), &used);

        let before = self.current.delegated.get(&name);
        let own = match before {
            Some(document) => document.signed.signed.clone(),
            None => Targets::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, timestamp(signing.now)?),
        };
        // Also where the role can't be used any more and begins anew: its version must not go back.
        let version = self.current.version_of(&name);
        let own = next_targets(own, version, &[&keys], &name, signing)?;
        let set = keys_of(&self.current.root.signed.signed, RoleType::Targets)?.clone();
        let version = targets.version.get();
        let targets = next_targets(targets, version, &[&set], "targets", signing)?;
        Ok(Change { targets: Some(targets), delegated: BTreeMap::from([(name, own)]), ..Change::default() })
    }
}

/// The name can't collide with a top-level role or another role's file.
pub(super) fn delegated_role_name(channel: &ChannelName) -> String {
    format!("channel-{channel}")
}
