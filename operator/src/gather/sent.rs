//! Takes objects into their cache as the API server sends them, those that this version does not understand among them.

use super::{
    cache::{Cache, Fact},
    state::version_of,
};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{Resource, runtime::watcher};

pub(super) use bascule_facts::Sent;

/// Takes in what a watch brings.
pub(super) fn watched<T: Fact>(cache: &Cache<T>, event: watcher::Event<Sent<T::Raw>>)
where
    T::Raw: DeserializeOwned,
{
    match event {
        watcher::Event::Init => cache.apply(&watcher::Event::Init),
        watcher::Event::InitDone => cache.apply(&watcher::Event::InitDone),
        watcher::Event::Apply(sent) | watcher::Event::InitApply(sent) => take(cache, sent),
        watcher::Event::Delete(sent) => cache.deleted(sent.meta()),
    }
}

/// Takes in an object as it is. Of one that can't be read the log tells once for each thing that is met in it: an agent may write such an
/// object every few seconds.
pub(super) fn take<T: Fact>(cache: &Cache<T>, sent: Sent<T::Raw>)
where
    T::Raw: DeserializeOwned,
{
    match sent.readable(T::SAID) {
        Ok(raw) => cache.written(&raw),
        Err(untyped) if cache.presume(&untyped) => {
            let told = untyped.told(&<T::Raw as Resource>::kind(&()));
            let version = version_of(untyped.metadata());
            tracing::error!(object = %told.object, version, why = told.why, "an object can't be read, and is held as it is");
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        gather::{Key, UpdateFact},
    };
    use bascule_api::NodeUpdate;
    use serde_json::{Value, json};
    use std::sync::Arc;
    use tokio::sync::watch;

    fn object(version: u64, status: &Value) -> Value {
        json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": "u", "resourceVersion": version.to_string(), "generation": 4},
            "spec": {"policy": "workers", "goal": "Idle"}, "status": status,
        })
    }

    fn sent(version: u64, status: &Value) -> Sent<NodeUpdate> {
        serde_json::from_value(object(version, status)).unwrap()
    }

    fn failed(category: &str) -> Value {
        json!({
            "bootID": "b1",
            "lastError": {"category": category, "message": "m", "attempts": 1, "at": "2026-11-21T12:00:00Z"},
        })
    }

    fn cache() -> Cache<UpdateFact> {
        Cache::new([Arc::new(watch::Sender::new(0))], &Clock::system())
    }

    #[test]
    fn an_explanation_that_is_not_understood_hides_nothing_and_is_written_anew() {
        let mut status = failed("Network");
        status["rollout"] = json!({"state": "Waiting", "reason": "Eclipse"});
        let cache = cache();
        take(&cache, sent(7, &status));
        let fact = cache.get(&Key::cluster("n1")).unwrap();
        assert_eq!(fact.rollout, None);
        assert_eq!(fact.facts.status.last_error.as_ref().map(|error| error.attempts), Some(1));
        assert!(cache.unreadable(&Key::cluster("n1")).is_none());
    }
}
