//! What the agent remembers over restarts and reboots because the machine can't show it.
//!
//! Losing the journal costs time (a slot is verified again), and the memory of failed releases. It can't make the agent
//! use a grant twice: a grant also names the boot it was given for, and a reboot ends that boot.

use bascule_api::{Digest, FailedRelease, ManualAction, RootHash, SlotName, Time, Version};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::StateMemory;
use super::boot::{LoaderMemory, PlacedImage};

/// Name of the journal's file in the state folder.
pub const JOURNAL_FILE: &str = "journal.json";
/// Longest journal in bytes.
pub const MAX_JOURNAL: u64 = 256 << 10;
/// The format this version writes. What a reader has to understand is said by [`Journal::must`], not by this number.
const FORMAT: u64 = 1;
/// Most failed releases that are remembered (`status.failedReleases` holds no more).
const MAX_FAILED: usize = 16;
/// Most manual actions that are remembered (`status.manualActions` holds no more).
const MAX_MANUAL: usize = 8;
/// Most releases whose manifest is remembered: both slots and some room.
const MAX_KNOWN: usize = 4;

/// A release whose manifest was verified here, by its root hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownRelease {
    /// Its verity root hash.
    pub root_hash: RootHash,
    /// Its version.
    pub version: Version,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Digest of its UKI.
    pub uki_digest: Digest,
    /// Size of its UKI in bytes.
    pub uki_size: u64,
    /// When a slot with it was read back whole.
    pub verified_at: Option<DateTime<Utc>>,
}

/// A slot that was armed and whose trial is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Armed {
    /// The slot.
    pub slot: SlotName,
    /// Its version.
    pub version: Version,
    /// Its root hash.
    pub root_hash: RootHash,
    /// The digest of its manifest, where that is known.
    pub digest: Option<Digest>,
    /// The boot in which it was armed.
    pub boot_id: String,
    /// The generation of the grant; 0 when a person did it on the node.
    pub generation: i64,
    /// How many tries it was given.
    pub tries: u32,
    /// When.
    pub at: DateTime<Utc>,
    /// The trial was given up on purpose, and why: the next boot is not a boot failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// The commit has begun: from here on, an entry without a counter is the commit's doing. Before, it is an entry that
    /// lost its counter (a directory entry of FAT that power loss tore), and the release is as much on trial as ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub committing: bool,
}

/// Since when the running release is committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// Its root hash.
    pub root_hash: RootHash,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// The journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Format version.
    pub format: u64,
    /// Counts the writes, so that an agent notices what a break-glass command wrote.
    pub revision: u64,
    /// The generation of the last grant used.
    pub last_grant: Option<i64>,
    /// The armed slot.
    pub armed: Option<Armed>,
    /// The committed release.
    pub committed: Option<Committed>,
    /// Releases whose manifest is known.
    pub known: Vec<KnownRelease>,
    /// Releases that failed here, oldest first.
    pub failed: Vec<FailedRelease>,
    /// Break-glass commands, oldest first.
    pub manual: Vec<ManualAction>,
    /// Whether the boot loader was seen to count down a trial; `None` before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counting_seen: Option<bool>,
    /// An armed entry that the boot loader did not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_taken: Option<NotTaken>,
    /// How the boot loader was set up when something was found wrong with it. Another set-up is judged anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader_setup: Option<String>,
    /// The last word of a person, by way of the operator, to try again what failed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried: Option<Time>,
    /// The release whose commit the OS image is to be told of still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_commit: Option<RootHash>,
    /// What is known of state versions.
    #[serde(default, skip_serializing_if = "StateMemory::is_empty")]
    pub state: StateMemory,
    /// Which boot loaders releases bring.
    #[serde(default, skip_serializing_if = "LoaderMemory::is_empty")]
    pub boot_loaders: LoaderMemory,
    /// Boot images that the agent placed or took over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placed: Vec<PlacedImage>,
    /// Names of fields that a reader must know, or leave the journal alone. Everything else that it does not know, it may
    /// pass over, and keeps when it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must: Vec<String>,
    /// What a newer agent wrote and this one does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An armed entry that the boot loader did not take: it came up with something else, all tries left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotTaken {
    /// The release that was armed.
    pub version: Version,
    /// When that was seen last.
    pub at: DateTime<Utc>,
    /// How often.
    pub times: u32,
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not what this agent writes.
    #[error("the journal is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Written by a newer agent that means something by it which this one does not know.
    #[error("a newer agent ran here: the journal's {field} has to be understood, and this agent does not know it")]
    Newer {
        /// The field.
        field: String,
        /// What this agent knows of the rest, for whoever has to go by less than all.
        rest: Box<Journal>,
    },
}

