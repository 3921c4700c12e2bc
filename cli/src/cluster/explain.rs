//! `bascule explain NODE|POLICY`: why it does what it does, or nothing, which gate holds it, and what would change that.

use super::{
    Connection,
    live::{self, Seen, Source},
    picture::{self, Look, Tone},
    problem::{self, Role},
    remedy,
    status::unwell,
    view::{NodeAnswer, Page, headline, is_a_node},
};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{LiveNode, LivePolicy, LiveReport, LiveWait, Time, WaitReason};
use chrono::TimeZone;
use clap::Args;
use kube::Api;
use serde::Serialize;
use std::fmt::Display;

/// How many nodes are named beside a reason.
const NAMED: usize = 5;

/// How many reasons a person is shown; programs get all of them.
const SHOWN: usize = 12;

/// Explain why a node or a policy does what it does, or does nothing.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The node or the policy.
    #[arg(value_name = "NODE|POLICY", add = clap_complete::ArgValueCandidates::new(crate::completion::nodes_and_policies))]
    name: String,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeExplanation<'a> {
    source: &'a Source,
    #[serde(flatten)]
    node: NodeAnswer,
    gates: Gates<'a>,
    /// What would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
    /// What to type for it, as it stands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_update: Option<&'a api::NodeUpdate>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyExplanation<'a> {
    source: &'a Source,
    planned_at: Time,
    #[serde(flatten)]
    policy: &'a LivePolicy,
    /// What its nodes wait for, the most frequent first.
    waits: Vec<WaitExplanation<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitExplanation<'a> {
    #[serde(flatten)]
    wait: &'a LiveWait,
    nodes: Vec<&'a str>,
    /// What would change it.
    remedy: &'static str,
    /// What to type for it, as it stands: for the first of the nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
}

impl<'a> WaitExplanation<'a> {
    fn of(seen: &Seen, policy: &LivePolicy, (wait, nodes): (&'a LiveWait, Vec<&'a LiveNode>)) -> Self {
        Self {
            wait,
            commands: of_group(seen, wait, &nodes, policy),
            nodes: nodes.iter().map(|node| node.name.as_str()).collect(),
            remedy: wait.reason.remedy(),
        }
    }
}

/// The commands for a group of nodes that wait for the same: the first stands for all of them.
fn of_group(seen: &Seen, wait: &LiveWait, nodes: &[&LiveNode], policy: &LivePolicy) -> Vec<String> {
    let first = nodes.first().map(|node| remedy::commands(wait, &node.name, Some(policy)));
    first.iter().flatten().map(|command| seen.cluster.line(command)).collect()
}

/// The gates in their order: those that hold, the one that does not, and those that were not asked.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gates<'a> {
    passed: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<&'a str>,
    not_asked: &'a [String],
}

impl<'a> Gates<'a> {
    fn of(report: &'a LiveReport, node: &LiveNode) -> Self {
        let Some((passed, rest)) = node.gates_passed.and_then(|passed| report.gates.split_at_checked(passed)) else {
            return Self { passed: &[], holds: None, not_asked: &[] };
        };
        match rest.split_first() {
            Some((holds, not_asked)) => Self { passed, holds: Some(holds), not_asked },
            None => Self { passed, holds: None, not_asked: &[] },
        }
    }

    fn text(&self, look: Look) -> Option<String> {
        let holds = self.holds?;
        let mut words: Vec<String> = self
            .passed
            .iter()
            .map(|gate| format!("{}{gate}", look.paint(Tone::Good, look.sign("✓\u{a0}", "+"))))
            .collect();
        words.push(look.paint(Tone::Bad, &format!("{}{holds}", look.sign("✗\u{a0}", "!"))));
        if !self.not_asked.is_empty() {
            words.push(format!("({} more are asked then)", self.not_asked.len()));
        }
        Some(words.join(" "))
    }
}

