//! `bascule plan`: what a new or changed policy would do, now and until its nodes are done. The operator's own planner is asked
//! over the facts of the cluster; nothing is written.

mod file;

use super::{
    Connection,
    facts::{Objects, snapshot},
    forecast::{self, WindowAnswer},
    picture,
};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{Time, WaitReason};
use bascule_planner::{Action, Snapshot, forecast::Options};
use chrono::{DateTime, TimeZone, Utc};
use clap::Args;
use kube::ResourceExt as _;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Display, path::PathBuf};

/// How many nodes are named in a line.
const NAMED: usize = 8;
/// How many windows that lie ahead are shown.
const WINDOWS: usize = 4;

/// Show what a new or changed policy would do. Nothing is written.
///
/// Of pods only those are looked at that end by themselves, since drains may wait for them; PodDisruptionBudgets are not.
/// Drains and boots are taken to last as long as they lately did.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The file with the UpdatePolicy, YAML or JSON; `-` for stdin.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    policy: String,
    /// Whether there is one of this name already.
    changes: bool,
    nodes: usize,
    /// Nodes that would be selected by another policy too, and so touched by neither.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    conflicts: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<api::Version>,
    stages: Vec<String>,
    disrupts: Vec<String>,
    waits: BTreeMap<WaitReason, usize>,
    /// Pods that a drain would wait for, as they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    completing: Vec<Waited>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_window: Option<String>,
    /// The windows that lie ahead, the open one included, with what is done in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    windows: Vec<WindowAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_at: Option<Time>,
}

/// What a node's drain would wait for.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waited {
    node: String,
    what: String,
    /// When that has ended at the latest, where it or its Job says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Time>,
}

impl Plan {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let policy = file::read(&self.file)?;
        let client = connection.client().await?;
        let (objects, seed) = tokio::join!(Objects::read(&client), forecast::seed(&client, &connection.namespace));
        let mut objects = objects?;
        let (name, changes) = put(&mut objects, policy, Time::new(clock::now()));
        let facts = snapshot(&objects, seed, Time::new(clock::now()));
        let answer = tokio::task::spawn_blocking(move || answer(&facts, &name, changes)).await??;
        let now = clock::now();
        output::show(self.output, &answer, |answer| text(answer, now, &chrono::Local))?;
        Ok(Exit::Success)
    }
}

/// Puts the policy among the objects, with what is known of its source. Its name, and whether it replaces one.
fn put(objects: &mut Objects, mut policy: api::UpdatePolicy, now: Time) -> (String, bool) {
    let name = policy.name_any();
    let before = objects.policies.iter().position(|known| known.name_any() == name);
    let of_source = |known: &&api::UpdatePolicy| {
        known.spec.source.repository == policy.spec.source.repository
            && known.spec.source.channel == policy.spec.source.channel
    };
    let source = objects.policies.iter().filter(of_source).find_map(|known| known.status.clone());
    let own = before.and_then(|index| objects.policies.get(index));
    let mut status = own.and_then(|own| own.status.clone()).unwrap_or_default();
    let known = source.unwrap_or_default();
    // The releases are those of its source; failures, blocks and timings are its own.
    (status.target, status.previous, status.repository) = (known.target, known.previous, known.repository);
    policy.status = Some(status);
    policy.metadata.generation = Some(own.and_then(|own| own.metadata.generation).unwrap_or_default() + 1);
    let created = own.and_then(|own| own.metadata.creation_timestamp.clone());
    policy.metadata.creation_timestamp = created.or_else(|| Some(now.to_kubernetes()));
    match before.and_then(|index| objects.policies.get_mut(index)) {
        Some(place) => *place = policy,
        None => objects.policies.push(policy),
    }
    (name, before.is_some())
}

