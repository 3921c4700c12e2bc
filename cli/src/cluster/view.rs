//! What the reading commands show alike: where their knowledge is from, what is frozen, and a node for programs.

use super::{
    Connection,
    live::{self, Seen, Source},
    picture::{self, Look, Tone},
};
use crate::{clock, output};
use bascule_api as api;
use bascule_api::{LiveNode, LiveReport, LiveWait, RolloutState, Time, WaitReason};
use chrono::{DateTime, TimeZone, Utc};
use kube::Client;
use serde::Serialize;
use std::fmt::Display;

/// A report of the leader older than this is said to be old: it plans every minute at the latest.
const FRESH: i64 = 90;

/// Where and when a command writes for a person.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'z, Z> {
    pub(super) look: Look,
    pub(super) now: DateTime<Utc>,
    pub(super) zone: &'z Z,
}

impl<Z: TimeZone> Page<'_, Z>
where
    Z::Offset: Display,
{
    fn moment(&self, at: Time) -> String {
        picture::moment(at.get(), self.now, self.zone)
    }

    /// The same beside times of other zones, as those of windows are.
    pub(super) fn moment_with_zone(&self, at: Time) -> String {
        picture::moment_with_zone(at.get(), self.now, self.zone)
    }

    /// `01:12:00 (3m2s)`.
    pub(super) fn since(&self, at: Time) -> String {
        format!("{} ({})", self.moment(at), picture::span(self.now.signed_duration_since(at.get())))
    }

    /// What a reader must know of the source before anything else; nothing where it is the leader, just now.
    pub(super) fn provenance(&self, seen: &Seen) -> String {
        let planned = seen.report.planned_at;
        let text = match &seen.source {
            Source::Leader { name } => {
                let age = self.now.signed_duration_since(planned.get());
                if age.num_seconds() < FRESH {
                    return String::new();
                }
                format!("{name} planned last {} ago, or the API server's clock and this one differ", picture::span(age))
            }
            Source::Objects { why, written_at } => {
                let age = written_at.map_or_else(
                    || "which no operator has written yet".to_owned(),
                    |at| format!("last written at {}", self.since(at)),
                );
                format!("not live: {why}. This is what the objects say, {age}")
            }
        };
        self.look.paint(Tone::Warn, self.look.wrapped(&text, "").trim_end()) + "\n"
    }

    /// A line for each Freeze that holds, those apart that are for other policies than the one that is looked at.
    pub(super) fn freezes(&self, report: &LiveReport, policy: Option<&str>) -> String {
        let mut text = String::new();
        let concerns = |spec: &api::FreezeSpec| policy.is_none_or(|policy| concerns(report, spec, policy));
        for freeze in report.freezes.iter().filter(|freeze| holds(freeze, self.now) && concerns(&freeze.spec)) {
            let by = freeze.spec.requested_by.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
            let ends = self.moment_with_zone(freeze.spec.ends_at(freeze.created_at));
            let frozen = self.look.paint(Tone::Bad, &format!("FROZEN {} until {ends}", place(&freeze.spec)));
            text.push_str(&format!("{frozen} ({}{by}): {}\n", freeze.name, freeze.spec.reason));
        }
        text
    }

    /// A line for each Rollback that is not done.
    pub(super) fn rollbacks(&self, report: &LiveReport, policy: Option<&str>) -> String {
        let line = |one: &&api::LiveOrder<api::RollbackSpec, api::RollbackStatus>| {
            let by = one.spec.requested_by.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
            let to = one.status.to.as_ref().map(|version| format!(" to {version}")).unwrap_or_default();
            let progress = one.status.progress.as_deref().map(|done| format!("  {done}")).unwrap_or_default();
            let going = format!("ROLLING BACK {}{to}{progress}", one.spec.policy);
            format!("{} ({}{by}): {}\n", self.look.paint(Tone::Warn, &going), one.name, one.spec.reason)
        };
        rollbacks_under_way(report, policy).iter().map(line).collect()
    }
}

/// The report for a command that asks the operator for something. How old it is, or that nobody leads who would do what is asked,
/// is told first.
pub(super) async fn seen_by_an_asker(client: &Client, connection: &Connection) -> anyhow::Result<Seen> {
    let seen = live::seen(client, connection).await?;
    let page = Page { look: Look::PLAIN, now: clock::now(), zone: &chrono::Local };
    let said = page.provenance(&seen);
    if !said.trim().is_empty() {
        output::say(said.trim_end());
    }
    Ok(seen)
}

