//! Evictions, PodDisruptionBudgets, hook Jobs and health gates of a world. Which pods a drain removes is decided by the
//! same code as in the operator.

use super::{
    Machine, World,
    pods::{App, Cost, Drains, Kind, OVERDUE, RETURNS},
};
use bascule_api::{Drain, DrainBehavior, DrainRule, Time};
use bascule_planner::{
    drain::{Hour, Ledger, Needed, Pod, Wish, node_pods, sort},
    plan::{DrainMode, DrainOrder},
    snapshot::{DisruptionBudget, GateAnswer, HookState, Missed, Node},
};
use rand::RngExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many pods of an app go in one round by eviction.
const AT_ONCE: u32 = 2;

impl World {
    /// Pods end, are evicted or deleted, and find a place.
    pub(super) fn run_workload(&mut self) {
        let (now, nodes) = (self.snapshot.now, &self.snapshot.nodes);
        let there: BTreeSet<String> = nodes.iter().map(|node| node.name.to_string()).collect();
        let mut lost: Vec<String> = Vec::new();
        let machines = &self.machines;
        self.workload.pods.retain(|one| {
            let stays = there.contains(&one.pod.node);
            if let (Kind::App(key), false, None) = (&one.kind, stays, one.pod.deletes_at) {
                lost.push(key.clone()); // made anew elsewhere
            }
            let over = one.pod.deletes_at.is_some_and(|end| end <= now.get());
            let ends = over && machines.get(&one.pod.node).is_none_or(Machine::serves);
            stays && !ends && !matches!(one.kind, Kind::Job(ends_at) if ends_at <= now)
        });
        self.replace_unreachable();
        self.write_budgets();
        for key in lost {
            if let Some(app) = self.workload.apps.get_mut(&key) {
                app.pending += 1;
            }
        }
        let orders = self.workload.orders.clone();
        // As the operator: a drain that is not ordered any more is forgotten, with whom it gave up.
        let ordered: BTreeSet<_> = orders.iter().map(|order| self.drain_key(order)).collect();
        self.workload.ledgers.retain(|drain, _| ordered.contains(drain));
        for order in orders {
            self.empty(&order);
        }
        self.place();
        self.show_workload();
    }

    /// One round of the drain of a node.
    fn empty(&mut self, order: &DrainOrder) {
        let Some(said) = self.drain_of_policy(&order.policy) else { return };
        let (now, key) = (self.snapshot.now, self.drain_key(order));
        let mutant = self.workload.drains;
        let drain = match mutant {
            Drains::Hasty => Drain { rules: Vec::new(), honor_pod_annotations: false, ..said.clone() },
            Drains::Unordered => {
                let rules = said.rules.iter().map(|rule| DrainRule { order: 0, ..rule.clone() });
                Drain { rules: rules.collect(), ..said.clone() }
            }
            Drains::Right | Drains::Blind | Drains::Stubborn => said.clone(),
        };
        let rollout = self.rollout_of(order);
        let none = BTreeSet::new();
        let mut ledger = self.workload.ledgers.remove(&key).unwrap_or_default();
        let asked: Vec<(String, Kind)> = {
            let present: Vec<_> = self.workload.pods.iter().filter(|one| one.pod.node == order.node).collect();
            let pods = || present.iter().map(|one| &one.pod);
            let hour = |given_up| Hour { now: now.get(), begun: Some(order.begun.get()), given_up, own: None };
            let before = ledger.clone();
            let mut sorted = sort(pods(), &drain, &hour(mutant.given_up(&before, &none)));
            let leaving = u32::try_from(sorted.leaving().count()).unwrap_or(u32::MAX);
            let returning = self.workload.count(&order.node, &Kind::Returning);
            if ledger.meet(sorted.leaving()) {
                sorted = sort(pods(), &drain, &hour(mutant.given_up(&ledger, &none)));
            }
            if order.mode == DrainMode::Keep {
                self.workload.ledgers.insert(key, ledger);
                return;
            }
            // Who has left by itself before anybody was asked did not have to be moved.
            let cost = || Cost { rollout, stood: leaving, evictions: 0, returning: (returning, 0) };
            self.workload.costs.entry(key.clone()).or_insert_with(cost);
            if order.mode == DrainMode::DeleteRest {
                sorted = sorted.all_at_once();
            }
            let Ok(go) = sorted.asked() else {
                self.workload.ledgers.insert(key, ledger);
                return;
            };
            let kind = |uid: &str| present.iter().find(|one| one.pod.uid == uid).map(|one| one.kind.clone());
            // Who ends already was told.
            let told = go.iter().filter(|pod| pod.deletes_at.is_none());
            told.filter_map(|pod| Some((pod.uid.clone(), kind(&pod.uid)?))).collect()
        };
        let mut gone: BTreeMap<String, u32> = BTreeMap::new();
        for (uid, kind) in asked {
            if order.mode == DrainMode::Evict && !self.may_go(&kind, &mut gone) {
                continue;
            }
            let Some(index) = self.workload.pods.iter().position(|one| one.pod.uid == uid) else { continue };
            let early =
                (order.mode == DrainMode::Evict).then(|| self.out_of_turn(index, &said, order, &ledger)).flatten();
            self.workload.hurried.extend(early);
            self.note_eviction(order, index);
            let Some(one) = self.make_leave(index, order.mode == DrainMode::Evict) else { continue };
            self.workload.evictions += 1;
            let cost = self.workload.costs.entry(key.clone()).or_default();
            cost.evictions += 1;
            ledger.asked(&one.pod);
            if order.mode == DrainMode::Evict
                && let Some(why) = left_alone(&one.pod, &said, order.begun, now)
            {
                self.workload.hurried.push(format!("{} was evicted from {}, though {why}", one.pod.name, order.node));
            }
            match &one.kind {
                Kind::App(key) => {
                    if let Some(app) = self.workload.apps.get_mut(key) {
                        app.pending += 1;
                    }
                    let seconds = if self.peace { 20 } else { self.random.random_range(0..400) };
                    let detached = bascule_api::Time::new(now.get() + chrono::TimeDelta::seconds(seconds));
                    self.workload.attached.insert(order.node.clone(), detached);
                }
                Kind::Tolerant => self.workload.add(&order.node, Kind::Tolerant, now),
                Kind::Returning => {
                    cost.returning.1 += 1;
                    let (stood, evicted) = cost.returning;
                    // The first that come back have to move as well.
                    cost.stood += u32::from(evicted < stood + RETURNS);
                    self.workload.add(&order.node, Kind::Returning, now);
                }
                Kind::Loose | Kind::Anchored | Kind::Job(_) | Kind::Stuck | Kind::Bare => {}
            }
        }
        self.workload.ledgers.insert(key, ledger);
    }

