//! What happens in a world, in its order, for those who judge it afterwards: what machines and kubelets did, what the operator
//! saw, said and wrote, and which pods it made leave. Nothing in the world reads any of it.

use super::{
    Broken, World, judge,
    machine::Deed,
    pods::{Inhabitant, Kind},
};
use bascule_api::Time;
use bascule_planner::{
    Action, Plan, Report, Snapshot, Wait,
    plan::DrainOrder,
    snapshot::{Node, PolicyFacts, Write},
};
use std::{collections::BTreeMap, sync::Arc};

/// Everything that happened since somebody began to write it down.
#[derive(Debug, Default)]
pub(super) struct History {
    events: Vec<(Time, Event)>,
    /// The pods as the API server shows them now.
    pods: Arc<ShownPods>,
    /// What each kubelet said last.
    kubelets: BTreeMap<Arc<str>, (bool, String)>,
    /// How many plans there were.
    plans: usize,
}

/// Something that happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The operator made a plan.
    Plan(Box<Planned>),
    /// A step of one was carried out.
    Act(Box<Act>),
    /// The API server did not take a write, or nobody heard that it did.
    Refused(Write),
    /// A machine did something.
    Deed { node: Arc<str>, uid: String, deed: Deed },
    /// The API server shows another word of a kubelet, or none for too long.
    Kubelet { node: Arc<str>, ready: bool, boot: String },
    /// The operator made a pod leave.
    Evicted(Box<Evicted>),
    /// Nothing happens any more, as far as can be told yet.
    Quiet,
    /// Nothing happened for so long that it is the end.
    Rest,
}

/// A plan: what it was made from, and what came of it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) view: View,
    /// What it wants done, carried out or not.
    pub(super) steps: Vec<Action>,
    /// What it says of each node of the view, in its order.
    pub(super) said: Vec<Arc<Wait>>,
}

impl Planned {
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.view.facts.nodes.iter().map(|node| &**node)
    }

    /// The nodes with what is said of them.
    pub(super) fn sentences(&self) -> impl Iterator<Item = (&Node, &Wait)> {
        self.nodes().zip(self.said.iter().map(|wait| &**wait))
    }

    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes().find(|node| node.uid == uid)
    }

    pub(super) fn policy(&self, name: &str) -> Option<&PolicyFacts> {
        self.view.facts.policies.iter().map(|policy| &**policy).find(|policy| policy.name == name)
    }
}

/// A step that was carried out.
#[derive(Debug)]
pub(super) struct Act {
    /// The plan that it is of, by its number.
    pub(super) plan: usize,
    /// The UID of its node, where it has one.
    pub(super) uid: String,
    pub(super) action: Action,
}

/// What somebody saw of the cluster.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) facts: Snapshot,
    /// The pods that these facts rest on.
    pub(super) pods: Arc<ShownPods>,
    /// When kubelets and agents had said that.
    pub(super) at: Time,
    /// Whether that was just then.
    pub(super) fresh: bool,
    /// Nodes that were seen as they were at another time, later than the others.
    pub(super) new: Vec<(Arc<str>, Time)>,
}

impl View {
    /// Facts from anywhere, of whose pods nothing is known.
    pub(super) fn of(facts: Snapshot) -> Self {
        Self { at: facts.now, facts, pods: Arc::default(), fresh: false, new: Vec::new() }
    }

    /// When a node's kubelet had said what is seen of it.
    pub(super) fn seen_at(&self, node: &str) -> Time {
        self.new.iter().find(|(new, _)| **new == *node).map_or(self.at, |(_, at)| *at)
    }
}

/// The pods as the API server shows them at a moment, and what was known then of the drains of their nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct ShownPods {
    pub(super) pods: Vec<Stood>,
    /// When the drain of a node began, by its name.
    pub(super) begun: BTreeMap<Arc<str>, Time>,
    /// How many pods of each app must stay, where that does not change with a cordon.
    pub(super) budgets: BTreeMap<String, u32>,
    pub(super) policies: Vec<Arc<PolicyFacts>>,
}

impl ShownPods {
    /// The same, with some nodes as they are in another.
    pub(super) fn with(&self, other: &Self, nodes: &[Arc<str>]) -> Self {
        let named = |name: &str| nodes.iter().any(|node| **node == *name);
        let own = self.pods.iter().filter(|pod| !named(&pod.node));
        let theirs = other.pods.iter().filter(|pod| named(&pod.node));
        let own_drains = self.begun.iter().filter(|(node, _)| !named(node));
        let their_drains = other.begun.iter().filter(|(node, _)| named(node));
        Self {
            pods: own.chain(theirs).cloned().collect(),
            begun: own_drains.chain(their_drains).map(|(node, begun)| (Arc::clone(node), *begun)).collect(),
            budgets: other.budgets.clone(),
            policies: self.policies.clone(),
        }
    }

    /// The pods of a node.
    pub(super) fn on<'p>(&'p self, node: &'p str) -> impl Iterator<Item = &'p Stood> {
        self.pods.iter().filter(move |pod| pod.node == node)
    }
}

/// A pod that stood on a node.
#[derive(Debug, Clone)]
pub(super) struct Stood {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) kind: Kind,
    pub(super) created_at: Time,
    /// When it should have ended, if it was told to.
    pub(super) deletes_at: Option<Time>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Stood {
    fn of(one: &Inhabitant) -> Self {
        Self {
            namespace: one.pod.namespace.clone(),
            name: one.pod.name.clone(),
            node: one.pod.node.clone(),
            kind: one.kind.clone(),
            created_at: Time::new(one.pod.created_at),
            deletes_at: one.pod.deletes_at.map(Time::new),
            labels: BTreeMap::clone(&one.pod.labels),
        }
    }
}

