//! The pods of a world: what runs on the nodes, and what becomes of it while time passes.

use super::World;
use bascule_api::Time;
use bascule_planner::drain::{Controller, Ledger, Needs, Pod, Wish};
use bascule_planner::plan::{DrainOrder, GateQuestion};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A pod with what it is in this world.
#[derive(Debug, Clone)]
pub(super) struct Inhabitant {
    pub(super) pod: Pod,
    pub(super) kind: Kind,
}

/// What a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of an app under a budget, by the budget's key.
    App(String),
    /// Of no budget; it does not come back.
    Loose,
    /// It tolerates the cordon and is brought back to the very same node.
    Tolerant,
    /// It does not tolerate the cordon, and whoever brings it back binds it to the very same node in spite of that.
    Returning,
    /// Its node selector lets it run on this node only.
    Anchored,
    /// It ends by itself.
    Job(Time),
    /// It does not go away by eviction.
    Stuck,
    /// No controller brings it back, so that no policy here allows to evict it.
    Bare,
}

/// How nodes are emptied: the right way, or as a mutant that tests prove to be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drains {
    /// As the operator does.
    #[default]
    Right,
    /// Nobody sees which pods tolerate a cordon.
    Blind,
    /// Nobody asks what rules and pods themselves say.
    Hasty,
    /// Rules say who is waited for, and whose turn comes first is passed over.
    Unordered,
    /// Whoever comes back is told to go again.
    Stubborn,
}

impl Drains {
    /// Whom a drain leaves, since their owner brings them back.
    pub(super) fn given_up<'a>(self, ledger: &'a Ledger, nobody: &'a BTreeSet<String>) -> &'a BTreeSet<String> {
        if self == Self::Stubborn { nobody } else { ledger.given_up() }
    }
}

/// An app under a PodDisruptionBudget.
#[derive(Debug, Clone, Default)]
pub(super) struct App {
    pub(super) wanted: u32,
    pub(super) desired: u32,
    /// Pods that have no node.
    pub(super) pending: u32,
    /// Its budget allows nothing before one of its nodes is cordoned: then its controller moves the workload away.
    pub(super) switches: bool,
}

/// What a drain cost.
#[derive(Debug, Clone, Default)]
pub(super) struct Cost {
    /// The policy and the release that is left or installed: all of its drains together are a rollout.
    pub(super) rollout: (String, String),
    /// How many pods had to move: they stood there, or were bound to the node before the scheduler had seen the cordon, or
    /// came back once or twice.
    pub(super) stood: u32,
    pub(super) evictions: u32,
    /// Pods that are brought back: how many stood there, and how often one was evicted. An operator that takes over counts
    /// anew.
    pub(super) returning: (u32, u32),
}

/// How many evictions an owner costs beyond its pods that stood there (docs/drain.md, "A drain has an end").
pub(super) const RETURNS: u32 = 2;

/// What runs on the nodes beside the system.
#[derive(Debug, Clone, Default)]
pub(super) struct Workload {
    pub(super) pods: Vec<Inhabitant>,
    /// Apps by their budget's key.
    pub(super) apps: BTreeMap<String, App>,
    pub(super) orders: Vec<DrainOrder>,
    pub(super) questions: Vec<GateQuestion>,
    /// Whether the health gates pass.
    pub(super) healthy: bool,
    /// Whether whoever gates ask answers nobody.
    pub(super) deaf: bool,
    /// Nodes of which gates that are asked for each node say no.
    pub(super) busy: BTreeSet<String>,
    /// Hooks that succeeded, by policy and node, grant and hook.
    pub(super) succeeded: BTreeSet<(String, i64, String)>,
    /// Whether hooks fail.
    pub(super) hooks_fail: bool,
    /// What the operator's drains remember, by the node's UID and the grant. It dies with the operator.
    pub(super) ledgers: BTreeMap<(String, i64), Ledger>,
    /// What each drain cost, by the node's UID and the grant.
    pub(super) costs: BTreeMap<(String, i64), Cost>,
    pub(super) evictions: u32,
    /// Until when the volumes of pods that have left are still attached, by node.
    pub(super) attached: BTreeMap<String, Time>,
    /// Pods that were evicted though they had to be waited for or left, with what said so.
    pub(super) hurried: Vec<String>,
    pub(super) drains: Drains,
    made: u64,
}

