//! The gates between a node and its disruption, as names. What each asks is in [`crate::decide`].

/// One thing that must hold before a node is disrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// The agent reports, from the boot the kubelet reports from.
    Agent,
    /// The boot loader's counting is not known to be broken.
    BootCounting,
    /// The policy is not paused.
    NotPaused,
    /// No Freeze holds the policy.
    NoFreeze,
    /// The policy did not halt after failures.
    NotHalted,
    /// The repository's metadata can be trusted.
    Repository,
    /// There is a release for the node that is neither blocked nor withdrawn nor behind a floor, nor made for an older state than the
    /// machine was used with.
    Release,
    /// The release did not fail on this node.
    NotFailedHere,
    /// The release is old enough.
    Age,
    /// The way back is not overwritten before the running release is proven.
    RollbackRetention,
    /// The API servers take the kubelet that the release brings.
    Skew,
    /// The release is staged.
    Staged,
    /// A maintenance window is open.
    Window,
    /// Drain, reboot and health checks fit before the window closes.
    Fits,
    /// The node's wave has begun.
    Wave,
    /// The wave before has soaked.
    WaveSoak,
    /// Nobody else cordoned the node.
    NotCordoned,
    /// No autoscaler is removing the node.
    NotLeaving,
    /// The node is Ready, or nothing better is left to do.
    Ready,
    /// No backoff after a failed drain.
    Backoff,
    /// Every pod that has to go may be evicted.
    Drainable,
    /// The PodDisruptionBudgets of its pods allow a disruption.
    DisruptionBudget,
    /// The policy's budget.
    Budget,
    /// The failure domains' budget.
    Domain,
    /// The cluster-wide ceiling.
    ClusterMaxUnavailable,
    /// Control-plane nodes one at a time, etcd's quorum kept.
    ControlPlane,
    /// The operator's own node goes last.
    OperatorLast,
    /// Another node could take each pod that has to go.
    Place,
    /// The policy's health gates.
    Health,
}

/// Every gate, in the order in which they are asked.
pub const GATES: [Gate; 29] = [
    Gate::Agent,
    Gate::BootCounting,
    Gate::NotPaused,
    Gate::NoFreeze,
    Gate::NotHalted,
    Gate::Repository,
    Gate::Release,
    Gate::NotFailedHere,
    Gate::Age,
    Gate::RollbackRetention,
    Gate::Skew,
    Gate::Staged,
    Gate::Window,
    Gate::Fits,
    Gate::Wave,
    Gate::WaveSoak,
    Gate::NotCordoned,
    Gate::NotLeaving,
    Gate::Ready,
    Gate::Backoff,
    Gate::Drainable,
    Gate::DisruptionBudget,
    Gate::Budget,
    Gate::Domain,
    Gate::ClusterMaxUnavailable,
    Gate::ControlPlane,
    Gate::OperatorLast,
    Gate::Place,
    Gate::Health,
];

impl Gate {
    /// The gate's name as it stands in `status.rollout.passedGates`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "Agent",
            Self::BootCounting => "BootCounting",
            Self::NotPaused => "NotPaused",
            Self::NoFreeze => "NoFreeze",
            Self::NotHalted => "NotHalted",
            Self::Repository => "Repository",
            Self::Release => "Release",
            Self::NotFailedHere => "NotFailedHere",
            Self::Age => "Age",
            Self::RollbackRetention => "RollbackRetention",
            Self::Skew => "Skew",
            Self::Staged => "Staged",
            Self::Window => "Window",
            Self::Fits => "Fits",
            Self::Wave => "Wave",
            Self::WaveSoak => "WaveSoak",
            Self::NotCordoned => "NotCordoned",
            Self::NotLeaving => "NotLeaving",
            Self::Ready => "Ready",
            Self::Backoff => "Backoff",
            Self::Drainable => "Drainable",
            Self::DisruptionBudget => "DisruptionBudget",
            Self::Budget => "Budget",
            Self::Domain => "Domain",
            Self::ClusterMaxUnavailable => "ClusterMaxUnavailable",
            Self::ControlPlane => "ControlPlane",
            Self::OperatorLast => "OperatorLast",
            Self::Place => "Place",
            Self::Health => "Health",
        }
    }

    /// Its place in [`GATES`].
    #[must_use]
    pub const fn index(self) -> u8 {
        self as u8
    }
}

