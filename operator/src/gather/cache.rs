//! A cache of one kind of object that also sees what we write ourselves.
//!
//! kube-runtime's reflector would do for reading, but it learns of our own writes only when the watch brings them. A
//! plan made in between would not see the grant that was just given and could give one too many. So a writer puts the
//! API server's answer in here at once, and whatever the watch brings later counts only if it is newer. Objects are
//! compared by `resourceVersion` as numbers, which Kubernetes guarantees since KEP-5504 and etcd always did.

use super::state::State;
use crate::clock::Clock;
use bascule_api::Time;
use bascule_facts::{Untyped, Validate};
use bascule_planner::snapshot::Unreadable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, runtime::watcher};
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::watch;

pub use bascule_facts::{Fact, Key, Place};

/// The cache of one kind. Cheap to clone.
#[derive(Debug)]
pub struct Cache<T> {
    state: Arc<RwLock<State<T>>>,
    changes: Arc<[Arc<watch::Sender<u64>>]>,
    /// Told when another object can't be read, or one can be again.
    noted: Arc<watch::Sender<u64>>,
    /// Told once, when the first list is complete.
    awaited: Option<Arc<watch::Sender<u64>>>,
    validate: Validate,
    clock: Clock,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            changes: Arc::clone(&self.changes),
            noted: Arc::clone(&self.noted),
            awaited: self.awaited.clone(),
            validate: self.validate,
            clock: self.clock.clone(),
        }
    }
}

impl<T: Fact> Cache<T> {
    /// An empty cache. `changes` are told whenever something changes; several caches may share them. By `clock` it notes
    /// when something was seen first.
    #[must_use]
    pub fn new(changes: impl IntoIterator<Item = Arc<watch::Sender<u64>>>, clock: &Clock) -> Self {
        Self {
            state: Arc::new(RwLock::new(State::new())),
            changes: changes.into_iter().collect(),
            noted: Arc::new(watch::Sender::new(0)),
            awaited: None,
            validate: bascule_planner::validate,
            clock: clock.clone(),
        }
    }

    /// The same, and policies are validated in this way.
    #[must_use]
    pub fn validating(self, validate: Validate) -> Self {
        Self { validate, ..self }
    }

    /// The same, and `noted` is told when another object can't be read, or one can be again. Several caches may share it.
    #[must_use]
    pub fn noting(self, noted: &Arc<watch::Sender<u64>>) -> Self {
        Self { noted: Arc::clone(noted), ..self }
    }

    /// The same, and `changes` are told when the first list is complete, though nothing that comes later is worth a plan: who waits for
    /// all kinds would not notice else that this one was the last.
    #[must_use]
    pub fn awaited_by(self, changes: &Arc<watch::Sender<u64>>) -> Self {
        Self { awaited: Some(Arc::clone(changes)), ..self }
    }

