//! `bascule forecast`: when each node will probably go out of service, and when it will be done. The operator's own planner is run
//! forward here, over what the objects show now.

use super::{
    Connection,
    facts::{Objects, snapshot},
    picture, problem,
};
use crate::{clock, exit::Exit, output};
use anyhow::Context as _;
use bascule_api as api;
use bascule_api::Time;
use bascule_planner::{
    Snapshot,
    forecast::Options,
    snapshot::{PolicyFacts, seed_of},
};
use chrono::{DateTime, NaiveDate, TimeZone, Utc};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use serde::Serialize;
use std::{fmt::Display, str::FromStr};

/// Show when each node will probably go out of service and when it will be done, as things are now.
///
/// Drains and boots are taken to last as long as they lately did on the policy's nodes, and longer where a drain waits for a
/// pod that ends later, by its own deadline or its Job's. Failures, later releases, PodDisruptionBudgets, pods that fit
/// nowhere and the operator's cluster-wide limit are not foreseen.
#[derive(Debug, Args)]
pub(crate) struct Forecast {
    /// Only the nodes of this policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: Option<String>,
    /// How far ahead to look.
    #[arg(long, value_name = "DURATION", default_value = "60d")]
    horizon: api::Duration,
    /// Look ahead until then and show the windows up to it: a day (2026-12-24), a time (2026-12-24T18:00:00+01:00) or a
    /// duration (14d).
    #[arg(long, value_name = "WHEN", value_parser = When::from_str, conflicts_with = "horizon")]
    until: Option<When>,
    /// What a node takes to fetch and write a release.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    staging: api::Duration,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// A time that a person gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    At(DateTime<Utc>),
    In(api::Duration),
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::At(at.with_timezone(&Utc)));
        }
        if let Ok(day) = text.parse::<NaiveDate>() {
            let end = day.succ_opt().and_then(|next| next.and_hms_opt(0, 0, 0));
            let local = end.and_then(|end| chrono::Local.from_local_datetime(&end).earliest());
            return local.map(|at| Self::At(at.to_utc())).ok_or_else(|| format!("{text} is no day of this calendar"));
        }
        text.parse().map(Self::In).map_err(|_| {
            format!(
                "{text} is no time: write a day (2026-12-24), a time (2026-12-24T18:00:00+01:00) or a duration (14d)"
            )
        })
    }
}

impl When {
    fn ahead(self, now: DateTime<Utc>) -> anyhow::Result<api::Duration> {
        match self {
            Self::In(span) => Ok(span),
            Self::At(at) => {
                let seconds = u64::try_from((at - now).num_seconds()).ok().filter(|seconds| *seconds > 0);
                Ok(api::Duration::from_secs(seconds.with_context(|| format!("{at} is over"))?))
            }
        }
    }
}

/// A window that opens before the end of the forecast.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WindowAnswer {
    pub(super) start: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<Time>,
    /// The start as the policy's people write it.
    in_its_zone: String,
    /// Nodes that will probably be done in it.
    pub(super) nodes: usize,
}

/// The answer, for people and for programs.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// When the forecast was made.
    at: Time,
    policies: Vec<PolicyAnswer>,
    /// Whether the horizon was cut short because too many plans were needed.
    cut: bool,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyAnswer {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<api::Version>,
    /// When the first of its nodes goes out of service. Absent: none does within the horizon.
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_at: Option<Time>,
    /// Absent: not within the horizon.
    #[serde(skip_serializing_if = "Option::is_none")]
    done_at: Option<Time>,
    /// With `--until`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    windows: Vec<WindowAnswer>,
    nodes: Vec<NodeAnswer>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeAnswer {
    name: String,
    /// When it goes out of service. Absent: not within the horizon, or it runs the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_at: Option<Time>,
    /// Absent: not within the horizon.
    #[serde(skip_serializing_if = "Option::is_none")]
    done_at: Option<Time>,
    /// What the node waits for now.
    waits_for: api::WaitReason,
}

impl Forecast {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let (objects, seed) = tokio::join!(Objects::read(&client), seed(&client, &connection.namespace));
        let facts = snapshot(&objects?, seed, Time::new(clock::now()));
        let horizon = self.until.map_or(Ok(self.horizon), |until| until.ahead(clock::now()))?;
        let options = Options { horizon, staging: self.staging, ..Options::default() };
        let calendar = self.until.is_some();
        let answer = tokio::task::spawn_blocking(move || answer(&facts, &options, calendar)).await?;
        let answer = self.only(answer)?;
        let now = clock::now();
        output::show(self.output, &answer, |answer| text(answer, now, &chrono::Local))?;
        Ok(Exit::Success)
    }

    fn only(&self, mut answer: Answer) -> anyhow::Result<Answer> {
        if let Some(name) = &self.policy {
            let names: Vec<_> = answer.policies.iter().map(|policy| policy.name.clone()).collect();
            let hint = || problem::hint(name, names.iter().map(String::as_str));
            answer.policies.retain(|policy| policy.name == *name);
            anyhow::ensure!(!answer.policies.is_empty(), "there is no UpdatePolicy {name}{}", hint());
        }
        Ok(answer)
    }
}

