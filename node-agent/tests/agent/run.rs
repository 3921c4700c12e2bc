//! The service's loop on a simulated machine, without a cluster: one agent at a time, and what a person asks for over its
//! socket.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::host::Host;
use bascule_agent::kubernetes::Credentials;
use bascule_agent::linux::StateFolder;
use bascule_agent::metrics::Metrics;
use bascule_agent::run::{self, RunError};
use bascule_agent::server::{self, Answer, Shown};
use bascule_agent::settings::{Settings, Sources};
use bascule_api::NodeUpdateStatus;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::SimReleases;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::api_server::ApiServer;
use crate::guard::on_trial;
use crate::machine::{AgentHost, named, release};

const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a node whose API server can't be reached.
fn settings(folder: &Path) -> Settings {
    let file = folder.join("agent.toml");
    let socket = folder.join("agent.sock");
    let text = format!("[node]\nname = \"n1\"\n[server]\nlisten = \"unix:{}\"\n", socket.display());
    std::fs::write(&file, text).unwrap();
    Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap()
}

/// Runs an agent for as long as it takes to do something with it, in whose folder its socket and its settings are.
async fn while_it_runs<T>(host: Host, deed: impl AsyncFnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let nowhere = Credentials::Kubeconfig(folder.path().join("kubeconfig"));
    let shutdown = async move { stopped.await.unwrap_or_default() };
    let running = run::run(&settings, "n1".to_owned(), host, nowhere, shutdown);
    let doing = async {
        let done = deed(folder.path()).await;
        drop(stop);
        done
    };
    let (ended, done) = tokio::time::timeout(PATIENCE, async { tokio::join!(running, doing) }).await.unwrap();
    ended.unwrap();
    done
}

async fn ask(host: Host, request: Value) -> Answer {
    while_it_runs(host, async |folder: &Path| post(&folder.join("agent.sock"), request).await).await
}

async fn post(socket: &Path, request: Value) -> Answer {
    let request = hyper::Request::post("/manual")
        .header("host", "agent")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(request.to_string())))
        .unwrap();
    let (status, body) = exchange(socket, request).await;
    assert!(status.is_success(), "{status}");
    serde_json::from_slice(&body).unwrap()
}

