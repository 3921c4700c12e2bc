//! The service's loop on a simulated machine, without a cluster: one agent at a time, and what a person asks for over its
//! socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::host::Host;
use bascule_agent::kubernetes::Credentials;
use bascule_agent::linux::StateFolder;
use bascule_agent::run::{self, RunError};
use bascule_agent::server::Answer;
use bascule_agent::settings::{Settings, Sources};
use bascule_sim::firmware::BootLoader;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::guard::on_trial;
use crate::machine::{Machine, named, release};

const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a node whose API server can't be reached.
fn settings(folder: &Path) -> Settings {
    let file = folder.join("agent.toml");
    let socket = folder.join("agent.sock");
    let text = format!("[node]\nname = \"n1\"\n[server]\nlisten = \"unix:{}\"\n", socket.display());
    std::fs::write(&file, text).unwrap();
    Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap()
}

/// Runs an agent for as long as it takes to ask it for something.
async fn ask(host: Host, request: Value) -> Answer {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let nowhere = Credentials::Kubeconfig(folder.path().join("kubeconfig"));
    let shutdown = async move { stopped.await.unwrap_or_default() };
    let running = run::run(&settings, "n1".to_owned(), host, nowhere, shutdown);
    let asking = async {
        let answer = post(&folder.path().join("agent.sock"), request).await;
        drop(stop);
        answer
    };
    let (ended, answer) = tokio::time::timeout(PATIENCE, async { tokio::join!(running, asking) }).await.unwrap();
    ended.unwrap();
    answer
}

async fn post(socket: &Path, request: Value) -> Answer {
    // The agent binds its socket first of all; until then there is nothing to wait on.
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("/manual")
        .header("host", "agent")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(request.to_string())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn a_person_stages_a_release_over_the_socket() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let machine = Machine::new(BootLoader::SystemdBoot, &old, &[&new]);
    let answer = ask(machine.sim.host(), json!({"action": "stage", "release": named(&new), "user": "alice"})).await;
    assert!(answer.done, "{:?}", answer.problem);
    assert_eq!(answer.status.staged.unwrap().version.as_str(), "1.1");
    let action = &answer.status.manual_actions[0];
    assert_eq!((action.action.as_str(), action.user.as_deref()), ("stage", Some("alice")));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[tokio::test]
async fn a_person_commits_a_trial_over_the_socket() {
    let mut machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    let answer = ask(machine.sim.host(), json!({"action": "commit", "user": null})).await;
    assert!(answer.done && answer.status.trial.is_none(), "{:?}", answer.problem);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
}

#[tokio::test]
async fn a_person_reverts_a_trial_over_the_socket() {
    let mut machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    let answer = ask(machine.sim.host(), json!({"action": "revert", "user": "bob"})).await;
    assert!(answer.done, "{:?}", answer.problem);
    assert_eq!(machine.sim.bus.reboots().len(), 1);
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
}

#[tokio::test]
async fn a_refused_command_says_why() {
    let machine = Machine::new(BootLoader::SystemdBoot, &release("1.0", &[]), &[]);
    let answer = ask(machine.sim.host(), json!({"action": "revert", "user": null})).await;
    assert!(!answer.done);
    assert!(answer.problem.unwrap().message.contains("holds no whole release to go back to"));
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_does_nothing_and_says_so() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let machine = Machine::new(BootLoader::SystemdBoot, &old, &[&new]);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    // The folder of a real host: its lock is the kernel's.
    let host = || Host { state: Arc::new(StateFolder::create(&state).unwrap()), ..machine.sim.host() };
    let settings = settings(folder.path());
    let nowhere = || Credentials::Kubeconfig(folder.path().join("kubeconfig"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let first =
        run::run(&settings, "n1".to_owned(), host(), nowhere(), async move { stopped.await.unwrap_or_default() });
    let second = async {
        // The first one answers, so it holds the lock.
        post(&folder.path().join("agent.sock"), json!({"action": "commit", "user": null})).await;
        let refused = run::run(&settings, "n1".to_owned(), host(), nowhere(), std::future::pending()).await;
        drop(stop);
        refused
    };
    let (first, second) = tokio::time::timeout(PATIENCE, async { tokio::join!(first, second) }).await.unwrap();
    first.unwrap();
    assert!(matches!(second, Err(RunError::Locked)), "{second:?}");
    // With the first one gone, the lock is free.
    host().state.lock().unwrap();
}
