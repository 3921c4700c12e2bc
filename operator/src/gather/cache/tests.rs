//! What counts of what watches, lists and answers to our own writes bring, and who is told of it.

use super::*;
use crate::gather::{
    NodeFact, PodFact, UpdateFact,
    sent::{Sent, watched},
    state::TOMBSTONES,
};
use k8s_openapi::api::core::v1::ConfigMap;

#[derive(Debug, PartialEq)]
struct Seen(String);

impl Fact for Seen {
    type Raw = ConfigMap;
    fn of(raw: &ConfigMap) -> Self {
        Self(raw.metadata.labels.clone().unwrap_or_default().remove("v").unwrap_or_default())
    }
    fn place(&self) -> &str {
        self.0.strip_prefix("at ").unwrap_or_default()
    }
    fn stands_out(&self) -> bool {
        self.0.contains('!')
    }
}

fn object(name: &str, version: u64, value: &str) -> ConfigMap {
    serde_json::from_value(serde_json::json!({"metadata": {
        "name": name, "resourceVersion": version.to_string(), "labels": {"v": value}
    }}))
    .unwrap()
}

fn cache() -> Cache<Seen> {
    Cache::new([Arc::new(watch::Sender::new(0))], &Clock::system())
}

fn values(cache: &Cache<Seen>) -> Vec<String> {
    cache.all().iter().map(|seen| seen.0.clone()).collect()
}

#[test]
fn our_own_write_is_seen_at_once_and_not_undone_by_an_older_event() {
    let cache = cache();
    cache.apply(&watcher::Event::Apply(object("a", 5, "old")));
    cache.written(&object("a", 9, "ours"));
    cache.apply(&watcher::Event::Apply(object("a", 7, "late")));
    assert_eq!(values(&cache), ["ours"]);
    cache.apply(&watcher::Event::Apply(object("a", 10, "newer")));
    assert_eq!(values(&cache), ["newer"]);
}

#[test]
fn the_first_list_of_what_wakes_nobody_else_is_told_once() {
    let changes = Arc::new(watch::Sender::new(0));
    let cache: Cache<Seen> = Cache::new([], &Clock::system()).awaited_by(&changes);
    cache.apply(&watcher::Event::Init);
    cache.apply(&watcher::Event::InitApply(object("a", 5, "listed")));
    assert_eq!(*changes.borrow(), 0);
    cache.apply(&watcher::Event::InitDone);
    assert_eq!(*changes.borrow(), 1, "whoever waits for all kinds has to look again");
    cache.apply(&watcher::Event::Apply(object("a", 6, "changed")));
    cache.apply(&watcher::Event::Init);
    cache.apply(&watcher::Event::InitDone);
    assert_eq!(*changes.borrow(), 1);
}

#[test]
fn an_answer_that_arrives_after_the_deletion_brings_nothing_back() {
    let cache = cache();
    cache.apply(&watcher::Event::Apply(object("a", 5, "one")));
    cache.apply(&watcher::Event::Delete(object("a", 12, "one")));
    cache.written(&object("a", 11, "ours"));
    assert!(cache.is_empty());
    cache.apply(&watcher::Event::Apply(object("a", 13, "two")));
    cache.apply(&watcher::Event::Delete(object("a", 12, "one")));
    assert_eq!(values(&cache), ["two"], "a late deletion of the predecessor");
}

#[test]
fn a_new_list_replaces_everything_but_what_we_wrote_meanwhile() {
    let cache = cache();
    assert!(!cache.is_synced());
    for event in [watcher::Event::Init, watcher::Event::InitApply(object("a", 1, "a")), watcher::Event::InitDone] {
        cache.apply(&event);
    }
    assert!(cache.is_synced());
    // 410 Gone: the watch lists anew; "a" is gone, "b" came, and "c" is created by us during the list.
    cache.apply(&watcher::Event::Init);
    cache.apply(&watcher::Event::InitApply(object("b", 2, "b")));
    assert_eq!(values(&cache), ["a", "b"], "nothing vanishes before the list is complete");
    cache.written(&object("c", 3, "c"));
    cache.apply(&watcher::Event::InitDone);
    assert_eq!(values(&cache), ["b", "c"]);
}

