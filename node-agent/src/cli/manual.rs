//! Break glass: `stage`, `commit`, `revert`. Through the agent's socket where it runs, else by ourselves.

use std::io;
use std::path::Path;
use std::time::Duration;

use bascule_agent::agent::{Agent, Restless};
use bascule_agent::core::{Event, ManualCommand, status};
use bascule_agent::engine::Engine;
use bascule_agent::linux;
use bascule_agent::run::RunError;
use bascule_agent::server::{Answer, Request};
use bascule_agent::settings::{Listen, Settings};
use bascule_api::{NodeUpdateStatus, ReleaseRef};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use super::{Exit, complain, node_name, print};

/// Longest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest time for an answer; the agent itself answers within a minute.
const TIMEOUT: Duration = Duration::from_secs(90);

/// What a person asks for.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    /// Bring a release into the inactive slot.
    Stage(ReleaseRef),
    /// Make the trial permanent.
    Commit,
    /// Go back; also to a release that is made for an older state of the machine, where that is accepted.
    Revert { accept_state: bool },
}

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// No agent listens.
    #[error("no agent listens on {0}")]
    Nobody(String),
    /// The connection failed.
    #[error("the agent on {0} could not be asked")]
    Connection(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent refused.
    #[error("the agent answered with {0}")]
    Status(hyper::StatusCode),
}

pub(super) async fn run(settings: &Settings, runtime: &Handle, wish: Wish) -> Exit {
    let user = user();
    let request = match wish.clone() {
        Wish::Stage(release) => Request::Stage { release, user: user.clone() },
        Wish::Commit => Request::Commit { user: user.clone() },
        Wish::Revert { accept_state } => Request::Revert { accept_state, user: user.clone() },
    };
    if let Listen::Unix(path) = &settings.listen {
        let body = serde_json::to_vec(&request).unwrap_or_default();
        match ask(path, hyper::Method::POST, "/manual", body).await {
            Ok(bytes) => {
                return match serde_json::from_slice::<Answer>(&bytes) {
                    Ok(answer) => report(&answer),
                    Err(error) => {
                        complain(&error);
                        Exit::Internal
                    }
                };
            }
            // Nobody there: this process is the agent for as long as it takes.
            Err(AskError::Nobody(_)) => {}
            Err(error) => {
                complain(&error);
                return Exit::Refused;
            }
        }
    }
    let (settings, runtime) = (settings.clone(), runtime.clone());
    match tokio::task::spawn_blocking(move || alone(&settings, &runtime, wish, user)).await {
        Ok(exit) => exit,
        Err(error) => {
            complain(&error);
            Exit::Internal
        }
    }
}

/// Who asks: root's own name says little, so the one before sudo or su, if the kernel or sudo tells.
fn user() -> Option<String> {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.map(|id| id.trim().to_owned()).filter(|id| id != "4294967295");
    std::env::var("SUDO_USER").ok().or_else(|| login.map(|id| format!("uid {id}")))
}

/// Without a running agent.
fn alone(settings: &Settings, runtime: &Handle, wish: Wish, user: Option<String>) -> Exit {
    let host = match linux::open(settings, runtime) {
        Ok(host) => host,
        Err(error) => {
            complain(&error);
            return Exit::Host;
        }
    };
    let _lock = match host.state.lock() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            complain(&RunError::Locked);
            return Exit::Locked;
        }
        Err(error) => {
            complain(&RunError::Lock(error));
            return Exit::Host;
        }
    };
    let engine = Engine::new(host, settings.look_settings(), settings.stage.clone());
    let mut agent = Agent::new(engine, settings.config(&node_name(settings)));
    let command = match wish {
        Wish::Stage(release) => ManualCommand::Stage(release),
        Wish::Commit => ManualCommand::Commit,
        Wish::Revert { accept_state } => ManualCommand::Revert { accept_state },
    };
    tracing::warn!(action = command.name(), user, "a person on the node asks for something, and no agent runs");
    if let Err(error) = agent.handle(Event::Manual { command, user }) {
        let _: Restless = error;
        complain(&error);
        return Exit::Internal;
    }
    let status = status(agent.state(), agent.now());
    report(&Answer { done: status.last_error.is_none(), problem: status.last_error.clone(), status })
}

fn report(answer: &Answer) -> Exit {
    if let Some(problem) = &answer.problem {
        print(&format!("not done: {} ({})\n", problem.message, problem.category.as_str()));
        return Exit::Refused;
    }
    if !answer.done {
        print("it goes on; bascule-agent status shows how far it is\n");
        return Exit::Done;
    }
    print(&super::status::table(&answer.status));
    Exit::Done
}

/// The status of the running agent.
pub(super) async fn ask_status(path: &Path) -> Result<NodeUpdateStatus, AskError> {
    let bytes = ask(path, hyper::Method::GET, "/status", Vec::new()).await?;
    serde_json::from_slice(&bytes).map_err(|error| AskError::Connection(path.display().to_string(), error.into()))
}

async fn ask(path: &Path, method: hyper::Method, at: &str, body: Vec<u8>) -> Result<Bytes, AskError> {
    let place = path.display().to_string();
    let broken = |error: Box<dyn std::error::Error + Send + Sync>| AskError::Connection(place.clone(), error);
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(AskError::Nobody(place));
        }
        Err(error) => return Err(broken(error.into())),
    };
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.into()))?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(at)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.into()))?;
        let response = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
        if !response.status().is_success() {
            return Err(AskError::Status(response.status()));
        }
        let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(broken)?;
        Ok(collected.to_bytes())
    };
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(broken(format!("no answer within {} s", TIMEOUT.as_secs()).into())),
    }
}
