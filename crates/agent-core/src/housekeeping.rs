//! What the machine needs whatever the operator says: drawing conclusions from how it booted, and repair.

use bascule_api::{Digest, FailedRelease, Goal, NodeError};

use super::boot::update::{self, Verdict};
use super::boot::{BootPurpose, LoaderChange, Safeguard, plan, way_back};
use super::protocol::NoPlan;
use super::state::{During, Work};
use super::state_version;
use super::step::no_plan;
use super::{
    Armed, Committed, Effect, EffectKind, Entry, Facts, Hook, Journal, ManualCommand, NotTaken, Now, ReleaseTarget,
    SlotContent, State, TableHealth, goal,
};

pub(super) type Plan = Option<(Work, Vec<Effect>)>;

pub(super) fn short(effects: Vec<Effect>) -> Plan {
    Some((Work::Short, effects))
}

/// What follows from how the machine booted, if anything.
pub(super) fn conclude(state: &mut State, facts: &Facts, now: Now) -> Plan {
    let journal = state.journal.clone()?;
    if let Some(plan) = remember(state, &journal, facts) {
        return Some(plan);
    }
    if let Some(armed) = &journal.armed
        && armed.boot_id != facts.boot_id
    {
        if armed.root_hash == facts.root_hash {
            return after_good_boot(state, &journal, armed, facts, now);
        }
        return after_other_boot(state, &journal, armed, facts, now);
    }
    stranded(state, &journal, facts, now)
}

/// The next thing to mend, if any. A repair that failed waits, and nothing waits for it.
pub(super) fn repair(state: &State, facts: &Facts, now: Now) -> Plan {
    if state.repair_waits(now) {
        return None;
    }
    let failed = state.problem.as_ref().map(|problem| problem.during).filter(|during| during.is_repair());
    let hook = During::Effect(EffectKind::RunHook(Hook::AfterCommit));
    // What failed last lets the other go first: the state does not wait for a disk that nobody can mend, nor that for a hook.
    if failed.is_some_and(|failed| failed != hook) {
        after_commit(state, facts).or_else(|| mend(facts))
    } else {
        mend(facts).or_else(|| after_commit(state, facts))
    }
}

fn mend(facts: &Facts) -> Plan {
    if matches!(facts.table, TableHealth::PrimaryBroken | TableHealth::BackupBroken) {
        return short(vec![Effect::RepairTable]);
    }
    let doubled = [facts.booted, facts.inactive()].into_iter().filter(|slot| facts.slots.get(*slot).entry_doubled);
    let repairs = doubled.filter_map(|slot| plan::untangle(facts, slot)).next();
    repairs.or_else(|| plan::clear_away(facts)).and_then(|step| short(vec![Effect::Boot(step)]))
}

/// The OS image is told of the commit, once that and what the state was used with are on record: from here on it may make of the
/// state what the release before does not understand.
fn after_commit(state: &State, facts: &Facts) -> Plan {
    let journal = state.journal.as_ref()?;
    let of = journal.after_commit.as_ref()?;
    let runs = *of == facts.root_hash;
    let committed = journal.committed.as_ref().is_some_and(|committed| committed.root_hash == *of);
    // Another release may be on trial, or booted by hand: until one is committed, this one may run again and is owed its hook.
    if state.is_trial(facts) || (committed && !runs) || is_leaving(state, facts) {
        return None;
    }
    let mut next = next_journal(journal);
    next.after_commit = None;
    let mut effects = vec![Effect::Persist(Box::new(next))];
    if runs {
        effects.insert(0, Effect::RunHook { hook: Hook::AfterCommit, version: facts.version.clone() });
    }
    short(effects)
}

/// The boot loader that the running release brings is put in place, once there is no way back from that release that anybody has not
/// asked for. It rests while the machine goes elsewhere.
pub(super) fn place_loader(state: &mut State, facts: &Facts, now: Now) -> Plan {
    let step = match update::judge(state, facts) {
        Some(Verdict::Replace(step)) if !is_leaving(state, facts) => step,
        Some(Verdict::Current(_)) | None => {
            state.loader_failure = None;
            return None;
        }
        Some(_) => return None,
    };
    let waits = state.loader_failure.as_ref().is_some_and(|failure| failure.retry_at > now.since_boot);
    if waits {
        return None;
    }
    state.loader_placing = step.changes.iter().find_map(|change| match change {
        LoaderChange::Replace { path, .. } => Some(path.clone()),
        LoaderChange::Remove { .. } => None,
    });
    short(vec![Effect::PlaceLoader(step)])
}

