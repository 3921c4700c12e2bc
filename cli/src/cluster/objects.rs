//! The same report as the leader's, made from what it wrote into the objects: late by up to a minute, and as old as the last
//! write where no operator runs.

use super::list;
use bascule_api as api;
use bascule_api::{
    LIVE_REPORT_FORMAT, LiveNode, LiveOrder, LivePolicy, LiveReport, LiveWait, RolloutState, Time, WaitReason,
};
use kube::{Client, Resource, ResourceExt as _};
use std::collections::HashMap;

/// Reads the objects; also when the operator wrote one of them last.
pub(super) async fn read(client: &Client) -> anyhow::Result<(LiveReport, Option<Time>)> {
    let (policies, nodes, freezes, rollbacks) = tokio::try_join!(
        list::<api::UpdatePolicy>(client, "UpdatePolicies"),
        list::<api::NodeUpdate>(client, "NodeUpdates"),
        list::<api::Freeze>(client, "Freezes"),
        list::<api::Rollback>(client, "Rollbacks"),
    )?;
    Ok(report(&policies, &nodes, &freezes, &rollbacks))
}

fn report(
    policies: &[api::UpdatePolicy],
    nodes: &[api::NodeUpdate],
    freezes: &[api::Freeze],
    rollbacks: &[api::Rollback],
) -> (LiveReport, Option<Time>) {
    let written = policies.iter().filter_map(written_at).chain(nodes.iter().filter_map(written_at)).max();
    let mut policies: Vec<LivePolicy> = policies.iter().map(policy).collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let mut waits = Vec::new();
    let mut known = HashMap::new();
    let mut index = |wait: LiveWait| {
        *known.entry(wait.clone()).or_insert_with(|| {
            waits.push(wait);
            waits.len() - 1
        })
    };
    let mut nodes: Vec<LiveNode> = nodes.iter().map(|update| node(update, &policies, &mut index)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let report = LiveReport {
        format: LIVE_REPORT_FORMAT,
        planned_at: written.unwrap_or_default(),
        gates: bascule_planner::GATES.iter().map(|gate| gate.name().to_owned()).collect(),
        waits,
        policies,
        nodes,
        freezes: freezes.iter().map(|one| order(one, one.spec.clone(), one.status.clone())).collect(),
        rollbacks: rollbacks.iter().map(|one| order(one, one.spec.clone(), one.status.clone())).collect(),
        ..LiveReport::default()
    };
    (report, written)
}

fn order<K: Resource, Spec, Status: Default>(
    object: &K,
    spec: Spec,
    status: Option<Status>,
) -> LiveOrder<Spec, Status> {
    let meta = object.meta();
    LiveOrder {
        name: meta.name.clone().unwrap_or_default(),
        created_at: meta.creation_timestamp.as_ref().map(Time::from_kubernetes).unwrap_or_default(),
        spec,
        status: status.unwrap_or_default(),
    }
}

/// When the operator wrote the object's status last, as the API server noted.
fn written_at(object: &impl Resource) -> Option<Time> {
    let entries = object.meta().managed_fields.iter().flatten();
    let ours = entries.filter(|entry| {
        entry.manager.as_deref() == Some(api::OPERATOR_MANAGER) && entry.subresource.as_deref() == Some("status")
    });
    ours.filter_map(|entry| entry.time.as_ref()).map(Time::from_kubernetes).max()
}

fn policy(policy: &api::UpdatePolicy) -> LivePolicy {
    let status = policy.status.clone().unwrap_or_default();
    LivePolicy {
        forecast: None,
        name: policy.name_any(),
        paused: policy.spec.paused,
        max_unavailable: policy.spec.budget.max_unavailable.of(status.counts.nodes).ok(),
        status,
    }
}

fn node(update: &api::NodeUpdate, policies: &[LivePolicy], index: &mut impl FnMut(LiveWait) -> usize) -> LiveNode {
    let status = update.status.clone().unwrap_or_default();
    let said = status.rollout;
    let wait = said.as_ref().map_or_else(
        || LiveWait {
            reason: WaitReason::AgentNotReporting,
            message: "the operator has not looked at it yet".to_owned(),
            object: None,
            until: None,
        },
        LiveWait::of,
    );
    LiveNode {
        name: update.name_any(),
        policy: policies.iter().position(|policy| policy.name == update.spec.policy),
        zone: None,
        state: said.as_ref().map_or(RolloutState::Unknown, |said| said.state),
        wait: index(wait),
        since: said.as_ref().and_then(|said| said.since),
        // The last of them is the one that does not hold.
        gates_passed: said.as_ref().and_then(|said| said.passed_gates.len().checked_sub(1)),
        drain: said.and_then(|said| said.drain),
        booted: status.booted.map(|booted| booted.version),
        staged: status.staged.map(|staged| staged.version),
        percent: status.transfer.map(|transfer| transfer.percent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_objects_say_the_same_and_since_when() {
        let update = |name: &str, second: u32| -> api::NodeUpdate {
            serde_json::from_value(json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
                "metadata": {"name": name, "managedFields": [
                    {"manager": "bascule-operator", "subresource": "status", "time": format!("2026-11-28T23:00:{second:02}Z")},
                    {"manager": "bascule-agent", "subresource": "status", "time": "2026-11-28T23:59:00Z"},
                ]},
                "spec": {"policy": "workers"},
                "status": {"rollout": {"state": "Waiting", "reason": "Freeze", "message": "frozen",
                    "passedGates": ["Agent", "BootCounting", "NotPaused", "NoFreeze"]}},
            }))
            .unwrap()
        };
        let policy: api::UpdatePolicy = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
        }))
        .unwrap();
        let (report, written) = report(&[policy], &[update("n2", 7), update("n1", 5)], &[], &[]);
        assert_eq!(written.unwrap().to_string(), "2026-11-28T23:00:07Z");
        assert_eq!((report.waits.len(), report.nodes[0].name.as_str(), report.nodes[0].policy), (1, "n1", Some(0)));
        let holds = report.nodes[0].gates_passed.and_then(|passed| report.gates.get(passed));
        assert_eq!(holds.map(String::as_str), Some("NoFreeze"), "the gate that does not hold");
    }
}
