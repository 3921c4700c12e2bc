//! What follows for each node from what it should run, worked out in the one pass that chooses: how it stands in its wave,
//! what staging has to do with it, and whether it is outdated. Later passes read these few bytes and look closer only where
//! something is to be done.

use super::{
    choice::{Choice, Choices, Install, made_for_older_state},
    deciding,
    facts::NodeView,
    policy::PolicyView,
    texts::Texts,
    waves::{Member, Standing},
};
use crate::snapshot::UpdateFacts;
use bascule_api::Time;
use std::collections::BTreeMap;

/// What follows from a node's choice.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Chosen {
    pub(super) member: Member,
    /// Its agent reports what it was asked to stage as staged.
    pub(super) staged: bool,
    /// It is busy with staging.
    pub(super) writing: bool,
    /// It is to stage something that it is not asked to stage yet.
    pub(super) wants: bool,
    /// What it is asked to stage is not wanted any more: superseded by nothing, blocked, withdrawn, or failed there.
    pub(super) rests: bool,
    /// It is to carry the outdated taint: it runs what a rollout replaces.
    pub(super) outdated: bool,
}

impl Default for Chosen {
    fn default() -> Self {
        let member = Member { index: 0, standing: Standing::Unable, begun: false, selected: 0, runs_operator: false };
        Self { member, staged: false, writing: false, wants: false, rests: false, outdated: false }
    }
}

/// Chooses for one node after the other.
pub(super) struct Chooser<'c, 'a> {
    policies: &'c [PolicyView<'a>],
    choices: Choices<'a>,
    now: Time,
    /// Whether a release may not be installed any more, by policy and the number of its version.
    closed: BTreeMap<(usize, u32), bool>,
}

impl<'c, 'a> Chooser<'c, 'a> {
    pub(super) fn new(policies: &'c [PolicyView<'a>], texts: &'a Texts, now: Time) -> Self {
        Self { policies, choices: Choices::new(texts), now, closed: BTreeMap::new() }
    }

    /// What a node should run, and what follows from it.
    pub(super) fn look(&mut self, index: usize, view: &NodeView<'a>) -> (Option<Choice<'a>>, Chosen) {
        let traits = view.traits;
        let deciding = deciding(self.policies, view);
        // Of a node that can't be read nothing is known to follow.
        let policy = deciding.and_then(|policy| self.policies.get(policy)).filter(|_| !traits.unreadable);
        let choice = policy.map(|policy| self.choices.of(policy, view, self.now));
        let mut chosen = Chosen { staged: traits.staged_as_asked, ..Chosen::default() };
        chosen.member.index = index;
        chosen.member.selected = traits.waves;
        chosen.member.runs_operator = traits.runs_operator;
        chosen.member.standing = standing(policy, choice.as_ref(), view, self.now);
        let installs = match &choice {
            Some(Choice::Install(install)) => Some(install),
            _ => None,
        };
        if let Some(floor) = installs.and_then(|install| install.target.floor.as_ref()) {
            chosen.member.begun = view.running().is_some_and(|running| running >= floor);
        }
        if traits.moves {
            return (choice, chosen);
        }
        if let Some(install) = installs.filter(|_| traits.live && !traits.on_trial) {
            chosen.writing = traits.writing;
            chosen.wants = traits.asked.is_none() || traits.asked != install.text;
        }
        let replaced = installs.is_some_and(|install| install.text != traits.asked);
        if let (Some(policy), Some(deciding), Some(text)) = (policy, deciding, traits.asked)
            && !traits.on_trial
            && !replaced
        {
            chosen.rests = has_failed_there(view)
                || matches!(choice, Some(Choice::Here | Choice::GoBack(_)))
                || self.is_closed(policy, deciding, text, view);
        }
        let rolling = policy.is_some_and(|policy| policy.memory.running().is_some());
        chosen.outdated = rolling && traits.ready && installs.is_some();
        (choice, chosen)
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

fn standing(policy: Option<&PolicyView<'_>>, choice: Option<&Choice<'_>>, view: &NodeView<'_>, now: Time) -> Standing {
    if view.traits.moves {
        return Standing::Moving;
    }
    if choice.is_some_and(|choice| made_for_older_state(view, choice).is_some()) {
        // Others are not held back for what a person has to accept.
        return Standing::Unable;
    }
    match choice {
        // A trial whose Node was made anew is carried on with.
        Some(Choice::Here) if view.traits.on_trial && view.update().is_some_and(UpdateFacts::forgot_a_grant) => {
            Standing::Moving
        }
        Some(Choice::Here) if view.traits.on_trial => Standing::Unable,
        Some(Choice::Here) => Standing::Done(view.done_since(now)),
        Some(Choice::Install(install)) => {
            if view.able() && may_come_up(policy, view, install) {
                Standing::Ahead
            } else {
                Standing::Unable
            }
        }
        Some(Choice::GoBack(_)) if view.able() => Standing::Ahead,
        Some(Choice::GoBack(_) | Choice::Nothing(_)) | None => Standing::Unable,
    }
}
