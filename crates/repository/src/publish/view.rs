//! A repository as its keepers look at it: all that is signed, with keys and thresholds, and what waits. Signatures are verified;
//! expiry is shown and not judged, since an expired repository is the one that somebody has to look at.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bascule_image::release::channel::{self, Channel, Release};
use bascule_image::release::manifest::{self, Manifest};
use bascule_image::release::names::TargetPath;
use bascule_names::{Architecture, ChannelName, Digest};
use chrono::{DateTime, Utc};
use serde_json::Value;
use tempfile::TempDir;
use url::Url;

use super::error::PublishError;
use super::folder::Folder;
use super::pending::{self, WaitingChange};
use super::standing::{self, RoleStanding};
use super::state::{Current, RoleProblem};
use crate::error::in_one_line;
use crate::http::HttpClient;
use crate::limits;
use crate::repository::SIGNED_AT;
use crate::tuf;

/// How long one small file may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of delegated roles, all together, that are fetched from a server.
const MAX_ROLES: u64 = 256 << 20;

/// A verified repository, whatever its age.
#[derive(Debug)]
pub struct View {
    current: Current,
    folder: Folder,
    /// Where files come from that are not in the folder.
    remote: Option<Remote>,
}

#[derive(Debug)]
struct Remote {
    client: HttpClient,
    base: Url,
    copy: TempDir,
}

impl View {
    /// Looks at a folder, without locking it. Its own first root is trusted where no other is given.
    ///
    /// # Errors
    /// [`PublishError::Folder`] when it holds no repository, [`PublishError::Broken`] for anything that does not verify.
    pub fn of_folder(path: &Path, trust_root: Option<Vec<u8>>) -> Result<Self, PublishError> {
        let folder = Folder::look_at(path);
        let current = match trust_root {
            Some(root) => Current::load_from(&folder, root, &BTreeMap::new())?,
            None => Current::load(&folder)?,
        };
        let mut view = Self { current, folder, remote: None };
        view.note_unreadable_channels();
        Ok(view)
    }

    /// Looks at a server's repository.
    ///
    /// # Errors
    /// As [`Self::of_folder`]; [`PublishError::Verify`] when something can't be fetched.
    pub async fn of_address(client: HttpClient, base: &Url, trust_root: Vec<u8>) -> Result<Self, PublishError> {
        let copy = tempfile::tempdir().map_err(PublishError::file("make", &std::env::temp_dir()))?;
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let remote = Remote { client, base, copy };
        let unfetched = remote.fetch_metadata(&trust_root).await?;
        let folder = Folder::look_at(remote.copy.path());
        let current = Current::load_from(&folder, trust_root, &unfetched)?;
        let mut view = Self { current, folder, remote: Some(remote) };
        for name in view.current.channel_names() {
            let Err(error) = view.fetch_channel(&name).await else { continue };
            // A team's channel is its own trouble.
            let Some(role) = view.current.role_of(&name).map(str::to_owned) else { return Err(error) };
            let reason = format!("channel {name} can't be fetched: {}", in_one_line(&error));
            view.note(role, reason);
        }
        view.note_unreadable_channels();
        Ok(view)
    }

    async fn fetch_channel(&self, name: &ChannelName) -> Result<(), PublishError> {
        let path = super::release::channel_path(name)?;
        match self.current.named(name, &path)? {
            Some((digest, _)) => self.fetch(&path, &digest, channel::MAX_LENGTH as u64).await,
            None => Ok(()),
        }
    }

    /// A role that verifies may name a channel file that is missing, or is none.
    fn note_unreadable_channels(&mut self) {
        for name in self.current.channel_names() {
            let Some(role) = self.current.role_of(&name).map(str::to_owned) else { continue };
            if let Err(error) = self.current.channel(&self.folder, &name) {
                let reason = format!("channel {name} can't be read: {}", in_one_line(&error));
                self.note(role, reason);
            }
        }
    }

    /// What keeps nodes from a role's channel; the first thing that was found is the cause of what is found after it.
    fn note(&mut self, role: String, reason: String) {
        let problems = &mut self.current.problems;
        if !problems.iter().any(|known| known.role == role) {
            problems.push(RoleProblem { role, reason, nodes_refuse: true });
        }
    }

    /// How every role stands.
    #[must_use]
    pub fn roles(&self) -> Vec<RoleStanding> {
        standing::of_all(&self.current)
    }

    /// Delegated roles that can't be used, and why. Each concerns its own channel alone.
    #[must_use]
    pub fn problems(&self) -> &[RoleProblem] {
        &self.current.problems
    }

    /// Whether a channel is signed by a team of its own, so that its trouble is nobody else's.
    #[must_use]
    pub fn has_own_role(&self, channel: &ChannelName) -> bool {
        self.current.role_of(channel).is_some()
    }

    /// When the timestamp was signed, where the publisher wrote it (Bascule does).
    #[must_use]
    pub fn signed_at(&self) -> Option<DateTime<Utc>> {
        let text = self.current.timestamp.signed.signed._extra.get(SIGNED_AT)?.as_str()?;
        DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
    }

    /// The channels, sorted; also those with keys of their own that have no release yet.
    #[must_use]
    pub fn channel_names(&self) -> Vec<ChannelName> {
        let delegations = self.current.targets.signed.signed.delegations.iter();
        let roles = delegations.flat_map(|delegations| &delegations.roles);
        let own = roles.filter_map(|role| ChannelName::parse(role.name.strip_prefix("channel-")?).ok());
        let mut names: Vec<ChannelName> = self.current.channel_names().into_iter().chain(own).collect();
        names.sort();
        names.dedup();
        names
    }

