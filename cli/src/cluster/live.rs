//! What is so now: the leader's live report, read through the API server with the reader's own rights, or else what the
//! objects say, with how old that is and why there is nothing better.

use super::{Connection, SameCluster, objects};
use crate::{clock, output, plain};
use anyhow::Context as _;
use bascule_api as api;
use bascule_api::{
    LIVE_REPORT_FORMAT, LIVE_REPORT_LIMIT, LIVE_REPORT_PATH, LiveReport, NoReport, OPERATOR_LEASE, READY_PATH, Time,
};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, client::Body};
use serde::Serialize;
use std::time::Duration;

/// How long the leader is waited for before the objects are read instead.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// After this time a person is told what is waited for.
const PROGRESS: Duration = Duration::from_secs(2);
/// The most bytes of what a replica says is missing.
const READY_LIMIT: usize = 64 * 1024;
/// The Role that lets people read the report.
const ROLE: &str = "bascule-live-report";

/// The report, and where it is from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) report: LiveReport,
    pub(super) source: Source,
    /// What is to be typed about it is for this cluster.
    pub(super) cluster: SameCluster,
}

/// Where a report is from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "from")]
pub(super) enum Source {
    /// The leader, a moment ago.
    #[serde(rename_all = "camelCase")]
    Leader {
        /// The replica.
        name: String,
    },
    /// The objects.
    #[serde(rename_all = "camelCase")]
    Objects {
        /// Why not the leader.
        why: String,
        /// When the operator wrote one of them last.
        #[serde(skip_serializing_if = "Option::is_none")]
        written_at: Option<Time>,
    },
}

/// Reads what is so now.
///
/// # Errors
/// When the objects can't be read either.
pub(super) async fn seen(client: &Client, connection: &Connection) -> anyhow::Result<Seen> {
    let cluster = connection.same_cluster();
    let reading = async {
        match from_leader(client, &connection.namespace).await {
            Ok(report) => {
                let source = Source::Leader { name: report.planned_by.clone() };
                Ok(Seen { report: in_lines(report)?, source, cluster })
            }
            Err(why) => {
                let (report, written_at) = objects::read(client).await?;
                Ok(Seen { report: in_lines(report)?, source: Source::Objects { why, written_at }, cluster })
            }
        }
    };
    patiently(reading).await
}

/// A reason that somebody wrote in several lines would look like several things.
fn in_lines(report: LiveReport) -> anyhow::Result<LiveReport> {
    let unlikely = "the report can't be written down";
    let text = serde_json::to_string(&report).context(unlikely)?;
    if !["\\n", "\\r", "\\t"].iter().any(|escape| text.contains(escape)) {
        return Ok(report);
    }
    let mut document = serde_json::to_value(&report).context(unlikely)?;
    plain::in_one_line(&mut document);
    serde_json::from_value(document).context(unlikely)
}

/// Tells a person who waits what for.
pub(super) async fn patiently<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(PROGRESS) => {}
    }
    output::say("waiting for the API server…");
    work.await
}

async fn from_leader(client: &Client, namespace: &str) -> Result<LiveReport, String> {
    let asking = async {
        let lease = lease(client, namespace).await?;
        let spec = lease.spec.unwrap_or_default();
        let leader = spec.holder_identity.filter(|holder| !holder.is_empty());
        let leader = leader.ok_or("no operator leads at the moment")?;
        let answer = match ask(client, namespace, &leader).await {
            // It was deposed between the two questions.
            Err(Away::Follows(Some(other))) if other != leader => ask(client, namespace, &other).await,
            answer => answer,
        };
        answer.map_err(|away| {
            if matches!(away, Away::Forbidden | Away::Newer) {
                return away.sentence(namespace, &leader);
            }
            let renewed = spec.renew_time.map(|at| at.0.as_second());
            let late = renewed.map_or(0, |at| clock::now().timestamp().saturating_sub(at));
            let held = i64::from(spec.lease_duration_seconds.unwrap_or(15));
            if late > held {
                let late = super::picture::span(chrono::TimeDelta::seconds(late));
                format!(
                    "no operator leads: by this machine's clock {leader} renewed its Lease last {late} ago, and nothing is decided until one does"
                )
            } else {
                away.sentence(namespace, &leader)
            }
        })
    };
    match tokio::time::timeout(LEADER_PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("the leader did not answer within {} s", LEADER_PATIENCE.as_secs())),
    }
}

