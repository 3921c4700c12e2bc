//! A policy's memory: failures, blocked releases, timings, history. It lives in the policy's status, so that it
//! survives restarts of everything, and is written before anything is done that rests on it.

use crate::plan::{Judged, MemoryChange};
use bascule_api::{
    BlockedRelease, ClusterMember, CompleteWave, CompleteWaves, HistoryEntry, Maintenance, NodeError, Outcome,
    PolicyFailure, Retry, Time, Timings, UpdatePolicyStatus, Version, conditions::reason,
};
use std::collections::BTreeMap;

/// `BlockedRelease::by` of a release that the failure threshold blocked.
pub(super) const BY_THRESHOLD: &str = reason::FAILURE_THRESHOLD;

/// Most entries that are kept, as in the schema.
const MAX_FAILURES: usize = 64;
const MAX_BLOCKED: usize = 64;
const MAX_HISTORY: usize = 16;
const MAX_RETRIED: usize = 64;

/// What the way of a node took that commits a release, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// When the node was empty, which no other way of this node has.
    pub(super) drained_at: Time,
    /// From the beginning of the drain, where that is known.
    pub(super) drain: Option<i64>,
    /// From the word to reboot until the node was Ready.
    pub(super) boot: i64,
    /// From then until everything was healthy.
    pub(super) health: i64,
}

/// The memory as this plan leaves it.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) blocked: Vec<BlockedRelease>,
    pub(super) failures: Vec<PolicyFailure>,
    pub(super) timings: Timings,
    pub(super) history: Vec<HistoryEntry>,
    pub(super) retried: Vec<Retry>,
    pub(super) maintenance: Option<Maintenance>,
    pub(super) maintenances: i64,
    pub(super) members: Vec<ClusterMember>,
    pub(super) complete_waves: Option<CompleteWaves>,
    pub(super) changes: Vec<MemoryChange>,
    /// The trials that the operator itself found wanting in this plan.
    pub(super) judged: Vec<Judged>,
}

impl Memory {
    pub(super) fn new(status: &UpdatePolicyStatus) -> Self {
        Self {
            blocked: status.blocked.clone(),
            failures: status.failures.clone(),
            timings: status.timings.clone(),
            history: status.history.clone(),
            retried: status.retried.clone(),
            maintenance: status.maintenance.clone(),
            maintenances: status.maintenances,
            members: status.cluster_members.clone(),
            complete_waves: status.complete_waves.clone(),
            changes: Vec::new(),
            judged: Vec::new(),
        }
    }

    pub(super) fn is_blocked(&self, version: &Version) -> bool {
        self.blocked.iter().any(|block| block.version == *version)
    }

    pub(super) fn failed_on(&self, version: &Version, node: &str) -> bool {
        self.failures.iter().any(|failure| failure.version == *version && failure.node == node)
    }

    /// On how many nodes a release failed.
    pub(super) fn failures_of(&self, version: &Version) -> usize {
        self.failures.iter().filter(|failure| failure.version == *version).count()
    }

    /// Notes a failure, and blocks the release once it failed on as many nodes as the threshold.
    pub(super) fn fail(&mut self, mut failure: PolicyFailure, threshold: u32, now: Time) {
        let version = failure.version.clone();
        if !self.failed_on(&version, &failure.node) {
            // A failure that comes to light after a block counts against lifting it, whatever the node's clock says.
            if let Some(block) = self.blocked.iter().find(|block| block.version == version) {
                failure.at = failure.at.max(block.at.after(bascule_api::Duration::from_secs(1)));
            }
            self.failures.push(failure.clone());
            self.changes.push(MemoryChange::Failed(failure.clone()));
            if self.failures.len() > MAX_FAILURES {
                // What a blocked release did elsewhere is the least that may be forgotten: it is not installed again.
                let forget = self.failures.iter().position(|old| self.is_blocked(&old.version)).unwrap_or(0);
                self.failures.remove(forget);
            }
        }
        let failed = self.failures_of(&version);
        if failed >= usize::try_from(threshold).unwrap_or(usize::MAX) && !self.is_blocked(&version) {
            let what =
                format!("it failed on {failed} node{}, last on {}: {}", plural(failed), failure.node, failure.message);
            self.block(&version, BY_THRESHOLD, &what, now);
        }
    }

