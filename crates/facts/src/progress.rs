//! How far the running drain of a node is: what only the operator that drains it knows.

use bascule_api::ObjectRef;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A pod that does not go, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The pod.
    pub pod: ObjectRef,
    /// Why, in a sentence.
    pub message: String,
    /// What stands in the way, where that is an object.
    pub object: Option<ObjectRef>,
    /// Whether only a person can change that.
    pub permanent: bool,
}

/// How far a drain is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pods that had to go, in all.
    pub pods: usize,
    /// Pods that are gone.
    pub gone: usize,
    /// Pods that do not go, with the reason.
    pub blocked: Vec<Blocked>,
    /// The UIDs of pods that are left where they are, because their owner brings them back.
    pub given_up: BTreeSet<String>,
    /// Why nothing is evicted at all.
    pub refused: Option<String>,
    /// Budgets that made pods wait, and for how long in all.
    pub waited_for: BTreeMap<ObjectRef, Duration>,
}
