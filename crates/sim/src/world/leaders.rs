//! What a leader had in flight when it died: its requests were sent, the API server takes its time for them, and they land beside the
//! writes of whoever leads next, which has read everything before it planned and knows nothing of them. Each carries the version of its
//! one object, and is taken where that is so still.

use super::{Broken, World, check, late::is_same, players::Player, refusing::Written, shown};
use bascule_planner::{Action, Expect, Report, Step, model, snapshot::Node};
use rand::RngExt as _;
use std::{collections::BTreeSet, sync::Arc};

/// Of a hundred nodes that a leader was about to write to when it died, to how many the write was sent.
const SENT: u32 = 50;

/// A write of a leader that is dead.
#[derive(Debug)]
pub(super) struct Stray {
    /// The plan that it is of, by its number.
    plan: usize,
    step: Step,
    /// The node as the leader saw it.
    seen: Arc<Node>,
}

impl World {
    /// A leader dies, and these steps of its plan were not answered. The first of each node may have been sent.
    pub(super) fn leave_in_flight(&mut self, plan: usize, steps: &[&Step], refused: &BTreeSet<String>) {
        let Some((Player::TwoLeaders, random)) = &mut self.company else { return };
        let mut begun = BTreeSet::new();
        for step in steps {
            let Some(name) = step.action.node().filter(|name| !refused.contains(*name)) else { continue };
            if !begun.insert(name) || random.random_range(0..100) >= SENT {
                continue;
            }
            // No place is kept for a grant of a leader that is dead (docs/decisions/0057-writes-in-flight-are-facts.md), and Jobs have
            // no version.
            let spared = matches!(step.action, Action::Grant { .. }) || step.action.hook().is_some();
            let seen = self.snapshot.nodes.iter().find(|node| *node.name == *name).filter(|_| !spared);
            if let Some(seen) = seen {
                self.strays.push(Stray { plan, step: (*step).clone(), seen: Arc::clone(seen) });
            }
        }
    }

    /// They land, once the next leader has planned.
    pub(super) fn land_strays(&mut self, report: &Report) -> Vec<Broken> {
        let mut broken = Vec::new();
        for Stray { plan, step, seen } in std::mem::take(&mut self.strays) {
            let now = self.snapshot.nodes.iter().find(|node| node.name == seen.name);
            let same = now.is_some_and(|now| match Written::by(&step.action) {
                Some(Written::Node) => is_same(now, &seen),
                Some(Written::NodeUpdate) => now.uid == seen.uid && now.update == seen.update,
                Some(Written::Job) | None => false,
            });
            // What it expected to find it had looked for.
            let took = same && step.expect.check(&seen).is_ok();
            let blind = Step { expect: Expect::default(), ..step };
            let done = if took { model::apply(&mut self.snapshot, &blind, report) } else { model::Done::Gone };
            let (name, says) = (&seen.name, &blind.says);
            let action = blind.action.name();
            self.tell(&format!("operator  a dead leader's {action} {name} {says} {}", shown(&Ok(done.clone()))));
            if done == model::Done::Applied {
                if matches!(blind.action, Action::Uncordon { .. } | Action::EndTruce { .. }) {
                    self.struck.insert(name.to_string());
                }
                self.note_act(plan, &blind.action);
                broken.extend(check::step(self, &blind.action));
            }
        }
        broken
    }
}