#[test]
fn a_watch_that_is_late_undoes_nothing_of_a_consistent_list() {
    let cache = cache();
    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(object("kept", 1, "old")),
        watcher::Event::InitApply(object("deleted", 2, "x")),
        watcher::Event::InitDone,
    ] {
        cache.apply(&event);
    }
    // Since then "kept" was changed, "deleted" was deleted, "made" was made, "brief" came and went; "ours" was made after the list.
    cache.written(&object("ours", 21, "ours"));
    for listed in [object("kept", 9, "new"), object("made", 8, "made")] {
        cache.written(&listed);
    }
    let known = ["kept", "made"].map(|name| Key { namespace: String::new(), name: name.to_owned() });
    cache.complete(&BTreeSet::from(known), 20);
    assert_eq!(values(&cache), ["new", "made", "ours"]);
    // The watch tells of all that minutes later.
    for late in [object("brief", 5, "brief"), object("kept", 6, "older"), object("deleted", 7, "x")] {
        cache.apply(&watcher::Event::Apply(late));
    }
    assert_eq!(values(&cache), ["new", "made", "ours"]);
    cache.apply(&watcher::Event::Apply(object("kept", 22, "newest")));
    cache.apply(&watcher::Event::Delete(object("made", 23, "made")));
    assert_eq!(values(&cache), ["newest", "ours"]);
}

#[test]
fn the_newest_that_is_known_may_be_of_one_that_is_gone_or_can_not_be_read() {
    let cache = cache();
    assert_eq!(cache.newest(), 0);
    cache.apply(&watcher::Event::Apply(object("a", 5, "x")));
    assert_eq!(cache.newest(), 5);
    watched(&cache, watcher::Event::Apply(not_understood("b", 7)));
    assert_eq!(cache.newest(), 7);
    cache.apply(&watcher::Event::Delete(object("a", 9, "x")));
    assert_eq!(cache.newest(), 9);
    cache.complete(&BTreeSet::from([Key::cluster("b")]), 11);
    assert_eq!(cache.newest(), 11);
}

#[test]
fn objects_are_found_by_their_place_and_a_place_without_a_change_keeps_its_pointer() {
    let cache = cache();
    let at = |place: &str| -> Vec<String> { cache.of_place(place).keys().map(|key| key.name.clone()).collect() };
    cache.apply(&watcher::Event::Apply(object("b", 1, "at x")));
    cache.apply(&watcher::Event::Apply(object("a", 2, "at x")));
    cache.apply(&watcher::Event::Apply(object("c", 3, "nowhere")));
    let before = cache.of_place("x");
    cache.apply(&watcher::Event::Apply(object("c", 4, "at y")));
    assert!(Arc::ptr_eq(&before, &cache.of_place("x")));
    assert_eq!((at("x"), at("y"), at("")), (vec!["a".into(), "b".into()], vec!["c".into()], vec![]));
    cache.apply(&watcher::Event::Apply(object("a", 5, "at y")));
    assert!(!Arc::ptr_eq(&before, &cache.of_place("x")));
    cache.apply(&watcher::Event::Delete(object("b", 6, "at x")));
    assert_eq!((at("x"), at("y")), (vec![], vec!["a".into(), "c".into()]));
    // A new list without them.
    cache.apply(&watcher::Event::Init);
    cache.apply(&watcher::Event::InitDone);
    assert!(at("y").is_empty() && cache.read().places.is_empty());
}

/// One of another version of Kubernetes, whose data are a number.
fn not_understood(name: &str, version: u64) -> Sent<ConfigMap> {
    let metadata = serde_json::json!({"name": name, "resourceVersion": version.to_string()});
    serde_json::from_value(serde_json::json!({"metadata": metadata, "data": 5})).unwrap()
}

