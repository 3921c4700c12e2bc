//! Taking away what is no longer wanted: releases that a channel need not offer, and files that no reader can ask for.
//!
//! Two steps, because readers are in between: first a release is removed from its channel (signed, `timestamp.json` last, as
//! every change); its files go only when every copy of the metadata that names them has been replaced for longer than a
//! reader may still hold on to it. Killed anywhere, what is left is found again by the next run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bascule_image::release::channel::{Channel, Release};
use bascule_image::release::manifest::Manifest;
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Version};
use chrono::{DateTime, TimeDelta, Utc};
use tough::schema::Targets;

use super::Publisher;
use super::commit::{Change, Outcome, Signing};
use super::content::files_of;
use super::error::PublishError;
use super::pending::{self, Operation};
use super::release::target_name;
use super::setup::delegated_role_name;
use crate::error::in_one_line;
use crate::tuf::{self, Delegation, Role as _};

/// A file of the repository folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unnamed {
    /// Relative to the folder.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
}

/// What can be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwanted {
    /// No reader can ask for these any more.
    pub now: Vec<Unnamed>,
    /// Replaced not long ago: a reader may still be on its way. Each with the time from which nobody is.
    pub later: Vec<(Unnamed, DateTime<Utc>)>,
    /// Nothing names these that can be read, but this role may, of which it is not known. They stay.
    pub unknown: Vec<(Unnamed, String)>,
}

impl Publisher {
    /// The releases a channel need not offer when it is to keep the newest `keep`. What stays beside them: withdrawn ones
    /// published after the oldest of those (so that the reason can be read), and the floors that nodes step through.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when there is no such channel.
    pub fn superfluous(&self, channel: &ChannelName, keep: usize) -> Result<Vec<Version>, PublishError> {
        Ok(superfluous(&self.channel(channel)?, keep))
    }

    /// Leaves releases out of a channel. Their files stay until [`Self::unwanted`] lists them.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when the channel has one of them not.
    pub fn leave_out(
        &mut self,
        channel_name: &ChannelName,
        versions: &[Version],
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        self.perform(Operation::LeaveOut { channel: channel_name.clone(), versions: versions.to_vec() }, signing)
    }

    /// The documents of a channel that leaves releases out.
    pub(super) fn left_out(
        &self,
        channel_name: &ChannelName,
        versions: &[Version],
        signing: Signing<'_>,
    ) -> Result<Change, PublishError> {
        let mut channel = self.channel(channel_name)?;
        if let Some(unknown) = versions.iter().find(|version| channel.release(version).is_none()) {
            let reason = format!("it has no release {unknown}");
            return Err(PublishError::Channel { what: format!("channel {channel_name}"), reason });
        }
        let (gone, kept) =
            std::mem::take(&mut channel.releases).into_iter().partition(|release| versions.contains(&release.version));
        channel.releases = kept;
        let mut targets = self.role_targets(channel_name)?;
        let mut wanted = BTreeSet::from_iter(self.paths_of(&channel.releases)?);
        for name in self.channels_signed_with(channel_name, &targets) {
            if &name != channel_name {
                wanted.extend(self.paths_of(&self.channel(&name)?.releases)?);
            }
        }
        for path in self.paths_of(&gone)?.iter().filter(|path| !wanted.contains(*path)) {
            targets.targets.remove(&target_name(path)?);
        }
        self.change_of_channel(channel_name, &channel, targets, signing)
    }

    /// The channels whose files the same role signs: all without a role of their own, or the one with it alone.
    fn channels_signed_with(&self, channel: &ChannelName, targets: &Targets) -> Vec<ChannelName> {
        let delegated = |name: &ChannelName| self.current.delegated_keys(&delegated_role_name(name)).is_some();
        if delegated(channel) {
            return vec![channel.clone()];
        }
        let name = |target: &tough::TargetName| ChannelName::parse(target.raw().strip_suffix(".json")?).ok();
        targets.targets.keys().filter_map(name).filter(|name| !delegated(name)).collect()
    }

    /// Every file that releases consist of.
    fn paths_of(&self, releases: &[Release]) -> Result<Vec<TargetPath>, PublishError> {
        let mut paths = Vec::new();
        for described in releases.iter().flat_map(|release| release.manifests.values()) {
            let path = self.folder.target_path(&described.path, &described.digest);
            let bytes = std::fs::read(&path).map_err(PublishError::file("read", &path))?;
            let manifest =
                Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
            paths.push(described.path.clone());
            paths.extend(files_of(&manifest).into_iter().map(|file| file.path));
        }
        Ok(paths)
    }

