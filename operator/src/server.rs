//! Serves /metrics, /report, /healthz and /readyz.

use crate::{
    live::{self, Live},
    metrics::Metrics,
    pulse::Pulse,
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::{TcpListener, TcpSocket};

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: choose another with --listen or --dashboard")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// What /readyz says: nothing missing means ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Missing>>);

#[derive(Debug, Default)]
struct Missing {
    /// Kinds that were not read yet.
    unread: Vec<&'static str>,
    /// Sentences about what is not installed as it must be.
    blocking: Vec<String>,
    /// Why it does not lead though it might.
    kept: Option<String>,
    /// Sentences about what nobody waits for.
    notes: Vec<String>,
}

impl Readiness {
    /// Sets what was not read yet.
    pub fn set(&self, unread: Vec<&'static str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unread = unread;
    }

    /// Sets what only a person can mend.
    pub fn block(&self, sentences: &[String]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).blocking = sentences.to_vec();
    }

    /// Sets why it does not lead though it might, which makes nobody unready.
    pub fn keep(&self, sentence: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).kept = sentence;
    }

    /// Sets what is told besides, whether something is missing or not.
    pub fn note(&self, sentences: Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).notes = sentences;
    }

    /// Whether nothing is missing, and what is said.
    fn told(&self) -> (bool, String) {
        let missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (ready, mut lines) = if !missing.blocking.is_empty() {
            (false, missing.blocking.clone())
        } else if !missing.unread.is_empty() {
            (false, vec![format!("still reading: {}", missing.unread.join(", "))])
        } else {
            (true, vec!["ok".to_owned()])
        };
        lines.extend(missing.kept.iter().chain(&missing.notes).cloned());
        (ready, format!("{}\n", lines.join("\n")))
    }
}

/// Connections that may wait to be taken.
const BACKLOG: u32 = 128;

/// Listens. The caller runs [`serve`] with what it gets. `[::]` takes connections of both families, whatever the host's
/// `net.ipv6.bindv6only` says, and is `0.0.0.0` on a host that was started without IPv6.
///
/// # Errors
/// [`ServerError::Listen`].
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listener = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4().and_then(|socket| bound(socket, address)),
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            Ok(socket) => both_families(&socket, v6.ip().is_unspecified()).and_then(|()| bound(socket, address)),
            Err(error) if v6.ip().is_unspecified() && without_ipv6(&error) => {
                let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port()));
                TcpSocket::new_v4().and_then(|socket| bound(socket, address))
            }
            Err(error) => Err(error),
        },
    };
    listener.map_err(|source| ServerError::Listen { address, source })
}

fn both_families(socket: &TcpSocket, wanted: bool) -> std::io::Result<()> {
    if wanted { Ok(rustix::net::sockopt::set_ipv6_v6only(socket, false)?) } else { Ok(()) }
}

/// `ipv6.disable=1` on the kernel's command line.
fn without_ipv6(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn bound(socket: TcpSocket, address: SocketAddr) -> std::io::Result<TcpListener> {
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness, report: Live) -> std::io::Result<()> {
    let pulse = metrics.pulse();
    let router = Router::new()
        .route("/metrics", get(metrics_text).with_state(metrics))
        .route(bascule_api::LIVE_REPORT_PATH, get(live::answer).with_state(report))
        .route("/healthz", get(alive).with_state(pulse))
        .route(bascule_api::READY_PATH, get(ready).with_state(readiness));
    axum::serve(listener, router).await
}

async fn metrics_text(State(metrics): State<Metrics>) -> impl IntoResponse {
    match metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn alive(State(pulse): State<Pulse>) -> (StatusCode, String) {
    match pulse.stopped() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => {
            tracing::error!(why, "the operator does not go on, and is to be restarted");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
    }
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.told() {
        (true, says) => (StatusCode::OK, says),
        (false, says) => (StatusCode::SERVICE_UNAVAILABLE, says),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;
    use tokio::net::TcpStream;

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_makes_no_plan_any_more_is_not_alive() {
        let metrics = Metrics::new();
        let live = Live::beating(metrics.pulse());
        let says = async || alive(State(metrics.pulse())).await.0;
        live.leads();
        tokio::time::advance(std::time::Duration::from_secs(170)).await;
        assert_eq!(says().await, StatusCode::OK);
        // Nobody knows for how long the API server is waited for.
        metrics.planned(std::time::Duration::from_millis(3));
        tokio::time::advance(std::time::Duration::from_secs(3_600)).await;
        assert_eq!(says().await, StatusCode::OK);
        live.leads();
        tokio::time::advance(std::time::Duration::from_secs(200)).await;
        assert_eq!(says().await, StatusCode::SERVICE_UNAVAILABLE);
        live.follows(None);
        assert_eq!(says().await, StatusCode::OK);
    }

    /// One object that can't be read must not keep a new version's replicas from ever being ready.
    #[tokio::test]
    async fn what_nobody_waits_for_is_told_and_keeps_nobody_from_being_ready() {
        let readiness = Readiness::default();
        let says = async || ready(State(readiness.clone())).await;
        assert_eq!(says().await, (StatusCode::OK, "ok\n".to_owned()));
        readiness.note(vec!["NodeUpdate n1 can't be read".to_owned()]);
        assert_eq!(says().await, (StatusCode::OK, "ok\nNodeUpdate n1 can't be read\n".to_owned()));
        readiness.keep(Some("another one leads".to_owned()));
        let both = "ok\nanother one leads\nNodeUpdate n1 can't be read\n".to_owned();
        assert_eq!(says().await, (StatusCode::OK, both));
        readiness.keep(None);
        readiness.set(vec!["Pod"]);
        let reading = "still reading: Pod\nNodeUpdate n1 can't be read\n".to_owned();
        assert_eq!(says().await, (StatusCode::SERVICE_UNAVAILABLE, reading));
        readiness.block(&["apply manifests/crds".to_owned()]);
        let missing = "apply manifests/crds\nNodeUpdate n1 can't be read\n".to_owned();
        assert_eq!(says().await, (StatusCode::SERVICE_UNAVAILABLE, missing));
    }

    #[tokio::test]
    async fn the_default_address_takes_connections_of_both_families() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let refused = listen(address).unwrap_err().to_string();
        assert!(refused.contains(&address.to_string()) && refused.contains("--listen"), "{refused}");
    }
}