async fn lease(client: &Client, namespace: &str) -> Result<Lease, String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    match leases.get_opt(OPERATOR_LEASE).await {
        Ok(Some(lease)) => Ok(lease),
        Ok(None) => Err(format!(
            "there is no Lease {OPERATOR_LEASE} in namespace {namespace}: no operator ever ran there (--namespace names another)"
        )),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(format!(
            "you may not get the Lease {OPERATOR_LEASE} in namespace {namespace}: have yourself bound to the Role {ROLE} there"
        )),
        Err(_) => Err("the operator's Lease can't be read".to_owned()),
    }
}

/// Why a replica did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Away {
    Follows(Option<String>),
    Forbidden,
    NoPod,
    Newer,
    Says(String),
}

impl Away {
    fn sentence(self, namespace: &str, leader: &str) -> String {
        match self {
            Self::Follows(_) => format!("{leader} does not lead any more: try again in a moment"),
            Self::Forbidden => format!(
                "you may not get pods/proxy in namespace {namespace}: have yourself bound to the Role {ROLE} there"
            ),
            Self::NoPod => format!("the leader, {leader}, is no pod of namespace {namespace}"),
            Self::Newer => {
                "the leader's report has a form that this `bascule` does not know: use the operator's version"
                    .to_owned()
            }
            Self::Says(why) => format!("the leader, {leader}, can't be read: {why}"),
        }
    }
}

async fn ask(client: &Client, namespace: &str, pod: &str) -> Result<LiveReport, Away> {
    let (status, body) = answer(client, namespace, pod, LIVE_REPORT_PATH, LIVE_REPORT_LIMIT).await?;
    read(status, &body)
}

/// What a replica says is missing for it to act, a sentence each: nothing where it is ready. The leader is asked like any other.
///
/// # Errors
/// [`Away`], when it does not answer.
pub(super) async fn missing(client: &Client, namespace: &str, pod: &str) -> Result<Vec<String>, Away> {
    let (status, body) = answer(client, namespace, pod, READY_PATH, READY_LIMIT).await?;
    read_missing(status, &body)
}

/// What a replica answers, through the API server and with the reader's own rights.
async fn answer(client: &Client, namespace: &str, pod: &str, at: &str, limit: usize) -> Result<(u16, Vec<u8>), Away> {
    // The name goes into a URL. A pod's name needs no escaping; another one is none of a pod.
    if !pod.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.')) {
        return Err(Away::NoPod);
    }
    // Without a port the API server takes the first that the pod's container names.
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/proxy{at}");
    let request = http::Request::get(path).header(http::header::ACCEPT, "application/json").body(Body::empty());
    let request = request.map_err(|error| Away::Says(error.to_string()))?;
    let response = client.send(request).await.map_err(|error| Away::Says(error.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|error| Away::Says(error.to_string()))?.to_bytes();
    Ok((status.as_u16(), body.into()))
}

/// What an answer says.
fn read(status: u16, body: &[u8]) -> Result<LiveReport, Away> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    if status != 200 {
        return Err(away(status, body));
    }
    match serde_json::from_slice::<Format>(body) {
        Ok(Format { format: LIVE_REPORT_FORMAT }) => {
            serde_json::from_slice(body).map_err(|error| Away::Says(format!("its report can't be used: {error}")))
        }
        Ok(_) => Err(Away::Newer),
        Err(_) => Err(Away::Says("it answers with something that is no report".to_owned())),
    }
}