impl Explain {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let updates: Api<api::NodeUpdate> = Api::all(client.clone());
        let (seen, update) = tokio::join!(live::seen(&client, connection), updates.get_opt(&self.name));
        let seen = seen?;
        let page = Page { look: Look::of_stdout(), now: clock::now(), zone: &chrono::Local };
        if let Some(node) = seen.report.nodes.iter().find(|node| node.name == self.name) {
            // What the leader says of the node is there without it; only what its agent says in detail is in the object alone.
            let update = update.unwrap_or_else(|error| {
                let why = problem::told(error, "get", "NodeUpdates", Role::OnCall);
                crate::output::say(&format!("what the node's agent says can't be shown: {why}"));
                None
            });
            let update = update.as_ref();
            let explanation = NodeExplanation {
                source: &seen.source,
                node: NodeAnswer::of(&seen.report, node),
                gates: Gates::of(&seen.report, node),
                remedy: seen.report.wait(node).map(|wait| wait.reason.remedy()),
                commands: of_node(&seen, node),
                node_update: update,
            };
            output::show(self.output, &explanation, |_| node_text(&seen, node, update, &page))?;
        } else if let Some((index, policy)) = seen.policy(&self.name) {
            let explanation = PolicyExplanation {
                source: &seen.source,
                planned_at: seen.report.planned_at,
                policy,
                waits: groups(&seen.report, index)
                    .into_iter()
                    .map(|group| WaitExplanation::of(&seen, policy, group))
                    .collect(),
            };
            output::show(self.output, &explanation, |_| policy_text(&seen, index, policy, &page))?;
        } else {
            let names = seen.report.nodes.iter().map(|node| node.name.as_str()).chain(seen.policy_names());
            anyhow::bail!("there is no node and no UpdatePolicy {}{}", self.name, problem::hint(&self.name, names));
        }
        Ok(Exit::Success)
    }
}

/// A line with its word in front.
fn line(word: &str, text: &str) -> String {
    format!("{word:<7}{text}\n")
}

/// A text behind its word, as wide as there is room.
fn paragraph(look: Look, word: &str, text: &str) -> String {
    let wrapped = look.wrapped(text, "       ");
    format!("{word:<7}{}\n", wrapped.trim())
}

fn node_text<Z: TimeZone>(seen: &Seen, node: &LiveNode, update: Option<&api::NodeUpdate>, page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let (report, look) = (&seen.report, page.look);
    let mut text = page.provenance(seen);
    let runs = node
        .booted
        .as_ref()
        .map_or_else(|| "has not reported what it runs".to_owned(), |version| format!("runs {version}"));
    let staged = node.staged.as_ref().map(|version| format!(", has {version} staged")).unwrap_or_default();
    let wait = report.wait(node);
    let policy = node.policy.and_then(|index| report.policies.get(index));
    let policy = policy.map_or_else(String::new, |policy| format!("   policy {}", policy.name));
    let name = look.paint(Tone::Strong, &node.name);
    text.push_str(&format!("{name} {runs}{staged}{policy}\n{}\n", look.paint(Tone::Strong, &headline(node, wait))));
    if let Some(wait) = wait {
        text.push_str(&look.wrapped(&wait.message, "  "));
        if let Some(object) = &wait.object {
            text.push_str(&line("cause", &object.to_string()));
        }
    }
    if let Some(drain) = &node.drain {
        text.push_str(&line("drain", &format!("{} of {} pods are gone", drain.gone, drain.pods)));
    }
    if let Some(since) = node.since {
        text.push_str(&line("since", &page.since(since)));
    }
    if let Some(until) = wait.and_then(|wait| wait.until) {
        text.push_str(&line("until", &page.moment_with_zone(until)));
    }
    if let Some(gates) = Gates::of(report, node).text(look) {
        text.push_str(&paragraph(look, "gates", &gates));
    }
    if let Some(status) = update.and_then(|update| update.status.as_ref()) {
        text.push_str(&agent_text(status, page));
    }
    if let Some(wait) = wait {
        text.push_str(&paragraph(look, "means", wait.reason.meaning()));
        text.push_str(&paragraph(look, "do", wait.reason.remedy()));
        // Never wrapped: they are typed, or copied, as they stand.
        text.extend(of_node(seen, node).iter().map(|command| line("run", command)));
    }
    text
}

/// The commands for one node.
fn of_node(seen: &Seen, node: &LiveNode) -> Vec<String> {
    let policy = node.policy.and_then(|index| seen.report.policies.get(index));
    let commands = seen.report.wait(node).map(|wait| remedy::commands(wait, &node.name, policy));
    commands.iter().flatten().map(|command| seen.cluster.line(command)).collect()
}

