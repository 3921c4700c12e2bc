//! Changes that wait for signatures of people who hold other keys: `pending/<id>/`.
//!
//! Each waits for itself: none keeps another, nor a refresh, from being published. Beside the documents that collect
//! signatures lies what was asked for (`change.json`), so that a change whose ground has moved (another release was published
//! meanwhile, or its expiry has come near) is made afresh on what is published now; its signatures are void then, and its
//! signers are told. A signer trusts neither: what is shown to him is the difference between what is published and the
//! documents that he signs.

use std::collections::BTreeMap;

use bascule_image::Sha256;
use bascule_image::release::channel::{Release, Withdrawal};
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Digest, Product, Version};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tough::schema::key::Key;
use tough::schema::{Role, RoleType, Root, Targets};

use super::Publisher;
use super::commit::{Change, Missing, Outcome, Signing};
use super::document::Document;
use super::error::PublishError;
use super::folder::Folder;
use super::state::{Current, expires, keys_of};
use crate::limits::MAX_TARGETS;

/// The format of `change.json` that this version reads and writes.
const FORMAT: u64 = 1;
const CHANGE_FILE: &str = "change.json";
/// Most changes that may wait at once: somebody has forgotten them long before.
const MAX_WAITING: usize = 64;
/// What has to be valid for some time yet when it is published: shorter, and it is made afresh.
const SHORTEST_LIFE: TimeDelta = TimeDelta::days(7);

/// What somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind", deny_unknown_fields)]
pub(super) enum Operation {
    /// A release is offered in a channel. Its files lie in `targets/` already.
    Offer { channel: ChannelName, product: Product, release: Release, files: BTreeMap<TargetPath, NamedFile> },
    /// A release is taken back.
    Withdraw { channel: ChannelName, version: Version, withdrawal: Withdrawal },
    /// Releases are removed from a channel.
    LeaveOut { channel: ChannelName, versions: Vec<Version> },
    /// Roles get other keys or thresholds; none: only a later expiry.
    Rotate { roles: BTreeMap<String, KeySet> },
    /// A channel gets keys of its own.
    Delegate { channel: ChannelName, keys: KeySet },
}

/// A file of a release as a role names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamedFile {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Keys, by their names where those are known, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeySet {
    pub(super) keys: Vec<NamedKey>,
    pub(super) threshold: u64,
}

/// A public key and what its owner calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamedKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) key: Key,
}

impl Operation {
    /// The same whenever it was asked for: whoever gives a command again means the change that waits already.
    fn timeless(&self) -> Self {
        let mut this = self.clone();
        match &mut this {
            Self::Offer { release, .. } => release.published_at = DateTime::UNIX_EPOCH,
            Self::Withdraw { withdrawal, .. } => withdrawal.at = DateTime::UNIX_EPOCH,
            Self::LeaveOut { .. } | Self::Rotate { .. } | Self::Delegate { .. } => {}
        }
        this
    }

    /// One line that says what it is.
    fn summary(&self) -> String {
        match self {
            Self::Offer { channel, release, .. } => format!("offer {} in {channel}", release.version),
            Self::Withdraw { channel, version, .. } => format!("withdraw {version} from {channel}"),
            Self::LeaveOut { channel, versions } => {
                let list: Vec<&str> = versions.iter().map(Version::as_str).collect();
                format!("remove {} from {channel}", list.join(", "))
            }
            Self::Rotate { roles } if roles.is_empty() => "a root that expires later".to_owned(),
            Self::Rotate { roles } => {
                let list: Vec<&str> = roles.keys().map(String::as_str).collect();
                format!("other keys for {}", list.join(", "))
            }
            Self::Delegate { channel, .. } => format!("keys of its own for channel {channel}"),
        }
    }
}

/// `change.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Asked {
    format: u64,
    made_at: DateTime<Utc>,
    operation: Operation,
}

/// A change that waits, as it lies in the folder.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: String,
    pub(super) made_at: DateTime<Utc>,
    pub(super) operation: Operation,
    pub(super) root: Option<Document<Root>>,
    pub(super) targets: Option<Document<Targets>>,
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
}

/// A change that waits for signatures, as people look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingChange {
    /// Names it for `sign --change`.
    pub id: String,
    /// What it is for.
    pub summary: String,
    /// When it was asked for.
    pub made_at: DateTime<Utc>,
    /// Its ground has moved, or its expiry is near: the next signature makes it afresh, and earlier ones are void.
    pub stale: bool,
    /// The signatures that it still needs.
    pub missing: Vec<Missing>,
    /// What would change, a line each.
    pub difference: Vec<String>,
}

