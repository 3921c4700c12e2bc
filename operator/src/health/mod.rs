//! Gates that ask the world: Prometheus, objects of the cluster, HTTP. Each answer is a fact with a reason for the
//! planner; a gate whose answer can't be had does not pass.

mod access;
mod board;
mod expression;
mod follow;
mod heard;
mod held;
mod http;
mod needs;
mod object;
#[cfg(test)]
mod object_tests;
mod promql;
mod seen;
mod source;
mod syntax;

pub use board::{Asked, GateBoard, GateKey};
pub use expression::check as check_expression;
pub use heard::Heard;
pub(crate) use heard::Present;
pub use object::ObjectAsker;
pub(crate) use object::Wanted;

use crate::clock::Moment;
use bascule_api::{Gate, Health, PromQlGate, Time};
use chrono::{DateTime, TimeDelta, Utc};
use held::Asks;
use reqwest::header::HeaderMap;
use std::{path::PathBuf, time::Duration};

/// How long any question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// Longest message that is kept.
const MESSAGE: usize = 512;

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 3;

/// What a gate answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GateAnswer {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed(String),
    /// Nobody knows, which counts as not holding.
    Unknown(String),
}

impl GateAnswer {
    /// Whether it holds.
    #[must_use]
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    /// Why it does not, empty if it does.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(message) | Self::Unknown(message) => message,
        }
    }

    /// As it is counted.
    const fn result(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// As much of a message as is kept.
fn kept(answer: &GateAnswer) -> String {
    answer.message().chars().take(MESSAGE).collect()
}

/// An answer with its age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The answer.
    pub answer: GateAnswer,
    /// As of when it is so: what it rests on is at least as new as this.
    pub as_of: Moment,
}

impl Answered {
    /// The same as a time, of a clock that shows `now`.
    fn at(&self, now: DateTime<Utc>) -> Time {
        Time::new(now - TimeDelta::from_std(self.as_of.elapsed()).unwrap_or_default())
    }
}

/// Why there is no asker.
#[derive(Debug, thiserror::Error)]
pub enum AskerError {
    /// A file with certificate authorities can't be read.
    #[error("cannot read the certificate authorities in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The HTTP client can't be made.
    #[error("cannot make an HTTP client")]
    Client(#[from] reqwest::Error),
}

/// Asks gates.
#[derive(Debug, Clone)]
pub struct Asker {
    http: reqwest::Client,
    accesses: access::Accesses,
    objects: ObjectAsker,
}

/// What all clients of gates have in common.
fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("bascule-operator/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
        .timeout(QUESTION_TIMEOUT)
        .pool_max_idle_per_host(2)
}

impl Asker {
    /// An asker that trusts `extra_ca` (PEM) beside the system's authorities, and reads Secrets in its own namespace. Objects
    /// are read with `gates`, which has the rights that admins gave to gates and not those of the operator.
    ///
    /// # Errors
    /// [`AskerError`] when the authorities can't be used.
    pub fn new(
        client: kube::Client,
        gates: kube::Client,
        namespace: &str,
        extra_ca: &[(PathBuf, Vec<u8>)],
    ) -> Result<Self, AskerError> {
        let mut certificates = Vec::new();
        for (path, pem) in extra_ca {
            let found = reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default();
            if found.is_empty() {
                return Err(AskerError::NoCertificate { path: path.clone() });
            }
            certificates.extend(found);
        }
        let (http, _) = bascule_repository::client_with_authorities(
            || client_builder().redirect(reqwest::redirect::Policy::custom(within_its_origin)),
            &certificates,
        )?;
        let accesses = access::Accesses::new(client, namespace, certificates);
        let objects = ObjectAsker::new(gates);
        Ok(Self { http, accesses, objects })
    }

    /// The client it asks with: patient for ten seconds, and of the same authorities.
    #[must_use]
    pub fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// Who reads objects for gates.
    pub(crate) fn objects(&self) -> ObjectAsker {
        self.objects.clone()
    }

    /// Asks one gate. `node` stands for `$node` in a query. Who asks so asks again soon.
    pub async fn ask(&self, health: &Health, gate: &Gate, node: Option<&str>) -> Answered {
        self.ask_as(Asks::Plan, health, gate, node).await
    }

    /// The same for somebody who reads the report.
    pub(crate) async fn ask_for_people(&self, health: &Health, gate: &Gate, node: Option<&str>) -> Answered {
        self.ask_as(Asks::People, health, gate, node).await
    }

    async fn ask_as(&self, asks: Asks, health: &Health, gate: &Gate, node: Option<&str>) -> Answered {
        let asked = Moment::now();
        let question = async {
            let answer = match (&gate.prom_ql, &gate.object, &gate.http) {
                (Some(prom_ql), None, None) => match &health.prometheus {
                    Some(server) => self.prom_ql(health, server, prom_ql, node).await,
                    None => GateAnswer::Unknown("spec.health.prometheus is not set".to_owned()),
                },
                // Only these may have been known before they were asked for.
                (None, Some(object), None) => return self.objects.ask(asks, object, node).await,
                (None, None, Some(http)) => http::ask(&self.http, http).await,
                _ => GateAnswer::Unknown("a gate is one of promQL, object or http".to_owned()),
            };
            Answered { answer, as_of: asked }
        };
        match tokio::time::timeout(QUESTION_TIMEOUT, question).await {
            Ok(answered) => answered,
            Err(_) => {
                let answer = GateAnswer::Unknown(format!("no answer within {} s", QUESTION_TIMEOUT.as_secs()));
                Answered { answer, as_of: asked }
            }
        }
    }
}

impl Asker {
    async fn prom_ql(&self, health: &Health, server: &str, gate: &PromQlGate, node: Option<&str>) -> GateAnswer {
        let Some(secret) = &health.prometheus_secret else {
            return promql::ask(&self.http, server, gate, node, HeaderMap::new()).await;
        };
        match self.accesses.of(secret, server).await {
            Ok(access) => {
                let answer = promql::ask(&access.client, server, gate, node, access.headers).await;
                if matches!(answer, GateAnswer::Unknown(_)) {
                    self.accesses.forget(secret);
                }
                answer
            }
            Err(why) => GateAnswer::Unknown(why),
        }
    }
}

/// A policy names whom the operator asks, and whoever is asked does not send it on to others: where a redirect leads to another
/// server, it is the answer.
fn within_its_origin(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let asked = attempt.previous().first().map(url::Url::origin);
    if asked == Some(attempt.url().origin()) && attempt.previous().len() <= MOST_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// Reads an answer's body within [`ANSWER_LIMIT`].
async fn bounded(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| crate::one_line(&error))? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(format!("the answer is longer than {ANSWER_LIMIT} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