/// Without the Lease the order of equal nodes is another one than the operator's, and nothing else.
pub(super) async fn seed(client: &Client, namespace: &str) -> u64 {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    match leases.get_opt(api::OPERATOR_LEASE).await {
        Ok(lease) => lease.and_then(|lease| lease.metadata.uid).map_or(0, |uid| seed_of(&uid)),
        Err(error) => {
            tracing::info!(%error, "the operator's Lease can't be read: nodes between which nothing decides may go in another order");
            0
        }
    }
}

fn answer(facts: &Snapshot, options: &Options, calendar: bool) -> Answer {
    let (_, report) = bascule_planner::plan(facts);
    let seen = bascule_planner::forecast(facts, options);
    let policies = facts.policies.iter().zip(&seen.policies).enumerate().map(|(index, (policy, done_at))| {
        let times = seen.starts.iter().zip(&seen.nodes);
        let members = report.nodes.iter().zip(times).filter(|(said, _)| said.policy == Some(index));
        let mut nodes: Vec<NodeAnswer> = members
            .map(|(said, (starts_at, done_at))| NodeAnswer {
                name: said.node.to_string(),
                starts_at: *starts_at,
                done_at: *done_at,
                waits_for: said.wait.reason,
            })
            .collect();
        nodes.sort_by(|a, b| (a.done_at.is_none(), a.done_at, &a.name).cmp(&(b.done_at.is_none(), b.done_at, &b.name)));
        let done: Vec<Time> = nodes.iter().filter_map(|node| node.done_at).collect();
        PolicyAnswer {
            name: policy.name.clone(),
            release: policy.status.target.as_ref().map(|target| target.version.clone()),
            starts_at: nodes.iter().filter_map(|node| node.starts_at).min(),
            done_at: done_at.filter(|_| !nodes.is_empty()),
            windows: if calendar { windows(policy, facts.now, options.horizon, &done) } else { Vec::new() },
            nodes,
        }
    });
    Answer { at: facts.now, policies: policies.collect(), cut: seen.cut }
}

/// The windows of a policy up to the horizon, and how many nodes are done in each.
pub(super) fn windows(policy: &PolicyFacts, now: Time, horizon: api::Duration, done: &[Time]) -> Vec<WindowAnswer> {
    let coming = bascule_planner::calendar::calendar(policy, now, horizon, done).into_iter();
    coming
        .map(|one| WindowAnswer { start: one.start, end: one.end, in_its_zone: one.in_its_zone, nodes: one.done })
        .collect()
}