#[test]
fn what_can_not_be_read_stays_as_it_was_known_and_hides_nobody_else() {
    let (cache, key) = (cache(), Key::cluster("a"));
    cache.apply(&watcher::Event::Apply(object("a", 5, "one")));
    watched(&cache, watcher::Event::Apply(not_understood("a", 6)));
    assert_eq!(values(&cache), ["one"]);
    let told = cache.unreadable(&key).unwrap();
    assert_eq!((told.object.to_string().as_str(), told.why.is_empty()), ("ConfigMap a", false));
    // What was read of it before comes late.
    cache.written(&object("a", 5, "late"));
    assert_eq!((values(&cache), cache.unreadable(&key).is_some()), (vec!["one".to_owned()], true));
    // A list with it is a list.
    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(not_understood("a", 6)),
        watcher::Event::InitApply(serde_json::from_value(serde_json::to_value(object("b", 7, "b")).unwrap()).unwrap()),
        watcher::Event::InitDone,
    ] {
        watched(&cache, event);
    }
    assert!(cache.is_synced());
    cache.complete(&BTreeSet::from([key.clone(), Key::cluster("b")]), 8);
    assert_eq!(values(&cache), ["one", "b"]);

    cache.apply(&watcher::Event::Apply(object("a", 9, "two")));
    assert_eq!((values(&cache).first().map(String::as_str), cache.unreadable(&key)), (Some("two"), None));
    watched(&cache, watcher::Event::Apply(not_understood("a", 10)));
    watched(&cache, watcher::Event::Delete(not_understood("a", 11)));
    assert_eq!((values(&cache), cache.unreadable(&key)), (vec!["b".to_owned()], None));
}

#[test]
fn one_that_was_never_read_is_known_by_its_name_until_it_goes() {
    let names = |cache: &Cache<Seen>| -> Vec<String> {
        cache.all_unreadable().into_iter().map(|told| told.object.name).collect()
    };
    let cache = cache();
    for name in ["a", "b", "c"] {
        watched(&cache, watcher::Event::Apply(not_understood(name, 3)));
    }
    assert_eq!((names(&cache), cache.len()), (vec!["a".into(), "b".into(), "c".into()], 0));
    watched(&cache, watcher::Event::Init);
    watched(&cache, watcher::Event::InitApply(not_understood("a", 3)));
    watched(&cache, watcher::Event::InitApply(not_understood("b", 3)));
    watched(&cache, watcher::Event::InitDone);
    assert_eq!(names(&cache), ["a", "b"], "c is in no list any more");
    cache.complete(&BTreeSet::from([Key::cluster("b")]), 4);
    assert_eq!(names(&cache), ["b"]);
    cache.vanished(&Key::cluster("b"));
    assert!(names(&cache).is_empty());
}

#[test]
fn that_an_object_can_not_be_read_is_told_once_and_so_is_that_it_can_be_again() {
    let noted = Arc::new(watch::Sender::new(0));
    let cache = cache().noting(&noted);
    let told = |happens: &dyn Fn()| {
        let before = *noted.borrow();
        happens();
        *noted.borrow() != before
    };
    assert!(!told(&|| cache.apply(&watcher::Event::Apply(object("a", 5, "x")))));
    assert!(told(&|| watched(&cache, watcher::Event::Apply(not_understood("a", 6)))));
    assert!(!told(&|| watched(&cache, watcher::Event::Apply(not_understood("a", 7)))));
    assert!(told(&|| cache.apply(&watcher::Event::Apply(object("a", 8, "x")))));
    watched(&cache, watcher::Event::Apply(not_understood("a", 9)));
    assert!(told(&|| cache.vanished(&Key::cluster("a"))));
}

#[test]
fn only_changes_are_told() {
    let changes = Arc::new(watch::Sender::new(0));
    let cache: Cache<Seen> = Cache::new([Arc::clone(&changes)], &Clock::system());
    cache.apply(&watcher::Event::Apply(object("a", 5, "x")));
    let told = *changes.borrow();
    cache.apply(&watcher::Event::Apply(object("a", 5, "x")));
    cache.apply(&watcher::Event::Delete(object("b", 6, "x")));
    assert_eq!(*changes.borrow(), told);
}

