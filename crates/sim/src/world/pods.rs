//! The pods of a world: what runs on the nodes, and what becomes of it while time passes.

use super::World;
use bascule_api::Time;
use bascule_planner::drain::{Controller, Ledger, Needs, Pod, Wish};
use bascule_planner::plan::{DrainOrder, GateQuestion};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
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
    /// The budget's status, where it is not always what is so.
    pub(super) shown: Option<BudgetStatus>,
}

/// A PodDisruptionBudget's status, as the disruption controller wrote it, with what evictions took of it since.
#[derive(Debug, Clone, Copy)]
pub(super) struct BudgetStatus {
    healthy: u32,
    pub(super) allowed: u32,
    /// When it is written anew.
    until: Time,
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

impl Cost {
    /// Nobody remembers whom the drain gave up: they stand there for whoever goes on with it, and have to move once more.
    fn forget(&mut self) {
        let (stood, evicted) = self.returning;
        self.stood += stood.min(evicted.saturating_sub(RETURNS));
        self.returning = (stood, 0);
    }
}

/// How long after the end of its grace, in seconds, a pod that is still there is waited for by no drain (docs/drain.md).
pub(super) const OVERDUE: i64 = 60;
/// How long pods of a node that is unreachable are left, in seconds (DefaultTolerationSeconds, 300), and their grace.
const TOLERATED: i64 = 300;
const GRACE: i64 = 30;
/// How long a pod takes to end where that takes time, and how old the status of a budget gets, in seconds; in peace.
const ENDS_WITHIN: (i64, i64) = (120, 20);
const STATUS_WITHIN: (i64, i64) = (60, 0);

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
    /// Whether pods of nodes that are unreachable are replaced.
    pub(super) replaces: bool,
    /// Decides how long pods take to end and how old the statuses of budgets are, where that takes time.
    pub(super) slow: Option<ChaCha8Rng>,
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
        self.costs.values_mut().for_each(Cost::forget);
    }

    /// Somebody deletes what orders the drain of a node, and with it goes whom that gave up. Where nobody remembers its grant, the next one
    /// of that number is another, and so is its drain: who stands there then has to move for it.
    pub(super) fn break_off(&mut self, node: &str, uid: &str, remembered: bool) {
        self.orders.retain(|order| order.node != node);
        let drains: Vec<(String, i64)> = self.costs.keys().filter(|(of, _)| of == uid).cloned().collect();
        for (of, grant) in drains {
            let Some(mut cost) = self.costs.remove(&(of.clone(), grant)) else { continue };
            cost.forget();
            let of = if remembered { of } else { format!("{of} before ({})", self.costs.len()) };
            self.costs.insert((of, grant), cost);
        }
    }

    /// How many pods of a kind a node has that are not to end.
    pub(super) fn count(&self, node: &str, kind: &Kind) -> u32 {
        let stays = |one: &&Inhabitant| one.pod.deletes_at.is_none();
        let those = self.pods.iter().filter(stays).filter(|one| one.kind == *kind && one.pod.node == node);
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

    /// Pods of nodes that have been unreachable for long are told to end, and others come in their place. They end when their kubelet
    /// is there again.
    pub(super) fn replace_unreachable(&mut self) {
        if !self.workload.replaces {
            return;
        }
        let now = self.snapshot.now;
        let gone = |node: &&Arc<bascule_planner::snapshot::Node>| {
            let away = self.machines.get(&*node.name).is_some_and(|machine| !machine.serves());
            let long = node.ready.since.is_some_and(|since| now.seconds_since(since) >= TOLERATED);
            !node.ready.ready && away && long
        };
        let gone: BTreeSet<String> =
            self.snapshot.nodes.iter().filter(gone).map(|node| node.name.to_string()).collect();
        let mut replaced: Vec<String> = Vec::new();
        for one in &mut self.workload.pods {
            if !gone.contains(&one.pod.node) || one.pod.deletes_at.is_some() {
                continue;
            }
            match &one.kind {
                Kind::App(key) => replaced.push(key.clone()),
                Kind::Loose => {}
                // They tolerate it, are no controller's, or are brought back to the same node.
                Kind::Tolerant | Kind::Returning | Kind::Anchored | Kind::Job(_) | Kind::Stuck | Kind::Bare => continue,
            }
            one.pod.deletes_at = Some(now.get() + chrono::TimeDelta::seconds(GRACE));
        }
        for key in replaced {
            if let Some(app) = self.workload.apps.get_mut(&key) {
                app.pending += 1;
            }
        }
    }

    /// How many of an app's pods its budget counts as healthy, and how many it lets go now.
    pub(super) fn standing(&self, key: &str, app: &App) -> (u32, u32) {
        app.shown.map_or_else(|| self.standing_now(key, app), |shown| (shown.healthy, shown.allowed))
    }

    /// The disruption controller writes the statuses of budgets, where it takes its time.
    pub(super) fn write_budgets(&mut self) {
        if self.workload.slow.is_none() {
            return;
        }
        let now = self.snapshot.now;
        let due = |app: &App| app.shown.is_none_or(|shown| shown.until <= now);
        let due: Vec<(String, (u32, u32))> = self
            .workload
            .apps
            .iter()
            .filter(|(_, app)| due(app))
            .map(|(key, app)| (key.clone(), self.standing_now(key, app)))
            .collect();
        let most = if self.peace { STATUS_WITHIN.1 } else { STATUS_WITHIN.0 };
        for (key, (healthy, allowed)) in due {
            let Some(random) = &mut self.workload.slow else { return };
            let seconds = random.random_range(0..=most);
            let until = Time::new(now.get() + chrono::TimeDelta::seconds(seconds));
            if let Some(app) = self.workload.apps.get_mut(&key) {
                app.shown = Some(BudgetStatus { healthy, allowed, until });
            }
        }
    }

    /// A pod that is made to leave goes at once, or is told to end. An eviction takes of its budget what the status allows.
    pub(super) fn make_leave(&mut self, index: usize, evicted: bool) -> Option<Inhabitant> {
        let most = if self.peace { ENDS_WITHIN.1 } else { ENDS_WITHIN.0 };
        let now = self.snapshot.now.get();
        let Some(random) = &mut self.workload.slow else {
            return (index < self.workload.pods.len()).then(|| self.workload.pods.remove(index));
        };
        let one = self.workload.pods.get_mut(index)?;
        one.pod.deletes_at = Some(now + chrono::TimeDelta::seconds(random.random_range(0..=most)));
        let one = one.clone();
        if let (Kind::App(key), true) = (&one.kind, evicted)
            && let Some(shown) = self.workload.apps.get_mut(key).and_then(|app| app.shown.as_mut())
        {
            shown.allowed = shown.allowed.saturating_sub(1);
        }
        Some(one)
    }

    /// The same, as it is at this moment.
    fn standing_now(&self, key: &str, app: &App) -> (u32, u32) {
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