/// Whether the machine is on its way to another release. A hook that hangs would take the time that this has, at each step anew, and
/// keep the machine from the release that mends it.
fn is_leaving(state: &State, facts: &Facts) -> bool {
    let manual = state.manual.as_ref().is_some_and(|manual| !matches!(manual.command, ManualCommand::Commit));
    let desired = state.desired.as_ref().filter(|desired| desired.disruption_begun);
    let told = desired.and_then(|desired| Some((desired.goal, desired.release.as_ref()?)));
    manual
        || told.is_some_and(|(to, release)| match to {
            Goal::Staged | Goal::Booted => !goal::runs(state, facts, release),
            Goal::Reverted => facts.version == release.version,
            Goal::Idle | Goal::Committed => false,
        })
}

/// What has to be on record: boot images that were taken over, that a boot loader is set up anew, and what runs makes of the state.
fn remember(state: &State, journal: &Journal, facts: &Facts) -> Plan {
    let mut next = next_journal(journal);
    next.placed.clone_from(&facts.boot.view.records);
    let setup = facts.boot.inventory.loader_setup();
    let wrong = journal.counting_seen == Some(false) || journal.not_taken.is_some();
    match &journal.loader_setup {
        // It was judged under another set-up: what was wrong with that says nothing of this one.
        Some(judged) if wrong && *judged != setup => {
            next.counting_seen = None;
            next.not_taken = None;
            next.loader_setup = None;
        }
        None if wrong => next.loader_setup = Some(setup),
        _ => {}
    }
    let declared = state_version::of_running(journal, facts);
    next.state.note(&facts.root_hash, declared, &facts.root_hash);
    if !state.is_trial(facts) {
        next.state.use_at_least(declared);
    }
    let news = (&next.placed, &next.loader_setup) != (&journal.placed, &journal.loader_setup);
    let news = news || next.state != journal.state;
    news.then(|| (Work::Short, vec![Effect::Persist(Box::new(next))]))
}

/// The armed release runs. Nothing to conclude while it is on trial, but that counting works.
fn after_good_boot(state: &mut State, journal: &Journal, armed: &Armed, facts: &Facts, now: Now) -> Plan {
    match facts.booted_slot().entry {
        // The boot loader counts again from the next boot on; this one is the guard's.
        Entry::Good if state.lost_its_counter(facts) => {
            let step = plan::recount(facts, armed.tries.saturating_sub(1));
            planned(state, now, step).and_then(|step| short(vec![Effect::Boot(step)]))
        }
        Entry::Good => {
            let mut next = next_journal(journal);
            next.armed = None;
            next.committed = Some(Committed { root_hash: facts.root_hash.clone(), at: now.wall });
            next.state.use_with(state_version::of_running(journal, facts));
            next.after_commit = Some(facts.root_hash.clone());
            short(vec![Effect::TellGuard { boot_id: facts.boot_id.clone() }, Effect::Persist(Box::new(next))])
        }
        Entry::Trying { left, .. } => {
            // Where a file has the name that it was to get, nothing is known of the boot loader: it could not count.
            let seen = match left < armed.tries {
                false if plan::next_name_is_taken(facts) => journal.counting_seen,
                counted => Some(counted),
            };
            // It was taken: whatever once kept the boot loader from that is mended.
            (journal.counting_seen != seen || journal.not_taken.is_some()).then(|| {
                let next = Journal { counting_seen: seen, not_taken: None, ..next_journal(journal) };
                (Work::Short, vec![Effect::Persist(Box::new(next))])
            })
        }
        Entry::Bad { .. } | Entry::None | Entry::Unseen => None,
    }
}

