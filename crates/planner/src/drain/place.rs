//! Whether another node could take a pod: the scheduler's filters that are cheap to ask (taints, node selector, required node
//! affinity, requests), each pod for itself. What they do not look at (volumes, ports, affinity between pods, spreading)
//! may still keep a pod pending.

use crate::snapshot::Node;
use bascule_api::Selector;
use std::collections::BTreeMap;

/// What a pod needs of the node that takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// What it requests, by resource: `cpu` in thousandths, everything else in whole units.
    pub requests: BTreeMap<String, u64>,
    /// Its node selector.
    pub selector: BTreeMap<String, String>,
    /// The terms of its required node affinity, of which one has to hold; absent: none is required.
    pub terms: Option<Vec<Term>>,
    /// Its tolerations.
    pub tolerations: Vec<Toleration>,
}

/// One term of a node affinity: all of it has to hold. An empty one never does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Term {
    /// What the node's labels have to fulfil.
    pub labels: Selector,
    /// Comparisons of labels as numbers: the key, whether it must be greater (else less), and than what.
    pub numbers: Vec<(String, bool, i64)>,
    /// The names that the node may have; absent: any.
    pub names: Option<Vec<String>>,
}

/// A toleration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Toleration {
    /// The taint's key; empty: every key.
    pub key: String,
    /// The taint's value; absent: any.
    pub value: Option<String>,
    /// The taint's effect; empty: every effect.
    pub effect: String,
}

/// A taint that keeps pods away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Barrier {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What a node has to give.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Room {
    /// What is left of its allocatable resources, in the units of [`Needs::requests`]; `pods` counts pods.
    pub free: BTreeMap<String, u64>,
    /// Its taints that keep pods away, those of cordons apart.
    pub barriers: Vec<Barrier>,
}

impl Toleration {
    fn covers(&self, taint: &Barrier) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && (self.effect.is_empty() || self.effect == taint.effect)
    }
}

impl Term {
    fn holds(&self, node: &Node) -> bool {
        let empty = self.labels == Selector::default() && self.numbers.is_empty() && self.names.is_none();
        let number = |key: &str| node.labels.get(key).and_then(|text| text.parse::<i64>().ok());
        !empty
            && self.labels.matches(&node.labels)
            && self.names.as_ref().is_none_or(|names| names.iter().any(|name| **name == *node.name))
            && self.numbers.iter().all(|(key, greater, than)| {
                number(key).is_some_and(|found| if *greater { found > *than } else { found < *than })
            })
    }
}

/// Whether a node takes pods at all.
fn is_open(node: &Node) -> bool {
    node.ready.ready && !node.cordon.is_cordoned() && !node.deleting && node.leaving.is_none() && !node.taints.hold
}

/// Why the pods of a node have no other place, for the first that has none. Nothing where no other node takes pods that
/// ask for nothing: then there is no better time to wait for.
#[must_use]
pub fn without_place<'a>(from: &'a Node, nodes: &[std::sync::Arc<Node>]) -> Option<&'a (String, Needs)> {
    let others = || nodes.iter().filter(|node| node.name != from.name && is_open(node));
    if from.pods.needs.is_empty() || !others().any(|node| node.room.barriers.is_empty()) {
        return None;
    }
    from.pods.needs.iter().find(|(_, needs)| !others().any(|node| needs.fit(node)))
}

impl Needs {
    /// Whether a node could take such a pod.
    #[must_use]
    pub fn fit(&self, node: &Node) -> bool {
        self.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(node)))
            && node.room.barriers.iter().all(|taint| self.tolerations.iter().any(|one| one.covers(taint)))
            && self.requests.iter().all(|(resource, amount)| {
                *amount == 0 || node.room.free.get(resource).is_some_and(|free| free >= amount)
            })
    }

    /// What it asks for, in a few words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for (resource, amount) in self.requests.iter().filter(|(resource, _)| *resource != "pods") {
            words.push(match resource.as_str() {
                "cpu" => format!("cpu {amount}m"),
                "memory" => format!("memory {}Mi", amount / (1 << 20)),
                other => format!("{other} {amount}"),
            });
        }
        words.extend(self.selector.iter().map(|(key, value)| format!("{key}={value}")));
        if self.terms.is_some() {
            words.push("its node affinity".to_owned());
        }
        if words.is_empty() { "what the other nodes' taints keep away".to_owned() } else { words.join(", ") }
    }
}