async fn get(socket: &Path, path: &str) -> (hyper::StatusCode, String) {
    let request = hyper::Request::get(path).header("host", "agent").body(Full::default()).unwrap();
    let (status, body) = exchange(socket, request).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn exchange(socket: &Path, request: hyper::Request<Full<bytes::Bytes>>) -> (hyper::StatusCode, bytes::Bytes) {
    // The agent binds its socket first of all; until then there is nothing to wait on.
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

/// No boot partition, no disk, authorities that can't be read: the agent runs, and says so where people look.
#[tokio::test]
async fn an_agent_without_boot_partition_and_disk_says_so_through_the_api() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    let new = release("1.1", &[]);
    server.put("n1", &json!({"policy": "workers", "goal": "Staged", "release": named(&new)}));
    let place = |name: &str| folder.path().join(name);
    let settings = Settings {
        state: place("state"),
        disk: Some(place("no-such-disk")),
        esp: Some(place("no-such-folder")),
        extra_ca: vec![place("no-such-authorities")],
        ..settings(folder.path())
    };
    let host = bascule_agent::linux::open_for_service(&settings, &tokio::runtime::Handle::current()).unwrap();
    let credentials = Credentials::Kubeconfig(server.kubeconfig(folder.path()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move { stopped.await.unwrap_or_default() };
    let running = run::run(&settings, "n1".to_owned(), host, credentials, shutdown);
    let told = || {
        let held = server.held.lock().unwrap();
        held.patches
            .iter()
            .find(|(_, _, body)| body["status"]["lastError"].is_object())
            .map(|(_, _, body)| body.clone())
    };
    let watching = async {
        let said = loop {
            match told() {
                Some(said) => break said,
                None => tokio::task::yield_now().await,
            }
        };
        drop(stop);
        said
    };
    let (ended, said) = tokio::time::timeout(PATIENCE, async { tokio::join!(running, watching) }).await.unwrap();
    ended.unwrap();
    let conditions = said["status"]["conditions"].as_array().unwrap();
    let healthy = conditions.iter().find(|condition| condition["type"] == "AgentHealthy").unwrap();
    assert_eq!(healthy["status"], "False", "{said}");
}

/// The status with an error that the program itself writes whose settings end with `more`: it goes on until it is told to end, and
/// does nothing but to report.
async fn only_reports(folder: &Path, more: &str) -> Value {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = ApiServer::start().await;
    server.put("n1", &json!({"policy": "workers", "goal": "Staged", "release": named(&release("1.1", &[]))}));
    let file = folder.join("agent.toml");
    let text = format!(
        "[node]\nname = \"n1\"\n[kubernetes]\nkubeconfig = \"{}\"\n[state]\ndirectory = \"{}\"\n\
         [server]\nlisten = \"off\"\n{more}\n",
        server.kubeconfig(folder).display(),
        folder.join("state").display(),
    );
    std::fs::write(&file, text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bascule-agent"));
    command.arg("--settings").arg(&file).arg("run").env_clear().kill_on_drop(true);
    let mut agent = command.spawn().unwrap();
    let told = || {
        let held = server.held.lock().unwrap();
        let mut statuses = held.patches.iter().map(|(_, _, body)| &body["status"]);
        statuses.find(|status| status["lastError"].is_object()).cloned()
    };
    let watching = async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            match told() {
                Some(said) => break said,
                None => _ = look.tick().await,
            }
        }
    };
    let said = tokio::time::timeout(PATIENCE, watching).await.unwrap();
    assert_eq!(agent.try_wait().unwrap(), None, "it goes on");
    let process = rustix::process::Pid::from_raw(i32::try_from(agent.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(agent.wait().await.unwrap().code(), Some(0));
    assert!(!folder.join("state/journal.json").exists(), "nothing was done but to report");
    assert_eq!(said["lastError"]["category"], "Settings");
    let conditions = said["conditions"].as_array().unwrap();
    let healthy = conditions.iter().find(|condition| condition["type"] == "AgentHealthy").unwrap();
    assert_eq!((&healthy["status"], &healthy["message"]), (&json!("False"), &said["lastError"]["message"]));
    said
}

/// The program itself, with settings that it does not understand: it goes on, and says so where people look.
#[tokio::test]
async fn an_agent_whose_settings_can_not_be_used_says_so_through_the_api() {
    let folder = tempfile::tempdir().unwrap();
    let said = only_reports(folder.path(), "[boot]\ncolour = \"blue\"").await;
    let message = said["lastError"]["message"].as_str().unwrap();
    let place = format!("{}:10", folder.path().join("agent.toml").display());
    assert!(message.contains(&place) && message.contains("boot.colour"), "{message}");
}

/// The image on trial may be the one that lacks it: were it committed, nothing could ever be staged there again.
#[tokio::test]
async fn an_agent_without_a_root_of_trust_does_nothing_and_says_so_through_the_api() {
    let folder = tempfile::tempdir().unwrap();
    let trust_root = folder.path().join("root.json");
    let said = only_reports(folder.path(), &format!("[repository]\ntrust-root = \"{}\"", trust_root.display())).await;
    let message = said["lastError"]["message"].as_str().unwrap();
    let missing = format!("the trust root {} can't be read: it must be in the OS image", trust_root.display());
    assert!(message.contains(&missing) && message.contains("neither looked at nor changed"), "{message}");
}

/// Staging needs no API server, and what happened without one is told when it is back.
#[tokio::test]
async fn an_outage_of_the_api_server_stops_no_staging_and_is_caught_up_with() {
    // The binary does this first of all; here another test may have been faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let away = server.clone();
    // From the first download on, the server answers nothing but 401.
    let releases = SimReleases::of([&new]).noting(move |_| away.refuse(true));
    let machine = AgentHost::offered(BootLoader::SystemdBoot, &old, releases);
    server.put("n1", &json!({"policy": "workers", "goal": "Staged", "release": named(&new)}));
    let settings = settings(folder.path());
    let credentials = Credentials::Kubeconfig(server.kubeconfig(folder.path()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move { stopped.await.unwrap_or_default() };
    let running = run::run(&settings, "n1".to_owned(), machine.sim.host(), credentials, shutdown);
    let told = || {
        let held = server.held.lock().unwrap();
        held.patches.iter().any(|(_, _, body)| body["status"]["staged"]["version"] == "1.1")
    };
    let watching = async {
        let socket = folder.path().join("agent.sock");
        loop {
            let (_, status) = get(&socket, "/status").await;
            let status: Value = serde_json::from_str(&status).unwrap();
            if status["staged"]["version"] == "1.1" {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(!told(), "the server was to be away");
        server.refuse(false);
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while !told() {
            look.tick().await;
        }
        drop(stop);
    };
    let (ended, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(running, watching) }).await.unwrap();
    ended.unwrap();
    assert!(machine.sim.bus.reboots().is_empty());
}

#[tokio::test]
async fn health_metrics_and_status_are_served_and_commands_only_on_the_socket() {
    for listen in ["unix", "tcp"] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = if listen == "tcp" { format!("tcp:{free}") } else { format!("unix:{}", socket.display()) };
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, format!("[server]\nlisten = \"{place}\"\n")).unwrap();
        let settings = Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap();
        let bound = server::bind(&settings.listen).await.unwrap();
        let (metrics, (_status, status)) = (Arc::new(Metrics::new()), watch::channel(NodeUpdateStatus::default()));
        let (commands, mut asked) = mpsc::channel(1);
        tokio::spawn(server::serve(bound, Shown { metrics, status, commands }));
        let code = async |method: &str, path: &str| {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
            let mut answer = String::new();
            if listen == "tcp" {
                let mut stream = TcpStream::connect(free).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
            } else {
                let mut stream = UnixStream::connect(&socket).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
            }
            answer
        };
        let metrics = code("GET", "/metrics").await;
        assert!(metrics.contains("# TYPE bascule_agent_status_writes counter"), "{listen}: {metrics}");
        assert!(code("GET", "/status").await.starts_with("HTTP/1.1 200"), "{listen}");
        assert!(code("GET", "/healthz").await.starts_with("HTTP/1.1 200"), "{listen}");
        let command = code("POST", "/manual").await;
        // On the socket the empty command is refused for what it is; over TCP there is nothing to ask.
        assert_eq!(command.starts_with("HTTP/1.1 404"), listen == "tcp", "{listen}: {command}");
        assert!(asked.try_recv().is_err());
        drop(asked);
        assert!(code("GET", "/healthz").await.starts_with("HTTP/1.1 503"), "{listen}: the loop is gone");
    }
}

#[tokio::test]
async fn a_person_stages_a_release_over_the_socket() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
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

/// The commands that docs/agent.md shows: those in sentences, and the list of them with their options.
fn shown() -> BTreeSet<String> {
    let page = include_str!("../../../docs/agent.md");
    let sentences: String = page.split("```").step_by(2).collect();
    let spans = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let named = spans(&sentences).into_iter().filter_map(|span| span.strip_prefix("bascule-agent ").map(str::to_owned));
    let list = page.split_once("## Commands and exit codes\n").unwrap().1;
    let listed = spans(list.split("\n\n").next().unwrap());
    let all = named.chain(listed).flat_map(|line| match line.split_once(" [") {
        // Each of what may be there is one more.
        Some((plain, options)) => {
            let options = options.trim_end_matches(']').split('|').map(|option| format!("{plain} {option}"));
            std::iter::once(plain.to_owned()).chain(options).collect::<Vec<_>>()
        }
        None => vec![line],
    });
    all.collect()
}

/// Types a command on a machine where the agent runs: the code, and what it said.
async fn types(host: Host, line: &str) -> (Option<i32>, String) {
    let typing = async |folder: &Path| {
        // It listens.
        get(&folder.join("agent.sock"), "/healthz").await;
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_bascule-agent"));
        program.arg("--settings").arg(folder.join("agent.toml")).args(line.split(' '));
        program.env_clear().kill_on_drop(true).output().await.unwrap()
    };
    let output = while_it_runs(host, typing).await;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    (output.status.code(), said.concat())
}

/// What a page tells people to type on a node at three in the morning is typed: the program itself, and the agent that it asks.
#[tokio::test]
async fn every_command_of_the_page_is_typed_on_a_node() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let wanted = named(&new);
    let filled = |line: &str| {
        line.replace("URL", &wanted.repository)
            .replace("NAME", wanted.channel.as_str())
            .replace("VERSION", wanted.version.as_str())
            .replace("SHA256", wanted.digest.as_str())
    };
    let mut typed = BTreeSet::new();
    for line in shown() {
        let command = line.split(' ').next().unwrap().to_owned();
        // Services, whose own tests run them; and a name in a sentence, whose words are in the list.
        if ["run", "guard"].contains(&command.as_str()) || line == "stage" {
            continue;
        }
        let mut machine = match command.as_str() {
            "commit" | "revert" => on_trial(BootLoader::SystemdBoot, "1.0", "1.1"),
            _ => AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]),
        };
        let (code, said) = types(machine.sim.host(), &filled(&line)).await;
        assert_eq!(code, Some(0), "bascule-agent {line}: {said}");
        let part = match (command.as_str(), line.as_str()) {
            (_, "status --json") => "{",
            (_, "status --origins") => "boot.partition",
            ("stage", _) => "1.1",
            _ => "",
        };
        assert!(said.contains(part) && !said.is_empty(), "bascule-agent {line}: {said}");
        assert_eq!(machine.sim.bus.reboots().len(), usize::from(command == "revert"), "bascule-agent {line}");
        if command == "commit" {
            machine.reboot();
            assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false), "bascule-agent {line}");
        }
        typed.insert(command);
    }
    assert_eq!(typed.iter().map(String::as_str).collect::<Vec<_>>(), ["commit", "revert", "stage", "status"]);
}

