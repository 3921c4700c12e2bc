//! Alertmanager's API v2, as far as silences go (`api/v2/openapi.yaml` of Alertmanager).

use bascule_api::Time;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use url::Url;

/// The longest answer that is read.
const ANSWER: usize = 64 * 1024;
/// Our own alerts are about Bascule and never silenced by it.
const OURS: &str = "Bascule.*";

/// Why Alertmanager does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The token.
    #[error("{0}")]
    Token(String),
    /// The way to it.
    #[error("Alertmanager can't be asked: {0}")]
    Away(String),
    /// It refused.
    #[error("Alertmanager answers with status {status}: {said}")]
    Refused {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// It answered something else.
    #[error("Alertmanager's answer is none of its API")]
    Foreign,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Silence {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    matchers: [Matcher; 2],
    starts_at: Time,
    ends_at: Time,
    created_by: &'static str,
    comment: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Matcher {
    name: String,
    value: String,
    is_regex: bool,
    is_equal: bool,
}

impl Silence {
    /// From the first of these times to the second.
    pub(super) fn of(label: &str, node: &str, why: &str, (since, until): (Time, Time), id: Option<String>) -> Self {
        let matcher = |name: &str, value: &str, is_regex, is_equal| Matcher {
            name: name.to_owned(),
            value: value.to_owned(),
            is_regex,
            is_equal,
        };
        Self {
            id,
            matchers: [matcher(label, node, false, true), matcher("alertname", OURS, true, false)],
            starts_at: since,
            ends_at: until,
            created_by: "bascule-operator",
            comment: why.to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Alertmanager {
    pub(super) http: reqwest::Client,
    pub(super) url: Url,
    pub(super) token_file: Option<PathBuf>,
}

impl Alertmanager {
    /// Begins or renews a silence; its name, which may be another than before.
    pub(super) async fn hold(&self, silence: &Silence) -> Result<String, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "silenceID")]
            id: String,
        }
        let body = self.send(self.http.post(self.address("silences")).json(silence)).await?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| Trouble::Foreign)?;
        // It becomes a part of an address.
        let fine = (1..=64).contains(&answer.id.len())
            && answer.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if fine { Ok(answer.id) } else { Err(Trouble::Foreign) }
    }

    pub(super) async fn end(&self, id: &str) -> Result<(), Trouble> {
        self.send(self.http.delete(self.address(&format!("silence/{id}")))).await.map(drop)
    }

    fn address(&self, path: &str) -> String {
        format!("{}/api/v2/{path}", self.url.as_str().trim_end_matches('/'))
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<Vec<u8>, Trouble> {
        let token = crate::notify::bearer(self.token_file.as_deref()).await.map_err(Trouble::Token)?;
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let away = |error: reqwest::Error| Trouble::Away(crate::one_line(&error.without_url()));
        let mut response = request.send().await.map_err(away)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > ANSWER {
                return Err(Trouble::Foreign);
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        let said = String::from_utf8_lossy(&body).chars().filter(|one| !one.is_control()).take(200).collect();
        Err(Trouble::Refused { status: status.as_u16(), said })
    }
}
