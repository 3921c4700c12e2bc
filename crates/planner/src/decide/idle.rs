//! Nodes without a grant: what has to be set right before anything is asked of them.

use super::{
    Round, Said,
    desired::Desired,
    facts::{NodeView, Selection},
};
use crate::{
    Action, Expect, Rule, Step, Wait,
    plan::{self, Taint},
    snapshot::{Cordon, Excluded, Truce},
};
use bascule_api::{Duration, Goal, NodeUpdateSpec, ReleaseRef, RolloutState, WaitReason};
use std::sync::Arc;

/// How long after its grant a disruption is carried on with when its Node comes back. Later the machine of that name is
/// another one.
const CARRIED_ON: Duration = Duration::from_secs(86_400);

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
        let Some(view) = self.nodes.get(index).map(|node| node.view) else { return };
        let node = view.node;
        let expect = || Expect { node_uid: Some(node.uid.clone()), ..Expect::default() };
        let unreadable = self.unreadable(&view);
        let carried_on = self.interrupted(&view).is_some() || self.adoption(&view).is_some();
        let mut act = |action: Action, expect: Expect, says: &str| {
            self.draft.steps.push(Step { action, expect, cause: None, says: says.to_owned() });
        };
        if node.deleting {
            self.draft.say(index, Said::shared(RolloutState::Unknown, Arc::clone(&shared.gone)));
            return;
        }
        if let Some(said) = unreadable {
            self.draft.say(index, said);
            return;
        }
        let truce_until = self.snapshot.now.after(super::TRUCE_AFTER);
        // Another operator died between freeing the grant and this, or the NodeUpdate was lost.
        let left = match &node.cordon {
            // What came back in the middle of its disruption is carried on with.
            _ if carried_on => None,
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
            Truce::None => node.excluded == Excluded::ByUs && left_nothing && !carried_on,
            Truce::Held => left_nothing && !carried_on,
            Truce::Until(until) => until <= self.snapshot.now,
        };
        if over && self.set.keeps(Rule::TruceEnds) {
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
        let exact = || Expect::without_grant(node, update.spec.goal);
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
        if let Some((release, generation)) = self.adoption(&view) {
            self.adopt(index, release, generation, exact());
            return;
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

    /// The disruption that an earlier Node of this name was in, and that is carried on with: its machine may run a trial.
    fn interrupted(&self, view: &NodeView<'_>) -> Option<NodeUpdateSpec> {
        self.deciding(view)?;
        let spec = view.node.interrupted().filter(|_| self.set.keeps(Rule::Adoption) && !view.traits.live)?;
        let disruption = spec.disruption.as_ref()?;
        let recent = self.now() < disruption.granted_at.after(CARRIED_ON);
        recent.then(|| spec.clone())
    }

    /// A trial that is to be carried on with though its NodeUpdate knows nothing of its grant, and that grant: the Node was
    /// deleted and came back, and nobody remembers. What a person tries on the node uses no grant.
    fn adoption(&self, view: &NodeView<'_>) -> Option<(ReleaseRef, i64)> {
        let update = view.update().filter(|_| view.traits.on_trial && !view.traits.moves)?;
        let used = update.status.last_grant.filter(|_| update.forgot_a_grant() && self.set.keeps(Rule::Adoption))?;
        let policy = self.deciding(view).and_then(|policy| self.policies.get(policy))?;
        Some((super::desired::reference(policy, view, view.running()?)?, used))
    }

    fn adopt(&mut self, index: usize, release: ReleaseRef, generation: i64, expect: Expect) {
        let Some(view) = self.nodes.get(index).map(|node| node.view) else { return };
        let Some(policy) = self.deciding(&view).and_then(|policy| self.policies.get(policy)) else { return };
        let cause = Desired::Here.cause(&policy.facts.name);
        let says = format!("carries on with the trial of {}: the Node was deleted and came back", release.version);
        let name = view.node.name.to_string();
        self.cordon(&view, generation);
        self.draft.steps.push(Step {
            action: Action::Adopt {
                node: name,
                release,
                generation,
                cause: cause.clone(),
                was_cordoned: view.traits.cordoned_by_other,
                at: self.snapshot.now,
            },
            expect,
            cause: Some(cause),
            says: says.clone(),
        });
        self.draft.say(index, Said::new(RolloutState::Trial, Wait::new(WaitReason::Trial, says)));
    }

    /// A Node that came back in the middle of its disruption is schedulable, and is to take no pods.
    fn cordon(&mut self, view: &NodeView<'_>, generation: i64) {
        if view.node.cordon != Cordon::None {
            return;
        }
        let name = view.node.name.to_string();
        let mark = plan::cordon_mark(&name, generation);
        self.draft.steps.push(Step {
            action: Action::Cordon { node: name, mark },
            expect: Expect {
                node_uid: Some(view.node.uid.clone()),
                cordon: Some(plan::Cordon::None),
                ..Expect::default()
            },
            cause: None,
            says: "takes no new pods: it came back in the middle of its update".to_owned(),
        });
    }

    fn create(&mut self, index: usize) {
        let Some(view) = self.nodes.get(index).map(|node| node.view) else { return };
        let node = view.node;
        let Some(policy) = self.deciding(&view).and_then(|policy| self.policies.get(policy)) else { return };
        let name = policy.facts.name.clone();
        let interrupted = self.interrupted(&view);
        if let Some(spec) = &interrupted {
            self.cordon(&view, spec.grant.as_ref().map_or(0, |grant| grant.generation));
        }
        if node.update.is_some() {
            let message = "the NodeUpdate of an earlier Node of this name is being removed";
            self.draft.say(index, Said::new(RolloutState::Unknown, Wait::new(WaitReason::NodeGone, message)));
            return;
        }
        if let Some(spec) = interrupted {
            let says = "carries on with the update that the Node was deleted in";
            self.draft.steps.push(Step {
                action: Action::CreateNodeUpdate { node: node.name.to_string(), spec: Box::new(spec) },
                expect: Expect { node_uid: Some(node.uid.clone()), has_update: Some(false), ..Expect::default() },
                cause: None,
                says: says.to_owned(),
            });
            self.draft.say(index, Said::new(RolloutState::Rebooting, Wait::new(WaitReason::Rebooting, says)));
            return;
        }
        let Some(policy) = self.deciding(&view).and_then(|policy| self.policies.get(policy)) else { return };
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
            action: Action::CreateNodeUpdate { node: node.name.to_string(), spec: Box::new(plan::initial_spec(&name)) },
            expect: Expect { has_update: Some(false), ..expect() },
            cause: None,
            says: String::new(),
        });
        let wait =
            Wait::new(WaitReason::AgentNotReporting, "the NodeUpdate is being created; the agent reports into it");
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
