//! What is kept of an object.

use crate::Untyped;
use bascule_api::{Time, UpdatePolicySpec};
use bascule_planner::{PolicyError, ValidPolicy};
use kube_core::Resource;

/// How the specs of policies are validated. Which time zones are known, and whether expressions can be parsed, depends on the program.
pub type Validate = fn(&UpdatePolicySpec) -> Result<ValidPolicy, PolicyError>;

/// What is kept of an object: only what is needed, so that memory stays bounded.
pub trait Fact: PartialEq + Send + Sync + 'static {
    /// The object as the API server sends it.
    type Raw: Resource<DynamicType = ()>;

    /// Fields that only tell people what was decided, as JSON pointers. An object that can't be read because of them is read without
    /// them, and they are written anew.
    const SAID: &'static [&'static str] = &[];

    /// Takes what is needed.
    fn of(raw: &Self::Raw) -> Self;

    /// The same, where policies are validated in this way.
    fn validated(raw: &Self::Raw, validate: Validate) -> Self
    where
        Self: Sized,
    {
        let _ = validate;
        Self::of(raw)
    }

    /// What is to be taken for an object that can't be read, over what was known of it `before`. `None`: what was known stays; where
    /// nothing was, the object is known by its name alone.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self>
    where
        Self: Sized,
    {
        let _ = (untyped, before);
        None
    }

    /// Takes over what an object does not show and was seen of it before; `before` is the object of this name as it was,
    /// if it was known. `now` is when it is seen.
    fn follow(&mut self, before: Option<&Self>, now: Time) {
        let _ = (before, now);
    }

    /// Takes note that the object could not be read a moment ago, and is read now.
    fn is_read_again(&mut self, now: Time) {
        let _ = now;
    }

    /// Whether it says something that `before`, the same object as it was known, did not: a heartbeat says nothing, and neither does what
    /// is kept for writes alone. What tells nothing new wakes nobody.
    fn is_news(&self, before: &Self) -> bool {
        self != before
    }

    /// The same of the answer to a write of ours that only told people what was planned.
    fn is_more_than_told(&self, before: &Self) -> bool {
        self.is_news(before)
    }

    /// Whether it is one of the few of its kind that are asked for together, e.g. a pod that is not ready.
    fn stands_out(&self) -> bool {
        false
    }

    /// Whether the last that was known of an object counts on after its deletion.
    fn outlives(&self) -> bool {
        false
    }

    /// What objects of this kind are looked up by beside their key, e.g. a pod's node; empty for none.
    fn place(&self) -> &str {
        ""
    }
}

pub(crate) fn name(object: &impl Resource) -> String {
    object.meta().name.clone().unwrap_or_default()
}

pub(crate) fn uid(object: &impl Resource) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

pub(crate) fn created(object: &impl Resource) -> Time {
    object.meta().creation_timestamp.as_ref().map_or_else(Time::default, Time::from_kubernetes)
}
