//! Turns the caches into the planner's snapshot. Facts that did not change keep their pointer, by which the planner
//! recognises them.

use super::{
    BudgetFact, JobFact, Key, PodFact, PolicyFact, World,
    one_node::{Facts, Ground, NAMED, unreadable},
};
use crate::drain::{PodSource as _, Progress};
use bascule_api::{IntOrPercent, Source, Time};
use bascule_planner::{
    Snapshot,
    snapshot::{DisruptionBudget, GateAnswer, HookRun, Node, NodePods, Offer, PolicyFacts},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Facts that do not come from the API server.
pub struct Outside<'a> {
    /// The time.
    pub now: Time,
    /// Orders nodes between which nothing else decides.
    pub seed: u64,
    /// What a source's channel offers.
    pub offer: &'a dyn Fn(&Source) -> Arc<Offer>,
    /// Answers of gates.
    pub gates: Vec<GateAnswer>,
    /// How far drains are.
    pub drains: &'a BTreeMap<String, Progress>,
    /// The cluster-wide ceiling.
    pub ceiling: Option<IntOrPercent>,
    /// The node this operator runs on.
    pub operator_node: Option<String>,
    /// The namespace and name of the pod this operator runs in.
    pub own_pod: Option<(String, String)>,
    /// Writes that failed when they were tried last.
    pub refused: bascule_planner::snapshot::Refusals,
    /// The others, and what the API server bears.
    pub writes: bascule_planner::snapshot::Writes,
}

impl std::fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Makes snapshots, one after the other. What rests on facts that did not change is kept.
#[derive(Debug, Default)]
pub struct Assembler {
    ground: Ground,
    nodes: HashMap<Arc<str>, (Facts, Arc<Node>)>,
    policies: HashMap<String, Arc<PolicyFacts>>,
    /// On how many nodes pods need each budget, by `namespace/name`.
    needed: HashMap<String, usize>,
}

impl Assembler {
    /// The snapshot of what is known now.
    pub fn assemble(&mut self, world: &World, outside: Outside<'_>) -> Snapshot {
        let policies = world.policies.all();
        let budgets = world.budgets.all();
        let own = outside.own_pod.as_ref().and_then(|(namespace, name)| world.own_pod_that_stays(namespace, name));
        let ground = Ground::new(&policies, &budgets, world.daemon_sets.all(), own);
        let stands = ground.carries(&self.ground);
        self.ground = ground;
        let mut known = std::mem::take(&mut self.nodes);
        let nodes = world.nodes.all();
        self.nodes.reserve(nodes.len());
        let nodes = nodes.into_iter().map(|node| {
            let before = known.remove(node.name.as_str());
            let key = Key::cluster(&node.name);
            // First: what is not read from now on was looked at before that.
            let unreadable = unreadable(world, &key);
            let update = world.updates.get(&key);
            let facts = Facts {
                earlier: if update.is_none() { world.updates.left_by(&key) } else { None },
                update,
                unreadable,
                pods: world.pods.of_place(&node.name),
                attachments: world.attachments.of_place(&node.name),
                drain: outside.drains.get(&node.name).cloned(),
                node,
            };
            self.node(before, facts, stands, world, outside.now)
        });
        let nodes = nodes.collect();
        for (_, gone) in known.into_values() {
            self.needs(&gone, false);
        }
        Snapshot {
            now: outside.now,
            seed: outside.seed,
            policies: self.policies(&policies, outside.offer),
            nodes,
            budgets: Arc::new(self.disruption_budgets(world, &budgets, outside.now)),
            freezes: world.freezes.all().iter().map(|freeze| Arc::clone(&freeze.0)).collect(),
            rollbacks: world.rollbacks.all().iter().map(|rollback| Arc::clone(&rollback.0)).collect(),
            unreadable_orders: [world.freezes.all_unreadable(), world.rollbacks.all_unreadable()].concat(),
            gates: outside.gates,
            hooks: runs(&world.jobs.all(), &policies),
            ceiling: outside.ceiling,
            api_server: world.api_servers.oldest(),
            operator_node: outside.operator_node,
            refused: outside.refused,
            writes: outside.writes,
        }
    }

