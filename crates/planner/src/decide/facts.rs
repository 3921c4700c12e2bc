//! What can be read off a node at once: which policy selects it, what it runs, what its other slot holds.
//!
//! [`Traits`] holds what follows from one node and the policies' selectors alone, so that it is worked out once for a
//! node that does not change; [`NodeView`] is the node with them. Passes over all nodes read traits, and follow the
//! pointer into the node's own facts only where something is special about it.

use super::texts::{Kind, Texts};
use crate::{
    PolicyErrorKind, Snapshot,
    snapshot::{Cordon, EtcdMember, Excluded, Node, PolicyFacts, Truce, UpdateFacts},
};
use bascule_api::{
    Booted, Counting, Disruption, DisruptionOutcome, Goal, LastError, NodeError, NodeUpdateStatus, SlotState,
    SlotStatus, Time, Version,
};
use std::sync::Arc;

/// The label by which candidates of different zones are mixed.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Which policies select a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selection {
    None,
    One(usize),
    /// Two of them; there may be more.
    Conflict(usize, usize),
}

/// Which policies' selectors match a node. Policies that are not valid select too: a node of theirs must not be taken
/// over by another one while somebody mends a typing error.
pub(super) fn select(node: &Node, policies: &[Arc<PolicyFacts>]) -> Selection {
    let mut found = Selection::None;
    for (index, policy) in policies.iter().enumerate() {
        if selects(node, policy) {
            match found {
                Selection::None => found = Selection::One(index),
                Selection::One(first) | Selection::Conflict(first, _) => return Selection::Conflict(first, index),
            }
        }
    }
    found
}

/// Whether a policy selects a node.
pub(super) fn selects(node: &Node, policy: &PolicyFacts) -> bool {
    match &policy.spec {
        Ok(valid) => valid.spec.node_selector.matches(&node.labels),
        // What an invalid policy would select is not known, but what it cares for already is.
        Err(error) => {
            let cared_for = node.live_update().is_some_and(|update| update.spec.policy == policy.name);
            cared_for || may_be_selected(node, &error.kind)
        }
    }
}

/// Whether a policy that can't be read may select a node that it is not known to care for. Where its selector is not known either, that
/// may be any node that nobody cares for yet.
fn may_be_selected(node: &Node, why: &PolicyErrorKind) -> bool {
    match why {
        PolicyErrorKind::Unreadable { selects: Some(selector), .. } => selector.matches(&node.labels),
        PolicyErrorKind::Unreadable { selects: None, .. } => node.live_update().is_none() && node.unreadable.is_none(),
        _ => false,
    }
}

/// What follows from a node's own facts, the policies' selectors and the seed. No clock, and nothing of other nodes.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Traits {
    pub(super) selection: Selection,
    /// The policy whose budgets it counts for: while it moves the one that granted, else the one that selects it.
    pub(super) policy: Option<usize>,
    /// A stable random order between nodes.
    pub(super) lot: u64,
    /// Nodes of one kind have the same policy, architecture and running release.
    pub(super) kind: Kind,
    /// The node's zone, and its failure domain under its policy's budget.
    pub(super) zone: u32,
    pub(super) domain: u32,
    /// A bit for each wave of its policy whose selector matches.
    pub(super) waves: u64,
    /// The release that it is asked to stage.
    pub(super) asked: Option<u32>,
    /// The digest of the manifest by which it is asked to.
    pub(super) asked_digest: Option<u32>,
    pub(super) goal: Option<Goal>,
    /// Since when it runs what it runs, committed, as far as is known; see [`NodeView::done_since`].
    pub(super) done_since: Time,
    /// Whether that is the agent's word alone, whose clock may be wrong.
    pub(super) done_by_agent: bool,
    pub(super) created_at: Time,
    /// How many of its pods a PodDisruptionBudget protects.
    pub(super) protected: u64,
    pub(super) etcd: EtcdMember,
    pub(super) runs_operator: bool,
    /// Whether it has a NodeUpdate of its own, see [`Node::live_update`].
    pub(super) live: bool,
    /// Whether it is disrupted, or may be without anybody knowing.
    pub(super) moves: bool,
    pub(super) granted: bool,
    /// Whether it is held as it is, because an object of it can't be read.
    pub(super) unreadable: bool,
    pub(super) unavailable: bool,
    pub(super) deleting: bool,
    pub(super) ready: bool,
    /// Whether our mark is on it, with the cordon or without.
    pub(super) cordoned_by_us: bool,
    pub(super) cordoned_by_other: bool,
    /// Whether autoscalers are asked to leave it alone.
    pub(super) truce: bool,
    pub(super) control_plane: bool,
    pub(super) outdated: bool,
    pub(super) held: bool,
    pub(super) booted: bool,
    pub(super) on_trial: bool,
    pub(super) agent_reports: bool,
    pub(super) counting_broken: bool,
    pub(super) staged_as_asked: bool,
    /// Whether the agent is busy with staging.
    pub(super) writing: bool,
    /// Whether the agent reports a release that failed there.
    pub(super) has_failed: bool,
    /// Whether the other slot keeps a release that ran.
    pub(super) keeps_old: bool,
    /// The state version that the machine was used with.
    pub(super) state_version: Option<u32>,
    /// Whether its NodeUpdate names the policy that cares for it.
    pub(super) of_policy: bool,
}