    /// Looks for files that nothing names. `grace` is how long after its replacement metadata may still be in a reader's
    /// hands: the lifetime of a timestamp and the longest download.
    ///
    /// Never listed: any root (nodes walk the whole chain), what waits for signatures and what it names, and files whose name
    /// is not of a kind that publishing makes. What a delegated role names that can't be read is not known: files that it may speak for
    /// stay, and everything else is judged as if it were not there.
    ///
    /// # Errors
    /// [`PublishError::File`], [`PublishError::Broken`] when metadata of the top-level role can't be read.
    pub fn unwanted(&self, now: DateTime<Utc>, grace: TimeDelta) -> Result<Unwanted, PublishError> {
        let current = &self.current;
        let mut wanted = Wanted::default();
        wanted.note(&current.seen, None);
        for delegation in current.seen.delegations() {
            wanted.note_role(delegation, current.readable.get(&*delegation.name), None);
        }
        for waiting in pending::read(&self.folder)? {
            for document in waiting.targets.iter().chain(waiting.delegated.values()) {
                wanted.note(&read(&waiting.id, &document.bytes)?, None);
            }
        }
        let mut unwanted = Unwanted::default();
        for (file, until) in self.replaced_metadata(grace)? {
            if until <= now {
                unwanted.now.push(file.unnamed);
                continue;
            }
            let bytes = self.folder.read_metadata(&file.name).map(Option::unwrap_or_default);
            let targets = bytes.and_then(|bytes| read(&file.name, &bytes));
            let delegations = current.seen.delegations().iter().filter(|delegation| *delegation.name == *file.role);
            match file.role.as_str() {
                "snapshot" => {}
                "targets" => wanted.note(&targets?, Some(until)),
                _ => {
                    delegations.for_each(|delegation| wanted.note_role(delegation, targets.as_ref().ok(), Some(until)))
                }
            }
            unwanted.later.push((file.unnamed, until));
        }
        unwanted.now.extend(self.folder.unfinished_metadata()?);
        for file in self.folder.published_files()? {
            match wanted.wish(&file.path) {
                Wish::Named => {}
                Wish::Unknown(role) => unwanted.unknown.push((file, role)),
                Wish::Until(until) => unwanted.later.push((file, until)),
                Wish::None => unwanted.now.push(file),
            }
        }
        Ok(unwanted)
    }

    /// Removes what [`Self::unwanted`] listed.
    ///
    /// # Errors
    /// [`PublishError::File`]; what was removed until then is gone.
    pub fn remove(&self, files: &[Unnamed]) -> Result<(), PublishError> {
        self.folder.remove(files.iter().map(|file| file.path.as_path()))
    }

    /// Snapshots and targets that were replaced, and until when a reader may still hold on to each.
    fn replaced_metadata(&self, grace: TimeDelta) -> Result<Vec<(Replaced, DateTime<Utc>)>, PublishError> {
        let current = &self.current;
        let mut roles = BTreeMap::from([
            ("snapshot", current.snapshot.signed.signed.version.get()),
            ("targets", current.targets.signed.signed.version.get()),
        ]);
        // Of a role that can't be read the older files are the only word on what it named.
        roles.extend(current.readable.iter().map(|(name, own)| (name.as_str(), own.version())));
        let mut files = Vec::new();
        for file in self.folder.metadata_files()? {
            let Some((version, role)) = file.name.strip_suffix(".json").and_then(|name| name.split_once('.')) else {
                continue;
            };
            if let (Ok(version), Some((role, newest))) = (version.parse::<u64>(), roles.get_key_value(role)) {
                // What is newer than the newest was left by a publisher that was killed; the next one writes over it.
                if version <= *newest {
                    files.push(((*role, version), file));
                }
            }
        }
        files.sort_by_key(|(key, _)| *key);
        let mut replaced = Vec::new();
        for pair in files.windows(2) {
            let [((role, _), file), ((next, _), successor)] = pair else { continue };
            if role == next {
                let unnamed = Unnamed { path: file.path.clone(), bytes: file.bytes };
                let (name, role) = (file.name.clone(), (*role).to_owned());
                replaced.push((Replaced { unnamed, name, role }, successor.modified + grace));
            }
        }
        Ok(replaced)
    }
}

