//! How many nodes may be unavailable at once: by policy, failure domain and cluster, and which control-plane nodes.
//!
//! What is counted is what is really unavailable (not Ready, cordoned by anybody, granted), and on top of it what
//! this very plan grants.

use super::{
    context::NodeContext,
    facts::NodeView,
    groups::Groups,
    known::Known,
    members::{self, Members},
    policy::PolicyView,
    texts::Texts,
};
use crate::{
    GateSet, Rule, Wait,
    snapshot::{DisruptionBudget, EtcdMember, Node, NodePods},
};
use bascule_api::{DomainBudget, Drain, Duration, IntOrPercent, OnTimeout, WaitReason};
use std::{collections::BTreeMap, sync::Arc};

/// How many names of unavailable nodes a message gives.
const NAMED: usize = 3;

/// Most budgets that a grant names, as in the schema.
const MAX_CLOSED: usize = 16;

/// A count against a limit.
#[derive(Debug, Default)]
pub(super) struct Limit {
    max: u32,
    used: u32,
    /// The first of the nodes that are unavailable for another reason than an update, and how many those are. Nodes that
    /// move are not named: they would be others a moment later, and every node that waits would be explained anew.
    named: Vec<Arc<str>>,
    stuck: u32,
    /// One that moves: the first by name, so that it does not hang on the order in which they are counted.
    moving: Option<Arc<str>>,
    full: Option<Arc<Wait>>,
}

impl Limit {
    fn add(&mut self, view: &NodeView<'_>) {
        self.used = self.used.saturating_add(1);
        if view.traits.unavailable && !view.traits.moves {
            self.stuck = self.stuck.saturating_add(1);
            if self.named.len() < NAMED {
                self.named.push(Arc::clone(&view.node.name));
            }
        } else {
            first_of(&mut self.moving, &view.node.name);
        }
        self.full = None;
    }

    /// Whether a node more fits. A node that is counted already fits while the limit is not exceeded.
    fn fits(&self, counted: bool) -> bool {
        self.used.saturating_add(u32::from(!counted)) <= self.max
    }

    /// That the limit is reached, in a sentence.
    fn sentence(&self, of: &str) -> String {
        let Some(first) = self.named.first() else {
            return may_be_unavailable(self.max, of, ", and that many are being updated");
        };
        let more = usize::try_from(self.stuck).unwrap_or(usize::MAX).saturating_sub(self.named.len());
        let named = if self.named.len() == 1 { first.to_string() } else { self.named.join(", ") };
        let named = if more > 0 { format!("{named} and {more} more") } else { named };
        may_be_unavailable(self.max, of, &format!("; unavailable without being updated: {named}"))
    }
}

/// Keeps the first name.
fn first_of(known: &mut Option<Arc<str>>, name: &Arc<str>) {
    if known.as_ref().is_none_or(|known| name < known) {
        *known = Some(Arc::clone(name));
    }
}

/// The unavailable nodes of a failure domain.
#[derive(Debug, Default)]
struct Busy {
    nodes: u32,
    /// The first, by its name, of those that are unavailable for another reason than an update, and of those that move.
    stuck: Option<Arc<str>>,
    moving: Option<Arc<str>>,
}

/// The failure domains of a policy, by the numbers of their names.
#[derive(Debug)]
struct Domains<'a> {
    budget: &'a DomainBudget,
    texts: &'a Texts,
    sizes: Vec<u32>,
    busy: BTreeMap<u32, Busy>,
    full: BTreeMap<u32, Arc<Wait>>,
}

impl Domains<'_> {
    fn size(&mut self, domain: u32) -> Option<&mut u32> {
        let index = usize::try_from(domain).ok()?;
        if self.sizes.len() <= index {
            self.sizes.resize(index.saturating_add(1), 0);
        }
        self.sizes.get_mut(index)
    }

    fn shown(&self, domain: u32) -> &str {
        let text = self.texts.text(domain);
        if text.is_empty() { "(none)" } else { text }
    }
}

/// The budgets of one policy.
#[derive(Debug, Default)]
pub(super) struct PolicyBudget<'a> {
    policy: &'a str,
    limit: Limit,
    domains: Option<Domains<'a>>,
}

