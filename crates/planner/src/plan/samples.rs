//! Steps for tests that are not about what a step says or expects.

use super::{Action, Expect, Step};
use std::time::Duration;

pub(crate) fn at(second: u64) -> Duration {
    Duration::from_secs(second)
}

pub(crate) fn step(action: Action) -> Step {
    Step { action, expect: Expect::default(), cause: None, says: String::new() }
}

pub(crate) fn rest(node: &str) -> Step {
    step(Action::Rest { node: node.to_owned() })
}

pub(crate) fn grant(node: &str) -> Step {
    let object = bascule_api::ObjectRef { kind: "UpdatePolicy".to_owned(), namespace: None, name: "p".to_owned() };
    step(Action::Grant {
        node: node.to_owned(),
        boot_id: String::new(),
        generation: 1,
        cause: bascule_api::Cause { object, user: None },
        was_cordoned: false,
        at: bascule_api::Time::default(),
        drain_begins: true,
        budgets_open_within: None,
        closed_budgets: Vec::new(),
        daemon_sets: Vec::new(),
        accept_state: false,
    })
}
