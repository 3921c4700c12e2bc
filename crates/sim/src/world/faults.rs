//! What people and bad luck do to a world.

use super::{World, build, pods::Kind};
use bascule_api::{PolicyFailure, Retry, Time};
use bascule_planner::snapshot::{Cordon, EtcdMember, Excluded, Node, OfferState, Truce};
use rand::RngExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many nodes a world has at most where nodes join.
const MOST_NODES: usize = 10;

/// Whether a node carries the control plane or a member of etcd.
pub(super) fn carries(node: &Node) -> bool {
    node.control_plane || node.etcd != EtcdMember::None
}

impl World {
    fn any_node(&mut self) -> Option<String> {
        let count = self.snapshot.nodes.len();
        if count == 0 {
            return None;
        }
        let index = self.random.random_range(0..count);
        self.snapshot.nodes.get(index).map(|node| node.name.to_string())
    }

    /// With some luck nothing, else one thing.
    pub(super) fn misfortune(&mut self) {
        // In these worlds alone, so that all others stay what they are.
        if self.seed % 8 == 5 {
            self.join_early();
        }
        if self.chance(8) {
            self.old_view = Some(self.view());
        }
        if !self.chance(35) {
            return;
        }
        let Some(name) = self.any_node() else { return };
        match self.random.random_range(0..30) {
            0 | 1 => self.crash(&name),
            2 => self.with_machine(&name, "loses its kubelet", |machine| machine.unready = true),
            3 | 4 => self.with_machine(&name, "gets its kubelet back", |machine| machine.unready = false),
            5 => self.with_machine(&name, "loses its agent", |machine| machine.silent = true),
            6 => self.with_machine(&name, "gets its agent back", |machine| machine.silent = false),
            7 => self.with_machine(&name, "will not come back from its next reboot", |machine| machine.dies = true),
            8 if self.snapshot.now.get().timestamp() % 2 == 0 && self.is_emptied(&name) => self.break_daemons(&name),
            8 => self.with_machine(&name, "holds an inhibitor", |machine| machine.inhibited = true),
            9 => self.person_cordons(&name),
            10 => self.person_uncordons(&name),
            11 => self.freeze(),
            12 => self.roll_back(),
            13 => self.publish(),
            14 => self.withdraw(),
            15 => self.edit_policy(),
            16 => self.delete_node(&name),
            17 if self.workload.deaf || self.chance(30) => {
                self.workload.deaf = !self.workload.deaf;
                let deaf = self.workload.deaf;
                self.tell(if deaf { "Prometheus answers nobody" } else { "Prometheus answers again" });
            }
            17 => {
                self.workload.healthy = !self.workload.healthy;
                let healthy = self.workload.healthy;
                self.tell(if healthy { "alerts end" } else { "an alert fires" });
            }
            18 => {
                self.tell(&format!("{name}: a pod that does not go away"));
                self.settle_on(&name, Kind::Stuck);
            }
            19 => self.odd(&name),
            27 => self.register_again(&name),
            28 if self.lost.is_empty() => self.lose_node(&name),
            28 => self.find_lost(),
            21 => {
                self.tell(&format!("{name}: somebody starts a pod that no controller brings back"));
                self.settle_on(&name, Kind::Bare);
            }
            22 => {
                self.tell(&format!("{name}: that pod is deleted by its owner"));
                self.workload.clear(Some(&name), &Kind::Bare);
            }
            23 => {
                let seconds = self.random.random_range(30..900);
                self.tell(&format!("{name}: a build of {seconds} s begins"));
                let ends_at = Time::new(self.snapshot.now.get() + chrono::TimeDelta::seconds(seconds));
                self.settle_on(&name, Kind::Job(ends_at));
            }
            25 => {
                self.tell(&format!("{name}: an autoscaler begins to remove it"));
                let taint = bascule_api::LEAVING_TAINTS.first().map(|key| (*key).to_owned());
                self.with_node(&name, |node| node.leaving.clone_from(&taint));
            }
            26 => {
                self.tell(&format!("{name}: the autoscaler thinks better of it"));
                self.with_node(&name, |node| node.leaving = None);
            }
            24 if self.snapshot.now.get().timestamp() % 2 == 0 => {
                self.tell(&format!("{name}: somebody binds a pod to it, again and again"));
                self.settle_on(&name, Kind::Returning);
            }
            24 => {
                self.tell(&format!("{name}: somebody pins a pod that tolerates everything there"));
                self.settle_on(&name, Kind::Tolerant);
            }
            29 => {
                self.tell(&format!("{name}: somebody ties a pod to it"));
                self.settle_on(&name, Kind::Anchored);
            }
            _ => {
                self.workload.hooks_fail = !self.workload.hooks_fail;
                self.tell("hooks fail, or do not any more");
            }
        }
    }

