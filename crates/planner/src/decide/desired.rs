//! Which release a node should run next, and by which way.

use super::{
    facts::{NodeView, Traits},
    policy::PolicyView,
    rollback::{self, RollbackView},
    texts::Texts,
};
use crate::{
    Wait,
    snapshot::{Release, RollbackFacts},
};
use bascule_api::{Architecture, Digest, ObjectRef, ReleaseRef, Time, Version, WaitReason};
use std::sync::Arc;

/// What a node should do.
#[derive(Debug, Clone)]
pub(super) enum Desired<'a> {
    /// It runs what it should.
    Here,
    /// There is nothing for it, for this reason.
    Nothing(Arc<Wait>),
    /// Stage, boot and commit a release.
    Install(Install<'a>),
    /// Go back to what the other slot holds.
    GoBack(Box<GoBack<'a>>),
}

/// A release to install.
#[derive(Debug, Clone)]
pub(super) struct Install<'a> {
    pub(super) release: &'a Release,
    /// The channel's target, of which `release` may be the floor.
    pub(super) target: &'a Release,
    pub(super) young: Option<Arc<Wait>>,
    pub(super) rollback: Option<&'a RollbackFacts>,
    /// The number of `release`'s version, if a node is asked to stage it.
    pub(super) text: Option<u32>,
    /// Whether the channel names a manifest of `release` for these machines.
    pub(super) is_offered: bool,
    /// The number of that manifest's digest, if a node is asked to stage it.
    pub(super) digest: Option<u32>,
}

impl Install<'_> {
    /// Whether a node is asked to stage this: the version, by the manifest that the channel names for it now. What was published anew
    /// since no repository has any more under the manifest that it had before.
    pub(super) fn is_asked(&self, traits: &Traits) -> bool {
        let same = !self.is_offered || traits.asked_digest == self.digest;
        traits.asked.is_some() && traits.asked == self.text && same
    }
}

/// A way back without a download.
#[derive(Debug, Clone)]
pub(super) struct GoBack<'a> {
    pub(super) to: Version,
    pub(super) leaves: ReleaseRef,
    pub(super) why: Back<'a>,
}

/// Why a node goes back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Back<'a> {
    /// A person said so.
    Rollback(&'a RollbackFacts),
    /// Failures blocked the release and the policy says to leave it.
    Automatic,
    /// The policy pins the release that the other slot holds.
    Pinned,
}

/// What holds for all nodes of a kind.
#[derive(Debug, Clone)]
enum OfKind<'a> {
    /// What runs was blocked by failures; each node looks at its own other slot.
    Leave,
    Same(Desired<'a>),
}

/// The same for nodes that differ in nothing that matters, so that thousands of nodes cost a handful of decisions.
#[derive(Debug)]
pub(super) struct DesiredByKind<'a> {
    texts: &'a Texts,
    /// By kind.
    known: Vec<Option<OfKind<'a>>>,
}

impl<'a> DesiredByKind<'a> {
    pub(super) fn new(texts: &'a Texts) -> Self {
        Self { texts, known: vec![None; texts.kinds()] }
    }

    /// What a node of this policy should run.
    pub(super) fn of(&mut self, policy: &PolicyView<'a>, node: &NodeView<'a>, now: Time) -> Desired<'a> {
        if let Some(rollback) = policy.rollbacks.iter().find(|rollback| rollback.leaves(node))
            && let Some(running) = node.running()
        {
            return by_rollback(policy, rollback, node, running, self.texts);
        }
        if node.running().is_none()
            && let Some(trouble) = &node.node.agent_trouble
        {
            return Desired::Nothing(Arc::new(Wait::new(WaitReason::AgentNotReporting, trouble.as_ref())));
        }
        let kind = node.traits.kind.index();
        let known = match self.known.get(kind) {
            Some(Some(known)) => known.clone(),
            _ => {
                let made = self.make(policy, node, now);
                if let Some(slot) = self.known.get_mut(kind) {
                    *slot = Some(made.clone());
                }
                made
            }
        };
        match (known, policy.valid.and_then(|valid| valid.spec.version.as_ref())) {
            (OfKind::Leave, _) => leave_blocked(policy, node),
            (OfKind::Same(desired), None) => desired,
            (OfKind::Same(desired), Some(pinned)) => pinned_way_back(policy, node, pinned, desired),
        }
    }

    fn make(&self, policy: &PolicyView<'a>, node: &NodeView<'a>, now: Time) -> OfKind<'a> {
        let Some(running) = node.running() else {
            let message = "the agent has not reported what the node runs".to_owned();
            return OfKind::Same(Desired::Nothing(Arc::new(Wait::new(WaitReason::AgentNotReporting, message))));
        };
        if policy.blocked_by_failures(running) {
            return OfKind::Leave;
        }
        OfKind::Same(by_policy(policy, node.node.architecture, running, now, self.texts))
    }
}

