//! Objects as the API server sends them, those that this version does not understand among them.
//!
//! A version that is newer, of the operator or of an agent, may have written a value that this one does not know. In a typed list one
//! such object hides all others: the list as a whole is not read, for as long as the object says so. kube's `DeserializeGuard` keeps the
//! others, but of the object itself it leaves the metadata alone, and nothing where those are not understood either. What can be read of
//! it is needed: whether a node may be disrupted, and which nodes a policy cares for.

use crate::Key;
use bascule_api::ObjectRef;
use bascule_planner::snapshot::Unreadable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// How many characters of why an object can't be read are told: what is met, and not the whole list of what was expected.
const WHY: usize = 160;

/// An object as it came, typed where it can be.
#[derive(Debug, Clone)]
pub struct Sent<K>(Result<K, Box<Untyped>>);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Sent<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let typed = K::deserialize(&value);
        Ok(Self(typed.map_err(|error| Box::new(Untyped::new(value, &error.to_string())))))
    }
}

impl<K: DeserializeOwned> Sent<K> {
    /// The object as it can be read, where need be without the fields that only tell people what was decided ([`crate::Fact::SAID`]).
    ///
    /// # Errors
    /// What can be read of an object that can't be read so either.
    pub fn readable(self, said: &[&str]) -> Result<K, Box<Untyped>> {
        self.0.or_else(|untyped| untyped.without(said).ok_or(untyped))
    }
}

impl<K: Resource> Resource for Sent<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(typed) => typed.meta(),
            Err(untyped) => &untyped.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(typed) => typed.meta_mut(),
            Err(untyped) => &mut untyped.metadata,
        }
    }
}

/// An object that is not understood.
#[derive(Debug, Clone)]
pub struct Untyped {
    metadata: ObjectMeta,
    why: String,
    value: Value,
}

impl Untyped {
    fn new(value: Value, why: &str) -> Self {
        let sent = value.get("metadata");
        // Where these are not understood either, what it takes to know the object by.
        let by_hand = || {
            let text = |key: &str| sent.and_then(|sent| sent.get(key)).and_then(Value::as_str).map(str::to_owned);
            ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            }
        };
        let metadata = sent.and_then(|sent| ObjectMeta::deserialize(sent).ok()).unwrap_or_else(by_hand);
        Self { metadata, why: bounded(why), value }
    }

    /// Its metadata.
    #[must_use]
    pub const fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    /// What was met in it, bounded and in one line.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// A part of it, given by its JSON pointer, where that can be read.
    #[must_use]
    pub fn part<P: DeserializeOwned>(&self, pointer: &str) -> Option<P> {
        P::deserialize(self.value.pointer(pointer)?).ok()
    }

    /// A part of it all of whose fields have defaults, field by field: those that can't be read are as they were `before`.
    #[must_use]
    pub fn fields<P: Serialize + DeserializeOwned + Default>(&self, pointer: &str, before: Option<&P>) -> P {
        let known = before.and_then(|before| serde_json::to_value(before).ok()).unwrap_or_default();
        let mut fields = Map::new();
        for (name, found) in self.value.pointer(pointer).and_then(Value::as_object).into_iter().flatten() {
            let alone = Value::Object(Map::from_iter([(name.clone(), found.clone())]));
            let value = if P::deserialize(alone).is_ok() { Some(found) } else { known.get(name) };
            fields.extend(value.map(|value| (name.clone(), value.clone())));
        }
        P::deserialize(Value::Object(fields)).unwrap_or_default()
    }

    /// What is said of it.
    #[must_use]
    pub fn told(&self, kind: &str) -> Unreadable {
        let key = Key::of_metadata(&self.metadata);
        let namespace = Some(key.namespace).filter(|namespace| !namespace.is_empty());
        Unreadable { object: ObjectRef { kind: kind.to_owned(), namespace, name: key.name }, why: self.why.clone() }
    }

    /// The same without fields that nobody decides by.
    fn without<K: DeserializeOwned>(&self, said: &[&str]) -> Option<K> {
        if said.is_empty() {
            return None;
        }
        let mut value = self.value.clone();
        for (parent, field) in said.iter().filter_map(|pointer| pointer.rsplit_once('/')) {
            if let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
                parent.remove(field);
            }
        }
        K::deserialize(value).ok()
    }
}

