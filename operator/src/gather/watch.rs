//! Keeps a cache in step with the API server. A watch that drops or is told 410 Gone begins anew by itself (kube-runtime's watcher); the
//! cache shows the old state until the new list is complete.
//!
//! The first objects come one by one, as events of the watch itself (Kubernetes API Concepts, "Streaming lists"), where the API server
//! offers that: thousands that come together would be most of what the operator ever takes of memory. Whoever is asked so may answer from
//! a cache of its own that is late, as a watch is. So this is for what nobody acted upon yet: from then on everything is listed anew by
//! consistent lists, a few objects at a time, and what such a list does not name is gone.

use super::{
    cache::{Cache, Fact},
    sent::{Sent, watched},
};
use crate::metrics::Metrics;
use futures::StreamExt as _;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{fmt::Debug, pin::pin, time::Duration};

/// How many objects a list brings at once. They are held together while they are read: Nodes and pods of tens of kilobytes make some
/// megabytes.
pub(super) const PAGE: u32 = 250;
/// How long the first objects may be waited for: whoever does not know that they are asked for (Kubernetes before 1.27, stand-ins) never
/// says that these were all. Longer than any pause between two tries.
const SILENCE: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub(super) async fn run<T>(api: Api<Sent<T::Raw>>, config: watcher::Config, cache: Cache<T>, metrics: Metrics)
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = <T::Raw as Resource>::kind(&()).into_owned();
    stream(&kind, api.clone(), config.clone().streaming_lists(), &cache, &metrics).await;
    let mut events = pin!(watcher(api, config.page_size(PAGE)).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => watched(&cache, event),
            Err(error) => note(&kind, &error, &metrics),
        }
    }
}

/// Runs until everything is to be listed: because the API server does not stream its objects, or because it is not known any more what
/// has changed since.
async fn stream<T>(kind: &str, api: Api<Sent<T::Raw>>, config: watcher::Config, cache: &Cache<T>, metrics: &Metrics)
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    loop {
        let patience = if cache.is_synced() { Duration::MAX } else { SILENCE };
        match tokio::time::timeout(patience, events.next()).await {
            Ok(Some(Ok(watcher::Event::Init))) if cache.is_synced() => return,
            Ok(Some(Ok(event))) => watched(cache, event),
            Ok(Some(Err(error))) if is_refused(&error) || (!cache.is_synced() && is_broken_off(&error)) => {
                tracing::debug!(kind, error = crate::one_line(&error), "the API server does not stream lists");
                return;
            }
            Ok(Some(Err(error))) => note(kind, &error, metrics),
            Ok(None) => return,
            Err(_) => {
                tracing::info!(
                    kind,
                    "the API server does not end the list that it streams: the objects are asked for by lists"
                );
                return;
            }
        }
    }
}

/// Whether the API server does not stream lists, because its feature `WatchList` is off.
fn is_refused(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

/// Whether the API server says in the stream that it can't bring the objects, for instance because its storage does not tell how far it
/// is: the watch would be begun, and broken off, again and again. client-go too asks for a list then.
const fn is_broken_off(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(_))
}

fn note(kind: &str, error: &watcher::Error, metrics: &Metrics) {
    metrics.watch_failed(kind);
    if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
        tracing::info!(kind, "the watch is too old (410 Gone) and lists anew");
    } else {
        tracing::warn!(kind, error = crate::one_line(error), "the watch failed and is tried again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        gather::{FreezeFact, Key},
    };
    use axum::{
        Json, Router,
        body::{Body, Bytes},
        extract::State,
        http::{StatusCode, Uri},
        response::{IntoResponse as _, Response},
    };
    use bascule_api::Freeze;
    use kube::{Client, Config};
    use serde_json::{Value, json};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::sync::{Notify, watch};

    /// What becomes of a watch that asks for the first objects.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Streams {
        Them,
        /// It is refused.
        Nothing,
        /// It begins, and says that there is nothing to come.
        AnError,
    }

    /// An API server with one Freeze: `stop` in what it streams, `listed` in its lists.
    struct Server {
        streams: Streams,
        lists: AtomicUsize,
        /// When told, a watch that streamed its list is too old.
        too_old: Notify,
    }

    fn freeze(name: &str, version: u64) -> Value {
        json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze",
            "metadata": {"name": name, "uid": name, "resourceVersion": version.to_string()},
            "spec": {"reason": "incident", "duration": "1h"},
        })
    }

    async fn answer(State(server): State<Arc<Server>>, uri: Uri) -> Response {
        let query = uri.query().unwrap_or_default();
        if !query.contains("watch=true") {
            server.lists.fetch_add(1, Ordering::SeqCst);
            assert!(query.contains("limit=250") && !query.contains("resourceVersion=0"), "{query}");
            let metadata = json!({"resourceVersion": "9"});
            let items = [freeze("listed", 8)];
            return Json(json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}))
                .into_response();
        }
        if !query.contains("sendInitialEvents=true") {
            return Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()).into_response();
        }
        if server.streams == Streams::Nothing {
            let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let status =
                json!({"kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": message});
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(status)).into_response();
        }
        let line = |event: Value| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n")));
        if server.streams == Streams::AnError {
            let error = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 500,
                "reason": "InternalError", "message": "a watch stream was requested, which the storage does not support"}});
            return Body::from_stream(futures::stream::iter([line(error)])).into_response();
        }
        let metadata = json!({"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}});
        let end = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": metadata});
        let events =
            [json!({"type": "ADDED", "object": freeze("stop", 5)}), json!({"type": "BOOKMARK", "object": end})];
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}});
        let later = futures::stream::once(async move {
            server.too_old.notified().await;
            line(gone)
        });
        let first = futures::stream::iter(events.map(line));
        Body::from_stream(first.chain(later).chain(futures::stream::pending())).into_response()
    }

    /// The server, and a cache that is kept in step with it.
    async fn watched_of(streams: Streams) -> (Arc<Server>, Cache<FreezeFact>) {
        bascule_tests::install_tls_provider();
        let server = Arc::new(Server { streams, lists: AtomicUsize::new(0), too_old: Notify::new() });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let cache: Cache<FreezeFact> = Cache::new([Arc::new(watch::Sender::new(0))], &Clock::system());
        let api: Api<Sent<Freeze>> = Api::all(client);
        tokio::spawn(run(api, watcher::Config::default(), cache.clone(), Metrics::new()));
        (server, cache)
    }

    async fn until_knows(cache: &Cache<FreezeFact>, name: &str) {
        let knows = async {
            while !(cache.is_synced() && cache.len() == 1 && cache.get(&Key::cluster(name)).is_some()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), knows).await.unwrap();
    }

    #[tokio::test]
    async fn the_first_objects_come_by_the_watch_and_all_that_come_later_by_consistent_lists() {
        let (server, cache) = watched_of(Streams::Them).await;
        until_knows(&cache, "stop").await;
        assert_eq!(server.lists.load(Ordering::SeqCst), 0);
        server.too_old.notify_one();
        until_knows(&cache, "listed").await;
        assert_eq!(server.lists.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_stream_lists_is_asked_for_them() {
        for streams in [Streams::Nothing, Streams::AnError] {
            let (server, cache) = watched_of(streams).await;
            until_knows(&cache, "listed").await;
            assert_eq!(server.lists.load(Ordering::SeqCst), 1);
        }
    }
}
