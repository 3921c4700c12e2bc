//! Tells people that a break-glass command was used on a node: somebody acted on a machine without a grant, and the
//! operator only learns of it from the agent's report.

use crate::{
    events::{About, Events, Notice, audit},
    gather::{Caches, Key, UpdateFact},
};
use bascule_api::{Cause, ManualAction, ObjectRef, Time};
use std::{collections::HashMap, sync::Arc};

/// A new leader tells again what is not older than this, in seconds: people break the glass when the cluster is down, so
/// most likely no leader was there to tell it.
const DAY: i64 = 24 * 3600;

/// What was told already, by the UID of the NodeUpdate. Nothing until the first look.
#[derive(Debug, Default)]
pub(crate) struct BreakGlass(Option<HashMap<String, Vec<ManualAction>>>);

impl BreakGlass {
    /// Writes an event and an audit line for each command that nodes report and that was not told yet.
    pub(crate) fn tell(&mut self, world: &Caches, events: &Events, now: Time) {
        let used = world.updates.select(|update| !update.facts.status.manual_actions.is_empty());
        for (update, action) in self.news(&used, now) {
            let node = world.nodes.get(&Key::cluster(&update.name));
            announce(update, node.map(|node| node.uid.clone()), action, events);
        }
    }

    /// The commands among those reported that were not told yet.
    fn news<'a>(&mut self, used: &'a [Arc<UpdateFact>], now: Time) -> Vec<(&'a UpdateFact, &'a ManualAction)> {
        let told = self.0.take();
        let mut news = Vec::new();
        for update in used {
            let is_news = |action: &ManualAction| match &told {
                Some(told) => told.get(&update.uid).is_none_or(|told| !told.contains(action)),
                None => now.seconds_since(action.at) <= DAY,
            };
            let actions = update.facts.status.manual_actions.iter();
            news.extend(actions.filter(|action| is_news(action)).map(|action| (update.as_ref(), action)));
        }
        let reported = |update: &Arc<UpdateFact>| (update.uid.clone(), update.facts.status.manual_actions.clone());
        self.0 = Some(used.iter().map(reported).collect());
        news
    }
}

fn announce(update: &UpdateFact, node_uid: Option<String>, action: &ManualAction, events: &Events) {
    let name = &update.name;
    let own = ObjectRef { kind: "NodeUpdate".to_owned(), namespace: None, name: name.clone() };
    let user = action.user.as_deref().unwrap_or("somebody");
    let note = format!("{user} used `bascule-agent {}` on the node at {}", action.action, action.at);
    let cause = Cause { object: own.clone(), user: action.user.clone() };
    audit("BreakGlass", name, &format!("Node {name}"), Some(&cause), &note);
    let about = match node_uid {
        Some(uid) => About::node(name, &uid),
        None => About::own("NodeUpdate", name, &update.uid),
    };
    // Events that differ only in their note are one series, which keeps the first note.
    let action = match action.action.as_str() {
        "stage" => "Stage",
        "commit" => "Commit",
        "revert" => "Revert",
        _ => "BreakGlass",
    };
    events.tell(Notice { about, warning: true, reason: "BreakGlassUsed", action, note, related: Some(own) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::Fact as _;
    use serde_json::json;

    fn update(uid: &str, actions: &[(&str, &str)]) -> Arc<UpdateFact> {
        let actions: Vec<_> =
            actions.iter().map(|(action, at)| json!({"action": action, "at": at, "user": "alice"})).collect();
        let object = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": uid},
            "spec": {"policy": "workers", "goal": "Idle"},
            "status": {"manualActions": actions},
        });
        Arc::new(UpdateFact::of(&serde_json::from_value(object).unwrap()))
    }

    fn time(text: &str) -> Time {
        serde_json::from_value(json!(text)).unwrap()
    }

    fn names(told: &[(&UpdateFact, &ManualAction)]) -> Vec<String> {
        told.iter().map(|(_, action)| action.action.clone()).collect()
    }

    #[test]
    fn each_use_is_told_once_and_after_a_change_of_leader_only_what_is_recent() {
        let now = time("2026-11-21T12:00:00Z");
        let old = ("stage", "2026-11-20T11:59:59Z");
        // The node's clock may be ahead of ours.
        let (recent, ahead) = (("revert", "2026-11-20T12:00:00Z"), ("commit", "2036-11-21T12:00:00Z"));
        let mut told = BreakGlass::default();
        let before = [update("a", &[old, recent]), update("b", &[ahead])];
        assert_eq!(names(&told.news(&before, now)), ["revert", "commit"]);
        assert!(told.news(&before, now).is_empty(), "it is told once");
        // The list of a node is bounded, so that the oldest goes; and a clock may be far behind.
        let after = [update("a", &[recent, ("stage", "1970-01-01T00:00:09Z")]), update("b", &[ahead])];
        assert_eq!(names(&told.news(&after, now)), ["stage"]);
        assert_eq!(names(&told.news(&[update("c", &[old])], now)), ["stage"], "its first one");
    }

    #[tokio::test]
    async fn the_log_says_who_did_what_where_and_when() {
        use std::io::Write;
        use std::sync::Mutex;
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let (events, mut told) = Events::to_nowhere();
        let found = update("a", &[("commit", "2026-11-21T12:00:00Z")]);
        let action = &found.facts.status.manual_actions[0];
        tracing::subscriber::with_default(subscriber, || {
            announce(&found, Some("uid-of-n1".to_owned()), action, &events)
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for part in
            ["audit", "action=\"BreakGlass\"", "Node n1", "NodeUpdate n1", "user=\"alice\"", "`bascule-agent commit`"]
        {
            assert!(log.contains(part), "{part} is missing in {log}");
        }
        let notice = told.recv().await.unwrap();
        assert_eq!((notice.about, notice.warning), (About::node("n1", "uid-of-n1"), true));
        assert_eq!((notice.reason, notice.action), ("BreakGlassUsed", "Commit"));
        assert!(
            notice.note.starts_with("alice used `bascule-agent commit` on the node at 2026-11-21"),
            "{}",
            notice.note
        );
    }
}
