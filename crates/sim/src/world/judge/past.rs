//! What a judge knows of the past: a sum of the events before the one that it looks at.

use crate::world::history::{Act, Event, Evicted, Planned};
use bascule_api::Time;
use bascule_planner::{Action, snapshot::Cordon};
use std::collections::BTreeMap;

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
}

impl<'h> Past<'h> {
    pub(super) fn plan(&self, number: usize) -> Option<&'h Planned> {
        self.plans.get(number).map(|(_, plan)| *plan)
    }

    pub(super) fn newest(&self) -> Option<&'h Planned> {
        self.plans.last().map(|(_, plan)| *plan)
    }

    /// The disruption of a node that is in force.
    pub(super) fn word(&self, uid: &str) -> Option<&Word> {
        self.words.get(uid)
    }

    /// Whether a disruption of a node is in force of which a plan could know, or that was granted since. What was taken over since from a
    /// Node that is gone nobody could know of.
    pub(super) fn counts(&self, uid: &str, plan: usize) -> bool {
        let made = self.plans.get(plan).map_or(0, |(events, _)| *events);
        self.word(uid).is_some_and(|word| !(word.adopted && word.since > made))
    }

    pub(super) fn cordon(&self, uid: &str) -> Held<'h> {
        self.cordons.get(uid).copied().unwrap_or(Held::Nobody)
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
                }
            }
            Event::Act(act) => self.act(act),
            Event::Deed { .. } => {}
            Event::Kubelet { node, ready, boot } => {
                self.kubelets.entry(node).or_default().push(Said { at, ready: *ready, boot });
            }
            Event::Evicted(evicted) => self.evictions.push(evicted),
        }
        self.events += 1;
    }

    fn act(&mut self, act: &'h Act) {
        let uid = act.uid.as_str();
        match &act.action {
            Action::Grant { cause, .. } => {
                let updates = cause.object.kind == "UpdatePolicy";
                let was_cordoned = self.cordon(uid) == Held::Person;
                self.begin(uid, Word { updates, was_cordoned, ..self.new_word() });
            }
            Action::Adopt { .. } => {
                self.begin(uid, Word { told: true, updates: true, adopted: true, ..self.new_word() });
            }
            Action::CreateNodeUpdate { spec, .. } => {
                if let Some(disruption) = &spec.disruption {
                    let updates = disruption.cause.object.kind == "UpdatePolicy";
                    let told = disruption.drained_at.is_some();
                    self.begin(uid, Word { told, updates, adopted: true, ..self.new_word() });
                }
            }
            Action::Boot { .. } | Action::Revert { drained_at: Some(_), .. } => self.tell(uid, true),
            Action::Retract { .. } => self.tell(uid, false),
            Action::FreeGrant { .. } => {
                self.words.remove(uid);
            }
            Action::Cordon { mark, .. } => {
                self.cordons.insert(uid, Held::Us(mark));
            }
            Action::Uncordon { .. } => {
                self.cordons.insert(uid, Held::Nobody);
            }
            _ => {}
        }
    }

    fn new_word(&self) -> Word {
        Word { told: false, updates: false, was_cordoned: false, adopted: false, since: self.events }
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