    /// Whether a word of a person was followed already.
    pub(super) fn has_retried(&self, retry: &Retry) -> bool {
        self.retried.iter().any(|done| done.node == retry.node && done.at == retry.at)
    }

    /// Forgets what failed on a node, once for each word of a person. Only a failure that comes after it counts again.
    /// `asked` are the words that the spec names: whoever is in it must not be followed twice.
    pub(super) fn retry(&mut self, retry: &Retry, asked: &[Retry]) {
        if self.has_retried(retry) {
            return;
        }
        self.failures.retain(|failure| failure.node != retry.node);
        self.retried.retain(|done| done.node != retry.node);
        self.retried.push(retry.clone());
        if self.retried.len() > MAX_RETRIED {
            let over = self.retried.iter().position(|done| asked.iter().all(|asked| asked.node != done.node));
            self.retried.remove(over.unwrap_or(0));
        }
        self.changes.push(MemoryChange::Retried(retry.clone()));
    }

    /// Blocks every release whose remembered failures reach the threshold: an admin may have lowered it since, the nodes that
    /// reported them may be gone, and some nodes may be on their way to another release than the policy's target. While no
    /// more can be remembered, what is blocked already stays so.
    pub(super) fn recount(&mut self, threshold: u32, now: Time) {
        let mut last: BTreeMap<Version, PolicyFailure> = BTreeMap::new();
        for failure in self.failures.iter().filter(|failure| !self.is_blocked(&failure.version)) {
            last.insert(failure.version.clone(), failure.clone());
        }
        for failure in last.into_values() {
            if self.blocked.len() < MAX_BLOCKED {
                self.fail(failure, threshold, now);
            }
        }
    }