    /// The policy of a drain and the release that it is for.
    fn rollout_of(&self, order: &DrainOrder) -> (String, String) {
        let node = self.snapshot.nodes.iter().find(|node| *node.name == *order.node);
        let release =
            node.and_then(|node| node.live_update()?.spec.release.as_ref().map(|one| one.version.to_string()));
        (order.policy.clone(), release.unwrap_or_default())
    }

    /// What is wrong with the eviction of a pod now, where a rule's order says that another one goes, or ends, before it.
    fn out_of_turn(&self, index: usize, drain: &Drain, order: &DrainOrder, ledger: &Ledger) -> Option<String> {
        let pod = &self.workload.pods.get(index)?.pod;
        let rule = |pod: &Pod| drain.rules.iter().find(|rule| selects(rule, pod));
        let turn = |pod: &Pod| rule(pod).map_or(0, |rule| rule.order);
        let now = self.snapshot.now;
        let waited_for = |other: &&Pod| {
            let over = |rule: &DrainRule| rule.timeout.is_some_and(|timeout| now >= order.begun.after(timeout));
            let stays = |rule: &DrainRule| rule.behavior == DrainBehavior::Skip || over(rule);
            let comes_back = other.tolerates_cordon && other.created_at > order.begun.get();
            // Who should have ended long ago is waited for by nobody.
            let overdue = |end: chrono::DateTime<chrono::Utc>| now.seconds_since(Time::new(end)) > OVERDUE;
            !other.deletes_at.is_some_and(overdue)
                && other.node == order.node
                && turn(other) < turn(pod)
                && !(comes_back || ledger.given_up().contains(&other.uid))
                && !rule(other).is_some_and(stays)
        };
        let first = self.workload.pods.iter().map(|one| &one.pod).find(waited_for)?;
        Some(format!("{} was evicted from {} before {}, whose turn comes first", pod.name, order.node, first.name))
    }

    /// Whether the eviction API would let a pod go.
    fn may_go(&self, kind: &Kind, gone: &mut BTreeMap<String, u32>) -> bool {
        let Kind::App(key) = kind else { return *kind != Kind::Stuck };
        let Some(app) = self.workload.apps.get(key) else { return true };
        let gone = gone.entry(key.clone()).or_default();
        // What went in this round is counted already.
        let may = self.standing(key, app).1 > 0 && *gone < AT_ONCE;
        *gone += u32::from(may);
        may
    }

