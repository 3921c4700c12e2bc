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
mod tests;
