//! The Kubernetes API of Bascule: group `bascule.dev`, version `v1alpha1`, all objects cluster-scoped.
//!
//! Types only: no I/O, no client, no runtime. Everything that people, the operator and the agents say to each other
//! goes through these objects, so every string and list has a bound, every rule has a sentence that says how to fix
//! the object, and every wait has a documented reason ([`WaitReason`]).

#![allow(unreachable_pub, reason = "the schema derive repeats each type in a private scope")]
#![allow(clippy::duplicated_attributes, reason = "each printcolumn has a type and a path of its own")]

pub mod conditions;
mod definitions;
mod drain;
mod duration;
mod fields;
mod freeze;
mod node_update;
mod policy;
mod policy_status;
#[cfg(test)]
mod policy_tests;
mod quantity;
mod reasons;
mod report;
mod rollback;
mod selector;
mod time;

pub use bascule_names::{
    Architecture, ChannelName, Digest, KubernetesVersion, NameError, Product, RootHash, Version, compare_versions,
};
pub use definitions::custom_resource_definitions;
pub use drain::{Drain, DrainBehavior, DrainRule, OnTimeout};
pub use duration::{Duration, DurationError};
pub use fields::Fields;
pub use freeze::{Freeze, FreezeSpec, FreezeStatus};
pub use node_update::{
    BootControl, BootControlBackend, Booted, Cause, Counting, DaemonSetBefore, Disruption, DisruptionOutcome,
    DrainProgress, FailedRelease, Goal, Grant, LastDisruption, LastError, ManualAction, NodeError, NodeUpdate,
    NodeUpdateSpec, NodeUpdateStatus, PackFallback, ReleaseRef, Rollout, RolloutColumns, RolloutState, SlotName,
    SlotState, SlotStatus, Slots, Staged, Transfer, Trial,
};
pub use policy::{
    Budget, ClusterGates, ConfigMapKey, DomainBudget, Emergency, EmergencyExemption, Gate, Health, Hook, Hooks,
    HttpGate, MaintenanceWindow, NewNodes, ObjectGate, PromQlGate, Severity, Source, Staging, TrustRoot, UpdatePolicy,
    UpdatePolicySpec, Wave,
};
pub use policy_status::{
    BlockedRelease, ClusterMember, Columns, CompleteWave, CompleteWaves, Counts, HistoryEntry, Maintenance, Outcome,
    PolicyFailure, ReleaseInfo, RepositoryStatus, Retry, Timings, UpdatePolicyStatus, WaitsFor, WaveStatus,
    WindowStatus,
};
pub use quantity::{IntOrPercent, QuantityError};
pub use reasons::{ObjectRef, WaitReason};
pub use report::{
    LIVE_REPORT_FORMAT, LIVE_REPORT_LIMIT, LIVE_REPORT_PATH, LiveForecast, LiveGate, LiveNode, LiveOrder, LivePolicy,
    LiveReport, LiveWait, NOT_UNDERSTOOD, NoReport, OPERATOR_LEASE, OPERATOR_NAMESPACE, READY_PATH,
};
pub use rollback::{Rollback, RollbackSpec, RollbackStatus};
pub use selector::{Operator, Requirement, Selector, SelectorError};
pub use time::Time;

/// The API group of every object here.
pub const GROUP: &str = "bascule.dev";
/// The field manager the operator writes with (server-side apply).
pub const OPERATOR_MANAGER: &str = "bascule-operator";
/// The field manager an agent writes its status with (server-side apply).
pub const AGENT_MANAGER: &str = "bascule-agent";
/// Taint (`PreferNoSchedule`) on nodes that still run an old release while a rollout is in progress, so that evicted pods land
/// on updated nodes.
pub const OUTDATED_TAINT: &str = "bascule.dev/outdated";
/// Taint (`NoSchedule`) on new nodes that are held until they run the policy's release (`spec.newNodes.hold`).
///
/// The prefix is the cluster autoscaler's for start-up taints: a node that carries it counts as one that is not ready yet,
/// and not as one that its pods could never use (its FAQ, "startup taints").
pub const HOLD_TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/bascule-hold";
/// The key that [`HOLD_TAINT`] had before; it is taken off like it.
pub const OLD_HOLD_TAINT: &str = "bascule.dev/hold-until-updated";
/// Annotation on a Node that we cordoned: the name of the grant that did it. A cordon without it is somebody else's.
pub const CORDONED_BY_ANNOTATION: &str = "bascule.dev/cordoned-by";
/// Annotation on the operator's Lease: when whoever led could not read a Node, a NodeUpdate or an UpdatePolicy last.
pub const UNREAD_ANNOTATION: &str = "bascule.dev/could-not-read-at";
/// Annotation on a Node while autoscalers are asked to leave it alone: until when, and what others had said to them.
pub const TRUCE_ANNOTATION: &str = "bascule.dev/autoscaler-truce";
/// The annotations by which autoscalers are asked to leave a Node alone, each with the value `true` (cluster autoscaler:
/// FAQ; Karpenter: "Well-Known Annotations").
pub const AUTOSCALER_ANNOTATIONS: [&str; 2] =
    ["cluster-autoscaler.kubernetes.io/scale-down-disabled", "karpenter.sh/do-not-disrupt"];
/// Taints by which autoscalers say that they are removing a Node: the cluster autoscaler (`utils/taints`), Karpenter since
/// v1 and before.
pub const LEAVING_TAINTS: [&str; 3] =
    ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "karpenter.sh/disruption"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_cluster_scoped_with_a_status() {
        for crd in custom_resource_definitions() {
            assert_eq!(crd.spec.group, GROUP);
            assert_eq!(crd.spec.scope, "Cluster");
            assert!(crd.spec.versions.iter().all(|version| version.subresources.as_ref().unwrap().status.is_some()));
        }
    }

    #[test]
    fn a_policy_of_selector_and_source_has_careful_defaults() {
        let spec: UpdatePolicySpec = serde_json::from_value(serde_json::json!({
            "nodeSelector": {"matchLabels": {"role": "worker"}},
            "source": {"repository": "https://images.example.com/acme-os", "channel": "stable"}
        }))
        .unwrap();
        assert_eq!(spec.budget.max_unavailable, IntOrPercent::Int(1));
        assert_eq!(spec.drain.on_timeout, OnTimeout::Abort);
        assert_eq!(spec.failure_threshold, 1);
        assert!(!spec.automatic_rollback && !spec.paused && spec.health.daemon_sets);
    }
}
