//! The actions.

use super::Expect;
use crate::snapshot::HookStage;
use bascule_api::{
    Cause, DaemonSetBefore, DisruptionOutcome, Duration, Goal, NodeUpdateSpec, PackFallback, PolicyFailure, ReleaseRef,
    Retry, RollbackStatus, Time, Version,
};

/// Everything the operator does to the cluster, standing drain orders apart. Each is idempotent: doing it again on an
/// object that already shows it changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write the policy's status as it stands in the report, before anything else is done.
    Remember {
        /// The policy.
        policy: String,
        /// What is new in its memory, for events.
        changes: Vec<MemoryChange>,
        /// The trials that the operator itself finds wanting in it. Nothing is written where one of them is another by now.
        judged: Vec<Judged>,
    },
    /// Write the Rollback's status: which releases are left is decided once.
    AcceptRollback {
        /// The Rollback.
        rollback: String,
        /// Its status from now on.
        status: RollbackStatus,
    },
    /// Delete a Freeze that ended so long ago that its record is not kept any more. It holds nothing and is not planned for.
    ForgetFreeze {
        /// The Freeze.
        freeze: String,
    },
    /// Create the node's NodeUpdate, owned by the Node: with [`super::initial_spec`], or with the disruption of an earlier
    /// Node of this name, which is carried on with.
    CreateNodeUpdate {
        /// The node.
        node: String,
        /// Its spec.
        spec: Box<NodeUpdateSpec>,
    },
    /// Carry on with a trial whose grant the NodeUpdate knows nothing of: its Node was deleted meanwhile and came back.
    Adopt {
        /// The node.
        node: String,
        /// The release on trial.
        release: ReleaseRef,
        /// The generation of the grant that the agent used for it.
        generation: i64,
        /// Why it was given, as far as that can be known.
        cause: Cause,
        /// Whether somebody else cordoned the node.
        was_cordoned: bool,
        /// When.
        at: Time,
    },
    /// Hand the node over to another policy.
    SetPolicy {
        /// The node.
        node: String,
        /// The policy that selects it from now on.
        policy: String,
    },
    /// Hand on a person's word that the node tries again what went wrong on it.
    Retry {
        /// The node.
        node: String,
        /// When it was said.
        at: Time,
    },
    /// Put one of our taints on the Node.
    Taint {
        /// The node.
        node: String,
        /// The taint.
        taint: Taint,
    },
    /// Take one of our taints off the Node.
    Untaint {
        /// The node.
        node: String,
        /// The taint.
        taint: Taint,
    },
    /// Goal Staged: the agent fetches and verifies the release.
    Stage {
        /// The node.
        node: String,
        /// The policy that asks for it.
        policy: String,
        /// The release.
        release: ReleaseRef,
        /// What the agent does when the cheapest pack is missing.
        pack_fallback: PackFallback,
    },
    /// Goal Idle: nothing is asked of the agent any more.
    Rest {
        /// The node.
        node: String,
    },
    /// Give the node a grant.
    Grant {
        /// The node.
        node: String,
        /// The boot it is given for.
        boot_id: String,
        /// Its generation, above every one before, as far as NodeUpdate and agent know of them; no Job of a hook has it.
        generation: i64,
        /// Why.
        cause: Cause,
        /// Whether the node was cordoned before.
        was_cordoned: bool,
        /// When.
        at: Time,
        /// Whether the drain begins at the same moment (no hooks run before it), which saves a write.
        drain_begins: bool,
        /// Its budgets allow nothing and are given this time from the cordon on to open.
        budgets_open_within: Option<Duration>,
        /// The budgets that allow nothing now, `namespace/name`.
        closed_budgets: Vec<String>,
        /// The node's DaemonSet pods as they are now.
        daemon_sets: Vec<DaemonSetBefore>,
        /// Whether a person accepted that the release is made for an older state of the machine.
        accept_state: bool,
    },
    /// Create the Job of a hook for this node and grant, under a name that follows from them.
    RunHook(HookOrder),
    /// Create the Job of a hook after a maintenance, suspended, so that it is there whatever becomes of its policy.
    KeepRolloutHook(HookOrder),
    /// Create the Job of a hook of a whole maintenance, or begin the one that was kept: its order names no node, and the
    /// maintenance's number for the grant.
    RunRolloutHook(HookOrder),
    /// Note that a hook succeeded for this grant.
    NoteHook {
        /// The node.
        node: String,
        /// The hook, see [`bascule_api::Disruption::hooks_done`].
        hook: String,
    },
    /// Note that the drain begins.
    BeginDrain {
        /// The node.
        node: String,
        /// When.
        at: Time,
    },
    /// Ask autoscalers to leave the Node alone.
    Truce {
        /// The node.
        node: String,
        /// Take it out of external load balancers as well: somebody else has cordoned it, so that we do not.
        exclude: bool,
    },
    /// Put back what others had said to autoscalers about the Node, and into load balancers what we took out.
    EndTruce {
        /// The node.
        node: String,
    },
    /// Note that the node is empty, though volumes of its pods are still attached.
    Emptied {
        /// The node.
        node: String,
        /// When.
        at: Time,
    },
    /// Cordon the Node, mark it as cordoned by us, exclude it from external load balancers, and ask autoscalers to leave it
    /// alone; one patch.
    Cordon {
        /// The node.
        node: String,
        /// The annotation's text.
        mark: String,
    },
    /// Goal Booted: the node is empty and may reboot into the release.
    Boot {
        /// The node.
        node: String,
        /// When it was seen empty.
        drained_at: Time,
        /// The node's DaemonSet pods as they were last seen before the reboot.
        daemon_sets: Vec<DaemonSetBefore>,
    },
    /// Goal Staged (or Idle, where the node was to go back) again: the agent did not reboot, and is not to any more.
    /// The grant is freed once the agent has taken note.
    Retract {
        /// The node.
        node: String,
        /// What the agent is asked from now on.
        goal: Goal,
    },
    /// Goal Committed: the trial is made permanent.
    Commit {
        /// The node.
        node: String,
        /// What runs, where the spec names another release: the one that was left for it.
        release: Option<ReleaseRef>,
    },
    /// Goal Reverted: the node leaves a release for what its other slot holds.
    Revert {
        /// The node.
        node: String,
        /// The release that is left.
        release: ReleaseRef,
        /// When the node was seen empty, where this begins the reboot (a committed release is left).
        drained_at: Option<Time>,
        /// The node's DaemonSet pods as they were last seen, where this begins the reboot.
        daemon_sets: Vec<DaemonSetBefore>,
    },
    /// Uncordon the Node that we cordoned, remove our annotation and the load balancer label; one patch.
    Uncordon {
        /// The node.
        node: String,
        /// The annotation's text that must be there.
        mark: String,
        /// Whether the outdated taint goes too.
        remove_outdated: bool,
        /// Until when autoscalers leave the node alone still.
        truce_until: Time,
    },
    /// The disruption is over: forget it, remember how it ended.
    FreeGrant {
        /// The node.
        node: String,
        /// How it ended.
        outcome: DisruptionOutcome,
        /// The release it was about.
        version: Option<Version>,
        /// When.
        at: Time,
        /// What the agent is asked from now on: Idle, Staged or Committed.
        goal: Goal,
        /// In a sentence, what stopped it; empty for a success.
        message: String,
        /// The gate that said no, of a trial that was given up for what a gate says of the cluster.
        gate: Option<String>,
    },
}

