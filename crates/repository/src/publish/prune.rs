//! Taking away what is no longer wanted: releases that a channel need not offer, and files that no reader can ask for.
//!
//! Two steps, because readers are in between: first a release is removed from its channel (signed, `timestamp.json` last, as
//! every change); its files go only when every copy of the metadata that names them has been replaced for longer than a
//! reader may still hold on to it. Killed anywhere, what is left is found again by the next run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bascule_image::release::channel::{Channel, Release};
use bascule_image::release::manifest::Manifest;
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Digest, Version};
use chrono::{DateTime, TimeDelta, Utc};
use tough::schema::Targets;

use super::Publisher;
use super::commit::{Change, Outcome, Signing};
use super::content::files_of;
use super::document::Document;
use super::error::PublishError;
use super::pending::{self, Operation};
use super::release::target_name;
use super::setup::delegated_role_name;

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
    /// is not of a kind that publishing makes.
    ///
    /// # Errors
    /// [`PublishError::File`], [`PublishError::Broken`] when metadata can't be read.
    pub fn unwanted(&self, now: DateTime<Utc>, grace: TimeDelta) -> Result<Unwanted, PublishError> {
        let mut named = BTreeMap::new();
        let current = &self.current;
        // What such a role names is not known, so nobody can say which files are not named.
        if let Some(problem) = current.problems.first() {
            current.usable(&problem.role)?;
        }
        for document in [&current.targets].into_iter().chain(current.delegated.values()) {
            self.note_targets(&mut named, &document.signed.signed, None)?;
        }
        for waiting in pending::read(&self.folder)? {
            for document in waiting.targets.iter().chain(waiting.delegated.values()) {
                self.note_targets(&mut named, &document.signed.signed, None)?;
            }
        }
        let mut unwanted = Unwanted::default();
        for (file, until) in self.replaced_metadata(grace)? {
            if until > now {
                if !file.is_snapshot {
                    let bytes = self.folder.read_metadata(&file.name)?.unwrap_or_default();
                    let document: Document<Targets> = Document::parse(&file.name, bytes)?;
                    self.note_targets(&mut named, &document.signed.signed, Some(until))?;
                }
                unwanted.later.push((file.unnamed, until));
            } else {
                unwanted.now.push(file.unnamed);
            }
        }
        unwanted.now.extend(self.folder.unfinished_metadata()?);
        for file in self.folder.published_files()? {
            match named.get(&file.path) {
                Some(None) => {}
                Some(Some(until)) => unwanted.later.push((file, *until)),
                None => unwanted.now.push(file),
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

    /// Notes the files that a role names, and until when they are wanted (for ever: `None`).
    fn note_targets(
        &self,
        named: &mut BTreeMap<PathBuf, Option<DateTime<Utc>>>,
        targets: &Targets,
        until: Option<DateTime<Utc>>,
    ) -> Result<(), PublishError> {
        for (name, target) in &targets.targets {
            let refuse = |reason: &str| PublishError::broken(name.raw(), reason);
            let path: TargetPath = name.raw().parse().map_err(|_| refuse("its name is not accepted"))?;
            let digest =
                <[u8; 32]>::try_from(&target.hashes.sha256[..]).map_err(|_| refuse("its digest is no SHA-256"))?;
            let path = self.folder.relative_target_path(&path, &Digest::from_sha256(&digest));
            let known = named.entry(path).or_insert(until);
            *known = known.zip(until).map(|(known, until)| known.max(until));
        }
        Ok(())
    }

    /// Snapshots and targets that were replaced, and until when a reader may still hold on to each.
    fn replaced_metadata(&self, grace: TimeDelta) -> Result<Vec<(Replaced, DateTime<Utc>)>, PublishError> {
        let current = &self.current;
        let mut roles = BTreeMap::from([
            ("snapshot", current.snapshot.signed.signed.version.get()),
            ("targets", current.targets.signed.signed.version.get()),
        ]);
        roles.extend(current.delegated.iter().map(|(name, own)| (name.as_str(), own.signed.signed.version.get())));
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
                let is_snapshot = *role == "snapshot";
                replaced.push((Replaced { unnamed, name: file.name.clone(), is_snapshot }, successor.modified + grace));
            }
        }
        Ok(replaced)
    }
}

/// A metadata file that has a successor.
struct Replaced {
    unnamed: Unnamed,
    name: String,
    is_snapshot: bool,
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
