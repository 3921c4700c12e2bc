//! `bascule history`: what was rolled out, stopped and taken back, newest first.

use super::{
    Connection,
    live::{self, Seen, Source},
    picture::{self, Look},
    problem,
    view::{Page, concerns, place},
};
use crate::{clock, exit::Exit, output};
use bascule_api::{ObjectRef, Outcome, Time};
use chrono::TimeZone;
use clap::Args;
use serde::Serialize;
use std::fmt::Display;

/// Show past rollouts, rollbacks and freezes, newest first.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Only this policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: Option<String>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// Something that happened.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    what: String,
    result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectRef>,
}

/// The answer for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    source: &'a Source,
    entries: Vec<Entry>,
}

impl History {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let seen = live::seen(&connection.client().await?, connection).await?;
        if let Some(name) = &self.policy
            && seen.policy(name).is_none()
        {
            anyhow::bail!("there is no UpdatePolicy {name}{}", problem::hint(name, seen.policy_names()));
        }
        let page = Page { look: Look::of_stdout(), now: clock::now(), zone: &chrono::Local };
        let entries = entries(&seen, self.policy.as_deref(), &page);
        let answer = Answer { source: &seen.source, entries };
        output::show(self.output, &answer, |answer| page.provenance(&seen) + &text(&answer.entries, &page))?;
        Ok(Exit::Success)
    }
}

fn entries<Z>(seen: &Seen, only: Option<&str>, page: &Page<'_, Z>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let object =
        |kind: &str, name: &str| Some(ObjectRef { kind: kind.to_owned(), namespace: None, name: name.to_owned() });
    for policy in seen.report.policies.iter().filter(|policy| only.is_none_or(|name| policy.name == name)) {
        for rollout in &policy.status.history {
            let result = match rollout.outcome {
                Outcome::Running => format!("running, {}", policy.status.columns.updated),
                Outcome::Done => format!("done, {}", picture::count(rollout.nodes as usize, "node")),
                Outcome::Superseded => "a newer release took its place".to_owned(),
                Outcome::Blocked => "blocked after failures".to_owned(),
                Outcome::RolledBack => "rolled back".to_owned(),
            };
            entries.push(Entry {
                at: rollout.started_at,
                ended_at: rollout.ended_at,
                policy: Some(policy.name.clone()),
                what: format!("rollout of {}", rollout.version),
                result,
                by: None,
                reason: String::new(),
                object: None,
            });
        }
        for failure in &policy.status.failures {
            entries.push(Entry {
                at: failure.at,
                ended_at: None,
                policy: Some(policy.name.clone()),
                what: format!("{} failed on {}", failure.version, failure.node),
                result: failure.category.as_str().to_owned(),
                by: None,
                reason: failure.message.clone(),
                object: object("NodeUpdate", &failure.node),
            });
        }
    }
    for rollback in seen.report.rollbacks.iter().filter(|one| only.is_none_or(|name| one.spec.policy == name)) {
        let to = rollback.status.to.as_ref().map_or_else(String::new, |version| format!(" to {version}"));
        entries.push(Entry {
            at: rollback.created_at,
            ended_at: rollback.status.completed_at,
            policy: Some(rollback.spec.policy.clone()),
            what: format!("rollback{to}"),
            result: rollback.status.progress.clone().unwrap_or_default(),
            by: rollback.spec.requested_by.clone(),
            reason: rollback.spec.reason.clone(),
            object: object("Rollback", &rollback.name),
        });
    }
    for freeze in &seen.report.freezes {
        let spec = &freeze.spec;
        if only.is_some_and(|name| !concerns(&seen.report, spec, name)) {
            continue;
        }
        let end = spec.ends_at(freeze.created_at);
        let over = (spec.ended_by.is_none() && end.get() <= page.now).then_some(end);
        let what = if spec.undo_drains { "abort" } else { "freeze" };
        let result = match (&spec.ended_by, over) {
            (Some(by), _) => format!("ended by {by}"),
            (None, Some(_)) => "over".to_owned(),
            (None, None) => "holds".to_owned(),
        };
        entries.push(Entry {
            at: freeze.created_at,
            ended_at: over.or(freeze.status.ended_at),
            policy: None,
            what: format!("{what} {}", place(spec)),
            result,
            by: spec.requested_by.clone(),
            reason: spec.reason.clone(),
            object: object("Freeze", &freeze.name),
        });
    }
    entries.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.what.cmp(&b.what)));
    entries
}

fn text<Z: TimeZone>(entries: &[Entry], page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    if entries.is_empty() {
        return "Nothing has happened yet.\n".to_owned();
    }
    let date = |at: Time| at.get().with_timezone(page.zone).format("%Y-%m-%d %H:%M").to_string();
    let mut rows = vec![["WHEN", "TOOK", "POLICY", "WHAT", "RESULT", "BY", "REASON"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let took = entry.ended_at.map(|end| picture::span(end.get().signed_duration_since(entry.at.get())));
        let dash = || "-".to_owned();
        vec![
            date(entry.at),
            took.unwrap_or_else(dash),
            entry.policy.clone().unwrap_or_else(dash),
            entry.what.clone(),
            entry.result.clone(),
            entry.by.clone().unwrap_or_else(dash),
            entry.reason.clone(),
        ]
    }));
    output::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture;

    #[test]
    fn newest_first_with_who_and_why() {
        let seen = fixture::seen();
        let page = fixture::page(Look::PLAIN);
        insta::assert_snapshot!("history", text(&entries(&seen, None, &page), &page));
        assert_eq!(text(&[], &page), "Nothing has happened yet.\n");
        let answer = Answer { source: &seen.source, entries: entries(&seen, None, &page) };
        insta::assert_snapshot!("history-json", fixture::json(&answer));
    }
}
