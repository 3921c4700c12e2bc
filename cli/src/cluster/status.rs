//! `bascule status`: what happens now and why something waits, for all policies, on one screen.

use super::{Cluster, Connection, picture};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{RolloutState, WaitReason};
use chrono::{DateTime, TimeZone, Utc};
use clap::Args;
use kube::ResourceExt as _;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Display};

/// Show what happens now and why something waits.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    connection: Connection,
    /// Only this policy.
    policy: Option<String>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// The answer, for people and for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    policies: Vec<PolicyAnswer>,
    freezes: Vec<FreezeAnswer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyAnswer {
    name: String,
    status: api::UpdatePolicyStatus,
    max_unavailable: api::IntOrPercent,
    nodes: Vec<NodeAnswer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeAnswer {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    booted: Option<api::Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged: Option<api::Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<api::Rollout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer: Option<api::Transfer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FreezeAnswer {
    name: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<api::Time>,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let cluster = Cluster::read(&self.connection.client().await?).await?;
        let answer = answer(&cluster, self.policy.as_deref());
        if let Some(name) = &self.policy
            && answer.policies.is_empty()
        {
            anyhow::bail!("there is no UpdatePolicy {name}");
        }
        let now = clock::now();
        output::show(self.output, &answer, |answer| text(answer, now, &chrono::Local))?;
        Ok(Exit::Success)
    }
}

fn answer(cluster: &Cluster, only: Option<&str>) -> Answer {
    let mut policies: Vec<_> = cluster
        .policies
        .iter()
        .filter(|policy| only.is_none_or(|name| policy.name_any() == name))
        .map(|policy| PolicyAnswer {
            name: policy.name_any(),
            status: policy.status.clone().unwrap_or_default(),
            max_unavailable: policy.spec.budget.max_unavailable.clone(),
            nodes: cluster.nodes_of(&policy.name_any()).into_iter().map(node_answer).collect(),
        })
        .collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let freezes = cluster
        .freezes
        .iter()
        .filter(|freeze| {
            let conditions = freeze.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            // Until the operator has seen it, a new Freeze counts: better one line too many than a wrong "all clear".
            api::conditions::get(conditions, api::conditions::ACTIVE).is_none_or(|active| active.status == "True")
        })
        .map(|freeze| FreezeAnswer {
            name: freeze.name_any(),
            reason: freeze.spec.reason.clone(),
            requested_by: freeze.spec.requested_by.clone(),
            ends_at: freeze.status.as_ref().and_then(|status| status.ends_at),
        })
        .collect();
    Answer { policies, freezes }
}

fn node_answer(node: &api::NodeUpdate) -> NodeAnswer {
    let status = node.status.clone().unwrap_or_default();
    NodeAnswer {
        name: node.name_any(),
        booted: status.booted.map(|booted| booted.version),
        staged: status.staged.map(|staged| staged.version),
        rollout: status.rollout,
        transfer: status.transfer,
    }
}

fn text<Z: TimeZone>(answer: &Answer, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    let mut text = String::new();
    for freeze in &answer.freezes {
        let by = freeze.requested_by.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
        let end = freeze.ends_at.map(|end| format!(" until {}", picture::moment(end.get(), now, zone)));
        text.push_str(&format!("FROZEN{} ({}{by}): {}\n", end.unwrap_or_default(), freeze.name, freeze.reason));
    }
    if answer.policies.is_empty() {
        text.push_str("There is no UpdatePolicy.\n");
    }
    for policy in &answer.policies {
        text.push_str(&policy_text(policy, now, zone));
    }
    text
}

fn policy_text<Z: TimeZone>(policy: &PolicyAnswer, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    let status = &policy.status;
    let counts = &status.counts;
    let mut line = policy.name.clone();
    match (&status.previous, &status.target) {
        (Some(previous), Some(target)) if counts.updated < counts.nodes => {
            line.push_str(&format!("  {} → {}", previous.version, target.version));
        }
        (_, Some(target)) => line.push_str(&format!("  {}", target.version)),
        (_, None) => line.push_str("  no release"),
    }
    line.push_str(&format!("   {}  {}/{}", picture::bar(counts.updated, counts.nodes), counts.updated, counts.nodes));
    if let Some(wave) = &status.wave {
        line.push_str(&format!("   wave {}/{} {} ({} of {})", wave.index, wave.of, wave.name, wave.done, wave.nodes));
    }
    if let Ok(budget) = policy.max_unavailable.of(counts.nodes) {
        line.push_str(&format!("   budget {}/{budget}", counts.unavailable));
    }
    line.push('\n');
    if let Some(window) = &status.window {
        let (verb, at) = match (window.open, window.end) {
            (true, Some(end)) => ("open until", end),
            (true, None) => ("open since", window.start),
            (false, _) => ("opens", window.start),
        };
        line.push_str(&format!("  window {verb} {}\n", picture::moment(at.get(), now, zone)));
    }
    if let Some(error) = status.repository.as_ref().and_then(|repository| repository.error.as_deref()) {
        line.push_str(&format!("  repository: {error}\n"));
    }
    for blocked in &status.blocked {
        line.push_str(&format!("  blocked  {} by {}: {}\n", blocked.version, blocked.by, blocked.reason));
    }
    let moving: Vec<_> = policy.nodes.iter().filter_map(|node| moving(node, now, zone)).collect();
    if !moving.is_empty() {
        line.push_str(&format!("  moving   {}\n", moving.join("     ")));
    }
    let waiting = waiting(&policy.nodes);
    if !waiting.is_empty() {
        line.push_str(&format!("  waiting  {}\n", waiting.join(" · ")));
    }
    for node in policy.nodes.iter().filter(|node| state(node) == Some(RolloutState::Failed)) {
        let message = node.rollout.as_ref().map(|rollout| rollout.message.as_str()).unwrap_or_default();
        line.push_str(&format!("  failed   {}: {message}\n", node.name));
    }
    line
}

fn state(node: &NodeAnswer) -> Option<RolloutState> {
    node.rollout.as_ref().map(|rollout| rollout.state)
}

fn moving<Z: TimeZone>(node: &NodeAnswer, now: DateTime<Utc>, zone: &Z) -> Option<String>
where
    Z::Offset: Display,
{
    let rollout = node.rollout.as_ref()?;
    let what = match rollout.state {
        RolloutState::Draining => match &rollout.drain {
            Some(drain) => format!("draining {}/{} pods", drain.gone, drain.pods),
            None => "draining".to_owned(),
        },
        RolloutState::Rebooting => "rebooting".to_owned(),
        RolloutState::Trial if rollout.reason == WaitReason::Soaking => "trial, soaking".to_owned(),
        RolloutState::Trial => "trial".to_owned(),
        RolloutState::Reverting => "reverting".to_owned(),
        RolloutState::Staging => match &node.transfer {
            Some(transfer) => format!("staging {} %", transfer.percent),
            None => return None,
        },
        _ => return None,
    };
    let until = rollout.until.map(|until| format!(" until {}", picture::moment(until.get(), now, zone)));
    let since = rollout
        .since
        .filter(|_| until.is_none())
        .map(|since| format!(" ({})", picture::span(now.signed_duration_since(since.get()))));
    Some(format!("{} {what}{}", node.name, until.or(since).unwrap_or_default()))
}

/// The waiting nodes, counted by reason and object, most frequent first.
fn waiting(nodes: &[NodeAnswer]) -> Vec<String> {
    let mut counts: BTreeMap<(WaitReason, Option<String>), usize> = BTreeMap::new();
    for rollout in nodes.iter().filter_map(|node| node.rollout.as_ref()) {
        if matches!(rollout.state, RolloutState::Waiting | RolloutState::Unknown) {
            *counts.entry((rollout.reason, rollout.object.as_ref().map(ToString::to_string))).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
        .into_iter()
        .map(|((reason, object), count)| match object {
            Some(object) => format!("{count} {reason} ({object})"),
            None => format!("{count} {reason}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{Counts, DrainProgress, ObjectRef, Rollout, Time, WaveStatus};

    fn node(name: &str, state: RolloutState, reason: WaitReason) -> NodeAnswer {
        let rollout = Rollout {
            state,
            reason,
            message: "it broke".into(),
            object: None,
            until: None,
            since: None,
            passed_gates: Vec::new(),
            drain: Some(DrainProgress { pods: 14, gone: 12 }),
        };
        NodeAnswer { name: name.into(), booted: None, staged: None, rollout: Some(rollout), transfer: None }
    }

    #[test]
    fn one_screen_answers_what_and_why() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 22, 0, 0).unwrap();
        let mut draining = node("node-b4", RolloutState::Draining, WaitReason::Draining);
        if let Some(rollout) = &mut draining.rollout {
            rollout.since = Some(Time::new(now - chrono::TimeDelta::minutes(2)));
        }
        let mut budget = node("node-b2", RolloutState::Waiting, WaitReason::DisruptionBudget);
        if let Some(rollout) = &mut budget.rollout {
            rollout.object = Some(ObjectRef {
                kind: "PodDisruptionBudget".into(),
                namespace: Some("shop".into()),
                name: "checkout".into(),
            });
        }
        let status = api::UpdatePolicyStatus {
            counts: Counts { nodes: 40, updated: 12, unavailable: 2, ..Counts::default() },
            wave: Some(WaveStatus { name: "early".into(), index: 2, of: 3, done: 4, nodes: 8, soak_until: None }),
            ..api::UpdatePolicyStatus::default()
        };
        let policy = PolicyAnswer {
            name: "workers".into(),
            status,
            max_unavailable: api::IntOrPercent::Percent("10%".into()),
            nodes: vec![
                draining,
                budget,
                node("n1", RolloutState::Waiting, WaitReason::Wave),
                node("n2", RolloutState::Waiting, WaitReason::Wave),
                node("n3", RolloutState::Failed, WaitReason::Reverted),
            ],
        };
        assert_eq!(
            policy_text(&policy, now, &Utc),
            "workers  no release   ██████░░░░░░░░░░░░░░  12/40   wave 2/3 early (4 of 8)   budget 2/4\n  \
             moving   node-b4 draining 12/14 pods (2m)\n  \
             waiting  2 Wave · 1 DisruptionBudget (PodDisruptionBudget shop/checkout)\n  \
             failed   n3: it broke\n"
        );
    }
}