/// What an answer says is missing.
fn read_missing(status: u16, body: &[u8]) -> Result<Vec<String>, Away> {
    if status == 200 {
        // Behind the word that it is ready stands what nobody waits for.
        return Ok(String::from_utf8_lossy(body).lines().skip(1).map(str::to_owned).collect());
    }
    // The API server itself answers with an object.
    let text = std::str::from_utf8(body).ok().filter(|_| status == 503 && !is_object(body));
    let lines = text.unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    if lines.is_empty() { Err(away(status, body)) } else { Ok(lines) }
}

fn is_object(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
}

/// Why there is no answer of the replica's own.
fn away(status: u16, body: &[u8]) -> Away {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    match status {
        // The API server itself answers with an object; what stands between it and the pod with whatever it likes.
        403 if !is_object(body) => {
            let said: String = String::from_utf8_lossy(body).trim().chars().take(300).collect();
            Away::Says(format!("on the way from the API server to its pod something refuses: {said}"))
        }
        403 => Away::Forbidden,
        404 => Away::NoPod,
        _ => match (serde_json::from_slice::<NoReport>(body), serde_json::from_slice::<Refusal>(body)) {
            (Ok(NoReport { leader: Some(leader), .. }), _) => Away::Follows(Some(leader)),
            (_, Ok(Refusal { message })) => Away::Says(message.chars().take(300).collect()),
            _ => Away::Says(format!("the API server answers {status}")),
        },
    }
}

impl Seen {
    /// A policy by its name, with its index.
    pub(super) fn policy(&self, name: &str) -> Option<(usize, &api::LivePolicy)> {
        self.report.policies.iter().enumerate().find(|(_, policy)| policy.name == name)
    }

    /// The names of all policies.
    pub(super) fn policy_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.report.policies.iter().map(|policy| policy.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_understood() {
        let report = LiveReport { format: LIVE_REPORT_FORMAT, ..LiveReport::default() };
        assert_eq!(read(200, &serde_json::to_vec(&report).unwrap()), Ok(report));
        assert_eq!(read(200, br#"{"format": 99}"#), Err(Away::Newer));
        assert!(matches!(read(200, b"<html>"), Err(Away::Says(_))));
        assert_eq!(read(403, b"{}"), Err(Away::Forbidden));
        let Err(Away::Says(said)) = read(403, b"denied destination\n") else { panic!("no right is missing") };
        assert!(said.ends_with("something refuses: denied destination"), "{said}");
        assert_eq!(
            read(503, br#"{"message": "this replica does not lead", "leader": "b"}"#),
            Err(Away::Follows(Some("b".into())))
        );
        let refused = read(503, br#"{"kind": "Status", "message": "error trying to reach service: no route"}"#);
        assert_eq!(refused, Err(Away::Says("error trying to reach service: no route".into())));
    }

    #[test]
    fn what_is_missing_is_told_from_a_replica_that_can_not_be_asked() {
        assert_eq!(read_missing(200, b"ok\n"), Ok(Vec::new()));
        assert_eq!(read_missing(200, b"ok\nNode n1 can't be read\n").unwrap(), ["Node n1 can't be read"]);
        let said = read_missing(503, b"the operator may not list nodes\nthe definition x is not there\n");
        assert_eq!(said.unwrap(), ["the operator may not list nodes", "the definition x is not there"]);
        let refused = read_missing(503, br#"{"kind": "Status", "message": "error trying to reach service: no route"}"#);
        assert_eq!(refused, Err(Away::Says("error trying to reach service: no route".into())));
        assert_eq!(read_missing(403, b"{}"), Err(Away::Forbidden));
        assert_eq!(read_missing(404, br#"{"kind": "Status", "message": "pods \"x\" not found"}"#), Err(Away::NoPod));
        // Never taken for one that is ready.
        for (status, body) in [(503, &b""[..]), (502, b"<html>"), (503, b"\xff")] {
            assert!(matches!(read_missing(status, body), Err(Away::Says(_))), "{status}");
        }
    }
}
