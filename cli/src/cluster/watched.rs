//! Looking at one object until something is so. What a new try would not change ends it at once: a right that is missing, a login
//! that ran out, an object that is deleted.

use super::problem::{self, Role};
use anyhow::bail;
use futures::StreamExt as _;
use kube::{
    Api, Resource,
    core::Status,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

/// Waits until `judge` has an answer to the object as it is then.
///
/// # Errors
/// What `judge` says; that it is gone, or can't be looked at. Whoever has no answer is asked again, for as long as it takes.
pub(super) async fn until<K, T>(
    api: Api<K>,
    kind: &str,
    name: &str,
    mut judge: impl FnMut(&K) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher::watcher(api, only).default_backoff());
    let mut listed = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = false,
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                listed = true;
                if let Some(answer) = judge(&object)? {
                    return Ok(answer);
                }
            }
            Ok(Event::InitDone) if listed => {}
            Ok(Event::InitDone | Event::Delete(_)) => bail!("{kind} {name} is gone: somebody deleted it"),
            Err(error) => {
                if let Some(error) = lasting(error) {
                    return Err(problem::told(error, "watch", &format!("{kind} {name}"), Role::OnCall));
                }
            }
        }
    }
    bail!("the watch on {kind} {name} ended")
}

/// An error that stays. A dropped watch is taken up again by the watcher.
fn lasting(error: watcher::Error) -> Option<kube::Error> {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        watcher::Error::NoResourceVersion => return None,
    };
    let stays = |status: &Status| matches!(status.code, 401 | 403 | 404);
    matches!(&error, kube::Error::Api(status) if stays(status)).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_try_would_not_change_ends_the_wait() {
        let answer = |code: u16| {
            let status = serde_json::json!({"code": code, "message": "because", "reason": "Because"});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        for (code, ends) in [(401, true), (403, true), (404, true), (410, false), (429, false), (503, false)] {
            assert_eq!(lasting(watcher::Error::InitialListFailed(answer(code))).is_some(), ends, "{code}");
            assert_eq!(lasting(watcher::Error::WatchStartFailed(answer(code))).is_some(), ends, "{code}");
        }
    }
}
