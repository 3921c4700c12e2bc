//! Nodes without a grant: what has to be set right before anything is asked of them.

use super::{Round, Said, facts::Selection};
use crate::{
    Action, Expect, Step, Wait,
    plan::{self, Taint},
    snapshot::{Cordon, Truce},
};
use bascule_api::{Goal, RolloutState, WaitReason};
use std::sync::Arc;

impl Round<'_> {
    /// Creates what is missing, clears away what was left behind, and says why nodes that no policy decides about
    /// stay as they are.
    pub(super) fn look_after_idle(&mut self) {
        let shared = Shared::default();
        for index in &self.known.groups.unsettled {
            self.look_after(*index, &shared);
        }
    }

    fn look_after(&mut self, index: usize, shared: &Shared) {
        let Some(view) = self.nodes.get(index).copied() else { return };
        let node = view.node;
        let expect = || Expect { node_uid: Some(node.uid.clone()), ..Expect::default() };
        let mut act = |action: Action, expect: Expect, says: &str| {
            self.draft.steps.push(Step { action, expect, cause: None, says: says.to_owned() });
        };
        if node.deleting {
            self.draft.say(index, Said::shared(RolloutState::Unknown, Arc::clone(&shared.gone)));
            return;
        }
        let truce_until = self.snapshot.now.after(super::TRUCE_AFTER);
        // Another operator died between freeing the grant and this, or the NodeUpdate was lost.
        let left = match &node.cordon {
            Cordon::Ours { mark } => {
                let says = "takes work again; the cordon was left behind";
                Some((mark, plan::Cordon::Ours(mark.clone()), says))
            }
            Cordon::Lifted { mark } => Some((mark, plan::Cordon::Lifted(mark.clone()), "")),
            Cordon::None | Cordon::Other { .. } => None,
        };
        let left_nothing = left.is_none();
        if let Some((mark, cordon, says)) = left {
            let action = Action::Uncordon {
                node: node.name.to_string(),
                mark: mark.clone(),
                remove_outdated: false,
                truce_until,
            };
            act(action, Expect { cordon: Some(cordon), ..expect() }, says);
        }
        let over = match node.truce {
            Truce::None => false,
            Truce::Held => left_nothing,
            Truce::Until(until) => until <= self.snapshot.now,
        };
        if over {
            act(Action::EndTruce { node: node.name.to_string() }, expect(), "");
        }
        if let Truce::Until(until) = node.truce {
            self.draft.wake(Some(until), self.snapshot.now);
        }
        let said = match view.traits.selection {
            Selection::None => Some(Said::shared(RolloutState::Unknown, Arc::clone(&shared.not_selected))),
            Selection::Conflict(first, second) => {
                let name = |index: usize| self.policies.get(index).map_or("", |policy| policy.facts.name.as_str());
                let message = format!("policies {} and {} both select the node", name(first), name(second));
                let wait = Wait::new(WaitReason::PolicyConflict, message).of("UpdatePolicy", None, name(first));
                Some(Said::new(RolloutState::Waiting, wait))
            }
            Selection::One(policy) => self
                .policies
                .get(policy)
                .and_then(|policy| policy.invalid.as_ref())
                .map(|wait| Said::shared(RolloutState::Waiting, Arc::clone(wait))),
        };
        let decided = said.is_none();
        if let Some(said) = said {
            self.draft.say(index, said);
        }
        let Some(update) = view.update() else {
            if decided {
                self.create(index);
            }
            return;
        };
        let exact = || Expect { has_update: Some(true), goal: Some(update.spec.goal), grant: Some(None), ..expect() };
        let name = || node.name.to_string();
        let unasked = matches!(update.spec.goal, Goal::Booted | Goal::Reverted);
        let orphaned = view.traits.selection == Selection::None && update.spec.goal == Goal::Staged;
        if unasked || orphaned {
            // Nothing is disrupted without a grant: somebody edited the object, or the policy let the node go.
            let says = if unasked { "goal without a grant is taken back" } else { "" };
            self.draft.steps.push(Step {
                action: Action::Rest { node: name() },
                expect: exact(),
                cause: None,
                says: says.to_owned(),
            });
        }
        if view.traits.on_trial {
            let message =
                "runs a trial that was not asked for; it reverts by itself unless it is committed on the node";
            self.draft.say(index, Said::new(RolloutState::Trial, Wait::new(WaitReason::Trial, message)));
            return;
        }
        if let Selection::One(policy) = view.traits.selection
            && let Some(policy) = self.policies.get(policy)
            && policy.valid.is_some()
            && policy.facts.name != update.spec.policy
        {
            let action = Action::SetPolicy { node: name(), policy: policy.facts.name.clone() };
            self.draft.steps.push(Step { action, expect: exact(), cause: None, says: String::new() });
        }
    }

    fn create(&mut self, index: usize) {
        let Some(view) = self.nodes.get(index).copied() else { return };
        let node = view.node;
        let Some(policy) = self.deciding(&view).and_then(|policy| self.policies.get(policy)) else { return };
        if node.update.is_some() {
            let message = "the NodeUpdate of an earlier Node of this name is being removed";
            self.draft.say(index, Said::new(RolloutState::Unknown, Wait::new(WaitReason::NodeGone, message)));
            return;
        }
        let expect = || Expect { node_uid: Some(node.uid.clone()), ..Expect::default() };
        let joined = node.created_at > policy.facts.created_at && node.pods.remaining == 0;
        if joined && !node.taints.hold && policy.valid.is_some_and(|valid| valid.spec.new_nodes.hold) {
            self.draft.steps.push(Step {
                action: Action::Taint { node: node.name.to_string(), taint: Taint::Hold },
                expect: expect(),
                cause: None,
                says: "gets no work until it runs the policy's release".to_owned(),
            });
        }
        self.draft.steps.push(Step {
            action: Action::CreateNodeUpdate { node: node.name.to_string(), policy: policy.facts.name.clone() },
            expect: Expect { has_update: Some(false), ..expect() },
            cause: None,
            says: String::new(),
        });
        let wait = Wait::new(WaitReason::AgentNotReporting, "the NodeUpdate is created; the agent reports into it");
        self.draft.say(index, Said::new(RolloutState::Unknown, wait));
    }
}

struct Shared {
    gone: Arc<Wait>,
    not_selected: Arc<Wait>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            gone: Arc::new(Wait::new(WaitReason::NodeGone, "the Node is being deleted")),
            not_selected: Arc::new(Wait::new(WaitReason::NotSelected, "no policy selects the node")),
        }
    }
}
