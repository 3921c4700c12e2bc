//! Releases of a channel: add one, take one back, offer one of another channel.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bascule_image::Sha256;
use bascule_image::release::channel::{self, Channel, Release, Withdrawal};
use bascule_image::release::manifest::{self, File as Described, Manifest};
use bascule_image::release::names::{Severity, TargetPath};
use bascule_names::{Architecture, ChannelName, Digest, Product, Version};
use chrono::{DateTime, Utc};
use tough::TargetName;
use tough::schema::{Hashes, RoleType, Target, Targets};

use super::Publisher;
use super::commit::{Change, Outcome, Signing, next_targets};
use super::content::{Named, files_of, read_manifests};
use super::error::PublishError;
use super::pending::{NamedFile, Operation};
use super::setup::delegated_role_name;
use super::state::keys_of;

/// What a channel says of a release beside its content.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// Severity of the worst vulnerability it fixes.
    pub severity: Severity,
    /// Identifiers of the vulnerabilities it fixes.
    pub fixes: Vec<String>,
    /// Where people read what changed.
    pub notes_url: Option<String>,
    /// Lowest version that may go straight to this release.
    pub floor: Option<Version>,
    /// Whether nodes that run a newer version may install it.
    pub downgrade: bool,
}

impl Publisher {
    /// Adds the release that lies in one build folder to a channel.
    ///
    /// # Errors
    /// As [`Self::add_builds`].
    pub fn add_release(
        &mut self,
        channel_name: &ChannelName,
        build: &Path,
        notes: &Notes,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        self.add_builds(channel_name, &[build], notes, signing)
    }

    /// Adds the release that lies in build folders (`releases/<version>/<architecture>/release.json` and what the manifests
    /// name; one folder for each architecture, or one for all) to a channel, which is made if it is new.
    ///
    /// The channel offers its highest version: a lower one is put below it, unless `notes` let nodes go back to it.
    ///
    /// # Errors
    /// [`PublishError::Content`] when a file is not what its manifest says, [`PublishError::Channel`] when the channel
    /// has the version already or holds another product.
    pub fn add_builds(
        &mut self,
        channel_name: &ChannelName,
        builds: &[&Path],
        notes: &Notes,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        let mut manifests = Vec::new();
        for build in builds {
            let found = read_manifests(build)?;
            if found.is_empty() {
                let reason =
                    "holds no releases/<version>/<architecture>/release.json; make one with `bascule release build`";
                return Err(PublishError::Folder { path: build.to_path_buf(), reason });
            }
            manifests.extend(found.into_iter().map(|(path, manifest)| (*build, path, manifest)));
        }
        let Some((build, _, first)) = manifests.first() else {
            return Err(PublishError::Channel { what: "release".to_owned(), reason: "no build is named".to_owned() });
        };
        let (build, product, version) = (*build, first.product.clone(), first.version.clone());
        if manifests.iter().any(|(_, _, manifest)| manifest.product != product || manifest.version != version) {
            let reason = "there is more than one product or version; publish one release at a time";
            return Err(PublishError::Folder { path: build.to_owned(), reason });
        }
        // Refused before hundreds of megabytes are copied.
        self.refuse_other_product(channel_name, &product)?;
        refuse_known(&self.channel_or_new(channel_name, &product)?, &version)?;
        let mut files = BTreeMap::new();
        let mut described = BTreeMap::new();
        for (build, path, manifest) in &manifests {
            for file in files_of(manifest) {
                let (digest, size) = self.take_file(build, &file, manifest)?;
                files.insert(file.path, NamedFile { digest, size });
            }
            let (digest, size) = self.folder.copy_target(path, &build.join(path.as_str()))?;
            files.insert(path.clone(), NamedFile { digest: digest.clone(), size });
            let file = Described { path: path.clone(), size, digest };
            if described.insert(manifest.architecture, file).is_some() {
                let reason = format!("two builds are for {}", manifest.architecture);
                return Err(PublishError::Channel { what: format!("release {version}"), reason });
            }
        }
        // One release, one Kubernetes; should its architectures differ, the newest is what API servers have to take.
        let kubernetes =
            manifests.iter().filter_map(|(_, _, manifest)| manifest.kubernetes).max_by_key(|one| one.kubelet);
        let state_version = manifests.iter().filter_map(|(_, _, manifest)| manifest.state_version).max();
        let brings = Brings { kubernetes, state_version };
        let release = entry(version, described, brings, notes, signing.now);
        refuse_older_state(&self.channel_or_new(channel_name, &product)?, &release)?;
        self.perform(Operation::Offer { channel: channel_name.clone(), product, release, files }, signing)
    }