impl Traits {
    pub(super) fn of(snapshot: &Snapshot, node: &Node, texts: &mut Texts) -> Self {
        let selection = select(node, &snapshot.policies);
        let update = node.live_update();
        let disruption = update.and_then(|update| update.spec.disruption.as_ref());
        let granted_by = update
            .filter(|_| disruption.is_some())
            .and_then(|update| snapshot.policies.iter().position(|policy| policy.name == update.spec.policy));
        let selected = match selection {
            Selection::One(policy) => Some(policy),
            Selection::None | Selection::Conflict(..) => None,
        };
        let policy = granted_by.or(selected);
        let facts = policy.and_then(|policy| snapshot.policies.get(policy));
        let spec = facts.and_then(|policy| policy.spec.as_ref().ok()).map(|valid| &valid.spec);
        let per_domain = spec.and_then(|spec| spec.budget.per_domain.as_ref());
        let label = |key: &str| node.labels.get(key).map_or("", String::as_str);
        let staging = update.filter(|update| update.spec.goal == Goal::Staged);
        let asked = staging.and_then(|update| update.spec.release.as_ref());
        let booted = update.and_then(|update| update.status.booted.as_ref());
        let other = update.and_then(other_slot);
        let staged_as_asked = update.is_some_and(staged_as_asked);
        let waves = spec.map_or(&[][..], |spec| &spec.waves).iter().take(64).enumerate();
        let waves = waves.filter(|(_, wave)| wave.selector.as_ref().is_some_and(|all| all.matches(&node.labels)));
        Self {
            selection,
            policy,
            lot: lot(snapshot.seed, &node.name),
            kind: texts.kind(selected, node.architecture, booted.map(|booted| &booted.version)),
            zone: texts.id(label(ZONE)),
            // Nodes without the label are one domain of their own: what is not known is not spread.
            domain: texts.id(per_domain.map_or("", |budget| label(&budget.topology_key))),
            waves: waves.fold(0, |bits, (index, _)| bits | (1 << index)),
            asked: asked.map(|asked| texts.id(asked.version.as_str())),
            asked_digest: asked.map(|asked| texts.id(asked.digest.as_str())),
            goal: update.map(|update| update.spec.goal),
            done_since: update.map(done_since).unwrap_or_default(),
            done_by_agent: update.is_some_and(|update| update.spec.last_disruption.is_none()),
            created_at: node.created_at,
            protected: node.pods.budgets.iter().map(|(_, pods)| u64::from(*pods)).sum(),
            etcd: node.etcd,
            runs_operator: snapshot.operator_node.as_deref() == Some(&*node.name),
            live: update.is_some(),
            moves: disruption.is_some() || node.is_hidden(),
            granted: node.granted(),
            unreadable: node.unreadable.is_some(),
            // What came back in the middle of its disruption is disrupted still, whoever has noted it yet.
            unavailable: node.unavailable() || came_back(node, update, selected),
            deleting: node.deleting,
            ready: node.ready.ready,
            cordoned_by_us: matches!(node.cordon, Cordon::Ours { .. } | Cordon::Lifted { .. }),
            cordoned_by_other: matches!(node.cordon, Cordon::Other { .. }),
            truce: node.truce != Truce::None || node.excluded == Excluded::ByUs,
            control_plane: node.control_plane,
            outdated: node.taints.outdated,
            held: node.taints.hold,
            booted: booted.is_some(),
            on_trial: update
                .is_some_and(|update| update.status.trial.is_some() || booted_slot_is(update, SlotState::Trial)),
            // The agent reports from the boot that the kubelet reports from.
            agent_reports: booted.is_some()
                && update.is_some_and(|update| update.status.boot_id.as_deref() == Some(node.boot_id.as_str())),
            counting_broken: update
                .and_then(|update| update.status.boot_control.as_ref())
                .is_some_and(|control| control.counting == Counting::Broken),
            staged_as_asked,
            writing: update.is_some_and(is_staging),
            has_failed: update.is_some_and(|update| !update.status.failed_releases.is_empty()),
            keeps_old: other.is_some_and(|slot| slot.state == SlotState::Good && is_no_newer(slot, booted)),
            state_version: update.and_then(|update| update.status.state_version),
            of_policy: update.zip(facts).is_some_and(|(update, policy)| update.spec.policy == policy.name),
        }
    }
}