fn by_policy<'a>(
    policy: &PolicyView<'a>,
    architecture: Option<Architecture>,
    running: &Version,
    now: Time,
    texts: &Texts,
) -> Desired<'a> {
    let nothing = |wait: Wait| Desired::Nothing(Arc::new(wait));
    let Some(target) = policy.target(architecture) else {
        return nothing(policy.no_target(architecture));
    };
    if target.version == *running {
        return Desired::Here;
    }
    if target.version < *running && !target.downgrade {
        return nothing(newer_than_offered(policy, running, target));
    }
    let mut step = target;
    // Each floor is lower than its release (checked when the channel was read), so this ends; the bound is for a
    // channel that says otherwise.
    for _ in 0..policy.facts.offer.releases.len() {
        let Some(floor) = step.floor.as_ref().filter(|floor| running < *floor) else { break };
        let usable = policy.facts.offer.release(floor).filter(|release| {
            release.withdrawn.is_none()
                && !policy.is_blocked(floor)
                && architecture.is_none_or(|machine| release.digests.contains_key(&machine))
        });
        let Some(next) = usable else {
            let message = format!(
                "{} accepts nodes from {floor} on, this one runs {running}, and {floor} is not offered",
                step.version
            );
            return nothing(Wait::new(WaitReason::MinimumSourceVersion, message));
        };
        step = next;
    }
    let young = policy.too_young(step, now).map(Arc::new);
    let text = texts.find(step.version.as_str());
    let offered = manifest_of(step, architecture);
    let (is_offered, digest) = (offered.is_some(), offered.and_then(|digest| texts.find(digest.as_str())));
    Desired::Install(Install { release: step, target, young, rollback: None, text, is_offered, digest })
}

/// The manifest by which a release is offered to machines of an architecture.
fn manifest_of(release: &Release, architecture: Option<Architecture>) -> Option<&Digest> {
    match architecture {
        Some(machine) => release.digests.get(&machine),
        None => release.digests.values().next(),
    }
}

fn newer_than_offered(policy: &PolicyView<'_>, running: &Version, target: &Release) -> Wait {
    let release = policy.facts.offer.release(running);
    if policy.is_blocked(running) {
        let message = format!("runs {running}, which is blocked for this policy; write a Rollback to leave it");
        return Wait::new(WaitReason::ReleaseBlocked, message);
    }
    match release.and_then(|release| release.withdrawn.as_deref()) {
        Some(why) => Wait::new(WaitReason::ReleaseWithdrawn, format!("runs {running}, which was withdrawn: {why}")),
        None => {
            let message = format!(
                "runs {running}; {} is older and its publisher does not allow going back to it",
                target.version
            );
            Wait::new(WaitReason::NoRelease, message)
        }
    }
}

/// Why a node does not go to a release that is made for an older state of the machine than the machine was used with. Its agent
/// would refuse that too, but only once the node is empty. What is to be done stays what it is: a Rollback that is not followed for
/// this is one all the same, which no pause and no halt stands in the way of.
pub(super) fn made_for_older_state(node: &NodeView<'_>, desired: &Desired<'_>) -> Option<Wait> {
    let used = node.traits.state_version?;
    let (to, made_for) = match desired {
        Desired::Install(install) => (&install.release.version, install.release.state_version),
        Desired::GoBack(back) => (&back.to, node.other_slot().and_then(|slot| slot.state_version)),
        Desired::Here | Desired::Nothing(_) => return None,
    };
    let made_for = made_for.unwrap_or(0);
    if made_for >= used || desired.accepts_state() {
        return None;
    }
    let message = format!(
        "{to} is made for state version {made_for}, and the machine was used with {used}: it may not understand what is there"
    );
    Some(Wait::new(WaitReason::StateVersion, message).of("NodeUpdate", None, &node.node.name))
}

/// A pinned older release that the other slot holds needs no permission: the node verified it once.
fn pinned_way_back<'a>(
    policy: &PolicyView<'a>,
    node: &NodeView<'a>,
    pinned: &Version,
    desired: Desired<'a>,
) -> Desired<'a> {
    match (&desired, node.running(), node.way_back()) {
        (Desired::Here, ..) => desired,
        (_, Some(running), Some(other)) if pinned == other && other < running && !policy.is_blocked(pinned) => {
            go_back(policy, node, running, other, Back::Pinned)
        }
        _ => desired,
    }
}

fn leave_blocked<'a>(policy: &PolicyView<'a>, node: &NodeView<'a>) -> Desired<'a> {
    let automatic = policy.valid.is_some_and(|valid| valid.spec.automatic_rollback);
    match (node.running(), node.way_back()) {
        (Some(running), Some(other)) if automatic && other < running && !policy.is_blocked(other) => {
            go_back(policy, node, running, other, Back::Automatic)
        }
        (running, _) => {
            let running = running.map_or("", Version::as_str);
            let message = format!("runs {running}, which is blocked for this policy after failures");
            let wait = Wait::new(WaitReason::ReleaseBlocked, message);
            Desired::Nothing(Arc::new(wait.of("UpdatePolicy", None, &policy.facts.name)))
        }
    }
}

