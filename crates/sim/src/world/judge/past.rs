//! What a judge knows of the past: a sum of the events before the one that it looks at.

use crate::world::{
    history::{Act, Event, Evicted, Planned},
    machine::Deed,
};
use bascule_api::{DisruptionOutcome, Time, Version, conditions::reason};
use bascule_planner::{
    Action,
    plan::MemoryChange,
    snapshot::{Cordon, Node, Write},
};
use std::collections::{BTreeMap, BTreeSet};

/// A disruption that is in force by the operator's words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    /// Whether the node was told to reboot.
    pub(super) told: bool,
    /// Whether a policy's update is the cause, and no Rollback.
    pub(super) updates: bool,
    /// Whether a person had cordoned the node when it was granted.
    pub(super) was_cordoned: bool,
    /// Whether it was taken over from a Node of the same name.
    pub(super) adopted: bool,
    /// How many events there were before it.
    pub(super) since: usize,
    /// Whether a plan was made since that saw no NodeUpdate of the node, and whose operator remembered none.
    forgotten: bool,
    /// The plan that gave it.
    plan: usize,
}

/// What a kubelet was seen to say from a moment on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'h> {
    pub(super) at: Time,
    pub(super) ready: bool,
    pub(super) boot: &'h str,
}

/// How a node is cordoned, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held<'h> {
    /// It is not.
    Nobody,
    /// By us, with this mark.
    Us(&'h str),
    /// By us with this mark, and a person lifted it.
    Lifted(&'h str),
    /// By a person.
    Person,
}

/// All that happened so far.
#[derive(Debug, Default)]
pub(super) struct Past<'h> {
    events: usize,
    /// The plans, each with how many events there were before it.
    plans: Vec<(usize, &'h Planned)>,
    /// By the node's UID.
    words: BTreeMap<&'h str, Word>,
    /// By the node's name: a machine of the same name may come after it.
    pub(super) kubelets: BTreeMap<&'h str, Vec<Said<'h>>>,
    /// By the node's UID.
    cordons: BTreeMap<&'h str, Held<'h>>,
    pub(super) evictions: Vec<&'h Evicted>,
    /// Releases that were booted, or were to be, by the node's name.
    tried: BTreeSet<(&'h str, &'h Version)>,
    /// Nodes on which a release failed, by what their machines did.
    failed: BTreeSet<&'h str>,
    /// What is remembered of failures: policy, release, node.
    blamed: BTreeSet<(&'h str, &'h Version, &'h str)>,
    /// What failures blocked: policy, release.
    blocked: BTreeSet<(&'h str, &'h Version)>,
    /// Nodes whose disruption was given up for a reason that is waited after.
    gave_up: BTreeSet<&'h str>,
    /// Writes that the API server did not take when they were tried last.
    refused: BTreeSet<&'h Write>,
    /// How many plans there were when nothing happened any more.
    quiet: usize,
}

impl<'h> Past<'h> {
    pub(super) fn plan(&self, number: usize) -> Option<&'h Planned> {
        self.plans.get(number).map(|(_, plan)| *plan)
    }

    pub(super) fn newest(&self) -> Option<&'h Planned> {
        self.plans.last().map(|(_, plan)| *plan)
    }

    /// The plans since nothing happens any more.
    pub(super) fn quiet(&self) -> Vec<&'h Planned> {
        self.plans.iter().skip(self.quiet).map(|(_, plan)| *plan).collect()
    }

    /// The disruption of a node that is in force.
    pub(super) fn word(&self, uid: &str) -> Option<&Word> {
        self.words.get(uid)
    }

    /// Whether a disruption of a node is in force of which a plan could know, or that was being written when it was made. What was taken over
    /// since from a Node that is gone nobody could know of, and what a later plan gave that one had to give beside this one's grants. What
    /// somebody deleted with its NodeUpdate, and nobody remembers, is not in force any more: with the object went the word.
    pub(super) fn counts(&self, uid: &str, plan: usize) -> bool {
        let made = self.plans.get(plan).map_or(0, |(events, _)| *events);
        self.word(uid).is_some_and(|word| !word.forgotten && !(word.adopted && word.since > made) && word.plan <= plan)
    }

    pub(super) fn cordon(&self, uid: &str) -> Held<'h> {
        self.cordons.get(uid).copied().unwrap_or(Held::Nobody)
    }

    /// Whether a release was booted on a node, or the node was told to.
    pub(super) fn tried(&self, node: &str, version: &Version) -> bool {
        self.tried.contains(&(node, version))
    }

    /// Whether any release failed on a node, as its machine shows or as is remembered.
    pub(super) fn failed_on(&self, node: &str) -> bool {
        self.failed.contains(node) || self.blamed.iter().any(|(.., blamed)| *blamed == node)
    }

    /// On which nodes a release failed, as a policy remembers.
    pub(super) fn blamed(&self, policy: &str, version: &Version) -> BTreeSet<&'h str> {
        let of = self.blamed.iter().filter(|(by, what, _)| *by == policy && *what == version);
        of.map(|(.., node)| *node).collect()
    }

    /// Whether failures blocked a release.
    pub(super) fn blocked(&self, policy: &str, version: &Version) -> bool {
        self.blocked.contains(&(policy, version))
    }

    pub(super) fn gave_up(&self, node: &str) -> bool {
        self.gave_up.contains(node)
    }

    /// Whether the API server did not take the write of an action when it was tried last.
    pub(super) fn refused(&self, action: &Action) -> bool {
        !self.refused.is_empty() && self.refused.contains(&Write::of(action))
    }

    /// Goes on to the next event.
    pub(super) fn take(&mut self, at: Time, event: &'h Event) {
        match event {
            Event::Plan(plan) => {
                let plan: &'h Planned = plan;
                self.plans.push((self.events, plan));
                for node in plan.nodes() {
                    let held = match &node.cordon {
                        Cordon::None => Held::Nobody,
                        Cordon::Ours { mark } => Held::Us(mark),
                        Cordon::Lifted { mark } => Held::Lifted(mark),
                        Cordon::Other { .. } => Held::Person,
                    };
                    self.cordons.insert(&node.uid, held);
                    let forgotten = node.live_update().is_none() && node.interrupted().is_none();
                    if let Some(word) = self.words.get_mut(node.uid.as_str()).filter(|_| forgotten) {
                        word.forgotten = true;
                    }
                }
            }
            Event::Act(act) => {
                if !self.refused.is_empty() {
                    self.refused.remove(&Write::of(&act.action));
                }
                self.act(act);
            }
            Event::Refused(write) => {
                self.refused.insert(write);
            }
            Event::Deed { node, deed: Deed::Boots(version), .. } => {
                self.tried.insert((&**node, version));
            }
            Event::Deed { node, deed: Deed::Fails(_), .. } => {
                self.failed.insert(node);
            }
            Event::Deed { deed: Deed::Arms, .. } | Event::Rest => {}
            Event::Kubelet { node, ready, boot } => {
                self.kubelets.entry(node).or_default().push(Said { at, ready: *ready, boot });
            }
            Event::Evicted(evicted) => self.evictions.push(evicted),
            Event::Quiet => self.quiet = self.plans.len(),
        }
        self.events += 1;
    }

    fn act(&mut self, act: &'h Act) {
        let uid = act.uid.as_str();
        match &act.action {
            Action::Grant { cause, .. } => {
                let updates = cause.object.kind == "UpdatePolicy";
                let was_cordoned = self.cordon(uid) == Held::Person;
                self.begin(uid, Word { updates, was_cordoned, ..self.new_word(act.plan) });
            }
            Action::Adopt { release, node, .. } => {
                self.tried.insert((node.as_str(), &release.version));
                self.begin(uid, Word { told: true, updates: true, adopted: true, ..self.new_word(act.plan) });
            }
            Action::CreateNodeUpdate { spec, .. } => {
                if let Some(disruption) = &spec.disruption {
                    let updates = disruption.cause.object.kind == "UpdatePolicy";
                    let told = disruption.drained_at.is_some();
                    self.begin(uid, Word { told, updates, adopted: true, ..self.new_word(act.plan) });
                }
            }
            Action::Boot { node, .. } => {
                self.tell(uid, true);
                let asked = self.plan(act.plan).and_then(|plan| plan.node(uid)).and_then(asked);
                if let Some(version) = asked {
                    self.tried.insert((node.as_str(), version));
                }
            }
            Action::Revert { drained_at: Some(_), .. } => self.tell(uid, true),
            Action::Retract { .. } => self.tell(uid, false),
            Action::FreeGrant { node, outcome, .. } => {
                self.words.remove(uid);
                let waited_after = matches!(
                    outcome,
                    DisruptionOutcome::DrainFailed
                        | DisruptionOutcome::NotRebooted
                        | DisruptionOutcome::Interrupted
                        | DisruptionOutcome::Uncordoned
                );
                if waited_after {
                    self.gave_up.insert(node);
                }
            }
            Action::Cordon { mark, .. } => {
                self.cordons.insert(uid, Held::Us(mark));
            }
            Action::Uncordon { .. } => {
                self.cordons.insert(uid, Held::Nobody);
            }
            Action::Remember { policy, changes, .. } => {
                for change in changes {
                    match change {
                        MemoryChange::Failed(failure) => {
                            self.blamed.insert((policy.as_str(), &failure.version, failure.node.as_str()));
                        }
                        MemoryChange::Blocked { version, by, .. } if by == reason::FAILURE_THRESHOLD => {
                            self.blocked.insert((policy.as_str(), version));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn new_word(&self, plan: usize) -> Word {
        Word {
            told: false,
            updates: false,
            was_cordoned: false,
            adopted: false,
            since: self.events,
            forgotten: false,
            plan,
        }
    }

    fn begin(&mut self, uid: &'h str, word: Word) {
        self.words.insert(uid, word);
    }

    fn tell(&mut self, uid: &str, told: bool) {
        if let Some(word) = self.words.get_mut(uid) {
            word.told = told;
        }
    }
}

/// The release that a node is asked to run.
fn asked(node: &Node) -> Option<&Version> {
    node.live_update()?.spec.release.as_ref().map(|release| &release.version)
}
