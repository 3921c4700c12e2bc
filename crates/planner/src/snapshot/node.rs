//! Facts about one node, its NodeUpdate and what runs on it.

use super::Unreadable;
use crate::drain::{Needs, Space};
use bascule_api::{Architecture, Duration, Goal, NodeUpdateSpec, NodeUpdateStatus, ObjectRef, Time};
use std::{collections::BTreeMap, sync::Arc};

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// The node's name, which is its NodeUpdate's too. Shared with the report.
    pub name: Arc<str>,
    /// The Node object's UID.
    pub uid: String,
    /// When the Node object was created.
    pub created_at: Time,
    /// Whether the Node object is being deleted.
    pub deleting: bool,
    /// The Node's labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The kubelet's Ready condition.
    pub ready: Readiness,
    /// Whether, and by whom, the node is cordoned.
    pub cordon: Cordon,
    /// The taints of ours that it has.
    pub taints: Taints,
    /// Whether autoscalers are asked to leave it alone.
    pub truce: Truce,
    /// The taint by which an autoscaler says that it removes the node, where there is one.
    pub leaving: Option<String>,
    /// `status.nodeInfo.bootID`: the boot the kubelet reports from. Empty before its first report.
    pub boot_id: String,
    /// When that boot was first seen, by the operator. An operator that looks for the first time sees every
    /// boot now.
    pub boot_seen: Time,
    /// When the machine was first seen back in its present boot, by the same clock: when the kubelet or the agent first spoke from
    /// it, whoever was first. Until then it may have been away, however long; what has its time from the boot on has it from here.
    pub back_seen: Time,
    /// `status.nodeInfo.architecture`, where it is one that releases exist for.
    pub architecture: Option<Architecture>,
    /// Whether it is a control-plane node (label `node-role.kubernetes.io/control-plane`).
    pub control_plane: bool,
    /// The etcd member on it, if there is one.
    pub etcd: EtcdMember,
    /// The node's NodeUpdate, if there is one.
    pub update: Option<UpdateFacts>,
    /// The operator's word of a NodeUpdate that went with an earlier Node of this name in the middle of its disruption, as
    /// far as the operator remembers one.
    pub earlier: Option<Arc<NodeUpdateSpec>>,
    /// Whether it is taken out of external load balancers.
    pub excluded: Excluded,
    /// What it has to give to pods that look for a place.
    pub space: Space,
    /// The pods that a drain under the settings of the node's policy would have to evict.
    pub pods: NodePods,
    /// The DaemonSet pods that should run on it.
    pub daemon_sets: DaemonSets,
    /// Why the agent's pod on it does not run, see [`super::agent_pod_trouble`].
    pub agent_trouble: Option<Arc<str>>,
    /// Its NodeUpdate, or its Node, where that can't be read. What is known of the node beside is what can be read of the object, or was
    /// known before; without a NodeUpdate nothing is known of its disruption. Nothing is done to it.
    pub unreadable: Option<Arc<Unreadable>>,
    /// When either of them was read again that could not be before, the last time that the operator saw this happen: nobody looked after
    /// the node until then. `None` where it never did.
    pub read_again: Option<Time>,
}

/// The kubelet's Ready condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Whether it is `True`. `Unknown` is not ready.
    pub ready: bool,
    /// Its last transition.
    pub since: Option<Time>,
}

/// Whether a node is cordoned (`spec.unschedulable`), and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cordon {
    /// It is not.
    #[default]
    None,
    /// It is, and carries our annotation, whose text is `mark`.
    Ours {
        /// The annotation's text, see [`crate::plan::cordon_mark`].
        mark: String,
    },
    /// It is not, and carries our annotation: somebody uncordoned it.
    Lifted {
        /// The annotation's text.
        mark: String,
    },
    /// It is, without our annotation.
    Other {
        /// Who did it, as far as managedFields tell.
        by: Option<String>,
        /// When, as far as managedFields tell.
        since: Option<Time>,
    },
}

impl Cordon {
    /// Whether no new pods are scheduled there.
    #[must_use]
    pub const fn is_cordoned(&self) -> bool {
        !matches!(self, Self::None | Self::Lifted { .. })
    }
}

/// Whether autoscalers are asked to leave a node alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truce {
    /// They are not.
    #[default]
    None,
    /// They are.
    Held,
    /// They are until then.
    Until(Time),
}

/// Whether a node is taken out of external load balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Excluded {
    /// It is not.
    #[default]
    No,
    /// We did it.
    ByUs,
    /// Somebody else did.
    ByOthers,
}

/// The taints of ours on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taints {
    /// [`bascule_api::OUTDATED_TAINT`].
    pub outdated: bool,
    /// [`bascule_api::HOLD_TAINT`].
    pub hold: bool,
}

/// The etcd member on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtcdMember {
    /// None runs there.
    #[default]
    None,
    /// One runs there and is healthy (its pod is ready).
    Healthy,
    /// One should run there and is not healthy.
    Unhealthy,
}