    /// One node; `before` is what was known of it, which `stands` unless all nodes are to be looked at again.
    fn node(
        &mut self,
        before: Option<(Facts, Arc<Node>)>,
        facts: Facts,
        stands: bool,
        world: &World,
        now: Time,
    ) -> Arc<Node> {
        let node = match before {
            Some((known, node)) if stands && known.hold(&facts) && steady(&node.pods) => node,
            before => {
                let (node, before) = (facts.node(&self.ground, world, now), before.map(|(_, node)| node));
                match before {
                    Some(before) if *before == node => before,
                    before => {
                        before.iter().for_each(|before| self.needs(before, false));
                        self.needs(&node, true);
                        Arc::new(node)
                    }
                }
            }
        };
        self.nodes.insert(Arc::clone(&node.name), (facts, Arc::clone(&node)));
        node
    }

    /// Counts a node's budgets, or does so no more.
    fn needs(&mut self, node: &Node, more: bool) {
        for (budget, _) in &node.pods.budgets {
            let nodes = self.needed.entry(budget.clone()).or_default();
            *nodes = if more { nodes.saturating_add(1) } else { nodes.saturating_sub(1) };
        }
        if !more {
            self.needed.retain(|_, nodes| *nodes > 0);
        }
    }

    /// The budgets that the pods of some node need.
    fn disruption_budgets(
        &self,
        world: &World,
        budgets: &[Arc<BudgetFact>],
        now: Time,
    ) -> BTreeMap<String, DisruptionBudget> {
        let needed: Vec<_> = budgets
            .iter()
            .map(|budget| (budget.path(), budget))
            .filter(|(path, _)| self.needed.contains_key(path))
            .collect();
        // Of a budget that allows something nobody asks what is not ready.
        let asked = needed.iter().any(|(_, budget)| budget.allowed == 0);
        let unready = if asked { world.pods.select(|pod| !pod.ready && !pod.finished) } else { Vec::new() };
        let known = needed.into_iter().map(|(path, budget)| (path, disruption_budget(budget, &unready, world, now)));
        known.collect()
    }

    fn policies(
        &mut self,
        policies: &[Arc<PolicyFact>],
        offer: &dyn Fn(&Source) -> Arc<Offer>,
    ) -> Vec<Arc<PolicyFacts>> {
        let mut kept = HashMap::with_capacity(policies.len());
        let assembled = policies
            .iter()
            .map(|policy| {
                let mut facts = PolicyFacts {
                    name: policy.name.clone(),
                    uid: policy.uid.clone(),
                    generation: policy.generation,
                    created_at: policy.created_at,
                    labels: policy.labels.clone(),
                    read_again: policy.read_again,
                    spec: policy.valid.clone(),
                    advice: None,
                    status: policy.status.clone(),
                    offer: offer(&policy.spec.source),
                };
                let before = self.policies.remove(&policy.name);
                if let Some(before) = before.as_ref().filter(|before| before.spec == facts.spec) {
                    facts.spec.clone_from(&before.spec);
                }
                let shared = match before {
                    Some(before) if *before == facts => before,
                    _ => Arc::new(facts),
                };
                kept.insert(policy.name.clone(), Arc::clone(&shared));
                shared
            })
            .collect();
        self.policies = kept;
        assembled
    }
}

/// The Jobs of hooks, but those that a policy which is gone left behind: another one of its name is none of theirs.
fn runs(jobs: &[Arc<JobFact>], policies: &[Arc<PolicyFact>]) -> Vec<HookRun> {
    let has_its_policy = |job: &JobFact| {
        let is_its = |uid: &str| policies.iter().any(|policy| policy.uid == uid);
        job.after.as_ref().is_none_or(|after| is_its(&after.policy_uid))
    };
    jobs.iter().filter(|job| has_its_policy(job)).filter_map(|job| job.run.clone()).collect()
}

/// Whether time alone changes nothing in these facts.
fn steady(pods: &NodePods) -> bool {
    pods.completing.is_none() && pods.undrainable.iter().all(|pod| pod.until.is_none())
}