    /// The version that lies in build folders.
    ///
    /// # Errors
    /// [`PublishError::Folder`] when there is none.
    pub fn version_of(&self, builds: &[&Path]) -> Result<Version, PublishError> {
        for build in builds {
            if let Some((_, manifest)) = read_manifests(build)?.into_iter().next() {
                return Ok(manifest.version);
            }
        }
        let reason = "holds no releases/<version>/<architecture>/release.json; make one with `bascule release build`";
        Err(PublishError::Folder { path: builds.first().copied().unwrap_or(Path::new("")).to_owned(), reason })
    }

    /// Marks a release as withdrawn. Its files stay, for nodes that run it.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when the channel does not hold it.
    pub fn withdraw(
        &mut self,
        channel_name: &ChannelName,
        version: &Version,
        reason: &str,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        let withdrawal = Withdrawal { at: whole_seconds(signing.now), reason: reason.to_owned() };
        let (channel, version) = (channel_name.clone(), version.clone());
        self.perform(Operation::Withdraw { channel, version, withdrawal }, signing)
    }

    /// Offers a release of one channel in another, byte for byte: what was tested is what is released.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when the first has it not or withdrew it, or the second has it already.
    pub fn promote(
        &mut self,
        from: &ChannelName,
        to: &ChannelName,
        version: &Version,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        let source = self.channel(from)?;
        let release = release_in(&source, version)?;
        if let Some(withdrawn) = &release.withdrawn {
            let reason = format!("its release {version} was withdrawn ({})", withdrawn.reason);
            return Err(PublishError::Channel { what: format!("channel {from}"), reason });
        }
        refuse_known(&self.channel_or_new(to, &source.product)?, version)?;
        let mut files = BTreeMap::new();
        for described in release.manifests.values() {
            let bytes = self.folder.read_target(&described.path, &described.digest, manifest::MAX_LENGTH as u64)?;
            let manifest =
                Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
            let file = NamedFile { digest: described.digest.clone(), size: described.size };
            files.insert(described.path.clone(), file);
            for file in files_of(&manifest) {
                let (digest, size) = self.published(from, &file.path)?;
                files.insert(file.path, NamedFile { digest, size });
            }
        }
        let release = Release { published_at: whole_seconds(signing.now), ..release.clone() };
        refuse_older_state(&self.channel_or_new(to, &source.product)?, &release)?;
        self.perform(Operation::Offer { channel: to.clone(), product: source.product, release, files }, signing)
    }

    /// The documents of a release that is offered.
    pub(super) fn offered(
        &self,
        channel_name: &ChannelName,
        product: &Product,
        release: &Release,
        files: &BTreeMap<TargetPath, NamedFile>,
        signing: Signing<'_>,
    ) -> Result<Change, PublishError> {
        self.refuse_other_product(channel_name, product)?;
        let mut channel = self.channel_or_new(channel_name, product)?;
        refuse_known(&channel, &release.version)?;
        let mut targets = self.role_targets(channel_name)?;
        for (path, file) in files {
            if !self.folder.has_target(path, &file.digest, file.size) {
                let reason = "its file is gone; publish the release again from its build".to_owned();
                return Err(PublishError::Content { path: path.to_string(), reason });
            }
            name_target(&mut targets, path, &file.digest, file.size)?;
        }
        insert(&mut channel, release.clone());
        self.change_of_channel(channel_name, &channel, targets, signing)
    }

    /// The documents of a release that is withdrawn.
    pub(super) fn withdrawn(
        &self,
        channel_name: &ChannelName,
        version: &Version,
        withdrawal: &Withdrawal,
        signing: Signing<'_>,
    ) -> Result<Change, PublishError> {
        let mut channel = self.channel(channel_name)?;
        release_in(&channel, version)?;
        if let Some(release) = channel.releases.iter_mut().find(|release| &release.version == version) {
            release.withdrawn = Some(withdrawal.clone());
        }
        self.change_of_channel(channel_name, &channel, self.role_targets(channel_name)?, signing)
    }

