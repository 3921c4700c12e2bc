//! `bascule doctor`: looks for what keeps updates from happening before anybody notices: rights, versions, agents, clocks,
//! metadata, windows that nothing fits into, budgets that never allow a drain, and what people ordered.

mod checks;
mod gates;
mod kinds;
mod replicas;
mod rights;

use super::{
    Connection, list,
    live::{self, Seen, Source},
    picture::{Look, Tone},
    problem::{self, Role},
};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use chrono::{DateTime, Utc};
use clap::Args;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Pods of the operator (manifests/operator/deployment.yaml).
const OPERATORS: &str = "app.kubernetes.io/name=bascule-operator";
/// How long answers of health gates are waited for: as long as the operator waits for one.
const GATES_PATIENCE: Duration = Duration::from_secs(10);
/// Before the first look for them, doubling up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Look for everything that keeps nodes from being updated.
///
/// Ends with 1 when something is wrong. Warnings alone end with 0.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// How a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Weight {
    Good,
    Warning,
    Wrong,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) weight: Weight,
    /// What was looked at.
    pub(super) about: &'static str,
    pub(super) what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) advice: String,
    /// What to type for it, as it stands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) commands: Vec<String>,
}

impl Finding {
    fn new(weight: Weight, about: &'static str, what: String, advice: String) -> Self {
        Self { weight, about, what, advice, commands: Vec::new() }
    }

    pub(super) fn good(about: &'static str, what: impl Into<String>) -> Self {
        Self::new(Weight::Good, about, what.into(), String::new())
    }

    pub(super) fn warning(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Weight::Warning, about, what.into(), advice.into())
    }

    pub(super) fn wrong(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Weight::Wrong, about, what.into(), advice.into())
    }

    /// With a command that can be typed as it stands.
    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// With several.
    pub(super) fn run_all(mut self, commands: Vec<String>) -> Self {
        self.commands.extend(commands);
        self
    }
}

impl Doctor {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let mut findings = findings(&client, connection).await?;
        let cluster = connection.same_cluster();
        for command in findings.iter_mut().flat_map(|finding| &mut finding.commands) {
            *command = cluster.line(command);
        }
        output::show(self.output, &findings, |findings| text(findings, Look::of_stdout()))?;
        let wrong = findings.iter().any(|finding| finding.weight == Weight::Wrong);
        Ok(if wrong { Exit::Failed } else { Exit::Success })
    }
}

async fn findings(client: &Client, connection: &Connection) -> anyhow::Result<Vec<Finding>> {
    let namespace = &connection.namespace;
    let (of_the_operator, params) =
        (Api::<Pod>::namespaced(client.clone(), namespace), ListParams::default().labels(OPERATORS));
    let of_replicas = async {
        let pods = of_the_operator.list(&params).await.map(|pods| pods.items);
        let names = replicas::names(pods.as_deref().unwrap_or_default(), None);
        let said = replicas::ask(client, namespace, &names).await;
        (pods, said)
    };
    // All at once: an answer takes as long as the way to the API server, and there are many. Of a cluster without Bascule most
    // are refused, which costs nothing.
    let reading = async {
        tokio::join!(
            client.apiserver_version(),
            kinds::look(client),
            rights::granted(client, namespace),
            live::seen(client, connection),
            list::<api::UpdatePolicy>(client, "UpdatePolicies"),
            list::<api::NodeUpdate>(client, "NodeUpdates"),
            list::<PodDisruptionBudget>(client, "PodDisruptionBudgets"),
            of_replicas,
        )
    };
    let (server, installed, granted, seen, policies, nodes, budgets, (pods, mut said)) = live::patiently(reading).await;
    let server = server.map_err(|error| problem::told(error, "get", "the API server's version", Role::OnCall))?;
    let mut findings = vec![Finding::good("API server", server.git_version)];
    let installed = installed?;
    let complete = !installed.iter().any(|finding| finding.weight == Weight::Wrong);
    findings.extend(installed);
    // What the operators say is missing says more of an installation than whoever is on call may look at.
    let pods = pods.map_err(|error| problem::told(error, "list", "Pods", Role::OnCall));
    let names = replicas::names(pods.as_deref().unwrap_or_default(), seen.as_ref().ok());
    let others = replicas::not_asked(&names, &said);
    if !others.is_empty() {
        said.extend(live::patiently(replicas::ask(client, namespace, &others)).await);
    }
    findings.extend(replicas::findings(&said, names.len(), namespace));
    if let Err(error) = &pods {
        findings.push(Finding::warning("operators", "their pods were not looked at", error.to_string()));
    }
    if !complete {
        return Ok(findings);
    }
    findings.extend(granted?);
    // Who may not read a thing still learns what was found without it, the missing right among it.
    let mut seen = match seen {
        Ok(seen) => seen,
        Err(error) => {
            findings.push(unread("status", &error));
            return Ok(findings);
        }
    };
    until_gates_answered(client, connection, &mut seen).await;
    findings.extend(judged(&seen, &Read { policies, nodes, budgets, pods }, clock::now(), namespace));
    Ok(findings)
}