    /// Blocks a release. A release that is blocked already is blocked by the newer word.
    pub(super) fn block(&mut self, version: &Version, by: &str, reason: &str, now: Time) {
        let entry = BlockedRelease {
            version: version.clone(),
            at: now,
            by: by.chars().take(320).collect(),
            reason: reason.chars().take(512).collect(),
        };
        match self.blocked.iter_mut().find(|block| block.version == *version) {
            Some(known) if known.by == entry.by => return,
            Some(known) => *known = entry,
            None => self.blocked.push(entry),
        }
        if self.blocked.len() > MAX_BLOCKED {
            self.blocked.remove(0);
        }
        self.changes.push(MemoryChange::Blocked {
            version: version.clone(),
            by: by.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Notes what the way of a node took. The higher of the value and a slowly falling average, so that a window is
    /// rather left unused than overrun. While its commit is being written a way is noted again and again: only one that
    /// began its reboot after all that were noted lets the average fall.
    pub(super) fn time(&mut self, took: &Took, now: Time) {
        let before = self.timings.clone();
        // What lies ahead was noted by a clock that was set back since.
        let youngest = before.learned_from.filter(|youngest| *youngest <= now);
        let falls = youngest.is_none_or(|youngest| took.drained_at > youngest);
        for (known, seen) in [
            (&mut self.timings.drain_seconds, took.drain),
            (&mut self.timings.boot_seconds, Some(took.boot)),
            (&mut self.timings.health_seconds, Some(took.health)),
        ] {
            let Some(seen) = seen.and_then(|seen| u32::try_from(seen.max(0)).ok()) else { continue };
            let fallen = |known: u32| if falls { known - known.saturating_sub(seen).div_ceil(8) } else { known };
            *known = Some(known.map_or(seen, |known| seen.max(fallen(known))));
        }
        if falls {
            self.timings.learned_from = Some(took.drained_at);
        }
        if self.timings != before {
            self.changes.push(MemoryChange::Timed);
        }
    }

    /// Notes which nodes carry the cluster itself.
    pub(super) fn know(&mut self, members: &[ClusterMember]) {
        if self.members != members {
            self.members = members.to_vec();
            self.changes.push(MemoryChange::Members);
        }
    }

    /// The waves of a release that were complete at some time.
    pub(super) fn waves_of(&self, version: &Version) -> &[CompleteWave] {
        let known = self.complete_waves.as_ref().filter(|known| known.version == *version);
        known.map_or(&[][..], |known| known.waves.as_slice())
    }

    /// Notes which waves were complete.
    pub(super) fn keep_waves(&mut self, complete: Option<CompleteWaves>) {
        if self.complete_waves != complete {
            self.complete_waves = complete;
            self.changes.push(MemoryChange::Waves);
        }
    }

    /// Notes that a rollout of a release began.
    pub(super) fn start(&mut self, version: &Version, now: Time) {
        if self.running().is_some_and(|entry| entry.version == *version) {
            return;
        }
        self.end(Outcome::Superseded, 0, now);
        self.history.push(HistoryEntry {
            version: version.clone(),
            started_at: now,
            ended_at: None,
            outcome: Outcome::Running,
            nodes: 0,
        });
        if self.history.len() > MAX_HISTORY {
            self.history.remove(0);
        }
        self.changes.push(MemoryChange::Started(version.clone()));
    }

    /// The rollout that runs.
    pub(super) fn running(&self) -> Option<&HistoryEntry> {
        self.history.last().filter(|entry| entry.outcome == Outcome::Running)
    }

    /// Notes how the running rollout ended.
    pub(super) fn end(&mut self, outcome: Outcome, nodes: u32, now: Time) {
        if let Some(entry) = self.history.last_mut().filter(|entry| entry.outcome == Outcome::Running) {
            entry.outcome = outcome;
            entry.nodes = nodes;
            entry.ended_at = Some(now);
            self.changes.push(MemoryChange::Ended(entry.version.clone(), outcome));
        }
    }
}

pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A failure as it is remembered.
pub(super) fn failure(version: &Version, node: &str, at: Time, category: NodeError, message: &str) -> PolicyFailure {
    PolicyFailure {
        version: version.clone(),
        node: node.to_owned(),
        at,
        category,
        message: message.chars().take(512).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_noted_again_and_again_lets_the_average_fall_once() {
        let at = |second: i64| Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap());
        let took = |second: i64, boot: i64| Took { drained_at: at(second), drain: None, boot, health: 10 };
        let mut memory = Memory::new(&UpdatePolicyStatus::default());
        memory.timings.boot_seconds = Some(1_133);
        for (way, known) in [
            (took(100, 105), 1_004),
            (took(100, 105), 1_004),
            (took(200, 105), 891),
            // One that is late, as those are that take long, raises it and lets it not fall.
            (took(150, 105), 891),
            (took(150, 1_500), 1_500),
            (took(100, 105), 1_500),
        ] {
            memory.time(&way, at(1_000));
            assert_eq!(memory.timings.boot_seconds, Some(known), "{way:?}");
        }
        // The clock was set back: what was noted before it stops nothing.
        memory.time(&took(50, 100), at(90));
        assert_eq!(memory.timings.boot_seconds, Some(1_325));
    }

    #[test]
    fn a_word_that_the_spec_names_is_never_followed_twice() {
        let word = |number: i64| Retry {
            node: format!("n{number}"),
            at: chrono::DateTime::from_timestamp(number, 0).unwrap().into(),
            reason: None,
        };
        let asked: Vec<_> = (0..64).map(word).collect();
        let mut memory = Memory::new(&UpdatePolicyStatus::default());
        // The oldest is of the spec still; those after it are not.
        memory.retried = std::iter::once(word(0)).chain((100..163).map(word)).collect();
        for retry in &asked {
            memory.retry(retry, &asked);
        }
        assert!(asked.iter().all(|retry| memory.has_retried(retry)) && memory.retried.len() == MAX_RETRIED);
        assert_eq!(memory.changes.len(), 63, "the first was followed before");
    }
}
