//! Watches that stand still: for some rounds the operator sees what was so before, of one kind or of several, beside what it wrote
//! itself. What it writes is looked at as it is looked at there: what a step expects is compared with what is seen, and the API server
//! takes a write where the one object that it changes is as it was seen.

use super::{
    World,
    history::{ShownPods, View},
    refusing::Written,
};
use bascule_api::Time;
use bascule_planner::{
    Action, Expect, Mismatch, Report, Snapshot, Step, model,
    plan::Judged,
    snapshot::{Node, PolicyFacts},
};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Of a hundred rounds, in how many a watch that goes on begins to stand still.
const STANDS_STILL: u32 = 12;
/// For how many rounds at most: some minutes.
const ROUNDS: u32 = 3;

/// What is watched by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Nodes,
    NodeUpdates,
    /// And budgets.
    Pods,
    /// Policies, Freezes and Rollbacks.
    Orders,
}

const KINDS: [Kind; 4] = [Kind::Nodes, Kind::NodeUpdates, Kind::Pods, Kind::Orders];

/// An object that was answered to a write, or read past the watch.
#[derive(Debug)]
struct Answered {
    at: Time,
    node: Arc<Node>,
    pods: Arc<ShownPods>,
}

/// What a watch that stands still shows.
#[derive(Debug)]
struct Still {
    /// For how many rounds more.
    rounds: u32,
    at: Time,
    facts: Snapshot,
    pods: Arc<ShownPods>,
    /// What is known in spite of it, by node.
    answered: BTreeMap<Arc<str>, Answered>,
}

impl Still {
    fn node(&self, name: &str) -> Option<&Arc<Node>> {
        let shown = self.facts.nodes.iter().find(|node| *node.name == *name)?;
        Some(self.answered.get(name).map_or(shown, |answered| &answered.node))
    }
}

/// The watches of an operator.
#[derive(Debug)]
pub(super) struct Late {
    random: ChaCha8Rng,
    still: BTreeMap<Kind, Still>,
}

impl Late {
    pub(super) fn new(random: ChaCha8Rng) -> Self {
        Self { random, still: BTreeMap::new() }
    }
}

impl World {
    fn still(&self, kind: Kind) -> Option<&Still> {
        self.late.as_ref()?.still.get(&kind)
    }

    fn is_late(&self) -> bool {
        self.late.as_ref().is_some_and(|late| !late.still.is_empty())
    }

    /// The policies as whoever plans sees them.
    pub(super) fn policies_seen(&self) -> &[Arc<PolicyFacts>] {
        self.still(Kind::Orders).map_or(&self.snapshot.policies, |still| &still.facts.policies)
    }

    /// The Nodes that whoever plans sees.
    pub(super) fn nodes_seen(&self) -> &[Arc<Node>] {
        self.still(Kind::Nodes).map_or(&self.snapshot.nodes, |still| &still.facts.nodes)
    }

    /// All watches go on: somebody who begins to lead lists everything first.
    pub(super) fn watch_on(&mut self) {
        if let Some(late) = &mut self.late {
            late.still.clear();
        }
    }

    /// A round is over: watches go on that stood still, and others stand still.
    pub(super) fn stall_watches(&mut self) {
        if self.late.is_none() {
            return;
        }
        let (facts, pods) = (self.snapshot.clone(), self.shown_pods());
        let Some(late) = &mut self.late else { return };
        late.still.retain(|_, still| {
            still.rounds -= 1;
            still.rounds > 0
        });
        let mut stalled = Vec::new();
        for kind in KINDS {
            let (begins, rounds) = (late.random.random_range(0..100), late.random.random_range(1..=ROUNDS));
            if begins < STANDS_STILL && !late.still.contains_key(&kind) {
                let (facts, pods) = (facts.clone(), Arc::clone(&pods));
                let still = Still { rounds, at: facts.now, facts, pods, answered: BTreeMap::new() };
                late.still.insert(kind, still);
                stalled.push(kind);
            }
        }
        if !stalled.is_empty() {
            self.tell(&format!("watches of {stalled:?} stand still"));
        }
    }