/// What was planned; without a plan, the reason is noted.
pub(super) fn planned<T>(state: &mut State, now: Now, plan: Result<T, NoPlan>) -> Option<T> {
    match plan {
        Ok(planned) => Some(planned),
        Err(why) => {
            no_plan(state, now, why);
            None
        }
    }
}

/// Something was armed, and the machine came up with something else.
fn after_other_boot(state: &mut State, journal: &Journal, armed: &Armed, facts: &Facts, now: Now) -> Plan {
    let slot = facts.slots.get(armed.slot);
    let holds_it = slot.content.root_hash() == Some(&armed.root_hash);
    // Whether it was tried is written in its name, and that could not be seen, or lies where nobody could look.
    if holds_it && slot.entry == Entry::Unseen {
        no_plan(state, now, NoPlan::Unseen(plan::unread(facts)));
        return None;
    }
    planned(state, now, plan::running_is_seen(facts))?;
    let was_tried = match slot.entry {
        Entry::Trying { left, done } => left < armed.tries || done.is_some_and(|done| done > 0),
        Entry::Bad { done } => done != Some(0),
        Entry::Good | Entry::None | Entry::Unseen => false,
    };
    // A report of an earlier trial of the same release says nothing of this one.
    let guard = facts.guard.as_ref().filter(|report| report.root_hash == armed.root_hash && report.at >= armed.at);
    let given_up = armed.given_up.clone().or_else(|| guard.map(|report| report.reason.clone()));
    // What the guard gave up must be taken neither for what was never tried nor for what failed to boot.
    if let Some(why) = facts.guard_unread.as_ref().filter(|_| holds_it && given_up.is_none()) {
        no_plan(state, now, NoPlan::Unseen(why.clone()));
        return None;
    }
    let mut next = next_journal(journal);
    next.armed = None;
    let mut effects = Vec::new();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) {
        effects.push(Effect::Boot(planned(state, now, plan::permanent(facts, facts.booted, BootPurpose::Restore))?));
    }
    if !holds_it || (!was_tried && given_up.is_none()) {
        // Power was lost before the entry was installed, or the boot loader never took it up. The release is not to
        // blame; an entry that is still there is taken back, because its grant is spent.
        if holds_it && matches!(slot.entry, Entry::Trying { .. }) {
            // Where arming was cut short, the boot loader was right.
            let should_have = way_back::would_take_the_other(facts);
            if should_have && state.config.without != Some(Safeguard::NotTakenIsRemembered) {
                let times = journal.not_taken.as_ref().map_or(0, |before| before.times).saturating_add(1);
                next.not_taken = Some(NotTaken { version: armed.version.clone(), at: now.wall, times });
                next.loader_setup = Some(facts.boot.inventory.loader_setup());
            }
            effects.push(Effect::Boot(planned(state, now, plan::disarm(facts, &target_of(armed, journal)))?));
        }
        effects.push(Effect::Persist(Box::new(next)));
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
    if !matches!(slot.entry, Entry::Bad { .. } | Entry::None) {
        effects.push(Effect::Boot(planned(state, now, plan::mark_bad(facts, armed.slot))?));
    }
    effects.push(Effect::Persist(Box::new(next)));
    short(effects)
}

/// A release that an installer put there has no manifest digest here; its root hash names it as well.
fn unknown_digest(armed: &Armed) -> Digest {
    Digest::from_sha256(&armed.root_hash.to_bytes())
}

/// Entries that no journal explains: it was lost, or somebody else was at work.
fn stranded(state: &mut State, journal: &Journal, facts: &Facts, now: Now) -> Plan {
    let inactive = facts.inactive_slot();
    let set_aside_by_us = journal.armed.is_some();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) && !state.is_trial(facts) && !set_aside_by_us {
        // It runs although it was set aside, and nothing better is left: it is what the node has.
        let step = plan::permanent(facts, facts.booted, BootPurpose::Restore);
        return planned(state, now, step).and_then(|step| short(vec![Effect::Boot(step)]));
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
        // Where it is somebody else's there is nothing to be taken back.
        let step = planned(state, now, plan::disarm(facts, &target)).filter(|step| !step.changes.is_empty());
        return step.and_then(|step| short(vec![Effect::Boot(step)]));
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
