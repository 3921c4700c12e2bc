//! What a [`super::Cache`] knows: which version of an object counts, and what is gone.

use bascule_api::Time;
use bascule_facts::{Fact, Key, Place, Untyped, Validate};
use bascule_planner::snapshot::Unreadable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// How many deletions are remembered, against an answer of ours that arrives after its object's deletion.
pub(super) const TOMBSTONES: usize = 1024;

/// How many objects that are gone are kept in mind at most.
const LEFT: usize = 256;

/// An object that can be read, at the newest version that was seen.
#[derive(Debug)]
pub(super) struct Entry<T> {
    version: u64,
    pub(super) fact: Arc<T>,
}

/// The newest that was seen of an object that can't be read.
#[derive(Debug)]
pub(super) struct Hidden {
    version: u64,
    pub(super) told: Arc<Unreadable>,
}

/// All that is known of the objects of one kind.
#[derive(Debug)]
pub(super) struct State<T> {
    pub(super) entries: BTreeMap<Arc<Key>, Entry<T>>,
    /// Objects that can't be read as they are now. What is known of one all the same is in `entries`.
    pub(super) hidden: BTreeMap<Key, Hidden>,
    /// Counts the changes of `hidden`.
    pub(super) noted: u64,
    pub(super) places: HashMap<String, Place<T>>,
    /// Those of `entries` that are asked for together ([`Fact::stands_out`]).
    pub(super) standing_out: BTreeMap<Arc<Key>, Arc<T>>,
    pub(super) tombstones: BTreeMap<Key, u64>,
    /// Everything that existed at this version is known, where a consistent list was taken in: what is older and not here was gone by then.
    complete_at: Option<u64>,
    /// The last that was known of objects that are gone, where that counts on.
    pub(super) left: BTreeMap<Key, Arc<T>>,
    /// During a list: what it or we have brought so far.
    listed: Option<BTreeSet<Key>>,
    pub(super) synced: bool,
}