    fn with_machine(&mut self, name: &str, what: &str, change: impl Fn(&mut super::Machine)) {
        self.tell(&format!("{name}: {what}"));
        if let Some(machine) = self.machines.get_mut(name) {
            change(machine);
        }
    }

    fn is_emptied(&self, name: &str) -> bool {
        self.snapshot.nodes.iter().any(|node| *node.name == *name && node.is_being_emptied())
    }

    /// The node's DaemonSet pods lose their readiness, and do not get it back before there is peace.
    fn break_daemons(&mut self, name: &str) {
        let now = self.snapshot.now;
        self.with_machine(name, "its DaemonSet pods break", |machine| {
            (machine.daemons_broken, machine.daemons_since) = (true, None);
        });
        self.with_node(name, |node| {
            for pod in node.daemon_sets.0.iter_mut().filter(|pod| pod.ready) {
                (pod.ready, pod.since) = (false, Some(now));
            }
        });
    }

    pub(super) fn crash(&mut self, name: &str) {
        self.tell(&format!("{name}: power fails"));
        let now = self.snapshot.now;
        if let Some(machine) = self.machines.get_mut(name) {
            machine.crash(name, now);
        }
    }

    fn with_node(&mut self, name: &str, change: impl Fn(&mut bascule_planner::snapshot::Node)) {
        if let Some(node) = self.snapshot.nodes.iter_mut().find(|node| &*node.name == name) {
            change(Arc::make_mut(node));
        }
    }

    pub(super) fn person_cordons(&mut self, name: &str) {
        let free = self.snapshot.nodes.iter().any(|node| &*node.name == name && !node.cordon.is_cordoned());
        if free {
            self.tell(&format!("{name}: alice cordons it"));
            self.with_node(name, |node| node.cordon = Cordon::Other { by: Some("alice".to_owned()), since: None });
            self.held_by_people.push(name.to_owned());
        }
    }

    pub(super) fn person_uncordons(&mut self, name: &str) {
        if self.snapshot.nodes.iter().any(|node| &*node.name == name && node.cordon.is_cordoned()) {
            self.tell(&format!("{name}: alice uncordons it"));
            self.with_node(name, |node| {
                node.cordon = match &node.cordon {
                    Cordon::Ours { mark } | Cordon::Lifted { mark } => Cordon::Lifted { mark: mark.clone() },
                    Cordon::None | Cordon::Other { .. } => Cordon::None,
                };
            });
            self.held_by_people.retain(|held| held != name);
        }
    }

    /// Somebody stops everything, or lets it go on: most end what stands, some delete it.
    fn freeze(&mut self) {
        let now = self.snapshot.now;
        if let Some(index) = self.snapshot.freezes.iter().rposition(|freeze| freeze.is_active(now)) {
            if self.chance(25) {
                self.tell("bob deletes a freeze");
                self.snapshot.freezes.remove(index);
                return;
            }
            if self.chance(50) {
                self.tell("bob ends a freeze");
                self.end_freezes(|at| at == index);
                return;
            }
        }
        let seconds = self.random.random_range(60..1_200);
        let name = format!("freeze-{}", now.get().timestamp());
        self.tell(&format!("alice freezes everything for {seconds} s"));
        self.snapshot.freezes.push(Arc::new(build::freeze(&name, now, seconds)));
    }

