//! What holds for a policy as a whole: its freeze, its window, its blocked releases, what its channel offers.

use super::{
    facts::{NodeView, Selection},
    fits::{self, Fit},
    groups::Members,
    memory::{BY_THRESHOLD, Memory},
    rollback::RollbackView,
};
use crate::{
    Snapshot, ValidPolicy, Wait,
    report::held_back,
    snapshot::{FreezeFacts, OfferState, PolicyFacts, Release},
    windows::{self, Opening},
};
use bascule_api::{
    Architecture, BlockedRelease, CompleteWave, CompleteWaves, EmergencyExemption, KubernetesVersion, Time, Version,
    WaitReason,
};
use std::{collections::BTreeMap, sync::Arc};

/// One policy with what follows from its own facts.
#[derive(Debug)]
pub(super) struct PolicyView<'a> {
    pub(super) facts: &'a PolicyFacts,
    pub(super) valid: Option<&'a ValidPolicy>,
    /// Nodes that count for its budgets, as indexes into the snapshot.
    pub(super) members: &'a [usize],
    /// The places of these in `members`, by their lot.
    pub(super) by_lot: &'a [usize],
    /// Its memory as this plan leaves it.
    pub(super) memory: Memory,
    pub(super) rollbacks: Vec<RollbackView<'a>>,
    pub(super) opening: Opening,
    /// The oldest API server of the cluster.
    pub(super) api_server: Option<KubernetesVersion>,
    pub(super) paused: Option<Arc<Wait>>,
    pub(super) frozen: Option<Arc<Wait>>,
    pub(super) orders: Orders,
    pub(super) halted: Option<Arc<Wait>>,
    pub(super) repository: Option<Arc<Wait>>,
    pub(super) closed: Option<Arc<Wait>>,
    pub(super) too_short: Option<Arc<Wait>>,
    /// What nodes took lately fits no window, so one at a time is tried.
    pub(super) one_at_a_time: bool,
    pub(super) invalid: Option<Arc<Wait>>,
    /// Whether its object can't be read: what it says and remembers is known in parts at most.
    pub(super) unreadable: bool,
}

