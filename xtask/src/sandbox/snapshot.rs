//! The cluster as the sandbox's own watches see it at one moment, and the worst it ever saw. Nothing here comes from
//! the operator's word about itself: what it promises is measured beside it.

use std::collections::{BTreeMap, BTreeSet};

use bascule_api::{NodeUpdate, Rollout, UpdatePolicy, WaitReason, conditions};
use bascule_sim::machine::{MachineView, Power};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// One node from all sides.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSeen {
    /// The failure domain.
    pub(crate) zone: String,
    /// The Node's Ready condition.
    pub(crate) ready: bool,
    /// `spec.unschedulable`.
    pub(crate) cordoned: bool,
    /// The machine below, as it shows itself.
    pub(crate) machine: Option<MachineView>,
    /// What operator and agent say.
    pub(crate) update: Option<NodeUpdate>,
}

impl NodeSeen {
    /// Not Ready, cordoned, or without a running operating system. The API says Ready of a machine that is gone until its
    /// heartbeats are missed; the machine's own power switch knows at once.
    pub(crate) fn unavailable(&self) -> bool {
        !self.ready || self.cordoned || !self.up()
    }

    /// An operating system runs on the machine. One that was never seen runs none.
    fn up(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.power == Power::Up)
    }

    /// The release that runs on the machine, whatever anybody reports.
    pub(crate) fn runs(&self) -> Option<&str> {
        self.machine.as_ref()?.system.as_ref().map(|system| system.version.as_str())
    }

    /// What the operator says of the node.
    pub(crate) fn rollout(&self) -> Option<&Rollout> {
        self.update.as_ref()?.status.as_ref()?.rollout.as_ref()
    }

    /// The operator has given the node leave to be disrupted, and not taken it back.
    pub(crate) fn granted(&self) -> bool {
        self.update.as_ref().is_some_and(|update| update.spec.disruption.is_some())
    }

    /// The operator says that the node waits for this.
    pub(crate) fn waits_for(&self, reason: WaitReason) -> bool {
        self.rollout().is_some_and(|rollout| rollout.reason == reason)
    }

    /// What the agent says that it could not do contains this.
    pub(crate) fn complains(&self, words: &str) -> bool {
        let status = self.update.as_ref().and_then(|update| update.status.as_ref());
        status.and_then(|status| status.last_error.as_ref()).is_some_and(|error| error.message.contains(words))
    }

    /// The agent says that units do not run that the OS image expects to run.
    pub(crate) fn misses_units(&self) -> bool {
        let status = self.update.as_ref().and_then(|update| update.status.as_ref());
        let healthy = status.and_then(|status| conditions::get(&status.conditions, conditions::AGENT_HEALTHY));
        healthy.is_some_and(|condition| condition.status == "False" && condition.reason == "UnitsFailing")
    }

    /// The release runs and was made permanent: the machine knows what runs, the agent of that very boot knows whether
    /// it is still on trial.
    pub(crate) fn runs_committed(&self, version: &str) -> bool {
        let system = self.machine.as_ref().and_then(|machine| machine.system.as_ref());
        let status = self.update.as_ref().and_then(|update| update.status.as_ref());
        let (Some(system), Some(status)) = (system, status) else { return false };
        system.version == version && status.boot_id.as_ref() == Some(&system.boot_id) && status.trial.is_none()
    }
}

/// Pods of the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodSeen {
    /// Ready and not being deleted: what a PodDisruptionBudget counts.
    pub(crate) healthy: bool,
    /// Where it was scheduled to.
    pub(crate) node: Option<String>,
}

