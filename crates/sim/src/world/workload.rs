//! Pods, PodDisruptionBudgets, hook Jobs and health gates of a world.

use super::World;
use bascule_planner::{
    plan::{DrainMode, DrainOrder, GateQuestion},
    snapshot::{DisruptionBudget, GateAnswer, HookState, UndrainablePod},
};
use rand::RngExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What runs on the nodes beside the system.
#[derive(Debug, Clone, Default)]
pub(super) struct Workload {
    /// Apps by their budget's key: how many pods there should be and how many have to stay.
    pub(super) apps: BTreeMap<String, App>,
    /// Pods of no budget, by node.
    pub(super) loose: BTreeMap<String, u32>,
    /// Pods that do not go away, by node.
    pub(super) stuck: BTreeMap<String, u32>,
    /// Nodes with a pod that no policy here allows to evict.
    pub(super) bare: BTreeSet<String>,
    pub(super) orders: Vec<DrainOrder>,
    pub(super) questions: Vec<GateQuestion>,
    /// Whether the health gates pass.
    pub(super) healthy: bool,
    /// Whether hooks fail.
    pub(super) hooks_fail: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct App {
    pub(super) wanted: u32,
    pub(super) desired: u32,
    /// Pods by node.
    pub(super) pods: BTreeMap<String, u32>,
    /// Pods that have no node.
    pub(super) pending: u32,
}

fn bare_pod(node: &str) -> UndrainablePod {
    UndrainablePod {
        pod: format!("shop/debug-{node}"),
        why: "no controller will bring it back (spec.drain.force)".to_owned(),
    }
}

impl Workload {
    /// Whether pods still look for a place.
    pub(super) fn is_busy(&self) -> bool {
        self.apps.values().any(|app| app.pending > 0)
    }
}

impl World {
    /// Evictions, deletions, and pods that find a place.
    pub(super) fn run_workload(&mut self) {
        let open: Vec<String> = self
            .snapshot
            .nodes
            .iter()
            .filter(|node| node.ready.ready && !node.cordon.is_cordoned() && !node.taints.hold && !node.deleting)
            .map(|node| node.name.to_string())
            .collect();
        let ready: Vec<&str> =
            self.snapshot.nodes.iter().filter(|node| node.ready.ready).map(|node| &*node.name).collect();
        // As long as a node has a pod that may not be evicted, nothing of it is.
        let mut orders = std::mem::take(&mut self.workload.orders);
        orders.retain(|order| order.mode == DrainMode::DeleteRest || !self.workload.bare.contains(&order.node));
        for app in self.workload.apps.values_mut() {
            // Pods of nodes that are gone are made anew.
            let gone: Vec<String> = app
                .pods
                .keys()
                .filter(|node| !self.snapshot.nodes.iter().any(|known| *known.name == ***node))
                .cloned()
                .collect();
            for node in gone {
                app.pending += app.pods.remove(&node).unwrap_or(0);
            }
            for order in &orders {
                let pods = app.pods.get(&order.node).copied().unwrap_or(0);
                let healthy: u32 =
                    app.pods.iter().filter(|(node, _)| ready.contains(&node.as_str())).map(|(_, pods)| *pods).sum();
                let spare = healthy.saturating_sub(app.desired);
                let go = if order.mode == DrainMode::DeleteRest { pods } else { pods.min(spare).min(2) };
                if go > 0 {
                    app.pods.insert(order.node.clone(), pods - go);
                    app.pending += go;
                }
            }
            if !open.is_empty() {
                let place = open.get(self.random.random_range(0..open.len())).cloned().unwrap_or_default();
                let placed = app.pending.min(3);
                *app.pods.entry(place).or_default() += placed;
                app.pending -= placed;
            }
            app.pods.retain(|_, pods| *pods > 0);
        }
        for order in &orders {
            self.workload.loose.remove(&order.node);
            if order.mode == DrainMode::DeleteRest {
                self.workload.stuck.remove(&order.node);
            }
        }
        self.workload.orders = orders;
        self.show_workload();
    }

    /// Writes the pods into the facts.
    pub(super) fn show_workload(&mut self) {
        let workload = &self.workload;
        let mut budgets = BTreeMap::new();
        for (key, app) in &workload.apps {
            let healthy: u32 = self
                .snapshot
                .nodes
                .iter()
                .filter(|node| node.ready.ready)
                .map(|node| app.pods.get(&*node.name).copied().unwrap_or(0))
                .sum();
            let budget = DisruptionBudget {
                allowed: healthy.saturating_sub(app.desired),
                healthy,
                desired: app.desired,
                expected: app.wanted,
                unhealthy: Vec::new(),
                unfinished: Vec::new(),
            };
            budgets.insert(key.clone(), budget);
        }
        self.snapshot.budgets = Arc::new(budgets);
        for node in &mut self.snapshot.nodes {
            let name: &str = &node.name;
            let on_node: Vec<(String, u32)> = workload
                .apps
                .iter()
                .filter_map(|(key, app)| Some((key.clone(), app.pods.get(name).copied().filter(|pods| *pods > 0)?)))
                .collect();
            let loose = workload.loose.get(name).copied().unwrap_or(0) + workload.stuck.get(name).copied().unwrap_or(0);
            let remaining = on_node.iter().map(|(_, pods)| *pods).sum::<u32>() + loose;
            let bare = workload.bare.contains(name);
            if node.pods.remaining != remaining
                || node.pods.budgets != on_node
                || node.pods.undrainable.is_empty() == bare
            {
                let node = Arc::make_mut(node);
                node.pods.undrainable = if bare { vec![bare_pod(&node.name)] } else { Vec::new() };
                node.pods.remaining = remaining;
                node.pods.budgets = on_node;
            }
        }
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
        if !fail {
            // A person deletes failed Jobs once the cause is mended.
            self.snapshot.hooks.retain(|run| !matches!(run.state, HookState::Failed { .. }));
        }
    }

    pub(super) fn answer_gates(&mut self) {
        let (now, passes) = (self.snapshot.now, self.workload.healthy);
        let before = std::mem::take(&mut self.snapshot.gates);
        for question in &self.workload.questions {
            let known = before.iter().find(|answer| {
                answer.policy == question.policy && answer.gate == question.gate && answer.node == question.node
            });
            let since = known.filter(|known| known.passes == passes).map_or(now, |known| known.since);
            self.snapshot.gates.push(GateAnswer {
                policy: question.policy.clone(),
                gate: question.gate.clone(),
                node: question.node.clone(),
                passes,
                message: if passes { String::new() } else { "1 alert fires".to_owned() },
                at: now,
                since,
            });
        }
    }
}