    /// The settings that a drain goes by. Of a policy that can't be used for another field the operator knows what it says of
    /// drains; here that is gone, and nobody is evicted until the plan gives the node back.
    fn drain_of_policy(&self, name: &str) -> Option<Drain> {
        let policy = self.snapshot.policies.iter().find(|policy| policy.name == name);
        Some(policy?.spec.as_ref().ok()?.spec.drain.clone())
    }

    fn place(&mut self) {
        let keys: Vec<String> = self.workload.apps.keys().cloned().collect();
        for key in keys {
            // A scheduler may not have seen the cordon yet.
            let late = !self.peace && self.chance(5);
            let open = |node: &&Arc<Node>| {
                node.ready.ready && (late || !node.cordon.is_cordoned()) && !node.taints.hold && !node.deleting
            };
            let open: Vec<String> = self.snapshot.nodes.iter().filter(open).map(|node| node.name.to_string()).collect();
            if open.is_empty() {
                continue;
            }
            let place = open.get(self.random.random_range(0..open.len())).cloned().unwrap_or_default();
            let placed = self.workload.apps.get(&key).map_or(0, |app| app.pending.min(3));
            for _ in 0..placed {
                self.settle_on(&place, Kind::App(key.clone()));
            }
            if let Some(app) = self.workload.apps.get_mut(&key) {
                app.pending -= placed;
            }
        }
    }

    /// A pod comes to a node; one that is being emptied has one more to move, unless that one tolerates the cordon.
    pub(super) fn settle_on(&mut self, node: &str, kind: Kind) {
        let (moves, returns) = (u32::from(kind != Kind::Tolerant), kind == Kind::Returning);
        self.workload.add(node, kind, self.snapshot.now);
        let emptied = self.snapshot.nodes.iter().find(|known| *known.name == *node && known.granted());
        let grant =
            emptied.and_then(|node| Some((node.uid.clone(), node.live_update()?.spec.grant.as_ref()?.generation)));
        if let Some(cost) = grant.and_then(|key| self.workload.costs.get_mut(&key)) {
            cost.stood += moves;
            cost.returning.0 += u32::from(returns);
        }
    }

    /// Writes the pods into the facts.
    pub(super) fn show_workload(&mut self) {
        let mut budgets = BTreeMap::new();
        for (key, app) in &self.workload.apps {
            let (healthy, allowed) = self.standing(key, app);
            let (desired, expected) = (if app.switches { healthy } else { app.desired }, app.wanted);
            let (unhealthy, unfinished) = (Vec::new(), Vec::new());
            let budget = DisruptionBudget { allowed, healthy, desired, expected, unhealthy, unfinished };
            budgets.insert(key.clone(), budget);
        }
        self.snapshot.budgets = Arc::new(budgets);
        let none = BTreeSet::new();
        let facts: Vec<_> = self
            .snapshot
            .nodes
            .iter()
            .map(|node| {
                let disruption = node.live_update().filter(|update| update.spec.disruption.is_some());
                let by = disruption.and_then(|update| self.drain_of_policy(&update.spec.policy));
                let selecting = self.snapshot.policies.iter().filter_map(|policy| policy.spec.as_ref().ok());
                let selecting = selecting.filter(|valid| valid.spec.node_selector.matches(&node.labels));
                let drain = by.or_else(|| selecting.map(|valid| valid.spec.drain.clone()).next()).unwrap_or_default();
                let disruption = disruption.and_then(|update| update.spec.disruption.as_ref());
                let begun = disruption.and_then(|disruption| disruption.drain_started_at);
                let grant = disruption.and(node.live_update()).and_then(|update| update.spec.grant.as_ref());
                let ledger = grant.and_then(|grant| self.workload.ledgers.get(&(node.uid.clone(), grant.generation)));
                let hour = Hour {
                    now: self.snapshot.now.get(),
                    begun: begun.map(bascule_api::Time::get),
                    given_up: ledger.map_or(&none, |ledger| ledger.given_up()),
                    own: None,
                };
                let present = self.workload.pods.iter().filter(|one| one.pod.node == *node.name);
                let apps = &self.workload.apps;
                let attached = self.workload.attached.get(&*node.name).filter(|until| **until > self.snapshot.now);
                let needs = |pod: &Pod| -> Vec<Needed> {
                    // Who ends already needs nobody's permission.
                    let controller = pod.controller.as_ref().filter(|_| pod.deletes_at.is_none());
                    let key = controller.map(|controller| controller.uid.clone());
                    key.filter(|key| apps.contains_key(key)).map(|key| (key, None)).into_iter().collect()
                };
                let mut facts = node_pods(present.map(|one| &one.pod), &drain, &hour, needs, |_| None);
                facts.attached =
                    attached.filter(|_| begun.is_some()).map(|_| format!("pv-{}", node.name)).into_iter().collect();
                facts
            })
            .collect();
        for (node, facts) in self.snapshot.nodes.iter_mut().zip(facts) {
            if node.pods != facts {
                Arc::make_mut(node).pods = facts;
            }
        }
        self.note_pods();
    }

