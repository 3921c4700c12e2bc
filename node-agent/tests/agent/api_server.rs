//! As much of an API server as the agent talks to: list, watch and the status of NodeUpdates, with a switch for refusing.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;

/// What the server holds and was told.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// The objects by name.
    pub(crate) objects: std::collections::BTreeMap<String, Value>,
    /// Deleted objects by name, with the version of the deletion: a watch that begins before it tells of it.
    deleted: std::collections::BTreeMap<String, (u64, Value)>,
    /// Status patches: name, query, body.
    pub(crate) patches: Vec<(String, String, Value)>,
    /// Field selectors of lists and watches.
    pub(crate) selectors: Vec<String>,
    /// What was asked of each watch.
    pub(crate) watches: Vec<std::collections::BTreeMap<String, String>>,
    /// Whether watches are to be sent a bookmark with the next change.
    bookmark: bool,
    /// Tokens that came, in order.
    pub(crate) tokens: Vec<String>,
    /// Whether every request is answered with 401.
    pub(crate) refuse: bool,
}

/// The server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct ApiServer {
    pub(crate) held: Arc<Mutex<Held>>,
    changed: watch::Sender<u64>,
    address: std::net::SocketAddr,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server =
            Self { held: Arc::default(), changed: watch::channel(1).0, address: listener.local_addr().unwrap() };
        let app = Router::new()
            .route("/apis/bascule.dev/v1alpha1/nodeupdates", get(list))
            .route("/apis/bascule.dev/v1alpha1/nodeupdates/{name}/status", patch(write))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    /// A kubeconfig with a token in a file, as a node would have it.
    pub(crate) fn kubeconfig(&self, folder: &std::path::Path) -> PathBuf {
        let token = folder.join("token");
        std::fs::write(&token, "first").unwrap();
        let path = folder.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }

    /// Creates or changes an object.
    pub(crate) fn put(&self, name: &str, spec: &Value) {
        let next = self.next();
        let object = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": next, "resourceVersion": next.to_string()},
            "spec": spec,
        });
        self.held.lock().unwrap().objects.insert(name.to_owned(), object);
        self.changed.send_replace(next);
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, name: &str) {
        let next = self.next();
        let mut held = self.held.lock().unwrap();
        if let Some(object) = held.objects.remove(name) {
            held.deleted.insert(name.to_owned(), (next, object));
        }
        drop(held);
        self.changed.send_replace(next);
    }

    /// Sends a bookmark to the watch that is open.
    pub(crate) fn bookmark(&self) {
        self.held.lock().unwrap().bookmark = true;
        let next = self.next();
        self.changed.send_replace(next);
    }

    /// Answers 401 to everything, or not; open watches end.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.held.lock().unwrap().refuse = refuse;
        let next = self.next();
        self.changed.send_replace(next);
    }

    fn next(&self) -> u64 {
        *self.changed.borrow() + 1
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let mut held = self.held.lock().unwrap();
        let token = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        held.tokens.push(token.to_owned());
        if held.refuse {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Unauthorized", "reason": "Unauthorized", "code": 401});
            return Err(Box::new((StatusCode::UNAUTHORIZED, axum::Json(status)).into_response()));
        }
        Ok(())
    }
}

fn selected(selector: &str) -> String {
    selector.trim_start_matches("metadata.name=").to_owned()
}

async fn list(
    State(server): State<ApiServer>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = server.admit(&headers) {
        return *refusal;
    }
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    server.held.lock().unwrap().selectors.push(selector.clone());
    let name = selected(&selector);
    let mut changes = server.changed.subscribe();
    if query.get("watch").map(String::as_str) != Some("true") {
        let items: Vec<Value> = server.held.lock().unwrap().objects.get(&name).cloned().into_iter().collect();
        let version = changes.borrow().to_string();
        return axum::Json(json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdateList",
            "metadata": {"resourceVersion": version}, "items": items}))
        .into_response();
    }
    server.held.lock().unwrap().watches.push(query.clone());
    // A watch begins behind what its resource version has shown.
    let seen: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if *changes.borrow() > seen {
        changes.mark_changed();
    }
    let before = {
        let held = server.held.lock().unwrap();
        let missed = held.deleted.get(&name).filter(|(at, _)| *at > seen).map(|(_, object)| object.clone());
        held.objects.get(&name).cloned().or(missed)
    };
    let events =
        futures::stream::unfold((server, changes, name, before), |(server, mut changes, name, before)| async move {
            loop {
                changes.changed().await.ok()?;
                let version = changes.borrow().to_string();
                let (now, refuse, bookmark) = {
                    let mut held = server.held.lock().unwrap();
                    (held.objects.get(&name).cloned(), held.refuse, std::mem::take(&mut held.bookmark))
                };
                if refuse {
                    return None;
                }
                let event = match (&before, &now) {
                    _ if bookmark => json!({"type": "BOOKMARK", "object": {"apiVersion": "bascule.dev/v1alpha1",
                        "kind": "NodeUpdate", "metadata": {"resourceVersion": version}}}),
                    (Some(gone), None) => json!({"type": "DELETED", "object": gone}),
                    (_, Some(object)) => json!({"type": "MODIFIED", "object": object}),
                    (None, None) => continue,
                };
                return Some((Ok::<_, Infallible>(format!("{event}\n")), (server, changes, name, now)));
            }
        });
    Body::from_stream(events.boxed()).into_response()
}

async fn write(
    State(server): State<ApiServer>,
    Path(name): Path<String>,
    axum::extract::RawQuery(query): axum::extract::RawQuery,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Err(refusal) = server.admit(&headers) {
        return *refusal;
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    let mut held = server.held.lock().unwrap();
    held.patches.push((name.clone(), query.unwrap_or_default(), body.clone()));
    let Some(object) = held.objects.get_mut(&name) else {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "not found", "reason": "NotFound", "code": 404});
        return (StatusCode::NOT_FOUND, axum::Json(status)).into_response();
    };
    object["status"] = body["status"].clone();
    axum::Json(object.clone()).into_response()
}
