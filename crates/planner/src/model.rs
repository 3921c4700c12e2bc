//! Carries plans out in memory: what a snapshot looks like once an action is done.
//!
//! The forecast and the simulator need this; the operator does the same through the API server, with the spec of a
//! NodeUpdate from the same function ([`Action::spec_after`]).

use crate::{
    Action, Mismatch, Report, Snapshot, Step,
    plan::{HookOrder, Judged, Taint},
    snapshot::{Cordon, Excluded, HookRun, HookState, Node, PolicyFacts, Truce, UpdateFacts},
    statuses::brings_verdicts,
};
use bascule_api::NodeUpdateStatus;
use std::sync::Arc;

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It was carried out.
    Applied,
    /// The facts are not as it expects; nothing was done.
    Refused(Mismatch),
    /// The node or policy is not there any more; nothing was done.
    Gone,
}

/// Carries one step out on a snapshot. The report is that of the same plan: it holds what [`Action::Remember`] writes.
pub fn apply(snapshot: &mut Snapshot, step: &Step, report: &Report) -> Done {
    match &step.action {
        Action::Remember { policy, judged, .. } => {
            for Judged { node, expect } in judged {
                let Some(known) = snapshot.nodes.iter().find(|known| *known.name == **node) else { return Done::Gone };
                if let Err(mismatch) = expect.check(known) {
                    return Done::Refused(mismatch);
                }
            }
            let said = report.policies.iter().find(|said| said.policy == *policy);
            let known = snapshot.policies.iter_mut().find(|known| known.name == *policy);
            let (Some(said), Some(known)) = (said, known) else { return Done::Gone };
            Arc::make_mut(known).status = said.status.clone();
            return Done::Applied;
        }
        Action::AcceptRollback { rollback, status } => {
            let known = snapshot.rollbacks.iter_mut().find(|known| known.name == *rollback);
            let Some(known) = known else { return Done::Gone };
            Arc::make_mut(known).status = status.clone();
            return Done::Applied;
        }
        Action::ForgetFreeze { freeze } => {
            let before = snapshot.freezes.len();
            snapshot.freezes.retain(|known| known.name != *freeze);
            return if snapshot.freezes.len() < before { Done::Applied } else { Done::Gone };
        }
        Action::KeepRolloutHook(order) => {
            run(snapshot, order, HookState::Kept);
            return Done::Applied;
        }
        Action::RunRolloutHook(order) => {
            let since = snapshot.now;
            run(snapshot, order, HookState::Running { since });
            return Done::Applied;
        }
        _ => {}
    }
    let Some(name) = step.action.node() else { return Done::Gone };
    let Some(node) = snapshot.nodes.iter_mut().find(|node| &*node.name == name) else { return Done::Gone };
    if let Err(mismatch) = step.expect.check(node) {
        return Done::Refused(mismatch);
    }
    if let Action::RunHook(order) = &step.action {
        let since = snapshot.now;
        run(snapshot, order, HookState::Running { since });
        return Done::Applied;
    }
    on_node(Arc::make_mut(node), &step.action);
    Done::Applied
}

/// The Job of a hook, unless there is one already; one that was kept is begun.
fn run(snapshot: &mut Snapshot, order: &HookOrder, state: HookState) {
    let of = if order.node.is_empty() { &order.policy } else { &order.node };
    let policy = snapshot.policies.iter().find(|policy| policy.name == order.policy);
    let valid = policy.and_then(|policy| policy.spec.as_ref().ok());
    let hook = valid.and_then(|valid| order.stage.hooks(&valid.spec.hooks).iter().find(|hook| hook.name == order.hook));
    // The policy has no such hook any more: nothing runs.
    let Some(hook) = hook else { return };
    let job = format!("{}/{}-{of}-{}", hook.namespace, order.hook, order.grant);
    let known = snapshot.hooks.iter_mut().find(|run| run.job == job && run.stage == order.stage);
    match known {
        Some(known) if known.state == HookState::Kept => known.state = state,
        Some(_) => {}
        None => snapshot.hooks.push(HookRun {
            policy: order.policy.clone(),
            node: order.node.clone(),
            grant: order.grant,
            stage: order.stage,
            hook: order.hook.clone(),
            job,
            state,
        }),
    }
}

/// What an action does to a node and its NodeUpdate.
fn on_node(node: &mut Node, action: &Action) {
    match action {
        Action::CreateNodeUpdate { spec, .. } => {
            node.earlier = None;
            node.update.get_or_insert_with(|| UpdateFacts {
                generation: 1,
                owner_uid: Some(node.uid.clone()),
                deleting: false,
                spec: (**spec).clone(),
                status: NodeUpdateStatus::default(),
            });
        }
        Action::Taint { taint, .. } => set_taint(node, *taint, true),
        Action::Untaint { taint, .. } => set_taint(node, *taint, false),
        Action::Cordon { mark, .. } => {
            node.cordon = Cordon::Ours { mark: mark.clone() };
            node.truce = Truce::Held;
            exclude(node);
        }
        Action::Truce { exclude: too, .. } => {
            node.truce = Truce::Held;
            if *too {
                exclude(node);
            }
        }
        Action::EndTruce { .. } => {
            node.truce = Truce::None;
            include(node);
        }
        Action::Uncordon { remove_outdated, truce_until, .. } => {
            node.cordon = Cordon::None;
            include(node);
            if node.truce != Truce::None {
                node.truce = Truce::Until(*truce_until);
            }
            if *remove_outdated {
                node.taints.outdated = false;
            }
        }
        _ => {
            if let Some(update) = &mut node.update
                && let Some(spec) = action.spec_after(&update.spec)
                && spec != update.spec
            {
                update.spec = spec;
                update.generation += 1;
            }
        }
    }
}

fn exclude(node: &mut Node) {
    if node.excluded == Excluded::No {
        node.excluded = Excluded::ByUs;
    }
}

fn include(node: &mut Node) {
    if node.excluded == Excluded::ByUs {
        node.excluded = Excluded::No;
    }
}

const fn set_taint(node: &mut Node, taint: Taint, there: bool) {
    match taint {
        Taint::Outdated => node.taints.outdated = there,
        Taint::Hold => node.taints.hold = there,
    }
}

/// Writes what a report says into the statuses of policies, Freezes and Rollbacks, as the operator does after acting.
pub fn write_statuses(snapshot: &mut Snapshot, report: &Report) {
    for said in &report.policies {
        let known = snapshot.policies.iter_mut().find(|known| known.name == said.policy);
        // Nothing is written over what can't be read, and no verdict with what is said beside it.
        let writes = |known: &&mut Arc<PolicyFacts>| {
            known.status != said.status && known.unreadable().is_none() && !brings_verdicts(&known.status, &said.status)
        };
        if let Some(known) = known.filter(writes) {
            Arc::make_mut(known).status = said.status.clone();
        }
    }
    // By their names: some may have been forgotten since.
    for said in &report.freezes {
        let known = snapshot.freezes.iter_mut().find(|known| known.name == said.freeze);
        if let Some(known) = known.filter(|known| known.status != said.status) {
            Arc::make_mut(known).status = said.status.clone();
        }
    }
    for (known, status) in snapshot.rollbacks.iter_mut().zip(&report.rollbacks) {
        if known.status != *status {
            Arc::make_mut(known).status = status.clone();
        }
    }
}