/// What is kept to beside the gates, once a node moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Health and soak count from what was seen in the boot on trial.
    ThisBoot,
    /// A machine that does not come back says nothing of the release, unless a second one does not either.
    SlowIsNoVerdict,
    /// A gate that speaks of the cluster says nothing of the release that one node tries.
    ClusterIsNoVerdict,
    /// A hook that succeeded for a grant is not run again.
    HooksOnce,
    /// Nobody is disrupted before the hooks of the whole rollout succeeded.
    RolloutHooks,
    /// A trial whose Node was deleted and came back is carried on with.
    Adoption,
    /// A new node is not held while it waits for what may take days.
    HeldForMinutes,
    /// What is not known yet does not let a new node go.
    HeldUntilKnown,
    /// A new node is let go when its time is over, whatever it waits for, unless its update is under way.
    HoldEnds,
    /// A node is taken out of external load balancers before it is emptied, whoever has cordoned it.
    OutOfLoadBalancers,
    /// A node reboots when the volumes of the pods that have left it are detached, or their time has passed.
    VolumesFirst,
    /// A person's uncordon in the middle of a drain ends it.
    PersonsUncordon,
    /// Autoscalers are asked to leave a node alone before anything happens to it, whoever has cordoned it.
    Truce,
    /// What was said to autoscalers is taken back when its time is over.
    TruceEnds,
    /// What was not ready before the reboot is not asked of the release.
    BrokenBefore,
    /// Only a budget that was closed at the grant is given up for not opening.
    ClosedAtGrant,
    /// What broke between the grant and the word to reboot is no fault of the release.
    Shaken,
    /// Of the nodes whose budget opens only after a cordon one at a time is cordoned for it.
    OneForEachBudget,
    /// Pods that can't be evicted are deleted only once the drain's time is over.
    DeleteAfterTimeout,
    /// A gate that speaks of the node is asked for each node.
    PerNodeGate,
    /// A wave that was complete holds nobody back again for nodes that join, come back or are lost.
    WavesPassed,
    /// The hooks after a rollout run, however it came to its end.
    HooksAfterRollout,
    /// A drain stands, with what it knows, until the word to reboot is written.
    DrainStands,
    /// Before the first hook of a rollout runs, those after it are kept where they outlive their policy.
    HooksKept,
    /// A node that can't be cordoned, or whose hooks can't be started, is given back when the time for that is over.
    GivenBack,
}

/// Every rule.
pub const RULES: [Rule; 25] = [
    Rule::ThisBoot,
    Rule::SlowIsNoVerdict,
    Rule::ClusterIsNoVerdict,
    Rule::HooksOnce,
    Rule::RolloutHooks,
    Rule::Adoption,
    Rule::HeldForMinutes,
    Rule::HeldUntilKnown,
    Rule::HoldEnds,
    Rule::OutOfLoadBalancers,
    Rule::VolumesFirst,
    Rule::PersonsUncordon,
    Rule::Truce,
    Rule::TruceEnds,
    Rule::BrokenBefore,
    Rule::ClosedAtGrant,
    Rule::Shaken,
    Rule::OneForEachBudget,
    Rule::DeleteAfterTimeout,
    Rule::PerNodeGate,
    Rule::WavesPassed,
    Rule::HooksAfterRollout,
    Rule::DrainStands,
    Rule::HooksKept,
    Rule::GivenBack,
];

/// The bit of the first rule.
const RULES_FROM: u32 = 32;

/// A set of gates that are asked and rules that are kept to. Everything but tests asks all of them; a test that switches
/// one off proves that the invariants notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSet(u64);

impl GateSet {
    /// All gates.
    pub const ALL: Self = Self(u64::MAX);

    /// All but one.
    #[must_use]
    pub const fn without(gate: Gate) -> Self {
        Self(u64::MAX ^ (1 << gate as u32))
    }

    /// All but one rule.
    #[must_use]
    pub const fn without_rule(rule: Rule) -> Self {
        Self(u64::MAX ^ (1 << (rule as u32 + RULES_FROM)))
    }

    /// Whether a rule is kept to.
    #[must_use]
    pub const fn keeps(self, rule: Rule) -> bool {
        self.0 & (1 << (rule as u32 + RULES_FROM)) != 0
    }

    /// Whether a gate is asked.
    #[must_use]
    pub const fn asks(self, gate: Gate) -> bool {
        self.0 & (1 << gate as u32) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_index_agree() {
        for (index, gate) in GATES.iter().enumerate() {
            assert_eq!(usize::from(gate.index()), index);
            assert!(GateSet::ALL.asks(*gate) && !GateSet::without(*gate).asks(*gate));
        }
        for (index, rule) in RULES.iter().enumerate() {
            assert_eq!(*rule as usize, index);
            let without = GateSet::without_rule(*rule);
            assert!(!without.keeps(*rule) && GATES.iter().all(|gate| without.asks(*gate)), "a bit for each");
        }
    }
}
