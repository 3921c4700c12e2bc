//! Facts about policies and about what people ordered beside them.

use super::Offer;
use crate::{PolicyError, ValidPolicy};
use bascule_api::{FreezeSpec, RollbackSpec, RollbackStatus, Time, UpdatePolicyStatus};
use std::{collections::BTreeMap, sync::Arc};

/// One UpdatePolicy with its memory and what its channel offers.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// `metadata.creationTimestamp`. Nodes that were there before are no new nodes to it.
    pub created_at: Time,
    /// `metadata.generation`.
    pub generation: i64,
    /// Its labels, for the selectors of Freezes.
    pub labels: BTreeMap<String, String>,
    /// When it was read again after it could not be, the last time that the operator saw this happen: nobody looked after its nodes until
    /// then. `None` where it never did.
    pub read_again: Option<Time>,
    /// Its spec, validated; see [`crate::validate()`].
    pub spec: Result<Arc<ValidPolicy>, PolicyError>,
    /// What a person could do better about a policy that can be used as it is, as a sentence for its `Accepted` condition. It
    /// decides nothing.
    pub advice: Option<String>,
    /// Its status as last written: target, blocked releases, failures, timings and history are its memory.
    pub status: UpdatePolicyStatus,
    /// What its channel offers.
    pub offer: Arc<Offer>,
}

/// One Freeze.
#[derive(Debug, Clone, PartialEq)]
pub struct FreezeFacts {
    /// Its name.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, from which its duration counts.
    pub created_at: Time,
    /// Whether an owner or a tool keeps it, who makes it anew when it is gone.
    pub kept_elsewhere: bool,
    /// What was ordered.
    pub spec: FreezeSpec,
    /// Its status as last written.
    pub status: bascule_api::FreezeStatus,
}

impl FreezeFacts {
    /// When it ends by itself.
    #[must_use]
    pub fn ends_at(&self) -> Time {
        self.spec.ends_at(self.created_at)
    }

    /// Whether it holds anything at a time.
    #[must_use]
    pub fn is_active(&self, now: Time) -> bool {
        self.spec.is_active(self.created_at, now)
    }

    /// Whether it holds a policy as a whole at a time.
    #[must_use]
    pub fn holds(&self, policy: &PolicyFacts, now: Time) -> bool {
        self.is_active(now) && self.spec.is_for_policy(&policy.name, &policy.labels)
    }

    /// Whether it holds a node by its name at a time.
    #[must_use]
    pub fn holds_node(&self, node: &str, now: Time) -> bool {
        self.is_active(now) && self.spec.is_for_node(node)
    }
}

/// One Rollback.
#[derive(Debug, Clone, PartialEq)]
pub struct RollbackFacts {
    /// Its name.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`. Of two that speak about a node the younger counts.
    pub created_at: Time,
    /// What was ordered.
    pub spec: RollbackSpec,
    /// Its status as last written: which releases are left is decided once and remembered there.
    pub status: RollbackStatus,
}

/// The last answer of a health gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateAnswer {
    /// The policy whose gate it is.
    pub policy: String,
    /// The gate's name, see [`ValidPolicy::gates`].
    pub gate: String,
    /// The node it was asked for; `None` for a gate that does not speak about nodes.
    pub node: Option<String>,
    /// Whether it passes.
    pub passes: bool,
    /// Whether this is an answer at all. A server that can't be asked gives none, nor does an object without the field
    /// that is asked for; neither passes, and neither says anything against a release.
    pub known: bool,
    /// What was found, e.g. `max(ALERTS…) is 2, wanted 0`.
    pub message: String,
    /// As of when it is so: when it was asked, or earlier where it rests on what was known then.
    pub at: Time,
    /// Since when it has had this answer.
    pub since: Time,
    /// When it did not pass last, as far as whoever asks remembers.
    pub missed: Option<Missed>,
}

/// That a health gate did not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// As of when.
    pub at: Time,
    /// Whether it said no, rather than nothing.
    pub known: bool,
}
