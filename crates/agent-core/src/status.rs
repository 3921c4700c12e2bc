//! What the agent says: its part of `NodeUpdate.status`.

use bascule_api::conditions::{self, reason};
use bascule_api::{
    BootControl, Booted, Counting, Digest, LastError, NodeError, NodeUpdateStatus, RootHash, SlotName, SlotState,
    SlotStatus, Slots, Staged, Trial,
};

use super::boot::update::{self, Verdict};
use super::{Entry, Facts, Guarantee, Guarantees, Now, SlotContent, State, TableHealth};

/// The status to write, if it is another than the last one handed out.
pub(super) fn publish(state: &mut State, now: Now) -> Option<NodeUpdateStatus> {
    // Without the operator's word there is nobody to say anything to.
    state.desired.as_ref()?;
    let status = if state.last_facts.is_some() { status(state, now) } else { unseen(state, now)? };
    if state.published.as_ref() == Some(&status) {
        return None;
    }
    state.conditions.clone_from(&status.conditions);
    state.published = Some(status.clone());
    Some(status)
}

/// What is said by an agent that could not look at the machine since it started: what an earlier one said stays, with the
/// trouble beside it. `None` while the first look is still on its way.
fn unseen(state: &State, now: Now) -> Option<NodeUpdateStatus> {
    let problem = state.problem.as_ref()?;
    let mut status = state.published.clone().unwrap_or_default();
    status.agent_version = Some(state.config.agent_version.clone());
    status.transfer = None;
    status.last_error = last_error(state);
    let mut list = state.conditions.clone();
    let reason = problem.category.as_str();
    let condition = conditions::new(
        conditions::AGENT_HEALTHY,
        false,
        reason,
        &problem.message,
        status.observed_generation,
        now.wall.into(),
    );
    conditions::set(&mut list, condition);
    status.conditions = list;
    Some(status)
}

/// The agent's part of the status, from what was seen last.
pub fn status(state: &State, now: Now) -> NodeUpdateStatus {
    let mut status = NodeUpdateStatus {
        agent_version: Some(state.config.agent_version.clone()),
        observed_generation: state.desired.as_ref().map(|desired| desired.generation),
        transfer: state.transfer.clone(),
        last_error: last_error(state),
        ..NodeUpdateStatus::default()
    };
    if let Some(journal) = &state.journal {
        status.last_grant = journal.last_grant;
        status.retried = journal.retried;
        status.failed_releases.clone_from(&journal.failed);
        status.manual_actions.clone_from(&journal.manual);
    }
    if let Some(facts) = state.facts.as_ref().or(state.last_facts.as_ref()) {
        describe(state, facts, &mut status);
    }
    status.conditions = conditions(state, &status, now);
    status
}

fn describe(state: &State, facts: &Facts, status: &mut NodeUpdateStatus) {
    status.boot_id = Some(facts.boot_id.clone());
    status.architecture = Some(facts.architecture);
    status.slots = Some(Slots { a: slot(state, facts, SlotName::A), b: slot(state, facts, SlotName::B) });
    let journal = state.journal.as_ref();
    let committed = journal.and_then(|journal| journal.committed.as_ref());
    status.booted = Some(Booted {
        slot: facts.booted,
        version: facts.version.clone(),
        root_hash: facts.root_hash.clone(),
        committed_at: committed.filter(|committed| committed.root_hash == facts.root_hash).map(|it| it.at.into()),
    });
    let failed = |digest| journal.is_some_and(|journal| journal.failed(digest).is_some());
    status.staged = state.ready(facts).filter(|known| !failed(&known.digest)).map(|known| Staged {
        version: known.version.clone(),
        digest: known.digest.clone(),
        at: known.verified_at.map(Into::into),
    });
    if state.is_trial(facts) {
        let tries_left = match facts.booted_slot().entry {
            Entry::Trying { left, .. } => left.min(99),
            _ => 0,
        };
        let deadline = state.trial_until.map(Into::into);
        status.trial = Some(Trial { version: facts.version.clone(), tries_left, deadline });
    }
    status.state_version = journal.and_then(|journal| journal.state.used());
    status.boot_control = Some(BootControl { backend: facts.boot.backend, counting: state.counting(facts) });
}