impl<'a> PolicyView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, facts: &'a PolicyFacts, members: Option<&'a Members>) -> Self {
        let valid = facts.spec.as_ref().ok().map(|valid| &**valid);
        let unreadable = facts.unreadable();
        let invalid = facts.spec.as_ref().err().map(|error| match &unreadable {
            Some(unreadable) => Arc::new(unreadable.wait()),
            None => {
                let wait = Wait::new(WaitReason::InvalidPolicy, error.to_string());
                Arc::new(wait.of("UpdatePolicy", None, &facts.name))
            }
        });
        let opening = valid.map_or(Opening::Closed(None), |valid| windows::opening(&valid.windows, snapshot.now));
        let mut view = Self {
            facts,
            valid,
            members: members.map_or(&[], |members| &members.nodes),
            by_lot: members.map_or(&[], |members| &members.by_lot),
            memory: Memory::new(&facts.status),
            rollbacks: Vec::new(),
            opening,
            api_server: snapshot.api_server,
            paused: None,
            frozen: frozen(snapshot, facts),
            orders: Orders::new(snapshot, facts),
            halted: None,
            repository: repository(facts, snapshot.now),
            closed: closed(opening),
            too_short: None,
            one_at_a_time: false,
            invalid,
            unreadable: unreadable.is_some(),
        };
        if let Some(valid) = valid {
            if valid.spec.paused {
                let wait = Wait::new(WaitReason::Paused, format!("policy {} is paused", facts.name));
                view.paused = Some(Arc::new(wait.of("UpdatePolicy", None, &facts.name)));
            }
            let maintenance = facts.status.maintenance.as_ref();
            let begun = maintenance.is_some_and(|open| open.begun_at.is_some() && !open.ending);
            match fits::fit(valid, &facts.status.timings, begun, opening, snapshot.now) {
                Fit::Fits => {}
                Fit::OneAtATime => view.one_at_a_time = true,
                Fit::TooShort(wait) => view.too_short = Some(Arc::new(wait.of("UpdatePolicy", None, &facts.name))),
            }
        }
        view
    }

    /// Looks again whether the policy is halted; called after failures were added to its memory.
    pub(super) fn refresh_halt(&mut self) {
        self.halted = self.halting_block().map(|(version, message)| {
            let held_back = held_back(&version);
            let message = format!("{held_back}and nothing new starts until a newer release or a Rollback: {message}");
            Arc::new(Wait::new(WaitReason::Halted, message).of("UpdatePolicy", None, &self.facts.name))
        });
    }

    /// The newest release that this policy would take, were it not blocked by failures, if it is blocked by them.
    fn halting_block(&self) -> Option<(Version, String)> {
        let head = self.facts.offer.releases.iter().rev().find(|release| self.eligible(release))?;
        let block = self.block(&head.version)?;
        let rolled_back = self.rollbacks.iter().any(|rollback| rollback.facts.created_at >= block.at);
        (block.by == BY_THRESHOLD && !rolled_back).then(|| (head.version.clone(), block.reason.clone()))
    }

    /// Whether a release is one that the admin and the publisher let this policy take.
    fn eligible(&self, release: &Release) -> bool {
        let Some(valid) = self.valid else { return false };
        release.withdrawn.is_none()
            && !valid.spec.blocked_versions.contains(&release.version)
            && valid.spec.version.as_ref().is_none_or(|pinned| *pinned == release.version)
    }

    /// The block of a release that is in force. An admin lifts one in `spec.allowedVersions`, until the release fails on
    /// as many further nodes as the threshold.
    fn block(&self, version: &Version) -> Option<&BlockedRelease> {
        let block = self.memory.blocked.iter().find(|block| block.version == *version)?;
        let Some(valid) = self.valid.filter(|valid| valid.spec.allowed_versions.contains(version)) else {
            return Some(block);
        };
        let since = self.memory.failures.iter().filter(|failure| failure.version == *version && failure.at > block.at);
        (since.count() >= usize::try_from(valid.spec.failure_threshold).unwrap_or(usize::MAX)).then_some(block)
    }

    /// Whether the policy's memory forbids a release.
    pub(super) fn remembers_block(&self, version: &Version) -> bool {
        self.block(version).is_some()
    }

    pub(super) fn is_blocked(&self, version: &Version) -> bool {
        self.remembers_block(version)
            || self.valid.is_some_and(|valid| valid.spec.blocked_versions.contains(version))
            || self.rollbacks.iter().any(|rollback| rollback.blocks(version))
    }

    /// Whether a release that is known may not be installed any more.
    pub(super) fn is_closed(&self, version: &Version) -> bool {
        self.is_blocked(version) || self.facts.offer.release(version).is_some_and(|release| release.withdrawn.is_some())
    }

    pub(super) fn blocked_by_failures(&self, version: &Version) -> bool {
        self.block(version).is_some_and(|block| block.by == BY_THRESHOLD)
    }

    /// Notes which waves of the target were complete. Another target begins anew, and so does one that was blocked or withdrawn in
    /// between: whoever lets it go on sees it tried.
    pub(super) fn remember_waves(&mut self, complete: &[CompleteWave]) {
        let known = self.memory.complete_waves.as_ref().map(|known| &known.version);
        let kept = match self.target(None) {
            Some(target) => (!complete.is_empty())
                .then(|| CompleteWaves { version: target.version.clone(), waves: complete.to_vec() }),
            // What the channel offers is not known, or the policy can't be used.
            None if known.is_some_and(|known| !self.is_closed(known)) => return,
            None => None,
        };
        self.memory.keep_waves(kept);
    }

    /// What the channel offers to nodes of an architecture under this policy.
    pub(super) fn target(&self, architecture: Option<Architecture>) -> Option<&'a Release> {
        self.facts.offer.releases.iter().rev().find(|release| {
            architecture.is_none_or(|architecture| release.digests.contains_key(&architecture))
                && self.eligible(release)
                && !self.is_blocked(&release.version)
        })
    }

    /// Why the channel offers nothing.
    pub(super) fn no_target(&self, architecture: Option<Architecture>) -> Wait {
        let channel = self.valid.map_or("", |valid| valid.spec.source.channel.as_str());
        if let Some(wait) = &self.repository {
            return (**wait).clone();
        }
        let pinned = self.valid.and_then(|valid| valid.spec.version.as_ref());
        let newest = match pinned {
            Some(pinned) => self.facts.offer.release(pinned),
            None => self.facts.offer.releases.last(),
        };
        let wait = match (newest, pinned) {
            (Some(release), _) if release.withdrawn.is_some() => {
                let why = release.withdrawn.as_deref().unwrap_or_default();
                Wait::new(WaitReason::ReleaseWithdrawn, format!("{} was withdrawn: {why}", release.version))
            }
            (Some(release), _) if self.is_blocked(&release.version) => {
                let held_back = held_back(&release.version);
                let message = format!("{held_back}for this policy and {channel} offers nothing else");
                Wait::new(WaitReason::ReleaseBlocked, message)
            }
            (None, Some(pinned)) => {
                Wait::new(WaitReason::NoRelease, format!("channel {channel} has no release {pinned} (spec.version)"))
            }
            _ => {
                let machine = architecture.map_or("", |architecture| architecture.as_str());
                Wait::new(WaitReason::NoRelease, format!("channel {channel} offers no release for this node {machine}"))
            }
        };
        wait.of("UpdatePolicy", None, &self.facts.name)
    }

    /// Whether a release may skip something because it is urgent.
    pub(super) fn skips(&self, release: &Release, what: EmergencyExemption) -> bool {
        self.valid.is_some_and(|valid| valid.skips(release.severity, what))
    }

    /// Until when a release is too young.
    pub(super) fn too_young(&self, release: &Release, now: Time) -> Option<Wait> {
        let valid = self.valid?;
        let old_enough = release.published_at.after(valid.spec.min_release_age);
        if now >= old_enough || self.skips(release, EmergencyExemption::MinimumAge) {
            return None;
        }
        let message = format!(
            "{} was published at {} and is taken {} later",
            release.version, release.published_at, valid.spec.min_release_age
        );
        Some(
            Wait::new(WaitReason::MinimumAge, message)
                .of("UpdatePolicy", None, &self.facts.name)
                .until(Some(old_enough)),
        )
    }
}

