//! One step: take an event in, then decide what is next.

use std::time::Duration;

use bascule_api::NodeError;

use super::boot::Safeguard;
use super::protocol::NoPlan;
use super::state::{During, LoaderFailure, Manual, Problem, Work};
use super::{
    Desired, Effect, EffectKind, Event, Failure, Now, Resolved, State, goal, housekeeping, manual, status::publish,
};

/// Takes an event in and decides. Pure: the same state, event and time give the same result.
///
/// The effects are to be carried out in order; the first that fails ends them. What they report comes back as
/// [`Event`]s, at last [`Event::Done`] or [`Event::Failed`]. Until then the only effects handed out are
/// [`Effect::Publish`] and [`Effect::Cancel`].
pub fn step(mut state: State, event: Event, now: Now) -> (State, Vec<Effect>) {
    take_in(&mut state, event, now);
    let mut effects = decide(&mut state, now);
    if let Some(status) = publish(&mut state, now) {
        // First, so that a reboot or a long transfer is announced before it begins.
        effects.insert(0, Effect::Publish(Box::new(status)));
    }
    (state, effects)
}

fn take_in(state: &mut State, event: Event, now: Now) {
    if !matches!(event, Event::Remembered(_) | Event::Desired(_) | Event::Manual { .. } | Event::Tick) {
        // Everything else comes from what carries effects out.
        state.last_sign = now.since_boot;
        state.problem.take_if(|problem| problem.during == During::Hanging);
    }
    match event {
        Event::Loaded(journal) => state.journal = Some(*journal),
        Event::Observed(mut facts) => {
            state.observed_at = now.since_boot;
            facts.judge(state.journal.as_ref().unwrap_or(&super::Journal::default()), state.config.without);
            if state.is_trial(&facts) && state.trial_until.is_none() {
                let start = now.wall - chrono::TimeDelta::from_std(now.since_boot).unwrap_or_default();
                let deadline = chrono::TimeDelta::from_std(state.config.trial_deadline).unwrap_or_default();
                state.trial_until = Some(start + deadline);
            }
            state.last_facts = Some((*facts).clone());
            state.facts = Some(*facts);
        }
        Event::Remembered(status) => {
            // After the first word the agent knows better what it wrote.
            if state.desired.is_none() {
                state.conditions.clone_from(&status.conditions);
                state.published = Some(*status);
            }
        }
        Event::Desired(desired) => {
            state.heard = true;
            let uid = |desired: &Option<Desired>| desired.as_ref().map(|desired| desired.uid.clone());
            if state.desired.is_some() && uid(&state.desired) != uid(&desired) {
                // The object was deleted or made anew: nothing of what was written is there any more.
                state.published = None;
                state.conditions.clear();
            }
            if state.desired != desired {
                state.desired = desired;
                state.interrupted = true;
                state.problem = None;
                // What was seen before may be long out of date; look before acting on a new word.
                state.facts = None;
            }
        }
        Event::Resolved(manifest) => {
            if let Some(digest) = wanted_digest(state) {
                state.resolved = Some(Resolved { digest, manifest });
            }
        }
        Event::Inspected { changed } => {
            state.inspected_at = now.since_boot;
            state.running_changed = changed;
        }
        Event::Verified { slot, root_hash } => state.verified = Some((slot, root_hash, now.since_boot)),
        Event::Done => {
            let work = state.work.take();
            loader_ended(state, false);
            if matches!(work, Some(Work::Short | Work::Arm | Work::Stage | Work::Verify)) {
                state.problem = None;
            }
            if work == Some(Work::Stage) {
                state.transfer = None;
                state.resolved = None;
            }
        }
        Event::Failed(failure) => fail(state, failure, now),
        Event::Transfer(transfer) => state.transfer = Some(transfer),
        Event::Manual { command, user } => {
            state.problem = None;
            state.facts = None;
            state.interrupted = true;
            state.manual = Some(Manual { command, user, at: now.wall });
        }
        Event::Tick => {
            if now.since_boot.saturating_sub(state.observed_at) >= state.config.observe_from() {
                state.facts = None;
            }
        }
    }
}

fn wanted_digest(state: &State) -> Option<bascule_api::Digest> {
    goal::wanted_release(state).map(|release| release.digest.clone())
}

