//! Whether the boot loader itself is replaced by the one that the running release brings, and how.
//!
//! The release's signed manifest says that it brings one, and which. It lies in the running image, so nothing is fetched for it. It is
//! put in place once the release is committed, and never while a trial may still be taken back: what comes back has to find
//! the boot loader that it was left with, or a newer one. On an ESP it has two places; one is whole and durable before the other is
//! touched. What is no systemd-boot there, and what the machine was not started from, is somebody else's.

use std::cmp::Ordering;

use bascule_api::{Architecture, BootControlBackend, Digest, NodeError, RootHash, compare_versions};
use bascule_image::boot_loader::{in_fallback, in_systemd, version_in};
use bascule_image::release::manifest::BootLoader;
use serde::{Deserialize, Serialize};

use super::plan::BOOT_MARGIN;
use super::{BootPartition, LoaderFacts};
use crate::{Entry, Facts, State};

/// Most releases whose boot loader is remembered: both slots and some room.
const MAX_RELEASES: usize = 4;
/// Names under which a boot loader is laid down beside the one that is in place. Each is one directory entry on FAT, which power loss
/// can't tear, and none that firmware looks for.
const BESIDE: [&str; 4] = ["BASCULE.NEW", "BASCULE.NE2", "BASCULE.NE3", "BASCULE.NE4"];

/// A place of the boot loader on an ESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoaderPlace {
    /// Where a boot variable of the firmware names it.
    Systemd,
    /// Where firmware looks on a disk that no boot variable names.
    Fallback,
}

impl LoaderPlace {
    /// Both, in the order in which they are changed.
    pub const ALL: [Self; 2] = [Self::Systemd, Self::Fallback];

    /// Folder and name.
    pub fn file(self, architecture: Architecture) -> (&'static str, String) {
        match self {
            Self::Systemd => in_systemd(architecture),
            Self::Fallback => in_fallback(architecture),
        }
    }
}

/// What was found in such a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoaderContent {
    /// systemd-boot, of this version.
    SystemdBoot(String),
    /// A file without a byte: a check of the file system cut it.
    Empty,
    /// Anything else.
    Other,
    /// It could not be read. Why.
    Unread(String),
}

/// A file in a place of the boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderCopy {
    /// Which place.
    pub place: LoaderPlace,
    /// Its path, as the file system spells it.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// What was read of it.
    pub content: LoaderContent,
    /// Digest of all of it, where it was read: not of what is longer than any boot loader, and of what lies beside only where it has the
    /// length of what is in place.
    pub digest: Option<Digest>,
}

/// Whether a file in a folder of the boot loader is one that was laid down beside it.
pub fn is_beside(name: &str) -> bool {
    BESIDE.iter().any(|beside| name.eq_ignore_ascii_case(beside))
}

/// What must be found before a file is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedLoader {
    /// Its length.
    pub size: u64,
    /// Digest of all of it.
    pub digest: Option<Digest>,
}

/// One change, durable when it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoaderChange {
    /// Lay the boot loader down under a name that no file has, read it back, and put it in the place of a file: at each instant that
    /// is whole what it was, or whole the new one.
    Replace {
        /// The file.
        path: String,
        /// Where the new one is laid down, in the same folder.
        beside: String,
        /// What must be found at `path`.
        expect: ExpectedLoader,
    },
    /// Remove what was laid down beside.
    Remove {
        /// Its path.
        path: String,
        /// What must be found there.
        expect: ExpectedLoader,
    },
}

/// The changes in one place, and the boot loader that they are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderStep {
    /// What is put in place.
    pub loader: BootLoader,
    /// In this order.
    pub changes: Vec<LoaderChange>,
}

/// Which boot loaders releases bring, by root hash, oldest first. It comes from their signed manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoaderMemory(Vec<Brought>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Brought {
    root_hash: RootHash,
    loader: BootLoader,
}

impl LoaderMemory {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a release brings, as far as is known.
    pub fn of(&self, root_hash: &RootHash) -> Option<&BootLoader> {
        self.0.iter().find(|brought| brought.root_hash == *root_hash).map(|brought| &brought.loader)
    }

    /// Remembers what a release brings, and forgets the oldest that is too many and does not run.
    pub fn note(&mut self, root_hash: &RootHash, loader: Option<&BootLoader>, running: &RootHash) {
        if self.of(root_hash) == loader {
            return;
        }
        self.0.retain(|brought| brought.root_hash != *root_hash);
        let brought = |loader: &BootLoader| Brought { root_hash: root_hash.clone(), loader: loader.clone() };
        self.0.extend(loader.map(brought));
        while self.0.len() > MAX_RELEASES
            && let Some(oldest) = self.0.iter().position(|brought| brought.root_hash != *running)
        {
            self.0.remove(oldest);
        }
    }
}

/// Why the boot loader that a release brings is not put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBecause {
    /// It will be: the release is not committed, or another one is about to be booted.
    NotCommitted,
    /// It is older than what is there.
    Older,
    /// What is there, or what started the machine, is no systemd-boot.
    Foreign,
    /// The machine was started from another place.
    StartedElsewhere,
    /// Something could not be read.
    Unread,
    /// There is no room for it, or nothing can be written.
    NoRoom,
}

