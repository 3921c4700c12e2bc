//! `bascule status`: what happens now and why something waits, for all policies, on one screen however large the fleet is.

use super::{
    Connection,
    live::{self, Seen, Source},
    picture::{self, Look, Tone},
    problem,
    view::{self, NodeAnswer, Page, headline},
};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{LiveForecast, LiveNode, LivePolicy, LiveReport, RolloutState, Time, WaitReason};
use bascule_dashboard::FORESEEN_NODES;
use chrono::TimeZone;
use clap::Args;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::Duration,
};

/// How many nodes and reasons of a kind are named on one screen.
const NAMED: usize = 8;
/// Between two looks with `--watch`.
const PAUSE: Duration = Duration::from_secs(2);

/// Show what happens now and why something waits.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Only this policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: Option<String>,
    /// Look again every two seconds, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// The answer for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    source: &'a Source,
    planned_at: Time,
    policies: Vec<PolicyAnswer<'a>>,
    freezes: Vec<&'a api::LiveOrder<api::FreezeSpec, api::FreezeStatus>>,
    rollbacks: Vec<&'a api::LiveOrder<api::RollbackSpec, api::RollbackStatus>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyAnswer<'a> {
    #[serde(flatten)]
    policy: &'a LivePolicy,
    nodes: Vec<NodeAnswer>,
}

