//! What is there and can't be read.

use crate::{PolicyErrorKind, Wait, snapshot::PolicyFacts};
use bascule_api::{ObjectRef, WaitReason};

/// An object that decisions rest on, and that this version of the operator does not understand: another one wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The object.
    pub object: ObjectRef,
    /// What was met in it, in a part of a sentence.
    pub why: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.object, bascule_api::NOT_UNDERSTOOD, self.why)
    }
}

impl Unreadable {
    /// What is waited for because of it.
    pub(crate) fn wait(&self) -> Wait {
        Wait::new(WaitReason::Unreadable, self.to_string()).of(
            &self.object.kind,
            self.object.namespace.as_deref(),
            &self.object.name,
        )
    }

    /// Whether it is this object, which has no namespace.
    pub(crate) fn is(&self, kind: &str, name: &str) -> bool {
        self.object.kind == kind && self.object.name == name
    }
}

impl PolicyFacts {
    /// What is said of the policy where its object can't be read.
    #[must_use]
    pub fn unreadable(&self) -> Option<Unreadable> {
        let PolicyErrorKind::Unreadable { why, .. } = &self.spec.as_ref().err()?.kind else { return None };
        let object = ObjectRef { kind: "UpdatePolicy".to_owned(), namespace: None, name: self.name.clone() };
        Some(Unreadable { object, why: why.clone() })
    }
}
