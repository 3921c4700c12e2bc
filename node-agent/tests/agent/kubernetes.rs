//! The agent's link to the API server, against one of the test's own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::core::Event;
use bascule_agent::kubernetes::{Credentials, Link, StatusToWrite};
use bascule_agent::metrics::Metrics;
use bascule_api::{Goal, NodeUpdateStatus, Transfer, Version};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::api_server::ApiServer;

/// Nothing here takes long; what does is broken.
const PATIENCE: Duration = Duration::from_secs(30);

fn link(server: &ApiServer, folder: &Path, node: &str) -> Link {
    // The binary does this first of all; here another test may have been faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Link {
        credentials: Credentials::Kubeconfig(server.kubeconfig(folder)),
        node: node.to_owned(),
        progress_every: Duration::from_secs(10),
        silence: Link::SILENCE,
        metrics: Arc::new(Metrics::new()),
    }
}

async fn next_word(events: &mut mpsc::Receiver<Event>) -> Option<bascule_agent::core::Desired> {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("a word in time").unwrap();
        if let Event::Desired(desired) = event {
            return desired;
        }
    }
}

/// What the watch of n1's object says.
fn watched(server: &ApiServer, folder: &Path) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(16);
    tokio::spawn(link(server, folder, "n1").watch(sender));
    events
}

fn idle() -> serde_json::Value {
    json!({"policy": "workers", "goal": "Idle"})
}

#[tokio::test]
async fn only_the_own_object_is_watched_and_each_change_is_a_word() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n2", &idle());
    let mut events = watched(&server, folder.path());
    assert_eq!(next_word(&mut events).await, None, "there is no object of this name yet");
    server.put("n1", &idle());
    assert_eq!(next_word(&mut events).await.unwrap().goal, Goal::Idle);
    let release = json!({"version": "1.1", "digest": format!("sha256:{}", "a".repeat(64)),
        "repository": "https://r.example", "channel": "stable"});
    server.put("n1", &json!({"policy": "workers", "goal": "Staged", "release": release}));
    assert_eq!(next_word(&mut events).await.unwrap().goal, Goal::Staged);
    let held = server.held.lock().unwrap();
    assert!(held.selectors.iter().all(|selector| selector == "metadata.name=n1"), "{:?}", held.selectors);
}

#[tokio::test]
async fn a_deleted_node_is_heard_of() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    let mut events = watched(&server, folder.path());
    assert!(next_word(&mut events).await.is_some());
    server.delete("n1");
    assert_eq!(next_word(&mut events).await, None);
}

#[tokio::test]
async fn a_renamed_node_hears_its_new_object_only() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("old-name", &json!({"policy": "workers", "goal": "Idle"}));
    server.put("new-name", &json!({"policy": "others", "goal": "Idle"}));
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(link(&server, folder.path(), "new-name").watch(sender));
    assert_eq!(next_word(&mut events).await.unwrap().uid, "uid-new-name");
    let (statuses, receiver) = watch::channel(None);
    let publishing = tokio::spawn(link(&server, folder.path(), "new-name").publish(receiver));
    statuses.send_replace(Some(StatusToWrite { uid: "uid-new-name".into(), status: NodeUpdateStatus::default() }));
    drop(statuses);
    tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap();
    let held = server.held.lock().unwrap();
    assert!(held.patches.iter().all(|(name, ..)| name == "new-name") && !held.patches.is_empty());
}