    /// Whether the first list is complete.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.read().synced
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.read().entries.get(key).map(|entry| Arc::clone(&entry.fact))
    }

    /// The last that was known of an object that is gone, where that counts on ([`Fact::outlives`]) and no new object of
    /// its name has come.
    #[must_use]
    pub fn left_by(&self, key: &Key) -> Option<Arc<T>> {
        self.read().left.get(key).cloned()
    }

    /// Every object, in the order of their keys.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().entries.values().map(|entry| Arc::clone(&entry.fact)).collect()
    }

    /// The objects that fulfil a condition, in the order of their keys. Looks at all of them.
    #[must_use]
    pub fn select(&self, wanted: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let state = self.read();
        state.entries.values().filter(|entry| wanted(&entry.fact)).map(|entry| Arc::clone(&entry.fact)).collect()
    }

    /// The objects that stand out ([`Fact::stands_out`]), in the order of their keys. Cheap.
    #[must_use]
    pub fn standing_out(&self) -> Vec<Arc<T>> {
        self.read().standing_out.values().cloned().collect()
    }

    /// Whether an object fulfils a condition.
    #[must_use]
    pub fn any(&self, wanted: impl Fn(&T) -> bool) -> bool {
        self.read().entries.values().any(|entry| wanted(&entry.fact))
    }

    /// Whether an object of a namespace does.
    #[must_use]
    pub fn any_in(&self, namespace: &str, wanted: impl Fn(&T) -> bool) -> bool {
        self.read().of_namespace(namespace).any(wanted)
    }

    /// The objects of one place. Cheap.
    #[must_use]
    pub fn of_place(&self, place: &str) -> Place<T> {
        self.read().places.get(place).cloned().unwrap_or_default()
    }

    /// What is said of an object that can't be read as it is now.
    #[must_use]
    pub fn unreadable(&self, key: &Key) -> Option<Arc<Unreadable>> {
        self.read().hidden.get(key).map(|hidden| Arc::clone(&hidden.told))
    }

    /// All of these, in the order of their keys.
    #[must_use]
    pub fn all_unreadable(&self) -> Vec<Unreadable> {
        self.read().hidden.values().map(|hidden| Unreadable::clone(&hidden.told)).collect()
    }

    /// The newest version that is known of any object, of one that is gone or of all of them together.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.read().newest()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in what a watch brings.
    pub fn apply(&self, event: &watcher::Event<T::Raw>) {
        self.change(|state| match event {
            watcher::Event::Init => {
                state.begin_list();
                false
            }
            watcher::Event::InitApply(raw) | watcher::Event::Apply(raw) => {
                state.put(raw, self.validate, self.now(), T::is_news)
            }
            watcher::Event::Delete(raw) => state.remove(raw.meta()),
            watcher::Event::InitDone => state.finish_list(),
        });
    }

    /// Takes in a consistent list: all that existed at `version`, of which `known` were taken in one by one. A watch that is late
    /// changes nothing of that any more.
    pub fn complete(&self, known: &BTreeSet<Key>, version: u64) {
        self.change(|state| state.complete(known, version));
    }

    /// Takes in what the API server answered to a write of ours, or when it was asked for an object.
    pub fn written(&self, raw: &T::Raw) {
        self.change(|state| state.put(raw, self.validate, self.now(), T::is_news));
    }

    /// The same where the write only told people what was planned.
    pub fn told(&self, raw: &T::Raw) {
        self.change(|state| state.put(raw, self.validate, self.now(), T::is_more_than_told));
    }

    /// Takes in an object that can't be read. Says whether something is met in it that was not met there before.
    pub fn presume(&self, untyped: &Untyped) -> bool {
        let mut news = false;
        self.change(|state| match state.presume(untyped, self.now()) {
            Some(is_news) => {
                news = is_news;
                true
            }
            None => false,
        });
        news
    }

    /// Takes in that an object was deleted, whose last metadata these are.
    pub fn deleted(&self, meta: &ObjectMeta) {
        self.change(|state| state.remove(meta));
    }

    /// Takes in that the API server says an object is not there.
    pub fn vanished(&self, key: &Key) {
        self.change(|state| state.forget(key));
    }

    fn now(&self) -> Time {
        Time::new(self.clock.now())
    }

    /// Changes the state, and tells if `change` says that something is another.
    fn change(&self, change: impl FnOnce(&mut State<T>) -> bool) {
        let (changed, noted, complete) = {
            let mut state = self.write();
            let (noted, synced) = (state.noted, state.synced);
            (change(&mut state), state.noted != noted, state.synced && !synced)
        };
        let told = self.changes.iter().filter(|_| changed).chain(Some(&self.noted).filter(|_| noted));
        let told = told.chain(self.awaited.iter().filter(|_| complete));
        for changes in told {
            changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    // A poisoned lock only means that a reader panicked, who changes nothing.
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
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
            watcher::Event::InitApply(
                serde_json::from_value(serde_json::to_value(object("b", 7, "b")).unwrap()).unwrap(),
            ),
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
        let out =
            |cache: &Cache<Seen>| -> Vec<String> { cache.standing_out().iter().map(|seen| seen.0.clone()).collect() };
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
}
