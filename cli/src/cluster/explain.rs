//! `bascule explain NODE`: why this node does not move, and what would mend it.

use super::{Connection, picture};
use crate::{clock, exit::Exit, output};
use anyhow::Context as _;
use bascule_api as api;
use chrono::{DateTime, TimeZone, Utc};
use clap::Args;
use kube::{Api, ResourceExt as _};
use std::fmt::Display;

/// Explain why a node does what it does, or does nothing.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    connection: Connection,
    /// The node.
    node: String,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

impl Explain {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let api: Api<api::NodeUpdate> = Api::all(self.connection.client().await?);
        let node = api.get_opt(&self.node).await.context("can't read the NodeUpdate")?.with_context(|| {
            format!("no policy cares for node {}: no UpdatePolicy selects it, or there is no such node", self.node)
        })?;
        let now = clock::now();
        output::show(self.output, &node, |node| text(node, now, &chrono::Local))?;
        Ok(Exit::Success)
    }
}

fn text<Z: TimeZone>(node: &api::NodeUpdate, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    let status = node.status.clone().unwrap_or_default();
    let runs = status.booted.as_ref().map_or_else(
        || "has not reported what it runs".to_owned(),
        |booted| format!("runs {} in slot {}", booted.version, booted.slot),
    );
    let staged = status.staged.as_ref().map(|staged| format!(", has {} staged", staged.version)).unwrap_or_default();
    let mut text = format!("{} {runs}{staged}", node.name_any());
    let Some(rollout) = &status.rollout else {
        text.push_str("; the operator has not looked at it yet\n");
        return text;
    };
    let reason = rollout.reason;
    text.push_str(&format!(": {:?}, {reason}\n", rollout.state));
    for line in rollout.message.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    if let Some(object) = &rollout.object {
        text.push_str(&format!("cause  {object}\n"));
    }
    if let Some(since) = rollout.since {
        let length = picture::span(now.signed_duration_since(since.get()));
        text.push_str(&format!("since  {} ({length})\n", picture::moment(since.get(), now, zone)));
    }
    if let Some(until) = rollout.until {
        text.push_str(&format!("until  {}\n", picture::moment(until.get(), now, zone)));
    }
    if !rollout.passed_gates.is_empty() {
        let passed: Vec<_> = rollout.passed_gates.iter().map(|gate| format!("✓ {gate}")).collect();
        text.push_str(&format!("gates  {} ✗ {reason}\n", passed.join(" ")));
    }
    if let Some(error) = &status.last_error {
        let next = error.next_try.map(|next| format!(", next try {}", picture::moment(next.get(), now, zone)));
        text.push_str(&format!(
            "error  {} ({}, {}{})\n",
            error.message,
            error.category.as_str(),
            picture::count(error.attempts as usize, "attempt"),
            next.unwrap_or_default()
        ));
    }
    for failed in &status.failed_releases {
        text.push_str(&format!(
            "failed {} at {}: {}\n",
            failed.version,
            picture::moment(failed.at.get(), now, zone),
            failed.message
        ));
    }
    for manual in &status.manual_actions {
        let user = manual.user.as_deref().unwrap_or("somebody");
        text.push_str(&format!(
            "manual {user} used `bascule-agent {}` on the node at {}\n",
            manual.action,
            picture::moment(manual.at.get(), now, zone)
        ));
    }
    text.push_str(&format!("means  {}\nmend   {}\n", reason.meaning(), reason.remedy()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{ObjectRef, Rollout, RolloutState, WaitReason};

    #[test]
    fn says_cause_gates_and_remedy() {
        let spec = serde_json::from_value(serde_json::json!({"policy": "workers"})).unwrap();
        let mut node = api::NodeUpdate::new("node-b2", spec);
        node.status = Some(api::NodeUpdateStatus {
            rollout: Some(Rollout {
                state: RolloutState::Waiting,
                reason: WaitReason::DisruptionBudget,
                message: "2 of 3 pods healthy, 3 wanted".into(),
                object: Some(ObjectRef {
                    kind: "PodDisruptionBudget".into(),
                    namespace: Some("shop".into()),
                    name: "checkout".into(),
                }),
                until: None,
                since: None,
                passed_gates: vec!["NotPaused".into(), "NoFreeze".into()],
                drain: None,
            }),
            ..api::NodeUpdateStatus::default()
        });
        let text = text(&node, Utc.with_ymd_and_hms(2026, 11, 23, 1, 0, 0).unwrap(), &Utc);
        for line in [
            "node-b2 has not reported what it runs: Waiting, DisruptionBudget\n",
            "  2 of 3 pods healthy, 3 wanted\n",
            "cause  PodDisruptionBudget shop/checkout\n",
            "gates  ✓ NotPaused ✓ NoFreeze ✗ DisruptionBudget\n",
            "mend   Get the budget's pods healthy",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }
}
