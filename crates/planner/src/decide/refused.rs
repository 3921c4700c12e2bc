//! What is said of nodes whose writes fail. A plan's sentence about a node tells what its steps are to bring about: where they do
//! not, people read why, in the API server's own words.

use super::{Draft, Round, Said};
use crate::{Action, Wait, snapshot::Refusal};
use bascule_api::{RolloutState, WaitReason};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How much of what is said otherwise stands before these words, in characters: an explanation is cut at 1,024.
const BEFORE: usize = 500;

impl Round<'_> {
    /// Says of each node of which a step has failed for a while what the API server said.
    pub(super) fn quote_refusals(&mut self) {
        let (refused, now) = (&self.snapshot.refused, self.snapshot.now);
        if refused.is_empty() {
            return;
        }
        self.draft.wake(refused.next_told(now), now);
        let places = self.nodes.iter().enumerate().map(|(index, view)| (&*view.node.name, index));
        let places: BTreeMap<&str, usize> = places.collect();
        let Draft { steps, said, .. } = &mut self.draft;
        let mut quoted = BTreeSet::new();
        for step in &*steps {
            let Some(refusal) = refused.told(&step.action, now) else { continue };
            let Some(index) = step.action.node().and_then(|node| places.get(node)).copied() else { continue };
            let moves = self.nodes.get(index).is_some_and(|view| view.traits.moves);
            // The steps of a node wait for each other: the first that fails is the one that matters.
            if quoted.insert(index)
                && let Some(Some(said)) = said.get_mut(index)
            {
                quote(said, &step.action, refusal, moves);
            }
        }
    }
}

fn quote(said: &mut Said, action: &Action, refusal: &Refusal, moves: bool) {
    let before = &said.wait;
    let mut message = before.message.clone();
    if !message.contains(&refusal.words) {
        if message.chars().count() > BEFORE {
            message = message.chars().take(BEFORE).chain(['…']).collect();
        }
        let (name, since, words) = (action.name(), refusal.since, &refusal.words);
        message.push_str(&format!("; {name} has failed since {since}: {words}"));
    }
    // A hook has a reason of its own, nobody waits for housekeeping, and a node that runs what it should and is free does so.
    let is_current = before.reason == WaitReason::Current && !moves;
    let reason = if action.is_housekeeping() || is_current || before.reason == WaitReason::Hook {
        before.reason
    } else {
        WaitReason::WriteRefused
    };
    if moves && said.state == RolloutState::Current {
        // It takes no work, and holds its place.
        said.state = RolloutState::Failed;
    }
    if !moves && said.state == RolloutState::Draining {
        // Its grant was not taken.
        said.state = RolloutState::Waiting;
    }
    said.wait = Arc::new(Wait { reason, message, ..Wait::clone(before) });
}