fn disruption_budget(budget: &BudgetFact, unready: &[Arc<PodFact>], world: &World, now: Time) -> DisruptionBudget {
    let (mut unhealthy, mut unfinished) = (Vec::new(), Vec::new());
    // Of one that allows something nobody will ask.
    if budget.allowed == 0 {
        let unready = unready.iter().filter(|pod| budget.covers(pod));
        unhealthy.extend(unready.take(NAMED).map(|pod| describe(pod)));
        let still_there = |name: &str| {
            let key = Key { namespace: budget.namespace.clone(), name: name.to_owned() };
            world.pods.get(&key).filter(|pod| pod.deletes_at.is_none())
        };
        let counted = budget.unfinished(now.get()).filter_map(|(name, until)| Some((still_there(name)?, until)));
        let named = counted.take(NAMED).map(|(pod, until)| format!("{} until {}", pod.path(), Time::new(until)));
        unfinished.extend(named);
    }
    DisruptionBudget {
        allowed: budget.allowed,
        healthy: budget.healthy,
        desired: budget.desired,
        expected: budget.expected,
        unhealthy,
        unfinished,
    }
}

fn describe(pod: &PodFact) -> String {
    let mut text = pod.path();
    if !pod.node.is_empty() {
        text.push_str(&format!(" on {}", pod.node));
    }
    match (&pod.waiting, pod.pending) {
        (Some(reason), _) => text.push_str(&format!(" ({reason})")),
        (None, true) => text.push_str(" (Pending)"),
        (None, false) => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::sent;
    use bascule_planner::snapshot::OfferState;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn object<T: serde::de::DeserializeOwned>(version: u64, mut value: Value) -> Event<T> {
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        Event::Apply(serde_json::from_value(value).unwrap())
    }

    fn budget(selects: &str, allowed: u32, healthy: u32) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": selects}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": 2, "expectedPods": 3}
        })
    }

    fn pod(name: &str, node: &str) -> Value {
        json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}
                ]
            },
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        })
    }

    fn world() -> World {
        let world = World::new(Arc::new(tokio::sync::watch::Sender::new(0)), &crate::clock::Clock::system());
        let policy = json!({
            "metadata": {"name": "p"},
            "spec": {
                "nodeSelector": {"matchLabels": {"role": "worker"}},
                "source": {"repository": "https://images.example.com", "channel": "stable"}
            }
        });
        world.policies.apply(&object(1, policy));
        for name in ["n1", "n2"] {
            world.nodes.apply(&object(1, json!({"metadata": {"name": name, "labels": {"role": "worker"}}})));
            world.pods.apply(&object(1, pod(&format!("web-{name}"), name)));
        }
        world.budgets.apply(&object(1, budget("web", 1, 3)));
        world
    }

    fn look(assembler: &mut Assembler, world: &World, seconds: i64) -> Snapshot {
        let outside = Outside {
            now: Time::new(chrono::DateTime::from_timestamp(seconds, 0).unwrap()),
            seed: 1,
            offer: &|_| {
                Arc::new(Offer { state: OfferState::Unread, releases: Vec::new(), repository: Default::default() })
            },
            gates: Vec::new(),
            drains: &BTreeMap::new(),
            ceiling: None,
            operator_node: None,
            own_pod: None,
            refused: Default::default(),
            writes: Default::default(),
        };
        assembler.assemble(world, outside)
    }

    /// What an assembler that kept something makes is what one makes that knows nothing; and which nodes kept their
    /// pointer.
    fn step(kept: &mut Assembler, before: &Snapshot, world: &World, seconds: i64) -> (Snapshot, Vec<bool>) {
        let after = look(kept, world, seconds);
        let anew = look(&mut Assembler::default(), world, seconds);
        assert_eq!((&after.nodes, &after.budgets), (&anew.nodes, &anew.budgets));
        let same = after.nodes.iter().zip(&before.nodes).map(|(after, before)| Arc::ptr_eq(after, before)).collect();
        (after, same)
    }

    #[test]
    fn a_node_update_that_can_not_be_read_is_not_taken_for_one_that_is_not_there() {
        let (world, mut kept) = (world(), Assembler::default());
        let first = look(&mut kept, &world, 0);
        let seen = |name: &str, goal: &str, slot: &str| {
            let object = json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name, "resourceVersion": "5"},
                "spec": {"policy": "p", "goal": goal}, "status": {"bootID": "b", "slots": {"a": {"state": slot}}},
            });
            sent::watched(&world.updates, Event::Apply(serde_json::from_value(object).unwrap()));
        };
        seen("n1", "Idle", "Volcano");
        let (second, same) = step(&mut kept, &first, &world, 1);
        assert_eq!(same, [false, true]);
        let told = second.nodes[0].unreadable.as_ref().unwrap();
        assert_eq!(told.object.to_string(), "NodeUpdate n1");
        assert!(told.why.contains("Volcano") && second.nodes[0].update.is_some(), "{told}");
        seen("n2", "Eclipse", "Good");
        let (third, _) = step(&mut kept, &second, &world, 2);
        assert!(third.nodes[1].is_hidden() && third.nodes[1].unavailable());
        assert!(crate::gather::node_now(&world, "n2").unwrap().unreadable.is_some(), "nor is it acted upon");
    }

    #[test]
    fn an_order_that_can_not_be_read_is_told_to_the_planner() {
        let world = world();
        let freeze = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "stop", "resourceVersion": "5"},
            "spec": {"reason": "incident", "duration": "until the moon is full"},
        });
        sent::watched(&world.freezes, Event::Apply(serde_json::from_value(freeze).unwrap()));
        let snapshot = look(&mut Assembler::default(), &world, 0);
        assert!(snapshot.freezes.is_empty());
        let orders: Vec<String> = snapshot.unreadable_orders.iter().map(|order| order.object.to_string()).collect();
        assert_eq!(orders, ["Freeze stop"]);
        assert_eq!(world.unreadable().len(), 1);
    }

    #[test]
    fn an_eviction_that_was_never_finished_is_named_while_it_counts() {
        let (world, mut assembler) = (world(), Assembler::default());
        let mut held = budget("web", 0, 3);
        held["status"]["disruptedPods"] = json!({"web-n1": "1970-01-01T00:01:00Z", "gone": "1970-01-01T00:01:00Z"});
        world.budgets.apply(&object(2, held));
        let mut named = |seconds| look(&mut assembler, &world, seconds).budgets["shop/web"].standing();
        assert_eq!(named(69), "3 of 3 pods healthy, 2 wanted", "it may be carried out this moment");
        let says = "3 of 3 pods healthy, 2 wanted; counts evictions that were never finished: \
                    shop/web-n1 until 1970-01-01T00:03:00Z";
        assert_eq!(named(70), says);
        assert_eq!(named(180), "3 of 3 pods healthy, 2 wanted");
        let mut leaving = pod("web-n1", "n1");
        leaving["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:01:02Z");
        world.pods.apply(&object(3, leaving));
        assert_eq!(named(70), "3 of 3 pods healthy, 2 wanted");
    }

    #[test]
    fn what_is_kept_gives_what_is_made_anew() {
        let (world, mut kept) = (world(), Assembler::default());
        let first = look(&mut kept, &world, 0);
        assert_eq!(first.nodes[0].pods.budgets, [("shop/web".to_owned(), 1)]);
        assert_eq!(first.budgets["shop/web"].allowed, 1);

        world.budgets.apply(&object(2, budget("web", 0, 2)));
        let (second, same) = step(&mut kept, &first, &world, 1);
        assert_eq!(same, [true, true], "how much a budget allows is not part of a node");
        assert_eq!(second.budgets["shop/web"].allowed, 0);

        world.pods.apply(&object(3, pod("web-more", "n2")));
        let (third, same) = step(&mut kept, &second, &world, 2);
        assert_eq!((same, third.nodes[1].pods.remaining), (vec![true, false], 2));

        world.budgets.apply(&object(4, budget("other", 0, 2)));
        let (fourth, same) = step(&mut kept, &third, &world, 3);
        assert_eq!(same, [false, false]);
        assert!(fourth.budgets.is_empty(), "nobody needs it any more");

        let mut leaving = pod("web-n1", "n1");
        leaving["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:10Z");
        world.pods.apply(&object(5, leaving));
        let (fifth, _) = step(&mut kept, &fourth, &world, 20);
        assert_eq!(fifth.nodes[0].pods.remaining, 1);
        let (sixth, same) = step(&mut kept, &fifth, &world, 100);
        assert_eq!((same, sixth.nodes[0].pods.remaining), (vec![false, true], 0), "stuck: only time has passed");

        world.nodes.vanished(&Key::cluster("n2"));
        let (seventh, _) = step(&mut kept, &sixth, &world, 101);
        assert_eq!(seventh.nodes.len(), 1);
    }
}
