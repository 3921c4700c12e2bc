//! Every condition type and reason that is written into an object. Conditions are observations: `True` means the
//! type's name holds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// UpdatePolicy: the spec can be used as it is. `False` names the field.
pub const ACCEPTED: &str = "Accepted";
/// UpdatePolicy: nodes are being updated to the target release.
pub const PROGRESSING: &str = "Progressing";
/// UpdatePolicy: every selected node runs the target release.
pub const UP_TO_DATE: &str = "UpToDate";
/// UpdatePolicy: failures passed the threshold; nothing new starts.
pub const HALTED: &str = "Halted";
/// UpdatePolicy: the repository's metadata was read, is valid and has not expired.
pub const REPOSITORY_HEALTHY: &str = "RepositoryHealthy";
/// UpdatePolicy, NodeUpdate: a node is selected by more than one policy.
pub const POLICY_CONFLICT: &str = "PolicyConflict";

/// UpdatePolicy: nodes are about to be disrupted, or are, with hooks before the first and after the last of them.
pub const MAINTENANCE_PLANNED: &str = "MaintenancePlanned";

/// NodeUpdate (agent): the inactive slot holds the asked release, verified.
pub const STAGED: &str = "Staged";
/// NodeUpdate (agent): the running release is a trial that is not committed.
pub const TRIAL: &str = "Trial";
/// NodeUpdate (agent): the boot loader's counting was seen to work, so that trials revert by themselves.
pub const BOOT_CONTROL_HEALTHY: &str = "BootControlHealthy";
/// NodeUpdate (agent): the running file system is verified, trials end by themselves, arming is atomic and there is a way
/// back; `False` has the first that is missing as reason.
pub const HOST_GUARANTEES: &str = "HostGuarantees";
/// NodeUpdate (agent): the boot loader is the one that the running release brings. Only where it brings one; `False` says why it is not.
pub const BOOT_LOADER_CURRENT: &str = "BootLoaderCurrent";
/// NodeUpdate (agent): the agent can do its work; `False` carries the error's category as reason.
pub const AGENT_HEALTHY: &str = "AgentHealthy";
/// NodeUpdate (agent): a slot or boot entry was changed by somebody else.
pub const DRIFT: &str = "Drift";
/// NodeUpdate (agent): somebody used `bascule-agent stage|commit|revert` on the node itself.
pub const MANUAL_ACTION: &str = "ManualAction";

/// Freeze: new disruptions are held back now.
pub const ACTIVE: &str = "Active";
/// Rollback: every node it names is back.
pub const COMPLETE: &str = "Complete";

/// Node (KEP-5683): pods are being evicted for maintenance.
pub const NODE_DRAIN_IN_PROGRESS: &str = "DrainInProgress";
/// Node (KEP-5683): nothing that has to go is left on the node.
pub const NODE_DRAINED: &str = "Drained";
/// Node (KEP-5683): the node is under maintenance.
pub const NODE_MAINTENANCE_IN_PROGRESS: &str = "MaintenanceInProgress";

/// Reasons of conditions, where the condition's type alone does not say it.
pub mod reason {
    /// The spec is valid.
    pub const VALID: &str = "Valid";
    /// A field of the spec can't be used.
    pub const INVALID: &str = "Invalid";
    /// What the condition says was observed and nothing more is to be said.
    pub const OBSERVED: &str = "Observed";
    /// A rollout is in progress.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// A rollback is in progress.
    pub const ROLLING_BACK: &str = "RollingBack";
    /// Every node is where it should be.
    pub const DONE: &str = "Done";
    /// The object's time is over.
    pub const ENDED: &str = "Ended";
    /// The repository can't be reached.
    pub const UNREACHABLE: &str = "Unreachable";
    /// The repository's metadata has expired.
    pub const EXPIRED: &str = "Expired";
    /// The repository's metadata or content is not what was signed.
    pub const UNTRUSTED: &str = "Untrusted";
    /// What has to be remembered of the repository is more than there is room for.
    pub const NO_ROOM: &str = "NoRoom";
    /// More failures than the threshold.
    pub const FAILURE_THRESHOLD: &str = "FailureThreshold";
}

/// Sets a condition in a list. The transition time changes only with the status, so that an unchanged observation is
/// an unchanged object.
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|present| present.type_ == condition.type_) {
        Some(present) => {
            if present.status == condition.status {
                condition.last_transition_time = present.last_transition_time.clone();
            }
            *present = condition;
        }
        None => conditions.push(condition),
    }
}

/// The condition of a type.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// A condition as it stands in an object.
#[must_use]
pub fn new(
    type_: &str,
    holds: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    at: crate::Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(1024).collect(),
        observed_generation: generation,
        last_transition_time: at.to_kubernetes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> crate::Time {
        chrono::DateTime::from_timestamp(second, 0).unwrap().into()
    }

    #[test]
    fn transition_time_follows_the_status_only() {
        let mut conditions = Vec::new();
        set(&mut conditions, new(STAGED, false, "A", "", None, at(1)));
        set(&mut conditions, new(STAGED, false, "B", "", None, at(2)));
        assert_eq!(get(&conditions, STAGED).unwrap().last_transition_time, at(1).to_kubernetes());
        assert_eq!(get(&conditions, STAGED).unwrap().reason, "B");
        set(&mut conditions, new(STAGED, true, "B", "", None, at(3)));
        assert_eq!(get(&conditions, STAGED).unwrap().last_transition_time, at(3).to_kubernetes());
        assert!(is_true(&conditions, STAGED) && !is_true(&conditions, TRIAL));
    }
}
