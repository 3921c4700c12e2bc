//! Gathers from the caches what a snapshot is made from.

use super::{Caches, ClaimFact, DeadlineFact, Key, PodFact, PolicyFact};
use crate::drain::{PodSource as _, Progress};
use bascule_api::{IntOrPercent, Source, Time};
use bascule_facts::{Gathered, LookUp, NodeFacts, bare_node};
use bascule_planner::{
    Snapshot,
    snapshot::{GateAnswer, Node, Offer, Unreadable},
};
use std::{collections::BTreeMap, sync::Arc};

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
pub struct Assembler(bascule_facts::Assembler);

impl Assembler {
    /// The snapshot of what is known now.
    pub fn assemble(&mut self, world: &Caches, outside: Outside<'_>) -> Snapshot {
        let nodes = world.nodes.all().into_iter().map(|node| {
            let key = Key::cluster(&node.name);
            // First: what is not read from now on was looked at before that.
            let unreadable = unreadable(world, &key);
            let update = world.updates.get(&key);
            NodeFacts {
                earlier: if update.is_none() { world.updates.left_by(&key) } else { None },
                update,
                unreadable,
                pods: world.pods.of_place(&node.name),
                attachments: world.attachments.of_place(&node.name),
                drain: outside.drains.get(&node.name).cloned(),
                node,
            }
        });
        let of_source = outside.offer;
        let offer = |policy: &PolicyFact| of_source(&policy.spec.source);
        let objects = Gathered {
            now: outside.now,
            seed: outside.seed,
            policies: world.policies.all(),
            budgets: world.budgets.all(),
            daemon_sets: world.daemon_sets.all(),
            own_pod: outside.own_pod.as_ref().and_then(|(namespace, name)| world.own_pod_that_stays(namespace, name)),
            nodes: nodes.collect(),
            offer: &offer,
            freezes: world.freezes.all(),
            rollbacks: world.rollbacks.all(),
            unreadable_orders: [world.freezes.all_unreadable(), world.rollbacks.all_unreadable()].concat(),
            jobs: world.jobs.all(),
            known: world,
        };
        Snapshot {
            gates: outside.gates,
            ceiling: outside.ceiling,
            api_server: world.api_servers.oldest(),
            operator_node: outside.operator_node,
            refused: outside.refused,
            writes: outside.writes,
            ..self.0.assemble(objects)
        }
    }
}

impl LookUp for Caches {
    fn pod(&self, key: &Key) -> Option<Arc<PodFact>> {
        self.pods.get(key)
    }

    fn unready_pods(&self) -> Vec<Arc<PodFact>> {
        self.pods.select(|pod| !pod.ready && !pod.finished)
    }

    fn deadline(&self, key: &Key) -> Option<Arc<DeadlineFact>> {
        self.deadlines.get(key)
    }

    fn claim(&self, key: &Key) -> Option<Arc<ClaimFact>> {
        self.claims.get(key)
    }
}

/// One node as the planner sees it, from what the caches hold this instant; what an action's expectations are compared
/// with. The pods are left out: no expectation speaks of them.
#[must_use]
pub fn node_now(world: &Caches, name: &str) -> Option<Node> {
    let key = Key::cluster(name);
    let fact = world.nodes.get(&key)?;
    let update = world.updates.get(&key);
    Some(Node { unreadable: unreadable(world, &key), ..bare_node(&fact, update.as_deref()) })
}

/// What is said of a node whose NodeUpdate, or whose Node, can't be read as it is now.
fn unreadable(world: &Caches, key: &Key) -> Option<Arc<Unreadable>> {
    world.updates.unreadable(key).or_else(|| world.nodes.unreadable(key))
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

    fn world() -> Caches {
        let world = Caches::new(Arc::new(tokio::sync::watch::Sender::new(0)), &crate::clock::Clock::system());
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

    fn look(assembler: &mut Assembler, world: &Caches, seconds: i64) -> Snapshot {
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
    fn step(kept: &mut Assembler, before: &Snapshot, world: &Caches, seconds: i64) -> (Snapshot, Vec<bool>) {
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