fn by_rollback<'a>(
    policy: &PolicyView<'a>,
    rollback: &RollbackView<'a>,
    node: &NodeView<'a>,
    running: &Version,
    texts: &Texts,
) -> Desired<'a> {
    let facts = rollback.facts;
    let nothing = |reason, message: String| {
        Desired::Nothing(Arc::new(Wait::new(reason, message).of("Rollback", None, &facts.name)))
    };
    let Some(to) = rollback.destination(node) else {
        let message =
            format!("Rollback {} names no version and the other slot holds none older than {running}", facts.name);
        return nothing(WaitReason::NoRelease, message);
    };
    if node.way_back() == Some(to) {
        return go_back(policy, node, running, to, Back::Rollback(facts));
    }
    match policy.facts.offer.release(to) {
        Some(release) if release.withdrawn.is_some() => {
            nothing(WaitReason::ReleaseWithdrawn, format!("{to} was withdrawn, the way back to it is closed"))
        }
        Some(release) if *running < release.version || release.downgrade => {
            let text = texts.find(to.as_str());
            let offered = manifest_of(release, node.node.architecture);
            let (is_offered, digest) = (offered.is_some(), offered.and_then(|digest| texts.find(digest.as_str())));
            let (target, rollback) = (release, Some(facts));
            Desired::Install(Install { release, target, young: None, rollback, text, is_offered, digest })
        }
        Some(_) => {
            let message = format!("{to} is not in the other slot and its publisher does not allow going back to it");
            nothing(WaitReason::NoRelease, message)
        }
        None => nothing(WaitReason::NoRelease, format!("{to} is neither in the other slot nor in the channel")),
    }
}

fn go_back<'a>(
    policy: &PolicyView<'a>,
    node: &NodeView<'a>,
    running: &Version,
    to: &Version,
    why: Back<'a>,
) -> Desired<'a> {
    match reference(policy, node, running) {
        Some(leaves) => Desired::GoBack(Box::new(GoBack { to: to.clone(), leaves, why })),
        None => {
            let message = format!("the digest of {running} is not known, because the repository was not read yet");
            Desired::Nothing(Arc::new(Wait::new(WaitReason::RepositoryUnavailable, message)))
        }
    }
}

/// A release as a NodeUpdate names it.
pub(super) fn reference(policy: &PolicyView<'_>, node: &NodeView<'_>, version: &Version) -> Option<ReleaseRef> {
    let source = &policy.valid?.spec.source;
    let digest = digest_of(policy, node, version)?;
    Some(ReleaseRef {
        version: version.clone(),
        digest,
        repository: source.repository.clone(),
        channel: source.channel.clone(),
    })
}

fn digest_of(policy: &PolicyView<'_>, node: &NodeView<'_>, version: &Version) -> Option<Digest> {
    let release = policy.facts.offer.release(version);
    let offered = release.and_then(|release| manifest_of(release, node.node.architecture));
    let asked = node.update().and_then(|update| update.spec.release.as_ref());
    let status = &policy.facts.status;
    offered
        .or_else(|| asked.filter(|asked| asked.version == *version).map(|asked| &asked.digest))
        .or_else(|| {
            let remembered = [status.target.as_ref(), status.previous.as_ref()].into_iter().flatten();
            remembered.filter(|release| release.version == *version).map(|release| &release.digest).next()
        })
        .cloned()
}

impl Desired<'_> {
    /// What causes the disruption, for the grant.
    pub(super) fn cause(&self, policy: &str) -> bascule_api::Cause {
        let (kind, name, user) = match self.ordered_by() {
            Some(facts) => (rollback::KIND, facts.name.clone(), facts.spec.requested_by.clone()),
            None => ("UpdatePolicy", policy.to_owned(), None),
        };
        bascule_api::Cause { object: ObjectRef { kind: kind.to_owned(), namespace: None, name }, user }
    }

    /// Whether a person or the policy asks for a way back, which ignores what only slows updates down.
    pub(super) fn goes_back(&self) -> bool {
        match self {
            Self::Install(install) => install.rollback.is_some(),
            Self::GoBack(back) => matches!(back.why, Back::Rollback(_) | Back::Automatic),
            Self::Here | Self::Nothing(_) => false,
        }
    }

    fn ordered_by(&self) -> Option<&RollbackFacts> {
        match self {
            Self::Install(install) => install.rollback,
            Self::GoBack(back) => match back.why {
                Back::Rollback(facts) => Some(facts),
                Back::Automatic | Back::Pinned => None,
            },
            Self::Here | Self::Nothing(_) => None,
        }
    }

    /// Whether a person ordered it whatever the budgets say.
    pub(super) fn ignores_budgets(&self) -> bool {
        self.rollback().is_some_and(|rollback| rollback.ignore_budgets)
    }

    /// Whether a person accepted that the release is made for an older state of the machine.
    pub(super) fn accepts_state(&self) -> bool {
        self.rollback().is_some_and(|rollback| rollback.accept_state)
    }

    /// The Rollback that asks for it.
    pub(super) fn rollback(&self) -> Option<&bascule_api::RollbackSpec> {
        self.ordered_by().map(|facts| &facts.spec)
    }
}