    fn end_freezes(&mut self, which: impl Fn(usize) -> bool) {
        let now = self.snapshot.now;
        for (index, freeze) in self.snapshot.freezes.iter_mut().enumerate() {
            if which(index) && freeze.is_active(now) {
                *freeze = Arc::new(build::ended(freeze, "bob"));
            }
        }
    }

    fn roll_back(&mut self) {
        if self.snapshot.rollbacks.len() >= 2 {
            return;
        }
        let count = self.snapshot.policies.len();
        let index = self.up_to(count.saturating_sub(1));
        let Some(policy) = self.snapshot.policies.get(index).map(|policy| policy.name.clone()) else { return };
        let name = format!("rollback-{}", self.snapshot.rollbacks.len());
        let mut rollback = build::rollback(&name, &policy, self.snapshot.now);
        rollback.spec.block = self.chance(80);
        rollback.spec.respect_windows = self.chance(20);
        rollback.spec.ignore_budgets = self.chance(15);
        if self.chance(30) {
            rollback.spec.nodes = self.any_node().into_iter().collect();
            // Who means one node has often cordoned it already.
            if let Some(named) = rollback.spec.nodes.first().cloned()
                && self.chance(40)
            {
                self.person_cordons(&named);
            }
        }
        if self.chance(20) {
            rollback.spec.version = Some(build::version("1.0"));
        }
        self.tell(&format!("bob rolls {policy} back ({:?})", rollback.spec));
        self.snapshot.rollbacks.push(Arc::new(rollback));
    }

    pub(super) fn change_offers(&mut self, change: impl Fn(&mut bascule_planner::snapshot::Offer)) {
        let Some(first) = self.snapshot.policies.first() else { return };
        let mut offer = (*first.offer).clone();
        change(&mut offer);
        let offer = Arc::new(offer);
        for policy in &mut self.snapshot.policies {
            Arc::make_mut(policy).offer = Arc::clone(&offer);
        }
    }

    fn publish(&mut self) {
        let known = self.snapshot.policies.first().map_or(0, |policy| policy.offer.releases.len());
        let Some(next) = ["1.0", "1.1", "1.2", "1.3", "1.4"].get(known) else { return };
        self.tell(&format!("{next} is published"));
        let mut release = build::release(next);
        release.published_at = self.snapshot.now;
        self.change_offers(|offer| offer.releases.push(release.clone()));
    }

    fn withdraw(&mut self) {
        self.tell("the newest release is withdrawn");
        self.change_offers(|offer| {
            if offer.releases.len() > 2
                && let Some(last) = offer.releases.last_mut()
            {
                last.withdrawn = Some("broken".to_owned());
            }
        });
    }

