//! The facts a plan is made from, as the operator gathered them.
//!
//! Nodes are shared (`Arc`), so that a snapshot of 10,000 nodes is a copy of pointers, and a node that did not change
//! is recognised by its pointer.

mod node;
mod offer;
mod own_pods;
mod policy;
mod refused;
mod speed;
mod unreadable;
mod writes;

pub use node::{
    BlockedPod, Completing, Cordon, DaemonSetPod, DaemonSets, DisruptionBudget, EtcdMember, Excluded, HookRun,
    HookStage, HookState, Node, NodePods, Readiness, Taints, Truce, UndrainablePod, UpdateFacts,
};
pub use offer::{Offer, OfferState, Release};
pub use own_pods::{agent_pod_trouble, pod_trouble};
pub use policy::{FreezeFacts, GateAnswer, Missed, PolicyFacts, RollbackFacts};
pub(crate) use refused::{ACCEPT_ROLLBACK, COMMIT, GRANT, REMEMBER};
pub use refused::{Refusal, Refusals, Write};
pub use speed::Speed;
pub use unreadable::Unreadable;
pub use writes::{Begun, Ending, NodeInFlight, PendingGrant, Writes};

use bascule_api::{IntOrPercent, KubernetesVersion, Time};
use std::{collections::BTreeMap, sync::Arc};

/// Everything a decision rests on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The API server's time when the facts were gathered, as the operator measured it.
    pub now: Time,
    /// Orders nodes between which nothing else decides. The same for the life of an installation, so that the same
    /// nodes go first after a restart.
    pub seed: u64,
    /// Every UpdatePolicy, also those that are not valid.
    pub policies: Vec<Arc<PolicyFacts>>,
    /// Every Node of the cluster, whether a policy selects it or not (the ceiling counts all of them).
    pub nodes: Vec<Arc<Node>>,
    /// Every PodDisruptionBudget that covers a pod which a drain would have to evict; [`NodePods::budgets`] points
    /// here by key, `namespace/name`.
    pub budgets: Arc<BTreeMap<String, DisruptionBudget>>,
    /// Every Freeze, also those that ended.
    pub freezes: Vec<Arc<FreezeFacts>>,
    /// Every Rollback, also those that are complete.
    pub rollbacks: Vec<Arc<RollbackFacts>>,
    /// Freezes and Rollbacks that can't be read: what they hold, or leave, is not known, so that nothing is begun beside them. What was
    /// known of one before stands in the lists above.
    pub unreadable_orders: Vec<Unreadable>,
    /// When an operator before the deciding one could not read a Node, a NodeUpdate or a policy last: which, only that one knew.
    pub unread_at: Option<Time>,
    /// The last answers of health gates. A gate without an answer does not pass.
    pub gates: Vec<GateAnswer>,
    /// The hook Jobs that exist.
    pub hooks: Vec<HookRun>,
    /// Writes of earlier plans that failed when they were tried last.
    pub refused: Refusals,
    /// Writes of earlier plans that are in flight or still to be begun, and what the API server bears.
    pub writes: Writes,
    /// How many nodes of the whole cluster may be unavailable at once, for all policies together.
    pub ceiling: Option<IntOrPercent>,
    /// The oldest API server that answered lately; `None` before the first answer.
    pub api_server: Option<KubernetesVersion>,
    /// The node the deciding operator runs on.
    pub operator_node: Option<String>,
}

/// The seed of an installation, from the UID of an object that lives as long as it: the operator's Lease. The forecast
/// reads the same object, so that it puts nodes in the same order.
#[must_use]
pub fn seed_of(uid: &str) -> u64 {
    // FNV-1a: any fixed mixing does.
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
