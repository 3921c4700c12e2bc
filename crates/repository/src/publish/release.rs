//! Releases of a channel: add one, take one back, offer one of another channel.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

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
    /// Adds the release that lies in a build folder (`releases/<version>/<architecture>/release.json` and what the
    /// manifests name) to a channel, which is made if it is new.
    ///
    /// # Errors
    /// [`PublishError::Content`] when a file is not what its manifest says, [`PublishError::Channel`] when the channel
    /// has the version already.
    pub fn add_release(
        &mut self,
        channel_name: &ChannelName,
        build: &Path,
        notes: &Notes,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        self.refuse_pending()?;
        let manifests = read_manifests(build)?;
        let Some((_, first)) = manifests.first() else {
            let reason =
                "holds no releases/<version>/<architecture>/release.json; make one with `bascule release build`";
            return Err(PublishError::Folder { path: build.to_owned(), reason });
        };
        let (product, version) = (first.product.clone(), first.version.clone());
        if manifests.iter().any(|(_, manifest)| manifest.product != product || manifest.version != version) {
            let reason = "holds more than one product or version; publish one release at a time";
            return Err(PublishError::Folder { path: build.to_owned(), reason });
        }
        let mut channel = self.channel_or_new(channel_name, &product)?;
        refuse_known(&channel, &version)?;
        let mut targets = self.role_targets(channel_name);
        let mut described = BTreeMap::new();
        for (path, manifest) in &manifests {
            for file in files_of(manifest) {
                let (digest, length) = self.take_file(build, &file, manifest)?;
                name_target(&mut targets, &file.path, &digest, length)?;
            }
            let (digest, size) = self.folder.copy_target(path, &build.join(path.as_str()))?;
            name_target(&mut targets, path, &digest, size)?;
            described.insert(manifest.architecture, Described { path: path.clone(), size, digest });
        }
        channel.releases.push(entry(version, described, notes, signing.now));
        self.publish_channel(channel_name, &channel, targets, signing)
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
        self.refuse_pending()?;
        let mut channel = self.channel(channel_name)?;
        let Some(release) = channel.releases.iter_mut().find(|release| &release.version == version) else {
            let reason = format!("it has no release {version}");
            return Err(PublishError::Channel { what: format!("channel {channel_name}"), reason });
        };
        release.withdrawn = Some(Withdrawal { at: whole_seconds(signing.now), reason: reason.to_owned() });
        let targets = self.role_targets(channel_name);
        self.publish_channel(channel_name, &channel, targets, signing)
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
        self.refuse_pending()?;
        let source = self.channel(from)?;
        let refuse = |reason: String| PublishError::Channel { what: format!("channel {from}"), reason };
        let release = source.release(version).ok_or_else(|| refuse(format!("it has no release {version}")))?;
        if let Some(withdrawn) = &release.withdrawn {
            return Err(refuse(format!("its release {version} was withdrawn ({})", withdrawn.reason)));
        }
        let mut channel = self.channel_or_new(to, &source.product)?;
        refuse_known(&channel, version)?;
        let mut targets = self.role_targets(to);
        for described in release.manifests.values() {
            let path = self.folder.target_path(&described.path, &described.digest);
            let bytes = fs::read(&path).map_err(PublishError::file("read", &path))?;
            let manifest =
                Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
            name_target(&mut targets, &described.path, &described.digest, described.size)?;
            for file in files_of(&manifest) {
                let (digest, length) = self.published(&file.path)?;
                name_target(&mut targets, &file.path, &digest, length)?;
            }
        }
        channel.releases.push(Release { published_at: whole_seconds(signing.now), ..release.clone() });
        self.publish_channel(to, &channel, targets, signing)
    }

    /// A channel as it is published.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when there is none.
    pub fn channel(&self, name: &ChannelName) -> Result<Channel, PublishError> {
        let path = channel_path(name)?;
        let (digest, _) = self.published(&path).map_err(|_| PublishError::Channel {
            what: format!("channel {name}"),
            reason: "the repository does not have it".to_owned(),
        })?;
        let file = self.folder.target_path(&path, &digest);
        let bytes = fs::read(&file).map_err(PublishError::file("read", &file))?;
        if Digest::from(Sha256::of(&bytes)) != digest {
            return Err(PublishError::broken(path.to_string(), "its content is not the signed one"));
        }
        Channel::parse(&bytes).map_err(|source| PublishError::Format { what: "channel file", source })
    }

    fn channel_or_new(&self, name: &ChannelName, product: &Product) -> Result<Channel, PublishError> {
        let what = || format!("channel {name}");
        let channel = match self.channel(name) {
            Ok(channel) => channel,
            Err(PublishError::Channel { .. }) => Channel {
                format: channel::FORMAT,
                product: product.clone(),
                channel: name.clone(),
                releases: Vec::new(),
            },
            Err(error) => return Err(error),
        };
        if &channel.product != product {
            let reason = format!("it is for {}, the release for {product}", channel.product);
            return Err(PublishError::Channel { what: what(), reason });
        }
        Ok(channel)
    }

    /// The files of the role that signs a channel: a delegated one if there is, else the top-level one.
    pub(super) fn role_targets(&self, channel: &ChannelName) -> Targets {
        let document = self.current.delegated.get(&delegated_role_name(channel)).unwrap_or(&self.current.targets);
        document.signed.signed.clone()
    }

    pub(super) fn publish_channel(
        &mut self,
        name: &ChannelName,
        channel: &Channel,
        mut targets: Targets,
        signing: Signing<'_>,
    ) -> Result<Outcome, PublishError> {
        let bytes = channel.to_bytes().map_err(|source| PublishError::Format { what: "channel file", source })?;
        let path = channel_path(name)?;
        let digest = Digest::from(Sha256::of(&bytes));
        self.folder.write_target(&path, &digest, &bytes)?;
        name_target(&mut targets, &path, &digest, bytes.len() as u64)?;
        let version = targets.version.get();
        let role = delegated_role_name(name);
        let mut change = Change::default();
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
        self.finish(change, signing)
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

    /// Digest and length of a published file.
    fn published(&self, path: &TargetPath) -> Result<(Digest, u64), PublishError> {
        let name = target_name(path)?;
        let current = &self.current;
        let found = [&current.targets].into_iter().chain(current.delegated.values());
        let target = found
            .filter_map(|document| document.signed.signed.targets.get(&name))
            .next()
            .ok_or_else(|| PublishError::broken(path.to_string(), "no role names it"))?;
        let digest = <[u8; 32]>::try_from(&target.hashes.sha256[..])
            .map_err(|_| PublishError::broken(path.to_string(), "its digest is no SHA-256"))?;
        let digest = Digest::from_sha256(&digest);
        if !self.folder.has_target(path, &digest, target.length) {
            return Err(PublishError::broken(path.to_string(), "its file is missing or has another length"));
        }
        Ok((digest, target.length))
    }
}

fn entry(
    version: Version,
    manifests: BTreeMap<Architecture, manifest::File>,
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

fn channel_path(name: &ChannelName) -> Result<TargetPath, PublishError> {
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