/// The same for one that can do without the report: who can't be told asks all the same.
pub(super) async fn tell_if_nobody_leads(client: &Client, connection: &Connection) -> Option<Seen> {
    let seen = seen_by_an_asker(client, connection).await;
    seen.inspect_err(|error| output::say(&format!("whether an operator leads can't be read: {error:#}"))).ok()
}

/// The Rollbacks that are not done, newest first.
pub(super) fn rollbacks_under_way<'a>(
    report: &'a LiveReport,
    policy: Option<&str>,
) -> Vec<&'a api::LiveOrder<api::RollbackSpec, api::RollbackStatus>> {
    let refused = |status: &api::RollbackStatus| {
        api::conditions::get(&status.conditions, api::conditions::ACCEPTED).is_some_and(|one| one.status == "False")
    };
    let all = report.rollbacks.iter().filter(|one| policy.is_none_or(|name| one.spec.policy == name));
    let mut under_way: Vec<_> = all.filter(|one| one.status.completed_at.is_none() && !refused(&one.status)).collect();
    under_way.sort_by(|a, b| (b.created_at, &b.name).cmp(&(a.created_at, &a.name)));
    under_way
}

/// Whether a Freeze holds something of a policy. One that goes by labels does as far as this program knows: the report has none.
pub(super) fn concerns(report: &LiveReport, spec: &api::FreezeSpec, policy: &str) -> bool {
    let index = report.policies.iter().position(|one| one.name == policy);
    let of_it = |name: &String| report.nodes.iter().any(|node| node.name == *name && node.policy == index);
    match (&spec.policies[..], &spec.nodes[..]) {
        ([], []) => true,
        ([], nodes) => nodes.iter().any(of_it),
        (policies, _) => policies.iter().any(|one| one == policy),
    }
}

/// What a Freeze is for.
pub(super) fn place(spec: &api::FreezeSpec) -> String {
    let named = |kind: &str, names: &[String]| match names {
        [one] => format!("{kind} {one}"),
        [first, rest @ ..] => format!("{kind} {first} and {}", picture::count(rest.len(), "other")),
        [] => String::new(),
    };
    match (spec.policies.is_empty(), spec.nodes.is_empty(), &spec.policy_selector) {
        (false, _, _) => named("policy", &spec.policies),
        (_, false, _) => named("node", &spec.nodes),
        (_, _, Some(_)) => "policies by label".to_owned(),
        _ => "everywhere".to_owned(),
    }
}

/// Whether a Freeze holds. One that the operator has not seen yet counts: better one line too many than a wrong "all clear".
pub(super) fn holds(freeze: &api::LiveOrder<api::FreezeSpec, api::FreezeStatus>, now: DateTime<Utc>) -> bool {
    freeze.spec.is_active(freeze.created_at, Time::new(now))
}

/// Whether an object is a node itself, as its agent or its machine is to be looked at.
pub(super) fn is_a_node(object: &api::ObjectRef) -> bool {
    matches!(object.kind.as_str(), "Node" | "NodeUpdate")
}

/// A node for programs: what it waits for is written out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeAnswer {
    #[serde(flatten)]
    pub(super) node: LiveNode,
    #[serde(flatten)]
    pub(super) wait: Option<LiveWait>,
}

impl NodeAnswer {
    pub(super) fn of(report: &LiveReport, node: &LiveNode) -> Self {
        Self { node: node.clone(), wait: report.wait(node).cloned() }
    }
}

/// Whether the reason says more than the state, and is no second time the same word.
pub(super) fn adds(state: RolloutState, wait: &LiveWait) -> bool {
    !state.says(wait.reason)
}

/// State and reason, never the same word twice: `waits: Freeze`, `is draining`.
pub(super) fn headline(node: &LiveNode, wait: Option<&LiveWait>) -> String {
    let does = picture::does(node.state);
    match wait.filter(|wait| adds(node.state, wait) && wait.reason != WaitReason::Transferring) {
        Some(wait) => format!("{does}: {}", wait.reason),
        None => does.to_owned(),
    }
}
