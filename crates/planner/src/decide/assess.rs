//! What follows for each node from what it should run, worked out in one pass: how it stands in its wave, what staging has to do with
//! it, and whether it is outdated. Later passes read these few bytes and look closer only where something is to be done.

use super::{
    desired::{Desired, DesiredByKind, Install, made_for_older_state},
    facts::NodeView,
    policy::{PolicyView, deciding},
    texts::Texts,
    waves::{Member, Standing},
};
use crate::snapshot::UpdateFacts;
use bascule_api::Time;
use std::collections::BTreeMap;

/// What follows for a node from what it should run.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Assessment {
    pub(super) member: Member,
    /// Its agent reports what it was asked to stage as staged.
    pub(super) staged: bool,
    /// It is busy with staging.
    pub(super) writing: bool,
    /// It is to stage something that it is not asked to stage yet.
    pub(super) wants: bool,
    /// What it is asked to stage is not wanted any more: superseded by nothing, blocked, withdrawn, or failed there.
    pub(super) unwanted: bool,
    /// It is to carry the outdated taint: it runs what a rollout replaces.
    pub(super) outdated: bool,
}

impl Default for Assessment {
    fn default() -> Self {
        let member = Member { index: 0, standing: Standing::Unable, begun: false, selected: 0, runs_operator: false };
        Self { member, staged: false, writing: false, wants: false, unwanted: false, outdated: false }
    }
}

/// Looks at one node after the other.
pub(super) struct Assessor<'c, 'a> {
    policies: &'c [PolicyView<'a>],
    desired: DesiredByKind<'a>,
    now: Time,
    /// Whether a release may not be installed any more, by policy and the number of its version.
    closed: BTreeMap<(usize, u32), bool>,
}

impl<'c, 'a> Assessor<'c, 'a> {
    pub(super) fn new(policies: &'c [PolicyView<'a>], texts: &'a Texts, now: Time) -> Self {
        Self { policies, desired: DesiredByKind::new(texts), now, closed: BTreeMap::new() }
    }

    /// What a node should run, and what follows from it.
    pub(super) fn look(&mut self, index: usize, view: &NodeView<'a>) -> (Option<Desired<'a>>, Assessment) {
        let traits = view.traits;
        let deciding = deciding(self.policies, view);
        // Of a node that can't be read nothing is known to follow.
        let policy = deciding.and_then(|policy| self.policies.get(policy)).filter(|_| !traits.unreadable);
        let desired = policy.map(|policy| self.desired.of(policy, view, self.now));
        let mut assessed = Assessment { staged: traits.staged_as_asked, ..Assessment::default() };
        assessed.member.index = index;
        assessed.member.selected = traits.waves;
        assessed.member.runs_operator = traits.runs_operator;
        assessed.member.standing = standing(policy, desired.as_ref(), view, self.now);
        let installs = match &desired {
            Some(Desired::Install(install)) => Some(install),
            _ => None,
        };
        if let Some(floor) = installs.and_then(|install| install.target.floor.as_ref()) {
            assessed.member.begun = view.running().is_some_and(|running| running >= floor);
        }
        if traits.moves {
            return (desired, assessed);
        }
        if let Some(install) = installs.filter(|_| traits.live && !traits.on_trial) {
            assessed.writing = traits.writing;
            assessed.wants = !install.is_asked(traits);
        }
        let replaced = installs.is_some_and(|install| install.text != traits.asked);
        if let (Some(policy), Some(deciding), Some(text)) = (policy, deciding, traits.asked)
            && !traits.on_trial
            && !replaced
        {
            assessed.unwanted = has_failed_there(view)
                || matches!(desired, Some(Desired::Here | Desired::GoBack(_)))
                || self.is_closed(policy, deciding, text, view);
        }
        let rolling = policy.is_some_and(|policy| policy.memory.running().is_some());
        assessed.outdated = rolling && traits.ready && installs.is_some();
        (desired, assessed)
    }

    fn is_closed(&mut self, policy: &PolicyView<'a>, index: usize, text: u32, view: &NodeView<'a>) -> bool {
        *self.closed.entry((index, text)).or_insert_with(|| {
            let version = view.update().and_then(|update| update.spec.release.as_ref()).map(|asked| &asked.version);
            version.is_some_and(|version| policy.is_closed(version))
        })
    }
}

/// Whether what a node is asked to stage failed there.
fn has_failed_there(view: &NodeView<'_>) -> bool {
    let asked = view.update().and_then(|update| update.spec.release.as_ref());
    asked.is_some_and(|asked| view.reports_failed(&asked.version))
}

/// Whether a release has not failed on a node. A new node is not held for one that has: it would be held for ever.
pub(super) fn may_come_up(policy: Option<&PolicyView<'_>>, view: &NodeView<'_>, install: &Install<'_>) -> bool {
    let version = &install.release.version;
    let remembered = policy.is_some_and(|policy| policy.memory.failed_on(version, &view.node.name));
    !remembered && !view.reports_failed(version)
}

fn standing(
    policy: Option<&PolicyView<'_>>,
    desired: Option<&Desired<'_>>,
    view: &NodeView<'_>,
    now: Time,
) -> Standing {
    if view.traits.moves {
        return Standing::Moving;
    }
    if desired.is_some_and(|desired| made_for_older_state(view, desired).is_some()) {
        // Others are not held back for what a person has to accept.
        return Standing::Unable;
    }
    match desired {
        // A trial whose Node was made anew is carried on with.
        Some(Desired::Here) if view.traits.on_trial && view.update().is_some_and(UpdateFacts::forgot_a_grant) => {
            Standing::Moving
        }
        Some(Desired::Here) if view.traits.on_trial => Standing::Unable,
        Some(Desired::Here) => Standing::Done(view.done_since(now)),
        Some(Desired::Install(install)) => {
            if view.able() && may_come_up(policy, view, install) {
                Standing::Ahead
            } else {
                Standing::Unable
            }
        }
        Some(Desired::GoBack(_)) if view.able() => Standing::Ahead,
        Some(Desired::GoBack(_) | Desired::Nothing(_)) | None => Standing::Unable,
    }
}