fn bounded(why: &str) -> String {
    let line = why.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut told: String = line.clone().take(WHY).collect();
    if line.count() > WHY {
        told.push('…');
    }
    told
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bascule_api::{NodeUpdate, NodeUpdateStatus};
    use kube_core::{ObjectList, WatchEvent};
    use serde_json::json;

    /// An object that is not understood.
    pub(crate) fn untyped<K: DeserializeOwned>(object: Value) -> Untyped {
        let Sent(Err(untyped)) = serde_json::from_value::<Sent<K>>(object).unwrap() else { panic!("it can be read") };
        *untyped
    }

    /// An object as the API server sends it.
    pub(crate) fn object(kind: &str, name: &str, version: u64, spec: &Value, status: &Value) -> Value {
        json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "uid": "u", "resourceVersion": version.to_string(), "generation": 4},
            "spec": spec, "status": status,
        })
    }

    fn update(version: u64, status: &Value) -> Value {
        object("NodeUpdate", "n1", version, &json!({"policy": "workers", "goal": "Idle"}), status)
    }

    fn sent(version: u64, status: &Value) -> Sent<NodeUpdate> {
        serde_json::from_value(update(version, status)).unwrap()
    }

    fn failed(category: &str) -> Value {
        json!({
            "bootID": "b1",
            "lastError": {"category": category, "message": "m", "attempts": 1, "at": "2026-11-21T12:00:00Z"},
        })
    }

    #[test]
    fn a_list_with_one_that_is_not_understood_is_a_list_and_so_is_it_in_a_watch() {
        let (good, bad) = (update(7, &failed("Network")), update(8, &failed("Volcano")));
        let list = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdateList", "metadata": {"resourceVersion": "9"},
            "items": [good, bad],
        });
        assert!(serde_json::from_value::<ObjectList<NodeUpdate>>(list.clone()).is_err());
        let list: ObjectList<Sent<NodeUpdate>> = serde_json::from_value(list).unwrap();
        assert_eq!(list.items.iter().map(|one| one.0.is_ok()).collect::<Vec<_>>(), [true, false]);
        let event = json!({"type": "MODIFIED", "object": bad}).to_string();
        let event: WatchEvent<Sent<NodeUpdate>> = serde_json::from_str(&event).unwrap();
        assert!(matches!(event, WatchEvent::Modified(one) if one.meta().resource_version.as_deref() == Some("8")));
    }

    #[test]
    fn what_is_met_is_named_within_bounds_and_what_can_be_read_is_kept() {
        let Sent(Err(untyped)) = sent(7, &failed("Volcano")) else { panic!("there is such a category") };
        assert!(untyped.why().starts_with("unknown variant `Volcano`") && untyped.why().chars().count() <= WHY + 1);
        assert_eq!((untyped.metadata().name.as_deref(), untyped.metadata().generation), (Some("n1"), Some(4)));
        assert_eq!(untyped.part::<String>("/spec/policy").as_deref(), Some("workers"));
        assert_eq!(untyped.part::<i64>("/spec/policy"), None);
        let status: NodeUpdateStatus = untyped.fields("/status", None);
        assert_eq!((status.boot_id.as_deref(), status.last_error), (Some("b1"), None));
        let before: NodeUpdateStatus = serde_json::from_value(failed("Network")).unwrap();
        let status: NodeUpdateStatus = untyped.fields("/status", Some(&before));
        assert_eq!(status.last_error, before.last_error, "as it was");
        assert_eq!(bounded("two\nlines\u{7}"), "two lines ");
    }

    #[test]
    fn metadata_that_are_not_understood_either_still_say_whose_they_are() {
        let metadata = json!({"name": "n1", "resourceVersion": "9", "creationTimestamp": "tomorrow"});
        let sent: Sent<NodeUpdate> = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        assert_eq!((sent.meta().name.as_deref(), sent.meta().resource_version.as_deref()), (Some("n1"), Some("9")));
        let nothing: Sent<NodeUpdate> = serde_json::from_value(json!([])).unwrap();
        assert!(nothing.0.is_err() && nothing.meta().name.is_none());
    }

    #[test]
    fn without_what_only_tells_people_something_it_can_be_read() {
        let mut status = failed("Network");
        status["rollout"] = json!({"state": "Waiting", "reason": "Eclipse"});
        assert!(sent(7, &status).readable(&[]).is_err());
        let update = sent(7, &status).readable(&["/status/rollout"]).unwrap().status.unwrap();
        assert!(update.rollout.is_none() && update.last_error.is_some());
    }
}