fn answer(facts: &Snapshot, name: &str, changes: bool) -> anyhow::Result<Answer> {
    let Some(index) = facts.policies.iter().position(|policy| policy.name == name) else {
        anyhow::bail!("the policy {name} was not planned for");
    };
    let Some(policy) = facts.policies.get(index) else { anyhow::bail!("the policy {name} was not planned for") };
    let valid = policy.spec.as_ref().map_err(|error| anyhow::anyhow!("the policy can't be used: {error}"))?;
    let selects = |node: &bascule_planner::snapshot::Node| valid.spec.node_selector.matches(&node.labels);
    let mut conflicts = BTreeMap::new();
    for node in facts.nodes.iter().filter(|node| selects(node)) {
        let other = facts.policies.iter().enumerate().find(|(other, facts)| {
            *other != index && facts.spec.as_ref().is_ok_and(|other| other.spec.node_selector.matches(&node.labels))
        });
        if let Some((_, other)) = other {
            conflicts.insert(node.name.to_string(), other.name.clone());
        }
    }
    let (plan, report) = bascule_planner::plan(facts);
    let mine: Vec<_> = report.nodes.iter().filter(|node| node.policy == Some(index)).collect();
    let is_mine = |node: &str| mine.iter().any(|said| *said.node == *node);
    let (mut stages, mut disrupts) = (Vec::new(), Vec::new());
    for step in &plan.steps {
        match &step.action {
            Action::Stage { node, .. } if is_mine(node) => stages.push(node.clone()),
            Action::Grant { node, .. } if is_mine(node) => disrupts.push(node.clone()),
            _ => {}
        }
    }
    let mut waits = BTreeMap::new();
    for said in &mine {
        *waits.entry(said.wait.reason).or_default() += 1;
    }
    let waited = facts.nodes.iter().filter(|node| selects(node));
    let waited = waited.filter_map(|node| {
        let completing = node.pods.completing.as_ref()?;
        Some(Waited { node: node.name.to_string(), what: completing.to_string(), until: completing.by })
    });
    let status = report.policies.get(index).map(|said| &said.status);
    let options = Options::default();
    let forecast = bascule_planner::forecast(facts, &options);
    let done = report.nodes.iter().zip(&forecast.nodes).filter(|(said, _)| said.policy == Some(index));
    let done: Vec<Time> = done.filter_map(|(_, done)| *done).collect();
    let windows = forecast::windows(policy, facts.now, options.horizon, &done);
    Ok(Answer {
        policy: name.to_owned(),
        changes,
        nodes: facts.nodes.iter().filter(|node| selects(node)).count(),
        conflicts,
        release: status.and_then(|status| status.target.as_ref()).map(|target| target.version.clone()),
        stages,
        disrupts,
        waits,
        completing: waited.collect(),
        windows: windows.into_iter().take(WINDOWS).collect(),
        next_window: status.map(|status| status.columns.next_window.clone()).filter(|window| window != "-"),
        done_at: forecast.policies.get(index).copied().flatten().filter(|_| !mine.is_empty()),
    })
}

fn named(nodes: &[String]) -> String {
    let more = nodes.len().saturating_sub(NAMED);
    let names = nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(" ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}: {names}{more}", picture::count(nodes.len(), "node"))
}

