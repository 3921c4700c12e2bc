//! Break glass: what a person asks for on the node itself, without a cluster.

use bascule_api::{ManualAction, NodeError, PackFallback};

use super::housekeeping::{Plan, next_journal, short};
use super::step::refuse;
use super::{Effect, Entry, Facts, ManualCommand, Now, ReleaseTarget, SlotContent, State, goal};

/// The next thing to do for a person on the node. The command is over when there is nothing more to do for it, or
/// when a problem stands in the way.
pub(super) fn next(state: &mut State, facts: &Facts, now: Now) -> Plan {
    let manual = state.manual.clone()?;
    let journal = state.journal.as_ref()?;
    let at = bascule_api::Time::from(manual.at);
    if !journal.manual.iter().any(|action| action.at == at && action.action == manual.command.name()) {
        let mut next = next_journal(journal);
        next.record_manual(ManualAction {
            action: manual.command.name().to_owned(),
            at,
            user: manual.user.map(|user| user.chars().take(64).collect()),
        });
        if let ManualCommand::Stage(release) = &manual.command {
            // A person may try a release again that failed here.
            next.failed.retain(|failed| failed.digest != release.digest);
        }
        return short(vec![Effect::Persist(next)]);
    }
    let plan = match &manual.command {
        ManualCommand::Stage(release) => {
            let there = state.ready(facts).is_some_and(|known| known.digest == release.digest);
            if there { None } else { goal::bring(state, facts, now, &release.clone(), PackFallback::Allow) }
        }
        ManualCommand::Commit => goal::commit(state, facts, now),
        ManualCommand::Revert => revert(state, facts, now),
    };
    if plan.is_none() && state.reboot_asked.is_none() {
        state.manual = None;
    }
    plan
}

fn revert(state: &mut State, facts: &Facts, now: Now) -> Plan {
    if state.is_trial(facts) {
        return goal::give_up(state, facts, now, "a person on the node gave the trial up".to_owned());
    }
    let SlotContent::Release { version, root_hash } = &facts.inactive_slot().content else {
        let message = format!("slot {} holds no whole release to go back to", facts.inactive());
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    };
    let known = state.journal.as_ref().and_then(|journal| journal.known(root_hash)).cloned();
    let target = match known {
        Some(known) => ReleaseTarget::known(facts.inactive(), &known),
        None if facts.inactive_slot().entry != Entry::None => ReleaseTarget {
            slot: facts.inactive(),
            version: version.clone(),
            root_hash: root_hash.clone(),
            digest: None,
            uki: None,
        },
        None => {
            let message = format!("slot {} has no boot image", facts.inactive());
            refuse(state, now, NodeError::Unsuitable, message);
            return None;
        }
    };
    goal::arm(state, facts, now, target, 0)
}
