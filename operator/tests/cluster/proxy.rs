//! A proxy in front of the real API server that misbehaves as networks and overloaded servers do.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bascule_tests::control_plane::ControlPlane;
use chrono::TimeDelta;
use futures::StreamExt as _;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// What went wrong how often.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub conflicts: u64,
    pub lost: u64,
    pub overloads: u64,
    pub gone: u64,
    pub cut: u64,
}

struct Shared {
    client: reqwest::Client,
    server: String,
    broken: AtomicBool,
    /// Kinds (in the plural, as in paths) whose watches bring nothing more.
    late: watch::Sender<Vec<&'static str>>,
    /// Writes to what contains one of these are never answered, and never done.
    silent: Mutex<Vec<String>>,
    /// How much later it is on the API server, by its answers.
    later: TimeDelta,
    /// The minor version that the API server is said to have.
    minor: Mutex<Option<&'static str>>,
    /// Writes to what contains the first are denied with the second.
    denied: Mutex<Vec<(String, String)>>,
    denials: AtomicU64,
    writes: AtomicU64,
    watches: AtomicU64,
    counts: Mutex<Counts>,
}

/// Plain HTTP on loopback; stops with the runtime.
pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    pub async fn start(control_plane: &ControlPlane) -> Self {
        Self::that(control_plane, true, TimeDelta::zero()).await
    }

    /// One that hands everything on until it is told otherwise.
    pub async fn honest(control_plane: &ControlPlane) -> Self {
        Self::that(control_plane, false, TimeDelta::zero()).await
    }

    /// The same in front of an API server on which it is so much later.
    pub async fn later(control_plane: &ControlPlane, by: TimeDelta) -> Self {
        Self::that(control_plane, false, by).await
    }

    /// From now on watches of these kinds bring nothing more, though they stay open.
    pub fn hold_back_watches_of(&self, kinds: Vec<&'static str>) {
        self.shared.late.send_replace(kinds);
    }

    /// From now on writes to paths that contain this are never answered.
    pub fn be_silent_about(&self, path: &str) {
        self.shared.silent.lock().unwrap().push(path.to_owned());
    }

    /// From now on the API server says that it is Kubernetes 1.`minor`, or again what it is.
    pub fn pretend_to_be(&self, minor: Option<&'static str>) {
        *self.shared.minor.lock().unwrap() = minor;
    }

    /// From now on writes to paths that contain this are denied in these words, as an admission webhook does.
    pub fn deny(&self, path: &str, words: &str) {
        self.shared.denied.lock().unwrap().push((path.to_owned(), words.to_owned()));
    }

    /// How many writes were denied so.
    pub fn denials(&self) -> u64 {
        self.shared.denials.load(Ordering::SeqCst)
    }

    async fn that(control_plane: &ControlPlane, broken: bool, later: TimeDelta) -> Self {
        let authority = reqwest::Certificate::from_pem(control_plane.authority_certificate().as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
        let shared = Arc::new(Shared {
            client,
            server: control_plane.server().to_owned(),
            broken: AtomicBool::new(broken),
            late: watch::Sender::new(Vec::new()),
            silent: Mutex::default(),
            later,
            minor: Mutex::default(),
            denied: Mutex::default(),
            denials: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            watches: AtomicU64::new(0),
            counts: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(handle).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// From now on it behaves.
    pub fn mend(&self) {
        self.shared.broken.store(false, Ordering::SeqCst);
    }

    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message,
        "code": code.as_u16(),
    });
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
    let watching = query.contains("watch=true") || query.contains("watch=1");
    let writes = parts.method != Method::GET;
    let lease = query.contains("/leases") || query.contains("/events");
    let broken = shared.broken.load(Ordering::SeqCst) && !lease;
    if writes && shared.silent.lock().unwrap().iter().any(|part| query.contains(part)) {
        return std::future::pending().await;
    }
    let words = |(part, words): &(String, String)| query.contains(part.as_str()).then(|| words.clone());
    let denied = if writes { shared.denied.lock().unwrap().iter().find_map(words) } else { None };
    if let Some(words) = denied {
        shared.denials.fetch_add(1, Ordering::SeqCst);
        return status(StatusCode::FORBIDDEN, "Forbidden", &words);
    }
    let note = |what: fn(&mut Counts) -> &mut u64| *what(&mut shared.counts.lock().unwrap()) += 1;
    let mut lose = false;
    if broken {
        // Slow, always.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    if broken && writes {
        match shared.writes.fetch_add(1, Ordering::SeqCst) % 6 {
            1 => {
                note(|counts| &mut counts.conflicts);
                let message = "Operation cannot be fulfilled: the object has been modified";
                return status(StatusCode::CONFLICT, "Conflict", message);
            }
            3 => {
                note(|counts| &mut counts.overloads);
                return status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "etcdserver: leader changed");
            }
            // Done, but nobody is told.
            5 => lose = true,
            _ => {}
        }
    }
    if broken && watching && shared.watches.fetch_add(1, Ordering::SeqCst) % 5 == 4 {
        note(|counts| &mut counts.gone);
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
            "message": "too old resource version", "code": 410,
        }});
        return (StatusCode::OK, [("content-type", "application/json")], format!("{gone}\n")).into_response();
    }
    let mut headers = HeaderMap::new();
    for name in ["authorization", "accept", "content-type", "user-agent"] {
        if let Some(value) = parts.headers.get(name) {
            headers.insert(axum::http::HeaderName::from_static(name), value.clone());
        }
    }
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap_or_default();
    let url = format!("{}{query}", shared.server);
    let sent = shared.client.request(parts.method, url).headers(headers).body(body).send().await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(error) => return status(StatusCode::BAD_GATEWAY, "BadGateway", &error.to_string()),
    };
    if lose {
        note(|counts| &mut counts.lost);
        return status(StatusCode::GATEWAY_TIMEOUT, "Timeout", "the answer was lost on its way");
    }
    let minor = *shared.minor.lock().unwrap();
    if let Some(minor) = minor.filter(|_| query == "/version") {
        let mut version: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        version["minor"] = json!(minor);
        return (StatusCode::OK, [("content-type", "application/json")], version.to_string()).into_response();
    }
    let code = answer.status();
    let kind = answer.headers().get("content-type").cloned();
    let stream = answer.bytes_stream();
    let body = if broken && watching {
        // Every watch breaks off after two seconds.
        note(|counts| &mut counts.cut);
        Body::from_stream(stream.take_until(tokio::time::sleep(Duration::from_secs(2))))
    } else if watching {
        // While the kind is held back, what came waits here.
        let late = shared.late.subscribe();
        Body::from_stream(stream.then(move |chunk| {
            let (mut late, path) = (late.clone(), query.clone());
            async move {
                let _ = late.wait_for(|kinds| !kinds.iter().any(|kind| path.contains(&format!("/{kind}?")))).await;
                chunk
            }
        }))
    } else {
        Body::from_stream(stream)
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    let date = (bascule_tests::clock::now() + shared.later).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    response.headers_mut().insert("date", HeaderValue::from_str(&date).unwrap());
    response
}