fn fail(state: &mut State, failure: Failure, now: Now) {
    // The engine forgets a release that it has brought; the next time the repository is asked again.
    if state.work.take() == Some(Work::Stage) {
        state.resolved = None;
    }
    state.transfer = None;
    // Whatever was known may have changed half-way.
    state.facts = None;
    loader_ended(state, failure.effect == EffectKind::PlaceLoader);
    if failure.cancelled {
        return;
    }
    if failure.effect == EffectKind::Resolve {
        state.resolved = None;
    }
    if failure.effect == EffectKind::Reboot {
        // It was not taken, so there is nothing to wait for.
        state.reboot_asked = None;
    }
    if matches!(failure.effect, EffectKind::ReadBack | EffectKind::Verify)
        && failure.category == NodeError::Trust
        && let Some(facts) = &state.last_facts
        && let Some(root_hash) = facts.inactive_slot().content.root_hash()
    {
        state.damaged = Some((facts.inactive(), root_hash.clone()));
        state.verified = None;
    }
    if failure.effect == EffectKind::PlaceLoader {
        loader_later(state, now, failure);
        return;
    }
    let (category, transient) = (failure.category, failure.transient);
    again_later(state, now, During::Effect(failure.effect), category, failure.message, transient);
}

/// Notes what went wrong, and when it is tried again.
fn again_later(state: &mut State, now: Now, during: During, category: NodeError, message: String, transient: bool) {
    let before = state.problem.take().filter(|problem| during.is_the_same_as(problem.during));
    let attempts = before.map_or(1, |problem| problem.attempts.saturating_add(1)).min(1_000_000);
    let wait = backoff(state, attempts, transient);
    state.problem = Some(Problem {
        during,
        category,
        message,
        attempts,
        at: now.wall,
        retry_at: Some(now.since_boot + wait),
        next_try: Some(now.wall + chrono::TimeDelta::from_std(wait).unwrap_or_default()),
        generation: state.desired.as_ref().map(|desired| desired.generation),
    });
}

/// The machine boots with the boot loader that it has: what went wrong with another one is said, tried again, and keeps it from nothing.
fn loader_later(state: &mut State, now: Now, failure: Failure) {
    let attempts = state.loader_failure.take().map_or(1, |before| before.attempts.saturating_add(1)).min(1_000_000);
    let retry_at = now.since_boot + backoff(state, attempts, failure.transient);
    let (category, message) = (failure.category, failure.message);
    state.loader_failure = Some(LoaderFailure { category, message, attempts, retry_at });
}

/// What was being put in place is there, or it failed and nobody knows what the medium has.
fn loader_ended(state: &mut State, failed: bool) {
    if let Some(path) = state.loader_placing.take() {
        state.loader_in_doubt = failed.then_some(path);
    }
}

/// Why nothing can be planned: what was not seen is looked at again, what can't be is said.
pub(super) fn no_plan(state: &mut State, now: Now, why: NoPlan) {
    match why {
        NoPlan::Refused(message) => refuse(state, now, NodeError::BootControl, message),
        NoPlan::Unseen(message) => {
            state.facts = None;
            again_later(state, now, During::Judging, NodeError::Storage, message, true);
        }
    }
}

/// Doubles from the first wait to the longest; what does not pass by itself waits twelve times as long at first. Each
/// node adds its own share of up to a quarter, so that a fleet does not come back all at once.
fn backoff(state: &State, attempts: u32, transient: bool) -> Duration {
    let config = &state.config;
    let first = if transient { config.retry_first } else { config.retry_first.saturating_mul(12) };
    let doubled = first.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1).min(16)).unwrap_or(u32::MAX));
    let wait = doubled.min(config.retry_max);
    let share = u32::try_from(config.spread.min(1_000)).unwrap_or(1_000);
    wait + wait.saturating_mul(share) / 4_000
}

fn decide(state: &mut State, now: Now) -> Vec<Effect> {
    if let Some(work) = state.work {
        if let Some(silent) = state.hangs(now) {
            hanging(state, now, work, silent);
        }
        return if goal::is_still_wanted(state, work) { Vec::new() } else { vec![Effect::Cancel] };
    }
    let held_back = state.is_held_back(now);
    let Some(facts) = state.facts.clone().filter(|_| state.journal.is_some()) else {
        let looking_failed = state
            .problem
            .as_ref()
            .is_some_and(|problem| matches!(problem.during, During::Effect(EffectKind::Observe) | During::Judging));
        if held_back && looking_failed {
            return Vec::new();
        }
        return begin(state, now, Work::Look, Vec::new());
    };
    // A healthy trial is committed first: whatever else is wrong with the machine, it must not cost it that.
    let commits_first = state.config.without != Some(Safeguard::CommitBeforeRepair);
    let commit_failed = state.problem.as_ref().is_some_and(|problem| {
        matches!(problem.during, During::Judging) || matches!(problem.during, During::Effect(kind) if kind.is_commit())
    });
    // What can't be followed is judged anew at each look; the same verdict keeps its time.
    let refused = state.problem.clone().filter(|problem| problem.during == During::Goal);
    if commits_first
        && !(held_back && commit_failed)
        && let Some((work, effects)) = goal::commit_of_a_trial(state, &facts, now)
    {
        return begin(state, now, work, effects);
    }
    if held_back {
        return Vec::new();
    }
    state.problem.take_if(|problem| problem.during == During::Goal);
    let next = if commits_first {
        housekeeping::conclude(state, &facts, now).or_else(|| housekeeping::repair(state, &facts, now))
    } else {
        housekeeping::repair(state, &facts, now).or_else(|| housekeeping::conclude(state, &facts, now))
    };
    let next = next
        .or_else(|| if state.facts.is_some() { housekeeping::place_loader(state, &facts, now) } else { None })
        .or_else(|| if state.facts.is_some() { manual::next(state, &facts, now) } else { None })
        .or_else(|| if state.facts.is_some() { goal::next(state, &facts, now) } else { None })
        .or_else(|| if state.facts.is_some() { housekeeping::inspect(state, &facts, now) } else { None });
    if let (Some(before), Some(after)) = (refused, &mut state.problem)
        && (before.category, &before.message) == (after.category, &after.message)
    {
        *after = before;
    }
    match next {
        Some((work, effects)) => begin(state, now, work, effects),
        None => {
            let free = state.problem.as_ref().is_none_or(|problem| problem.during == During::Judging);
            if free && !facts.boot.saw_everything() {
                // Nothing hangs on it now. It is looked at again, and said.
                no_plan(state, now, NoPlan::Unseen(super::boot::plan::unread(&facts)));
            }
            come_to_rest(state, now);
            Vec::new()
        }
    }
}