    /// A node as it is seen.
    fn node_seen(&self, name: &str) -> Option<Arc<Node>> {
        let truth = self.snapshot.nodes.iter().find(|node| *node.name == *name);
        let shown = |kind: Kind| self.still(kind).map_or(truth, |still| still.node(name));
        let mut seen = shown(Kind::Nodes)?.clone();
        if !self.is_late() {
            return Some(seen);
        }
        let node = Arc::make_mut(&mut seen);
        node.back_seen = back_seen(node, shown(Kind::NodeUpdates).map(|shown| &**shown));
        node.update = shown(Kind::NodeUpdates).and_then(|shown| shown.update.clone());
        // What it remembers itself is no watch's to show.
        node.earlier = truth.filter(|truth| truth.uid == node.uid).and_then(|truth| truth.earlier.clone());
        match shown(Kind::Pods) {
            Some(shown) => {
                node.pods.clone_from(&shown.pods);
                node.daemon_sets.clone_from(&shown.daemon_sets);
                node.agent_trouble.clone_from(&shown.agent_trouble);
                node.etcd = shown.etcd;
            }
            None => node.pods = bascule_planner::snapshot::NodePods::default(),
        }
        Some(seen)
    }

    /// The cluster as the watches show it; `None` where all of them go on.
    pub(super) fn late_view(&mut self) -> Option<View> {
        if !self.is_late() {
            return None;
        }
        let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| self.still(*kind).is_some()).collect();
        self.tell(&format!("operator  sees no news of {kinds:?}"));
        let mut view = self.view();
        view.fresh = false;
        view.facts.nodes = self.nodes_seen().iter().filter_map(|node| self.node_seen(&node.name)).collect();
        if let Some(still) = self.still(Kind::Nodes) {
            view.at = still.at;
            view.new = still.answered.iter().map(|(name, answered)| (Arc::clone(name), answered.at)).collect();
        }
        if let Some(still) = self.still(Kind::Pods) {
            view.facts.budgets = Arc::clone(&still.facts.budgets);
            view.pods = Arc::clone(&still.pods);
            for (name, answered) in &still.answered {
                view.pods = Arc::new(view.pods.with(&answered.pods, &[Arc::clone(name)]));
            }
        }
        if let Some(still) = self.still(Kind::Orders) {
            let truth = &self.snapshot;
            view.facts.policies = still.facts.policies.clone();
            for policy in &mut view.facts.policies {
                // The status is its own word, and what is offered it reads itself.
                if let Some(now) = truth.policies.iter().find(|now| now.name == policy.name) {
                    let policy = Arc::make_mut(policy);
                    policy.status.clone_from(&now.status);
                    policy.offer = Arc::clone(&now.offer);
                }
            }
            view.facts.freezes = still.facts.freezes.clone();
            for freeze in &mut view.facts.freezes {
                if let Some(now) = truth.freezes.iter().find(|now| now.name == freeze.name) {
                    Arc::make_mut(freeze).status.clone_from(&now.status);
                }
            }
            view.facts.rollbacks = still.facts.rollbacks.clone();
            for rollback in &mut view.facts.rollbacks {
                if let Some(now) = truth.rollbacks.iter().find(|now| now.name == rollback.name) {
                    Arc::make_mut(rollback).status.clone_from(&now.status);
                }
            }
        }
        Some(view)
    }

    /// Writes what a step asks for, as the operator and the API server do.
    pub(super) fn written(&mut self, step: &Step, report: &Report) -> model::Done {
        if !self.is_late() {
            return model::apply(&mut self.snapshot, step, report);
        }
        if let Some(refused) = self.conflict(step) {
            return refused;
        }
        let blind = Step { expect: Expect::default(), ..step.clone() };
        let done = model::apply(&mut self.snapshot, &blind, report);
        if done == model::Done::Applied
            && let Some(name) = step.action.node()
        {
            match Written::by(&step.action) {
                Some(Written::Node) => self.answer(Kind::Nodes, name),
                Some(Written::NodeUpdate) => self.answer(Kind::NodeUpdates, name),
                Some(Written::Job) | None => {}
            }
        }
        done
    }

    /// The object of a node is known as it is.
    fn answer(&mut self, kind: Kind, name: &str) {
        let Some(node) = self.snapshot.nodes.iter().find(|node| *node.name == *name).cloned() else { return };
        let (at, pods) = (self.snapshot.now, self.shown_pods());
        if let Some(still) = self.late.as_mut().and_then(|late| late.still.get_mut(&kind)) {
            still.answered.insert(Arc::clone(&node.name), Answered { at, node, pods });
        }
    }

    /// Why a step is not carried out, if it is not.
    fn conflict(&mut self, step: &Step) -> Option<model::Done> {
        let Some(name) = step.action.node().map(str::to_owned) else {
            if self.is_another_policy(&step.action) {
                return Some(model::Done::Gone);
            }
            return self.another_trial(&step.action).map(model::Done::Refused);
        };
        let Some(seen) = self.node_seen(&name) else { return Some(model::Done::Gone) };
        if let Err(mismatch) = step.expect.check(&seen) {
            return Some(model::Done::Refused(mismatch));
        }
        let Some(truth) = self.snapshot.nodes.iter().find(|node| *node.name == *name).cloned() else {
            return Some(model::Done::Gone);
        };
        if matches!(step.action, Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. })
            && self.has_other_pods(&name)
        {
            self.answer(Kind::Pods, &name);
            self.tell(&format!("API server  shows other pods on {name} than the watch"));
            return Some(model::Done::Refused(Mismatch::Update));
        }
        if matches!(step.action, Action::Commit { .. } | Action::Revert { drained_at: None, .. })
            && (&truth.uid, &truth.boot_id, truth.ready) != (&seen.uid, &seen.boot_id, seen.ready)
        {
            self.answer(Kind::Nodes, &name);
            self.tell(&format!("API server  shows another boot of {name}, or another Ready, than the watch"));
            return Some(model::Done::Refused(Mismatch::BootId));
        }
        let mismatch = match Written::by(&step.action) {
            // What is made for a Node that is gone goes with it.
            Some(Written::NodeUpdate) if matches!(step.action, Action::CreateNodeUpdate { .. }) => {
                (truth.uid != seen.uid || truth.update.is_some()).then_some(Mismatch::Update)
            }
            Some(Written::NodeUpdate) => (truth.update != seen.update).then_some(Mismatch::Update),
            Some(Written::Node) => (!is_same(&truth, &seen)).then_some(Mismatch::Cordon),
            Some(Written::Job) | None => None,
        };
        let mismatch = mismatch?;
        self.tell(&format!("API server  has another version of {name} than the watch"));
        Some(model::Done::Refused(mismatch))
    }

    /// Why a verdict is not remembered: the trial that it is about is looked at past the watches.
    fn another_trial(&mut self, action: &Action) -> Option<Mismatch> {
        let Action::Remember { judged, .. } = action else { return None };
        let (name, mismatch) = judged.iter().find_map(|Judged { node, expect }| {
            let truth = self.snapshot.nodes.iter().find(|known| *known.name == **node);
            let found = truth.map_or(Err(Mismatch::NodeUid), |truth| match self.node_seen(node) {
                Some(seen) if seen.ready != truth.ready => Err(Mismatch::BootId),
                Some(_) | None => expect.check(truth),
            });
            found.err().map(|mismatch| (node.clone(), mismatch))
        })?;
        self.answer(Kind::Nodes, &name);
        self.answer(Kind::NodeUpdates, &name);
        self.tell(&format!("API server  shows another trial of {name} than the watch"));
        Some(mismatch)
    }

    /// Whether the policy whose memory is written is another by now.
    fn is_another_policy(&self, action: &Action) -> bool {
        let Action::Remember { policy: name, .. } = action else { return false };
        let seen = self.policies_seen().iter().find(|policy| policy.name == *name);
        let truth = self.snapshot.policies.iter().find(|policy| policy.name == *name);
        seen.map(|policy| policy.generation) != truth.map(|policy| policy.generation)
    }

    fn has_other_pods(&self, name: &str) -> bool {
        let Some(still) = self.still(Kind::Pods) else { return false };
        let shown = still.answered.get(name).map_or(&still.pods, |answered| &answered.pods);
        let shown: BTreeSet<&str> = shown.on(name).map(|pod| pod.name.as_str()).collect();
        let there = self.workload.pods.iter().filter(|one| one.pod.node == name);
        let there: BTreeSet<&str> = there.map(|one| one.pod.name.as_str()).collect();
        shown != there
    }
}

