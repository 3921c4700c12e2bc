//! Where the pods of nodes that are emptied may go.
//!
//! On a full cluster that is asked about every node, and thousands of pods ask for the same. So what was found for needs is kept
//! for the length of a plan, by their identity: equal needs that are not shared are looked for twice, and nothing else changes.

use super::Needs;
use crate::snapshot::Node;
use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A pod, `namespace/name`, with what it needs of a node.
type Wanted = (String, Arc<Needs>);

/// Whether a node takes pods at all.
fn is_open(node: &Node) -> bool {
    node.ready.ready
        && !node.cordon.is_cordoned()
        && !node.granted()
        && !node.deleting
        && node.leaving.is_none()
        && !node.taints.hold
        && node.unreadable.is_none()
}

/// Prefixes of taints that go by themselves: what the node lifecycle controller says of a node's state, a cloud's of a node
/// that it has not seen, and start-up taints, ours among them.
const PASSING: [&str; 3] =
    ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "startup-taint.cluster-autoscaler.kubernetes.io/"];

/// Whether a node takes pods that ask for nothing, now or when what it is in the middle of is over.
fn is_for_everybody(node: &Node) -> bool {
    let passes = |taint: &super::Barrier| PASSING.iter().any(|prefix| taint.key.starts_with(prefix));
    !node.deleting && node.leaving.is_none() && node.space.barriers.iter().all(passes)
}

/// The two resources that nearly every pod requests.
#[derive(Debug, Clone, Copy)]
struct Amounts {
    cpu: u64,
    memory: u64,
}

impl Amounts {
    fn of(amounts: &BTreeMap<String, u64>) -> Self {
        let of = |resource: &str| amounts.get(resource).copied().unwrap_or_default();
        Self { cpu: of("cpu"), memory: of("memory") }
    }

    const fn covers(self, wanted: Self) -> bool {
        self.cpu >= wanted.cpu && self.memory >= wanted.memory
    }
}

/// What follows from the nodes as the plan finds them.
#[derive(Debug, Default)]
struct Survey<'a> {
    /// The nodes that take pods, with what they have left.
    open: Vec<(Amounts, &'a Node)>,
    /// The first two that are for pods that ask for nothing.
    for_everybody: Vec<&'a Node>,
    /// The nodes whose pods are on their way.
    emptied: Vec<&'a Node>,
}

impl<'a> Survey<'a> {
    fn of(nodes: &'a [Arc<Node>]) -> Self {
        let mut out = Self::default();
        for node in nodes.iter().map(|node| &**node) {
            if is_open(node) {
                out.open.push((Amounts::of(&node.space.free), node));
            }
            if out.for_everybody.len() < 2 && is_for_everybody(node) {
                out.for_everybody.push(node);
            }
            if node.is_being_emptied() && !node.pods.needs.is_empty() {
                out.emptied.push(node);
            }
        }
        out
    }

    /// Whether the pods of a node have somebody to wait for: another node that is for pods that ask for nothing.
    fn is_worth_it(&self, from: &Node) -> bool {
        !from.pods.needs.is_empty() && self.for_everybody.iter().any(|node| node.name != from.name)
    }
}

/// The places for some needs.
#[derive(Debug)]
struct Found<'a> {
    wanted: Amounts,
    /// The first two, those that were found since some of them were closed included.
    places: Vec<&'a Node>,
    /// How many of the open nodes were looked at.
    looked_at: usize,
}

/// The places for pods in one plan.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    nodes: &'a [Arc<Node>],
    survey: OnceCell<Survey<'a>>,
    found: BTreeMap<*const Needs, Found<'a>>,
    /// The nodes that the plan grants: they are closed, and their pods are on their way, too.
    granted: Vec<&'a Node>,
    closed: BTreeSet<&'a str>,
    /// The pods on their way, the first of each needs, and how many nodes those are of.
    leaving: Vec<&'a Wanted>,
    leaving_needs: BTreeSet<*const Needs>,
    left: usize,
    /// By node: the first pod on its way whose last place it is. Looked for again after each grant.
    last_places: Option<BTreeMap<&'a str, &'a Wanted>>,
}

impl<'a> Places<'a> {
    pub(crate) fn new(nodes: &'a [Arc<Node>]) -> Self {
        Self {
            nodes,
            survey: OnceCell::new(),
            found: BTreeMap::new(),
            granted: Vec::new(),
            closed: BTreeSet::new(),
            leaving: Vec::new(),
            leaving_needs: BTreeSet::new(),
            left: 0,
            last_places: None,
        }
    }

