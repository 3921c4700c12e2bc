//! What the machine needs whatever the operator says: repair, and drawing conclusions from how it booted.

use bascule_api::{Digest, FailedRelease, NodeError};

use super::state::Work;
use super::{Armed, Committed, Effect, Entry, Facts, Journal, Now, ReleaseTarget, SlotContent, State, TableHealth};

pub(super) type Plan = Option<(Work, Vec<Effect>)>;

pub(super) fn short(effects: Vec<Effect>) -> Plan {
    Some((Work::Short, effects))
}

/// The next thing to mend, if any.
pub(super) fn next(state: &State, facts: &Facts, now: Now) -> Plan {
    let journal = state.journal.as_ref()?;
    if facts.table != TableHealth::Good {
        return short(vec![Effect::RepairTable]);
    }
    let doubled = [facts.booted, facts.inactive()].into_iter().find(|slot| facts.slots.get(*slot).entry_doubled);
    if let Some(slot) = doubled {
        return short(vec![Effect::TidyEntry(slot)]);
    }
    if !facts.boot.strays.is_empty() {
        return short(vec![Effect::RemoveStrays]);
    }
    if let Some(armed) = &journal.armed
        && armed.boot_id != facts.boot_id
    {
        if armed.root_hash == facts.root_hash {
            return after_good_boot(state, journal, armed, facts, now);
        }
        return after_other_boot(journal, armed, facts, now);
    }
    stranded(state, journal, facts)
}

/// The armed release runs. Nothing to conclude while it is on trial, but that counting works.
fn after_good_boot(state: &State, journal: &Journal, armed: &Armed, facts: &Facts, now: Now) -> Plan {
    match facts.booted_slot().entry {
        // The boot loader counts again from the next boot on; this one is the guard's.
        Entry::Good if state.lost_its_counter(facts) => {
            short(vec![Effect::Recount { slot: facts.booted, left: armed.tries.saturating_sub(1) }])
        }
        Entry::Good => {
            let mut next = next_journal(journal);
            next.armed = None;
            next.committed = Some(Committed { root_hash: facts.root_hash.clone(), at: now.wall });
            short(vec![Effect::TellGuard { boot_id: facts.boot_id.clone() }, Effect::Persist(next)])
        }
        Entry::Trying { left, .. } => {
            let seen = Some(left < armed.tries);
            (journal.counting_seen != seen).then(|| {
                let next = Journal { counting_seen: seen, ..next_journal(journal) };
                (Work::Short, vec![Effect::Persist(next)])
            })
        }
        Entry::Bad { .. } | Entry::None => None,
    }
}

/// Something was armed, and the machine came up with something else.
fn after_other_boot(journal: &Journal, armed: &Armed, facts: &Facts, now: Now) -> Plan {
    let slot = facts.slots.get(armed.slot);
    let holds_it = slot.content.root_hash() == Some(&armed.root_hash);
    let was_tried = match slot.entry {
        Entry::Trying { left, done } => left < armed.tries || done.is_some_and(|done| done > 0),
        Entry::Bad { done } => done != Some(0),
        Entry::Good | Entry::None => false,
    };
    // A report of an earlier trial of the same release says nothing of this one.
    let guard = facts.guard.as_ref().filter(|report| report.root_hash == armed.root_hash && report.at >= armed.at);
    let given_up = armed.given_up.clone().or_else(|| guard.map(|report| report.reason.clone()));
    let mut next = next_journal(journal);
    next.armed = None;
    let mut effects = Vec::new();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) {
        effects.push(Effect::Restore(facts.booted));
    }
    if !holds_it || (!was_tried && given_up.is_none()) {
        // Power was lost before the entry was installed, or the boot loader never took it up. The release is not to
        // blame; an entry that is still there is taken back, because its grant is spent.
        if holds_it && matches!(slot.entry, Entry::Trying { .. }) {
            effects.push(Effect::Disarm(target_of(armed, journal)));
        }
        effects.push(Effect::Persist(next));
        return short(effects);
    }
    let (category, message) = match given_up {
        Some(reason) => (NodeError::TrialFailed, reason),
        None => {
            let message = format!("the boot loader came back to {} after trying {}", facts.version, armed.version);
            (NodeError::BootFailed, message)
        }
    };
    let digest = armed.digest.clone().unwrap_or_else(|| unknown_digest(armed));
    let message = message.chars().take(512).collect();
    next.fail(FailedRelease { version: armed.version.clone(), digest, at: now.wall.into(), category, message });
    // What was seen to go down was counted by the boot loader.
    if matches!(slot.entry, Entry::Bad { done: Some(done) } if done >= armed.tries) {
        next.counting_seen = Some(true);
    }
    if !matches!(slot.entry, Entry::Bad { .. }) {
        effects.push(Effect::MarkBad(armed.slot));
    }
    effects.push(Effect::Persist(next));
    short(effects)
}

/// A release that an installer put there has no manifest digest here; its root hash names it as well.
fn unknown_digest(armed: &Armed) -> Digest {
    Digest::from_sha256(&armed.root_hash.to_bytes())
}

/// Entries that no journal explains: it was lost, or somebody else was at work.
fn stranded(state: &State, journal: &Journal, facts: &Facts) -> Plan {
    let inactive = facts.inactive_slot();
    let set_aside_by_us = journal.armed.is_some();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) && !state.is_trial(facts) && !set_aside_by_us {
        // It runs although it was set aside, and nothing better is left: it is what the node has.
        return short(vec![Effect::Restore(facts.booted)]);
    }
    if matches!(inactive.entry, Entry::Trying { .. })
        && journal.armed.is_none()
        && !state.is_trial(facts)
        && let SlotContent::Release { version, root_hash } = &inactive.content
    {
        // Any reboot would begin a trial that nobody has granted.
        let target = journal.known(root_hash).map_or_else(
            || ReleaseTarget {
                slot: facts.inactive(),
                version: version.clone(),
                root_hash: root_hash.clone(),
                digest: None,
                uki: None,
            },
            |known| ReleaseTarget::known(facts.inactive(), known),
        );
        return short(vec![Effect::Disarm(target)]);
    }
    None
}

/// From time to time, when nothing else is to be done, the running slot is read whole.
pub(super) fn inspect(state: &State, facts: &Facts, now: Now) -> Plan {
    if now.since_boot.saturating_sub(state.inspected_at) < state.config.inspect_from() {
        return None;
    }
    let target = ReleaseTarget {
        slot: facts.booted,
        version: facts.version.clone(),
        root_hash: facts.root_hash.clone(),
        digest: None,
        uki: None,
    };
    Some((Work::Inspect, vec![Effect::Inspect(target)]))
}

/// What was armed, as a target.
pub(super) fn target_of(armed: &Armed, journal: &Journal) -> ReleaseTarget {
    ReleaseTarget {
        slot: armed.slot,
        version: armed.version.clone(),
        root_hash: armed.root_hash.clone(),
        digest: armed.digest.clone(),
        uki: journal.known(&armed.root_hash).map(|known| (known.uki_digest.clone(), known.uki_size)),
    }
}

/// The journal to be written next.
pub(super) fn next_journal(journal: &Journal) -> Journal {
    Journal { revision: journal.revision + 1, ..journal.clone() }
}