impl<'a> PolicyBudget<'a> {
    pub(super) fn new(policy: &PolicyView<'a>, index: usize, nodes: &[NodeContext<'a>], known: &'a Known) -> Self {
        let Some(valid) = policy.valid else { return Self::default() };
        let total = u32::try_from(policy.members.len()).unwrap_or(u32::MAX);
        let mut out = Self {
            policy: &policy.facts.name,
            limit: Limit { max: of(&valid.spec.budget.max_unavailable, total), ..Limit::default() },
            domains: valid.spec.budget.per_domain.as_ref().map(|budget| Domains {
                budget,
                texts: &known.texts,
                sizes: Vec::new(),
                busy: BTreeMap::new(),
                full: BTreeMap::new(),
            }),
        };
        // How large domains are matters only where their share may be a percentage.
        if let Some(domains) = out.domains.as_mut().filter(|domains| domains.budget.max_unavailable.is_some()) {
            for view in policy.members.iter().filter_map(|index| nodes.get(*index)) {
                if let Some(size) = domains.size(view.traits.domain) {
                    *size += 1;
                }
            }
        }
        for view in known.groups.unavailable.iter().filter_map(|index| nodes.get(*index)) {
            if view.traits.policy == Some(index) {
                out.take(view);
            }
        }
        out
    }

    /// Counts a node as unavailable.
    pub(super) fn take(&mut self, view: &NodeView<'_>) {
        self.limit.add(view);
        if let Some(domains) = &mut self.domains {
            let busy = domains.busy.entry(view.traits.domain).or_default();
            busy.nodes = busy.nodes.saturating_add(1);
            let stuck = view.traits.unavailable && !view.traits.moves;
            first_of(if stuck { &mut busy.stuck } else { &mut busy.moving }, &view.node.name);
            domains.full.clear();
        }
    }

    /// Whether no node more fits that is not counted already.
    pub(super) fn is_full(&self) -> bool {
        !self.limit.fits(false)
    }

    pub(super) fn used(&self) -> u32 {
        self.limit.used
    }

    /// The policy's own budget.
    pub(super) fn policy(&mut self, view: &NodeView<'_>) -> Option<Arc<Wait>> {
        if self.limit.fits(view.traits.unavailable) {
            return None;
        }
        let text = || {
            let wait = Wait::new(WaitReason::Budget, self.limit.sentence("the policy"));
            Arc::new(match self.limit.named.first() {
                Some(first) => wait.of("Node", None, first),
                None => wait.of("UpdatePolicy", None, self.policy),
            })
        };
        let wait = self.limit.full.clone().unwrap_or_else(text);
        self.limit.full = Some(Arc::clone(&wait));
        Some(wait)
    }

    /// That no other node is unavailable, where updates take longer than any window.
    pub(super) fn alone(&self, view: &NodeView<'_>) -> Option<Arc<Wait>> {
        let others = self.limit.used.saturating_sub(u32::from(view.traits.unavailable));
        let message =
            "drain, reboot and health checks took longer lately than any window is, so one node at a time is tried";
        let stuck = self.limit.named.iter().find(|name| **name != view.node.name);
        (others > 0).then(|| {
            Arc::new(blames(Wait::new(WaitReason::WindowTooShort, message), stuck, self.limit.moving.as_ref()))
        })
    }

    /// The failure domains.
    pub(super) fn domain(&mut self, view: &NodeView<'_>) -> Option<Arc<Wait>> {
        let domains = self.domains.as_mut()?;
        let own = view.traits.domain;
        if let Some(wait) = domains.full.get(&own) {
            return Some(Arc::clone(wait));
        }
        let others = domains.busy.keys().filter(|domain| **domain != own).count();
        let max = usize::try_from(domains.budget.max_domains).unwrap_or(usize::MAX);
        let all_others = others >= max;
        let message = if all_others {
            let others = domains.busy.keys().filter(|domain| **domain != own);
            let mut busy: Vec<_> = others.map(|domain| domains.shown(*domain)).collect();
            busy.sort_unstable();
            format!("{} {} has unavailable nodes, and {max} may have", domains.budget.topology_key, busy.join(", "))
        } else {
            let most = domains.budget.max_unavailable.as_ref()?;
            let size = domains.size(own).copied().unwrap_or_default();
            let most = of(most, size);
            let used = domains.busy.get(&own).map_or(0, |busy| busy.nodes);
            if used.saturating_add(u32::from(!view.traits.unavailable)) <= most {
                return None;
            }
            may_be_unavailable(most, domains.shown(own), ", and that many are")
        };
        let busy =
            || domains.busy.iter().filter(move |(domain, _)| (**domain != own) == all_others).map(|(_, busy)| busy);
        let stuck = busy().filter_map(|busy| busy.stuck.as_ref()).min();
        let moving = busy().filter_map(|busy| busy.moving.as_ref()).min();
        let wait = Arc::new(blames(Wait::new(WaitReason::DomainBusy, message), stuck, moving));
        domains.full.insert(own, Arc::clone(&wait));
        Some(wait)
    }
}

