//! Invariant 3, "after the drain": a machine goes down at our word only when its node takes no new pods and is empty of what had to
//! go. Which pods those are is said here in the words of docs/drain.md, and not asked of what decides it.

use super::{
    facts::moves,
    past::{Held, Past},
};
use crate::world::{
    history::{Act, Event, Planned, Stood},
    machine::Deed,
    pods::{Kind, OVERDUE, RETURNS},
};
use bascule_api::{Drain, DrainBehavior};
use bascule_planner::{Action, snapshot::Node};

/// How many pods a sentence names.
const NAMED: usize = 3;

pub(super) fn judge(past: &Past<'_>, event: &Event) -> Vec<String> {
    match event {
        Event::Act(act) if tells(&act.action) => told(past, act),
        Event::Deed { node, uid, deed: Deed::Arms } if past.word(uid).is_none_or(|word| !word.told) => {
            vec![format!("{node} leaves its release, and nobody's word to reboot is in force")]
        }
        _ => Vec::new(),
    }
}

/// Whether it is the word to reboot.
const fn tells(action: &Action) -> bool {
    matches!(action, Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. })
}

fn told(past: &Past<'_>, act: &Act) -> Vec<String> {
    let mut broken = Vec::new();
    let Some((plan, node)) = past.plan(act.plan).and_then(|plan| Some((plan, plan.node(&act.uid)?))) else {
        return broken;
    };
    if past.word(&act.uid).is_none() || !moves(node) {
        broken.push(format!("{} is told to reboot without a grant", node.name));
    }
    if !matches!(past.cordon(&act.uid), Held::Us(_) | Held::Person) {
        broken.push(format!("{} is told to reboot and takes pods still", node.name));
    }
    // A view from before the drain counts its pods by what held then, and goes with the NodeUpdate of now.
    let of_the_drain = plan.view.fresh || plan.view.pods.begun.contains_key(&node.name);
    let left: Vec<&Stood> = plan.view.pods.on(&node.name).filter(|pod| !may_stay(past, plan, node, pod)).collect();
    if of_the_drain && !left.is_empty() {
        let names: Vec<&str> = left.iter().take(NAMED).map(|pod| pod.name.as_str()).collect();
        let (count, names) = (left.len(), names.join(", "));
        broken.push(format!("{} is told to reboot under {count} pods that had to go: {names}", node.name));
    }
    broken
}

/// Whether a pod may be on a node that reboots.
fn may_stay(past: &Past<'_>, plan: &Planned, node: &Node, pod: &Stood) -> bool {
    // Who should have ended a minute ago does not: its kubelet is away, or a finalizer holds it.
    let overdue = pod.deletes_at.is_some_and(|end| plan.view.facts.now.seconds_since(end) > OVERDUE);
    overdue || comes_back(past, plan, node, pod) || is_skipped(plan, node, pod)
}

/// Whether it is left for the reboot since another one would come after it.
pub(super) fn comes_back(past: &Past<'_>, plan: &Planned, node: &Node, pod: &Stood) -> bool {
    let begun = plan.view.pods.begun.get(&node.name);
    match &pod.kind {
        // Another one would come after it.
        Kind::Tolerant => begun.is_some_and(|begun| pod.created_at > *begun),
        // Whoever binds it to its node does so again. A scheduler that has not seen the cordon and puts several of one owner there
        // can't be told from one who ignores it.
        Kind::Returning | Kind::App(_) => begun.is_some_and(|begun| {
            let since =
                |other: &Stood| other.node == *node.name && other.kind == pod.kind && other.created_at >= *begun;
            let gone = past.evictions.iter().filter(|evicted| since(&evicted.pod)).count();
            let here = plan.view.pods.on(&node.name).filter(|other| other.deletes_at.is_none() && since(other)).count();
            gone + here > usize::try_from(RETURNS).unwrap_or(usize::MAX)
        }),
        Kind::Loose | Kind::Anchored | Kind::Job(_) | Kind::Stuck | Kind::Bare => false,
    }
}

/// Whether the first rule about a pod says to leave it, in the policy that the node has or that selects it.
fn is_skipped(plan: &Planned, node: &Node, pod: &Stood) -> bool {
    let named = node.live_update().map(|update| update.spec.policy.as_str());
    let skips = |drain: &Drain| {
        let speaks = |namespaces: &[String]| namespaces.is_empty() || namespaces.contains(&pod.namespace);
        let mut rules = drain.rules.iter().filter(|rule| speaks(&rule.namespaces));
        let first = rules.find(|rule| rule.selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels)));
        first.is_some_and(|rule| rule.behavior == DrainBehavior::Skip)
    };
    plan.view.pods.policies.iter().any(|policy| {
        let Ok(valid) = &policy.spec else { return false };
        let concerns = named == Some(policy.name.as_str()) || valid.spec.node_selector.matches(&node.labels);
        concerns && skips(&valid.spec.drain)
    })
}