/// The worst ever seen since [`Snapshot::watch_from_here`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extremes {
    /// The lowest number of healthy replicas.
    pub(crate) fewest_replicas: Option<u32>,
    /// The highest number of unavailable nodes.
    pub(crate) most_unavailable: u32,
    /// The highest number of zones with unavailable nodes.
    pub(crate) most_zones: u32,
    /// Every release that ever ran on a node, by (version, node).
    pub(crate) ran: BTreeSet<(String, String)>,
    /// Machines that had nothing left to boot.
    pub(crate) dead: BTreeSet<String>,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Nodes by name.
    pub(crate) nodes: BTreeMap<String, NodeSeen>,
    /// The workload's pods by uid.
    pub(crate) shop: BTreeMap<String, PodSeen>,
    /// The policy.
    pub(crate) policy: Option<UpdatePolicy>,
    /// Machines whose process ended, and why: nothing can be said of them any more.
    pub(crate) lost: BTreeMap<String, String>,
    /// The worst so far; `None` while the cluster is still being set up.
    pub(crate) extremes: Option<Extremes>,
}

impl Snapshot {
    /// Replicas that serve now: healthy by the API's word, on a machine that runs. (A pod whose machine is gone stays Ready in the API
    /// as long as its node does.)
    pub(crate) fn replicas(&self) -> u32 {
        let runs = |pod: &PodSeen| pod.node.as_ref().and_then(|node| self.nodes.get(node)).is_some_and(NodeSeen::up);
        count(self.shop.values().filter(|pod| pod.healthy && runs(pod)))
    }

    /// Nodes whose machine runs `version`, committed.
    pub(crate) fn committed_on(&self, version: &str) -> usize {
        self.nodes.values().filter(|node| node.runs_committed(version)).count()
    }

    /// Nodes that hold `version` verified in their inactive slot.
    pub(crate) fn staged(&self, version: &str) -> usize {
        let holds = |node: &&NodeSeen| {
            let staged = node.update.as_ref().and_then(|update| update.status.as_ref()?.staged.as_ref());
            staged.is_some_and(|staged| staged.version.as_str() == version)
        };
        self.nodes.values().filter(holds).count()
    }

    /// Starts of each machine so far.
    pub(crate) fn starts(&self) -> BTreeMap<String, u64> {
        let starts = |node: &NodeSeen| node.machine.as_ref().map_or(0, |machine| machine.starts);
        self.nodes.iter().map(|(name, node)| (name.clone(), starts(node))).collect()
    }

    /// Nodes on which `version` ever ran since the worst is remembered.
    pub(crate) fn ever_ran(&self, version: &str) -> Vec<&str> {
        let ran = self.extremes.iter().flat_map(|worst| &worst.ran);
        ran.filter(|(other, _)| other == version).map(|(_, node)| node.as_str()).collect()
    }

    /// Every node is Ready and nobody is kept from scheduling on it.
    pub(crate) fn calm(&self) -> bool {
        self.nodes.values().all(|node| !node.unavailable())
    }

    /// Why waiting longer leads nowhere, if it doesn't.
    pub(crate) fn hopeless(&self) -> Option<String> {
        if let Some((node, why)) = self.lost.first_key_value() {
            return Some(format!("the process of machine {node} ended: {why}"));
        }
        let dead = |(_, node): &(&String, &NodeSeen)| {
            node.machine.as_ref().is_some_and(|machine| machine.power == Power::Dead)
        };
        if let Some((node, _)) = self.nodes.iter().find(dead) {
            return Some(format!("{node} has nothing left to boot"));
        }
        let accepted = self.acceptance()?;
        // While the operator asks for the rights that its gates and hooks need, it takes no policy for accepted.
        let refused = accepted.status == "False" && !accepted.message.ends_with("is being asked");
        refused.then(|| format!("the policy is not accepted: {}", accepted.message))
    }

    /// Whether the operator took the policy in.
    pub(crate) fn policy_accepted(&self) -> bool {
        self.acceptance().is_some_and(|accepted| accepted.status == "True")
    }

    fn acceptance(&self) -> Option<&Condition> {
        conditions::get(&self.policy.as_ref()?.status.as_ref()?.conditions, conditions::ACCEPTED)
    }

