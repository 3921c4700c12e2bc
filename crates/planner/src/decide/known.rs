//! What one plan leaves for the next, so that a change of one node does not cost a decision about every node.
//!
//! Four things are kept, each only as long as everything it was made from is the very same: a node's [`Traits`]
//! (the node and the policies' selectors), the order of nodes by lot (their names), the [`Groups`] they stand in, and the [`Verdict`] of a node's own
//! gates (the node, and the [`Ground`] that all nodes of its policy stand on). Everything that several nodes share
//! (budgets, waves, who goes next) is decided anew in each plan. A planner that knows nothing gives the same plans,
//! which `planning_on_from_the_last_plan_gives_what_planning_anew_gives` of the simulator holds over seeded worlds.

use super::{
    facts::{NodeView, Traits},
    groups::{Groups, Sides},
    policy::{Orders, PolicyView},
    texts::Texts,
};
use crate::{
    Gate, PolicyError, Snapshot, ValidPolicy, Wait,
    snapshot::{Node, Offer},
};
use bascule_api::{BlockedRelease, KubernetesVersion, PolicyFailure, ReleaseInfo, Time, WaitReason};
use std::sync::Arc;

/// How many texts are known beyond a few for each node before all is forgotten, so that releases and zones that come
/// and go over years don't add up.
const MOST_TEXTS: usize = 4_096;

/// What everything that is known was made from, beside the nodes themselves.
#[derive(Debug, Default)]
struct Basis {
    seed: u64,
    operator_node: Option<String>,
    /// Each policy's name and its spec, or why that can't be used: of one that can't be read it says what it selects.
    policies: Vec<(String, Result<Arc<ValidPolicy>, PolicyError>)>,
}

impl Basis {
    fn of(snapshot: &Snapshot) -> Self {
        let policies = snapshot.policies.iter().map(|policy| (policy.name.clone(), policy.spec.clone()));
        Self { seed: snapshot.seed, operator_node: snapshot.operator_node.clone(), policies: policies.collect() }
    }

    fn holds(&self, snapshot: &Snapshot) -> bool {
        self.seed == snapshot.seed
            && self.operator_node == snapshot.operator_node
            && self.policies.len() == snapshot.policies.len()
            && self.policies.iter().zip(&snapshot.policies).all(|((name, known), policy)| {
                *name == policy.name
                    && match (known, &policy.spec) {
                        (Ok(known), Ok(valid)) => Arc::ptr_eq(known, valid) || known == valid,
                        (Err(known), Err(error)) => known == error,
                        _ => false,
                    }
            })
    }
}

/// A node as last looked at, with what follows from it alone.
#[derive(Debug)]
struct KnownNode {
    node: Arc<Node>,
    traits: Traits,
}

/// What follows from single nodes, as last looked at.
#[derive(Debug)]
pub(super) struct Known {
    basis: Basis,
    /// Every node of the snapshot, in its order.
    nodes: Vec<KnownNode>,
    /// Every node by its lot.
    by_lot: Vec<usize>,
    pub(super) groups: Groups,
    /// Every node's name.
    pub(super) names: Arc<[Arc<str>]>,
    pub(super) texts: Texts,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            basis: Basis::default(),
            nodes: Vec::new(),
            by_lot: Vec::new(),
            groups: Groups::default(),
            names: Arc::from([]),
            texts: Texts::default(),
        }
    }
}

impl Known {
    /// Every node of the snapshot that was looked at last, in its order.
    pub(super) fn views(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes.iter().map(|known| NodeView { node: &known.node, traits: &known.traits })
    }

    /// Looks again at nodes that are not the very same as last time, and forgets their verdicts.
    pub(super) fn look(&mut self, snapshot: &Snapshot, verdicts: &mut Verdicts) {
        let crowded = self.texts.count() > MOST_TEXTS.saturating_add(snapshot.nodes.len().saturating_mul(4));
        if crowded || !self.basis.holds(snapshot) {
            *self = Self { basis: Basis::of(snapshot), ..Self::default() };
            *verdicts = Verdicts::default();
        }
        let mut order_holds = self.nodes.len() == snapshot.nodes.len();
        let mut groups_hold = order_holds;
        self.nodes.truncate(snapshot.nodes.len());
        verdicts.nodes.resize(snapshot.nodes.len(), None);
        for (index, node) in snapshot.nodes.iter().enumerate() {
            if self.nodes.get(index).is_some_and(|known| Arc::ptr_eq(&known.node, node)) {
                continue;
            }
            let traits = Traits::of(snapshot, node, &mut self.texts);
            if let Some(verdict) = verdicts.nodes.get_mut(index) {
                *verdict = None;
            }
            let looked_at = KnownNode { node: Arc::clone(node), traits };
            match self.nodes.get_mut(index) {
                Some(known) => {
                    order_holds &= known.traits.lot == looked_at.traits.lot && known.node.name == node.name;
                    groups_hold &= Sides::of(&known.traits, snapshot) == Sides::of(&looked_at.traits, snapshot);
                    *known = looked_at;
                }
                // They come in order: what is not known yet stands behind all that is.
                None => self.nodes.push(looked_at),
            }
        }
        if !order_holds {
            let mut order: Vec<_> = self.nodes.iter().map(|known| known.traits.lot).zip(0..).collect();
            order.sort_unstable();
            self.by_lot = order.into_iter().map(|(_, index)| index).collect();
            self.names = snapshot.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        }
        if !(order_holds && groups_hold) {
            self.groups = Groups::of(snapshot, self.nodes.iter().map(|known| &known.traits), &self.by_lot);
        }
    }
}

