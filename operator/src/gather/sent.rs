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