/// A pod that the operator made leave, as it was just before.
#[derive(Debug)]
pub(super) struct Evicted {
    pub(super) order: DrainOrder,
    pub(super) pod: Stood,
    pub(super) app: Option<Standing>,
}

/// How an app stood, its pods on nodes that look Ready counted.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) key: String,
    pub(super) healthy: u32,
    pub(super) desired: u32,
    /// Its controller has put another pod in the place of each one on a cordoned node.
    pub(super) switches: bool,
}

impl World {
    /// From now on what happens is written down, for [`Self::judged`].
    pub fn remember(&mut self) {
        self.history = Some(History::default());
        self.note_pods();
    }

    /// What the judges of the history find, in what was written down.
    #[must_use]
    pub fn judged(&self) -> Vec<Broken> {
        self.history.as_ref().map_or_else(Vec::new, |history| judge::judge(&history.events))
    }

    /// The cluster as it is.
    pub(super) fn view(&self) -> View {
        let (facts, pods) = (self.snapshot.clone(), self.shown_pods());
        View { at: facts.now, facts, pods, fresh: true, new: Vec::new() }
    }

    pub(super) fn shown_pods(&self) -> Arc<ShownPods> {
        self.history.as_ref().map(|history| Arc::clone(&history.pods)).unwrap_or_default()
    }

    /// Writes a plan down, and gives it its number.
    pub(super) fn note_plan(&mut self, view: View, plan: &Plan, report: &Report) -> usize {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return 0 };
        let number = history.plans;
        history.plans += 1;
        let steps = plan.steps.iter().map(|step| step.action.clone()).collect();
        let said = report.nodes.iter().map(|said| Arc::clone(&said.wait)).collect();
        history.events.push((now, Event::Plan(Box::new(Planned { view, steps, said }))));
        number
    }

    /// Writes down that a step was carried out.
    pub(super) fn note_act(&mut self, plan: usize, action: &Action) {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return };
        let node = action.node().and_then(|name| self.snapshot.nodes.iter().find(|node| *node.name == *name));
        let uid = node.map_or_else(String::new, |node| node.uid.clone());
        history.events.push((now, Event::Act(Box::new(Act { plan, uid, action: action.clone() }))));
    }

    /// Writes down that the API server did not take a write.
    pub(super) fn note_refusal(&mut self, write: &Write) {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return };
        history.events.push((now, Event::Refused(write.clone())));
    }

    /// Writes down what machines did, and what is seen of their kubelets since.
    pub(super) fn note_machines(&mut self, deeds: Vec<(Arc<str>, String, Deed)>) {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return };
        for (node, uid, deed) in deeds {
            history.events.push((now, Event::Deed { node, uid, deed }));
        }
        for node in &self.snapshot.nodes {
            let known = history.kubelets.get(&node.name);
            if known.is_none_or(|(ready, boot)| *ready != node.ready.ready || *boot != node.boot_id) {
                let (name, ready, boot) = (Arc::clone(&node.name), node.ready.ready, node.boot_id.clone());
                history.kubelets.insert(Arc::clone(&name), (ready, boot.clone()));
                history.events.push((now, Event::Kubelet { node: name, ready, boot }));
            }
        }
    }

    /// Writes down which pods are shown.
    pub(super) fn note_pods(&mut self) {
        let Some(history) = &mut self.history else { return };
        let begun = self.snapshot.nodes.iter().filter_map(|node| {
            let disruption = node.live_update()?.spec.disruption.as_ref()?;
            Some((Arc::clone(&node.name), disruption.drain_started_at?))
        });
        let apps = self.workload.apps.iter().filter(|(_, app)| !app.switches);
        history.pods = Arc::new(ShownPods {
            pods: self.workload.pods.iter().map(Stood::of).collect(),
            begun: begun.collect(),
            budgets: apps.map(|(key, app)| (key.clone(), app.desired)).collect(),
            policies: self.snapshot.policies.clone(),
        });
    }

    /// Writes down that the operator makes a pod leave, which is there still.
    pub(super) fn note_eviction(&mut self, order: &DrainOrder, index: usize) {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return };
        let Some(one) = self.workload.pods.get(index) else { return };
        let ready = |name: &str| self.snapshot.nodes.iter().any(|node| *node.name == *name && node.ready.ready);
        let app = match &one.kind {
            Kind::App(key) => self.workload.apps.get_key_value(key),
            _ => None,
        };
        let app = app.map(|(key, app)| {
            let stays = self.workload.pods.iter().filter(|other| other.pod.deletes_at.is_none());
            let healthy = stays.filter(|other| other.kind == one.kind && ready(&other.pod.node));
            let healthy = u32::try_from(healthy.count()).unwrap_or(u32::MAX);
            // The API server goes by the budget's status, how old that may be.
            let healthy = app.shown.map_or(healthy, |shown| app.desired.saturating_add(shown.allowed));
            Standing { key: key.clone(), healthy, desired: app.desired, switches: app.switches }
        });
        let evicted = Evicted { order: order.clone(), pod: Stood::of(one), app };
        history.events.push((now, Event::Evicted(Box::new(evicted))));
    }

    /// Writes down for how many rounds nothing happened, where that says something.
    pub(super) fn note_quiet(&mut self, rounds: u32) {
        let now = self.snapshot.now;
        let Some(history) = &mut self.history else { return };
        if rounds == 1 {
            history.events.push((now, Event::Quiet));
        } else if rounds == super::QUIET_ROUNDS {
            history.events.push((now, Event::Rest));
        }
    }
}
