//! How long a new node is held (`newNodes.hold`): until it runs what it should, and no longer than that can be told in
//! minutes.
//!
//! What is not known yet holds it on: its agent's word, the repository, the API servers' version, its labels. A decision of a
//! person and the rollout's own order let it go, since they may take days. Whatever it waits for, its time ends, unless its
//! update is under way: pods may have nowhere else to go.

use super::{
    PolicyWaves, Round, Selection,
    assess::may_come_up,
    desired::Desired,
    facts::NodeView,
    gates::{self, Candidate},
};
use crate::{
    Gate, Rule,
    snapshot::{Offer, OfferState},
};
use bascule_api::{Duration, Time, conditions::reason};

/// How long after it joined a node is held at most. The cluster autoscaler counts a node that is not ready by then as one
/// that will not be (its `MaxNodeStartupTime`).
const AT_MOST: Duration = Duration::from_minutes(15);

/// In what time labels come to a new node that the kubelet may not give it (`node-role.kubernetes.io/…`) or that others
/// find out (features of its hardware). Until then it may be a policy's that does not select it yet.
const LABELS_COME: Duration = Duration::from_minutes(2);

/// Whether a node that is held stays so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// It does, until then at most.
    Until(Time),
    /// It does not, with what is to be said of it.
    LetGo(String),
}

impl Round<'_> {
    /// What becomes of a node that is held.
    pub(super) fn held(&self, index: usize, view: &NodeView<'_>, waves: &[PolicyWaves]) -> Held {
        let joined = view.node.created_at;
        let wanted = match view.traits.selection {
            _ if self.unreadable(view).is_some() => Some(AT_MOST),
            Selection::None => self.may_be_selected(view).then_some(LABELS_COME),
            Selection::Conflict(..) => None,
            Selection::One(policy) => self.is_wanted(index, policy, view, waves).then_some(AT_MOST),
        };
        match wanted {
            None => Held::LetGo(String::new()),
            Some(span) if self.now() < joined.after(span) || !self.set.keeps(Rule::HoldEnds) => {
                Held::Until(joined.after(span))
            }
            Some(LABELS_COME) => Held::LetGo(String::new()),
            Some(span) => Held::LetGo(format!("takes work before its update: it has been held for {span}")),
        }
    }

    /// Whether a policy that holds new nodes may be about to select a node that none has selected so far.
    fn may_be_selected(&self, view: &NodeView<'_>) -> bool {
        let holds = |policy: &super::PolicyView<'_>| policy.valid.is_none_or(|valid| valid.spec.new_nodes.hold);
        view.node.update.is_none() && self.policies.iter().any(holds) && self.set.keeps(Rule::HeldUntilKnown)
    }

    fn is_wanted(&self, index: usize, policy: usize, view: &NodeView<'_>, waves: &[PolicyWaves]) -> bool {
        let Some(facts) = self.policies.get(policy) else { return false };
        // What an invalid policy would say is not known.
        let Some(valid) = facts.valid else { return true };
        if !valid.spec.new_nodes.hold {
            return false;
        }
        let comes = match self.nodes.get(index).and_then(|node| node.desired.as_ref()) {
            Some(Desired::Install(install)) => may_come_up(Some(facts), view, install),
            Some(Desired::Here | Desired::Nothing(_) | Desired::GoBack(_)) | None => false,
        };
        let unknown = !view.traits.booted || awaited(&facts.facts.offer);
        let candidate = waves.get(policy).and_then(|waves| self.candidate(policy, index, waves));
        let for_days = candidate.is_some_and(|candidate| self.may_take_days(&candidate));
        (comes || (unknown && self.set.keeps(Rule::HeldUntilKnown))) && !for_days
    }

    fn may_take_days(&self, candidate: &Candidate<'_, '_>) -> bool {
        let unknown = |gate: Gate| {
            self.set.keeps(Rule::HeldUntilKnown)
                && match gate {
                    Gate::Repository => awaited(&candidate.policy.facts.offer),
                    Gate::Skew => candidate.policy.api_server.is_none(),
                    _ => false,
                }
        };
        self.set.keeps(Rule::HeldForMinutes) && gates::may_take_days(candidate, unknown)
    }
}

/// Whether a repository was not read yet: not tried, or not reached since this operator began, which is tried again within
/// seconds. Whatever else is wrong with one, somebody has to mend.
fn awaited(offer: &Offer) -> bool {
    match &offer.state {
        OfferState::Unread => true,
        OfferState::Unusable { reason, .. } => *reason == reason::UNREACHABLE,
        OfferState::Valid | OfferState::Stale { .. } => false,
    }
}