fn text<Z: TimeZone>(answer: &Answer, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    // Windows are beside it in the zone of their policy.
    let with_zone = answer.policies.iter().any(|policy| !policy.windows.is_empty());
    let here = |at: Time| {
        if with_zone { picture::moment_with_zone(at.get(), now, zone) } else { picture::moment(at.get(), now, zone) }
    };
    let moment = |at: Option<Time>| match at {
        Some(at) if at <= answer.at => "now".to_owned(),
        Some(at) => here(at),
        None => "not foreseen".to_owned(),
    };
    if answer.policies.is_empty() {
        return "There is no UpdatePolicy.\n".to_owned();
    }
    let mut text = String::new();
    for policy in &answer.policies {
        let release = policy.release.as_ref().map_or("no release", |version| version.as_str());
        let nodes = picture::count(policy.nodes.len(), "node");
        let starts = match (policy.starts_at, policy.done_at) {
            // Every node runs the release.
            (None, Some(_)) => String::new(),
            (starts, _) => format!("starts: {}  ", moment(starts)),
        };
        text.push_str(&format!("{}  {release}  {nodes}  {starts}done: {}\n", policy.name, moment(policy.done_at)));
        if !policy.windows.is_empty() {
            let mut rows = vec![["", "WINDOW", "HERE", "NODES DONE"].map(str::to_owned).to_vec()];
            rows.extend(policy.windows.iter().map(|window| {
                let end = window.end.map_or_else(|| "no end".to_owned(), here);
                let span = format!("{} to {end}", here(window.start));
                vec![String::new(), window.in_its_zone.clone(), span, window.nodes.to_string()]
            }));
            text.push_str(&output::columns(&rows));
        }
        let mut rows = vec![["", "NODE", "STARTS", "DONE", "NOW"].map(str::to_owned).to_vec()];
        rows.extend(policy.nodes.iter().map(|node| {
            let starts = match (node.starts_at, node.done_at) {
                (None, Some(_)) => "-".to_owned(),
                (starts, _) => moment(starts),
            };
            vec![String::new(), node.name.clone(), starts, moment(node.done_at), node.waits_for.to_string()]
        }));
        text.push_str(&output::columns(&rows));
    }
    if answer.cut {
        text.push_str("The forecast ends early: too many steps lie ahead. Give a shorter --horizon or one policy.\n");
    }
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

    fn objects(more: &serde_json::Value) -> Objects {
        let digest = format!("sha256:{}", "3".repeat(64));
        let mut spec = json!({
            "nodeSelector": {}, "provenAfter": "0s", "staging": {"maxConcurrent": 3}, "health": {"nodeSoak": "0s"},
            "source": {"repository": "https://images.example.com/os", "channel": "stable"},
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let policy = parse(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
            "status": {
                "target": {"version": "1.1", "digest": digest, "severity": "Low", "publishedAt": "2026-01-01T00:00:00Z"},
                "timings": {"drainSeconds": 60, "bootSeconds": 120}
            }
        }));
        let node = |name: &str| -> Node {
            parse(json!({
                "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "nodeInfo": {"architecture": "amd64", "bootID": format!("boot-{name}"), "containerRuntimeVersion": "",
                        "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                        "operatingSystem": "", "osImage": "", "systemUUID": ""}
                }
            }))
        };
        let update = |name: &str, version: &str| -> api::NodeUpdate {
            parse(json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
                "metadata": {"name": name, "generation": 1},
                "spec": {"policy": "workers"},
                "status": {
                    "bootID": format!("boot-{name}"),
                    "booted": {"slot": "A", "version": version, "rootHash": "a".repeat(64), "committedAt": "2026-01-02T00:00:00Z"},
                    "slots": {"a": {"state": "Good", "version": version}, "b": {"state": "Empty"}},
                    "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
                }
            }))
        };
        Objects {
            nodes: ["n1", "n2", "n3"].map(node).into(),
            updates: vec![update("n1", "1.1"), update("n2", "1.0"), update("n3", "1.0")],
            policies: vec![policy],
            ..Objects::default()
        }
    }

    fn made(more: &serde_json::Value) -> (Answer, String) {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        let facts = snapshot(&objects(more), 7, Time::new(now));
        let answer = answer(&facts, &Options::default(), false);
        let shown = text(&answer, now, &Utc);
        (answer, shown)
    }

    #[test]
    fn each_node_has_its_time_and_who_is_done_is_done() {
        let (answer, shown) = made(&json!({}));
        let nodes = &answer.policies[0].nodes;
        assert_eq!((nodes[0].name.as_str(), nodes[0].done_at), ("n1", Some(answer.at)));
        // Five minutes of staging, then one after the other a minute of drain and two of boot.
        let minutes: Vec<i64> =
            nodes[1..].iter().map(|node| node.done_at.unwrap().seconds_since(answer.at) / 60).collect();
        assert_eq!(minutes, [8, 11]);
        let minutes: Vec<i64> =
            nodes[1..].iter().map(|node| node.starts_at.unwrap().seconds_since(answer.at) / 60).collect();
        assert_eq!((minutes, nodes[0].starts_at), (vec![5, 8], None), "one at a time, when it is staged");
        insta::assert_snapshot!("forecast", shown);
        insta::assert_snapshot!("forecast-json", crate::cluster::fixture::json(&answer));
    }

    #[test]
    fn a_calendar_names_each_window_in_both_zones() {
        let window =
            json!({"maintenanceWindows": [{"schedule": "0 22 * * *", "duration": "8m", "timeZone": "Europe/Berlin"}]});
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        let facts = snapshot(&objects(&window), 7, Time::new(now));
        let options = Options { horizon: api::Duration::from_secs(3 * 86_400), ..Options::default() };
        let shown = text(&answer(&facts, &options, true), now, &Utc);
        assert!(shown.contains("Mon 2026-11-23 22:00 CET"), "{shown}");
        insta::assert_snapshot!("forecast-until", shown);
    }

    #[test]
    fn a_time_is_a_day_a_time_or_a_span_and_nothing_else() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        assert_eq!("14d".parse(), Ok(When::In(api::Duration::from_secs(14 * 86_400))));
        let at: When = "2026-11-23T14:00:00+01:00".parse().unwrap();
        assert_eq!(at.ahead(now).unwrap().as_secs(), 3_600);
        assert!("2026-12-24".parse::<When>().is_ok());
        let over: When = "2026-11-22T14:00:00Z".parse().unwrap();
        assert!(over.ahead(now).unwrap_err().to_string().contains("is over"));
        assert!("soon".parse::<When>().unwrap_err().contains("write a day"));
    }

    #[test]
    fn what_waits_for_a_person_is_not_foreseen() {
        let (answer, shown) = made(&json!({"paused": true}));
        assert_eq!(answer.policies[0].done_at, None);
        assert!(shown.contains("  starts: not foreseen  done: not foreseen\n") && shown.contains("Paused"), "{shown}");
        let json = serde_json::to_value(&answer).unwrap();
        assert!(json["policies"][0].get("doneAt").is_none() && json["policies"][0]["nodes"][1]["waitsFor"] == "Paused");
    }
}