/// What is told of each of these, one after the other, and the last.
fn told<T: Fact<Raw: serde::de::DeserializeOwned>>(objects: &[serde_json::Value]) -> (Vec<bool>, Cache<T>) {
    let changes = Arc::new(watch::Sender::new(0));
    let cache: Cache<T> = Cache::new([Arc::clone(&changes)], &Clock::system());
    let mut told = Vec::new();
    for (version, object) in objects.iter().enumerate() {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        let before = *changes.borrow();
        cache.apply(&watcher::Event::Apply(serde_json::from_value(object).unwrap()));
        told.push(*changes.borrow() != before);
    }
    (told, cache)
}

#[test]
fn what_tells_nothing_new_wakes_nobody_and_is_written_to_as_it_is_now() {
    let node = |beat: u32, ready: &str| {
        serde_json::json!({"metadata": {"name": "n1", "uid": "u"}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "lastHeartbeatTime": format!("2026-11-21T12:00:{beat:02}Z")}]}})
    };
    let (news, nodes) = told::<NodeFact>(&[node(1, "True"), node(2, "True"), node(3, "False"), node(4, "False")]);
    assert_eq!(news, [true, false, true, false]);
    assert_eq!(nodes.get(&Key::cluster("n1")).unwrap().resource_version, "4");

    let pod = |restarts: u32, phase: &str| {
        serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts}]}})
    };
    let (news, pods) = told::<PodFact>(&[pod(1, "Running"), pod(2, "Running"), pod(2, "Failed")]);
    assert_eq!((news, pods.standing_out().len()), (vec![true, false, true], 0));

    let update = |reason: &str, boot: &str| {
        serde_json::json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": "u", "generation": 1}, "spec": {"policy": "workers"},
            "status": {"bootID": boot, "rollout": {"state": "Waiting", "reason": reason}}})
    };
    let (news, _) = told::<UpdateFact>(&[update("Budget", "b"), update("Queued", "b"), update("Queued", "c")]);
    assert_eq!(news, [true, true, true], "somebody else may have written it");
    let changes = Arc::new(watch::Sender::new(0));
    let updates: Cache<UpdateFact> = Cache::new([Arc::clone(&changes)], &Clock::system());
    let mut seen = Vec::new();
    for (version, (reason, boot)) in [("Budget", "b"), ("Queued", "b"), ("Current", "c")].into_iter().enumerate() {
        let mut object = update(reason, boot);
        object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        updates.told(&serde_json::from_value(object).unwrap());
        seen.push(*changes.borrow());
    }
    assert_eq!(seen, [1, 1, 2], "what we told was planned before, and the agent may have spoken meanwhile");
    let rollout = updates.get(&Key::cluster("n1")).unwrap().rollout.clone();
    assert_eq!(rollout.map(|rollout| rollout.reason), Some(bascule_api::WaitReason::Current));
}

#[test]
fn what_says_the_same_keeps_its_pointer_and_what_stands_out_is_known_apart() {
    let cache = cache();
    let out = |cache: &Cache<Seen>| -> Vec<String> { cache.standing_out().iter().map(|seen| seen.0.clone()).collect() };
    cache.apply(&watcher::Event::Apply(object("a", 1, "at x")));
    cache.apply(&watcher::Event::Apply(object("b", 2, "!")));
    let before = cache.of_place("x");
    cache.apply(&watcher::Event::Apply(object("a", 3, "at x")));
    assert!(Arc::ptr_eq(&before, &cache.of_place("x")));
    cache.written(&object("a", 2, "late"));
    assert_eq!((values(&cache), out(&cache)), (vec!["at x".to_owned(), "!".to_owned()], vec!["!".to_owned()]));
    cache.apply(&watcher::Event::Apply(object("a", 4, "!!")));
    cache.apply(&watcher::Event::Apply(object("b", 5, "well")));
    assert_eq!(out(&cache), ["!!"]);
    cache.vanished(&Key::cluster("a"));
    assert!(out(&cache).is_empty());
}

