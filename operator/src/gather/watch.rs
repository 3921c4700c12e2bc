//! Keeps a cache in step with the API server. A watch that drops or is told 410 Gone lists anew by itself
//! (kube-runtime's watcher); the cache shows the old state until the new list is complete.

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
use std::{fmt::Debug, pin::pin};

/// Runs until it is dropped.
pub(super) async fn run<T>(api: Api<Sent<T::Raw>>, config: watcher::Config, cache: Cache<T>, metrics: Metrics)
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = <T::Raw as Resource>::kind(&()).into_owned();
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => watched(&cache, event),
            Err(error) => {
                metrics.watch_failed(&kind);
                let gone = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                if gone {
                    tracing::info!(kind, "the watch is too old (410 Gone) and lists anew");
                } else {
                    tracing::warn!(kind, error = crate::one_line(&error), "the watch failed and is tried again");
                }
            }
        }
    }
}