/// All that the own gates of a policy's idle nodes look at beside the node itself, its wave, and what the basis holds
/// still. `None` stands for "can't be compared": a Rollback is in force, which speaks about single nodes.
#[derive(Debug, PartialEq)]
pub(super) struct Ground {
    offer: Arc<Offer>,
    /// Which releases are too young; why follows from the release and the policy's spec.
    young: Vec<bool>,
    blocked: Vec<BlockedRelease>,
    /// As they are remembered, and as they were written: what a person has forgotten counts until that is written.
    failures: [Vec<PolicyFailure>; 2],
    releases: [Option<ReleaseInfo>; 2],
    api_server: Option<KubernetesVersion>,
    waits: [Option<Arc<Wait>>; 6],
    orders: Orders,
}

impl Ground {
    pub(super) fn of(policy: &PolicyView<'_>, now: Time) -> Option<Self> {
        if !policy.rollbacks.is_empty() {
            return None;
        }
        let offer = Arc::clone(&policy.facts.offer);
        let status = &policy.facts.status;
        Some(Self {
            young: offer.releases.iter().map(|release| policy.too_young(release, now).is_some()).collect(),
            offer,
            blocked: policy.memory.blocked.clone(),
            failures: [policy.memory.failures.clone(), status.failures.clone()],
            releases: [status.target.clone(), status.previous.clone()],
            api_server: policy.api_server,
            orders: policy.orders.clone(),
            waits: [
                policy.paused.clone(),
                policy.frozen.clone(),
                policy.halted.clone(),
                policy.repository.clone(),
                policy.closed.clone(),
                policy.too_short.clone(),
            ],
        })
    }
}

/// What a node's own gates said.
#[derive(Debug, Clone)]
struct Verdict {
    ground: u64,
    held: Option<WaitReason>,
    at: Time,
    until: Option<Time>,
    found: Option<(Gate, Arc<Wait>)>,
}

/// What the own gates of every node said, and on what ground.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    nodes: Vec<Option<Verdict>>,
    /// By policy.
    grounds: Vec<Option<(u64, Ground)>>,
    last: u64,
}

/// On what a policy's nodes are judged in this plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footing(Option<u64>);

impl Verdicts {
    /// Verdicts on an equal ground hold on.
    pub(super) fn stand(&mut self, policy: usize, ground: Option<Ground>) -> Footing {
        if self.grounds.len() <= policy {
            self.grounds.resize_with(policy.saturating_add(1), || None);
        }
        let Some(known) = self.grounds.get_mut(policy) else { return Footing(None) };
        let Some(ground) = ground else { return Footing(None) };
        match known {
            Some((number, before)) if *before == ground => Footing(Some(*number)),
            _ => {
                self.last += 1;
                *known = Some((self.last, ground));
                Footing(Some(self.last))
            }
        }
    }

    /// What a node's gates said on the same ground, if time has not changed it since: a gate that time opens says
    /// until when it holds, and none closes again by time alone.
    pub(super) fn recall(
        &self,
        node: usize,
        footing: Footing,
        holds: Option<&Arc<Wait>>,
        now: Time,
    ) -> Option<Option<(Gate, Arc<Wait>)>> {
        let verdict = self.nodes.get(node)?.as_ref()?;
        let same = footing.0 == Some(verdict.ground)
            && holds.map(|wait| wait.reason) == verdict.held
            && verdict.at <= now
            && verdict.until.is_none_or(|until| now < until);
        if !same {
            return None;
        }
        Some(match (&verdict.found, holds) {
            // How far the wave before is changes with every node of it.
            (Some((gate @ (Gate::Wave | Gate::WaveSoak), _)), Some(wait)) => Some((*gate, Arc::clone(wait))),
            (found, _) => found.clone(),
        })
    }

    pub(super) fn keep(
        &mut self,
        node: usize,
        footing: Footing,
        holds: Option<&Arc<Wait>>,
        now: Time,
        found: Option<&(Gate, Arc<Wait>)>,
    ) {
        let (Some(ground), Some(slot)) = (footing.0, self.nodes.get_mut(node)) else { return };
        let until = match found {
            Some((Gate::Wave | Gate::WaveSoak, _)) | None => None,
            Some((_, wait)) => wait.until,
        };
        let held = holds.map(|wait| wait.reason);
        *slot = Some(Verdict { ground, held, at: now, until, found: found.cloned() });
    }
}