#[tokio::test]
async fn a_refused_command_says_why() {
    let machine = AgentHost::new(BootLoader::SystemdBoot, &release("1.0", &[]), &[]);
    let answer = ask(machine.sim.host(), json!({"action": "revert", "user": null})).await;
    assert!(!answer.done);
    assert!(answer.problem.unwrap().message.contains("holds no whole release to go back to"));
}

/// Settings that are mended are taken up by the same process: what the first run held has to be free for the second.
#[tokio::test]
async fn an_agent_runs_again_in_the_same_process_with_the_address_that_it_had() {
    let old = release("1.0", &[]);
    let machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[]);
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, format!("[server]\nlisten = \"tcp:{free}\"\n")).unwrap();
    let settings = Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap();
    for time in ["first", "second"] {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let nowhere = Credentials::Kubeconfig(folder.path().join("kubeconfig"));
        let shutdown = async move { stopped.await.unwrap_or_default() };
        let running = run::run(&settings, "n1".to_owned(), machine.sim.host(), nowhere, shutdown);
        let asking = async {
            let mut stream = loop {
                match TcpStream::connect(free).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let request = "GET /healthz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            drop(stop);
            answer
        };
        let both = async { tokio::join!(running, asking) };
        let (ended, answer) = tokio::time::timeout(PATIENCE, both).await.unwrap();
        ended.unwrap_or_else(|error| panic!("the {time} time: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "the {time} time: {answer}");
    }
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_does_nothing_and_says_so() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
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