    /// A node is granted.
    pub(crate) fn take(&mut self, node: &'a Node) {
        self.closed.insert(&*node.name);
        if !node.pods.needs.is_empty() {
            self.granted.push(node);
        }
        self.last_places = None;
    }

    /// The first of a node's pods that no other node could take. Nothing where no other node is for pods that ask for nothing: then
    /// there is no better time to wait for. A node that is only away, cordoned or rebooting is worth waiting for.
    pub(crate) fn without_place(&mut self, from: &'a Node) -> Option<&'a Wanted> {
        let survey = self.survey.get_or_init(|| Survey::of(self.nodes));
        if !survey.is_worth_it(from) {
            return None;
        }
        from.pods.needs.iter().find(|(_, needs)| self.first_two(needs).iter().all(|place| place.name == from.name))
    }

    /// The first pod of the nodes that are being emptied for which `candidate`, which is none of them, is the last place left. One
    /// that has no place at all says nothing of the others.
    pub(crate) fn last_place_of(&mut self, candidate: &Node) -> Option<&'a Wanted> {
        if self.last_places.is_none() {
            let last_places = self.find_last_places();
            self.last_places = Some(last_places);
        }
        self.last_places.as_ref().and_then(|places| places.get(&*candidate.name)).copied()
    }

    fn find_last_places(&mut self) -> BTreeMap<&'a str, &'a Wanted> {
        let survey = self.survey.get_or_init(|| Survey::of(self.nodes));
        for from in survey.emptied.iter().chain(&self.granted).skip(self.left) {
            self.left += 1;
            if survey.is_worth_it(from) {
                // Their own nodes are no place for any of them, so that one pod stands for all that need the same.
                let new = from.pods.needs.iter().filter(|(_, needs)| self.leaving_needs.insert(Arc::as_ptr(needs)));
                self.leaving.extend(new);
            }
        }
        let leaving = std::mem::take(&mut self.leaving);
        let mut last = BTreeMap::new();
        for wanted in leaving.iter().copied() {
            if let [place] = self.first_two(&wanted.1) {
                last.entry(&*place.name).or_insert(wanted);
            }
        }
        self.leaving = leaving;
        last
    }

    /// The first two open nodes that such a pod fits.
    fn first_two(&mut self, needs: &Arc<Needs>) -> &[&'a Node] {
        let survey = self.survey.get_or_init(|| Survey::of(self.nodes));
        let none = || Found { wanted: Amounts::of(&needs.requests), places: Vec::new(), looked_at: 0 };
        let found = self.found.entry(Arc::as_ptr(needs)).or_insert_with(none);
        found.places.retain(|place| !self.closed.contains(&*place.name));
        while found.places.len() < 2
            && let Some((free, node)) = survey.open.get(found.looked_at)
        {
            found.looked_at += 1;
            if free.covers(found.wanted) && !self.closed.contains(&*node.name) && needs.fit(node) {
                found.places.push(node);
            }
        }
        &found.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        drain::{Barrier, Condition, Space, Term, Toleration},
        snapshot::{Cordon, Readiness, UpdateFacts},
    };
    use bascule_api::{Goal, NodeUpdateSpec, NodeUpdateStatus, Operator, Requirement};