/// What the agent itself says went wrong.
fn agent_text<Z: TimeZone>(status: &api::NodeUpdateStatus, page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let mut text = String::new();
    if let Some(error) = &status.last_error {
        let next = error.next_try.map(|next| format!(", next try {}", page.moment_with_zone(next)));
        let attempts = picture::count(error.attempts as usize, "attempt");
        let more = format!("({}, {attempts}{})", error.category.as_str(), next.unwrap_or_default());
        text.push_str(&paragraph(page.look, "error", &format!("{} {more}", error.message)));
    }
    for failed in &status.failed_releases {
        let said = format!("{} at {}: {}", failed.version, page.moment_with_zone(failed.at), failed.message);
        text.push_str(&paragraph(page.look, "failed", &said));
    }
    for manual in &status.manual_actions {
        let user = manual.user.as_deref().unwrap_or("somebody");
        let said = format!(
            "{user} used `bascule-agent {}` on the node at {}",
            manual.action,
            page.moment_with_zone(manual.at)
        );
        text.push_str(&line("manual", &said));
    }
    text
}

fn policy_text<Z: TimeZone>(seen: &Seen, index: usize, policy: &LivePolicy, page: &Page<'_, Z>) -> String
where
    Z::Offset: Display,
{
    let (report, look, status) = (&seen.report, page.look, &policy.status);
    let mut text = page.provenance(seen);
    let counts = &status.counts;
    let release = status.target.as_ref().map_or_else(
        || "has no release to go to".to_owned(),
        |target| format!("brings its nodes to {}: {} of {} run it", target.version, counts.updated, counts.nodes),
    );
    text.push_str(&format!("policy {} {release}\n", look.paint(Tone::Strong, &policy.name)));
    text.push_str(&page.freezes(report, Some(&policy.name)));
    if policy.paused {
        text.push_str(&line("paused", "by its spec: nothing new starts"));
    }
    if !matches!(status.columns.next_window.as_str(), "" | "-") {
        text.push_str(&line("window", &status.columns.next_window));
    }
    for condition in unwell(&status.conditions) {
        let said = format!("{} is {}, {}: {}", condition.type_, condition.status, condition.reason, condition.message);
        text.push_str(&paragraph(look, "!", &said));
    }
    if let Some(error) = status.repository.as_ref().and_then(|repository| repository.error.as_deref()) {
        text.push_str(&paragraph(look, "!", &format!("repository: {error}")));
    }
    for failure in &status.failures {
        let said = format!(
            "{} on {} at {}: {}",
            failure.version,
            failure.node,
            page.moment_with_zone(failure.at),
            failure.message
        );
        text.push_str(&paragraph(look, "failed", &said));
    }
    for blocked in &status.blocked {
        let said = format!("{} by {}: {}", blocked.version, blocked.by, blocked.reason);
        text.push_str(&paragraph(look, "blocked", &said));
    }
    let groups = groups(report, index);
    let (shown, left_out) = groups.split_at(groups.len().min(SHOWN));
    for (wait, nodes) in shown {
        let named: Vec<_> = nodes.iter().take(NAMED).map(|node| node.name.as_str()).collect();
        let more = nodes.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let until = wait.until.map(|until| format!(" until {}", page.moment_with_zone(until))).unwrap_or_default();
        let head = format!("{}: {}{until}", picture::count(nodes.len(), "node"), wait.reason);
        text.push_str(&format!("\n{}   {}{more}\n", look.paint(Tone::Strong, &head), named.join(" ")));
        text.push_str(&look.wrapped(&wait.message, "  "));
        text.push_str(&look.wrapped(wait.reason.remedy(), "  "));
        text.extend(of_group(seen, wait, nodes, policy).iter().map(|command| format!("  run  {command}\n")));
    }
    if !left_out.is_empty() {
        let nodes: usize = left_out.iter().map(|(_, nodes)| nodes.len()).sum();
        let (reasons, nodes) = (picture::count(left_out.len(), "more reason"), picture::count(nodes, "node"));
        text.push_str(&format!("\n{reasons}, of {nodes}: -o json names all of them\n"));
    }
    text
}

/// Whether a node waits for nothing but itself.
fn is_own(node: &LiveNode, wait: &LiveWait) -> bool {
    wait.object.as_ref().is_some_and(|object| is_a_node(object) && object.name == node.name)
}

/// The policy's nodes by what they wait for, the largest group first; those that are up to date apart.
fn groups(report: &LiveReport, policy: usize) -> Vec<(&LiveWait, Vec<&LiveNode>)> {
    let mut groups: Vec<(&LiveWait, Vec<&LiveNode>)> = Vec::new();
    for node in report.nodes_of(policy) {
        let Some(wait) = report.wait(node).filter(|wait| wait.reason != WaitReason::Current) else { continue };
        // What another object says of itself is the same for all who wait for it, in whatever words. Of nodes that are in the way,
        // and where nothing is named, the sentence tells one wait from another: it may be about another zone.
        let one_object = |known: &LiveWait| {
            known.object.as_ref().is_some_and(|object| !is_a_node(object)) || known.message == wait.message
        };
        let same = |known: &LiveWait| {
            known.reason == wait.reason
                && (is_own(node, known) || is_own(node, wait) || (known.object == wait.object && one_object(known)))
        };
        match groups.iter_mut().find(|(known, _)| same(known)) {
            Some((_, nodes)) => nodes.push(node),
            None => groups.push((wait, vec![node])),
        }
    }
    groups.sort_by_key(|(wait, nodes)| (std::cmp::Reverse(nodes.len()), wait.reason));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture;

    #[test]
    fn a_node_is_explained_with_its_gates_in_order() {
        let seen = fixture::seen();
        let node = &seen.report.nodes[2];
        let shown = node_text(&seen, node, None, &fixture::page(fixture::TERMINAL));
        assert!(fixture::PAGE.contains(&shown), "docs/cli.md shows something else than:\n{shown}");
        insta::assert_snapshot!("explain-node", shown);
        insta::assert_snapshot!("explain-node-plain", node_text(&seen, node, None, &fixture::page(Look::PLAIN)));
        let gates = Gates::of(&seen.report, node);
        assert_eq!(gates.holds, Some("DisruptionBudget"));
        let explanation = NodeExplanation {
            source: &seen.source,
            node: NodeAnswer::of(&seen.report, node),
            remedy: seen.report.wait(node).map(|wait| wait.reason.remedy()),
            commands: of_node(&seen, node),
            gates: Gates::of(&seen.report, node),
            node_update: None,
        };
        insta::assert_snapshot!("explain-node-json", fixture::json(&explanation));
        let gates = Gates::of(&seen.report, node);
        assert!(!gates.passed.contains(&"DisruptionBudget".to_owned()) && !gates.passed.is_empty());
    }

    #[test]
    fn the_sandboxs_transcript_is_what_is_said_today() {
        let (look, read) = (fixture::SANDBOX, format!("{}\n", fixture::sandbox_read("explain")));
        let reason = read.lines().find_map(|line| line.strip_prefix("waits: ")).unwrap();
        let reason = WaitReason::ALL.iter().find(|known| known.as_str() == reason).unwrap();
        let passed = read.matches('✓').count();
        let node = LiveNode { gates_passed: Some(passed), ..fixture::node("n", api::RolloutState::Waiting, 0) };
        let gates = Gates::of(&fixture::seen().report, &node).text(look).unwrap();
        for (word, text) in [("gates", gates.as_str()), ("means", reason.meaning()), ("do", reason.remedy())] {
            let today = paragraph(look, word, text);
            assert!(read.contains(&today), "docs/on-call.md has something else than:\n{today}in:\n{read}");
        }
        let name = read.split(' ').next().unwrap();
        let cause = read.lines().find_map(|line| line.strip_prefix("cause  ")?.split_once(' '));
        let wait = fixture::wait(*reason, &read, cause);
        let mut workers = fixture::seen().report.policies[0].clone();
        workers.name = "workers".to_owned();
        let run: Vec<&str> = read.lines().filter_map(|line| line.strip_prefix("run    ")).collect();
        assert_eq!(run, remedy::commands(&wait, name, Some(&workers)), "what docs/on-call.md tells people to type");
        assert!(read.contains(", has ") && read.contains(" staged   policy workers\n"), "{read}");
    }

    #[test]
    fn what_to_run_is_for_the_cluster_that_was_looked_at() {
        let mut seen = fixture::seen();
        let words = "bascule --context prod explain node-b2".split(' ').map(str::to_owned);
        seen.cluster = Connection::of_words(words).same_cluster();
        let shown = node_text(&seen, &seen.report.nodes[2], None, &fixture::page(fixture::TERMINAL));
        let run = "\nrun    kubectl --context prod -n shop describe poddisruptionbudget checkout\n";
        assert!(shown.contains(run), "{shown}");
        let shown = policy_text(&seen, 0, &seen.report.policies[0], &fixture::page(fixture::TERMINAL));
        assert!(shown.contains("\n  run  bascule --context prod forecast workers\n"), "{shown}");
    }

    #[test]
    fn no_gate_that_holds_back_has_a_tick_whatever_the_state() {
        let seen = fixture::seen();
        for passed in 0..seen.report.gates.len() {
            let node = LiveNode { gates_passed: Some(passed), ..fixture::node("n", api::RolloutState::Waiting, 2) };
            let shown = node_text(&seen, &node, None, &fixture::page(fixture::TERMINAL));
            let gate = &seen.report.gates[passed];
            assert!(shown.contains(&format!("✗ {gate}")) && !shown.contains(&format!("✓ {gate} ")), "{shown}");
        }
    }

    #[test]
    fn no_word_is_said_twice() {
        for reason in WaitReason::ALL {
            let mut seen = fixture::seen();
            seen.report.waits[0] = fixture::wait(*reason, "", None);
            for state in [
                api::RolloutState::Draining,
                api::RolloutState::Trial,
                api::RolloutState::Rebooting,
                api::RolloutState::Reverting,
            ] {
                let node = fixture::node("n", state, 0);
                let said = headline(&node, seen.report.wait(&node));
                assert!(!said.contains(": ") || !said.ends_with(&format!("{state:?}")), "{said}");
            }
        }
    }

    #[test]
    fn a_policy_is_explained_by_what_its_nodes_wait_for() {
        let seen = fixture::seen();
        let policy = &seen.report.policies[0];
        insta::assert_snapshot!("explain-policy", policy_text(&seen, 0, policy, &fixture::page(fixture::TERMINAL)));
    }

    #[test]
    fn one_zones_sentence_is_not_said_of_another() {
        let mut seen = fixture::seen();
        let busy = |zone: &str, node| {
            let message = format!("1 node of {zone} may be unavailable at once, and that many are");
            fixture::wait(WaitReason::DomainBusy, &message, node)
        };
        for (zone, node) in [("a", None), ("b", None), ("c", Some(("Node", "c1"))), ("d", Some(("Node", "c1")))] {
            seen.report.waits.push(busy(zone, node));
            let wait = seen.report.waits.len() - 1;
            for name in ["2", "3"] {
                seen.report.nodes.push(fixture::node(&format!("{zone}{name}"), api::RolloutState::Waiting, wait));
            }
        }
        let shown = policy_text(&seen, 0, &seen.report.policies[0], &fixture::page(fixture::TERMINAL));
        for zone in ["a", "b", "c", "d"] {
            assert!(
                shown.contains(&format!("2 nodes: DomainBusy   {zone}2 {zone}3\n  1 node of {zone} may")),
                "{shown}"
            );
        }
        assert!(!shown.contains("more reason"), "{shown}");
    }

    #[test]
    fn what_is_left_out_is_said_to_be() {
        let seen = fixture::crowd();
        let shown = policy_text(&seen, 0, &seen.report.policies[0], &fixture::page(fixture::TERMINAL));
        // The last line has the word too.
        assert_eq!(shown.matches("\n1 node: ").count() + shown.matches(" nodes: ").count(), 13, "{shown}");
        assert!(shown.contains(" more reasons, of ") && shown.ends_with(": -o json names all of them\n"), "{shown}");
        assert!(groups(&seen.report, 0).len() > 500, "programs get all of them");
    }

    #[test]
    fn programs_read_what_a_policys_nodes_wait_for() {
        let seen = fixture::seen();
        let explanation = PolicyExplanation {
            source: &seen.source,
            planned_at: seen.report.planned_at,
            policy: &seen.report.policies[0],
            waits: groups(&seen.report, 0)
                .into_iter()
                .map(|group| WaitExplanation::of(&seen, &seen.report.policies[0], group))
                .collect(),
        };
        insta::assert_snapshot!("explain-policy-json", fixture::json(&explanation));
        let read = serde_json::to_value(&explanation).unwrap();
        assert_eq!((&read["source"]["from"], &read["name"]), (&"leader".into(), &"workers".into()));
        let wave = &read["waits"][0];
        assert_eq!((&wave["reason"], &wave["nodes"]), (&"Wave".into(), &serde_json::json!(["node-c1", "node-c2"])));
        assert!(wave["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{wave}");
        assert_eq!(wave["commands"], serde_json::json!(["bascule forecast workers"]));
    }

    #[test]
    fn what_the_agent_says_is_told() {
        let status: api::NodeUpdateStatus = serde_json::from_value(serde_json::json!({
            "lastError": {"category": "Network", "message": "the repository can't be reached", "attempts": 3,
                "at": "2026-11-23T21:00:00Z", "nextTry": "2026-11-23T22:05:00Z"},
            "manualActions": [{"action": "revert", "at": "2026-11-23T20:00:00Z", "user": "root"}],
        }))
        .unwrap();
        insta::assert_snapshot!("explain-agent", agent_text(&status, &fixture::page(fixture::TERMINAL)));
    }
}