impl Status {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let terminal = console::Term::stdout();
        loop {
            let seen = match live::seen(&client, connection).await {
                Ok(seen) => seen,
                // Whoever watches wants to see it come back.
                Err(error) if self.watch => {
                    output::say(&format!("{error:#}"));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(name) = &self.policy
                && seen.policy(name).is_none()
            {
                anyhow::bail!("there is no UpdatePolicy {name}{}", problem::hint(name, seen.policy_names()));
            }
            if self.watch && terminal.is_term() && self.output == output::Format::Table {
                terminal.clear_screen()?;
            }
            self.show(&seen)?;
            if !self.watch {
                return Ok(Exit::Success);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn show(&self, seen: &Seen) -> anyhow::Result<()> {
        let wide = self.output == output::Format::Wide;
        let page = Page { look: Look::of_stdout(), now: clock::now(), zone: &chrono::Local };
        let answer = answer(seen, self.policy.as_deref(), &page);
        output::show(self.output, &answer, |_| text(seen, self.policy.as_deref(), wide, &page))
    }
}

fn wanted<'a>(seen: &'a Seen, only: Option<&'a str>) -> impl Iterator<Item = (usize, &'a LivePolicy)> {
    seen.report.policies.iter().enumerate().filter(move |(_, policy)| only.is_none_or(|name| policy.name == name))
}

fn answer<'a, Z>(seen: &'a Seen, only: Option<&'a str>, page: &Page<'_, Z>) -> Answer<'a> {
    let report = &seen.report;
    let policies = wanted(seen, only).map(|(index, policy)| PolicyAnswer {
        policy,
        nodes: report.nodes_of(index).map(|node| NodeAnswer::of(report, node)).collect(),
    });
    Answer {
        source: &seen.source,
        planned_at: report.planned_at,
        policies: policies.collect(),
        freezes: report.freezes.iter().filter(|freeze| view::holds(freeze, page.now)).collect(),
        rollbacks: view::rollbacks_under_way(report, only),
    }
}

fn text<Z: TimeZone>(seen: &Seen, only: Option<&str>, wide: bool, page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let mut text = page.provenance(seen);
    text.push_str(&page.freezes(&seen.report, only));
    text.push_str(&page.rollbacks(&seen.report, only));
    if seen.report.policies.is_empty() {
        text.push_str("There is no UpdatePolicy: no node is looked after. See docs/policies.md for a first one.\n");
    }
    for (index, policy) in wanted(seen, only) {
        let nodes: Vec<&LiveNode> = seen.report.nodes_of(index).collect();
        text.push_str(&policy_text(seen, policy, &nodes, page));
        if wide {
            text.push_str(&table(&seen.report, &nodes, page));
        }
    }
    text
}

fn policy_text<Z: TimeZone>(seen: &Seen, policy: &LivePolicy, nodes: &[&LiveNode], page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let (report, look) = (&seen.report, page.look);
    let (status, counts) = (&policy.status, &policy.status.counts);
    let mut line = look.paint(Tone::Strong, &policy.name);
    match (&status.previous, &status.target) {
        (Some(previous), Some(target)) if counts.updated < counts.nodes => {
            let arrow = look.sign("→", "->");
            line.push_str(&format!("  {} {arrow} {}", previous.version, target.version));
        }
        (_, Some(target)) => line.push_str(&format!("  {}", target.version)),
        (_, None) => line.push_str("  no release"),
    }
    line.push_str(&format!("   {}  {}/{}", look.bar(counts.updated, counts.nodes), counts.updated, counts.nodes));
    if let Some(wave) = &status.wave {
        line.push_str(&format!("   wave {}/{} {} ({} of {})", wave.index, wave.of, wave.name, wave.done, wave.nodes));
    }
    if let Some(budget) = policy.max_unavailable {
        line.push_str(&format!("   budget {}/{budget}", counts.unavailable));
    }
    line.push('\n');
    if policy.paused {
        line.push_str(&format!("  {}       by its spec: nothing new starts\n", look.paint(Tone::Warn, "paused")));
    }
    if let Some(window) = &status.window {
        let column = status.columns.next_window.as_str();
        let distance = |at: Time| picture::span((at.get() - page.now).abs());
        let shown = match (window.open, window.end) {
            (true, Some(end)) => format!("{column} (closes in {})", distance(end)),
            (true, None) => column.to_owned(),
            (false, _) => format!("{column} (in {})", distance(window.start)),
        };
        line.push_str(&format!("  window       {shown}\n"));
    }
    if counts.updated < counts.nodes
        && let Some(ahead) = foreseen(seen, policy, page)
    {
        line.push_str(&format!("  forecast     {ahead}\n"));
    }
    if let Some(until) = status.wave.as_ref().and_then(|wave| wave.soak_until) {
        line.push_str(&format!("  soak         until {}\n", page.moment_with_zone(until)));
    }
    if let Some(error) = status.repository.as_ref().and_then(|repository| repository.error.as_deref()) {
        line.push_str(&format!("  {}   {error}\n", look.paint(Tone::Bad, "repository")));
    }
    for condition in unwell(&status.conditions) {
        let name = look.paint(Tone::Bad, &condition.type_);
        line.push_str(&format!("  {name} is {}, {}: {}\n", condition.status, condition.reason, condition.message));
    }
    for blocked in &status.blocked {
        line.push_str(&format!("  blocked      {} by {}: {}\n", blocked.version, blocked.by, blocked.reason));
    }
    line.push_str(&moving(report, nodes, page));
    line.push_str(&waiting(report, nodes, look));
    line.push_str(&failed(report, nodes, look));
    line
}

/// What lies ahead, or why the operator does not say it, and who does.
fn foreseen<Z: TimeZone>(seen: &Seen, policy: &LivePolicy, page: &Page<'_, Z>) -> Option<String>
where
    Z::Offset: Display,
{
    if let Some(ahead) = &policy.forecast {
        let open = policy.status.window.as_ref().is_some_and(|window| window.open);
        return Some(forecast(ahead, open, page));
    }
    // The objects have none, and what is old is said of them all.
    let Source::Leader { .. } = seen.source else { return None };
    let why = if seen.report.nodes.len() > FORESEEN_NODES {
        format!("the operator makes none for more than {FORESEEN_NODES} nodes")
    } else {
        "not made yet, or too many steps lie ahead".to_owned()
    };
    Some(format!("{why}: {}", seen.cluster.line(&format!("bascule forecast {}", policy.name))))
}

/// `14 more nodes in this window, done Sat 11:20 +01:00`.
fn forecast<Z: TimeZone>(ahead: &LiveForecast, open: bool, page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let done = ahead.done_at.map_or_else(
        || "the end is not foreseen: it waits for a person, or lies more than two weeks ahead".to_owned(),
        |at| format!("done {}", page.moment_with_zone(at)),
    );
    let fits = ahead.in_window.map(|nodes| match open {
        true => format!("{} in this window, ", picture::count(nodes, "more node")),
        false => format!("{} in the next window, ", picture::count(nodes, "node")),
    });
    fits.unwrap_or_default() + &done
}

/// The conditions of a policy that are not as they should be, what the lines below tell anyway apart.
pub(super) fn unwell(
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
) -> impl Iterator<Item = &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    use api::conditions::{ACCEPTED, HALTED, MAINTENANCE_PLANNED, POLICY_CONFLICT};
    conditions.iter().filter(|condition| match condition.type_.as_str() {
        ACCEPTED => condition.status == "False",
        HALTED | POLICY_CONFLICT => condition.status == "True",
        // What waits for a person, though no node does.
        MAINTENANCE_PLANNED => condition.reason == "HookFailed",
        _ => false,
    })
}

/// Nodes under way: how many do what, and those that have done it longest.
fn moving<Z: TimeZone>(report: &LiveReport, nodes: &[&LiveNode], page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let moves = |node: &&&LiveNode| {
        matches!(
            node.state,
            RolloutState::Draining | RolloutState::Rebooting | RolloutState::Trial | RolloutState::Reverting
        ) || (node.state == RolloutState::Staging && node.percent.is_some())
    };
    let mut moving: Vec<&LiveNode> = nodes.iter().filter(moves).copied().collect();
    if moving.is_empty() {
        return String::new();
    }
    let mut counts: BTreeMap<RolloutState, usize> = BTreeMap::new();
    for node in &moving {
        *counts.entry(node.state).or_default() += 1;
    }
    let all: Vec<_> = counts
        .iter()
        .map(|(state, count)| format!("{count} {}", picture::does(*state).trim_start_matches("is ")))
        .collect();
    let mut text = format!("  in progress  {}\n", all.join(page.look.sign(" · ", ", ")));
    // Staging is harmless and goes last; of the others those that took longest come first.
    moving
        .sort_by_key(|node| (node.state == RolloutState::Staging, node.since.is_none(), node.since, node.name.clone()));
    let rows: Vec<Vec<String>> = moving.iter().take(NAMED).map(|node| moving_row(report, node, page)).collect();
    for line in output::columns(&rows).lines() {
        text.push_str(&format!("               {line}\n"));
    }
    if moving.len() > NAMED {
        text.push_str(&format!("               and {} more: bascule status -o wide\n", moving.len() - NAMED));
    }
    text
}

fn moving_row<Z: TimeZone>(report: &LiveReport, node: &LiveNode, page: &Page<'_, Z>) -> Vec<String>
where
    Z::Offset: Display,
{
    let wait = report.wait(node);
    let mut what = headline(node, wait).trim_start_matches("is ").to_owned();
    match (&node.drain, node.percent) {
        (Some(drain), _) if node.state == RolloutState::Draining => {
            what.push_str(&format!(" {}/{} pods", drain.gone, drain.pods));
        }
        (_, Some(percent)) if node.state == RolloutState::Staging => what.push_str(&format!(" {percent} %")),
        _ => {}
    }
    let until = wait.and_then(|wait| wait.until).map(|until| format!("until {}", page.moment_with_zone(until)));
    let since = node.since.map(|since| format!("for {}", picture::span(page.now.signed_duration_since(since.get()))));
    let object = wait.and_then(|wait| wait.object.as_ref()).map(ToString::to_string);
    vec![node.name.clone(), what, until.or(since).unwrap_or_default(), object.unwrap_or_default()]
}

/// The waiting nodes, counted by reason, most frequent first, with an object that causes it.
fn waiting(report: &LiveReport, nodes: &[&LiveNode], look: Look) -> String {
    let mut counts: BTreeMap<WaitReason, (usize, BTreeSet<String>)> = BTreeMap::new();
    let waits = |node: &&&LiveNode| match node.state {
        RolloutState::Waiting | RolloutState::Unknown => true,
        RolloutState::Staging => node.percent.is_none(),
        _ => false,
    };
    for wait in nodes.iter().filter(waits).filter_map(|node| report.wait(node)) {
        let (count, objects) = counts.entry(wait.reason).or_default();
        *count += 1;
        objects.extend(wait.object.as_ref().filter(|object| !view::is_a_node(object)).map(ToString::to_string));
    }
    if counts.is_empty() {
        return String::new();
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.0.cmp(&a.1.0).then_with(|| a.0.cmp(&b.0)));
    let mut parts: Vec<String> = counts
        .iter()
        .take(NAMED)
        .map(|(reason, (count, objects))| match (objects.first(), objects.len()) {
            (Some(object), 1) => format!("{count} {reason} ({object})"),
            (Some(object), all) => format!("{count} {reason} ({object} and {})", picture::count(all - 1, "other")),
            (None, _) => format!("{count} {reason}"),
        })
        .collect();
    if counts.len() > NAMED {
        parts.push(format!("and {} more reasons", counts.len() - NAMED));
    }
    format!("  waiting      {}\n", parts.join(look.sign(" · ", ", ")))
}

fn failed(report: &LiveReport, nodes: &[&LiveNode], look: Look) -> String {
    let failed: Vec<_> = nodes.iter().filter(|node| node.state == RolloutState::Failed).collect();
    let mut text = String::new();
    for node in failed.iter().take(NAMED) {
        let message = report.wait(node).map(|wait| wait.message.as_str()).unwrap_or_default();
        text.push_str(&format!("  {}       {}: {message}\n", look.paint(Tone::Bad, "failed"), node.name));
    }
    if failed.len() > NAMED {
        text.push_str(&format!("               and {} more: bascule status -o wide\n", failed.len() - NAMED));
    }
    text
}

fn table<Z: TimeZone>(report: &LiveReport, nodes: &[&LiveNode], page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        ["", "NODE", "ZONE", "BOOTED", "STAGED", "STATE", "REASON", "UNTIL", "OBJECT"].map(str::to_owned).to_vec(),
    ];
    rows.extend(nodes.iter().map(|node| {
        let wait = report.wait(node);
        vec![
            String::new(),
            node.name.clone(),
            or_dash(node.zone.clone()),
            or_dash(node.booted.as_ref().map(ToString::to_string)),
            or_dash(node.staged.as_ref().map(ToString::to_string)),
            format!("{:?}", node.state),
            or_dash(wait.filter(|wait| view::adds(node.state, wait)).map(|wait| wait.reason.to_string())),
            or_dash(wait.and_then(|wait| wait.until).map(|until| page.moment_with_zone(until))),
            or_dash(wait.and_then(|wait| wait.object.as_ref()).map(ToString::to_string)),
        ]
    }));
    output::columns(&rows)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