/// When a machine was first seen back, by a Node and a NodeUpdate that are not of one moment: as the operator has it, which sees either
/// of kubelet and agent speak from a boot (`bascule_facts::one_node`). Both are given with all that was so at their own moments.
fn back_seen(kubelet: &Node, agent: Option<&Node>) -> Time {
    let said = agent.and_then(|shown| Some((shown, shown.update.as_ref()?.status.boot_id.as_deref()?)));
    match said {
        Some((_, boot)) if boot == kubelet.boot_id => kubelet.boot_seen.min(kubelet.back_seen),
        // The agent speaks from the boot that its kubelet spoke from then, or from a later one.
        Some((shown, boot)) if boot == shown.boot_id || shown.back_seen > shown.boot_seen => {
            kubelet.boot_seen.max(shown.back_seen)
        }
        Some(_) | None => kubelet.boot_seen,
    }
}

/// Whether two are one version of a Node object.
pub(super) fn is_same(one: &Node, other: &Node) -> bool {
    (&one.uid, &one.labels, one.ready, &one.cordon, one.taints, one.truce)
        == (&other.uid, &other.labels, other.ready, &other.cordon, other.taints, other.truce)
        && (&one.leaving, one.excluded, &one.boot_id, one.deleting)
            == (&other.leaving, other.excluded, &other.boot_id, other.deleting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::build;
    use bascule_planner::snapshot::UpdateFacts;
    use serde_json::json;

    /// The cases of `a_machine_is_back_when_the_first_of_kubelet_and_agent_speaks_from_its_boot`, with watches that stand still.
    #[test]
    fn a_machine_is_back_when_the_first_that_is_seen_speaks_from_its_boot() {
        let node = |boot: &str, reported: Option<&str>, boot_seen: i64, back_seen: i64| {
            let status = bascule_api::NodeUpdateStatus { boot_id: reported.map(str::to_owned), ..Default::default() };
            let spec = serde_json::from_value(json!({"policy": "workers"})).unwrap();
            let update = UpdateFacts { generation: 1, owner_uid: None, deleting: false, spec, status };
            let (boot_seen, back_seen) = (build::at(boot_seen), build::at(back_seen));
            Node { boot_id: boot.to_owned(), boot_seen, back_seen, update: Some(update), ..build::node("n0", "a") }
        };
        let before = || node("old", Some("old"), 5, 5);
        let agent_first = || node("old", Some("new"), 5, 20);
        let kubelet_first = || node("new", Some("old"), 20, 20);
        let after = || node("new", Some("new"), 30, 20);
        for (what, kubelet, agent, seen) in [
            ("all watches go on", after(), after(), 20),
            ("nobody has spoken", before(), before(), 5),
            ("the agent was first, and the watch of Nodes stands still", before(), agent_first(), 20),
            ("both have spoken, and it stands still", before(), after(), 20),
            ("both have spoken, and the watch of NodeUpdates stands still", after(), before(), 30),
            ("the kubelet was first, and the watch of Nodes stands still", before(), kubelet_first(), 5),
            ("the kubelet was first, and that of NodeUpdates stands still", kubelet_first(), before(), 20),
        ] {
            assert_eq!(back_seen(&kubelet, Some(&agent)), build::at(seen), "{what}");
        }
        assert_eq!(back_seen(&kubelet_first(), None), build::at(20));
    }
}
