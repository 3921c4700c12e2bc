//! Who is told of a rollout: a webhook, and Debian's Alertmanager, at which the node under way is silenced.

use crate::agent::Habit;
use crate::world::Cluster;
use axum::extract::State;
use axum::routing::post;
use bascule_tests::control_plane::free_port;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

type Heard = Arc<Mutex<Vec<Value>>>;

async fn take(State(heard): State<Heard>, body: String) {
    heard.lock().unwrap().push(serde_json::from_str(&body).unwrap());
}

/// A webhook, and where it is.
async fn webhook() -> (Heard, String) {
    let heard = Heard::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/hook", post(take)).with_state(Arc::clone(&heard));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (heard, url)
}

struct Alertmanager {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Alertmanager {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("alertmanager.yml");
        std::fs::write(&config, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
        let port = free_port().unwrap();
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package prometheus-alertmanager is installed by `cargo xtask test`");
        Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder }
    }

    async fn silences(&self) -> Vec<Value> {
        let answer = reqwest::get(format!("{}/api/v2/silences", self.url)).await;
        let Ok(answer) = answer else { return Vec::new() };
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_hears_of_a_rollout_and_the_node_under_way_is_silenced() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let (heard, hook) = webhook().await;
    let alertmanager = Alertmanager::start();
    let more = [format!("--notify-url={hook}"), format!("--alertmanager-url={}", alertmanager.url)];
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let _operator = world.operator_with("first", None, &more).await;
    world.policy("workers", json!({"health": {"nodeSoak": "5s"}})).await;
    world
        .eventually("the node under way is silenced", async || {
            let all = alertmanager.silences().await;
            all.iter().any(|one| one["status"]["state"] == "active" && one.to_string().contains("\"n1\""))
        })
        .await;
    world.until_current("n1", "1.1").await;
    world
        .eventually("and is not any more when it is done", async || {
            let all = alertmanager.silences().await;
            !all.is_empty() && all.iter().all(|one| one["status"]["state"] == "expired")
        })
        .await;
    world
        .eventually("the webhook heard of the begin and the end", async || {
            let heard = heard.lock().unwrap().clone();
            let types: Vec<&str> = heard.iter().filter_map(|event| event["type"].as_str()).collect();
            types == ["dev.bascule.rollout.began", "dev.bascule.rollout.done"]
                && heard.iter().all(|event| event["subject"] == "workers" && event["data"]["release"] == "1.1")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_hears_that_a_bad_release_is_blocked_and_its_rollout_halted() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Fails).await;
    let (heard, hook) = webhook().await;
    let _operator = world.operator_with("first", None, &[&format!("--notify-url={hook}")]).await;
    world.policy("workers", json!({})).await;
    for wanted in ["dev.bascule.release.blocked", "dev.bascule.rollout.halted"] {
        world
            .eventually(&format!("the webhook heard {wanted}"), async || {
                let heard = heard.lock().unwrap().clone();
                let event = heard.iter().find(|event| event["type"] == wanted);
                event.is_some_and(|event| {
                    let of_release = wanted.ends_with("halted") || event["data"]["release"] == "1.1";
                    let says = event["data"]["message"].as_str().is_some_and(|message| !message.is_empty());
                    event["subject"] == "workers" && of_release && says
                })
            })
            .await;
    }
    let heard = heard.lock().unwrap().clone();
    assert!(heard.iter().all(|event| event["type"] != "dev.bascule.rollout.done"), "{heard:?}");
}
