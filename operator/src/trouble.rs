//! Tells what keeps the operator from acting where people look who read no log: as an event on its own pod, for `kubectl describe`.

use crate::events::{About, Events, Notice};
use bascule_api::ObjectRef;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// After what time the same is told again: API servers keep an event for an hour.
pub(crate) const AGAIN: Duration = Duration::from_secs(1_800);

/// Tells it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    events: Events,
    pods: Api<Pod>,
    own: ObjectRef,
    last: Arc<Mutex<Option<Last>>>,
}

/// What was told last.
#[derive(Debug)]
struct Last {
    note: String,
    at: Instant,
}

impl Last {
    /// Whether there is no need to tell it now.
    fn serves(&self, note: &str, now: Instant) -> bool {
        self.note == note && now.duration_since(self.at) < AGAIN
    }
}

impl Trouble {
    /// For the replica that runs in the pod of this name, if it runs in one.
    pub(crate) fn new(client: Client, events: Events, namespace: &str, pod: &str) -> Self {
        let own = ObjectRef { kind: "Pod".to_owned(), namespace: Some(namespace.to_owned()), name: pod.to_owned() };
        Self { events, pods: Api::namespaced(client, namespace), own, last: Arc::default() }
    }

    /// Tells it, once in [`AGAIN`] as long as it is the same. Where there is no such pod, or it can't be looked at, nobody is told.
    pub(crate) async fn tell(&self, note: &str) {
        let now = Instant::now();
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last().as_ref().is_some_and(|last| last.serves(note, now)) {
            return;
        }
        // The operator may list pods, and not get one.
        let own = ListParams::default().fields(&format!("metadata.name={}", self.own.name)).limit(1);
        let found = match self.pods.list_metadata(&own).await {
            Ok(found) => found.items.into_iter().next(),
            Err(error) => return tracing::debug!(error = crate::one_line(&error), "the operator's pod can't be read"),
        };
        let Some(uid) = found.and_then(|pod| pod.metadata.uid) else { return };
        *last() = Some(Last { note: note.to_owned(), at: now });
        self.events.tell(Notice {
            about: About::pod(&self.own, &uid),
            warning: true,
            reason: "CannotAct",
            action: "Wait",
            note: note.to_owned(),
            related: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use serde_json::json;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_same_is_told_again_before_its_event_is_forgotten() {
        let at = Instant::now();
        let last = Last { note: "a".to_owned(), at };
        assert!(last.serves("a", at + AGAIN - Duration::from_secs(1)));
        assert!(!last.serves("a", at + AGAIN) && !last.serves("b", at));
    }

    #[tokio::test]
    async fn it_is_told_once_on_the_operators_own_pod_as_soon_as_that_is_seen() {
        bascule_tests::install_tls_provider();
        let there = Arc::new(AtomicBool::new(false));
        let shown = Arc::clone(&there);
        let pods = async move || {
            let pod = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "operator-1", "namespace": "bascule-system", "uid": "u"}});
            let items = if shown.load(Ordering::SeqCst) { vec![pod] } else { Vec::new() };
            Json(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {},
                "items": items}))
        };
        let router = Router::new().route("/api/v1/namespaces/bascule-system/pods", get(pods));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let (events, mut told) = Events::to_nowhere();
        let trouble = Trouble::new(client, events, "bascule-system", "operator-1");

        trouble.tell("apply manifests/crds").await;
        assert!(told.try_recv().is_err(), "there is no such pod");
        there.store(true, Ordering::SeqCst);
        trouble.tell("apply manifests/crds").await;
        trouble.tell("apply manifests/crds").await;
        trouble.tell("apply manifests/operator").await;
        let notes: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        assert_eq!(
            notes.iter().map(|notice| notice.note.as_str()).collect::<Vec<_>>(),
            ["apply manifests/crds", "apply manifests/operator"]
        );
        let about = &notes[0].about;
        assert_eq!((about.kind, about.name.as_str(), about.uid.as_str()), ("Pod", "operator-1", "u"));
        assert!(notes[0].warning && about.namespace.as_deref() == Some("bascule-system"));
    }
}