impl LeftBecause {
    /// As the reason of a condition.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotCommitted => "NotCommitted",
            Self::Older => "Older",
            Self::Foreign => "Foreign",
            Self::StartedElsewhere => "StartedElsewhere",
            Self::Unread => "Unread",
            Self::NoRoom => NodeError::Space.as_str(),
        }
    }
}

/// What becomes of the boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the one that the running release brings. What of it is somebody else's, in words.
    Current(Option<String>),
    /// It is left as it is, and why.
    Left(LeftBecause, String),
    /// The next step.
    Replace(LoaderStep),
}

/// Says what becomes of it; `None` where the running release brings none.
pub(crate) fn judge(state: &State, facts: &Facts) -> Option<Verdict> {
    let brought = state.journal.as_ref()?.boot_loaders.of(&facts.root_hash)?;
    Some(judge_brought(state, facts, brought).unwrap_or_else(|(because, why)| Verdict::Left(because, why)))
}

type Left = (LeftBecause, String);

fn judge_brought(state: &State, facts: &Facts, brought: &BootLoader) -> Result<Verdict, Left> {
    let running = started_by(facts)?;
    let copies = readable(&facts.boot.inventory.loader)?;
    let version = |copy: &&LoaderCopy| match &copy.content {
        LoaderContent::SystemdBoot(version) => Some(version.clone()),
        _ => None,
    };
    let in_place: Vec<String> = copies.iter().filter_map(version).collect();
    let newest = in_place.iter().map(String::as_str).fold(running, |newest, version| {
        if compare_versions(version, newest) == Ordering::Greater { version } else { newest }
    });
    if in_place.is_empty() {
        let why =
            "no place of the boot loader on the ESP has systemd-boot: what starts this machine is somebody else's";
        return Err((LeftBecause::Foreign, why.to_owned()));
    }
    let foreign: Vec<&str> =
        copies.iter().filter(|copy| copy.content == LoaderContent::Other).map(|copy| copy.path.as_str()).collect();
    if compare_versions(&brought.version, newest) == Ordering::Less && !brought.downgrade {
        let why = format!(
            "{} brings systemd-boot {}, and this machine has {newest}: it keeps the newer one",
            facts.version, brought.version
        );
        return Err((LeftBecause::Older, why));
    }
    let is_in_doubt = |copy: &LoaderCopy| state.loader_in_doubt.as_ref() == Some(&copy.path);
    let needed =
        |copy: &&LoaderCopy| changes(&facts.boot.inventory.loader, copy, brought, is_in_doubt(copy)).transpose();
    let Some(changes) = copies.iter().find_map(needed).transpose()? else {
        let words = format!("{} is no systemd-boot, and is left alone", foreign.join(", "));
        return Ok(Verdict::Current((!foreign.is_empty()).then_some(words)));
    };
    has_room(facts, brought, &changes)?;
    is_settled(state, facts, brought)?;
    Ok(Verdict::Replace(LoaderStep { loader: brought.clone(), changes }))
}

/// The version of the boot loader that started the machine, if that came from the places that are looked at.
fn started_by(facts: &Facts) -> Result<&str, Left> {
    let loader = &facts.boot.inventory.loader;
    let foreign =
        |what: &str| (LeftBecause::Foreign, format!("this machine was started by {what}, not by systemd-boot"));
    if facts.boot.backend != BootControlBackend::SystemdBoot {
        return Err(foreign("a boot loader that goes by the attributes of partitions"));
    }
    let unread =
        |what: &str| (LeftBecause::Unread, format!("{what} is not known, so nothing is changed: {}", reasons(loader)));
    let info = loader.info.as_deref().ok_or_else(|| unread("which boot loader started this machine"))?;
    let version = version_in(info).ok_or_else(|| foreign(info))?;
    let esp = facts.boot.inventory.partitions.iter().find(|found| found.partition == BootPartition::Esp);
    let (Some(device), Some(uuid)) = (loader.device, esp.and_then(|esp| esp.uuid)) else {
        return Err(unread("from which partition the boot loader came"));
    };
    if device != uuid {
        let why = format!("the boot loader came from partition {device}, and the ESP that is mounted is {uuid}");
        return Err((LeftBecause::StartedElsewhere, why));
    }
    if let Some(why) = &loader.image_unread {
        return Err((LeftBecause::Unread, format!("which file the boot loader was started from is not known: {why}")));
    }
    // Firmware writes `\EFI\systemd\systemd-bootx64.efi`, some with a separator too many.
    let parts = |path: &str| path.split(['\\', '/']).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let ours = |image: &str| {
        LoaderPlace::ALL.into_iter().any(|place| {
            let (folder, name) = place.file(facts.architecture);
            image.eq_ignore_ascii_case(&format!("{folder}/{name}"))
        })
    };
    match loader.image.as_deref().map(parts) {
        Some(image) if !ours(&image) => {
            let why = format!("the boot loader was started from {image}, which is somebody else's to replace");
            Err((LeftBecause::StartedElsewhere, why))
        }
        _ => Ok(version),
    }
}