/// What was read beside the report.
struct Read {
    policies: anyhow::Result<Vec<api::UpdatePolicy>>,
    nodes: anyhow::Result<Vec<api::NodeUpdate>>,
    budgets: anyhow::Result<Vec<PodDisruptionBudget>>,
    /// The operator's.
    pods: anyhow::Result<Vec<Pod>>,
}

/// Every check of what was read.
fn judged(seen: &Seen, read: &Read, now: DateTime<Utc>, namespace: &str) -> Vec<Finding> {
    let mut findings = checks::leader(seen, now, namespace);
    if let (Source::Objects { .. }, Ok(pods)) = (&seen.source, &read.pods) {
        // Its own log may hold nothing: an image for another machine never began.
        findings.extend(checks::operators(pods, namespace));
    }
    match &read.policies {
        Ok(policies) => findings.extend(checks::policies(policies, now)),
        Err(error) => findings.push(unread("policies", error)),
    }
    match &read.nodes {
        Ok(nodes) => findings.extend(checks::agents(seen, nodes)),
        Err(error) => findings.push(unread("agents", error)),
    }
    findings.extend(gates::look(seen, now));
    findings.extend(checks::orders(seen, now));
    match &read.budgets {
        Ok(budgets) => findings.extend(checks::budgets(budgets)),
        Err(error) => findings.push(Finding::warning("budgets", "were not looked at", error.to_string())),
    }
    findings
}

