//! Break glass: what a person asks for on the node itself, without a cluster.

use bascule_api::{ManualAction, NodeError, PackFallback};

use super::housekeeping::{Plan, next_journal, short};
use super::protocol::{HostProtocol as _, host};
use super::step::refuse;
use super::{Effect, Facts, ManualCommand, Now, State, goal};

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
            next.try_again(|failed| failed.digest == release.digest);
        }
        return short(vec![Effect::Persist(Box::new(next))]);
    }
    let plan = match &manual.command {
        ManualCommand::Stage(release) => {
            let there = host(state, facts).staged().is_some_and(|known| known.digest == release.digest);
            if there { None } else { goal::bring(state, facts, now, &release.clone(), PackFallback::Allow) }
        }
        ManualCommand::Commit => goal::commit(state, facts, now),
        ManualCommand::Revert { accept_state } => revert(state, facts, now, *accept_state),
    };
    if plan.is_none() && state.reboot_asked.is_none() {
        state.manual = None;
    }
    plan
}

fn revert(state: &mut State, facts: &Facts, now: Now, accept_state: bool) -> Plan {
    if state.is_trial(facts) {
        return goal::give_up(state, facts, now, "a person on the node gave the trial up".to_owned());
    }
    let other = host(state, facts).other();
    match other {
        Ok(target) => goal::arm(state, facts, now, target, goal::Asked { generation: 0, accept_state }),
        Err(message) => {
            refuse(state, now, NodeError::Unsuitable, message);
            None
        }
    }
}
