//! The invariants, checked on the world itself.

use super::World;
use bascule_api::{IntOrPercent, WaitReason};
use bascule_planner::{
    Action, Report, Violation,
    snapshot::{Cordon, Truce},
};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The planner's own lint found it in a plan.
    Lint(Violation),
    /// The world shows it: the invariant's number and what is seen.
    World(u8, String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lint(violation) => write!(f, "{violation} (lint)"),
            Self::World(number, what) => write!(f, "invariant {number}: {what}"),
        }
    }
}

/// Right after a step was carried out on the newest facts.
pub(super) fn step(world: &World, action: &Action) -> Vec<Broken> {
    let mut broken = Vec::new();
    let Action::Grant { node, cause, .. } = action else { return broken };
    let ignores = world
        .snapshot
        .rollbacks
        .iter()
        .any(|rollback| rollback.name == cause.object.name && rollback.spec.ignore_budgets);
    let Some(granted) = world.snapshot.nodes.iter().find(|known| *known.name == **node) else { return broken };
    let Some(policy) = granted.update.as_ref().map(|update| update.spec.policy.clone()) else { return broken };
    let ours = |name: &str| {
        let moving = world.snapshot.nodes.iter().filter(|node| node.granted());
        moving.filter(|node| node.update.as_ref().is_some_and(|update| update.spec.policy == name)).count()
    };
    let members = |valid: &bascule_planner::ValidPolicy| {
        let selects =
            |node: &&std::sync::Arc<bascule_planner::snapshot::Node>| valid.spec.node_selector.matches(&node.labels);
        world.snapshot.nodes.iter().filter(selects).count()
    };
    if let Some(Ok(valid)) =
        world.snapshot.policies.iter().find(|known| known.name == policy).map(|policy| &policy.spec)
        && !ignores
    {
        let most = limit(&valid.spec.budget.max_unavailable, members(valid).max(ours(&policy)));
        if ours(&policy) > most {
            broken.push(Broken::World(4, format!("{} nodes of {policy} are granted, {most} may be", ours(&policy))));
        }
    }
    let all = world.snapshot.nodes.iter().filter(|node| node.granted()).count();
    if let Some(ceiling) = world.snapshot.ceiling.as_ref().filter(|_| !ignores) {
        let most = limit(ceiling, world.snapshot.nodes.len());
        if all > most {
            broken.push(Broken::World(4, format!("{all} nodes of the cluster are granted, {most} may be")));
        }
    }
    let control = world.snapshot.nodes.iter().filter(|node| node.granted() && node.control_plane).count();
    if control > 1 && granted.control_plane {
        broken.push(Broken::World(4, format!("{control} control-plane nodes are granted")));
    }
    broken
}

fn limit(quantity: &IntOrPercent, of: usize) -> usize {
    usize::try_from(quantity.of(u32::try_from(of).unwrap_or(u32::MAX)).unwrap_or(0)).unwrap_or(0)
}

/// After each round.
pub(super) fn world(world: &World) -> Vec<Broken> {
    let mut broken = Vec::new();
    for held in &world.held_by_people {
        let node = world.snapshot.nodes.iter().find(|node| *node.name == **held);
        if node.is_some_and(|node| !node.cordon.is_cordoned()) {
            broken.push(Broken::World(7, format!("{held} was cordoned by a person and is not any more")));
        }
    }
    for node in world.snapshot.nodes.iter().filter(|node| matches!(node.cordon, Cordon::Ours { .. })) {
        if node.truce != Truce::Held {
            broken.push(Broken::World(0, format!("{} is cordoned and an autoscaler may take it away", node.name)));
        }
    }
    // One eviction for each pod that had to move, and nothing to speak of beyond.
    let (evictions, stood) = (world.workload.evictions, world.workload.stood.values().sum::<u32>());
    if evictions.saturating_mul(100) > stood.saturating_mul(105) {
        broken.push(Broken::World(0, format!("{evictions} evictions for {stood} pods that had to move")));
    }
    for (name, machine) in &world.machines {
        // A way back may fail, too: what counts is what was booted since.
        for (failed, boots) in &machine.failed_ever {
            let tried = machine.history.iter().skip(*boots).filter(|booted| *booted == failed).count();
            if tried > 0 {
                let what = format!("{name} booted {failed} {tried} times more, and it failed there");
                broken.push(Broken::World(6, what));
            }
        }
    }
    broken
}

/// When everything has come to rest: nothing is left behind, and who does not run the policy's release has a reason
/// that a person has to resolve.
pub(super) fn end(world: &World, report: &Report) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (node, said) in world.snapshot.nodes.iter().zip(&report.nodes) {
        // What ends later by itself is not left behind.
        let over = match node.truce {
            Truce::None => false,
            Truce::Held => true,
            Truce::Until(until) => until <= world.snapshot.now,
        };
        if over {
            broken.push(Broken::World(9, format!("{} is left with what we said to autoscalers", node.name)));
        }
        if node.cordon != Cordon::None {
            broken.push(Broken::World(9, format!("{} is left cordoned", node.name)));
        }
        let lasting = matches!(
            said.wait.reason,
            WaitReason::Current
                | WaitReason::NotSelected
                | WaitReason::PolicyConflict
                | WaitReason::ReleaseBlocked
                | WaitReason::ReleaseWithdrawn
                | WaitReason::NoRelease
                | WaitReason::Floor
                | WaitReason::FailedHere
                | WaitReason::Halted
                | WaitReason::Reverted
                | WaitReason::WindowTooShort
                | WaitReason::MaintenanceWindow
                | WaitReason::Wave
        );
        if !lasting {
            let what = format!("{} ends with {}: {}", node.name, said.wait.reason, said.wait.message);
            broken.push(Broken::World(9, what));
        }
    }
    broken
}
