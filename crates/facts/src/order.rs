//! What is kept of what people ordered.

use crate::{Fact, fact};
use bascule_api::{Freeze, Rollback};
use bascule_planner::snapshot::{FreezeFacts, RollbackFacts};
use std::sync::Arc;

/// One Freeze.
#[derive(Debug, Clone, PartialEq)]
pub struct FreezeFact(pub Arc<FreezeFacts>, pub String);

impl Fact for FreezeFact {
    type Raw = Freeze;

    fn of(freeze: &Freeze) -> Self {
        let facts = FreezeFacts {
            name: fact::name(freeze),
            generation: freeze.metadata.generation.unwrap_or_default(),
            created_at: fact::created(freeze),
            kept_elsewhere: freeze.is_kept_elsewhere(),
            spec: freeze.spec.clone(),
            status: freeze.status.clone().unwrap_or_default(),
        };
        Self(Arc::new(facts), fact::uid(freeze))
    }
}

/// One Rollback.
#[derive(Debug, Clone, PartialEq)]
pub struct RollbackFact(pub Arc<RollbackFacts>, pub String);

impl Fact for RollbackFact {
    type Raw = Rollback;

    fn of(rollback: &Rollback) -> Self {
        let facts = RollbackFacts {
            name: fact::name(rollback),
            generation: rollback.metadata.generation.unwrap_or_default(),
            created_at: fact::created(rollback),
            spec: rollback.spec.clone(),
            status: rollback.status.clone().unwrap_or_default(),
        };
        Self(Arc::new(facts), fact::uid(rollback))
    }
}