/// Nothing is to be done now: what failed before was for something that nobody wants any more, or has passed.
fn come_to_rest(state: &mut State, now: Now) {
    // A repair that failed is still to be done, and what was not seen is still not seen.
    state.problem.take_if(|problem| match problem.during {
        During::Goal => false,
        During::Judging => state.facts.is_some(),
        During::Hanging => true,
        during => !during.is_repair() || problem.retry_at.is_none_or(|at| at <= now.since_boot),
    });
    let retry = state.config.reboot_retry;
    state.reboot_asked.take_if(|at| now.since_boot.saturating_sub(*at) >= retry);
}

/// Every chain of effects ends with a look at the machine: facts decide what comes after it.
fn begin(state: &mut State, now: Now, work: Work, mut effects: Vec<Effect>) -> Vec<Effect> {
    state.work = Some(work);
    state.last_sign = now.since_boot;
    state.facts = None;
    state.interrupted = false;
    effects.push(Effect::Observe);
    effects
}

/// Says that what is being done does not come back. The problem keeps the time at which it was seen first.
fn hanging(state: &mut State, now: Now, work: Work, silent: Duration) {
    if state.problem.as_ref().is_some_and(|problem| problem.during == During::Hanging) {
        return;
    }
    let generation = state.desired.as_ref().map(|desired| desired.generation);
    state.problem = Some(Problem {
        during: During::Hanging,
        category: NodeError::Storage,
        message: format!(
            "the agent's work ({work:?}) has been silent for {} minutes: a disk, a file system or the system bus hangs; see the \
             kernel's log. The agent does not feed its watchdog any more",
            silent.as_secs() / 60
        ),
        attempts: 1,
        at: now.wall,
        retry_at: None,
        next_try: None,
        generation,
    });
}

/// A word of the operator that can't be followed. Nothing is tried again until the word or the machine changes.
pub(super) fn refuse(state: &mut State, now: Now, category: NodeError, message: String) {
    let generation = state.desired.as_ref().map(|desired| desired.generation);
    state.problem = Some(Problem {
        during: During::Goal,
        category,
        message,
        attempts: 1,
        at: now.wall,
        retry_at: None,
        next_try: None,
        generation,
    });
}

#[cfg(test)]
mod tests {
    use bascule_api::{Goal, Grant, PackFallback};

    use super::super::Config;
    use super::*;

    /// A hook before arming may take minutes, and by then the operator may have given the node back.
    #[test]
    fn arming_stops_where_the_word_to_reboot_is_taken_back() {
        let now = Now { wall: chrono::DateTime::UNIX_EPOCH, since_boot: Duration::from_secs(60) };
        let stops = |goal, disruption_begun| {
            let state = State { work: Some(Work::Arm), ..State::new(Config::default()) };
            let desired = Desired {
                uid: "uid".to_owned(),
                generation: 2,
                goal,
                release: None,
                disruption_begun,
                grant: Some(Grant { boot_id: "boot".to_owned(), generation: 1, accept_state: false }),
                pack_fallback: PackFallback::Allow,
                retry: None,
            };
            let (_, effects) = step(state, Event::Desired(Some(desired)), now);
            effects.contains(&Effect::Cancel)
        };
        assert!(!stops(Goal::Booted, true) && !stops(Goal::Reverted, true));
        assert!(stops(Goal::Staged, true) && stops(Goal::Idle, true) && stops(Goal::Booted, false));
    }
}
