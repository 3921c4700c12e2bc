//! `spec.drain` of a policy: how nodes are emptied before their reboot, and what happens to which pod.

use crate::{Duration, Selector};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How nodes are emptied before their reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// How long a drain may take, waiting for pods to complete included. Default: 15m.
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    /// Overrides the pods' own termination grace period, in seconds. Default: the pods' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub grace_period_seconds: Option<u32>,
    /// What happens when the time is over. Default: Abort.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// Evict only these pods; the others stay until the reboot. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Selector>,
    /// Evict pods with emptyDir volumes, whose data is lost. Default: true, since a reboot for an update is no reason
    /// to keep scratch data, and nearly every pod has some.
    #[serde(default = "default_true")]
    pub delete_empty_dir_data: bool,
    /// Evict pods that no controller will bring back. Default: false.
    #[serde(default)]
    pub force: bool,
    /// How long to wait after taking the node out of load balancers, before pods are evicted. Default: 0s.
    #[serde(default)]
    pub load_balancer_delay: Duration,
    /// What happens to which pod; of the rules that match a pod the first decides. Default: none, every pod is evicted
    /// at once, unless its own labels and annotations say otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub rules: Vec<DrainRule>,
    /// Do what pods say of themselves where no rule matches them: label `cluster.x-k8s.io/drain` (`skip`,
    /// `wait-completed`), annotations `karpenter.sh/do-not-disrupt` (`true`, or how long after the pod's start) and
    /// `cluster-autoscaler.kubernetes.io/safe-to-evict: "false"`. Default: true.
    #[serde(default = "default_true")]
    pub honor_pod_annotations: bool,
    /// Before a node is cordoned: wait while a pod that has to go, and that a controller would bring back, could be taken by
    /// no other node (its requests, node selector, required node affinity, and the nodes' taints). Not asked where no other
    /// node is for pods at all, nor for rollbacks. Default: true.
    #[serde(default = "default_true")]
    pub wait_for_places: bool,
    /// How long after its last pod left the node volumes of its pods may be attached before it reboots all the same.
    /// Default: 5m; 0s does not wait.
    #[serde(default = "default_volume_detach_timeout")]
    pub volume_detach_timeout: Duration,
    /// Some PodDisruptionBudgets open only once their node is cordoned, because a controller moves the workload or its
    /// budget then. With this set, a node whose budgets allow nothing is cordoned all the same, one node for each budget
    /// at once, and given back if they did not open within this time. Default: such a node is not cordoned, unless the
    /// budget or the pod carries the annotation `bascule.dev/opens-after-cordon`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets_open_after_cordon: Option<Duration>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: default_timeout(),
            grace_period_seconds: None,
            on_timeout: OnTimeout::Abort,
            pod_selector: None,
            delete_empty_dir_data: true,
            force: false,
            load_balancer_delay: Duration::ZERO,
            rules: Vec::new(),
            honor_pod_annotations: true,
            wait_for_places: true,
            volume_detach_timeout: default_volume_detach_timeout(),
            budgets_open_after_cordon: None,
        }
    }
}

fn default_timeout() -> Duration {
    Duration::from_minutes(15)
}

fn default_volume_detach_timeout() -> Duration {
    Duration::from_minutes(5)
}

fn default_true() -> bool {
    true
}

/// What happens when a drain's time is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnTimeout {
    /// Stop, uncordon what we cordoned, let another node go first, come back later with backoff.
    #[default]
    Abort,
    /// Delete the remaining pods with their grace period, saying so in an event. Also pods whose PodDisruptionBudget
    /// allowed nothing from the start.
    Delete,
    /// Leave the node as it is and raise the alarm.
    Hold,
}

/// What a drain does with some pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainRule {
    /// The rule's name, shown in reasons.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The pods by label. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The namespaces of the pods, by name. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// What is done with them.
    pub behavior: DrainBehavior,
    /// Pods of a lower order leave (or complete) before those of a higher one are asked to go. Pods without a rule have
    /// order 0. Default: 0.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub order: i32,
    /// How long after the drain began these pods are waited for: then pods that did not complete are evicted like any
    /// other, and pods of a higher order do not wait for these any more. At most `timeout` of the drain. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// What a drain does with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DrainBehavior {
    /// Evict it.
    Drain,
    /// Leave it where it is; the reboot ends it.
    Skip,
    /// Wait until it has completed.
    WaitCompleted,
}