#[tokio::test]
async fn a_refused_token_is_tried_again_with_the_one_that_is_there_then() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    server.refuse(true);
    let link = link(&server, folder.path(), "n1");
    let metrics = Arc::clone(&link.metrics);
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(link.watch(sender));
    let mut changes = tokio::time::interval(Duration::from_millis(20));
    let refused = async {
        while server.held.lock().unwrap().tokens.is_empty() {
            changes.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the token was tried");
    std::fs::write(folder.path().join("token"), "second").unwrap();
    server.refuse(false);
    assert!(next_word(&mut events).await.is_some());
    let tokens = server.held.lock().unwrap().tokens.clone();
    assert_eq!((tokens[0].as_str(), tokens.last().unwrap().as_str()), ("Bearer first", "Bearer second"));
    assert!(metrics.text().contains("kind=\"Unauthorized\""), "{}", metrics.text());
}

/// Bookmarks are what an idle agent wakes up for: what else is due is done with them. How long a watch lasts is the server's
/// to say.
#[tokio::test]
async fn whatever_the_server_says_is_a_chance_to_do_what_is_due() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    let mut events = watched(&server, folder.path());
    assert!(next_word(&mut events).await.is_some());
    for _ in 0..3 {
        // What came with the word, or the bookmark before, is over when the channel is empty and nothing more is said.
        while tokio::time::timeout(Duration::from_millis(100), events.recv()).await.is_ok() {}
        server.bookmark();
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("a tick").unwrap();
        assert!(matches!(event, Event::Tick), "{event:?}");
    }
    let held = server.held.lock().unwrap();
    assert_eq!(held.watches.len(), 1, "one watch lasts: {:?}", held.watches);
    let asked = |key: &str| held.watches[0].get(key).map(String::as_str);
    assert_eq!((asked("timeoutSeconds"), asked("allowWatchBookmarks")), (Some("0"), Some("true")));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_anew() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    let (sender, mut events) = mpsc::channel(16);
    let link = Link { silence: Duration::from_millis(500), ..link(&server, folder.path(), "n1") };
    let metrics = Arc::clone(&link.metrics);
    tokio::spawn(link.watch(sender));
    for _ in 0..2 {
        assert!(next_word(&mut events).await.is_some(), "a new list tells it again");
    }
    assert!(metrics.text().contains("kind=\"Silent\""), "{}", metrics.text());
}

fn moving(percent: u32) -> NodeUpdateStatus {
    let version = Version::parse("1.1").unwrap();
    let transfer =
        Transfer { version, base: None, bytes_done: i64::from(percent), bytes_total: 100, percent, paused: None };
    NodeUpdateStatus { transfer: Some(transfer), ..NodeUpdateStatus::default() }
}

#[tokio::test]
async fn progress_waits_and_everything_else_does_not() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    let (statuses, receiver) = watch::channel(None);
    let publishing = tokio::spawn(link(&server, folder.path(), "n1").publish(receiver));
    let send = |status| statuses.send_replace(Some(StatusToWrite { uid: "uid-n1".into(), status }));
    let written = async |count: usize| {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let there = async {
            while server.held.lock().unwrap().patches.len() < count {
                look.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("a write");
    };
    send(moving(0));
    written(1).await;
    for percent in 1..50 {
        send(moving(percent));
        tokio::task::yield_now().await;
    }
    // Something else than progress goes at once and takes the newest progress along.
    send(NodeUpdateStatus { last_grant: Some(4), ..moving(51) });
    written(2).await;
    // The same again is nothing.
    send(NodeUpdateStatus { last_grant: Some(4), ..moving(51) });
    drop(statuses);
    tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap();
    let held = server.held.lock().unwrap();
    assert_eq!(held.patches.len(), 2, "{:?}", held.patches);
    let (_, query, body) = &held.patches[1];
    assert!(query.contains("fieldManager=bascule-agent") && query.contains("force=true"), "{query}");
    assert_eq!(body["status"]["lastGrant"], 4);
    assert_eq!(body["status"]["transfer"]["percent"], 51);
}

#[tokio::test]
async fn an_object_made_anew_gets_the_whole_status_again() {
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    server.put("n1", &idle());
    let (statuses, receiver) = watch::channel(None);
    let publishing = tokio::spawn(link(&server, folder.path(), "n1").publish(receiver));
    for uid in ["first", "second"] {
        statuses.send_replace(Some(StatusToWrite { uid: uid.into(), status: moving(3) }));
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let wanted = if uid == "first" { 1 } else { 2 };
        let there = async {
            while server.held.lock().unwrap().patches.len() < wanted {
                look.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("a write");
    }
    drop(statuses);
    tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap();
}