    fn edit_policy(&mut self) {
        let count = self.snapshot.policies.len();
        let index = self.up_to(count.saturating_sub(1));
        let kind = self.random.random_range(0..7);
        let Some(policy) = self.snapshot.policies.get_mut(index) else { return };
        let policy = Arc::make_mut(policy);
        let Ok(valid) = &policy.spec else { return };
        let mut spec = valid.spec.clone();
        let told = match kind {
            0 => {
                spec.paused = !spec.paused;
                format!("{} is paused: {}", policy.name, spec.paused)
            }
            1 => {
                spec.node_selector.match_labels.insert("canary".to_owned(), "yes".to_owned());
                format!("{} selects canaries only", policy.name)
            }
            2 => {
                spec.node_selector.match_labels.remove("canary");
                format!("{} selects more", policy.name)
            }
            3 => {
                spec.budget.max_unavailable = bascule_api::IntOrPercent::Int(1);
                format!("{} has a budget of one", policy.name)
            }
            5 => {
                spec.allowed_versions = policy.status.blocked.iter().map(|block| block.version.clone()).collect();
                let at = self.snapshot.now;
                let again = |failure: &PolicyFailure| Retry { node: failure.node.clone(), at, reason: None };
                let nodes: BTreeMap<_, _> =
                    policy.status.failures.iter().map(|failure| (failure.node.clone(), again(failure))).collect();
                // Now and then also where they failed.
                if at.get().timestamp() % 2 == 0 {
                    spec.retries = nodes.into_values().collect();
                }
                format!("{} lets blocked releases go on, and {} nodes try again", policy.name, spec.retries.len())
            }
            4 => {
                spec.node_selector.match_labels.remove("group");
                format!("{} may conflict", policy.name)
            }
            _ => {
                if let Some(window) = spec.maintenance_windows.first_mut() {
                    window.time_zone = "Mars/Olympus".to_owned();
                }
                format!("{} gets a time zone that is none, if it has a window", policy.name)
            }
        };
        policy.generation += 1;
        policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        self.tell(&told);
    }

    fn delete_node(&mut self, name: &str) {
        if self.snapshot.nodes.len() < 3 {
            return;
        }
        self.remove_node(name);
        if self.chance(50) {
            self.take_out_members();
        }
        if self.chance(50) {
            self.tell(&format!("{name}: joins again, on the oldest release"));
            self.dead.retain(|dead| dead != name);
            let two = self.snapshot.policies.len() > 1;
            self.add_node(name, two);
            let now = self.snapshot.now;
            let generation = self.random.random_range(2..1_000_000_u32);
            // As an autoscaler adds it, and with an agent that takes its time.
            let (by_autoscaler, silent) = (self.chance(50), self.chance(50));
            self.with_node(name, |node| {
                node.uid = format!("uid-{name}-{generation}");
                node.created_at = now;
                node.taints.hold = by_autoscaler;
            });
            if let Some(machine) = self.machines.get_mut(name).filter(|_| silent) {
                machine.silent = true;
            }
        }
    }

    /// With some luck a node joins whose lot comes before that of all others.
    fn join_early(&mut self) {
        if self.snapshot.nodes.len() >= MOST_NODES || !self.chance(10) {
            return;
        }
        let (seed, now) = (self.snapshot.seed, self.snapshot.now);
        let lot = |name: &str| bascule_planner::lot(seed, name);
        let first = self.snapshot.nodes.iter().chain(&self.lost).map(|node| lot(&node.name)).min();
        let first = first.unwrap_or(u64::MAX);
        let seconds = now.seconds_since(build::start());
        let names = (0..256).map(|number| format!("e{seconds}-{number}")).filter(|name| lot(name) < first);
        // The last of them, so that one is left for the next.
        let Some(name) = names.max_by_key(|name| lot(name)) else { return };
        self.tell(&format!("{name}: joins, and comes before all others"));
        let two = self.snapshot.policies.len() > 1;
        self.add_node(&name, two);
        self.with_node(&name, |node| node.created_at = now);
    }

    /// A node is gone for good, its machine and its Node. Its member of etcd counts until somebody takes it out.
    pub fn remove_node(&mut self, name: &str) {
        self.tell(&format!("{name}: is deleted"));
        let Some(gone) = self.take_node(name) else { return };
        self.machines.remove(name);
        if carries(&gone) && self.is_remembered(name) {
            self.dead.push(name.to_owned());
        }
    }

    /// Somebody deletes the Node object, and nobody makes it again until [`Self::find_lost`]. The machine and its member of etcd live
    /// on.
    pub fn lose_node(&mut self, name: &str) {
        self.tell(&format!("{name}: its Node object is deleted"));
        let lost = self.take_node(name);
        self.lost.extend(lost);
    }