/// A NodeUpdate as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateFacts {
    /// `metadata.generation`.
    pub generation: i64,
    /// The UID of the Node that owns it. Another one than the node's: the Node was deleted and came back, and the
    /// garbage collector will remove this object.
    pub owner_uid: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The operator's word.
    pub spec: NodeUpdateSpec,
    /// The agent's word. The operator's own part of it (`rollout`) is not needed here and may be left out.
    pub status: NodeUpdateStatus,
}

impl UpdateFacts {
    /// Whether the agent used a grant that this object knows nothing of: it was made anew since, because its Node was
    /// deleted and came back, or the cluster was restored from a backup.
    #[must_use]
    pub fn forgot_a_grant(&self) -> bool {
        let known = self.spec.grant.as_ref().map_or(0, |grant| grant.generation);
        self.status.last_grant.is_some_and(|used| used > known)
    }
}

/// The pods on a node that a drain has to remove; see [`crate::drain::node_pods`]. Pods that already terminate are among
/// them, until they are gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePods {
    /// How many pods have to go.
    pub remaining: u32,
    /// How many had to go when the running drain began, where that is known.
    pub total: Option<u32>,
    /// Pods that the policy's drain settings do not allow to evict. As long as there is one nothing is evicted.
    pub undrainable: Vec<UndrainablePod>,
    /// For each PodDisruptionBudget (key `namespace/name` in [`super::Snapshot::budgets`]) how many pods of this node
    /// need an allowed disruption of it. Pods that may be evicted without one (not ready, where the budget's policy
    /// for unhealthy pods allows it) are not counted.
    pub budgets: Vec<(String, u32)>,
    /// Those of them that open only once the node is cordoned, as the budget or one of the pods says, and within what time.
    pub opening: Vec<(String, Duration)>,
    /// What is waited for until it has completed, where there is something.
    pub completing: Option<Completing>,
    /// What the pods that have to go, and that a controller brings back elsewhere, need of another node, each kind once; with
    /// a pod that needs it, `namespace/name`. Empty where the policy does not ask.
    pub needs: Vec<(String, Arc<Needs>)>,
    /// Some of the pods that are left where they are because they would come back, `namespace/name`.
    pub coming_back: Vec<String>,
    /// Some of the pods that a rule or they themselves ask to leave for the reboot: `namespace/name`, and who asks.
    pub skipped: Vec<String>,
    /// Some of the volumes of pods that leave which are still attached to the node, while it is being emptied.
    pub attached: Vec<String>,
    /// Some of those that should have been detached long before the drain began: nobody waits for them.
    pub stuck: Vec<String>,
    /// A pod that the running drain has asked to go in vain so far, where there is one.
    pub blocked: Option<BlockedPod>,
    /// The PodDisruptionBudgets that made pods of the running drain wait, and for how long, where that is over.
    pub waited: Vec<(ObjectRef, Duration)>,
}

/// A pod that a drain waits for until it has completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completing {
    /// The pod; of several the one that is waited for longest.
    pub pod: ObjectRef,
    /// When it has completed or is not waited for any more, where that is known.
    pub by: Option<Time>,
    /// Who asks for the wait: `rule builds`, or what the pod says of itself.
    pub asked_by: String,
    /// How many more pods are waited for.
    pub more: u32,
}

impl std::fmt::Display for Completing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pod, self.asked_by)?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// A pod that does not go although a drain asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedPod {
    /// The pod.
    pub pod: ObjectRef,
    /// What the API server said.
    pub why: String,
    /// The PodDisruptionBudget that says no, where it is one.
    pub budget: Option<ObjectRef>,
    /// Whether only a person can change that.
    pub permanent: bool,
    /// How many more pods do not go.
    pub more: u32,
}

impl std::fmt::Display for BlockedPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} does not go: {}", self.pod, self.why)?;
        if self.more > 0 { write!(f, " (and {} more)", self.more) } else { Ok(()) }
    }
}

/// A pod that the policy's drain settings do not allow to evict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndrainablePod {
    /// `namespace/name`.
    pub pod: String,
    /// Why, e.g. `no controller will bring it back (spec.drain.force)`.
    pub why: String,
    /// When it may be evicted, where that is known.
    pub until: Option<Time>,
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisruptionBudget {
    /// `status.disruptionsAllowed`.
    pub allowed: u32,
    /// `status.currentHealthy`.
    pub healthy: u32,
    /// `status.desiredHealthy`.
    pub desired: u32,
    /// `status.expectedPods`.
    pub expected: u32,
    /// Some of the pods that are not healthy, `namespace/name` and on which node, for the message.
    pub unhealthy: Vec<String>,
    /// Some of the evictions that were allowed and never carried out, and until when each is counted, for the message.
    pub unfinished: Vec<String>,
}

impl DisruptionBudget {
    /// How the budget stands, in a part of a sentence.
    #[must_use]
    pub fn standing(&self) -> String {
        let mut standing = format!("{} of {} pods healthy, {} wanted", self.healthy, self.expected, self.desired);
        if !self.unhealthy.is_empty() {
            standing.push_str(&format!("; not healthy: {}", self.unhealthy.join(", ")));
        }
        if !self.unfinished.is_empty() {
            standing.push_str(&format!("; counts evictions that were never finished: {}", self.unfinished.join(", ")));
        }
        standing
    }
}

