//! What a person types about a reason: commands as they stand, beside the sentence of docs/reasons.md. Only where one changes it, or
//! shows what has to be known before anybody can; who is to wait gets the command that says until when.

use bascule_api as api;
use bascule_api::{LivePolicy, LiveWait, ObjectRef, WaitReason};
use bascule_planner::says_held_back;

/// The commands, for a node that waits and the policy that selects it, in the order in which they are typed.
pub(super) fn commands(wait: &LiveWait, node: &str, policy: Option<&LivePolicy>) -> Vec<String> {
    let object = wait.object.as_ref();
    let of_policy = |line: &dyn Fn(&str) -> String| policy.map(|policy| line(&policy.name)).into_iter().collect();
    let of_object = || object.map(describe).into_iter().collect();
    let node_update = || format!("kubectl describe nodeupdate {node}");
    let retry = || format!("bascule retry {node}");
    match wait.reason {
        WaitReason::PolicyConflict | WaitReason::InvalidPolicy => {
            let named = object.filter(|object| object.kind == "UpdatePolicy").map(|object| object.name.as_str());
            let name = named.or_else(|| policy.map(|policy| policy.name.as_str()));
            name.map(|name| format!("kubectl edit updatepolicy {name}")).into_iter().collect()
        }
        WaitReason::AgentNotReporting => vec![agent_pods(node)],
        WaitReason::BootCountingBroken | WaitReason::StateVersion => vec![node_update()],
        WaitReason::Paused => of_policy(&go_on),
        WaitReason::Freeze => {
            let freeze = object.filter(|object| object.kind == "Freeze");
            freeze.map(|freeze| format!("bascule unfreeze {}", freeze.name)).into_iter().collect()
        }
        WaitReason::RepositoryUnavailable => of_policy(&|name| format!("kubectl describe updatepolicy {name}")),
        WaitReason::ReleaseBlocked | WaitReason::Halted => {
            let mut lines: Vec<String> = of_policy(&|name| format!("bascule history {name}"));
            lines.extend(policy.map(|policy| unblock(policy, &wait.message)).unwrap_or_default());
            lines
        }
        WaitReason::FailedHere | WaitReason::Reverted | WaitReason::StagingFailed => vec![node_update(), retry()],
        WaitReason::DrainBackoff => vec![retry()],
        WaitReason::VersionSkew => vec!["kubectl version".to_owned()],
        WaitReason::MaintenanceWindow | WaitReason::WindowTooShort => {
            of_policy(&|name| format!("bascule forecast {name} --until 14d"))
        }
        WaitReason::MinimumAge | WaitReason::RollbackRetention | WaitReason::Wave | WaitReason::WaveSoak => {
            of_policy(&|name| format!("bascule forecast {name}"))
        }
        WaitReason::Budget | WaitReason::ClusterMaxUnavailable => vec!["kubectl get nodes".to_owned()],
        WaitReason::NodeNotReady | WaitReason::NodeLost => vec![format!("kubectl describe node {node}")],
        WaitReason::Cordoned => vec![format!("kubectl uncordon {node}")],
        WaitReason::Hook => match object {
            Some(ObjectRef { kind, namespace: Some(namespace), name }) if kind == "Job" => {
                vec![format!("kubectl -n {namespace} logs job/{name}")]
            }
            _ => of_object(),
        },
        WaitReason::ControlPlane
        | WaitReason::DisruptionBudget
        | WaitReason::UndrainablePod
        | WaitReason::PodFitsNowhere
        | WaitReason::HealthGate
        | WaitReason::Unreadable
        | WaitReason::VolumesDetaching => of_object(),
        WaitReason::DrainHeld => match object {
            Some(object) if object.kind == "Pod" => of_object(),
            _ => vec![format!("kubectl get pods --all-namespaces --field-selector spec.nodeName={node}")],
        },
        // Nothing is to be done, or nothing that a command of this cluster could.
        WaitReason::Current
        | WaitReason::NotSelected
        | WaitReason::NodeGone
        | WaitReason::NoRelease
        | WaitReason::ReleaseWithdrawn
        | WaitReason::MinimumSourceVersion
        | WaitReason::Transferring
        | WaitReason::StagingQueue
        | WaitReason::DomainBusy
        | WaitReason::OperatorNode
        | WaitReason::NodeLeaving
        | WaitReason::Queued
        | WaitReason::Draining
        | WaitReason::PodsCompleting
        | WaitReason::LoadBalancers
        | WaitReason::Rebooting
        | WaitReason::Trial
        | WaitReason::NodeSoak
        | WaitReason::Committing
        | WaitReason::Reverting
        | WaitReason::WriteRefused => Vec::new(),
    }
}

/// The agent of a node that reports nothing, wherever it was installed to.
fn agent_pods(node: &str) -> String {
    format!(
        "kubectl get pods --all-namespaces -l app.kubernetes.io/name=bascule-agent --field-selector spec.nodeName={node} -o wide"
    )
}

/// Lets a policy go on whose spec says that it is paused.
pub(super) fn go_on(policy: &str) -> String {
    format!("kubectl patch updatepolicy {policy} --type=merge -p '{{\"spec\":{{\"paused\":false}}}}'")
}