impl Pending {
    /// Whether what waits still follows on what is published, and lives long enough.
    fn fits(&self, current: &Current, now: DateTime<Utc>) -> bool {
        self.root_fits(current, now) && self.targets_fit(current, now)
    }

    fn root_fits(&self, current: &Current, now: DateTime<Utc>) -> bool {
        let published = current.root.signed.signed.version.get();
        self.root.as_ref().is_none_or(|root| follows(root, published, now))
    }

    fn targets_fit(&self, current: &Current, now: DateTime<Utc>) -> bool {
        let own = |(name, document): (&String, &Document<Targets>)| follows(document, current.version_of(name), now);
        let published = current.targets.signed.signed.version.get();
        self.targets.as_ref().is_none_or(|targets| follows(targets, published, now)) && self.delegated.iter().all(own)
    }

    /// The documents with the signatures that they have, to which the given keys add theirs.
    fn resumed(self, current: &Current, now: DateTime<Utc>, signing: Signing<'_>) -> Result<Change, PublishError> {
        let root_fits = self.root_fits(current, now);
        let targets_fit = self.targets_fit(current, now);
        let mut change = Change::default();
        let old = &current.root.signed.signed;
        if let Some(root) = self.root.filter(|_| root_fits) {
            let sets = [keys_of(old, RoleType::Root)?, keys_of(&root.signed.signed, RoleType::Root)?];
            let (role, signatures) = (root.signed.signed.clone(), &root.signed.signatures);
            change.root = Some(Document::with_signatures("root", role, signatures, &sets, signing.keys)?);
        }
        if !targets_fit {
            return Ok(change);
        }
        let new = change.root.as_ref().map_or(old, |root| &root.signed.signed).clone();
        if let Some(targets) = self.targets {
            let role = RoleType::Targets;
            let sets = [keys_of(old, role)?, keys_of(&new, role)?];
            let (role, signatures) = (targets.signed.signed.clone(), &targets.signed.signatures);
            change.targets = Some(Document::with_signatures("targets", role, signatures, &sets, signing.keys)?);
        }
        let delegations = change.targets.as_ref().unwrap_or(&current.targets).signed.signed.delegations.clone();
        let roles = delegations.map(|delegations| delegations.roles).unwrap_or_default();
        for (name, document) in self.delegated {
            let Some(role) = roles.iter().find(|role| role.name == name) else {
                return Err(PublishError::broken(name, "nobody delegates to it"));
            };
            let (own, signatures) = (document.signed.signed.clone(), &document.signed.signatures);
            let document = Document::with_signatures(&name, own, signatures, &[&role.keys()], signing.keys)?;
            change.delegated.insert(name, document);
        }
        Ok(change)
    }
}

fn follows<T: Role>(document: &Document<T>, published: u64, now: DateTime<Utc>) -> bool {
    document.signed.signed.version().get() == published.saturating_add(1)
        && expires(&document.signed.signed) > now + SHORTEST_LIFE
}

/// Everything that waits, by id.
pub(super) fn read(folder: &Folder) -> Result<Vec<Pending>, PublishError> {
    let mut all = Vec::new();
    for id in folder.pending_ids()? {
        all.extend(read_one(folder, &id)?);
    }
    all.sort_by(|a: &Pending, b| (a.made_at, &a.id).cmp(&(b.made_at, &b.id)));
    Ok(all)
}

fn read_one(folder: &Folder, id: &str) -> Result<Option<Pending>, PublishError> {
    let broken = |reason: String| PublishError::broken(format!("waiting change {id}"), reason);
    // Written last: without it a publisher was killed before anything waited.
    let Some(bytes) = folder.read_pending(id, CHANGE_FILE, MAX_TARGETS)? else { return Ok(None) };
    let asked: Asked = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    if asked.format != FORMAT {
        return Err(broken(format!("it has format {}, known is {FORMAT}", asked.format)));
    }
    let mut pending = Pending {
        id: id.to_owned(),
        made_at: asked.made_at,
        operation: asked.operation,
        root: None,
        targets: None,
        delegated: BTreeMap::new(),
    };
    for name in folder.pending_files(id)? {
        let Some(role) = name.strip_suffix(".json").filter(|_| name != CHANGE_FILE) else { continue };
        let Some(bytes) = folder.read_pending(id, &name, MAX_TARGETS)? else { continue };
        match role {
            "root" => pending.root = Some(Document::parse(&name, bytes)?),
            "targets" => pending.targets = Some(Document::parse(&name, bytes)?),
            _ => drop(pending.delegated.insert(role.to_owned(), Document::parse(&name, bytes)?)),
        }
    }
    Ok(Some(pending))
}