    /// The version that a channel offers now: the last one that is not withdrawn, whatever its architectures. None where there
    /// is no such channel yet.
    ///
    /// # Errors
    /// [`PublishError`] when the channel can't be read.
    pub fn offers(&self, name: &ChannelName) -> Result<Option<Version>, PublishError> {
        match self.channel(name) {
            Ok(channel) => Ok(newest(&channel).map(|release| release.version.clone())),
            Err(PublishError::NoChannel { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The manifests of the release that a channel offers now, each with the path of its boot image. Nothing where the channel is
    /// new or offers nothing.
    ///
    /// # Errors
    /// [`PublishError`] when the channel or a manifest can't be read.
    pub fn offered_manifests(&self, name: &ChannelName) -> Result<Vec<(Manifest, PathBuf)>, PublishError> {
        let channel = match self.channel(name) {
            Ok(channel) => channel,
            Err(PublishError::NoChannel { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let Some(release) = newest(&channel) else { return Ok(Vec::new()) };
        let read = |file: &Described| {
            let bytes = self.folder.read_target(&file.path, &file.digest, manifest::MAX_LENGTH as u64)?;
            let manifest =
                Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
            let boot_image = self.folder.target_path(&manifest.uki.path, &manifest.uki.digest);
            Ok((manifest, boot_image))
        };
        release.manifests.values().map(read).collect()
    }

    /// The channels of the repository, sorted.
    #[must_use]
    pub fn channel_names(&self) -> Vec<ChannelName> {
        self.current.channel_names()
    }

    /// Nodes accept one product for each trust root: a release of another one in the same repository would be refused by all.
    /// What the teams of other channels have published is their own affair: it must not keep this one from publishing.
    fn refuse_other_product(&self, own: &ChannelName, product: &Product) -> Result<(), PublishError> {
        let role = self.current.role_of(own);
        for name in self.channel_names() {
            if self.current.role_of(&name).is_some_and(|other| Some(other) != role) {
                continue;
            }
            let channel = self.channel(&name)?;
            if &channel.product != product {
                let reason = format!(
                    "the repository is for {} (channel {name}), the release for {product}; make a repository of its own for it",
                    channel.product
                );
                return Err(PublishError::Channel { what: "product".to_owned(), reason });
            }
        }
        Ok(())
    }

    /// A channel as it is published.
    ///
    /// # Errors
    /// [`PublishError::NoChannel`] when there is none.
    pub fn channel(&self, name: &ChannelName) -> Result<Channel, PublishError> {
        self.current.channel(&self.folder, name)
    }

    fn channel_or_new(&self, name: &ChannelName, product: &Product) -> Result<Channel, PublishError> {
        match self.channel(name) {
            Err(PublishError::NoChannel { .. }) => Ok(Channel {
                format: channel::FORMAT,
                product: product.clone(),
                channel: name.clone(),
                releases: Vec::new(),
            }),
            other => other,
        }
    }

    /// The files of the role that signs a channel: a delegated one if there is, else the top-level one.
    ///
    /// # Errors
    /// [`PublishError::Broken`] when that role can't be used.
    pub(super) fn role_targets(&self, channel: &ChannelName) -> Result<Targets, PublishError> {
        let role = delegated_role_name(channel);
        let document = match self.current.delegated_keys(&role) {
            Some(_) => self.current.usable(&role)?,
            None => &self.current.targets,
        };
        Ok(document.signed.signed.clone())
    }

    pub(super) fn change_of_channel(
        &self,
        name: &ChannelName,
        channel: &Channel,
        mut targets: Targets,
        signing: Signing<'_>,
    ) -> Result<Change, PublishError> {
        let bytes = channel.to_bytes().map_err(|source| PublishError::Format { what: "channel file", source })?;
        let path = channel_path(name)?;
        let digest = Digest::from(Sha256::of(&bytes));
        name_target(&mut targets, &path, &digest, bytes.len() as u64)?;
        let version = targets.version.get();
        let role = delegated_role_name(name);
        let mut change = Change { files: vec![(path, digest, bytes)], ..Change::default() };
        match self.current.delegated_keys(&role) {
            Some(keys) => {
                let own = next_targets(targets, version, &[&keys], &role, signing)?;
                change.delegated.insert(role, own);
            }
            None => {
                let keys = keys_of(&self.current.root.signed.signed, RoleType::Targets)?.clone();
                change.targets = Some(next_targets(targets, version, &[&keys], "targets", signing)?);
            }
        }
        Ok(change)
    }

    /// Copies a file of a build in place and compares it with what the manifest says.
    fn take_file(&self, build: &Path, file: &Named, manifest: &Manifest) -> Result<(Digest, u64), PublishError> {
        let path = build.join(file.path.as_str());
        let refuse = |reason: String| PublishError::Content { path: path.display().to_string(), reason };
        let (digest, length) = self.folder.copy_target(&file.path, &path)?;
        if length != file.size {
            return Err(refuse(format!("it has {length} bytes, not {}", file.size)));
        }
        if file.digest.as_ref().is_some_and(|expected| expected != &digest) {
            return Err(refuse(format!("its digest is {digest}")));
        }
        for pack in manifest.packs.iter().filter(|pack| pack.path == file.path) {
            let wanted = usize::try_from(pack.index.length).unwrap_or_default();
            let mut index = vec![0; wanted];
            let read =
                File::open(&path).and_then(|opened| opened.read_exact_at(&mut index, length - pack.index.length));
            read.map_err(PublishError::file("read", &path))?;
            if Digest::from(Sha256::of(&index)) != pack.index.digest {
                return Err(refuse("its index is another".to_owned()));
            }
        }
        Ok((digest, length))
    }

    /// Digest and length of a published file of a channel.
    fn published(&self, channel: &ChannelName, path: &TargetPath) -> Result<(Digest, u64), PublishError> {
        let (digest, length) = self
            .current
            .named(channel, path)?
            .ok_or_else(|| PublishError::broken(path.to_string(), "no role names it"))?;
        if !self.folder.has_target(path, &digest, length) {
            return Err(PublishError::broken(path.to_string(), "its file is missing or has another length"));
        }
        Ok((digest, length))
    }
}

/// The release that a channel offers, whatever its architectures.
pub(super) fn newest(channel: &Channel) -> Option<&Release> {
    channel.releases.iter().rev().find(|release| release.withdrawn.is_none())
}

/// Readers take the last release of a channel that is not withdrawn. So the highest version stays last, whenever a lower one
/// comes (a fix for those who stay on an older line), unless nodes are to go back to that.
fn insert(channel: &mut Channel, release: Release) {
    let highest = newest(channel).is_none_or(|newest| newest.version < release.version);
    let mut at = channel.releases.len();
    if !highest && !release.downgrade {
        let above = |release_before: &Release| release_before.version > release.version;
        while at.checked_sub(1).and_then(|before| channel.releases.get(before)).is_some_and(above) {
            at -= 1;
        }
    }
    channel.releases.insert(at, release);
}

fn release_in<'a>(channel: &'a Channel, version: &Version) -> Result<&'a Release, PublishError> {
    channel.release(version).ok_or_else(|| {
        let known: Vec<&str> = channel.releases.iter().map(|release| release.version.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let reason = format!("it has no release {version}; it has: {known}");
        PublishError::Channel { what: format!("channel {}", channel.channel), reason }
    })
}

/// What a channel's entry repeats of the manifests.
struct Brings {
    kubernetes: Option<manifest::Kubernetes>,
    state_version: Option<u32>,
}

fn entry(
    version: Version,
    manifests: BTreeMap<Architecture, manifest::File>,
    brings: Brings,
    notes: &Notes,
    now: DateTime<Utc>,
) -> Release {
    Release {
        version,
        manifests,
        published_at: whole_seconds(now),
        severity: notes.severity,
        fixes: notes.fixes.clone(),
        notes_url: notes.notes_url.clone(),
        floor: notes.floor.clone(),
        downgrade: notes.downgrade,
        kubernetes: brings.kubernetes,
        state_version: brings.state_version,
        withdrawn: None,
    }
}

fn whole_seconds(time: DateTime<Utc>) -> DateTime<Utc> {
    use chrono::SubsecRound as _;
    time.trunc_subsecs(0)
}

fn refuse_known(channel: &Channel, version: &Version) -> Result<(), PublishError> {
    if channel.release(version).is_none() {
        return Ok(());
    }
    let reason =
        format!("it has release {version} already; a published release never changes, give it another version");
    Err(PublishError::Channel { what: format!("channel {}", channel.channel), reason })
}

/// Nodes that were updated to an earlier release with a higher state version would refuse this one, each of them. Where nodes are to
/// go back, that is what is meant.
fn refuse_older_state(channel: &Channel, release: &Release) -> Result<(), PublishError> {
    let number = |release: &Release| release.state_version.unwrap_or(0);
    let ahead = |before: &&Release| before.version < release.version && number(before) > number(release);
    let Some(before) = channel.releases.iter().find(ahead).filter(|_| !release.downgrade) else { return Ok(()) };
    let reason = format!(
        "its release {} has state version {}, and {} has {}: nodes that ran the former would refuse it; keep \
         BASCULE_STATE_VERSION in os-release at {} or above",
        before.version,
        number(before),
        release.version,
        number(release),
        number(before)
    );
    Err(PublishError::Channel { what: format!("channel {}", channel.channel), reason })
}

pub(super) fn channel_path(name: &ChannelName) -> Result<TargetPath, PublishError> {
    format!("{name}.json").parse().map_err(|error| PublishError::broken(name.to_string(), error))
}

pub(super) fn target_name(path: &TargetPath) -> Result<TargetName, PublishError> {
    TargetName::new(path.as_str()).map_err(|error| PublishError::broken(path.to_string(), error))
}

fn name_target(targets: &mut Targets, path: &TargetPath, digest: &Digest, length: u64) -> Result<(), PublishError> {
    let hashes = Hashes { sha256: digest.to_bytes().to_vec().into(), _extra: HashMap::new() };
    let target = Target { length, hashes, custom: HashMap::new(), _extra: HashMap::new() };
    targets.targets.insert(target_name(path)?, target);
    Ok(())
}

#[cfg(test)]
mod tests;
