//! Tells people what happens: Kubernetes events on the objects they look at, and an audit line in the log for everything
//! that touches a workload or a machine.

use bascule_api::{Cause, ObjectRef};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{collections::HashMap, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Events that wait to be written; more are dropped and counted in the log.
const QUEUE: usize = 4096;
/// The same event about the same object is written at most this often.
const QUIET: Duration = Duration::from_secs(30);
/// The longest note that the API server takes (events.k8s.io/v1, `note`).
const NOTE: usize = 1024;

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The object it is about.
    pub about: About,
    /// Whether somebody should look.
    pub warning: bool,
    /// One word, CamelCase.
    pub reason: &'static str,
    /// What the operator did or saw, one word.
    pub action: &'static str,
    /// In a sentence.
    pub note: String,
    /// The object that caused it.
    pub related: Option<ObjectRef>,
}

/// The object a notice is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct About {
    /// Its API version.
    pub api_version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; `None` for cluster-scoped objects.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl About {
    /// A Node.
    #[must_use]
    pub fn node(name: &str, uid: &str) -> Self {
        Self { api_version: "v1", kind: "Node", namespace: None, name: name.to_owned(), uid: uid.to_owned() }
    }

    /// A Pod.
    #[must_use]
    pub fn pod(pod: &ObjectRef, uid: &str) -> Self {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        Self { api_version: "v1", kind: "Pod", namespace, name, uid: uid.to_owned() }
    }

    /// One of Bascule's own objects.
    #[must_use]
    pub fn own(kind: &'static str, name: &str, uid: &str) -> Self {
        let (name, uid) = (name.to_owned(), uid.to_owned());
        Self { api_version: "bascule.dev/v1alpha1", kind, namespace: None, name, uid }
    }
}

/// Writes events in the background. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Notice>);

impl Events {
    /// Starts the writer, which ends when the last clone is dropped.
    #[must_use]
    pub fn start(client: Client, identity: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: "bascule.dev/operator".to_owned(), instance: Some(identity.to_owned()) };
        tokio::spawn(write(Recorder::new(client, reporter), receiver));
        Self(sender)
    }

    /// For tests that look at what would be written.
    #[cfg(test)]
    pub(crate) fn to_nowhere() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Tells. Never waits: an event is a courtesy, the objects hold the truth.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            tracing::warn!(error = %error, "an event is dropped");
        }
    }
}

async fn write(recorder: Recorder, mut notices: mpsc::Receiver<Notice>) {
    let mut told: HashMap<(About, &'static str, String), Instant> = HashMap::new();
    while let Some(notice) = notices.recv().await {
        let now = Instant::now();
        told.retain(|_, at| now.duration_since(*at) < QUIET);
        let key = (notice.about.clone(), notice.reason, notice.note.clone());
        if told.insert(key, now).is_some() {
            continue;
        }
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: Some(shortened(&notice.note)),
            action: notice.action.to_owned(),
            secondary: notice.related.as_ref().map(related),
        };
        let about = ObjectReference {
            api_version: Some(notice.about.api_version.to_owned()),
            kind: Some(notice.about.kind.to_owned()),
            namespace: notice.about.namespace.clone(),
            name: Some(notice.about.name.clone()),
            uid: Some(notice.about.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::warn!(error = crate::one_line(&error), reason = notice.reason, "an event could not be written");
        }
    }
}

fn shortened(note: &str) -> String {
    if note.len() <= NOTE {
        return note.to_owned();
    }
    let end = (0..=NOTE - 3).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", note.get(..end).unwrap_or_default())
}

fn related(object: &ObjectRef) -> ObjectReference {
    let own = matches!(object.kind.as_str(), "UpdatePolicy" | "Rollback" | "Freeze" | "NodeUpdate");
    ObjectReference {
        api_version: own.then(|| "bascule.dev/v1alpha1".to_owned()),
        kind: Some(object.kind.clone()),
        namespace: object.namespace.clone(),
        name: Some(object.name.clone()),
        ..ObjectReference::default()
    }
}

/// One line for what touches a workload or a machine: who caused it, and what was done to which object.
pub fn audit(action: &str, node: &str, object: &str, cause: Option<&Cause>, says: &str) {
    let by = cause.map(|cause| cause.object.to_string()).unwrap_or_default();
    let user = cause.and_then(|cause| cause.user.as_deref()).unwrap_or_default();
    tracing::info!(target: "audit", action, node, object, by, user, says);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_keep_the_api_servers_limit_in_bytes() {
        let long = "ü".repeat(2_000);
        let short = shortened(&long);
        assert!(short.len() <= NOTE && short.ends_with('…'));
        assert_eq!(shortened("fine"), "fine");
    }
}