/// A wait with the node that holds others up: one that will not go by itself, or one of those whose turn it is.
fn blames(wait: Wait, stuck: Option<&Arc<str>>, moving: Option<&Arc<str>>) -> Wait {
    match (stuck, moving) {
        (Some(stuck), _) => wait.of("Node", None, stuck),
        (None, Some(moving)) => wait.of_turn(moving),
        (None, None) => wait,
    }
}

/// Within what time a budget may open once the node is cordoned, as the policy, the budget or a pod says.
fn opens_within(pods: &NodePods, key: &str, drain: &Drain) -> Option<Duration> {
    let said = pods.opening.iter().find(|(opening, _)| opening == key).map(|(_, within)| *within);
    said.or(drain.budgets_open_after_cordon)
}

fn may_be_unavailable(most: u32, of: &str, and: &str) -> String {
    match most {
        0 => format!("no node of {of} may be unavailable"),
        1 => format!("1 node of {of} may be unavailable at once{and}"),
        _ => format!("{most} nodes of {of} may be unavailable at once{and}"),
    }
}

/// A validated quantity; nothing is allowed where it could not be read.
fn of(quantity: &IntOrPercent, total: u32) -> u32 {
    quantity.of(total).unwrap_or(0)
}

/// What counts over all policies.
#[derive(Debug)]
pub(super) struct ClusterBudget<'a> {
    ceiling: Option<Limit>,
    /// Nodes that carry the cluster itself, a control plane or a member of etcd, and are unavailable. All of them: of two
    /// that are down neither may be touched.
    carriers_busy: Vec<&'a Node>,
    /// Those of them that are remembered.
    members: Arc<Members>,
    etcd_members: usize,
    etcd_healthy: usize,
    /// Members that are not healthy though nothing is being done to their nodes.
    etcd_broken: Vec<&'a Node>,
    /// What every PodDisruptionBudget still allows, less what nodes that are being emptied will take.
    allowed: BTreeMap<&'a str, (i64, &'a DisruptionBudget)>,
}