/// The policy that may decide about a node: the only one that selects it, and valid.
pub(super) fn deciding(policies: &[PolicyView<'_>], view: &NodeView<'_>) -> Option<usize> {
    let Selection::One(index) = view.traits.selection else { return None };
    policies.get(index).filter(|policy| policy.valid.is_some()).map(|_| index)
}

fn frozen(snapshot: &Snapshot, facts: &PolicyFacts) -> Option<Arc<Wait>> {
    // It may be for this policy.
    if let Some(order) = snapshot.unreadable_orders.first() {
        return Some(Arc::new(order.wait()));
    }
    longest(snapshot.freezes.iter().map(|freeze| &**freeze).filter(|freeze| freeze.holds(facts, snapshot.now)))
}

/// The Freeze that ends last, as what is waited for.
fn longest<'a>(freezes: impl Iterator<Item = &'a FreezeFacts>) -> Option<Arc<Wait>> {
    let longest = freezes.max_by(|a, b| (a.ends_at(), &b.name).cmp(&(b.ends_at(), &a.name)))?;
    let by = longest.spec.requested_by.as_deref().map_or_else(String::new, |user| format!(" by {user}"));
    let wait = Wait::new(WaitReason::Freeze, format!("frozen{by}: {}", longest.spec.reason));
    Some(Arc::new(wait.of("Freeze", None, &longest.name).until(Some(longest.ends_at()))))
}

/// What Freezes say beside holding whole policies.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Orders {
    /// Nodes that are held by name.
    held: BTreeMap<String, Arc<Wait>>,
    /// Why drains of the policy are undone.
    undone: Option<String>,
    /// Why drains of single nodes are.
    nodes_undone: BTreeMap<String, String>,
}

impl Orders {
    fn new(snapshot: &Snapshot, facts: &PolicyFacts) -> Self {
        let now = snapshot.now;
        let active = || snapshot.freezes.iter().map(|freeze| &**freeze).filter(move |freeze| freeze.is_active(now));
        let mut orders = Self::default();
        for node in active().flat_map(|freeze| &freeze.spec.nodes) {
            if !orders.held.contains_key(node)
                && let Some(wait) = longest(active().filter(|freeze| freeze.holds_node(node, now)))
            {
                orders.held.insert(node.clone(), wait);
            }
        }
        for freeze in active().filter(|freeze| freeze.spec.undo_drains) {
            let why = format!("Freeze {} undoes its drain: {}", freeze.name, freeze.spec.reason);
            if freeze.holds(facts, now) {
                orders.undone.get_or_insert(why);
            } else {
                for node in &freeze.spec.nodes {
                    orders.nodes_undone.entry(node.clone()).or_insert_with(|| why.clone());
                }
            }
        }
        orders
    }

    /// What holds a node by its name.
    pub(super) fn held(&self, node: &str) -> Option<Arc<Wait>> {
        if self.held.is_empty() { None } else { self.held.get(node).cloned() }
    }

    /// Why a drain of a node is undone.
    pub(super) fn undone(&self, node: &str) -> Option<&str> {
        self.undone.as_deref().or_else(|| self.nodes_undone.get(node).map(String::as_str))
    }
}

fn repository(facts: &PolicyFacts, now: Time) -> Option<Arc<Wait>> {
    let message = match &facts.offer.state {
        OfferState::Unread => "the repository has not been read yet".to_owned(),
        OfferState::Unusable { message, .. } => message.clone(),
        OfferState::Valid | OfferState::Stale { .. } => {
            let expired = facts.offer.repository.expires_at.filter(|expires| *expires <= now)?;
            format!("the repository's metadata expired at {expired}: its publisher must refresh it")
        }
    };
    let wait = Wait::new(WaitReason::RepositoryUnavailable, message);
    Some(Arc::new(wait.of("UpdatePolicy", None, &facts.name)))
}

fn closed(opening: Opening) -> Option<Arc<Wait>> {
    let Opening::Closed(next) = opening else { return None };
    let until = next.map(|span| span.start);
    let message = until.map_or_else(
        || "no maintenance window will ever open".to_owned(),
        |until| format!("the next maintenance window opens at {until}"),
    );
    Some(Arc::new(Wait::new(WaitReason::MaintenanceWindow, message).until(until)))
}
