//! What releases make of the machine's state, and which of them may run on it.
//!
//! A release declares a number ([`crate::Facts::state_version`], the manifest's `stateVersion`); none counts as 0. The machine's
//! state was *used with* a number once a release that declares it was committed: before that a trial may be taken back at any
//! moment, by the boot loader too, so that it must leave the state as its predecessor knows it.

use bascule_api::RootHash;
use serde::{Deserialize, Serialize};

use super::{Facts, Journal, ReleaseTarget};

/// Most releases whose state version is remembered: both slots and some room.
const MAX_RELEASES: usize = 4;

/// What is remembered of state versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateMemory {
    /// What the machine's state was used with; 0 where no release declared anything.
    #[serde(default)]
    used: u32,
    /// What releases declare, oldest first. One that is not among them declares nothing that is known.
    #[serde(default)]
    releases: Vec<Declared>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Declared {
    root_hash: RootHash,
    version: u32,
}

impl StateMemory {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the machine's state was used with, if any release declared something.
    pub const fn used(&self) -> Option<u32> {
        if self.used > 0 { Some(self.used) } else { None }
    }

    /// What a release declares, as far as is known.
    pub fn of(&self, root_hash: &RootHash) -> Option<u32> {
        self.releases.iter().find(|known| known.root_hash == *root_hash).map(|known| known.version)
    }

    /// Remembers what a release declares, and forgets the oldest that is too many and does not run.
    pub fn note(&mut self, root_hash: &RootHash, declared: Option<u32>, running: &RootHash) {
        if self.of(root_hash) == declared {
            return;
        }
        self.releases.retain(|known| known.root_hash != *root_hash);
        self.releases.extend(declared.map(|version| Declared { root_hash: root_hash.clone(), version }));
        while self.releases.len() > MAX_RELEASES
            && let Some(oldest) = self.releases.iter().position(|known| known.root_hash != *running)
        {
            self.releases.remove(oldest);
        }
    }

    /// A release runs for good that nobody may have asked about its state: the number never goes down by it.
    pub fn use_at_least(&mut self, declared: Option<u32>) {
        self.used = self.used.max(declared.unwrap_or(0));
    }

    /// A release is committed that was asked about its state when it was armed: where it declares less, somebody accepted that.
    pub fn use_with(&mut self, declared: Option<u32>) {
        self.used = declared.unwrap_or(0);
    }
}

/// What the running release declares: its os-release, and where that is silent the signed manifest that it was staged by. An image
/// that is built elsewhere may be declared by that alone.
pub(super) fn of_running(journal: &Journal, facts: &Facts) -> Option<u32> {
    facts.state_version.or_else(|| journal.state.of(&facts.root_hash))
}

/// Why a release must not be armed without a person's word, in a sentence.
pub(super) fn refusal(journal: &Journal, target: &ReleaseTarget) -> Option<String> {
    let made_for = journal.state.of(&target.root_hash).unwrap_or(0);
    let used = journal.state.used().filter(|used| made_for < *used)?;
    Some(format!(
        "{} is made for state version {made_for}, and this machine was used with {used}: it may not understand what is there; \
         where it is known to, go back with --accept-state",
        target.version
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{SlotName, Version};

    fn root(byte: u8) -> RootHash {
        RootHash::from_bytes(&[byte; 32])
    }

    fn refuses(memory: &StateMemory, byte: u8) -> bool {
        let journal = Journal { state: memory.clone(), ..Journal::default() };
        let Ok(version) = Version::parse("1.0") else { return false };
        let target = ReleaseTarget { slot: SlotName::B, version, root_hash: root(byte), digest: None, uki: None };
        refusal(&journal, &target).is_some()
    }

    #[test]
    fn who_declares_nothing_is_never_refused_where_nobody_does() {
        let mut memory = StateMemory::default();
        memory.note(&root(1), None, &root(1));
        memory.use_at_least(None);
        assert!(memory.is_empty() && !refuses(&memory, 1) && !refuses(&memory, 2));
    }

    #[test]
    fn the_number_goes_up_by_itself_and_down_only_by_what_was_asked_about() {
        let mut memory = StateMemory::default();
        memory.note(&root(1), Some(1), &root(1));
        memory.note(&root(2), Some(2), &root(1));
        memory.use_with(Some(2));
        assert!(refuses(&memory, 1) && !refuses(&memory, 2), "an older one");
        assert!(refuses(&memory, 3), "and one of which nothing is known");
        memory.use_at_least(Some(1));
        assert_eq!(memory.used(), Some(2), "the boot loader's menu is no acceptance");
        memory.use_with(Some(1));
        assert!(!refuses(&memory, 1) && !refuses(&memory, 2), "there and on again");
        memory.use_with(None);
        assert_eq!((memory.used(), refuses(&memory, 3)), (None, false));
    }

    /// Where the manifest alone declares it nobody else knows, and it is what the machine goes back to.
    #[test]
    fn what_runs_is_not_forgotten_for_what_was_only_staged() {
        let mut memory = StateMemory::default();
        memory.note(&root(1), Some(7), &root(1));
        memory.use_with(Some(7));
        for byte in 2..9 {
            memory.note(&root(byte), Some(7), &root(1));
        }
        assert_eq!((memory.of(&root(1)), memory.of(&root(8))), (Some(7), Some(7)));
        assert!(memory.releases.len() <= MAX_RELEASES && !refuses(&memory, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_survives_the_journal() {
        let mut journal = Journal::default();
        for byte in 0..9 {
            journal.state.note(&root(byte), Some(u32::from(byte) + 1), &root(byte));
        }
        journal.state.use_with(Some(9));
        assert_eq!((journal.state.of(&root(4)), journal.state.of(&root(5))), (None, Some(6)));
        let read = Journal::parse(&journal.to_bytes().unwrap()).unwrap();
        assert_eq!(read.state, journal.state);
        let plain = Journal::default().to_bytes().unwrap();
        assert!(!String::from_utf8(plain).unwrap().contains("state"), "an older agent reads what it wrote");
    }
}
