//! Against a webhook that fails in the ways that webhooks fail.

use super::*;
use axum::{Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Hook {
    /// What it answers, one after the other, then 204.
    answers: Arc<Mutex<Vec<u16>>>,
    heard: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
}

async fn take(State(hook): State<Hook>, headers: HeaderMap, body: String) -> StatusCode {
    hook.heard.lock().unwrap().push((headers, serde_json::from_str(&body).unwrap()));
    let answer = hook.answers.lock().unwrap().pop().unwrap_or(204);
    StatusCode::from_u16(answer).unwrap()
}

impl Hook {
    async fn serve(&self) -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
        let router = Router::new().route("/hook", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn until(&self, count: usize) -> Vec<(HeaderMap, Value)> {
        loop {
            let heard = self.heard.lock().unwrap().clone();
            if heard.len() >= count {
                return heard;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn notifier(url: Url, token_file: Option<PathBuf>) -> Notifier {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let target = Target { url, token_file };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Notifier::start(target, http, "/bascule/bascule-system".to_owned(), Clock::system(), Metrics::new())
}

fn told(kind: Kind, policy: &str) -> Notification {
    Notification {
        kind,
        policy: policy.to_owned(),
        release: Version::parse("41.3.0").ok(),
        message: "41.3.0 is rolled out".to_owned(),
    }
}

#[tokio::test]
async fn an_event_arrives_once_with_the_token_though_the_first_try_fails() {
    let hook = Hook::default();
    hook.answers.lock().unwrap().push(503);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let notifier = notifier(hook.serve().await, Some(token));
    notifier.tell(told(Kind::Began, "workers"));
    let heard = hook.until(2).await;
    assert_eq!(heard[0].1["id"], heard[1].1["id"], "the same event");
    let (headers, event) = &heard[1];
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert!(headers["content-type"].to_str().unwrap().starts_with("application/cloudevents+json"));
    for (field, value) in [
        ("specversion", "1.0"),
        ("type", "dev.bascule.rollout.began"),
        ("source", "/bascule/bascule-system"),
        ("subject", "workers"),
    ] {
        assert_eq!(event[field], value, "{event}");
    }
    assert_eq!(event["data"], json!({"policy": "workers", "release": "41.3.0", "message": "41.3.0 is rolled out"}));
    assert!(event["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn what_is_refused_is_not_tried_again_and_the_next_is_told() {
    let hook = Hook::default();
    hook.answers.lock().unwrap().push(400);
    let notifier = notifier(hook.serve().await, None);
    notifier.tell(told(Kind::Halted, "refused"));
    notifier.tell(told(Kind::Done, "next"));
    let heard = hook.until(2).await;
    let subjects: Vec<_> = heard.iter().map(|(_, event)| event["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["refused", "next"]);
    assert!(!heard[1].0.contains_key("authorization"));
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_gone_holds_nobody_up_and_the_line_has_an_end() {
    // A port of this machine that nobody listens on.
    let notifier = notifier(Url::parse("http://127.0.0.1:9/").unwrap(), None);
    let begun = std::time::Instant::now();
    for _ in 0..10 * LINE {
        notifier.tell(told(Kind::Blocked, "workers"));
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(notifier.0.as_ref().unwrap().capacity(), 0);
    // Nobody to tell is fine too.
    Notifier::default().tell(told(Kind::Ended, "workers"));
}

#[test]
fn tries_end_within_the_hour() {
    let all: Duration = (1..TRIES).map(pause).sum();
    assert!(all > Duration::from_secs(600) && all < Duration::from_secs(3_600), "{all:?}");
}