/// A metadata file that has a successor.
struct Replaced {
    unnamed: Unnamed,
    name: String,
    role: String,
}

/// What the roles want, each for ever or until a time.
#[derive(Default)]
struct Wanted<'a> {
    /// Files that are named, relative to the folder.
    named: BTreeMap<PathBuf, Option<DateTime<Utc>>>,
    /// Delegations through which files may be named that nobody here can know of.
    unknown: Vec<(&'a Delegation, Option<DateTime<Utc>>)>,
}

/// What the roles want of one file.
enum Wish {
    Named,
    /// This role may name it.
    Unknown(String),
    Until(DateTime<Utc>),
    None,
}

impl<'a> Wanted<'a> {
    /// Notes the files that a role names. Whatever their names are: a role of another team may hold odd ones.
    fn note(&mut self, targets: &tuf::Targets, until: Option<DateTime<Utc>>) {
        for (name, target) in targets.targets.iter() {
            // Files under a digest of another kind are none that publishing makes.
            let Some(digest) = &target.hashes.sha256 else { continue };
            let (folder, name) = name.rsplit_once('/').unwrap_or(("", name));
            let file = format!("{}.{name}", hex::encode(digest.as_slice()));
            let known = self.named.entry(Path::new("targets").join(folder).join(file)).or_insert(until);
            *known = later(*known, until);
        }
    }

    /// Notes a delegated role; `None`: it can't be read.
    fn note_role(&mut self, delegation: &'a Delegation, targets: Option<&tuf::Targets>, until: Option<DateTime<Utc>>) {
        if let Some(targets) = targets {
            self.note(targets, until);
        }
        // The roles that it delegates to in its turn are not looked at here.
        if targets.is_none_or(|targets| !targets.delegations().is_empty()) {
            self.unknown.push((delegation, until));
        }
    }

    fn wish(&self, path: &Path) -> Wish {
        let mut until = match self.named.get(path) {
            Some(None) => return Wish::Named,
            Some(Some(until)) => Some(*until),
            None => None,
        };
        if let Some(name) = target_of(path) {
            for (delegation, own) in self.unknown.iter().filter(|(delegation, _)| delegation.covers(&name)) {
                match own {
                    None => return Wish::Unknown(delegation.name.to_string()),
                    Some(own) => until = Some(until.map_or(*own, |until| until.max(*own))),
                }
            }
        }
        until.map_or(Wish::None, Wish::Until)
    }
}

/// The later of two times; `None` is never.
fn later(one: Option<DateTime<Utc>>, other: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    one.zip(other).map(|(one, other)| one.max(other))
}

/// The name under which roles speak of a published file: its path below `targets/` without the digest.
fn target_of(path: &Path) -> Option<String> {
    let text = path.strip_prefix("targets").ok()?.to_str()?;
    let (folder, file) = text.rsplit_once('/').unwrap_or(("", text));
    let (digest, name) = file.split_once('.')?;
    let slash = if folder.is_empty() { "" } else { "/" };
    (!digest.is_empty()).then(|| format!("{folder}{slash}{name}"))
}

fn read(name: &str, bytes: &[u8]) -> Result<tuf::Targets, PublishError> {
    let parsed = tuf::parse::<tuf::Targets>(name, bytes);
    parsed.map(|signed| signed.role).map_err(|error| PublishError::broken(name, in_one_line(&error)))
}

fn superfluous(channel: &Channel, keep: usize) -> Vec<Version> {
    let offered: Vec<usize> =
        (0..).zip(&channel.releases).filter(|(_, release)| release.withdrawn.is_none()).map(|(at, _)| at).collect();
    // The newest one is always kept, and everything where there are not more than asked for.
    let first = offered.len().checked_sub(keep.max(1)).and_then(|at| offered.get(at)).copied().unwrap_or(0);
    let (older, mut kept) = (channel.releases.get(..first), BTreeSet::new());
    let mut open: Vec<&Version> =
        channel.releases.iter().skip(first).filter_map(|release| release.floor.as_ref()).collect();
    while let Some(floor) = open.pop() {
        if kept.insert(floor) {
            open.extend(channel.release(floor).and_then(|release| release.floor.as_ref()));
        }
    }
    let older = older.unwrap_or_default().iter().map(|release| &release.version);
    older.filter(|version| !kept.contains(version)).cloned().collect()
}