    /// Adds an app whose pods are already placed.
    pub(super) fn add_app(&mut self, key: &str, app: App, nodes: &[&str]) {
        let now = super::build::at(-86_400);
        for node in nodes {
            self.workload.add(node, Kind::App(key.to_owned()), now);
        }
        self.workload.apps.insert(key.to_owned(), app);
    }

    pub(super) fn run_hooks(&mut self) {
        let now = self.snapshot.now;
        let fail = self.workload.hooks_fail;
        for run in &mut self.snapshot.hooks {
            if let HookState::Running { since } = run.state
                && now.seconds_since(since) > 20
            {
                run.state =
                    if fail { HookState::Failed { message: "exit code 1".to_owned() } } else { HookState::Succeeded };
            }
        }
        for run in self.snapshot.hooks.iter().filter(|run| run.state == HookState::Succeeded) {
            let of = format!("{}/{}", run.policy, run.node);
            self.workload.succeeded.insert((of, run.grant, run.stage.key(&run.hook)));
        }
        if self.random.random_range(0..10) == 0 {
            // Somebody's tool clears finished Jobs away.
            let nodes = &self.snapshot.nodes;
            self.snapshot.hooks.retain(|run| {
                let node = nodes.iter().find(|node| *node.name == *run.node);
                let spec = node.and_then(|node| node.update.as_ref()).map(|update| &update.spec);
                let noted = spec
                    .and_then(|spec| spec.disruption.as_ref())
                    .is_none_or(|disruption| disruption.hooks_done.contains(&run.stage.key(&run.hook)));
                run.state != HookState::Succeeded || !noted || run.node.is_empty()
            });
        }
        if !fail {
            // A person deletes failed Jobs once the cause is mended.
            self.snapshot.hooks.retain(|run| !matches!(run.state, HookState::Failed { .. }));
        }
    }

    pub(super) fn answer_gates(&mut self) {
        let (now, healthy) = (self.snapshot.now, self.workload.healthy);
        let before = std::mem::take(&mut self.snapshot.gates);
        for question in &self.workload.questions {
            let passes = !self.workload.deaf
                && match &question.node {
                    Some(node) => !self.workload.busy.contains(node),
                    None => healthy,
                };
            let known = before.iter().find(|answer| {
                answer.policy == question.policy && answer.gate == question.gate && answer.node == question.node
            });
            let since = known.filter(|known| known.passes == passes).map_or(now, |known| known.since);
            let missed = if passes {
                known.and_then(|known| known.missed)
            } else {
                Some(Missed { at: now, known: !self.workload.deaf })
            };
            self.snapshot.gates.push(GateAnswer {
                policy: question.policy.clone(),
                gate: question.gate.clone(),
                node: question.node.clone(),
                passes,
                known: !self.workload.deaf,
                message: if passes { String::new() } else { "1 alert fires".to_owned() },
                at: now,
                since,
                missed,
            });
        }
    }
}

fn selects(rule: &DrainRule, pod: &Pod) -> bool {
    rule.selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
}

/// Why a pod is not to be evicted now, by the words of docs/drain.md: written apart from what decides it.
fn left_alone(pod: &Pod, drain: &Drain, begun: Time, now: Time) -> Option<String> {
    match drain.rules.iter().find(|rule| selects(rule, pod)) {
        Some(rule) => match rule.behavior {
            DrainBehavior::Drain => None,
            DrainBehavior::Skip => Some(format!("rule {} says to leave it", rule.name)),
            DrainBehavior::WaitCompleted => rule
                .timeout
                .is_none_or(|timeout| now < begun.after(timeout))
                .then(|| format!("rule {} says to wait for it", rule.name)),
        },
        None => matches!(pod.wish, Wish::Undisturbed { until: None, .. })
            .then(|| "it asks by its annotation not to be disrupted".to_owned()),
    }
}