fn reasons(loader: &LoaderFacts) -> String {
    if loader.unread.is_empty() { "it does not say so".to_owned() } else { loader.unread.join("; ") }
}

/// The files in both places, in order, if all of them and what lies beside could be read.
fn readable(loader: &LoaderFacts) -> Result<Vec<&LoaderCopy>, Left> {
    let unread = loader.copies.iter().chain(&loader.beside).find_map(|copy| match &copy.content {
        LoaderContent::Unread(why) => Some(format!("{}: {why}", copy.path)),
        _ => None,
    });
    if let Some(why) = unread {
        return Err((LeftBecause::Unread, format!("not all of the boot loader could be read: {why}")));
    }
    Ok(LoaderPlace::ALL.into_iter().filter_map(|place| loader.copies.iter().find(|copy| copy.place == place)).collect())
}

/// What has to be done in a place; `None` if nothing.
///
/// What an earlier try laid down beside may lie on the clusters of what is in place, if they are alike: power was lost between the two
/// halves of putting it there, and removing it would free what the machine starts from. Then a copy with clusters of its own takes that place first.
///
/// A place is in doubt where putting something there failed: the page cache may have what the medium never got, and a later flush says
/// nothing of it. It is done again, which writes all of it anew.
fn changes(
    loader: &LoaderFacts,
    copy: &LoaderCopy,
    brought: &BootLoader,
    in_doubt: bool,
) -> Result<Option<Vec<LoaderChange>>, Left> {
    if copy.content == LoaderContent::Other {
        return Ok(None);
    }
    let alike = |beside: &&LoaderCopy| {
        beside.size == copy.size && copy.size > 0 && beside.digest.is_some() && beside.digest == copy.digest
    };
    let here = loader.beside.iter().filter(|beside| beside.place == copy.place);
    let (shared, alone): (Vec<&LoaderCopy>, Vec<&LoaderCopy>) = here.partition(alike);
    let is_new = copy.digest.as_ref() == Some(&brought.digest) && copy.size == brought.size;
    let expect = |found: &LoaderCopy| ExpectedLoader { size: found.size, digest: found.digest.clone() };
    let remove = |found: &LoaderCopy| LoaderChange::Remove { path: found.path.clone(), expect: expect(found) };
    let mut changes: Vec<LoaderChange> = alone.into_iter().map(remove).collect();
    if !is_new || in_doubt || !shared.is_empty() {
        let (folder, _) = copy.path.rsplit_once('/').unwrap_or_default();
        let taken = |name: &&str| shared.iter().any(|found| found.path.to_ascii_uppercase().ends_with(*name));
        // Each power loss in the way out of two names on one file may take one more of them.
        let Some(name) = BESIDE.into_iter().find(|name| !taken(name)) else {
            let why = format!(
                "all names under which a boot loader is laid down in {folder} are taken by files that equal the one in place: remove them"
            );
            return Err((LeftBecause::NoRoom, why));
        };
        let beside = format!("{folder}/{name}");
        changes.push(LoaderChange::Replace { path: copy.path.clone(), beside, expect: expect(copy) });
    }
    changes.extend(shared.into_iter().map(remove));
    Ok((!changes.is_empty()).then_some(changes))
}

fn has_room(facts: &Facts, brought: &BootLoader, changes: &[LoaderChange]) -> Result<(), Left> {
    let inventory = &facts.boot.inventory;
    let no_room = |why: String| Err((LeftBecause::NoRoom, why));
    if inventory.partitions.iter().any(|found| found.partition == BootPartition::Esp && found.read_only) {
        return no_room("the ESP is mounted read-only".to_owned());
    }
    let free = inventory.space(BootPartition::Esp).free;
    let needed = brought.size.saturating_add(BOOT_MARGIN / 4);
    // What an earlier try left goes before anything is laid down, and must not keep that from being done.
    let mut room = free;
    for change in changes {
        match change {
            LoaderChange::Remove { expect, .. } => room = room.saturating_add(expect.size),
            LoaderChange::Replace { .. } if room < needed => {
                return no_room(format!(
                    "the boot loader of {} needs {needed} bytes on the ESP, which has {free} free: remove what does not belong there",
                    facts.version
                ));
            }
            LoaderChange::Replace { .. } => return Ok(()),
        }
    }
    Ok(())
}

/// Nothing of what may have to be gone back to is changed under a release that may be left.
fn is_settled(state: &State, facts: &Facts, brought: &BootLoader) -> Result<(), Left> {
    let journal = state.journal.as_ref();
    let committed = journal.and_then(|journal| journal.committed.as_ref());
    let is_committed = committed.is_some_and(|committed| committed.root_hash == facts.root_hash);
    let is_armed = journal.is_some_and(|journal| journal.armed.is_some())
        || matches!(facts.inactive_slot().entry, Entry::Trying { .. });
    if is_committed && !is_armed && !state.is_trial(facts) {
        return Ok(());
    }
    let why = format!("systemd-boot {} is put in place when {} is committed", brought.version, facts.version);
    Err((LeftBecause::NotCommitted, why))
}

#[cfg(test)]
mod tests;