    /// From now on the worst is remembered.
    pub(crate) fn watch_from_here(&mut self) {
        self.extremes = Some(Extremes::default());
        self.note();
    }

    /// Compares the present with the worst. Called after each change.
    pub(crate) fn note(&mut self) {
        let replicas = self.replicas();
        let unavailable = self.nodes.values().filter(|node| node.unavailable());
        let zones: BTreeSet<&str> = unavailable.clone().map(|node| node.zone.as_str()).collect();
        let (unavailable, zones) = (count(unavailable), count(zones.iter()));
        let Some(worst) = self.extremes.as_mut() else { return };
        worst.fewest_replicas = Some(worst.fewest_replicas.map_or(replicas, |before| before.min(replicas)));
        worst.most_unavailable = worst.most_unavailable.max(unavailable);
        worst.most_zones = worst.most_zones.max(zones);
        for (name, node) in &self.nodes {
            if let Some(version) = node.runs() {
                worst.ran.insert((version.to_owned(), name.clone()));
            }
            if node.machine.as_ref().is_some_and(|machine| machine.power == Power::Dead) {
                worst.dead.insert(name.clone());
            }
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine(power: &str) -> Option<MachineView> {
        let view = json!({"name": "n", "power": power, "starts": 1, "slots": [], "agent": null, "bootLog": []});
        Some(serde_json::from_value(view).unwrap())
    }

    fn node(zone: &str, ready: bool, cordoned: bool) -> NodeSeen {
        NodeSeen { zone: zone.to_owned(), ready, cordoned, machine: machine("up"), ..NodeSeen::default() }
    }

    fn worst(replicas: u32, unavailable: u32, zones: u32) -> Extremes {
        Extremes {
            fewest_replicas: Some(replicas),
            most_unavailable: unavailable,
            most_zones: zones,
            ..Extremes::default()
        }
    }

    fn pod(node: &str) -> PodSeen {
        PodSeen { healthy: true, node: Some(node.to_owned()) }
    }

    #[test]
    fn the_worst_is_remembered_only_from_the_start_of_the_watch() {
        let mut seen = Snapshot::default();
        seen.nodes.insert("n1".into(), node("a", false, false));
        seen.note();
        assert_eq!(seen.extremes, None);
        seen.nodes.insert("n1".into(), node("a", true, false));
        seen.nodes.insert("n2".into(), node("b", true, false));
        seen.shop.insert("p1".into(), pod("n1"));
        seen.watch_from_here();
        assert_eq!(seen.extremes, Some(worst(1, 0, 0)));
        seen.nodes.insert("n1".into(), node("a", true, true));
        seen.nodes.insert("n2".into(), node("b", false, true));
        seen.shop.clear();
        seen.note();
        seen.nodes.insert("n2".into(), node("b", true, false));
        seen.note();
        assert_eq!(seen.extremes, Some(worst(0, 2, 2)));
    }

    #[test]
    fn pods_go_with_their_machine_whatever_the_api_still_says() {
        let mut seen = Snapshot::default();
        for (name, zone) in [("n1", "a"), ("n2", "b")] {
            seen.nodes.insert(name.into(), node(zone, true, false));
            seen.shop.insert(format!("p-{name}"), pod(name));
        }
        seen.watch_from_here();
        assert_eq!(seen.extremes, Some(worst(2, 0, 0)));
        for power in ["off", "firmware", "starting", "dead"] {
            let mut seen = seen.clone();
            seen.nodes.get_mut("n2").unwrap().machine = machine(power);
            seen.extremes = Some(Extremes::default());
            seen.note();
            let Extremes { fewest_replicas, most_unavailable, .. } = seen.extremes.unwrap();
            assert_eq!((fewest_replicas, most_unavailable), (Some(1), 1), "{power}");
        }
        seen.shop.insert("nowhere".into(), PodSeen { healthy: true, node: None });
        assert_eq!(seen.replicas(), 2);
    }
}
