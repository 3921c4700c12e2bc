//! Whether another node could take a pod: the scheduler's filters that are cheap to ask (taints, node selector, required node
//! affinity, requests), each pod for itself. What they do not look at (volumes, ports, affinity between pods, spreading,
//! preemption) may still decide otherwise.

use crate::snapshot::Node;
use bascule_api::Requirement;
use std::{collections::BTreeMap, sync::Arc};

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

/// Whether a node takes pods at all.
fn is_open(node: &Node) -> bool {
    node.ready.ready
        && !node.cordon.is_cordoned()
        && !node.granted()
        && !node.deleting
        && node.leaving.is_none()
        && !node.taints.hold
}

/// Prefixes of taints that go by themselves: what the node lifecycle controller says of a node's state, a cloud's of a node
/// that it has not seen, and start-up taints, ours among them.
const PASSING: [&str; 3] =
    ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "startup-taint.cluster-autoscaler.kubernetes.io/"];

/// Whether a node takes pods that ask for nothing, now or when what it is in the middle of is over.
fn is_for_everybody(node: &Node) -> bool {
    let passes = |taint: &Barrier| PASSING.iter().any(|prefix| taint.key.starts_with(prefix));
    !node.deleting && node.leaving.is_none() && node.space.barriers.iter().all(passes)
}

/// The first of a node's pods that no other node could take, with what it needs. `closed` says of nodes that they are about
/// to be emptied, too. Nothing where no other node is for pods that ask for nothing: then there is no better time to wait
/// for. A node that is only away, cordoned or rebooting is worth waiting for.
#[must_use]
pub fn without_place<'a>(
    from: &'a Node,
    nodes: &[Arc<Node>],
    closed: impl Fn(&str) -> bool,
) -> Option<&'a (String, Arc<Needs>)> {
    let others = || nodes.iter().filter(|node| node.name != from.name && is_open(node) && !closed(&node.name));
    waiting_for_places(from, nodes).iter().find(|(_, needs)| !others().any(|node| needs.fit(node)))
}

/// What the pods of a node need of another one, where there is one for pods that ask for nothing.
fn waiting_for_places<'a>(from: &'a Node, nodes: &[Arc<Node>]) -> &'a [(String, Arc<Needs>)] {
    let worth_it = || nodes.iter().any(|node| node.name != from.name && is_for_everybody(node));
    if !from.pods.needs.is_empty() && worth_it() { &from.pods.needs } else { &[] }
}