impl Journal {
    /// Reads a journal.
    ///
    /// # Errors
    /// [`JournalError`]; the caller sets the file aside and begins a new one.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        let journal: Self = serde_json::from_slice(bytes).map_err(JournalError::Damaged)?;
        match journal.must.iter().find(|name| journal.unknown.contains_key(*name)).cloned() {
            Some(field) => Err(JournalError::Newer { field, rest: Box::new(journal) }),
            None => Ok(journal),
        }
    }

    /// The bytes to write.
    ///
    /// # Errors
    /// Never in practice: every field can be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, JournalError> {
        let current = Self { format: FORMAT, ..self.clone() };
        serde_json::to_vec_pretty(&current).map_err(JournalError::Damaged)
    }

    /// The release with this root hash.
    pub fn known(&self, root_hash: &RootHash) -> Option<&KnownRelease> {
        self.known.iter().find(|known| &known.root_hash == root_hash)
    }

    /// Remembers a release, and forgets the oldest that is too many.
    pub fn remember(&mut self, release: KnownRelease) {
        self.known.retain(|known| known.root_hash != release.root_hash);
        self.known.push(release);
        let surplus = self.known.len().saturating_sub(MAX_KNOWN);
        self.known.drain(..surplus);
    }

    /// Whether a release failed here.
    pub fn failed(&self, digest: &Digest) -> Option<&FailedRelease> {
        self.failed.iter().find(|failed| &failed.digest == digest)
    }

    /// Remembers a failure. The first failure of a release is the one that tells.
    pub fn fail(&mut self, failed: FailedRelease) {
        if self.failed(&failed.digest).is_none() {
            self.failed.push(failed);
            let surplus = self.failed.len().saturating_sub(MAX_FAILED);
            self.failed.drain(..surplus);
        }
    }

    /// A person may try again what failed here, or what the boot loader did not take.
    pub fn try_again(&mut self, what: impl Fn(&FailedRelease) -> bool) {
        self.failed.retain(|failed| !what(failed));
        self.not_taken = None;
        self.counting_seen = self.counting_seen.filter(|works| *works);
    }

    /// Remembers a break-glass command.
    pub fn record_manual(&mut self, action: ManualAction) {
        self.manual.push(action);
        let surplus = self.manual.len().saturating_sub(MAX_MANUAL);
        self.manual.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_has_to_be_understood() {
        let journal = Journal { last_grant: Some(3), ..Journal::default() };
        let read = Journal::parse(&journal.to_bytes().unwrap()).unwrap();
        assert_eq!((read.last_grant, read.format), (Some(3), FORMAT));
        assert!(matches!(Journal::parse(b"{"), Err(JournalError::Damaged(_))));
        let mut newer = serde_json::to_value(&journal).unwrap();
        newer["sealed"] = serde_json::json!({ "by": "another rule" });
        newer["must"] = serde_json::json!(["failed", "sealed"]);
        let refused = Journal::parse(&serde_json::to_vec(&newer).unwrap());
        assert!(
            matches!(refused, Err(JournalError::Newer { field, rest }) if field == "sealed" && rest.last_grant == Some(3))
        );
    }

    /// Found by fuzzing: each time that it was written such a number changed by a last digit.
    #[test]
    fn a_number_of_a_newer_agent_is_written_as_it_was_read() {
        let journal = br#"{"format":1,"revision":0,"known":[],"failed":[],"manual":[],"leases":[444444444444144444444444444444444444]}"#;
        let first = Journal::parse(journal).unwrap().to_bytes().unwrap();
        let mut written = first.clone();
        for _ in 0..8 {
            written = Journal::parse(&written).unwrap().to_bytes().unwrap();
        }
        assert_eq!(written, first);
    }

    #[test]
    fn a_release_with_a_newer_agent_and_the_way_back_lose_nothing() {
        // What the agent of the release before this one wrote; it knew neither of images nor of what must be understood.
        let older = br#"{"format":1,"revision":7,"lastGrant":4,"armed":null,"committed":null,"known":[],"failed":[],
            "manual":[],"countingSeen":true}"#;
        let mut journal = Journal::parse(older).unwrap();
        assert_eq!((journal.last_grant, journal.counting_seen, journal.placed.len()), (Some(4), Some(true), 0));
        // A newer one adds a field of its own, and this agent writes in between.
        journal.unknown.insert("leases".to_owned(), serde_json::json!([1, 2]));
        let newer = Journal { format: 2, ..journal };
        let back = Journal::parse(&serde_json::to_vec(&newer).unwrap()).unwrap();
        let written = Journal { last_grant: Some(5), ..back }.to_bytes().unwrap();
        let forward: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&forward["leases"], &forward["lastGrant"]), (&serde_json::json!([1, 2]), &serde_json::json!(5)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut journal = Journal::default();
        for at in 0..40_u8 {
            journal.remember(KnownRelease {
                root_hash: RootHash::from_bytes(&[at; 32]),
                version: Version::parse("1.0").unwrap(),
                digest: Digest::from_sha256(&[at; 32]),
                uki_digest: Digest::from_sha256(&[at; 32]),
                uki_size: 1,
                verified_at: None,
            });
        }
        assert_eq!(journal.known.len(), MAX_KNOWN);
        assert!(journal.known(&RootHash::from_bytes(&[39; 32])).is_some());
        assert!(journal.known(&RootHash::from_bytes(&[0; 32])).is_none());
    }
}