/// Shows an object, whatever it is. A kind is a name to kubectl in any case of letters.
fn describe(object: &ObjectRef) -> String {
    let kind = object.kind.to_lowercase();
    match &object.namespace {
        Some(namespace) => format!("kubectl -n {namespace} describe {kind} {}", object.name),
        None => format!("kubectl describe {kind} {}", object.name),
    }
}

/// Lets a policy take the release again that a message says is held back from it, where failures or a Rollback blocked that: what
/// `spec.blockedVersions` alone holds is not among these. Of a node that runs a blocked release ("runs 1.1, which is blocked …") the
/// block is right and the node is not: lifted, it would bring that release to all the others.
fn unblock(policy: &LivePolicy, message: &str) -> Vec<String> {
    let held_back = |block: &&api::BlockedRelease| says_held_back(message, &block.version);
    let blocks = policy.status.blocked.iter().filter(held_back);
    blocks.map(|block| format!("bascule unblock {} {}", policy.name, block.version)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args::Arguments, cluster::fixture};
    use clap::Parser as _;

    /// The object that the planner names with a reason.
    fn object(reason: WaitReason) -> Option<(&'static str, &'static str)> {
        Some(match reason {
            WaitReason::Freeze => ("Freeze", "freeze-x7k2"),
            WaitReason::DisruptionBudget => ("PodDisruptionBudget", "shop/checkout"),
            WaitReason::UndrainablePod | WaitReason::PodFitsNowhere => ("Pod", "shop/checkout-7f9c6"),
            WaitReason::Hook => ("Job", "storage/announce-node-b2-7"),
            WaitReason::VolumesDetaching => ("PersistentVolume", "pvc-7f9c6"),
            WaitReason::ControlPlane => ("Node", "node-a1"),
            WaitReason::Unreadable => ("NodeUpdate", "node-b2"),
            WaitReason::PolicyConflict | WaitReason::InvalidPolicy | WaitReason::HealthGate => {
                ("UpdatePolicy", "workers")
            }
            _ => return None,
        })
    }

    fn policy() -> LivePolicy {
        let mut policy = fixture::seen().report.policies[0].clone();
        policy.status.blocked = serde_json::from_value(serde_json::json!([
            {"version": "41.3.0", "at": "2026-11-23T21:00:00Z", "by": "FailureThreshold", "reason": "it failed on n1"},
            {"version": "41.3", "at": "2026-11-23T21:00:00Z", "by": "FailureThreshold", "reason": "it failed on n1"},
        ]))
        .unwrap();
        policy
    }

    #[test]
    fn what_is_to_be_typed_can_be_typed_as_it_stands() {
        let mut table = String::new();
        for reason in WaitReason::ALL {
            let wait = fixture::wait(*reason, "41.3.0 is blocked and nothing new starts", object(*reason));
            let lines = commands(&wait, "node-b2", Some(&policy()));
            for line in &lines {
                assert!(!line.contains(['<', '>', '…', '[']) && line.lines().count() == 1, "{reason}: {line}");
                match line.split_once(' ').unwrap() {
                    ("bascule", _) => drop(Arguments::try_parse_from(line.split(' ')).unwrap()),
                    ("kubectl", _) => {}
                    _ => panic!("{reason}: neither of the two programs: {line}"),
                }
            }
            let shown = if lines.is_empty() { "-".to_owned() } else { lines.join("\n  ") };
            table.push_str(&format!("{reason}\n  {shown}\n"));
        }
        insta::assert_snapshot!("remedies", table);
    }

    #[test]
    fn a_block_is_lifted_for_who_lacks_the_release_and_never_for_who_runs_it() {
        // As the planner says it.
        for (reason, message, offered) in [
            (
                WaitReason::ReleaseBlocked,
                "41.3.0 is blocked for this policy and stable offers nothing else",
                Some("bascule unblock workers 41.3.0"),
            ),
            (
                WaitReason::ReleaseBlocked,
                "runs 41.3.0, which is blocked for this policy; write a Rollback to leave it",
                None,
            ),
            (WaitReason::ReleaseBlocked, "runs 41.3.0, which is blocked for this policy after failures", None),
            // By spec.blockedVersions: nothing of it is in the status.
            (WaitReason::ReleaseBlocked, "41.4.0 is blocked for this policy and stable offers nothing else", None),
            (
                WaitReason::Halted,
                "41.3.0 is blocked and nothing new starts until a newer release or a Rollback: 41.3 failed too",
                Some("bascule unblock workers 41.3.0"),
            ),
        ] {
            let mut wanted = vec!["bascule history workers".to_owned()];
            wanted.extend(offered.map(str::to_owned));
            assert_eq!(
                commands(&fixture::wait(reason, message, None), "node-b2", Some(&policy())),
                wanted,
                "{message}"
            );
        }
    }

    #[test]
    fn who_has_no_policy_or_no_object_is_told_nothing_that_misses_a_word() {
        for reason in WaitReason::ALL {
            for line in commands(&fixture::wait(*reason, "", None), "node-b2", None) {
                assert!(!line.ends_with(' ') && !line.contains("  "), "{reason}: {line:?}");
            }
        }
    }
}