#[test]
fn the_objects_of_one_namespace_are_found_without_the_others() {
    let cache = cache();
    for (namespace, name) in [("a", "z"), ("b", "m"), ("b", "n"), ("bb", "a")] {
        let mut one = object(name, 1, name);
        one.metadata.namespace = Some(namespace.to_owned());
        cache.apply(&watcher::Event::Apply(one));
    }
    let mut seen = std::cell::RefCell::new(Vec::new());
    let look = |one: &Seen| {
        seen.borrow_mut().push(one.0.clone());
        false
    };
    assert!(!cache.any_in("b", look));
    assert_eq!(*seen.get_mut(), ["m", "n"]);
}

#[test]
fn deletions_are_remembered_within_bounds() {
    let cache = cache();
    for number in 0..2 * TOMBSTONES as u64 {
        cache.apply(&watcher::Event::Delete(object(&format!("n{number}"), number, "x")));
    }
    assert_eq!(cache.read().tombstones.len(), TOMBSTONES);
}

#[test]
fn an_explanation_that_is_not_understood_hides_nothing_and_is_written_anew() {
    let cache: Cache<UpdateFact> = Cache::new([], &Clock::system());
    let sent = serde_json::json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n1", "resourceVersion": "7"},
        "spec": {"policy": "workers"},
        "status": {"bootID": "b1", "rollout": {"state": "Waiting", "reason": "Eclipse"}},
    });
    watched(&cache, watcher::Event::Apply(serde_json::from_value(sent).unwrap()));
    let fact = cache.get(&Key::cluster("n1")).unwrap();
    assert_eq!((fact.facts.status.boot_id.as_deref(), &fact.rollout), (Some("b1"), &None));
    assert!(cache.unreadable(&Key::cluster("n1")).is_none());
}

/// A trial that was held meanwhile is not to be blamed, whoever leads by then.
#[test]
fn that_an_object_could_not_be_read_is_remembered_with_it() {
    let second = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = {
        let second = Arc::clone(&second);
        let now = move || second.load(std::sync::atomic::Ordering::Relaxed);
        Clock::from_fn(move || chrono::DateTime::from_timestamp(now(), 0).unwrap())
    };
    let cache: Cache<UpdateFact> = Cache::new([], &clock);
    let seen = |at: i64, uid: &str, goal: &str, backend: &str| {
        second.store(at, std::sync::atomic::Ordering::Relaxed);
        let object = serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": uid, "resourceVersion": (at + 1).to_string()},
            "spec": {"policy": "workers", "goal": goal},
            "status": {"bootID": "b", "bootControl": {"backend": backend, "counting": "Works"}},
        });
        let event = watcher::Event::Apply(serde_json::from_value(object).unwrap());
        watched(&cache, event);
        let fact = cache.get(&Key::cluster("n1"));
        fact.and_then(|fact| fact.read_again).map(|at| at.get().timestamp())
    };
    assert_eq!(seen(10, "u", "Booted", "SystemdBoot"), None);
    assert_eq!(seen(20, "u", "Booted", "Volcano"), None);
    assert_eq!(seen(30, "u", "Booted", "SystemdBoot"), Some(30));
    assert_eq!(seen(40, "u", "Booted", "SystemdBoot"), Some(30));
    assert_eq!(seen(50, "u", "Booted", "Volcano"), Some(30), "not over yet");
    assert_eq!(seen(60, "v", "Eclipse", "SystemdBoot"), Some(30), "what was known of another one of its name");
    assert_eq!(seen(70, "v", "Booted", "SystemdBoot"), Some(70), "of which nothing was known before");
    assert_eq!(seen(80, "w", "Booted", "SystemdBoot"), None);
}