/// The first pod of the nodes that are being emptied for which `candidate` is the last place left.
#[must_use]
pub fn last_place_of<'a>(
    candidate: &Node,
    emptied: &[&'a Node],
    nodes: &[Arc<Node>],
    closed: impl Fn(&str) -> bool,
) -> Option<&'a (String, Arc<Needs>)> {
    // Pod by pod: one that has no place at all says nothing of the others.
    let lost = |from: &&'a Node| {
        let open = |node: &&Arc<Node>| node.name != from.name && is_open(node) && !closed(&node.name);
        let has = |needs: &Needs| nodes.iter().filter(open).any(|node| needs.fit(node));
        let keeps =
            |needs: &Needs| nodes.iter().filter(open).any(|node| node.name != candidate.name && needs.fit(node));
        waiting_for_places(from, nodes).iter().find(|(_, needs)| has(needs) && !keeps(needs))
    };
    emptied.iter().filter(|node| node.name != candidate.name).find_map(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::Operator;

    fn node(name: &str, free: u64, taint: Option<&str>) -> Arc<Node> {
        let barriers =
            taint.map(|key| Barrier { key: key.to_owned(), value: String::new(), effect: "NoSchedule".into() });
        Arc::new(Node {
            name: name.into(),
            labels: [("host".to_owned(), name.to_owned()), ("disks".to_owned(), "4".to_owned())].into(),
            ready: crate::snapshot::Readiness { ready: true, since: None },
            space: Space { free: [("cpu".to_owned(), free)].into(), barriers: barriers.into_iter().collect() },
            ..Node::default()
        })
    }

    fn from(needs: Needs) -> Node {
        let mut from = Node { name: "n0".into(), ..Node::default() };
        from.pods.needs.push(("shop/web".to_owned(), Arc::new(needs)));
        from
    }

    fn requirement(key: &str, operator: Operator, value: &str) -> Requirement {
        Requirement { key: key.to_owned(), operator, values: vec![value.to_owned()] }
    }

    #[test]
    fn a_pod_without_another_place_is_named() {
        let nodes = [node("n1", 500, None), node("n2", 2_000, Some("gpu"))];
        let finds = |needs: Needs| without_place(&from(needs), &nodes, |_| false).is_some();
        let cpu = |much: u64| Needs { requests: [("cpu".to_owned(), much)].into(), ..Needs::default() };
        let gpu = Toleration { key: "gpu".to_owned(), ..Toleration::default() };
        assert!(!finds(cpu(500)) && finds(cpu(501)));
        assert!(!finds(Needs { tolerations: vec![gpu.clone()], ..cpu(501) }));
        assert!(finds(Needs { tolerations: vec![gpu], ..cpu(2_001) }));
        let host = |name: &str| Needs { selector: [("host".to_owned(), name.to_owned())].into(), ..Needs::default() };
        assert!(!finds(host("n1")) && finds(host("n2")) && finds(host("n0")));
        let term = |condition: Condition| Needs { terms: Some(vec![Term(vec![condition])]), ..Needs::default() };
        assert!(!finds(term(Condition::Name(requirement("metadata.name", Operator::In, "n1")))));
        assert!(finds(term(Condition::Name(requirement("metadata.name", Operator::NotIn, "n1")))));
        assert!(!finds(term(Condition::Label(requirement("host", Operator::In, "n1")))));
        assert!(!finds(term(Condition::Number { key: "disks".into(), greater: true, than: 3 })));
        assert!(finds(term(Condition::Number { key: "disks".into(), greater: false, than: 4 })));
        assert!(
            finds(term(Condition::Never)) && finds(Needs { terms: Some(vec![Term::default()]), ..Needs::default() })
        );
    }

    #[test]
    fn a_node_that_is_the_last_place_of_a_pod_on_its_way_is_noticed() {
        let nodes = [node("n1", 0, None), node("n2", 0, Some("gpu"))];
        let leaving = from(Needs::default());
        let last = |candidate: usize| last_place_of(&nodes[candidate], &[&leaving], &nodes, |_| false).is_some();
        assert!(last(0) && !last(1));
        let lost = from(Needs { requests: [("cpu".to_owned(), 1)].into(), ..Needs::default() });
        let blamed = last_place_of(&nodes[0], &[&lost], &nodes, |_| false);
        assert!(blamed.is_none(), "it has none, with or without the candidate");
        let mut both = lost.clone();
        both.pods.needs.extend(leaving.pods.needs.clone());
        let blamed = last_place_of(&nodes[0], &[&both], &nodes, |_| false);
        assert!(blamed.is_some(), "what has no place at all says nothing of the other pod");
        assert!(last_place_of(&nodes[0], &[], &nodes, |_| false).is_none());
    }

    #[test]
    fn nodes_that_take_no_pods_are_no_place_and_without_any_nobody_waits() {
        let needs = || from(Needs::default());
        let nodes = [node("n1", 0, None), node("n2", 0, None)];
        assert!(without_place(&needs(), &nodes, |_| false).is_none());
        assert!(without_place(&needs(), &nodes, |name| name == "n1").is_none());
        assert!(without_place(&needs(), &nodes, |_| true).is_some(), "each is the other's place: one after the other");
        let closed = |change: fn(&mut Node)| {
            let mut node = (*node("n1", 0, None)).clone();
            change(&mut node);
            [Arc::new(node), self::node("n2", 0, Some("gpu"))]
        };
        let gone: [fn(&mut Node); 2] = [|node| node.deleting = true, |node| node.leaving = Some("x".to_owned())];
        for change in gone {
            assert!(without_place(&needs(), &closed(change), |_| false).is_none(), "nobody to wait for");
        }
        let away: [fn(&mut Node); 4] = [
            |node| node.ready.ready = false,
            |node| node.cordon = crate::snapshot::Cordon::Other { by: None, since: None },
            |node| node.taints.hold = true,
            |node| {
                let key = "node.kubernetes.io/not-ready".to_owned();
                node.space.barriers.push(Barrier { key, value: String::new(), effect: "NoSchedule".to_owned() });
            },
        ];
        for change in away {
            assert!(without_place(&needs(), &closed(change), |_| false).is_some(), "it comes back");
        }
        assert!(without_place(&needs(), &[], |_| false).is_none(), "one node");
    }
}