/// A trial of which a policy is to remember that its release failed. The word to the node that takes it back expects the same of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The node.
    pub node: String,
    /// What must hold of it, past every watch that may be late: the boots that kubelet and agent report from above all.
    pub expect: Expect,
}

/// A hook to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookOrder {
    /// The node.
    pub node: String,
    /// The policy whose hook it is.
    pub policy: String,
    /// The generation of the grant.
    pub grant: i64,
    /// When it runs.
    pub stage: HookStage,
    /// The hook's name.
    pub hook: String,
    /// The release, for the Job's environment.
    pub version: Option<Version>,
}

/// A taint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Taint {
    /// [`bascule_api::OUTDATED_TAINT`], `PreferNoSchedule`.
    Outdated,
    /// [`bascule_api::HOLD_TAINT`], `NoSchedule`.
    Hold,
}

impl Taint {
    /// The taint's key.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Outdated => bascule_api::OUTDATED_TAINT,
            Self::Hold => bascule_api::HOLD_TAINT,
        }
    }

    /// The taint's effect.
    #[must_use]
    pub const fn effect(self) -> &'static str {
        match self {
            Self::Outdated => "PreferNoSchedule",
            Self::Hold => "NoSchedule",
        }
    }
}

/// What is new in a policy's memory.
#[derive(Debug, Clone, PartialEq)]
pub enum MemoryChange {
    /// A release failed on a node.
    Failed(PolicyFailure),
    /// A release is never installed again by this policy.
    Blocked {
        /// The release.
        version: Version,
        /// By what.
        by: String,
        /// Why.
        reason: String,
    },
    /// What failed on a node is forgotten, as a person asked.
    Retried(Retry),
    /// A rollout began.
    Started(Version),
    /// A rollout ended.
    Ended(Version, bascule_api::Outcome),
    /// A maintenance was planned, began, ends or is over: the event's reason, and what is said.
    Maintenance(&'static str, String),
    /// Drains, boots or health checks took other times than known.
    Timed,
    /// Nodes with a control plane or a member of etcd were seen for the first time, were taken out for good, or are there although
    /// somebody said so.
    Members,
    /// A wave was complete for the first time, or the waves begin anew with another release.
    Waves,
}

impl Action {
    /// Whether it puts in order what nobody waits for: other steps of its node do not wait for it either.
    #[must_use]
    pub const fn is_housekeeping(&self) -> bool {
        matches!(
            self,
            Self::EndTruce { .. }
                | Self::Taint { taint: Taint::Outdated, .. }
                | Self::Untaint { taint: Taint::Outdated, .. }
        )
    }