/// Whether what the other slot holds is no newer than what runs. What is newer was left by going back: the agent keeps it as good,
/// set aside, and nothing leads the node to it but an update, which brings it again.
fn is_no_newer(other: &SlotStatus, booted: Option<&Booted>) -> bool {
    other.version.as_ref().zip(booted).is_none_or(|(held, booted)| *held <= booted.version)
}

/// One node with what follows from its facts alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeView<'a> {
    pub(super) node: &'a Node,
    pub(super) traits: &'a Traits,
}

impl<'a> NodeView<'a> {
    /// The NodeUpdate, unless it belongs to an earlier Node of this name or is being deleted.
    pub(super) fn update(&self) -> Option<&'a UpdateFacts> {
        self.node.update.as_ref().filter(|_| self.traits.live)
    }

    pub(super) fn disruption(&self) -> Option<&'a Disruption> {
        self.update().and_then(|update| update.spec.disruption.as_ref())
    }

    pub(super) fn booted(&self) -> Option<&'a Booted> {
        self.update().and_then(|update| update.status.booted.as_ref())
    }

    pub(super) fn running(&self) -> Option<&'a Version> {
        self.booted().map(|booted| &booted.version)
    }

    /// Whether what runs is permanent.
    pub(super) fn committed(&self) -> bool {
        !self.traits.on_trial && self.update().is_some_and(|update| booted_slot_is(update, SlotState::Good))
    }

    /// What the slot that does not run holds.
    pub(super) fn other_slot(&self) -> Option<&'a SlotStatus> {
        other_slot(self.update()?)
    }

    /// The release the other slot could boot at once.
    pub(super) fn way_back(&self) -> Option<&'a Version> {
        let slot = self.other_slot()?;
        let version = slot.version.as_ref()?;
        // A way back that was armed and taken back again is staged; a newer release that is staged is no way back.
        let holds = match slot.state {
            SlotState::Good => true,
            SlotState::Staged => self.running().is_some_and(|running| version < running),
            _ => false,
        };
        holds.then_some(version)
    }

    /// Since when the node runs what it runs, committed. An agent that speaks of the future has a wrong clock; then the
    /// API server's word for when the node joined has to do, or a soak would not end for as long as the clock is wrong.
    pub(super) fn done_since(&self, now: Time) -> Time {
        let traits = self.traits;
        if traits.done_since > now && traits.done_by_agent {
            traits.created_at.min(now)
        } else {
            traits.done_since.min(now)
        }
    }

    /// Whether the agent reports this release as one that failed there.
    pub(super) fn reports_failed(&self, version: &Version) -> bool {
        self.traits.has_failed
            && self
                .update()
                .is_some_and(|update| update.status.failed_releases.iter().any(|failed| failed.version == *version))
    }

    /// Whether nothing of the node itself keeps it from being updated.
    pub(super) fn able(&self) -> bool {
        let traits = self.traits;
        !traits.deleting
            && self.node.leaving.is_none()
            && traits.ready
            && !traits.cordoned_by_other
            && traits.agent_reports
            && !traits.counting_broken
    }
}