/// Keeps what signatures cost somebody a walk to the safe for; snapshot and timestamp are made anew each time.
fn write(folder: &Folder, id: &str, asked: &Asked, change: &Change) -> Result<(), PublishError> {
    // The description goes first and comes last: documents of two makings are never taken for one change.
    folder.clear_pending(id)?;
    if let Some(root) = &change.root {
        folder.write_pending(id, "root.json", &root.bytes)?;
    }
    if let Some(targets) = &change.targets {
        folder.write_pending(id, "targets.json", &targets.bytes)?;
    }
    for (name, targets) in &change.delegated {
        folder.write_pending(id, &format!("{name}.json"), &targets.bytes)?;
    }
    folder.write_pending(id, CHANGE_FILE, &print(asked)?)
}

fn print(asked: &Asked) -> Result<Vec<u8>, PublishError> {
    let mut bytes = serde_json::to_vec_pretty(asked).map_err(|error| PublishError::broken(CHANGE_FILE, error))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn id_of(asked: &Asked) -> Result<String, PublishError> {
    let bytes =
        print(&Asked { operation: asked.operation.timeless(), made_at: DateTime::UNIX_EPOCH, ..asked.clone() })?;
    Ok(hex::encode(Sha256::of(&bytes).as_bytes().get(..4).unwrap_or_default()))
}

impl Publisher {
    /// What waits for signatures, oldest first.
    ///
    /// # Errors
    /// [`PublishError::Broken`] when something in `pending/` can't be read.
    pub fn waiting(&self, now: DateTime<Utc>) -> Result<Vec<WaitingChange>, PublishError> {
        waiting(&self.folder, &self.current, now)
    }

    /// Adds the signatures of the given keys to a waiting change (the only one where none is named), and publishes it if it
    /// has enough. A change whose ground has moved is made afresh first.
    ///
    /// # Errors
    /// [`PublishError::NoneWaits`], [`PublishError::WhichChange`] when there are several, [`PublishError::Useless`] when no
    /// given key has anything to add.
    pub fn sign_waiting(&mut self, id: Option<&str>, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        let pending = self.find_pending(id)?;
        self.resume(pending, signing)
    }

    /// Signs the one change that waits.
    ///
    /// # Errors
    /// As [`Self::sign_waiting`].
    pub fn sign_pending(&mut self, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        self.sign_waiting(None, signing)
    }

    /// Throws a waiting change away (the only one where none is named).
    ///
    /// # Errors
    /// As [`Self::sign_waiting`].
    pub fn discard_waiting(&mut self, id: Option<&str>) -> Result<String, PublishError> {
        let pending = self.find_pending(id)?;
        self.folder.clear_pending(&pending.id)?;
        Ok(pending.operation.summary())
    }

    fn find_pending(&self, id: Option<&str>) -> Result<Pending, PublishError> {
        let mut all = read(&self.folder)?;
        let names = |all: &[Pending]| {
            let line = |pending: &Pending| format!("{} ({})", pending.id, pending.operation.summary());
            all.iter().map(line).collect::<Vec<_>>().join(", ")
        };
        if let Some(id) = id {
            let known = names(&all);
            all.retain(|pending| pending.id == id);
            return match all.pop() {
                Some(pending) => Ok(pending),
                None if known.is_empty() => Err(PublishError::NoneWaits { path: self.folder.path().to_owned() }),
                None => Err(PublishError::WhichChange { asked: format!("there is no waiting change {id}"), known }),
            };
        }
        if all.len() > 1 {
            let asked = format!("{} changes wait for signatures", all.len());
            return Err(PublishError::WhichChange { asked, known: names(&all) });
        }
        all.pop().ok_or_else(|| PublishError::NoneWaits { path: self.folder.path().to_owned() })
    }

    /// Does what was asked for, or lets it wait. The same change that waits already gets the signatures of the given keys.
    pub(super) fn perform(&mut self, operation: Operation, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        let waiting = read(&self.folder)?;
        let timeless = operation.timeless();
        let count = waiting.len();
        if let Some(same) = waiting.into_iter().find(|pending| pending.operation.timeless() == timeless) {
            // Made afresh where it is stale, else signed as it is.
            return self.resume(same, signing);
        }
        let change = self.documents(&operation, signing)?;
        if count >= MAX_WAITING && !self.complete(&change, signing)? {
            return Err(PublishError::TooManyWait { max: MAX_WAITING });
        }
        self.finish(Asked { format: FORMAT, made_at: signing.now, operation }, change, 0, signing)
    }

    fn resume(&mut self, pending: Pending, signing: Signing<'_>) -> Result<Outcome, PublishError> {
        let asked = Asked { format: FORMAT, made_at: pending.made_at, operation: pending.operation.clone() };
        let now = signing.now;
        // A root does not depend on releases: its signatures stay good when only those have moved on.
        let root_alone = matches!(asked.operation, Operation::Rotate { .. })
            && pending.root.is_some()
            && pending.root_fits(&self.current, now);
        if pending.fits(&self.current, now) {
            let before = signatures(pending.root.as_ref(), pending.targets.as_ref(), &pending.delegated);
            let change = pending.resumed(&self.current, now, signing)?;
            return self.finish(asked, change, before, signing);
        }
        if root_alone {
            let before = signatures(pending.root.as_ref(), None, &BTreeMap::new());
            let change = pending.resumed(&self.current, now, signing)?;
            return self.finish(asked, change, before, signing);
        }
        let change = self.documents(&asked.operation, signing)?;
        self.finish(asked, change, 0, signing)
    }

    /// Publishes a change or lets it wait. `before`: how many signatures it had already.
    fn finish(
        &mut self,
        asked: Asked,
        change: Change,
        before: usize,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        let id = id_of(&asked)?;
        let change = super::commit::with_resigned(&self.current, change, signing)?;
        let missing = super::commit::missing(&self.current, &change, signing)?;
        let have = signatures(change.root.as_ref(), change.targets.as_ref(), &change.delegated);
        let online = signing.keys.iter().any(|key| self.signs_online(&change, key.public()));
        // The one who begins a change may hold the online keys alone; who signs one has to add something.
        if !missing.is_empty() && have <= before && (before > 0 || !online) {
            return Err(PublishError::Useless { missing: super::commit::list(&missing) });
        }
        for (path, digest, bytes) in &change.files {
            self.folder.write_target(path, digest, bytes)?;
        }
        if missing.is_empty() {
            let outcome = super::commit::publish(&self.folder, &self.current, change, signing)?;
            self.folder.clear_pending(&id)?;
            self.current = Current::load(&self.folder)?;
            return Ok(outcome);
        }
        write(&self.folder, &id, &asked, &change)?;
        Ok(Outcome::Waiting(super::commit::Waiting { id, missing }))
    }

    fn complete(&self, change: &Change, signing: Signing<'_>) -> Result<bool, PublishError> {
        Ok(super::commit::missing(&self.current, change, signing)?.is_empty())
    }

    fn signs_online(&self, change: &Change, key: &super::PublicKey) -> bool {
        let root = change.root.as_ref().unwrap_or(&self.current.root);
        [RoleType::Snapshot, RoleType::Timestamp]
            .into_iter()
            .filter_map(|role| root.signed.signed.roles.get(&role))
            .any(|set| set.keyids.contains(&key.id))
    }
}

fn signatures(
    root: Option<&Document<Root>>,
    targets: Option<&Document<Targets>>,
    delegated: &BTreeMap<String, Document<Targets>>,
) -> usize {
    let targets = targets.into_iter().chain(delegated.values()).map(|document| document.signed.signatures.len());
    root.map_or(0, |root| root.signed.signatures.len()) + targets.sum::<usize>()
}

/// What waits in a folder, judged against what is published in it.
pub(super) fn waiting(
    folder: &Folder,
    current: &Current,
    now: DateTime<Utc>,
) -> Result<Vec<WaitingChange>, PublishError> {
    let nobody = Signing { keys: &[], lifetimes: super::Lifetimes::default(), now };
    let mut all = Vec::new();
    for pending in read(folder)? {
        let stale = !pending.fits(current, now);
        let (id, made_at, summary) = (pending.id.clone(), pending.made_at, pending.operation.summary());
        let change =
            Change { root: pending.root, targets: pending.targets, delegated: pending.delegated, ..Change::default() };
        let difference = super::difference::lines(folder, current, &change);
        // What no longer fits can't be judged; it is made afresh with the next signature.
        let missing = super::commit::missing(current, &change, nobody).unwrap_or_default();
        all.push(WaitingChange { id, summary, made_at, stale, missing, difference });
    }
    Ok(all)
}