    /// The kubelets of Nodes that were deleted make them again.
    pub fn find_lost(&mut self) {
        for node in std::mem::take(&mut self.lost) {
            let name = node.name.to_string();
            self.snapshot.nodes.push(node);
            self.register_again(&name);
        }
    }

    /// Takes a Node out of the API server, and what goes with it.
    fn take_node(&mut self, name: &str) -> Option<Arc<Node>> {
        let index = self.snapshot.nodes.iter().position(|node| *node.name == *name)?;
        let gone = self.snapshot.nodes.remove(index);
        // Whoever gets its name is another node, and nobody has ordered it to be emptied.
        self.workload.orders.retain(|order| order.node != name);
        self.snapshot.hooks.retain(|run| run.node != name);
        let of_node = format!("/{name}");
        self.workload.succeeded.retain(|(of, ..)| !of.ends_with(&of_node));
        self.held_by_people.retain(|held| held != name);
        Some(gone)
    }

    /// Whether the operator has noted that a node carries the cluster.
    pub(super) fn is_remembered(&self, name: &str) -> bool {
        let mut known = self.snapshot.policies.iter().flat_map(|policy| &policy.status.cluster_members);
        known.any(|member| member.node == name)
    }

    /// The members of etcd that a person can say were taken out. Whoever was there again while its name stood in the list has to be
    /// taken out of that first.
    fn to_be_named(&self) -> BTreeSet<String> {
        let nodes = self.snapshot.nodes.iter().chain(&self.lost).filter(|node| carries(node));
        let there = nodes.map(|node| &*node.name);
        let known = || self.snapshot.policies.iter().flat_map(|policy| &policy.status.cluster_members);
        let returned = known().filter(|member| member.returned).map(|member| member.node.as_str());
        let not_these: BTreeSet<&str> = there.chain(returned).collect();
        let gone = known().map(|member| &member.node).filter(|name| !not_these.contains(name.as_str()));
        gone.cloned().collect()
    }

    /// In peace people name those, too, whom they had to take out of the list first.
    pub(super) fn name_members_again(&mut self) {
        let specs = self.snapshot.policies.iter().filter_map(|policy| policy.spec.as_ref().ok());
        let named: BTreeSet<String> = specs.flat_map(|valid| &valid.spec.removed_cluster_members).cloned().collect();
        if !self.to_be_named().is_subset(&named) {
            self.take_out_members();
        }
    }

    /// A person takes members whose machines are gone out of etcd, and says so.
    fn take_out_members(&mut self) {
        self.dead.clear();
        let gone = self.to_be_named();
        for policy in &mut self.snapshot.policies {
            let policy = Arc::make_mut(policy);
            if let Ok(valid) = &policy.spec {
                let mut spec = valid.spec.clone();
                spec.removed_cluster_members = gone.iter().cloned().collect();
                policy.spec = bascule_planner::validate(&spec).map(Arc::new);
            }
        }
        self.tell(&format!("{gone:?} were taken out of the cluster for good"));
    }

    /// Somebody deletes the Node object, and the kubelet makes it again. What the machine does goes on.
    pub(super) fn register_again(&mut self, name: &str) {
        self.tell(&format!("{name}: its Node object is deleted, and registered again"));
        self.held_by_people.retain(|held| held != name);
        // It is another Node of the same name, which nobody has ordered to be emptied.
        self.workload.orders.retain(|order| order.node != name);
        // Jobs of hooks go with their Node.
        self.snapshot.hooks.retain(|run| run.node != name);
        let of_node = format!("/{name}");
        self.workload.succeeded.retain(|(of, ..)| !of.ends_with(&of_node));
        let (now, generation) = (self.snapshot.now, self.random.random_range(2..1_000_000_u32));
        let remembered = self.chance(60);
        // So do its pods: those of DaemonSets are made anew.
        if let Some(machine) = self.machines.get_mut(name) {
            machine.daemons_since = None;
        }
        self.with_node(name, |node| {
            node.uid = format!("uid-{name}-{generation}");
            node.created_at = now;
            (node.boot_seen, node.back_seen) = (now, now);
            for pod in &mut node.daemon_sets.0 {
                (pod.ready, pod.since) = (false, Some(now));
            }
            node.cordon = Cordon::None;
            node.truce = Truce::None;
            node.excluded = Excluded::No;
            node.taints = bascule_planner::snapshot::Taints::default();
            let spec = node.update.take().map(|update| update.spec).filter(|spec| spec.disruption.is_some());
            let earlier = spec.map(Arc::new).or_else(|| node.earlier.take());
            node.earlier = earlier.filter(|_| remembered);
        });
    }