/// Whether a policy's node was made anew in the middle of a disruption that is carried on with.
fn came_back(node: &Node, update: Option<&UpdateFacts>, policy: Option<usize>) -> bool {
    let on_trial = |update: &UpdateFacts| update.status.trial.is_some() || booted_slot_is(update, SlotState::Trial);
    policy.is_some()
        && match update {
            Some(update) => update.forgot_a_grant() && on_trial(update),
            None => node.interrupted().is_some(),
        }
}

fn booted_slot_is(update: &UpdateFacts, state: SlotState) -> bool {
    match (&update.status.booted, &update.status.slots) {
        (Some(booted), Some(slots)) => slots.get(booted.slot).state == state,
        _ => false,
    }
}

fn other_slot(update: &UpdateFacts) -> Option<&SlotStatus> {
    let booted = update.status.booted.as_ref()?;
    update.status.slots.as_ref().map(|slots| slots.get(booted.slot.other()))
}

/// Whether the release in the NodeUpdate's spec is in the inactive slot, verified.
fn staged_as_asked(update: &UpdateFacts) -> bool {
    let Some(asked) = &update.spec.release else { return false };
    update.spec.goal == Goal::Staged
        && update
            .status
            .staged
            .as_ref()
            .is_some_and(|staged| staged.version == asked.version && staged.digest == asked.digest)
}

/// Whether the agent is busy with bringing what is asked for.
fn is_staging(update: &UpdateFacts) -> bool {
    let asked = update.spec.goal == Goal::Staged && update.spec.release.is_some();
    asked && !staged_as_asked(update) && in_the_way(&update.status).is_none()
}

/// What keeps the agent from what is asked of it. A hook of the OS image after a commit keeps it from nothing, however often it fails.
pub(super) fn in_the_way(status: &NodeUpdateStatus) -> Option<&LastError> {
    status.last_error.as_ref().filter(|error| error.category != NodeError::Hook)
}

/// By the operator's word where it moved the node to what it runs; else what the agent says, though not later than
/// the operator's last dealings with the node, after which it ran this already.
fn done_since(update: &UpdateFacts) -> Time {
    let booted = update.status.booted.as_ref();
    let Some(last) = &update.spec.last_disruption else {
        return booted.and_then(|booted| booted.committed_at).unwrap_or_default();
    };
    let here = booted.is_some_and(|booted| last.version.as_ref() == Some(&booted.version));
    if matches!(last.outcome, DisruptionOutcome::Committed | DisruptionOutcome::RolledBack) && here {
        return last.ended_at;
    }
    booted.and_then(|booted| booted.committed_at).unwrap_or_default().min(last.ended_at)
}

/// The lot of the node of a name: of nodes between which nothing else decides the lowest goes first. FNV-1a of the installation's
/// seed and the name.
#[must_use]
pub fn lot(seed: u64, text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in text.bytes() {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    // FNV's high bits depend little on the last bytes, by which node names differ.
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::NodeUpdateSpec;

    /// Where a release's hook fails on every node, no more nodes stage at once than may.
    #[test]
    fn an_agent_whose_hook_after_the_commit_fails_stages_all_the_same() {
        let release = serde_json::json!({
            "version": "1.2", "digest": format!("sha256:{}", "1".repeat(64)),
            "repository": "https://images.example.com/acme-os", "channel": "stable"
        });
        let spec = serde_json::json!({"policy": "workers", "release": release});
        let spec = NodeUpdateSpec { goal: Goal::Staged, ..serde_json::from_value(spec).unwrap() };
        let failing = |category| {
            let message = "it failed".to_owned();
            let error = LastError { category, message, attempts: 1, at: Time::default(), next_try: None };
            let status = NodeUpdateStatus { last_error: Some(error), ..NodeUpdateStatus::default() };
            UpdateFacts { generation: 1, owner_uid: None, deleting: false, spec: spec.clone(), status }
        };
        assert!(is_staging(&failing(NodeError::Hook)));
        assert!(!is_staging(&failing(NodeError::Storage)));
    }
}
