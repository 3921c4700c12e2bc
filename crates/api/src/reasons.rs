//! Why something waits: one closed list that feeds conditions, columns, events, metrics, the CLI and docs/reasons.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The object that causes a wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// The object's kind, e.g. `PodDisruptionBudget`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its namespace; absent for cluster-scoped objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

macro_rules! wait_reasons {
    ($($(#[doc = $meaning:literal])+ $name:ident $(was $old:literal)? => $remedy:literal,)+) => {
        /// Why a node or a policy is not in progress, or what it waits for while it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum WaitReason {
            $($(#[doc = $meaning])+ $(#[serde(alias = $old)])? $name,)+
        }

        impl WaitReason {
            /// Every reason, in the order of docs/reasons.md (which is the order in which the gates ask).
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason's name as it stands in objects, events and metric labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What the reason means, in a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($meaning),+).trim_ascii(),)+ }
            }

            /// What a person can do about it.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

wait_reasons! {
    /// The node already runs the release its policy asks for.
    Current => "Nothing: this is the goal.",
    /// No policy selects the node.
    NotSelected => "Nothing, if the node is not to be kept up to date; else widen a policy's nodeSelector or label the node.",
    /// More than one policy selects the node, so none of them touches it.
    PolicyConflict => "Narrow the nodeSelector of one of the policies named in the message.",
    /// The policy has a field that can't be used; the message names it.
    InvalidPolicy => "Fix the field that the policy's Accepted condition names.",
    /// An object that decides about the node says something that this version of the operator does not understand, so nothing is done to the node.
    Unreadable => "Run the version of the operator that wrote the object named in the message, or a newer one; or take out of the object what is not understood.",
    /// The agent on the node has not reported, or not for longer than expected.
    AgentNotReporting => "Look at the agent's pod or unit on the node.",
    /// The agent found that boot counting does not work on this machine, so no trial could revert by itself.
    BootCountingBroken => "Read the node's BootControlHealthy condition; fix the firmware or boot loader setup.",
    /// The Node object is gone or being deleted.
    NodeGone => "Nothing: the node's grant is freed.",
    /// The policy is paused.
    Paused => "Set spec.paused of the policy to false.",
    /// A Freeze holds every new disruption back.
    Freeze => "Wait until it ends, or end the Freeze named in the object field.",
    /// The repository can't be reached, or its metadata is not valid or has expired.
    RepositoryUnavailable => "Read the policy's RepositoryHealthy condition; publish fresh, valid metadata.",
    /// The channel offers no release that this node could take.
    NoRelease => "Publish a release for the policy's channel, or correct the pinned version.",
    /// The release is blocked for this policy, because it failed or an admin listed it.
    ReleaseBlocked => "Publish a newer release; or allow it again: remove it from spec.blockedVersions, or add it to spec.allowedVersions where failures or a Rollback blocked it.",
    /// The release was withdrawn by its publisher.
    ReleaseWithdrawn => "Nothing: the next release of the channel takes its place.",
    /// The release failed on this very node and is not tried there again.
    FailedHere => "Read the node's status.failedReleases; publish a release that comes up there, or let the node try again with `bascule retry`.",
    /// The node must first step through an older release (the minimum source version of the wanted one).
    MinimumSourceVersion was "Floor" => "Nothing: the node steps through it by itself. It waits if that release is not published.",
    /// The release is made for an older state of the machine than the machine was used with, so it may not understand what is there.
    StateVersion => "Take a newer release; or, where the older one is known to understand that state, write a Rollback with `--accept-state`.",
    /// The release is younger than spec.minReleaseAge.
    MinimumAge => "Wait, or lower spec.minReleaseAge.",
    /// The inactive slot still holds the way back from a release that is not proven yet.
    RollbackRetention was "Retention" => "Wait until the running release is proven (spec.provenAfter).",
    /// The kubelet in the release is newer than an API server, or too many versions older (Kubernetes' version skew policy).
    VersionSkew => "Update the API servers first, or publish a release with a kubelet that they are made for.",
    /// The release is being written to the inactive slot.
    Transferring => "Nothing: progress is in status.transfer.",
    /// Enough other nodes are staging at the moment (spec.staging.maxConcurrent).
    StagingQueue => "Wait, or raise spec.staging.maxConcurrent.",
    /// Staging failed and will be tried again.
    StagingFailed => "Read status.lastError of the node.",
    /// No maintenance window is open.
    MaintenanceWindow => "Wait for the window named in the until field, or change spec.maintenanceWindows.",
    /// Drain, reboot and health checks would not end before the window closes.
    WindowTooShort => "Wait for the next window, or make the window longer.",
    /// The node's wave has not begun, because an earlier wave is not done.
    Wave => "Wait for the wave named in the message.",
    /// The last wave is done and its soak time runs.
    WaveSoak was "Soak" => "Wait until the soak ends.",
    /// The policy halted after failures.
    Halted => "Read status.failures of the policy; a newer release or a Rollback ends the halt.",
    /// As many nodes of the policy as its budget allows are unavailable.
    Budget => "Wait, fix the unavailable nodes named in the message, or raise spec.budget.maxUnavailable.",
    /// As many nodes of the cluster as the operator's --max-unavailable allows are unavailable.
    ClusterMaxUnavailable was "ClusterCeiling" => "Wait, or raise the operator's --max-unavailable.",
    /// A node of another failure domain is being updated or unavailable.
    DomainBusy => "Wait for the domain named in the message.",
    /// Another node with a control plane or a member of etcd is being updated or unavailable, or etcd would lose its quorum.
    ControlPlane => "Wait; fix the node named in the message.",
    /// This node runs the operator itself and goes last.
    OperatorNode => "Nothing: the other nodes go first.",
    /// A PodDisruptionBudget does not allow the drain to succeed now.
    DisruptionBudget => "Get the budget's pods healthy or give the workload one more replica; other nodes go first meanwhile. Where it opens only after a cordon, say so with spec.drain.budgetsOpenAfterCordon.",
    /// A pod on the node can't be evicted under the policy's drain settings.
    UndrainablePod => "Read the message: delete the pod, or allow it in spec.drain, e.g. by a rule.",
    /// A pod would have to leave the node, and no other node could take it.
    PodFitsNowhere => "Make room for the pod named in the object field, or let it wait for its node with spec.drain.waitForPlaces: false.",
    /// A health gate does not pass. A trial that waits for one that speaks of the cluster is held, and its release not blamed.
    HealthGate => "Read the gate named in the message. A held trial goes on when the gate passes, and is taken back by the guard on the node when its time is over.",
    /// The node is not Ready, so it goes last.
    NodeNotReady => "Fix the node; its update is tried when it is Ready or everything else is done.",
    /// Somebody else cordoned the node.
    Cordoned => "Uncordon the node when it may be updated.",
    /// An autoscaler is removing the node.
    NodeLeaving => "Nothing: the node goes away, or is updated when the taint named in the message goes.",
    /// A drain failed, or the node rebooted too early, and it waits before it is tried again.
    DrainBackoff => "Read the last drain's message; it is tried again at the time in the until field, or at once with `bascule retry`.",
    /// A drain reached its timeout and the policy says to hold the node as it is.
    DrainHeld => "Resolve the pods named in the message, or delete them.",
    /// A hook has not finished or has failed.
    Hook => "Look at the Job named in the object field. One that failed after the commit is run again once it is deleted.",
    /// The node may be disrupted next, but others come first in this round.
    Queued => "Nothing: it is next in the queue.",
    /// The node's pods are being evicted.
    Draining => "Nothing: progress is in status.rollout.drain.",
    /// The node is cordoned and a pod on it is waited for until it has completed (spec.drain.rules, or what the pod asks).
    PodsCompleting => "Nothing: it ends with the pod, at the latest at the time in the until field; what is left then is treated as spec.drain says.",
    /// Pods have left the node and volumes of theirs are still attached to it.
    VolumesDetaching => "Nothing, until the time in the until field (spec.drain.volumeDetachTimeout); else look at the VolumeAttachment of the volume and its CSI driver.",
    /// The node waits until load balancers have noticed that it goes away.
    LoadBalancers => "Nothing: it goes on after spec.drain.loadBalancerDelay.",
    /// The agent is arming the release or the machine is rebooting.
    Rebooting => "Nothing. After spec.health.nodeReadyTimeout it becomes NodeLost.",
    /// The node booted the release as a trial and has to become healthy.
    Trial => "Nothing: the checks that are still missing are in the message.",
    /// The node is healthy and has to stay so for its soak time.
    NodeSoak was "Soaking" => "Nothing: it commits at the time in the until field.",
    /// The agent is making the trial permanent.
    Committing => "Nothing.",
    /// The node is going back to the release in its other slot.
    Reverting => "Nothing; read status.rollout.message for the cause.",
    /// The node was to boot the release and came back on its old one.
    Reverted => "Read status.failedReleases of the node and the console of its last boot.",
    /// The node has not come back after its reboot.
    NodeLost => "Look at the machine's console. It goes on by itself when the machine comes back; until then it takes a place of the budget. The release is not blamed unless a second machine does not come back from it either.",
    /// What the operator writes for the node fails again and again: the API server can't be asked, or refuses.
    WriteRefused => "Read what the API server says in the message, and fix the admission webhook or policy, the quota or the right that it names. It is tried again at least once a minute.",
}

impl std::fmt::Display for WaitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_operator_wrote_is_understood() {
        for (old, now) in [
            ("Retention", WaitReason::RollbackRetention),
            ("Soak", WaitReason::WaveSoak),
            ("Soaking", WaitReason::NodeSoak),
            ("ClusterCeiling", WaitReason::ClusterMaxUnavailable),
            ("Floor", WaitReason::MinimumSourceVersion),
        ] {
            assert_eq!(serde_json::from_value::<WaitReason>(old.into()).unwrap(), now);
        }
    }

    #[test]
    fn every_reason_explains_itself() {
        let mut names: Vec<_> = WaitReason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WaitReason::ALL.len());
        for reason in WaitReason::ALL {
            assert!(reason.meaning().ends_with('.') && reason.remedy().ends_with('.'), "{reason}");
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