impl<T: Fact> State<T> {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            hidden: BTreeMap::new(),
            noted: 0,
            places: HashMap::new(),
            standing_out: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            complete_at: None,
            left: BTreeMap::new(),
            listed: None,
            synced: false,
        }
    }

    /// The newest version that anything was seen at.
    pub(super) fn newest(&self) -> u64 {
        let there = self.entries.values().map(|entry| entry.version);
        let hidden = self.hidden.values().map(|hidden| hidden.version);
        let gone = self.tombstones.values().copied();
        there.chain(hidden).chain(gone).chain(self.complete_at).max().unwrap_or_default()
    }

    /// A list begins: what it does not bring is gone at its end.
    pub(super) fn begin_list(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// Takes in an object as it is; whether it tells something new, which `is_news` says beside what was known.
    pub(super) fn put(
        &mut self,
        raw: &T::Raw,
        validate: Validate,
        now: Time,
        is_news: impl FnOnce(&T, &T) -> bool,
    ) -> bool {
        let (key, version) = (Key::of_metadata(raw.meta()), version_of(raw.meta()));
        if !self.is_newer(&key, version) {
            return false;
        }
        let was_hidden = self.hidden.remove(&key).is_some();
        self.noted += u64::from(was_hidden);
        let before = self.entries.get(&key).map(|entry| Arc::clone(&entry.fact));
        let mut fact = T::validated(raw, validate);
        fact.follow(before.as_deref(), now);
        if was_hidden {
            fact.is_read_again(now);
        }
        let is_news = before.as_deref().is_none_or(|before| is_news(&fact, before));
        match self.entries.get_mut(&key) {
            // Whoever keeps what follows from it knows it by its pointer.
            Some(entry) if *entry.fact == fact => entry.version = version,
            _ => self.enter(key, version, fact),
        }
        is_news || was_hidden
    }

    /// Whether something is met in the object that was not met there before; `None` where that is no news.
    pub(super) fn presume(&mut self, untyped: &Untyped, now: Time) -> Option<bool> {
        let (key, version) = (Key::of_metadata(untyped.metadata()), version_of(untyped.metadata()));
        if !self.is_newer(&key, version) {
            return None;
        }
        let told = untyped.told(&<T::Raw as kube::Resource>::kind(&()));
        let is_new = self.hidden.get(&key).is_none_or(|hidden| *hidden.told != told);
        self.noted += u64::from(is_new);
        self.hidden.insert(key.clone(), Hidden { version, told: Arc::new(told) });
        let before = self.entries.get(&key).map(|entry| Arc::clone(&entry.fact));
        match T::presumed(untyped, before.as_deref()) {
            Some(mut fact) => {
                fact.follow(before.as_deref(), now);
                self.enter(key, version, fact);
            }
            None => drop(self.left.remove(&key)),
        }
        Some(is_new)
    }

    /// Takes note that a list names an object, and whether this version of it is newer than all that is known.
    fn is_newer(&mut self, key: &Key, version: u64) -> bool {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        let newer = |known: u64| version > known;
        self.complete_at.is_none_or(newer)
            && self.tombstones.get(key).copied().is_none_or(newer)
            && self.version(key).is_none_or(newer)
    }

    /// The newest version that was seen of an object.
    fn version(&self, key: &Key) -> Option<u64> {
        let entry = self.entries.get(key).map(|entry| entry.version);
        entry.max(self.hidden.get(key).map(|hidden| hidden.version))
    }

    /// The objects that are there.
    fn keys(&self) -> impl Iterator<Item = &Key> {
        let by_name_alone = self.hidden.keys().filter(move |key| !self.entries.contains_key(*key));
        self.entries.keys().map(|key| &**key).chain(by_name_alone)
    }

    /// The objects of a namespace.
    pub(super) fn of_namespace<'s>(&'s self, namespace: &'s str) -> impl Iterator<Item = &'s T> {
        let first = Key { namespace: namespace.to_owned(), name: String::new() };
        let from_there = self.entries.range::<Key, _>(first..);
        from_there.take_while(move |(key, _)| key.namespace == namespace).map(|(_, entry)| &*entry.fact)
    }

    fn enter(&mut self, key: Key, version: u64, fact: T) {
        self.left.remove(&key);
        let (key, fact) = (Arc::new(key), Arc::new(fact));
        let before = self.entries.insert(Arc::clone(&key), Entry { version, fact: Arc::clone(&fact) });
        if let Some(before) = before.filter(|before| before.fact.place() != fact.place()) {
            self.leave(&key, before.fact.place());
        }
        if fact.stands_out() {
            self.standing_out.insert(Arc::clone(&key), Arc::clone(&fact));
        } else {
            self.standing_out.remove(&key);
        }
        if !fact.place().is_empty() {
            let place = self.places.entry(fact.place().to_owned()).or_default();
            Arc::make_mut(place).insert(key, fact);
        }
    }

    /// Takes an object out; whether it was there.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        let was_hidden = self.hidden.remove(key).is_some();
        self.noted += u64::from(was_hidden);
        self.standing_out.remove(key);
        let Some(entry) = self.entries.remove(key) else { return was_hidden };
        self.leave(key, entry.fact.place());
        if entry.fact.outlives() {
            if self.left.len() >= LEFT {
                self.left.pop_first();
            }
            self.left.insert(key.clone(), entry.fact);
        }
        true
    }

    fn leave(&mut self, key: &Key, place: &str) {
        let Some(there) = self.places.get_mut(place) else { return };
        Arc::make_mut(there).remove(key);
        if there.is_empty() {
            self.places.remove(place);
        }
    }

    /// Takes in a deletion; whether the object was there.
    pub(super) fn remove(&mut self, meta: &ObjectMeta) -> bool {
        let (key, version) = (Key::of_metadata(meta), version_of(meta));
        if self.version(&key).is_some_and(|known| version < known) {
            return false; // another object of the same name has taken its place
        }
        self.tombstones.insert(key.clone(), version);
        if self.tombstones.len() > TOMBSTONES
            && let Some(oldest) =
                self.tombstones.iter().min_by_key(|(_, version)| **version).map(|(key, _)| key.clone())
        {
            self.tombstones.remove(&oldest);
        }
        self.forget(&key)
    }

    /// Takes in that all which existed at `version` is `known`; whether something is gone.
    pub(super) fn complete(&mut self, known: &BTreeSet<Key>, version: u64) -> bool {
        if let Some(listed) = &mut self.listed {
            // A list that the watch began before this one must not take them out at its end.
            listed.extend(known.iter().cloned());
        }
        let is_gone = |key: &&Key| !known.contains(*key) && self.version(key).is_some_and(|newest| newest <= version);
        let gone: Vec<Key> = self.keys().filter(is_gone).cloned().collect();
        for key in &gone {
            self.forget(key);
        }
        self.complete_at = self.complete_at.max(Some(version));
        !gone.is_empty()
    }

    /// A list is complete; whether it is the first, or something is gone.
    pub(super) fn finish_list(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.synced, true);
        let listed = self.listed.take();
        let is_gone = |key: &&Key| listed.as_ref().is_some_and(|listed| !listed.contains(*key));
        let gone: Vec<Key> = self.keys().filter(is_gone).cloned().collect();
        for key in &gone {
            self.forget(key);
        }
        first || !gone.is_empty()
    }
}

/// The version of an object as a number.
pub(super) fn version_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}
