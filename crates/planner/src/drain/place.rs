//! Whether another node could take a pod: the scheduler's filters that are cheap to ask (taints, node selector, required node
//! affinity, requests), each pod for itself. What they do not look at (volumes, ports, affinity between pods, spreading,
//! preemption) may still decide otherwise.

use crate::snapshot::Node;
use bascule_api::Requirement;
use std::collections::BTreeMap;

/// What a pod needs of the node that takes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Term(pub Vec<Condition>);

/// One requirement on a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// On a label.
    Label(Requirement),
    /// On the node's name, as if that were a label.
    Name(Requirement),
    /// A label that is a number has to be greater, or else less.
    Number {
        /// The label's key.
        key: String,
        /// Greater than `than`, or else less.
        greater: bool,
        /// The number that it is compared with.
        than: i64,
    },
    /// What no node fulfils.
    Never,
}

/// A toleration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
pub struct Space {
    /// What is left of its allocatable resources, in the units of [`Needs::requests`]; `pods` counts pods.
    pub free: BTreeMap<String, u64>,
    /// Its taints that keep pods away, those of cordons apart.
    pub barriers: Vec<Barrier>,
}

impl Toleration {
    fn covers(&self, taint: &Barrier) -> bool {
        // Kubernetes, "Taints and Tolerations": no key matches all keys, but only without a value.
        let key = if self.key.is_empty() { self.value.is_none() } else { self.key == taint.key };
        key && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && (self.effect.is_empty() || self.effect == taint.effect)
    }
}

impl Term {
    fn holds(&self, labels: &BTreeMap<String, String>, name: &BTreeMap<String, String>) -> bool {
        let holds = |condition: &Condition| match condition {
            Condition::Label(requirement) => requirement.matches(labels),
            Condition::Name(requirement) => requirement.matches(name),
            Condition::Number { key, greater, than } => labels
                .get(key)
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|found| if *greater { found > *than } else { found < *than }),
            Condition::Never => false,
        };
        !self.0.is_empty() && self.0.iter().all(holds)
    }
}

impl Needs {
    /// Whether node selector and required node affinity take a node of this name and these labels.
    #[must_use]
    pub fn select(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let by_selector = || self.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let by_affinity = || {
            self.terms.as_ref().is_none_or(|terms| {
                let name = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
                terms.iter().any(|term| term.holds(labels, &name))
            })
        };
        by_selector() && by_affinity()
    }

    /// Whether some toleration covers a taint.
    #[must_use]
    pub fn tolerate(&self, taint: &Barrier) -> bool {
        self.tolerations.iter().any(|toleration| toleration.covers(taint))
    }

    /// Whether a node could take such a pod, were it open.
    #[must_use]
    pub fn fit(&self, node: &Node) -> bool {
        let has = |(resource, amount): (&String, &u64)| {
            *amount == 0 || node.space.free.get(resource).is_some_and(|free| free >= amount)
        };
        self.select(&node.name, &node.labels)
            && node.space.barriers.iter().all(|taint| self.tolerate(taint))
            && self.requests.iter().all(has)
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
        words.extend(self.selector.iter().map(|(key, value)| format!("a node with {key}={value}")));
        if self.terms.is_some() {
            words.push("what its node affinity asks for".to_owned());
        }
        if words.is_empty() {
            words.push("a node without taints that it does not tolerate".to_owned());
        }
        words.join(", ")
    }
}
