//! A person's word that a node tries again what went wrong on it (`spec.retries`): it is handed on to the agent, and once
//! the agent has answered, the policy forgets as well (docs/decisions/0041).

use super::Round;
use crate::{Action, Expect, Step};
use bascule_api::Goal;

impl Round<'_> {
    /// Hands on what was not heard of yet, and forgets where it was followed. A node in the middle of a disruption is asked
    /// when that is over.
    pub(super) fn follow_retries(&mut self) {
        for policy in &mut self.policies {
            let Some(valid) = policy.valid else { continue };
            for retry in &valid.spec.retries {
                if policy.memory.has_retried(retry) {
                    continue;
                }
                let mut members = policy.members.iter().filter_map(|index| self.nodes.get(*index));
                let Some(view) = members.find(|view| *view.node.name == *retry.node) else { continue };
                let Some(update) = view.update().filter(|update| update.spec.policy == policy.facts.name) else {
                    continue;
                };
                if update.status.retried == Some(retry.at) {
                    policy.memory.retry(retry, &valid.spec.retries);
                    continue;
                }
                let is_idle = update.spec.disruption.is_none()
                    && matches!(update.spec.goal, Goal::Idle | Goal::Staged | Goal::Committed);
                if is_idle && !view.traits.on_trial && update.spec.retry != Some(retry.at) {
                    self.draft.steps.push(Step {
                        action: Action::Retry { node: retry.node.clone(), at: retry.at },
                        expect: Expect::without_grant(view.node, update.spec.goal),
                        cause: None,
                        says: retry.reason.clone().unwrap_or_else(|| "a person asked for it".to_owned()),
                    });
                }
            }
        }
    }
}