    /// A channel.
    ///
    /// # Errors
    /// [`PublishError::NoChannel`], or what keeps it from being read.
    pub fn channel(&self, name: &ChannelName) -> Result<Channel, PublishError> {
        self.current.channel(&self.folder, name)
    }

    /// The manifest of a release, and its digest.
    ///
    /// # Errors
    /// [`PublishError::Channel`] when the release does not exist for the architecture.
    pub async fn manifest(
        &self,
        release: &Release,
        architecture: Architecture,
    ) -> Result<(Digest, Manifest), PublishError> {
        let Some(file) = release.manifests.get(&architecture) else {
            let known: Vec<&str> = release.manifests.keys().map(|known| known.as_str()).collect();
            let reason = format!("it does not exist for {architecture}; it exists for: {}", known.join(", "));
            return Err(PublishError::Channel { what: format!("release {}", release.version), reason });
        };
        let limit = manifest::MAX_LENGTH as u64;
        self.fetch(&file.path, &file.digest, limit).await?;
        let bytes = self.folder.read_target(&file.path, &file.digest, limit)?;
        let manifest = Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
        Ok((file.digest.clone(), manifest))
    }

    /// What waits for signatures; nothing on a server, to which it is not uploaded.
    ///
    /// # Errors
    /// [`PublishError::Broken`] when something in `pending/` can't be read.
    pub fn waiting(&self, now: DateTime<Utc>) -> Result<Vec<WaitingChange>, PublishError> {
        pending::waiting(&self.folder, &self.current, now)
    }

    async fn fetch(&self, path: &TargetPath, digest: &Digest, limit: u64) -> Result<(), PublishError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let relative = self.folder.relative_target_path(path, digest);
        remote.fetch(&relative.display().to_string(), limit).await.map(drop)
    }
}

impl Remote {
    /// Fetches a file into the copy, and gives its bytes; they are judged when the copy is read.
    async fn fetch(&self, relative: &str, limit: u64) -> Result<Vec<u8>, PublishError> {
        let url = self.base.join(relative).map_err(|error| PublishError::broken(relative, error))?;
        let bytes = self.client.get_small(&url, limit, PATIENCE).await.map_err(crate::Error::Fetch)?;
        let path = self.copy.path().join(relative);
        let parent = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(parent).map_err(PublishError::file("make", parent))?;
        std::fs::write(&path, &bytes).map_err(PublishError::file("write", &path))?;
        Ok(bytes.to_vec())
    }

    /// All metadata files that the newest timestamp leads to. Only their names are taken from what is not verified yet. Gives
    /// the delegated roles that could not be fetched, and why.
    async fn fetch_metadata(&self, trust_root: &[u8]) -> Result<BTreeMap<String, String>, PublishError> {
        let first = version_in(parse("the trust root", trust_root)?.get("signed").unwrap_or(&Value::Null));
        for version in first.saturating_add(1)..=first.saturating_add(limits::MAX_ROOT_UPDATES) {
            match self.fetch(&format!("metadata/{version}.root.json"), limits::MAX_ROOT).await {
                Ok(_) => {}
                Err(PublishError::Verify(crate::Error::Fetch(error))) if error.is_not_found() => break,
                Err(error) => return Err(error),
            }
        }
        let stamp = parse("timestamp.json", &self.fetch("metadata/timestamp.json", limits::MAX_TIMESTAMP).await?)?;
        let version = version_in(stamp.pointer("/signed/meta/snapshot.json").unwrap_or(&Value::Null));
        let name = format!("metadata/{version}.snapshot.json");
        let snapshot = parse(&name, &self.fetch(&name, limits::MAX_SNAPSHOT).await?)?;
        let roles = snapshot.pointer("/signed/meta").and_then(Value::as_object).cloned().unwrap_or_default();
        let version_of = |role: &str| roles.get(&format!("{role}.json")).map(version_in);
        let name = format!("metadata/{}.targets.json", version_of("targets").unwrap_or_default());
        let targets = parse(&name, &self.fetch(&name, limits::MAX_TARGETS).await?)?;
        let delegated = targets.pointer("/signed/delegations/roles").and_then(Value::as_array);
        let names = delegated.into_iter().flatten().filter_map(|role| role.get("name")?.as_str());
        let mut unfetched = BTreeMap::new();
        let mut left = MAX_ROLES;
        // A top-level role that delegates to more is refused when the copy is read.
        for role in names.take(limits::MAX_DELEGATIONS) {
            // One that the snapshot does not name is told of when the copy is read.
            let Some(version) = version_of(role) else { continue };
            if left < limits::MAX_TARGETS {
                return Err(PublishError::broken("metadata", format!("its roles have more than {MAX_ROLES} bytes")));
            }
            let file = format!("metadata/{version}.{}.json", tuf::quote(role));
            match self.fetch(&file, limits::MAX_TARGETS).await {
                Ok(bytes) => left = left.saturating_sub(bytes.len() as u64),
                Err(error) => drop(unfetched.insert(role.to_owned(), in_one_line(&error))),
            }
        }
        Ok(unfetched)
    }
}

fn parse(name: &str, bytes: &[u8]) -> Result<Value, PublishError> {
    serde_json::from_slice(bytes).map_err(|error| PublishError::broken(name, error))
}

fn version_in(value: &Value) -> u64 {
    value.get("version").and_then(Value::as_u64).unwrap_or_default()
}