/// Looks again as long as the operator asks health gates, which it does when somebody reads.
async fn until_gates_answered(client: &Client, connection: &Connection, seen: &mut Seen) {
    let (begun, mut pause, mut told) = (Instant::now(), PAUSE, false);
    while gates::are_asked(seen) {
        let left = GATES_PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        if pause == LONGEST_PAUSE && !told {
            output::say("waiting for what health gates answer…");
            told = true;
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        match live::seen(client, connection).await {
            Ok(newer) if matches!(newer.source, Source::Leader { .. }) => *seen = newer,
            // What was read before is told.
            _ => return,
        }
    }
}

/// Something that could not be looked at.
fn unread(about: &'static str, error: &anyhow::Error) -> Finding {
    Finding::wrong(about, "were not looked at".to_owned(), error.to_string())
}

fn text(findings: &[Finding], look: Look) -> String {
    let mut text = String::new();
    for finding in findings {
        let (sign, tone) = match finding.weight {
            Weight::Good => (look.sign("✓", "ok  "), Tone::Good),
            Weight::Warning => (look.sign("!", "warn"), Tone::Warn),
            Weight::Wrong => (look.sign("✗", "BAD "), Tone::Bad),
        };
        text.push_str(&format!("{} {}: {}\n", look.paint(tone, sign), finding.about, finding.what));
        if !finding.advice.is_empty() {
            text.push_str(&look.wrapped(&finding.advice, "       "));
        }
        // Never wrapped: they are typed, or copied, as they stand.
        text.extend(finding.commands.iter().map(|command| format!("       run  {command}\n")));
    }
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    text.push_str(&match (count(Weight::Wrong), count(Weight::Warning)) {
        (0, 0) => "Found nothing that keeps nodes from being updated.\n".to_owned(),
        (wrong, warnings) => format!("{wrong} wrong, {warnings} to look at.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{fixture, live::Away};
    use bascule_api::WaitReason;
    use serde_json::{Value, json};

    const NAMESPACE: &str = "bascule-system";

    fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn policy(name: &str, spec: Value, status: Value) -> api::UpdatePolicy {
        let mut whole =
            json!({"nodeSelector": {}, "source": {"repository": "https://images.example.com/os", "channel": "stable"}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        parse(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": name, "generation": 2}, "spec": whole, "status": status,
        }))
    }

    fn condition(type_: &str, status: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": "Observed", "message": message, "lastTransitionTime": "2026-11-23T21:00:00Z"})
    }

    /// Three policies: nothing is right with the first, nodes of the second can never go, and the third is well.
    fn policies() -> Vec<api::UpdatePolicy> {
        let zone =
            json!({"maintenanceWindows": [{"schedule": "0 2 * * *", "duration": "1h", "timeZone": "Europe/Berln"}]});
        let workers = json!({
            "observedGeneration": 1, "counts": {"nodes": 0},
            "repository": {"expiresAt": "2026-11-24T00:00:00Z", "verifiedAt": "2026-11-23T10:00:00Z", "error": "no route to host"},
            "conditions": [
                condition("Accepted", "False", "hooks may not create Jobs in the namespace storage"),
                condition("PolicyConflict", "True", "node-a1 is selected by policy edge too"),
                condition("Halted", "True", "1 node failed with 41.3.0"),
                condition("RepositoryHealthy", "False", "the repository can't be reached"),
            ],
        });
        let short = json!({
            "maintenanceWindows": [{"schedule": "0 2 * * *", "duration": "10m"}], "budget": {"maxUnavailable": 0},
            "health": {"nodeSoak": "5m"}, "drain": {"loadBalancerDelay": "0s"},
        });
        let timings = json!({"observedGeneration": 2, "counts": {"nodes": 3}, "timings": {"drainSeconds": 400, "bootSeconds": 300}});
        vec![
            policy("workers", zone, workers),
            policy("databases", short, timings),
            policy("edge", json!({}), json!({"observedGeneration": 2, "counts": {"nodes": 3}})),
        ]
    }

    /// A leader of whom nothing is right, over a fleet in which each check finds something.
    fn sick() -> Seen {
        let mut seen = fixture::seen();
        let report = &mut seen.report;
        (report.operator_version, report.time_zones) = ("0.0.9".to_owned(), "2025a".to_owned());
        (report.planned_at, report.clock_skew) = (fixture::ago(-40), Some(125));
        report.policies[0].paused = true;
        let waits = [
            (WaitReason::AgentNotReporting, "no report since the reboot"),
            (WaitReason::BootCountingBroken, "the boot loader does not count"),
            (WaitReason::Cordoned, "alice cordoned it"),
            (WaitReason::Reverted, "41.3.0 failed here"),
            (WaitReason::HealthGate, "gate ceph: Prometheus can't be asked: connection refused"),
        ];
        report.waits = waits.map(|(reason, message)| fixture::wait(reason, message, None)).into();
        report.health_gates = parse(json!([
            {"policy": 0, "gate": "ceph", "message": "Prometheus can't be asked: connection refused", "at": "2026-11-23T21:59:57Z"},
            {"policy": 0, "gate": "alerts", "node": "n3", "holds": false, "message": "ALERTS{alertname=\"NodeDown\"} is 1, wanted 0",
                "at": "2026-11-23T21:59:56Z"},
            {"policy": 0, "gate": "shop", "asking": true},
            {"policy": 0, "gate": "api", "holds": true, "at": "2026-11-23T21:58:00Z"},
        ]));
        report.rollbacks = parse(json!([{
            "name": "rollback-4kx9", "createdAt": "2026-11-23T21:50:00Z", "status": {"progress": "7/12"},
            "spec": {"reason": "breaks the NIC's offload", "policy": "workers", "requestedBy": "alice"},
        }]));
        seen
    }

    fn budget(name: &str, healthy: i32) -> PodDisruptionBudget {
        let status =
            json!({"disruptionsAllowed": 0, "currentHealthy": healthy, "desiredHealthy": 2, "expectedPods": 2});
        parse(json!({"metadata": {"name": name, "namespace": "shop"}, "status": status}))
    }

    #[test]
    fn every_check_with_what_it_finds_and_what_to_do() {
        let agent = |name: &str, version: &str| -> api::NodeUpdate {
            parse(json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name},
                "spec": {"policy": "workers"}, "status": {"agentVersion": version},
            }))
        };
        let read = Read {
            policies: Ok(policies()),
            nodes: Ok(vec![agent("n3", "0.0.8"), agent("node-a1", "0.0.9"), agent("node-b2", "0.0.9")]),
            budgets: Ok(vec![budget("checkout", 2), budget("cart", 1)]),
            pods: Ok(Vec::new()),
        };
        let lacks = [
            "the operator may not list nodes, patch nodes: apply manifests/operator/rbac.yaml of this version",
            "the ValidatingAdmissionPolicy bascule-agent does not hold everybody whom it is for: its failurePolicy is Ignore; \
             apply manifests/admission",
        ];
        let away = Away::Says("error trying to reach service: no route to host".to_owned());
        let said = [
            ("bascule-operator-5d9f".to_owned(), Ok(Vec::new())),
            ("bascule-operator-7c2x".to_owned(), Ok(lacks.map(str::to_owned).to_vec())),
            ("bascule-operator-9k1p".to_owned(), Err(away)),
        ];
        let fields = ["UpdatePolicy spec.retries", "NodeUpdate status.transfer.paused"].map(str::to_owned);
        let all: Vec<&rights::Right> = rights::RIGHTS.iter().collect();
        let missing = [all[4], all[5], all[12]];
        let mut found = vec![Finding::good("API server", "v1.36.4"), kinds::with_fields(&fields)];
        found.extend(replicas::findings(&said, 4, NAMESPACE));
        found.extend(rights::without(&missing, Some("alice"), NAMESPACE));
        found.extend(judged(&sick(), &read, fixture::now(), NAMESPACE));
        // What becomes another with every version.
        let zones = bascule_planner::zones::TimeZones::default().version();
        let shown = text(&found, Look::PLAIN).replace(&zones, "ZONES").replace(env!("CARGO_PKG_VERSION"), "VERSION");
        insta::assert_snapshot!("doctor", shown);
    }

    #[test]
    fn what_can_not_be_read_is_told_too() {
        let pod = json!({
            "metadata": {"name": "bascule-operator-5d9f", "namespace": NAMESPACE},
            "status": {"containerStatuses": [{"name": "operator", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
        });
        let source = Source::Objects { why: "no operator leads at the moment".to_owned(), written_at: None };
        let seen = Seen { source, ..fixture::seen() };
        let read = Read {
            policies: Ok(Vec::new()),
            nodes: Err(anyhow::anyhow!("you may not list NodeUpdates")),
            budgets: Err(anyhow::anyhow!("you may not list PodDisruptionBudgets")),
            pods: Ok(vec![parse(pod)]),
        };
        let found = judged(&seen, &read, fixture::now(), NAMESPACE);
        insta::assert_snapshot!("doctor-json", fixture::json(&found));
        let well = [Finding::good("API server", "v1.36.4")];
        assert!(text(&well, Look::PLAIN).ends_with("Found nothing that keeps nodes from being updated.\n"));
    }
}