    fn odd(&mut self, name: &str) {
        match self.random.random_range(0..5) {
            0 => {
                self.tell(&format!("{name}: somebody edits the NodeUpdate by hand"));
                self.with_node(name, |node| {
                    if let Some(update) = &mut node.update
                        && update.spec.disruption.is_none()
                        && update.spec.grant.is_some()
                    {
                        update.spec.goal = bascule_api::Goal::Booted;
                        update.generation += 1;
                    }
                });
            }
            1 => {
                self.with_machine(name, "its boot loader does not count", |machine| machine.counts = false);
            }
            2 => {
                self.tell("the repository can't be trusted");
                self.change_offers(|offer| {
                    let (reason, message) = ("Expired", "the metadata expired".to_owned());
                    offer.state = OfferState::Unusable { reason, message };
                });
            }
            3 => {
                self.tell("the repository is well");
                self.change_offers(|offer| offer.state = OfferState::Valid);
            }
            _ => {
                self.tell(&format!("{name}: etcd is not healthy there"));
                self.with_node(name, |node| {
                    if node.etcd == EtcdMember::Healthy {
                        node.etcd = EtcdMember::Unhealthy;
                    }
                });
            }
        }
    }

    /// Everything is mended, people go home.
    pub(super) fn make_peace(&mut self) {
        self.tell("peace: everything is mended");
        self.peace = true;
        self.find_lost();
        self.restore_policies();
        self.old_view = None;
        self.late = None;
        self.strays.clear();
        self.begins = false;
        self.refusing.mend();
        for machine in self.machines.values_mut() {
            machine.mend();
        }
        self.workload.healthy = true;
        self.workload.deaf = false;
        self.workload.hooks_fail = false;
        self.workload.clear(None, &Kind::Stuck);
        self.workload.clear(None, &Kind::Bare);
        self.workload.clear(None, &Kind::Anchored);
        for app in self.workload.apps.values_mut() {
            app.switches = false;
            app.desired = app.desired.min(app.wanted.saturating_sub(1));
        }
        self.change_offers(|offer| offer.state = OfferState::Valid);
        self.snapshot.api_server = Some(build::kubernetes(36));
        self.end_freezes(|_| true);
        for policy in &mut self.snapshot.policies {
            let policy = Arc::make_mut(policy);
            let spec = match &policy.spec {
                Ok(valid) => valid.spec.clone(),
                Err(_) => build::spec(&serde_json::json!({})),
            };
            let mut spec = spec;
            spec.paused = false;
            // A held node of a later wave is no place for the pods of an earlier one.
            spec.new_nodes.hold = false;
            policy.spec = bascule_planner::validate(&spec).map(Arc::new);
        }
        self.take_out_members();
        let held = std::mem::take(&mut self.held_by_people);
        for node in &mut self.snapshot.nodes {
            let node = Arc::make_mut(node);
            if held.iter().any(|held| **held == *node.name) {
                node.cordon = Cordon::None;
            }
            node.leaving = None;
            if node.etcd == EtcdMember::Unhealthy {
                node.etcd = EtcdMember::Healthy;
            }
        }
    }
}
