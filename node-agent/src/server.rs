//! The agent's own small server: metrics, health, and (on the Unix socket only) break-glass commands.
//!
//! `GET /metrics`, `GET /healthz`, `GET /status`, and over the Unix socket, which only root can open, `POST /manual`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::{get, post};
use bascule_api::{LastError, NodeUpdateStatus, ReleaseRef};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Metrics;
use crate::settings::Listen;

/// How long a command may take before the answer is that it goes on.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A break-glass command as it goes over the socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "action", deny_unknown_fields)]
pub enum Request {
    /// Bring a release into the inactive slot.
    Stage {
        /// Which.
        release: ReleaseRef,
        /// Who asks.
        user: Option<String>,
    },
    /// Make the running trial permanent.
    Commit {
        /// Who asks.
        user: Option<String>,
    },
    /// Go back to the other slot.
    Revert {
        /// Also to a release that is made for an older state of the machine.
        #[serde(default, rename = "acceptState", skip_serializing_if = "std::ops::Not::not")]
        accept_state: bool,
        /// Who asks.
        user: Option<String>,
    },
}

/// How a command went.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// It is done, or the machine goes down for it.
    pub done: bool,
    /// What stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<LastError>,
    /// The status now.
    pub status: NodeUpdateStatus,
}

/// A command on its way to the agent's loop.
#[derive(Debug)]
pub struct Command {
    /// What.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// What the server shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The status as of now.
    pub status: watch::Receiver<NodeUpdateStatus>,
    /// Where commands go.
    pub commands: mpsc::Sender<Command>,
}

/// Why the server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("the agent can't listen on {place}")]
pub struct ListenError {
    place: String,
    #[source]
    source: io::Error,
}

/// A server that is bound and not yet serving.
pub enum Bound {
    /// Nothing to serve.
    Off,
    /// On a Unix socket.
    Unix(tokio::net::UnixListener, PathBuf),
    /// On TCP.
    Tcp(tokio::net::TcpListener),
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bound")
    }
}

/// Binds. A socket file that is left of an agent that is gone is replaced.
///
/// # Errors
/// [`ListenError`].
pub async fn bind(listen: &Listen) -> Result<Bound, ListenError> {
    match listen {
        Listen::Off => Ok(Bound::Off),
        Listen::Tcp(address) => {
            let failed = |source| ListenError { place: address.to_string(), source };
            Ok(Bound::Tcp(tokio::net::TcpListener::bind(address).await.map_err(failed)?))
        }
        Listen::Unix(path) => {
            let failed = |source| ListenError { place: path.display().to_string(), source };
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(failed)?;
            }
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let listener = tokio::net::UnixListener::bind(path).map_err(failed)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
            Ok(Bound::Unix(listener, path.clone()))
        }
    }
}

/// Serves until it is dropped.
pub async fn serve(bound: Bound, shown: Shown) {
    let readable =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).route("/status", get(status));
    let outcome = match bound {
        Bound::Off => return,
        Bound::Tcp(listener) => axum::serve(listener, readable.with_state(shown)).await,
        Bound::Unix(listener, _) => {
            axum::serve(listener, readable.route("/manual", post(manual)).with_state(shown)).await
        }
    };
    if let Err(error) = outcome {
        tracing::error!(%error, "the agent's server ended");
    }
}

async fn metrics(Shared(shown): Shared<Shown>) -> String {
    shown.metrics.text()
}

async fn healthz(Shared(shown): Shared<Shown>) -> (StatusCode, String) {
    // Trouble with a release or the API server is told in the status; restarting the agent would not mend it.
    match shown.commands.is_closed() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop ended\n".to_owned()),
        false => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn status(Shared(shown): Shared<Shown>) -> Json<NodeUpdateStatus> {
    Json(shown.status.borrow().clone())
}

async fn manual(Shared(shown): Shared<Shown>, Json(request): Json<Request>) -> Result<Json<Answer>, StatusCode> {
    let (answer, answered) = oneshot::channel();
    let sent = shown.commands.send(Command { request, answer }).await;
    sent.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    match tokio::time::timeout(COMMAND_TIMEOUT, answered).await {
        Ok(Ok(answer)) => Ok(Json(answer)),
        Ok(Err(_)) => Err(StatusCode::SERVICE_UNAVAILABLE),
        Err(_) => {
            let status = shown.status.borrow().clone();
            Ok(Json(Answer { done: false, problem: status.last_error.clone(), status }))
        }
    }
}