    /// The node it is about.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Remember { .. }
            | Self::AcceptRollback { .. }
            | Self::ForgetFreeze { .. }
            | Self::KeepRolloutHook(_)
            | Self::RunRolloutHook(_) => None,
            Self::RunHook(order) => Some(&order.node),
            Self::CreateNodeUpdate { node, .. }
            | Self::Adopt { node, .. }
            | Self::SetPolicy { node, .. }
            | Self::Retry { node, .. }
            | Self::Taint { node, .. }
            | Self::Untaint { node, .. }
            | Self::Stage { node, .. }
            | Self::Rest { node }
            | Self::Grant { node, .. }
            | Self::NoteHook { node, .. }
            | Self::BeginDrain { node, .. }
            | Self::Truce { node, .. }
            | Self::EndTruce { node }
            | Self::Emptied { node, .. }
            | Self::Cordon { node, .. }
            | Self::Boot { node, .. }
            | Self::Retract { node, .. }
            | Self::Commit { node, .. }
            | Self::Revert { node, .. }
            | Self::Uncordon { node, .. }
            | Self::FreeGrant { node, .. } => Some(node),
        }
    }

    /// The hook whose Job it makes.
    #[must_use]
    pub const fn hook(&self) -> Option<&HookOrder> {
        match self {
            Self::RunHook(order) | Self::KeepRolloutHook(order) | Self::RunRolloutHook(order) => Some(order),
            _ => None,
        }
    }

    /// The action's name for audit lines and metric labels.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Remember { .. } => "Remember",
            Self::AcceptRollback { .. } => "AcceptRollback",
            Self::ForgetFreeze { .. } => "ForgetFreeze",
            Self::CreateNodeUpdate { .. } => "CreateNodeUpdate",
            Self::Adopt { .. } => "Adopt",
            Self::SetPolicy { .. } => "SetPolicy",
            Self::Retry { .. } => "Retry",
            Self::Taint { .. } => "Taint",
            Self::Untaint { .. } => "Untaint",
            Self::Stage { .. } => "Stage",
            Self::Rest { .. } => "Rest",
            Self::Grant { .. } => "Grant",
            Self::RunHook(_) => "RunHook",
            Self::KeepRolloutHook(_) => "KeepRolloutHook",
            Self::RunRolloutHook(_) => "RunRolloutHook",
            Self::NoteHook { .. } => "NoteHook",
            Self::BeginDrain { .. } => "BeginDrain",
            Self::Truce { .. } => "Truce",
            Self::EndTruce { .. } => "EndTruce",
            Self::Emptied { .. } => "Emptied",
            Self::Cordon { .. } => "Cordon",
            Self::Boot { .. } => "Boot",
            Self::Retract { .. } => "Retract",
            Self::Commit { .. } => "Commit",
            Self::Revert { .. } => "Revert",
            Self::Uncordon { .. } => "Uncordon",
            Self::FreeGrant { .. } => "FreeGrant",
        }
    }
}