fn slot(state: &State, facts: &Facts, name: SlotName) -> SlotStatus {
    let slot = facts.slots.get(name);
    let running = name == facts.booted;
    let (version, root_hash) = match &slot.content {
        _ if running => (Some(facts.version.clone()), Some(facts.root_hash.clone())),
        SlotContent::Release { version, root_hash } => (Some(version.clone()), Some(root_hash.clone())),
        SlotContent::Writing { version } => (version.clone(), None),
        SlotContent::Empty | SlotContent::Foreign => (None, None),
    };
    let journal = state.journal.as_ref();
    let failed = slot.content.root_hash().is_some_and(|root_hash| {
        journal.is_some_and(|journal| {
            let known = journal.known(root_hash).is_some_and(|known| journal.failed(&known.digest).is_some());
            known || journal.failed(&Digest::from_sha256(&root_hash.to_bytes())).is_some()
        })
    });
    // Until what was armed is concluded, its name alone says that it was tried.
    let concluded = journal.is_some_and(|journal| {
        journal.armed.as_ref().is_none_or(|armed| slot.content.root_hash() != Some(&armed.root_hash))
    });
    let damaged = state.damaged.as_ref().is_some_and(|(at, _)| *at == name);
    let state = if running {
        if state.running_changed.is_some() {
            SlotState::Damaged
        } else if state.is_trial(facts) {
            SlotState::Trial
        } else {
            SlotState::Good
        }
    } else {
        match (&slot.content, slot.entry) {
            _ if damaged => SlotState::Damaged,
            (SlotContent::Empty | SlotContent::Foreign, _) => SlotState::Empty,
            (SlotContent::Writing { .. }, _) => SlotState::Writing,
            (SlotContent::Release { .. }, _) if failed => SlotState::Bad,
            (SlotContent::Release { .. }, Entry::Good | Entry::Bad { done: Some(0) }) => SlotState::Good,
            (SlotContent::Release { .. }, Entry::Trying { .. }) => SlotState::Armed,
            // What a person has forgiven lies there as it failed, and is armed from there. Called bad it would be blamed for the next
            // boot of another release, whatever that comes from.
            (SlotContent::Release { .. }, Entry::Bad { .. }) if concluded && state.ready(facts).is_some() => {
                SlotState::Staged
            }
            (SlotContent::Release { .. }, Entry::Bad { .. }) => SlotState::Bad,
            // Whole by its labels, but nobody here has read it: not to be trusted, and not to be called staged.
            (SlotContent::Release { .. }, Entry::None | Entry::Unseen) if state.ready(facts).is_none() => {
                SlotState::Writing
            }
            (SlotContent::Release { .. }, Entry::None | Entry::Unseen) => SlotState::Staged,
        }
    };
    let declared = |root_hash: &RootHash| journal.and_then(|journal| journal.state.of(root_hash));
    let itself = facts.state_version.filter(|_| running);
    let state_version = itself.or_else(|| root_hash.as_ref().and_then(declared));
    SlotStatus { state, version, root_hash, state_version }
}

fn last_error(state: &State) -> Option<LastError> {
    let problem = state.problem.as_ref()?;
    Some(LastError {
        category: problem.category,
        message: problem.message.chars().take(1024).collect(),
        attempts: problem.attempts,
        at: problem.at.into(),
        next_try: problem.next_try.map(Into::into),
    })
}