fn text<Z: TimeZone>(answer: &Answer, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    // The window's line says another zone's.
    let moment = |at: Time| picture::moment_with_zone(at.get(), now, zone);
    let kind = if answer.changes { "changed" } else { "new" };
    let mut text = format!("policy {} ({kind}) selects {}\n", answer.policy, picture::count(answer.nodes, "node"));
    match &answer.release {
        Some(version) => text.push_str(&format!("  release   {version}\n")),
        None => text.push_str("  release   not known before the operator reads its repository\n"),
    }
    for (node, other) in answer.conflicts.iter().take(NAMED) {
        text.push_str(&format!("  conflict  {node} is selected by policy {other} too: neither would touch it\n"));
    }
    if answer.conflicts.len() > NAMED {
        text.push_str(&format!("  conflict  and {} more\n", answer.conflicts.len() - NAMED));
    }
    let nothing = || "nothing".to_owned();
    let list = |nodes: &[String]| if nodes.is_empty() { nothing() } else { named(nodes) };
    text.push_str(&format!("  stages    {}\n  disrupts  {}\n", list(&answer.stages), list(&answer.disrupts)));
    let waits: Vec<_> = answer.waits.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if !waits.is_empty() {
        text.push_str(&format!("  nodes     {}\n", waits.join(", ")));
    }
    for waited in answer.completing.iter().take(NAMED) {
        let until = waited.until.map_or_else(
            || "and says nothing of when it ends".to_owned(),
            |until| format!("which ends at the latest {}", moment(until)),
        );
        text.push_str(&format!("  waits     {} for {}, {until}\n", waited.node, waited.what));
    }
    if answer.completing.len() > NAMED {
        text.push_str(&format!("  waits     and {} more nodes\n", answer.completing.len() - NAMED));
    }
    if let Some(window) = &answer.next_window {
        text.push_str(&format!("  window    {window}\n"));
    }
    for window in &answer.windows {
        let end = window.end.map_or_else(|| "no end".to_owned(), moment);
        let done = picture::count(window.nodes, "node");
        text.push_str(&format!("            {} to {end}: {done} done in it\n", moment(window.start)));
    }
    let done = answer.done_at.map_or_else(
        || "not foreseen: it waits for a person, or lies more than 60 days ahead".to_owned(),
        |at| if at.get() <= now { "now".to_owned() } else { moment(at) },
    );
    text.push_str(&format!("  done      {done}\nNothing was written.\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn policy(name: &str, selector: &serde_json::Value, status: serde_json::Value) -> api::UpdatePolicy {
        parse(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeSelector": selector, "source": {"repository": "https://a.example/os", "channel": "stable"}},
            "status": status,
        }))
    }

    fn objects() -> Objects {
        let digest = format!("sha256:{}", "3".repeat(64));
        let known = json!({"target": {"version": "1.1", "digest": digest, "severity": "Low", "publishedAt": "2026-01-01T00:00:00Z"}});
        let node = |name: &str, role: &str| -> Node {
            parse(json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"role": role}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"architecture": "amd64",
                    "bootID": name, "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                    "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}},
            }))
        };
        let update = |name: &str, policy: &str| -> api::NodeUpdate {
            parse(json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name, "generation": 1},
                "spec": {"policy": policy},
                "status": {"bootID": name, "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
                    "booted": {"slot": "A", "version": "1.0", "rootHash": "a".repeat(64), "committedAt": "2026-01-02T00:00:00Z"},
                    "slots": {"a": {"state": "Good", "version": "1.0"}, "b": {"state": "Empty"}}},
            }))
        };
        Objects {
            nodes: vec![node("a1", "worker"), node("a2", "worker"), node("c1", "control")],
            updates: vec![update("a1", "workers"), update("a2", "workers"), update("c1", "")],
            policies: vec![policy("workers", &json!({"matchLabels": {"role": "worker"}}), known)],
            ..Objects::default()
        }
    }

    fn planned(policy: api::UpdatePolicy) -> (String, Answer) {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        let mut objects = objects();
        let (name, changes) = put(&mut objects, policy, Time::new(now));
        let facts = snapshot(&objects, 7, Time::new(now));
        let answer = answer(&facts, &name, changes).unwrap();
        (text(&answer, now, &Utc), answer)
    }

    #[test]
    fn a_changed_policy_keeps_its_releases() {
        let mut changed = policy("workers", &json!({"matchLabels": {"role": "worker"}}), json!({}));
        changed.spec.paused = true;
        insta::assert_snapshot!("plan-changed", planned(changed).0);
    }

    #[test]
    fn a_build_that_a_rule_waits_for_is_named_with_its_jobs_deadline_and_the_forecast_counts_with_it() {
        let rules = json!([{"name": "builds", "namespaces": ["ci"], "behavior": "WaitCompleted"}]);
        let mut waits = policy("workers", &json!({"matchLabels": {"role": "worker"}}), json!({}));
        waits.spec.drain = parse(json!({"timeout": "4h", "rules": rules}));
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        let ask = |deadline: serde_json::Value| {
            let mut objects = objects();
            let owner =
                json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "build", "uid": "j", "controller": true}]);
            objects.ending = vec![parse(json!({
                "metadata": {"name": "build-1", "namespace": "ci", "uid": "p", "ownerReferences": owner,
                    "creationTimestamp": "2026-11-23T11:00:00Z"},
                "spec": {"nodeName": "a1", "restartPolicy": "Never", "containers": []},
                "status": {"phase": "Running", "startTime": "2026-11-23T11:00:00Z"}
            }))];
            objects.jobs = vec![parse(json!({
                "metadata": {"name": "build", "namespace": "ci", "uid": "j"},
                "spec": {"activeDeadlineSeconds": deadline, "template": {}},
                "status": {"startTime": "2026-11-23T11:00:00Z"}
            }))];
            let (name, changes) = put(&mut objects, waits.clone(), Time::new(now));
            let facts = snapshot(&objects, 7, Time::new(now));
            let answer = answer(&facts, &name, changes).unwrap();
            (text(&answer, now, &Utc), answer.done_at.unwrap())
        };
        let (with, late) = ask(json!(3 * 3_600));
        assert!(
            with.contains("waits     a1 for Pod ci/build-1 (rule builds), which ends at the latest 14:00 UTC\n"),
            "{with}"
        );
        assert!(late.get() > Utc.with_ymd_and_hms(2026, 11, 23, 14, 0, 0).unwrap(), "{late}");
        let (without, soon) = ask(json!(null));
        assert!(without.contains("a1 for Pod ci/build-1 (rule builds), and says nothing of when it ends"), "{without}");
        assert!(soon < late, "{soon} {late}");
    }

    #[test]
    fn what_the_next_windows_bring_is_planned() {
        let mut changed = policy("workers", &json!({"matchLabels": {"role": "worker"}}), json!({}));
        // Room for one node in each of them.
        changed.spec.maintenance_windows =
            parse(json!([{"schedule": "0 22 * * *", "duration": "12m", "timeZone": "Europe/Berlin"}]));
        changed.spec.budget.max_unavailable = api::IntOrPercent::Int(1);
        let (shown, answer) = planned(changed);
        assert!(answer.windows.iter().any(|window| window.nodes > 0), "{shown}");
        insta::assert_snapshot!("plan-windows", shown);
    }

    #[test]
    fn a_new_policy_that_takes_nodes_of_another_says_so() {
        let (shown, answer) = planned(policy("all", &json!({}), json!({})));
        assert!(shown.contains("a1 is selected by policy workers too"), "{shown}");
        insta::assert_snapshot!("plan-new", shown);
        insta::assert_snapshot!("plan-json", crate::cluster::fixture::json(&answer));
    }
}
