//! One POST to a webhook, and what its answer means.

use super::Target;
use serde_json::Value;

/// A token longer than this is none.
const TOKEN: usize = 16 * 1024;

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It was taken.
    Taken,
    /// It is not wanted; trying again does not help.
    Refused(String),
    /// Nobody knows; trying again may help.
    Unknown(String),
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) target: Target,
    pub(super) http: reqwest::Client,
}

impl Delivery {
    pub(super) async fn post(&self, event: &Value) -> Answer {
        let mut request = self
            .http
            .post(self.target.url.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/cloudevents+json; charset=utf-8")
            .body(event.to_string());
        match bearer(self.target.token_file.as_deref()).await {
            Ok(Some(token)) => request = request.bearer_auth(token),
            Ok(None) => {}
            Err(why) => return Answer::Unknown(why),
        }
        match request.send().await {
            Ok(response) => means(response.status().as_u16()),
            // Without the address: it may hold a secret of its own.
            Err(error) => Answer::Unknown(crate::one_line(&error.without_url())),
        }
    }
}

/// The token of a file, if there is one.
pub(crate) async fn bearer(file: Option<&std::path::Path>) -> Result<Option<String>, String> {
    let Some(file) = file else { return Ok(None) };
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("the token in {} can't be read: {error}", file.display()))?;
    let token = text.trim();
    let fine = !token.is_empty() && token.len() <= TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    if fine { Ok(Some(token.to_owned())) } else { Err(format!("{} holds no token", file.display())) }
}

/// 408 and 429 ask for another try, as does everything that says the server is not well (RFC 9110, 15.5 and 15.6).
fn means(status: u16) -> Answer {
    match status {
        200..=299 => Answer::Taken,
        408 | 429 | 500..=599 => Answer::Unknown(format!("it answers with status {status}")),
        _ => Answer::Refused(format!("it answers with status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means() {
        assert_eq!(means(202), Answer::Taken);
        for status in [408, 429, 500, 503] {
            assert!(matches!(means(status), Answer::Unknown(_)), "{status}");
        }
        for status in [301, 400, 401, 404, 410] {
            assert!(matches!(means(status), Answer::Refused(_)), "{status}");
        }
    }

    #[tokio::test]
    async fn a_token_is_read_anew_and_garbage_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert_eq!(bearer(None).await, Ok(None));
        assert!(bearer(Some(&file)).await.unwrap_err().contains("can't be read"));
        std::fs::write(&file, "first\n").unwrap();
        assert_eq!(bearer(Some(&file)).await, Ok(Some("first".to_owned())));
        std::fs::write(&file, "second").unwrap();
        assert_eq!(bearer(Some(&file)).await, Ok(Some("second".to_owned())));
        for garbage in ["", "two words", "line\nline"] {
            std::fs::write(&file, garbage).unwrap();
            assert!(bearer(Some(&file)).await.unwrap_err().contains("holds no token"), "{garbage:?}");
        }
    }
}
