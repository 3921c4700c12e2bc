//! Objects as the expressions of gates see them.

use super::needs::Needs;
use cel::{Value, objects::Key};
use kube::api::DynamicObject;
use std::sync::Arc;

/// What a value or a key takes of memory beside its text, in bytes: its place, and that of what counts who has it.
const EACH: usize = 64;

/// An object that was read, as expressions see it, with what they look at. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    name: Arc<str>,
    value: Value,
}

impl Seen {
    pub(super) fn of(object: &DynamicObject, needs: &Needs) -> Result<Self, String> {
        let name = name_of(object);
        let value = cel::to_value(object).map_err(|_| format!("{name} holds what CEL has no type for"))?;
        Ok(Self { name: name.into(), value: needs.kept(&value) })
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What expressions see of it.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// About how many bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        self.name.len() + weight(&self.value)
    }
}

/// An object's name with its namespace, as answers show it.
pub(super) fn name_of(object: &DynamicObject) -> String {
    let own = object.metadata.name.as_deref().unwrap_or_default();
    match &object.metadata.namespace {
        Some(namespace) => format!("{namespace}/{own}"),
        None => own.to_owned(),
    }
}

fn weight(value: &Value) -> usize {
    let within: usize = match value {
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Map(map) => map.map.iter().map(|(key, value)| EACH + length(key) + weight(value)).sum(),
        Value::String(text) => text.len(),
        _ => 0,
    };
    EACH + within
}

fn length(key: &Key) -> usize {
    match key {
        Key::String(text) => text.len(),
        _ => 0,
    }
}