    fn node(name: &str, free: u64, taint: Option<&str>) -> Arc<Node> {
        let barriers =
            taint.map(|key| Barrier { key: key.to_owned(), value: String::new(), effect: "NoSchedule".into() });
        Arc::new(Node {
            name: name.into(),
            labels: Arc::new([("host".to_owned(), name.to_owned()), ("disks".to_owned(), "4".to_owned())].into()),
            ready: Readiness { ready: true, since: None },
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

    /// Whether a pod of a node finds no other node once some were granted.
    fn lacks(from: &Node, nodes: &[Arc<Node>], granted: &[usize]) -> bool {
        let mut places = Places::new(nodes);
        for index in granted {
            places.take(&nodes[*index]);
        }
        places.without_place(from).is_some()
    }

    #[test]
    fn a_pod_without_another_place_is_named() {
        let nodes = [node("n1", 500, None), node("n2", 2_000, Some("gpu"))];
        let finds = |needs: Needs| lacks(&from(needs), &nodes, &[]);
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
        let last = |candidate: usize, emptied: &[Node]| {
            let mut places = Places::new(&nodes);
            for node in emptied {
                places.take(node);
            }
            places.last_place_of(&nodes[candidate]).is_some()
        };
        let leaving = from(Needs::default());
        assert!(last(0, std::slice::from_ref(&leaving)) && !last(1, std::slice::from_ref(&leaving)));
        let lost = from(Needs { requests: [("cpu".to_owned(), 1)].into(), ..Needs::default() });
        assert!(!last(0, std::slice::from_ref(&lost)), "it has none, with or without the candidate");
        let mut both = lost;
        both.pods.needs.extend(leaving.pods.needs);
        assert!(last(0, &[both]), "what has no place at all says nothing of the other pod");
        assert!(!last(0, &[]));
    }

    #[test]
    fn nodes_that_take_no_pods_are_no_place_and_without_any_nobody_waits() {
        let needs = from(Needs::default());
        let nodes = [node("n1", 0, None), node("n2", 0, None)];
        assert!(!lacks(&needs, &nodes, &[]) && !lacks(&needs, &nodes, &[0]));
        assert!(lacks(&needs, &nodes, &[0, 1]), "each is the other's place: one after the other");
        let closed = |change: fn(&mut Node)| {
            let mut node = (*node("n1", 0, None)).clone();
            change(&mut node);
            [Arc::new(node), self::node("n2", 0, Some("gpu"))]
        };
        let gone: [fn(&mut Node); 2] = [|node| node.deleting = true, |node| node.leaving = Some("x".to_owned())];
        for change in gone {
            assert!(!lacks(&needs, &closed(change), &[]), "nobody to wait for");
        }
        let away: [fn(&mut Node); 4] = [
            |node| node.ready.ready = false,
            |node| node.cordon = Cordon::Other { by: None, since: None },
            |node| node.taints.hold = true,
            |node| {
                let key = "node.kubernetes.io/not-ready".to_owned();
                node.space.barriers.push(Barrier { key, value: String::new(), effect: "NoSchedule".to_owned() });
            },
        ];
        for change in away {
            assert!(lacks(&needs, &closed(change), &[]), "it comes back");
        }
        assert!(!lacks(&needs, &[], &[]), "one node");
    }

    /// The same two questions with nothing kept, as decision 25 puts them: each pod is held against each node.
    mod plain {
        use super::*;

        fn waiting<'a>(from: &'a Node, nodes: &[Arc<Node>]) -> &'a [Wanted] {
            let worth_it = nodes.iter().any(|node| node.name != from.name && is_for_everybody(node));
            if worth_it { &from.pods.needs } else { &[] }
        }

        pub(super) fn without_place<'a>(
            from: &'a Node,
            nodes: &[Arc<Node>],
            closed: impl Fn(&str) -> bool,
        ) -> Option<&'a Wanted> {
            let others = || nodes.iter().filter(|node| node.name != from.name && is_open(node) && !closed(&node.name));
            waiting(from, nodes).iter().find(|(_, needs)| !others().any(|node| needs.fit(node)))
        }