impl<'a> ClusterBudget<'a> {
    pub(super) fn new(
        snapshot: &'a crate::Snapshot,
        nodes: &[NodeContext<'a>],
        groups: &Groups,
        members: Arc<Members>,
    ) -> Self {
        let total = u32::try_from(snapshot.nodes.len()).unwrap_or(u32::MAX);
        let ceiling = snapshot.ceiling.as_ref().map(|ceiling| Limit { max: of(ceiling, total), ..Limit::default() });
        let allowed =
            snapshot.budgets.iter().map(|(key, budget)| (key.as_str(), (i64::from(budget.allowed), budget))).collect();
        let mut out = Self {
            ceiling,
            carriers_busy: Vec::new(),
            etcd_members: members.known.iter().filter(|member| member.etcd).count(),
            members,
            etcd_healthy: 0,
            etcd_broken: Vec::new(),
            allowed,
        };
        for view in groups.carriers.iter().filter_map(|node| nodes.get(*node)).filter(|view| !view.traits.unavailable) {
            match view.traits.etcd {
                EtcdMember::Healthy => out.etcd_healthy += 1,
                EtcdMember::Unhealthy => out.etcd_broken.push(view.node),
                EtcdMember::None => {}
            }
        }
        for view in groups.unavailable.iter().filter_map(|node| nodes.get(*node)) {
            let traits = view.traits;
            if let Some(ceiling) = &mut out.ceiling {
                ceiling.add(view);
            }
            if members::carries(view.node) {
                out.carriers_busy.push(view.node);
            }
            if traits.granted {
                out.reserve(view);
            }
        }
        out
    }

    fn reserve(&mut self, view: &NodeView<'a>) {
        if view.traits.protected == 0 {
            return;
        }
        for (key, pods) in &view.node.pods.budgets {
            if let Some((allowed, _)) = self.allowed.get_mut(key.as_str()) {
                *allowed -= i64::from(*pods);
            }
        }
    }

    /// Counts a node that this plan grants.
    pub(super) fn take(&mut self, view: &NodeView<'a>) {
        if !view.traits.unavailable {
            if let Some(ceiling) = &mut self.ceiling {
                ceiling.add(view);
            }
            let healthy = view.traits.etcd == EtcdMember::Healthy;
            self.etcd_healthy = self.etcd_healthy.saturating_sub(usize::from(healthy));
        }
        if members::carries(view.node) {
            self.carriers_busy.push(view.node);
        }
        self.reserve(view);
    }

    pub(super) fn ceiling(&mut self, view: &NodeView<'_>) -> Option<Arc<Wait>> {
        let ceiling = self.ceiling.as_mut()?;
        if ceiling.fits(view.traits.unavailable) {
            return None;
        }
        let text = || Arc::new(Wait::new(WaitReason::ClusterMaxUnavailable, ceiling.sentence("the cluster")));
        let wait = ceiling.full.clone().unwrap_or_else(text);
        ceiling.full = Some(Arc::clone(&wait));
        Some(wait)
    }

    /// One node of those that carry the cluster at a time; etcd keeps its quorum.
    pub(super) fn control_plane(&self, view: &NodeView<'_>) -> Option<Wait> {
        let (node, traits) = (view.node, view.traits);
        if members::carries(node)
            && let found @ Some(_) = self.unaccounted()
        {
            return found;
        }
        if members::carries(node)
            && let Some(busy) = self.carriers_busy.iter().rev().find(|busy| busy.name != node.name)
        {
            let what = if busy.control_plane { "control-plane node" } else { "etcd member" };
            let message = format!("{what} {} is being updated or unavailable", busy.name);
            return Some(Wait::new(WaitReason::ControlPlane, message).of("Node", None, &busy.name));
        }
        let is_silent = |name: &str| self.members.silent.iter().any(|silent| *silent == *name);
        if traits.etcd == EtcdMember::None && !is_silent(&node.name) {
            return None;
        }
        let own = usize::from(traits.etcd == EtcdMember::Healthy && !traits.unavailable);
        let others = self.etcd_healthy.saturating_sub(own);
        // One or two members can't do without any: then nothing but all others healthy can be asked.
        let quorum =
            if self.etcd_members < 3 { self.etcd_members.saturating_sub(1) } else { self.etcd_members / 2 + 1 };
        if others >= quorum {
            return None;
        }
        let message = format!("etcd would have {others} healthy of {} members and needs {quorum}", self.etcd_members);
        let broken = self.etcd_broken.iter().filter(|broken| broken.name != node.name);
        let silent = self.members.silent.iter().map(String::as_str).filter(|silent| **silent != *node.name);
        let names: Vec<&str> = broken.map(|broken| broken.name.as_ref()).chain(silent).collect();
        Some(match names.first() {
            None => Wait::new(WaitReason::ControlPlane, message),
            Some(first) => {
                let message = format!("{message}: that on {} is not healthy", names.join(", "));
                Wait::new(WaitReason::ControlPlane, message).of("Node", None, first)
            }
        })
    }

    /// Why no node that carries the cluster may go, where not every one that does can be seen. One whose Node is gone is as one that
    /// is unavailable: its machine may be down, and etcd counts its member.
    fn unaccounted(&self) -> Option<Wait> {
        if let Some((policy, node)) = &self.members.contradicted {
            let message = format!(
                "spec.removedClusterMembers of policy {policy} names {node}, which is there and carries the cluster: take it out \
                 of the list, or its loss would not be noticed"
            );
            return Some(Wait::new(WaitReason::ControlPlane, message).of("UpdatePolicy", None, policy));
        }
        let first = self.members.gone.first()?;
        let what = if first.etcd { "a member of etcd" } else { "a control plane" };
        let others = self.members.gone.len().saturating_sub(1);
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let then = if first.returned {
            "spec.removedClusterMembers named it while it was there: take it out of that list, and once it was taken out of the \
             cluster for good, name it there again"
        } else {
            "once it was taken out of the cluster for good, name it in spec.removedClusterMembers"
        };
        let message = format!(
            "the Node of {}, with {what}, is gone{more}, and its machine may be down or etcd still count it: {then}",
            first.node
        );
        Some(Wait::new(WaitReason::ControlPlane, message).of("Node", None, &first.node))
    }

    /// Whether a PodDisruptionBudget lets none of the node's pods go now.
    pub(super) fn is_held(&self, view: &NodeView<'_>) -> bool {
        view.traits.protected > 0
            && view.node.pods.budgets.iter().any(|(key, pods)| {
                *pods > 0 && self.allowed.get(key.as_str()).is_some_and(|(allowed, _)| *allowed <= 0)
            })
    }

    /// Within what time the budgets that let none of the node's pods go may open once it is cordoned, where a node is
    /// cordoned although there is one; and which budgets those are. A policy that deletes what is left needs nobody's leave.
    pub(super) fn opening(&self, view: &NodeView<'_>, drain: &Drain) -> Option<(Duration, Vec<String>)> {
        if !self.is_held(view) || drain.on_timeout == OnTimeout::Delete {
            return None;
        }
        let pods = &view.node.pods;
        let held =
            pods.budgets.iter().filter_map(|(key, _)| self.allowed.get(key.as_str()).map(|(left, _)| (key, left)));
        let held = held.filter(|(_, left)| **left <= 0);
        let closed: Vec<_> = held.filter_map(|(key, _)| Some((opens_within(pods, key, drain)?, key.clone()))).collect();
        let within = closed.iter().map(|(within, _)| *within).max()?;
        Some((within, closed.into_iter().map(|(_, key)| key).take(MAX_CLOSED).collect()))
    }

    /// A PodDisruptionBudget that lets none of the node's pods go now, and for which nothing is gained by a cordon.
    pub(super) fn disruption_budget(&self, view: &NodeView<'_>, drain: &Drain, set: GateSet) -> Option<Wait> {
        if view.traits.protected == 0 || drain.on_timeout == OnTimeout::Delete {
            return None;
        }
        let node_pods = &view.node.pods;
        node_pods.budgets.iter().filter(|(_, pods)| *pods > 0).find_map(|(key, pods)| {
            let (allowed, budget) = self.allowed.get(key.as_str())?;
            if *allowed > 0 {
                return None;
            }
            let opens = opens_within(node_pods, key, drain);
            // One node for each such budget at once: what others take shows in what is left.
            let nobody_else = *allowed == 0 || !set.keeps(Rule::OneForEachBudget);
            if opens.is_some() && budget.allowed == 0 && nobody_else {
                return None;
            }
            let standing = budget.standing();
            let mut message = format!(
                "PodDisruptionBudget {key} allows {} disruptions for {pods} pods here: {standing}",
                budget.allowed
            );
            if budget.allowed > 0 {
                message.push_str("; nodes that are being drained take them");
            } else if opens.is_some() {
                message.push_str("; it may open once a node is cordoned, and another one is");
            } else if budget.healthy >= budget.expected && budget.unfinished.is_empty() {
                message.push_str(
                    "; some budgets open only once the node is cordoned: spec.drain.budgetsOpenAfterCordon or annotation \
                     bascule.dev/opens-after-cordon says so",
                );
            }
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            Some(Wait::new(WaitReason::DisruptionBudget, message).of("PodDisruptionBudget", Some(namespace), name))
        })
    }
}