impl Workload {
    /// Whether pods still look for a place.
    pub(super) fn is_busy(&self) -> bool {
        self.apps.values().any(|app| app.pending > 0)
    }

    /// Puts a pod on a node.
    pub(super) fn add(&mut self, node: &str, kind: Kind, now: Time) {
        self.made += 1;
        let (owner, tag) = match &kind {
            Kind::App(key) => (Some(key.clone()), "app"),
            Kind::Loose => (Some("shop/loose".to_owned()), "loose"),
            Kind::Tolerant => (Some(format!("shop/pinned-{node}")), "pinned"),
            Kind::Returning => (Some(format!("shop/returning-{node}")), "returning"),
            Kind::Anchored => (Some(format!("shop/anchored-{node}")), "anchored"),
            Kind::Job(_) => (Some(format!("ci/job-{}", self.made)), "job"),
            Kind::Stuck => (Some("shop/stuck".to_owned()), "stuck"),
            Kind::Bare => (None, "debug"),
        };
        let name = format!("{tag}-{}", self.made);
        let controller = owner.map(|uid| {
            Arc::new(Controller {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                name: uid.clone(),
                uid,
            })
        });
        let job = match kind {
            Kind::Job(ends_at) => Some(ends_at),
            _ => None,
        };
        let pod = Pod {
            namespace: "shop".to_owned(),
            uid: format!("uid-{name}"),
            name,
            node: node.to_owned(),
            created_at: now.get(),
            labels: Arc::new([("kind".to_owned(), tag.to_owned())].into()),
            controller,
            ready: true,
            tolerates_cordon: kind == Kind::Tolerant && self.drains != Drains::Blind,
            needs: Arc::new(Needs {
                selector: (kind == Kind::Anchored)
                    .then(|| ("kubernetes.io/hostname".to_owned(), node.to_owned()))
                    .into_iter()
                    .collect(),
                ..Needs::default()
            }),
            completes: job.is_some(),
            ends_by: job.map(Time::get),
            // Every other build also asks by its own annotation.
            wish: if job.is_some() && self.made.is_multiple_of(2) {
                Wish::Undisturbed { annotation: bascule_planner::drain::DO_NOT_DISRUPT, until: None }
            } else {
                Wish::None
            },
            ..Pod::default()
        };
        self.pods.push(Inhabitant { pod, kind });
    }

    /// The operator dies, and with it what its drains remember.
    pub(super) fn forget(&mut self) {
        self.orders.clear();
        self.ledgers.clear();
        for cost in self.costs.values_mut() {
            let (stood, evicted) = cost.returning;
            // Those that were given up stand there for the next, and have to move once more.
            cost.stood += stood.min(evicted.saturating_sub(RETURNS));
            cost.returning = (stood, 0);
        }
    }

    /// How many pods of a kind a node has.
    pub(super) fn count(&self, node: &str, kind: &Kind) -> u32 {
        let those = self.pods.iter().filter(|one| one.kind == *kind && one.pod.node == node);
        u32::try_from(those.count()).unwrap_or(u32::MAX)
    }

    /// Takes pods of a kind away, from one node or from all.
    pub(super) fn clear(&mut self, node: Option<&str>, kind: &Kind) {
        self.pods.retain(|one| one.kind != *kind || node.is_some_and(|node| one.pod.node != node));
    }
}

impl World {
    /// A drain by the node's UID, since another node may get its name, and the grant.
    pub(super) fn drain_key(&self, order: &DrainOrder) -> (String, i64) {
        let node = self.snapshot.nodes.iter().find(|node| *node.name == *order.node);
        (node.map_or_else(String::new, |node| node.uid.clone()), order.grant)
    }

    /// How many of an app's pods its budget counts as healthy, and how many it lets go now.
    pub(super) fn standing(&self, key: &str, app: &App) -> (u32, u32) {
        let on = |wanted: &dyn Fn(&bascule_planner::snapshot::Node) -> bool| {
            let nodes = self.snapshot.nodes.iter().filter(|node| wanted(node));
            nodes.map(|node| self.workload.count(&node.name, &Kind::App(key.to_owned()))).sum::<u32>()
        };
        let healthy = on(&|node| node.ready.ready);
        if app.switches {
            // Its controller has put another one in the place of each pod on a cordoned node.
            return (healthy, on(&|node| node.ready.ready && node.cordon.is_cordoned()));
        }
        (healthy, healthy.saturating_sub(app.desired))
    }
}