fn conditions(
    state: &State,
    status: &NodeUpdateStatus,
    now: Now,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let mut list = state.conditions.clone();
    let loader = state.facts.as_ref().or(state.last_facts.as_ref()).map(|facts| boot_loader(state, facts));
    if matches!(loader, Some(None)) {
        list.retain(|condition| condition.type_ != conditions::BOOT_LOADER_CURRENT);
    }
    let generation = status.observed_generation;
    let mut set = |type_: &str, holds: bool, reason: &str, message: &str| {
        conditions::set(&mut list, conditions::new(type_, holds, reason, message, generation, now.wall.into()));
    };
    let wanted = state.desired.as_ref().and_then(|desired| desired.release.as_ref());
    let holds_wanted = |release: &bascule_api::ReleaseRef| {
        status.staged.as_ref().is_some_and(|staged| staged.digest == release.digest)
            || status.booted.as_ref().is_some_and(|booted| booted.version == release.version)
    };
    let message = match &status.staged {
        Some(staged) => format!("{} is staged", staged.version),
        None => String::new(),
    };
    set(conditions::STAGED, wanted.is_some_and(holds_wanted), reason::OBSERVED, &message);
    let message = status.trial.as_ref().map(|trial| format!("{} is not committed", trial.version)).unwrap_or_default();
    set(conditions::TRIAL, status.trial.is_some(), reason::OBSERVED, &message);
    if let Some(facts) = state.facts.as_ref().or(state.last_facts.as_ref()) {
        let (counting, message) = state.counting_and_why(facts);
        let (holds, why) = match counting {
            Counting::Works => (true, reason::OBSERVED),
            Counting::Broken => (false, NodeError::BootControl.as_str()),
            Counting::Unknown => (false, "NotSeenYet"),
        };
        let left_alone = &facts.boot.view.foreign;
        let message = match message.filter(|_| !holds) {
            Some(message) => message,
            None if left_alone.is_empty() => String::new(),
            None => format!("boot images that are not this agent's and are left alone: {}", left_alone.join(", ")),
        };
        set(conditions::BOOT_CONTROL_HEALTHY, holds, why, &message);
        let (missing, message) = guarantees(&state.guarantees(facts));
        set(conditions::HOST_GUARANTEES, missing.is_none(), missing.unwrap_or(reason::OBSERVED), &message);
        if let Some((holds, why, message)) = loader.flatten() {
            set(conditions::BOOT_LOADER_CURRENT, holds, why, &message);
        }
        let drift = drift(state, facts);
        set(conditions::DRIFT, drift.is_some(), reason::OBSERVED, drift.as_deref().unwrap_or_default());
    }
    match (&state.problem, state.facts.as_ref().or(state.last_facts.as_ref())) {
        (Some(problem), _) => set(conditions::AGENT_HEALTHY, false, problem.category.as_str(), &problem.message),
        (None, Some(facts)) if !facts.failing_units.is_empty() => {
            let message = format!("units that do not run: {}", facts.failing_units.join(", "));
            set(conditions::AGENT_HEALTHY, false, "UnitsFailing", &message);
        }
        (None, _) => set(conditions::AGENT_HEALTHY, true, reason::OBSERVED, ""),
    }
    let manual = status.manual_actions.last();
    let message = manual.map(|action| format!("{} at {}", action.action, action.at)).unwrap_or_default();
    set(conditions::MANUAL_ACTION, manual.is_some(), reason::OBSERVED, &message);
    list
}

/// The guarantees in words, and the reason of the first that is not given.
fn guarantees(guarantees: &Guarantees) -> (Option<&'static str>, String) {
    let mut first = None;
    let words = guarantees.all().map(|(reason, name, guarantee)| {
        let (why, said) = match guarantee {
            Guarantee::Given => return format!("{name}: yes"),
            Guarantee::NotSeenYet(why) => (why, "not seen yet"),
            Guarantee::Missing(why) => (why, "no"),
        };
        first = first.or(Some(reason));
        format!("{name}: {said} ({why})")
    });
    (first, words.join("; "))
}

/// Whether the boot loader is the one that the running release brings, where it brings one: reason and words.
fn boot_loader(state: &State, facts: &Facts) -> Option<(bool, &'static str, String)> {
    Some(match update::judge(state, facts)? {
        Verdict::Current(foreign) => (true, reason::OBSERVED, foreign.unwrap_or_default()),
        Verdict::Left(because, why) => (false, because.reason(), why),
        Verdict::Replace(step) => match &state.loader_failure {
            Some(failure) => (false, failure.category.as_str(), failure.message.clone()),
            None => (false, "InProgress", format!("systemd-boot {} is being put in place", step.loader.version)),
        },
    })
}

/// What is not as the agent left it.
fn drift(state: &State, facts: &Facts) -> Option<String> {
    if let Some(changed) = &state.running_changed {
        return Some(format!("the running slot {} was changed: {changed}", facts.booted));
    }
    if let Some((slot, root_hash)) = &state.damaged {
        return Some(format!("slot {slot} does not hold {root_hash} any more"));
    }
    match facts.table {
        TableHealth::Good => {}
        TableHealth::PrimaryUnread => {
            return Some(
                "the primary partition table can't be read: until it can, nothing is written to it".to_owned(),
            );
        }
        TableHealth::PrimaryBroken | TableHealth::BackupBroken => {
            return Some("one copy of the partition table is broken".to_owned());
        }
    }
    let strays: Vec<_> = facts.boot.view.strays.iter().map(|file| file.name.as_str()).collect();
    if !strays.is_empty() {
        return Some(format!("boot images that boot no slot: {}", strays.join(", ")));
    }
    let running = facts.booted_slot();
    if state.lost_its_counter(facts) {
        return Some(format!("the boot entry of slot {} lost its counter; the guard ends the trial", facts.booted));
    }
    if running.entry == Entry::None {
        return Some(format!("the running slot {} has no boot entry", facts.booted));
    }
    match &running.content {
        SlotContent::Release { root_hash, .. } if *root_hash != facts.root_hash => {
            Some(format!("the labels of the running slot {} name another release", facts.booted))
        }
        SlotContent::Empty | SlotContent::Writing { .. } => {
            Some(format!("the running slot {} is labelled as empty", facts.booted))
        }
        _ => None,
    }
}