/// The DaemonSet pods that should run on a node, each with its set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DaemonSets(pub Vec<DaemonSetPod>);

/// The pod of a DaemonSet that should run on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonSetPod {
    /// The DaemonSet, `namespace/name`.
    pub set: Arc<str>,
    /// Whether there is such a pod, ready and not being deleted. What the API server shows: after a reboot that may be
    /// the word of the old boot.
    pub ready: bool,
    /// The last transition of its Ready condition, by the node's own clock.
    pub since: Option<Time>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookStage {
    /// After the grant, before the cordon.
    BeforeDrain,
    /// After the commit, before the uncordon.
    AfterCommit,
    /// Before the first node of a maintenance is granted.
    BeforeRollout,
    /// After its last node.
    AfterRollout,
}

impl HookStage {
    /// The hooks of a policy that run then.
    #[must_use]
    pub fn hooks(self, hooks: &bascule_api::Hooks) -> &[bascule_api::Hook] {
        match self {
            Self::BeforeDrain => &hooks.before_drain,
            Self::AfterCommit => &hooks.after_commit,
            Self::BeforeRollout => &hooks.before_rollout,
            Self::AfterRollout => &hooks.after_rollout,
        }
    }

    /// How a hook of this stage stands in [`bascule_api::Disruption::hooks_done`].
    #[must_use]
    pub fn key(self, hook: &str) -> String {
        let stage = match self {
            Self::BeforeDrain => "beforeDrain",
            Self::AfterCommit => "afterCommit",
            Self::BeforeRollout => "beforeRollout",
            Self::AfterRollout => "afterRollout",
        };
        format!("{stage}/{hook}")
    }
}

/// A hook's Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    /// The policy whose hook it is.
    pub policy: String,
    /// The node it runs for; empty for a hook of a whole maintenance.
    pub node: String,
    /// The generation of the grant it runs for, or the number of the maintenance.
    pub grant: i64,
    /// When it runs.
    pub stage: HookStage,
    /// The hook's name in the policy.
    pub hook: String,
    /// The Job's `namespace/name`.
    pub job: String,
    /// How far it is.
    pub state: HookState,
}

impl HookRun {
    /// Whether it is a run of this hook. A Job of the same name in another namespace is somebody else's word.
    #[must_use]
    pub fn is_of(&self, hook: &bascule_api::Hook) -> bool {
        self.hook == hook.name && self.job.split_once('/').is_some_and(|(namespace, _)| namespace == hook.namespace)
    }
}

/// How far a hook's Job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookState {
    /// It waits to be begun: a hook after a rollout whose Job is there from the rollout's beginning.
    Kept,
    /// It runs since then.
    Running {
        /// The Job's creation, or when one that was kept was begun.
        since: Time,
    },
    /// It succeeded.
    Succeeded,
    /// It failed, or its time is over.
    Failed {
        /// The Job's own message.
        message: String,
    },
}

impl Node {
    /// What is said of an agent that does not report: why its pod does not run, where that is known.
    #[must_use]
    pub fn silence_of_agent(&self, otherwise: &str) -> String {
        self.agent_trouble.as_deref().unwrap_or(otherwise).to_owned()
    }

    /// Whether the node may not be counted on: not Ready, cordoned by anybody, granted, or not to be read.
    #[must_use]
    pub fn unavailable(&self) -> bool {
        !self.ready.ready || self.cordon.is_cordoned() || self.granted() || self.unreadable.is_some()
    }

    /// Whether it may be disrupted without anybody knowing: its NodeUpdate can't be read and never could be.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.unreadable.is_some() && self.update.is_none()
    }

    /// Whether it has a grant that is not freed.
    #[must_use]
    pub fn granted(&self) -> bool {
        self.update.as_ref().is_some_and(|update| update.spec.disruption.is_some())
    }

    /// Whether it may be disrupted, and has not been told to reboot yet: its pods are on their way.
    #[must_use]
    pub fn is_being_emptied(&self) -> bool {
        let before_boot = |spec: &NodeUpdateSpec| matches!(spec.goal, Goal::Idle | Goal::Staged);
        self.update.as_ref().is_some_and(|update| update.spec.disruption.is_some() && before_boot(&update.spec))
    }

    /// The disruption that an earlier Node of this name was in: as its NodeUpdate says that is being removed, or as is
    /// remembered of it.
    #[must_use]
    pub fn interrupted(&self) -> Option<&NodeUpdateSpec> {
        let leaving = self.update.as_ref().filter(|_| self.live_update().is_none()).map(|update| &update.spec);
        leaving.or(self.earlier.as_deref()).filter(|spec| spec.disruption.is_some())
    }

    /// The NodeUpdate, unless it belongs to an earlier Node of this name or is being deleted.
    #[must_use]
    pub fn live_update(&self) -> Option<&UpdateFacts> {
        self.update
            .as_ref()
            .filter(|update| !update.deleting && update.owner_uid.as_ref().is_none_or(|owner| *owner == self.uid))
    }
}