        pub(super) fn last_place_of<'a>(
            candidate: &Node,
            emptied: &[&'a Node],
            nodes: &[Arc<Node>],
            closed: impl Fn(&str) -> bool,
        ) -> Option<&'a Wanted> {
            let lost = |from: &&'a Node| {
                let open = |node: &&Arc<Node>| node.name != from.name && is_open(node) && !closed(&node.name);
                let has = |needs: &Needs| nodes.iter().filter(open).any(|node| needs.fit(node));
                let keeps = |needs: &Needs| {
                    nodes.iter().filter(open).any(|node| node.name != candidate.name && needs.fit(node))
                };
                waiting(from, nodes).iter().find(|(_, needs)| has(needs) && !keeps(needs))
            };
            emptied.iter().filter(|node| node.name != candidate.name).find_map(lost)
        }
    }

    /// Numbers that follow from a seed (xorshift64).
    struct Random(u64);

    impl Random {
        fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        }

        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % end
        }

        fn index(&mut self, len: usize) -> usize {
            usize::try_from(self.below(u64::try_from(len).unwrap())).unwrap()
        }

        fn chance(&mut self, percent: u64) -> bool {
            self.below(100) < percent
        }

        fn needs(&mut self) -> Needs {
            let amounts = [("cpu", [0, 300, 800, 3_000]), ("memory", [0, 200, 900, 5_000]), ("pods", [1; 4])];
            let requests = amounts.map(|(resource, amounts)| (resource.to_owned(), amounts[self.index(4)]));
            let mut needs = Needs { requests: requests.into(), ..Needs::default() };
            if self.chance(30) {
                needs.selector.insert("zone".to_owned(), format!("z{}", self.below(3)));
            }
            if self.chance(15) {
                let host = format!("n{}", self.below(8));
                let operator = if self.chance(50) { Operator::In } else { Operator::NotIn };
                needs.terms = Some(vec![Term(vec![Condition::Name(requirement("metadata.name", operator, &host))])]);
            }
            if self.chance(30) {
                needs.tolerations.push(Toleration { key: "gpu".to_owned(), ..Toleration::default() });
            }
            needs
        }

        fn node(&mut self, index: usize, kinds: &[Arc<Needs>]) -> Node {
            let mut node = Node {
                name: format!("n{index}").into(),
                labels: Arc::new([("zone".to_owned(), format!("z{}", self.below(3)))].into()),
                ready: Readiness { ready: self.chance(90), since: None },
                deleting: self.chance(3),
                leaving: self.chance(3).then(|| "gone".to_owned()),
                ..Node::default()
            };
            node.taints.hold = self.chance(3);
            if self.chance(5) {
                node.cordon = Cordon::Other { by: None, since: None };
            }
            let free = [("cpu", self.below(1_500)), ("memory", self.below(1_500)), ("pods", self.below(5))];
            node.space.free = free.map(|(resource, amount)| (resource.to_owned(), amount)).into();
            if self.chance(20) {
                let (key, value, effect) = ("gpu".to_owned(), String::new(), "NoSchedule".to_owned());
                node.space.barriers.push(Barrier { key, value, effect });
            }
            for pod in 0..self.below(4) {
                let kind = Arc::clone(&kinds[self.index(kinds.len())]);
                // Not all who make needs share them.
                let needs = if self.chance(20) { Arc::new((*kind).clone()) } else { kind };
                node.pods.needs.push((format!("shop/pod-{index}-{pod}"), needs));
            }
            node.update = self.chance(20).then(|| disrupted(if self.chance(60) { Goal::Staged } else { Goal::Booted }));
            node
        }
    }

    fn disrupted(goal: Goal) -> UpdateFacts {
        let spec = serde_json::json!({
            "policy": "workers",
            "disruption": {
                "grantedAt": "2026-06-01T12:00:00Z", "wasCordoned": false,
                "cause": {"object": {"kind": "UpdatePolicy", "name": "workers"}}
            }
        });
        let spec = NodeUpdateSpec { goal, ..serde_json::from_value(spec).unwrap() };
        UpdateFacts { generation: 1, owner_uid: None, deleting: false, spec, status: NodeUpdateStatus::default() }
    }

    #[test]
    fn what_is_kept_for_a_plan_changes_no_answer() {
        let (mut lacking, mut last, mut asked) = (0, 0, 0);
        for seed in 1..=2_000 {
            let mut random = Random::new(seed);
            let kinds: Vec<_> = (0..=random.below(6)).map(|_| Arc::new(random.needs())).collect();
            let nodes: Vec<_> = (0..=random.index(12)).map(|index| Arc::new(random.node(index, &kinds))).collect();
            let mut places = Places::new(&nodes);
            let mut granted: Vec<&Node> = Vec::new();
            for _ in 0..nodes.len() * 2 {
                let candidate = &*nodes[random.index(nodes.len())];
                if candidate.granted() || granted.iter().any(|node| node.name == candidate.name) {
                    continue;
                }
                let closed = |name: &str| granted.iter().any(|node| *node.name == *name);
                let before = nodes.iter().map(|node| &**node).filter(|node| node.is_being_emptied());
                let emptied: Vec<_> = before.chain(granted.iter().copied()).collect();
                let (without, wanted) =
                    (places.without_place(candidate), plain::without_place(candidate, &nodes, closed));
                assert_eq!(without, wanted, "seed {seed}: {}", candidate.name);
                lacking += usize::from(wanted.is_some());
                // The other question is asked of nodes alone whose pods have places, and of others it is right, too.
                let (place, wanted) =
                    (places.last_place_of(candidate), plain::last_place_of(candidate, &emptied, &nodes, closed));
                assert_eq!(place, wanted, "seed {seed}: {}", candidate.name);
                last += usize::from(wanted.is_some());
                asked += 1;
                if random.chance(40) {
                    places.take(candidate);
                    granted.push(candidate);
                }
            }
        }
        let (some, others) = (asked / 20, asked * 19 / 20);
        assert!(
            (some..others).contains(&lacking) && (some / 4..others).contains(&last),
            "{lacking}, {last} of {asked}"
        );
    }
}
